"""Be one end of a connection: answer, or ask and say how long it took. A program of its own.

    talk.py echo PORT               answer every byte, and every connection
    talk.py pings HOST PORT COUNT   print the microseconds that each of COUNT round trips took
    talk.py connects HOST PORT SECONDS   print how many connections a second were made

Imports only the standard library: it runs in a container's network, and starts at once.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: no TIME_WAIT that would keep a port from the next


def echo(port: int) -> None:
    """Answer until killed."""
    listener = socket.create_server(("", port), backlog=4096)
    print("ready", flush=True)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    open_ones: dict[int, socket.socket] = {}
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == listener.fileno():
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                open_ones[client.fileno()] = client
                poll.register(client, select.EPOLLIN)
                continue
            try:
                data = open_ones[descriptor].recv(64)
                open_ones[descriptor].sendall(data)
            except OSError:
                data = b""
            if not data:
                poll.unregister(descriptor)
                open_ones.pop(descriptor).close()


def pings(host: str, port: int, count: int) -> list[float]:
    """Return the microseconds of each round trip of one byte."""
    taken = []
    with socket.create_connection((host, port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            began = time.perf_counter()
            connection.sendall(b".")
            connection.recv(1)
            taken.append((time.perf_counter() - began) * 1e6)
    return taken


def connects(host: str, port: int, seconds: float) -> float:
    """Return the connections a second, each made, reset, and forgotten."""
    made = 0
    began = time.perf_counter()
    end = began + seconds
    while time.perf_counter() < end:
        with socket.socket() as connection:
            connection.connect((host, port))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        made += 1
    return made / (time.perf_counter() - began)


def main(words: list[str]) -> None:
    """Do what the words say."""
    do, *rest = words
    if do == "echo":
        echo(int(rest[0]))
    elif do == "pings":
        print(json.dumps(pings(rest[0], int(rest[1]), int(rest[2]))))
    else:
        print(json.dumps(connects(rest[0], int(rest[1]), float(rest[2]))))


if __name__ == "__main__":
    main(sys.argv[1:])
