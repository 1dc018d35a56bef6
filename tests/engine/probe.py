"""Ask and answer over TCP, UDP and SCTP, over IPv4 and IPv6, from whatever namespace it runs in.

The protocol `group` is UDP to a broadcast or multicast address, which anybody may answer.

    probe.py serve PROTOCOL PORT…       answers until killed; says `ready` when all are open
    probe.py ask                        asks what it reads, all at once; writes the answers

The answer is the address that the question came from, so that a test sees what translation did.
Uses nothing but the standard library, for it starts often.
"""

from __future__ import annotations

import json
import socket
import sys
import threading

TYPES = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "group": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}


def serve(protocol: str, ports: list[int]) -> None:
    """Answer on the ports until killed; says `ready` when all are open."""
    answer = _answer_datagrams if protocol == "udp" else _answer_connections
    threads = [threading.Thread(target=answer, args=(_open(protocol, port),)) for port in ports]
    for thread in threads:
        thread.start()
    print("ready", flush=True)


def ask_all(questions: list[dict[str, object]]) -> list[str | None]:
    """Return for each question what the other side saw as our address, None for no answer."""
    answers: list[str | None] = [None] * len(questions)

    def ask(number: int) -> None:
        try:
            answers[number] = _ask(**questions[number])  # type: ignore[arg-type]
        except OSError as error:
            print(questions[number], error, file=sys.stderr)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def _ask(protocol: str, host: str, port: int, timeout: float, sport: int) -> str:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, *TYPES[protocol]) as asking:
        asking.settimeout(timeout)
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sport:
            asking.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", sport))
        # With the interface in it, if it has one: fe80::1%eth0.
        (*_, address), *_ = socket.getaddrinfo(host, port, family, *TYPES[protocol])
        if protocol == "group":
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            asking.sendto(b"who?", address)
        else:
            asking.connect(address)
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


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb == "serve":
        serve(words[0], [int(word) for word in words[1:]])
    else:
        json.dump(ask_all(json.load(sys.stdin)), sys.stdout)
