"""Send drawn frames, and say which of them came where; from whatever namespace it runs in.

    fuzzer.py send INTERFACE SEED FIRST END   sends what the seed draws, for the world that it reads
    fuzzer.py listen INTERFACE [GATEWAY]      hears all that comes to an interface
    fuzzer.py record GROUP OPEN LOCAL         hears what the host's IP stack gets, from a firewall
                                              rule that logs to the group; serves on two ports, on
                                              all addresses and on the loopback ones

What hears says `ready`, goes on until its input ends, and then writes what came and how much it
has lost. It keeps only what has a mark of the sender's.
"""

from __future__ import annotations

import json
import selectors
import socket
import struct
import sys
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from tests.engine.fuzz_frames import ECHO, MARK, SEQUENCE, World, draw, encode, find_number

if TYPE_CHECKING:
    from collections.abc import Callable

ROOM = 256 << 20  # octets for what comes faster than we read
KEPT = 400  # octets of a frame: beyond every mark, in a quotation, too
QUIET = 1.5  # seconds in which nothing comes at the end; the log keeps packets back for one
BEAT = 0.02
DISCARD = 9
AT_ONCE = 1000
ETH_P_ALL = 3
SO_RCVBUFFORCE, SOL_PACKET, PACKET_STATISTICS = 33, 263, 6
NETLINK_NETFILTER, LOG, LOG_CONFIG = 12, 4 << 8, 4 << 8 | 1
LOG_PAYLOAD = 9


class Heard:
    """What came, each once."""

    def __init__(self) -> None:
        self._frames: dict[tuple[str, bytes], None] = {}
        self.accepted: list[tuple[str, str]] = []
        self.lost = 0
        self.latest = time.monotonic()

    def add(self, place: str, data: bytes) -> None:
        """Keep what came to a place if it is the sender's, or an answer to it."""
        kept = data[:KEPT]
        if find_number(kept) is not None or bytes((SEQUENCE,)) in kept:
            self._frames[place, kept] = None
            self.latest = time.monotonic()

    def encode(self) -> dict[str, object]:
        """Return all of it."""
        heard = [(place, data.hex()) for place, data in self._frames]
        return {"heard": heard, "accepted": self.accepted, "lost": self.lost}


def send(interface: str, seed: int, first: int, end: int, world: World) -> dict[str, object]:
    """Send the frames; return how many went out, and what the kernel did not take."""
    sent, refused = 0, 0
    began = time.monotonic()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
        raw.bind((interface, 0))
        for number in range(first, end):
            try:
                raw.send(encode(draw(world, seed, number), world))
                sent += 1
            except OSError:
                refused += 1
    return {"sent": sent, "refused": refused, "seconds": time.monotonic() - began}


def listen(interface: str, gateway: str = "") -> Heard:
    """Hear all that comes to an interface; remind the bridge where we are, whatever others say."""
    heard = Heard()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as raw:
        raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
        raw.bind((interface, ETH_P_ALL))

        def read() -> None:
            data, (_, _, kind, _, _) = raw.recvfrom(KEPT)
            if kind != socket.PACKET_OUTGOING:
                heard.add("", data)

        if gateway:
            threading.Thread(target=_beat, args=(gateway,), daemon=True).start()
        _hear({raw: read}, heard)
        _, heard.lost = struct.unpack("II", raw.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    return heard


def _beat(gateway: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as beating:
        while True:
            with suppress(OSError):
                beating.sendto(b"here", (gateway, DISCARD))
            time.sleep(BEAT)


def record(group: int, open_port: int, local_port: int) -> Heard:
    """Hear what the host gets, and answer on its ports."""
    heard = Heard()
    readers: dict[socket.socket, Callable[[], None]] = {}
    with ExitStack() as stack:
        log = stack.enter_context(_open_log(group))
        readers[log] = lambda: _read_log(log, heard)
        places = (("service", "::", open_port), ("loopback", "::1", local_port),
                  ("loopback", "127.0.0.1", local_port))  # fmt: skip
        for place, address, port in places:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                serving = stack.enter_context(socket.socket(family, kind))
                serving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if address == "::":
                    serving.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                serving.bind((address, port))
                if kind == socket.SOCK_STREAM:
                    serving.listen(1024)
                    readers[serving] = _taker(serving, place, heard)
                else:
                    serving.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
                    readers[serving] = _answerer(serving, place, heard)
        _hear(readers, heard)
    return heard


def _taker(serving: socket.socket, place: str, heard: Heard) -> Callable[[], None]:
    """Return what takes a connection and tells of it; a single frame cannot complete one."""

    def take() -> None:
        connection, peer = serving.accept()
        connection.close()
        heard.accepted.append((place, f"{peer[0]} {peer[1]}"))

    return take


def _answerer(serving: socket.socket, place: str, heard: Heard) -> Callable[[], None]:
    """Return what answers a datagram, so that there is a connection in both directions."""

    def answer() -> None:
        data, peer = serving.recvfrom(2000)
        heard.add(place, data)
        if MARK in data:  # an answer is not answered: with its own source it would go on for ever
            with suppress(OSError):  # nobody can be answered there
                serving.sendto(data.replace(MARK, ECHO), peer)

    return answer


def _hear(readers: dict[socket.socket, Callable[[], None]], heard: Heard) -> None:
    """Read until our input has ended and nothing of the sender's comes any more."""
    ended = threading.Event()
    threading.Thread(target=_await_end, args=(ended,), daemon=True).start()
    with selectors.DefaultSelector() as selector:
        for readable, reader in readers.items():
            readable.settimeout(0)
            selector.register(readable, selectors.EVENT_READ, reader)
        print("ready", flush=True)
        while not ended.is_set() or time.monotonic() < heard.latest + QUIET:
            for key, _ in selector.select(QUIET / 10):
                with suppress(BlockingIOError):
                    for _ in range(AT_ONCE):
                        key.data()


def _await_end(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


def _open_log(group: int) -> socket.socket:
    """Return a socket that gets the packets of a firewall's log group, whole."""
    log = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    log.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
    bind = struct.pack("HHBxxx", 5, 1, 1)  # NFULA_CFG_CMD: bind
    mode = struct.pack("HH", 10, 2) + struct.pack("!IBxxx", KEPT, 2)  # NFULA_CFG_MODE: copy
    for attribute in (bind, mode):
        body = struct.pack("!BBH", 0, 0, group) + attribute
        head = struct.pack("IHHII", 16 + len(body), LOG_CONFIG, 5, 1, 0)  # request, acknowledge
        log.send(head + body)
        (code,) = struct.unpack_from("i", log.recv(1000), 16)
        if code:
            raise OSError(-code, "listen to the firewall's log")
    return log


def _read_log(log: socket.socket, heard: Heard) -> None:
    try:
        data = log.recv(1 << 18)
    except BlockingIOError:
        raise
    except OSError:
        heard.lost += 1  # ENOBUFS: more came than there was room for
        return
    at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from("IH", data, at)
        if kind == LOG:
            _read_packet(data[at + 20 : at + length], heard)
        at += (length + 3) & ~3


def _read_packet(attributes: bytes, heard: Heard) -> None:
    at = 0
    while at + 4 <= len(attributes):
        length, kind = struct.unpack_from("HH", attributes, at)
        if kind == LOG_PAYLOAD:
            heard.add("host", attributes[at + 4 : at + length])
        at += (length + 3) & ~3


def main(verb: str, *words: str) -> None:
    """Do what the words say, and write what came of it."""
    result: Any
    if verb == "send":
        interface, *numbers = words
        seed, first, end = map(int, numbers)
        result = send(interface, seed, first, end, World.decode(json.load(sys.stdin)))
    elif verb == "listen":
        result = listen(words[0]).encode()
    else:
        result = record(*map(int, words)).encode()
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
