"""Ask and answer over TCP, UDP and SCTP, over IPv4 and IPv6, from whatever namespace it runs in.

The answer is the address that the question came from, so that a test sees what translation did.
"""

from __future__ import annotations

import argparse
import socket
import sys
import threading

TYPES = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}


def serve(protocol: str, ports: list[int]) -> None:
    """Answer on the ports until killed; says `ready` when all are open."""
    answer = _answer_datagrams if protocol == "udp" else _answer_connections
    threads = [threading.Thread(target=answer, args=(_open(protocol, port),)) for port in ports]
    for thread in threads:
        thread.start()
    print("ready", flush=True)


def ask(protocol: str, host: str, port: int, timeout: float, sport: int) -> str:
    """Return what the other side saw as our address; raises OSError if it does not answer."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, *TYPES[protocol]) as asking:
        asking.settimeout(timeout)
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sport:
            asking.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", sport))
        asking.connect((host, port))
        asking.send(b"who?")
        return asking.recv(200).decode()


def _open(protocol: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6, *TYPES[protocol])
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listening.bind(("::", port))
    if protocol != "udp":
        listening.listen(64)
    return listening


def _answer_connections(listening: socket.socket) -> None:
    while True:
        connection, peer = listening.accept()
        with connection:
            connection.send(_plain(peer[0]))


def _answer_datagrams(listening: socket.socket) -> None:
    while True:
        _, peer = listening.recvfrom(200)
        listening.sendto(_plain(peer[0]), peer)


def _plain(address: str) -> bytes:
    return address.removeprefix("::ffff:").encode()


def main() -> int:
    """Return 0 if the question was answered."""
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=("serve", "ask"))
    parser.add_argument("protocol", choices=TYPES)
    parser.add_argument("words", nargs="+")
    parser.add_argument("--timeout", type=float, default=5.0)
    parser.add_argument("--sport", type=int, default=0)
    given = parser.parse_args()
    if given.verb == "serve":
        serve(given.protocol, [int(port) for port in given.words])
        return 0
    try:
        host, port = given.words
        print(ask(given.protocol, host, int(port), given.timeout, given.sport))
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
