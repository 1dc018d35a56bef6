"""Have bytes flow between two containers, and say at the end whether any was lost.

A program as well, in a network namespace of its own: `transfer.py send HOST PORT`, until its input
ends, and `transfer.py receive PORT`. Each writes how many bytes went by; imports nothing of ours.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine

PORT = 9999
PERIOD = 251  # a prime: a block that is lost or comes twice shows
BLOCK = bytes(range(PERIOD)) * 64
RATE = 4_000_000  # bytes a second, so that the transfer is not all that the machine does
SECONDS = 30


class Transfer:
    """A TCP connection from one container to another, always busy."""

    def __init__(self, engine: Engine, source: str, target: str) -> None:
        receiver, sender = (self._enter(engine, each) for each in (target, source))
        address = self._address(engine, target)
        program = (sys.executable, "-I", __file__)
        self._receiver = engine.popen(*receiver, *program, "receive", str(PORT), stdout=PIPE)
        assert self._receiver.stdout is not None
        assert self._receiver.stdout.readline() == "ready\n"
        self._sender = engine.popen(
            *sender, *program, "send", address, str(PORT), stdin=PIPE, stdout=PIPE
        )

    @staticmethod
    def _enter(engine: Engine, container: str) -> tuple[str, str]:
        settings = engine.client.api.inspect_container(container)["NetworkSettings"]
        return ("nsenter", f"--net={settings['SandboxKey']}")

    @staticmethod
    def _address(engine: Engine, container: str) -> str:
        settings = engine.client.api.inspect_container(container)["NetworkSettings"]
        (network,) = settings["Networks"].values()
        return str(network["IPAddress"])

    @property
    def running(self) -> bool:
        """Tell whether both ends are still at it."""
        return self._sender.poll() is None and self._receiver.poll() is None

    def finish(self) -> int:
        """End it; return how many bytes have gone over, which must be all that were sent."""
        sent = int(self._sender.result(stdin="", timeout=SECONDS).stdout)
        received = int(self._receiver.result(timeout=SECONDS).stdout)
        assert received == sent > 0, f"{received} of {sent} bytes arrived"
        return received

    def kill(self) -> None:
        """End it whatever has become of it."""
        for command in (self._sender, self._receiver):
            if command.poll() is None:
                command.kill()
                command.wait()


@contextmanager
def transferring(engine: Engine, source: str, target: str) -> Iterator[Transfer]:
    """Have bytes flow inside the block, at the end of which all must have arrived."""
    transfer = Transfer(engine, source, target)
    try:
        yield transfer
        assert transfer.running, "the transfer has broken off"
        transfer.finish()
    finally:
        transfer.kill()


def send(host: str, port: int) -> int:
    """Send the pattern until the input ends; return how many bytes."""
    over = threading.Event()

    def await_end() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=await_end, daemon=True).start()
    sent, began = 0, time.monotonic()
    with socket.create_connection((host, port), timeout=SECONDS) as connection:
        while not over.is_set():
            connection.sendall(BLOCK)
            sent += len(BLOCK)
            over.wait(sent / RATE - (time.monotonic() - began))
    return sent


def receive(port: int) -> int:
    """Take one connection and read to its end; return how many bytes came, all as they should."""
    received = 0
    with socket.create_server(("", port)) as server:
        print("ready", flush=True)
        connection, _ = server.accept()
        with connection:
            while data := connection.recv(1 << 16):
                offset = received % PERIOD
                if data != (BLOCK * (len(data) // len(BLOCK) + 2))[offset : offset + len(data)]:
                    raise ValueError(f"wrong bytes after {received}")
                received += len(data)
    return received


if __name__ == "__main__":
    what, *where = sys.argv[1:]
    count = send(where[0], int(where[1])) if what == "send" else receive(int(where[0]))
    Path("/dev/stdout").write_text(f"{count}\n")
