"""Send one SCTP packet and catch it, without SCTP sockets: the kernel here may have none.

sctp.py send ADDRESS PORT       sends an INIT chunk
sctp.py receive 4|6             says `ready`, catches one, writes source, port and the rest
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.engine.site import Site

SOURCE_PORT = 40001
# Type 1 (INIT), no flags, 20 bytes; tag, window, streams out and in, first number (RFC 9260).
PACKET = struct.pack("!BBHIIHHI", 1, 0, 20, 0x70796E65, 65536, 1, 1, 1).hex()
_HEADER = struct.Struct("!HHII")  # source, destination, verification tag, checksum
_CRC32C = 0x82F63B78  # the Castagnoli polynomial, bits reversed


def checksum(packet: bytes) -> int:
    """Return the CRC32c of a packet whose checksum field is 0, as it stands in the header."""
    crc = 0xFFFFFFFF
    for byte in packet:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CRC32C if crc & 1 else 0)
    return int.from_bytes((crc ^ 0xFFFFFFFF).to_bytes(4, "little"))


def _seal(source: int, destination: int, rest: bytes) -> bytes:
    """Return the packet with a header and a valid checksum."""
    blank = _HEADER.pack(source, destination, 0, 0) + rest
    return _HEADER.pack(source, destination, 0, checksum(blank)) + rest


def _send(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_SCTP) as sending:
        sending.sendto(_seal(SOURCE_PORT, port, bytes.fromhex(PACKET)), (host, 0))


def _receive(version: int) -> tuple[str, int, str]:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_SCTP) as catching:
        print("ready", flush=True)
        packet, peer = catching.recvfrom(1000)
    sctp = packet[(packet[0] & 15) * 4 :] if version == 4 else packet
    source, port, _, _ = _HEADER.unpack_from(sctp)
    rest = sctp[_HEADER.size :]
    if sctp != _seal(source, port, rest):
        raise ValueError(f"the checksum of {sctp.hex()} is wrong")
    return peer[0], port, rest.hex()


def send(site: Site, host: str, port: int) -> None:
    """Have the neighbour send a packet."""
    site.engine.lan_run(*_command("send", host, str(port)))


@contextmanager
def receive(
    site: Site, container: str, version: int
) -> Iterator[Callable[[], tuple[str, int, str]]]:
    """Catch the first packet that comes to a container; the value returns it, or fails."""
    words = (*site.enter(container), *_command("receive", str(version)))
    catcher = site.engine.popen(*words, stdout=PIPE)
    assert catcher.stdout is not None
    assert catcher.stdout.readline() == "ready\n"

    def caught() -> tuple[str, int, str]:
        source, port, rest = json.loads(catcher.result(timeout=10).stdout)
        return source, port, rest

    try:
        yield caught
    finally:
        catcher.kill_group()
        catcher.stdout.close()


def _command(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-I", str(Path(__file__)), *words)


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb == "send":
        _send(words[0], int(words[1]))
    else:
        print(json.dumps(_receive(int(words[0]))))
