"""Draw frames at random, the same ones for the same seed; pure, and sends nothing.

A frame depends on the seed and its number only, so that whoever finds one somewhere can draw it
again and say what it was. Each carries its number behind a mark, and a TCP segment in its sequence
numbers as well, so that an answer without a payload is known, too.

Made with `struct`: a packet library takes 374 µs for a plain TCP segment, this 28 µs for any frame,
and a hundred thousand are wanted in seconds.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from itertools import accumulate
from random import Random
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

T = TypeVar("T")

MARK = b"\xf5pynet"  # before the number, in whatever is sent
ECHO = b"\xf5echo\xf5"  # the same in what a service sends back
NUMBER = struct.Struct("!I")
SEQUENCE = 0xA7  # the first byte of a sequence number that holds a frame's
FOLLOWING = 0.25  # of the frames build on one before
TCP, UDP, SCTP, ICMP, ICMP6 = 6, 17, 132, 1, 58
IP4, ARP, IP6, VLAN, PROVIDER = 0x0800, 0x0806, 0x86DD, 0x8100, 0x88A8
REPLY = {ICMP: {8: 0, 13: 14, 15: 16, 17: 18}, ICMP6: {128: 129, 139: 140}}
ERRORS = {ICMP: (3, 4, 5, 11, 12), ICMP6: (1, 2, 3, 4, 137)}
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION, NOTHING = 0, 43, 44, 60, 59
SOLICITATION, ADVERTISEMENT, ROUTER, REDIRECT = 135, 136, 134, 137
BROADCAST = b"\xff" * 6
NO_MAC = bytes(6)


class Kind(StrEnum):
    """What a frame is, below all its tags."""

    IP4 = "IPv4"
    IP6 = "IPv6"
    ARP = "ARP"
    LLC = "LLC"
    UNKNOWN = "unknown EtherType"


# What nobody at the site has for an address, by family.
NOTABLE = {
    4: {
        "127.0.0.1": "127.0.0.1",
        "127.0.0.2": "127.0.0.2",
        "127.0.0.53": "127.0.0.53",
        "0.0.0.0": "0.0.0.0",
        "broadcast": "255.255.255.255",
        "all hosts": "224.0.0.1",
        "mDNS": "224.0.0.251",
        "link-local": "169.254.7.7",
        "internet": "198.51.100.7",
        "reserved": "240.0.0.1",
    },
    6: {
        "::1": "::1",
        "::": "::",
        "all nodes": "ff02::1",
        "all routers": "ff02::2",
        "all servers": "ff0e::1",
        "this interface": "ff01::1",
        "link-local": "fe80::7064",
        "mapped 127.0.0.1": "::ffff:127.0.0.1",
        "internet": "2001:db8:ffff::7",
        "site-local": "fec0::7",
    },
}
SOURCES = {
    "own": 90, "near": 14, "nobody": 6, "gateway": 8, "far": 9, "far gateway": 4, "inner": 12,
    "dock": 6, "host": 8, "lan": 10, "own link": 8, "near link": 2, "gateway link": 2,
    "127.0.0.1": 8, "127.0.0.2": 4, "127.0.0.53": 2, "0.0.0.0": 3, "broadcast": 1, "all hosts": 2,
    "link-local": 3, "internet": 3, "reserved": 1, "::1": 8, "::": 3,
    "all nodes": 2, "mapped 127.0.0.1": 2, "site-local": 1, "random": 4,
}  # fmt: skip
TARGETS = {
    "own": 2, "near": 30, "nobody": 6, "gateway": 18, "far": 12, "far gateway": 8, "inner": 10,
    "inner gateway": 8, "dock": 8, "dock gateway": 6, "host": 26, "lan": 22, "near link": 5,
    "gateway link": 6, "127.0.0.1": 6, "127.0.0.2": 1, "127.0.0.53": 2, "0.0.0.0": 1,
    "broadcast": 4, "all hosts": 3, "mDNS": 2, "link-local": 2, "internet": 5, "reserved": 1,
    "::1": 5, "::": 1, "all nodes": 4, "all routers": 3, "all servers": 2,
    "this interface": 1, "mapped 127.0.0.1": 2, "site-local": 1, "random": 4,
}  # fmt: skip
MACS = {"own": 85, "near": 4, "bridge": 3, "far": 2, "broadcast": 1, "none": 1, "random": 5}
TARGET_MACS = {
    "near": 30, "bridge": 30, "broadcast": 12, "multicast": 10, "reserved": 5, "far": 5, "own": 3,
    "random": 8,
}  # fmt: skip
PROTOCOLS = {
    4: {TCP: 30, UDP: 32, ICMP: 22, SCTP: 4, 2: 2, 4: 2, 41: 2, 47: 2, 50: 1, 51: 1, 112: 1,
        136: 2, 33: 1, 0: 1, 255: 1, ICMP6: 1},
    6: {TCP: 30, UDP: 32, ICMP6: 26, SCTP: 4, 4: 2, 41: 2, 47: 2, 50: 1, 103: 1, 112: 1, 136: 2,
        33: 1, NOTHING: 1, 255: 1, ICMP: 1},
}  # fmt: skip
ICMP_TYPES = {
    ICMP: {8: 40, 0: 6, 3: 12, 4: 2, 5: 10, 9: 3, 10: 2, 11: 8, 12: 4, 13: 6, 14: 1, 15: 2, 17: 3,
           42: 1},
    ICMP6: {128: 40, 129: 4, 1: 8, 2: 6, 3: 6, 4: 4, 130: 2, 131: 2, 132: 1, 133: 4, 134: 8,
            135: 8, 136: 12, 137: 8, 139: 3, 143: 3, 151: 1, 200: 1},
}  # fmt: skip
FLAGS = {0x02: 40, 0x10: 10, 0x12: 8, 0x04: 5, 0x14: 5, 0x18: 5, 0x01: 3, 0x11: 3, 0x00: 3, 0x29: 3}
KINDS = {Kind.IP4: 44, Kind.IP6: 46, Kind.ARP: 5, Kind.LLC: 2, Kind.UNKNOWN: 3}
ETHERTYPES = (0x88B5, 0x0000, 0x8863, 0x8864, 0x88CC, 0x888E, 0x8847, 0x88E5, 0x6003, 0x9000)
HOPS = {64: 60, 255: 18, 1: 8, 2: 5, 0: 2, 128: 4, 33: 3}
EXTENSIONS = {HOP_BY_HOP: 3, DESTINATION: 5, ROUTING: 4, FRAGMENT: 3}
OPTIONS = (b"", b"\x94\x04\x00\x00", b"\x01\x01\x01\x00")  # router alert, nothing
SHORT_PORTS = (53, 67, 68, 546, 547, 5353)
HIGH_PORTS = tuple(range(40000, 40006))
SIZES = (4, 4, 16, 40, 90)


class Table(Generic[T]):
    """Values with weights, to draw from."""

    def __init__(self, weights: Mapping[T, int]) -> None:
        self._values = tuple(weights)
        self._sums = tuple(accumulate(weights.values()))

    def draw(self, rng: Random) -> T:
        """Return one of them."""
        return rng.choices(self._values, cum_weights=self._sums)[0]


@dataclass(frozen=True, slots=True)
class Published:
    """A port of a container that is published on all addresses of the host."""

    place: str
    protocol: int
    port: int


@dataclass(frozen=True)
class World:
    """What a sender may know of a site: addresses by name and family, MAC addresses, ports."""

    macs: dict[str, str]
    addresses: dict[str, dict[str, str]]  # by "4" and "6", as JSON has it
    subnets: tuple[str, str]  # the sender's network, as the bytes that its addresses begin with
    published: tuple[Published, ...]
    ports: tuple[int, ...]

    @classmethod
    def decode(cls, value: dict[str, Any]) -> World:
        """Return it from what JSON made of it."""
        return cls(
            macs=value["macs"],
            addresses=value["addresses"],
            subnets=(value["subnets"][0], value["subnets"][1]),
            published=tuple(Published(**each) for each in value["published"]),
            ports=tuple(value["ports"]),
        )

    @cached_property
    def packed(self) -> dict[int, dict[str, bytes]]:
        """Return all addresses that have a name, as they are on the wire."""
        return {
            version: {
                name: inet_pton(family, text)
                for name, text in {**NOTABLE[version], **self.addresses[str(version)]}.items()
            }
            for version, family in ((4, AF_INET), (6, AF_INET6))
        }

    @cached_property
    def mac(self) -> dict[str, bytes]:
        """Return the MAC addresses as they are on the wire."""
        return {name: bytes.fromhex(text.replace(":", "")) for name, text in self.macs.items()}

    @cached_property
    def prefixes(self) -> tuple[bytes, bytes]:
        """Return what addresses of the sender's network begin with: IPv4, IPv6."""
        return bytes.fromhex(self.subnets[0]), bytes.fromhex(self.subnets[1])

    @cached_property
    def tables(self) -> dict[tuple[int, str], Table[str]]:
        """Return the weights of the addresses that there are, by family and end."""
        return {
            (version, end): Table(
                {
                    name: weight
                    for name, weight in weights.items()
                    if name in self.packed[version] or name == "random"
                }
            )
            for version in (4, 6)
            for end, weights in (("source", SOURCES), ("target", TARGETS))
        }

    def name(self, address: bytes) -> str:
        """Return an address as people write it, with whose it is."""
        if len(address) not in (4, 16):
            return "nothing"
        version, family = (4, AF_INET) if len(address) == 4 else (6, AF_INET6)
        text = inet_ntop(family, address)
        for name, known in self.packed[version].items():
            if known == address and name not in NOTABLE[version]:
                return f"{text} ({name})"
        return text


@dataclass(frozen=True, slots=True)
class Flow:
    """A packet's ends; of an ICMP message the ports are type and code."""

    source: bytes
    target: bytes
    protocol: int
    sport: int
    dport: int

    @property
    def reverse(self) -> Flow:
        """Return the ends of an answer."""
        if self.protocol in REPLY:
            replied = REPLY[self.protocol].get(self.sport, self.sport)
            return Flow(self.target, self.source, self.protocol, replied, self.dport)
        return Flow(self.target, self.source, self.protocol, self.dport, self.sport)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, as it is sent."""

    number: int
    kind: Kind
    source_mac: bytes
    target_mac: bytes
    ethertype: int = 0
    tags: tuple[tuple[int, int], ...] = ()  # EtherType and VLAN, the outer one first
    flow: Flow = Flow(b"", b"", 0, 0, 0)  # of ARP the operation is the port
    flags: int = 0
    hops: int = 64
    extensions: tuple[int, ...] = ()
    options: bytes = b""
    fragment: tuple[int, int, bool] | None = None  # identification, offset in octets, more
    quote: Flow | None = None
    claimed: bytes = b""  # the target of a neighbour advertisement or redirect
    claimed_mac: bytes = b""
    is_sound: bool = True  # its checksum, that is
    size: int = 0

    def describe(self, world: World) -> str:
        """Return it in words."""
        macs = {mac: name for name, mac in world.mac.items()}
        ends = [macs.get(mac, "") or mac.hex(":") for mac in (self.source_mac, self.target_mac)]
        tags = "".join(f" tag {ethertype:#06x}/{vlan}" for ethertype, vlan in self.tags)
        text = f"frame {self.number}: MAC {ends[0]} to {ends[1]}{tags} {self.kind}"
        if self.kind in (Kind.LLC, Kind.UNKNOWN):
            return f"{text} {self.ethertype:#06x}"
        text += f" {_describe(self.flow, world)}"
        if self.flow.protocol == TCP and self.kind is not Kind.ARP:
            text += f" flags {self.flags:#04x}"
        if self.kind is Kind.ARP or self.claimed:
            text += f" says that {world.name(self.claimed)} is at {self.claimed_mac.hex(':')}"
        if self.quote:
            text += f" quotes {_describe(self.quote, world)}"
        if self.extensions or self.options:
            text += f" extensions {self.extensions or self.options.hex()}"
        if self.fragment:
            text += f" fragment {self.fragment}"
        return text + f" hops {self.hops}" + ("" if self.is_sound else " wrong checksum")


def _describe(flow: Flow, world: World) -> str:
    return (
        f"{world.name(flow.source)} {flow.sport} to {world.name(flow.target)} {flow.dport} "
        f"protocol {flow.protocol}"
    )


# -- drawing

_KINDS, _MACS, _TARGET_MACS = Table(KINDS), Table(MACS), Table(TARGET_MACS)
_FLAGS, _HOPS, _EXTENSIONS = Table(FLAGS), Table(HOPS), Table(EXTENSIONS)
_PROTOCOLS = {version: Table(weights) for version, weights in PROTOCOLS.items()}
_ICMP_TYPES = {protocol: Table(weights) for protocol, weights in ICMP_TYPES.items()}


def draw(world: World, seed: int, number: int) -> Frame:
    """Return a frame of a seed."""
    rng = _generator(seed, number)
    if not _follows(rng, number):
        return _draw(world, rng, number)
    before = number - 1
    while _follows(earlier := _generator(seed, before), before):
        before -= 1  # what it builds on builds on nothing itself
    return _follow(world, rng, _draw(world, earlier, before), number)


def _generator(seed: int, number: int) -> Random:
    return Random(seed << 32 | number)


def _follows(rng: Random, number: int) -> bool:
    return rng.random() < FOLLOWING and number > 0


def _draw(world: World, rng: Random, number: int) -> Frame:
    kind = _KINDS.draw(rng)
    source_mac = _draw_mac(world, rng, _MACS.draw(rng))
    tags: tuple[tuple[int, int], ...] = ()
    if rng.random() < 0.1:
        tags = tuple(
            (rng.choice((VLAN, VLAN, PROVIDER)), rng.choice((0, 0, 1, 7, 4095)))
            for _ in range(rng.choice((1, 1, 2)))
        )
    frame = Frame(number, kind, source_mac, NO_MAC, tags=tags, size=rng.choice(SIZES))
    if kind is Kind.IP4 or kind is Kind.IP6:
        return _draw_packet(world, rng, frame)
    target_mac = _draw_mac(world, rng, _TARGET_MACS.draw(rng))
    if kind is Kind.ARP:
        flow = Flow(_draw_address(world, rng, 4, "source"), _draw_address(world, rng, 4, "target"),
                    0, rng.choice((1, 1, 2, 2, 3, 8)), 0)  # fmt: skip
        claimed_mac = source_mac if rng.random() < 0.7 else _draw_mac(world, rng, _MACS.draw(rng))
        return replace(frame, target_mac=target_mac, ethertype=ARP, flow=flow, claimed=flow.source,
                       claimed_mac=claimed_mac)  # fmt: skip
    if kind is Kind.LLC:
        return replace(frame, target_mac=target_mac, ethertype=rng.choice((0x42, 0xAA, 0xE0)))
    return replace(frame, target_mac=target_mac, ethertype=rng.choice(ETHERTYPES))


def _draw_packet(world: World, rng: Random, frame: Frame) -> Frame:
    version = 4 if frame.kind is Kind.IP4 else 6
    source = _draw_address(world, rng, version, "source")
    target = _draw_address(world, rng, version, "target")
    flow, quote, claimed = _draw_flow(world, rng, version, source, target)
    extensions: tuple[int, ...] = ()
    if version == 6 and rng.random() < 0.15:
        extensions = tuple(_EXTENSIONS.draw(rng) for _ in range(rng.choice((1, 1, 2, 3))))
    fragment = None
    if rng.random() < 0.06:
        fragment = (frame.number, rng.choice((0, 0, 0, 8, 64)), rng.random() < 0.8)
    is_discovery = flow.protocol == ICMP6 and 130 <= flow.sport <= 137
    return replace(
        frame,
        target_mac=_draw_way(world, rng, version, target),
        ethertype=IP4 if version == 4 else IP6,
        flow=flow,
        flags=_FLAGS.draw(rng) if rng.random() < 0.75 else rng.randrange(256),
        hops=255 if is_discovery and rng.random() < 0.9 else _HOPS.draw(rng),
        extensions=extensions,
        options=rng.choice(_options(world)) if version == 4 and rng.random() < 0.06 else b"",
        fragment=fragment,
        quote=quote,
        claimed=claimed,
        claimed_mac=_draw_mac(world, rng, _MACS.draw(rng)),
        is_sound=rng.random() < 0.97,
        size=1300 if rng.random() < 0.01 and flow.protocol != TCP else frame.size,
    )


def _draw_flow(
    world: World, rng: Random, version: int, source: bytes, target: bytes
) -> tuple[Flow, Flow | None, bytes]:
    """Return a packet's ends, what it quotes and what it claims to be."""
    protocol = _PROTOCOLS[version].draw(rng)
    if protocol not in _ICMP_TYPES:
        sport = rng.choice(HIGH_PORTS) if rng.random() < 0.6 else _draw_port(world, rng)
        return Flow(source, target, protocol, sport, _draw_port(world, rng)), None, b""
    kind = _ICMP_TYPES[protocol].draw(rng) if rng.random() < 0.95 else rng.randrange(256)
    quote = None
    if kind in ERRORS[protocol]:
        asked = _draw_address(world, rng, version, "target")
        quoted = rng.choice((TCP, UDP, protocol))
        ports = (8 if version == 4 else 128, 0) if quoted == protocol else (
            _draw_port(world, rng), rng.choice(HIGH_PORTS))  # fmt: skip
        quote = Flow(target, asked, quoted, *ports)
    claimed = b""
    if version == 6 and kind in (SOLICITATION, ADVERTISEMENT, REDIRECT):
        claimed = _draw_address(world, rng, 6, "source")
    return Flow(source, target, protocol, kind, rng.choice((0, 0, 0, 1, 4))), quote, claimed


def _follow(world: World, rng: Random, base: Frame, number: int) -> Frame:
    """Return a frame that belongs to the same conversation as another."""
    frame = replace(base, number=number)
    if base.kind not in (Kind.IP4, Kind.IP6):
        return replace(frame, target_mac=_draw_mac(world, rng, _TARGET_MACS.draw(rng)))
    version = 4 if base.kind is Kind.IP4 else 6
    if base.fragment:
        return replace(frame, fragment=(base.number, _length(base), rng.random() < 0.1))
    way = rng.choice(("again", "answer", "answer", "translated", "translated", "error"))
    if way == "again":
        return replace(frame, flags=_FLAGS.draw(rng), is_sound=True)
    known = world.packed[version]
    reverse = base.flow.reverse
    if way == "translated":  # whoever translated the source did so to one of the host's
        reverse = replace(reverse, target=known[rng.choice(("gateway", "host", "far gateway"))])
        if rng.random() < 0.3:
            reverse = replace(reverse, source=known[rng.choice(("own", "near"))])
    quote = None
    if way == "error":
        quote = rng.choice((base.flow, base.flow.reverse))
        protocol = ICMP if version == 4 else ICMP6
        source = known["own"] if rng.random() < 0.7 else reverse.source
        kind, code = rng.choice(ERRORS[protocol]), rng.choice((0, 1, 3, 4))
        reverse = Flow(source, quote.source, protocol, kind, code)
    return replace(
        frame,
        target_mac=_draw_way(world, rng, version, reverse.target),
        flow=reverse,
        flags=_FLAGS.draw(rng),
        quote=quote,
        claimed=b"",
        extensions=(),
    )


def _draw_address(world: World, rng: Random, version: int, end: str) -> bytes:
    name = world.tables[version, end].draw(rng)
    if name != "random":
        return world.packed[version][name]
    if version == 4:
        return rng.choice((b"\x0a", b"\x64", b"\xc0", b"\xac")) + bytes((rng.randrange(4), 9, 9))
    return rng.choice((b"\x20\x01", b"\xfd\x63", b"\xfe\x80", b"\x00\x64")) + bytes(
        (*([0] * 13), rng.randrange(4))
    )


def _draw_mac(world: World, rng: Random, name: str) -> bytes:
    if name == "random":
        return bytes((2, 0xF5, 0, 0, 0, rng.randrange(16)))
    if name == "multicast":
        return rng.choice((b"\x01\x00\x5e\x00\x00\x01", b"\x33\x33\x00\x00\x00\x01"))
    if name == "reserved":
        return b"\x01\x80\xc2\x00\x00" + bytes((rng.randrange(16),))
    return {"broadcast": BROADCAST, "none": NO_MAC, **world.mac}[name]


def _draw_way(world: World, rng: Random, version: int, target: bytes) -> bytes:
    """Return mostly the MAC address that a packet for this address should go to."""
    if rng.random() < 0.25:
        return _draw_mac(world, rng, _TARGET_MACS.draw(rng))
    known = world.packed[version]
    if target in (known["near"], known.get("near link")):
        return world.mac["near"] if rng.random() < 0.7 else world.mac["bridge"]
    if target == known["nobody"]:
        return world.mac[rng.choice(("near", "bridge"))]
    return _group_mac(target) or world.mac["bridge"]


def _group_mac(target: bytes) -> bytes | None:
    """Return the MAC address of a multicast or broadcast address, None of any other."""
    if len(target) == 16:
        return b"\x33\x33" + target[12:] if target[0] == 0xFF else None
    if target[0] >= 240 or not any(target):
        return BROADCAST
    return b"\x01\x00\x5e" + target[1:] if target[0] >= 224 else None


def _draw_port(world: World, rng: Random) -> int:
    return rng.choice(world.ports if rng.random() < 0.85 else SHORT_PORTS)


def _options(world: World) -> tuple[bytes, ...]:
    """Return what can stand between an IPv4 header and what follows, source routes included."""
    routed = [
        bytes((kind, 7, 4)) + world.packed[4][name] + b"\x00"
        for kind in (0x83, 0x89, 0x07)
        for name in ("inner", "far", "127.0.0.1")
    ]
    return (*OPTIONS[1:], *routed)


# -- encoding


def encode(frame: Frame, world: World) -> bytes:
    """Return the frame as it goes over the wire."""
    mark = MARK + NUMBER.pack(frame.number)
    head = frame.target_mac + frame.source_mac
    head += b"".join(struct.pack("!HH", *tag) for tag in frame.tags)
    match frame.kind:
        case Kind.IP4 | Kind.IP6:
            body = _encode_packet(frame, world, mark)
        case Kind.ARP:
            asked = BROADCAST if frame.number % 3 else frame.target_mac
            body = struct.pack("!HHBBH", 1, IP4, 6, 4, frame.flow.sport)
            body += frame.claimed_mac + frame.flow.source + asked + frame.flow.target + mark
        case Kind.LLC:
            # A spanning tree's hello, or what looks like it; its length stands for an EtherType.
            body = bytes((frame.ethertype, frame.ethertype, 3)) + bytes(35) + mark
            return (head + struct.pack("!H", len(body)) + body).ljust(60, b"\x00")
        case Kind.UNKNOWN:
            body = mark
    return (head + struct.pack("!H", frame.ethertype) + body).ljust(60, b"\x00")


def _encode_packet(frame: Frame, world: World, mark: bytes) -> bytes:
    body = _encode_transport(frame, mark)
    if frame.fragment:
        _, offset, more = frame.fragment
        if offset:
            body = mark + bytes(frame.size)
        if more:
            body += bytes(-len(body) % 8)
    flow = frame.flow
    if frame.kind is Kind.IP4:
        return _ip4(flow, body, frame)
    following, extensions = flow.protocol, b""
    if frame.fragment:
        identity, offset, more = frame.fragment
        extensions = struct.pack("!BBHI", following, 0, offset & 0xFFF8 | more, identity)
        following = FRAGMENT
    for extension in reversed(frame.extensions):
        extensions = _extension(extension, following, world, frame.number) + extensions
        following = extension
    return _ip6(flow, following, extensions + body, frame.hops)


def _length(frame: Frame) -> int:
    """Return where what follows a first fragment begins."""
    length = len(_encode_transport(frame, MARK + NUMBER.pack(frame.number)))
    return length + -length % 8


def _ip4(flow: Flow, body: bytes, frame: Frame) -> bytes:
    size = 20 + len(frame.options)
    identity, offset, more = frame.fragment or (frame.number, 0, False)
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | size // 4, 0, size + len(body), identity & 0xFFFF, more << 13 | offset // 8,
        frame.hops, flow.protocol, 0, flow.source, flow.target,
    ) + frame.options  # fmt: skip
    return head[:10] + struct.pack("!H", _sum(head)) + head[12:] + body


def _ip6(flow: Flow, following: int, body: bytes, hops: int) -> bytes:
    return struct.pack(
        "!IHBB16s16s", 6 << 28, len(body), following, hops, flow.source, flow.target
    ) + body  # fmt: skip


def _extension(extension: int, following: int, world: World, number: int) -> bytes:
    if extension == ROUTING:
        kind = (0, 2, 4, 253)[number % 4]
        target = world.packed[6][("inner", "far", "::1")[number % 3]]
        return struct.pack("!BBBBI", following, 2, kind, 1, 0) + target
    if extension == FRAGMENT:  # one that is all there is
        return struct.pack("!BBHI", following, 0, 0, number)
    return struct.pack("!BB", following, 0) + b"\x01\x04\x00\x00\x00\x00"


def _encode_transport(frame: Frame, mark: bytes) -> bytes:
    flow, payload = frame.flow, mark + bytes(frame.size)
    match flow.protocol:
        case 6:  # TCP
            code = SEQUENCE << 24 | frame.number << 7
            body = struct.pack("!HHIIBBHHH", flow.sport, flow.dport, code, code, 0x50, frame.flags,
                               1000, 0, 0) + payload  # fmt: skip
            body = _seal(frame, body, 16)
        case 17 | 136:  # UDP, UDP-Lite
            length = 8 + len(payload) if flow.protocol == UDP else 0
            body = struct.pack("!HHHH", flow.sport, flow.dport, length, 0) + payload
            body = _seal(frame, body, 6)
        case 1:
            body = struct.pack("!BBHI", flow.sport, flow.dport, 0, _icmp_word(frame))
            body += _quoted(frame) + payload
            body = body[:2] + struct.pack("!H", _sum(body) ^ (not frame.is_sound)) + body[4:]
        case 58:
            body = _seal(frame, _encode_icmp6(frame, mark), 2)
        case 132:
            # Type 1 (INIT), a tag, a window, streams out and in, a first number (RFC 9260).
            chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 0xF5, 65536, 1, 1, 1)
            chunk += struct.pack("!HH", 0x8008, 4 + len(mark)) + mark + b"\x00\x00"
            head = struct.pack("!HHI", flow.sport, flow.dport, 0)
            seal = _castagnoli(head + bytes(4) + chunk)
            body = head + struct.pack("<I", seal ^ (not frame.is_sound)) + chunk
        case 4:  # IPv4 in whatever this is: from the host's loopback to itself
            local = Flow(b"\x7f\x00\x00\x01", b"\x7f\x00\x00\x01", UDP, flow.sport, flow.dport)
            ports = struct.pack("!HHHH", flow.sport, flow.dport, 8 + len(payload), 0)
            body = _ip4(local, ports + payload, replace(frame, options=b"", fragment=None))
        case _:
            body = struct.pack("!HHHH", flow.sport, flow.dport, 0, 0) + payload
    return body


def _icmp_word(frame: Frame) -> int:
    """Return what stands behind the checksum: a router's address, an MTU, or who asks."""
    if frame.flow.sport == 5:
        return int.from_bytes(frame.flow.source[-4:])
    return 600 if frame.flow.sport == 3 else (frame.number & 7) << 16 | 1


def _quoted(frame: Frame) -> bytes:
    """Return the packet that an ICMP error is about, as far as such an error has it."""
    quote = frame.quote
    if quote is None:
        return b""
    # As long as a TCP header: what translates the ports also mends what it takes for a checksum.
    ports = struct.pack("!HHHHIII", quote.sport, quote.dport, 20, 0, 0, 0, 0)
    if quote.protocol in (ICMP, ICMP6):
        ports = struct.pack("!BBHI", quote.sport & 255, quote.dport & 255, 0, 1) + bytes(12)
    if len(quote.source) == 4:
        plain = Frame(0, Kind.IP4, NO_MAC, NO_MAC)
        return _ip4(quote, ports, plain)
    return _ip6(quote, quote.protocol, ports, 64)


def _encode_icmp6(frame: Frame, mark: bytes) -> bytes:
    flow = frame.flow
    kind, own = flow.sport, frame.claimed or flow.source
    if frame.kind is Kind.IP4:
        return struct.pack("!BBHI", kind, flow.dport, 0, 0) + mark + bytes(frame.size)
    # An option that nobody knows has to be passed over (RFC 4861, 4.6).
    told = struct.pack("!BB", 253, 2) + mark + bytes(14 - len(mark))
    link = struct.pack("!BB6s", 1 if kind in (133, ROUTER, SOLICITATION) else 2, 1,
                       frame.claimed_mac or NO_MAC)  # fmt: skip
    match kind:
        case 130 | 131 | 132:
            rest = bytes(4) + flow.target + mark
        case 133:
            rest = bytes(4) + link + told
        case 134:
            prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 60, 60, 0) + b"\xfd\x66" + bytes(14)
            rest = struct.pack("!BBHII", 64, 0, 60, 0, 0) + prefix + link + told
        case 135:
            rest = bytes(4) + own + (link if any(flow.source) else b"") + told
        case 136:
            rest = struct.pack("!I", (0x60000000, 0x20000000, 0xE0000000)[frame.number % 3])
            rest += own + link + told
        case 137:
            rest = bytes(4) + flow.source + own + link + told
        case 143:
            rest = struct.pack("!HHBBH16s", 0, 1, 4, 0, 0, own) + mark
        case 2:
            rest = struct.pack("!I", 1280) + _quoted(frame) + mark
        case _:
            rest = struct.pack("!I", (frame.number & 7) << 16 | 1) + _quoted(frame) + mark
            rest += bytes(frame.size)
    return struct.pack("!BBH", kind, flow.dport, 0) + rest


def _seal(frame: Frame, body: bytes, place: int) -> bytes:
    """Return a message with its checksum in its place, or a wrong one."""
    flow = frame.flow
    if len(flow.source) == 4:
        pseudo = flow.source + flow.target + struct.pack("!BBH", 0, flow.protocol, len(body))
    else:
        pseudo = flow.source + flow.target + struct.pack("!II", len(body), flow.protocol)
    sealed = _sum(pseudo + body) ^ (not frame.is_sound) or 0xFFFF
    return body[:place] + struct.pack("!H", sealed) + body[place + 2 :]


def _sum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\x00"
    total = int(sum(struct.unpack(f"!{len(data) // 2}H", data)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _castagnoli_table() -> Iterable[int]:
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        yield crc


_CASTAGNOLI = tuple(_castagnoli_table())


def _castagnoli(data: bytes) -> int:
    """Return SCTP's checksum (RFC 9260, appendix A)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CASTAGNOLI[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


# -- recognising


def find_number(data: bytes) -> int | None:
    """Return the number of the frame whose mark these bytes hold, None if they hold none."""
    for mark in (MARK, ECHO):
        at = data.find(mark)
        if at >= 0 and len(data) >= at + len(mark) + NUMBER.size:
            (number,) = NUMBER.unpack_from(data, at + len(mark))
            return int(number)
    return None
