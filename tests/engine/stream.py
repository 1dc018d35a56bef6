"""Keep one TCP connection busy both ways, and see that every byte comes back, in order.

    stream.py echo PORT        sends back what it gets until killed; says `ready` when it is open
    stream.py pour HOST PORT   sends until its input ends; says `flowing` when something has come
                               back, then writes how many bytes went and came

What is sent is numbered, so that a byte that is lost, doubled or changed is seen. Uses nothing but
the standard library, for it runs in whatever namespace it is put.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from array import array

WORD = 8
BLOCK = 4096 * WORD
BYTES_A_SECOND = 4_000_000  # what two busy CPUs carry beside everything else
SO_MAX_PACING_RATE = 47  # include/uapi/asm-generic/socket.h; the kernel's timer, not ours
PATIENCE = 30.0  # seconds


def echo(port: int) -> None:
    """Send back what comes, on every connection."""
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            threading.Thread(target=_send_back, args=(connection,)).start()


def _send_back(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(BLOCK):
            connection.sendall(data)


def pour(host: str, port: int) -> dict[str, int]:
    """Send until standard input ends, and then once more; return what went and what came."""
    ended = threading.Event()
    threading.Thread(target=_await_end, args=(ended,)).start()
    with socket.create_connection((host, port), timeout=PATIENCE) as connection:
        connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, BYTES_A_SECOND)
        received: list[int] = []
        reader = threading.Thread(target=lambda: received.append(_check(connection)))
        reader.start()
        sent = 0
        is_last = False
        while not is_last and reader.is_alive():
            is_last = ended.is_set()
            connection.sendall(_numbered(sent, BLOCK))
            sent += BLOCK
        connection.shutdown(socket.SHUT_WR)
        reader.join()
    return {"sent": sent, "received": sum(received)}


def _await_end(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


def _check(connection: socket.socket) -> int:
    """Read to the end; return how much came, all as it was sent."""
    received = 0
    while data := connection.recv(BLOCK):
        if data != _numbered(received, len(data)):
            raise ValueError(f"what came back after {received} bytes is not what was sent")
        if not received:
            print("flowing", flush=True)
        received += len(data)
    return received


def _numbered(offset: int, length: int) -> bytes:
    """Return a part of the endless stream."""
    first = offset // WORD
    words = array("Q", range(first, (offset + length) // WORD + 1))
    return words.tobytes()[offset - first * WORD :][:length]


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb == "echo":
        echo(int(words[0]))
    else:
        print(json.dumps(pour(words[0], int(words[1]))))
