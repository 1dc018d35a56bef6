"""Say of a frame that arrived somewhere whether it may: the model of docs/security.md.

Pure. What arrives is either a frame of the sender, translated perhaps, or an answer to one: an echo
reply, an ICMP error that quotes it, a TCP segment that acknowledges it, what a service sent back.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from tests.engine.fuzz_frames import (
    ADVERTISEMENT,
    ARP,
    BROADCAST,
    DESTINATION,
    ECHO,
    FRAGMENT,
    HOP_BY_HOP,
    ICMP,
    ICMP6,
    IP4,
    IP6,
    NO_MAC,
    PROVIDER,
    REDIRECT,
    ROUTER,
    ROUTING,
    SEQUENCE,
    TCP,
    UDP,
    VLAN,
    Flow,
    Kind,
    find_number,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.engine.fuzz_frames import Frame, World

ACK = 0x10
IGMP = 2
ASKING = (*range(130, 136), 143)  # multicast listeners, routers, neighbours
PACKET_KINDS = (Kind.IP4, Kind.IP6)


class Guard(StrEnum):
    """What a network keeps its containers from."""

    NETWORK = "network"
    ADDRESS = "address"


class Place(StrEnum):
    """Where somebody listens."""

    NEAR = "near"  # a container of the sender's network
    FAR = "far"  # one of another network
    INNER = "inner"  # one of an internal network
    DOCK = "dock"  # one of Docker's own bridge
    LAN = "lan"
    HOST = "host"  # its IP stack, behind all filters
    SERVICE = "service"  # a program of the host that listens on all addresses
    LOOPBACK = "loopback"  # one that listens on 127.0.0.1 and ::1


@dataclass(frozen=True, slots=True)
class Rules:
    """What the sender's network was asked to be, and whether br_netfilter sees bridged packets."""

    guard: Guard
    internal: bool = False
    br_netfilter: bool = True


@dataclass(frozen=True, slots=True)
class Arrival:
    """What came to a place: a frame, or an answer to it, as it looked there."""

    number: int
    place: Place
    is_answer: bool
    flow: Flow
    source_mac: bytes = NO_MAC
    flags: int = 0

    def describe(self, world: World) -> str:
        """Return it in words."""
        what = "an answer to it" if self.is_answer else "it"
        flow = self.flow
        return (
            f"{what} came to {self.place} as {world.name(flow.source)} {flow.sport} to "
            f"{world.name(flow.target)} {flow.dport} protocol {flow.protocol}"
            + (f" from MAC {self.source_mac.hex(':')}" if any(self.source_mac) else "")
        )


# -- the model


def refusal(world: World, rules: Rules, frame: Frame, arrival: Arrival) -> str | None:
    """Return why what arrived must not be there, None if it may."""
    judge = _answer_refusal if arrival.is_answer else _JUDGES[arrival.place]
    return judge(world, rules, frame, arrival)


def may_arrive(world: World, rules: Rules, frame: Frame, arrival: Arrival) -> bool:
    """Tell whether what arrived may be there."""
    return refusal(world, rules, frame, arrival) is None


def _neighbour_refusal(world: World, rules: Rules, frame: Frame, arrival: Arrival) -> str | None:
    """Judge what came to a container of the same network."""
    if rules.guard is Guard.ADDRESS:
        return _address_refusal(world, frame)
    if frame.kind not in PACKET_KINDS:
        return None
    is_routed = arrival.source_mac == world.mac["bridge"] != frame.source_mac
    if is_routed:
        return None if _is_local(world, frame) else _source_refusal(world, frame)
    # Tagged packets are frames to br_netfilter, unless it is told otherwise.
    if not rules.br_netfilter or frame.tags or _is_of_network(world, frame.flow.source):
        return None
    is_local = _is_link_local(frame.flow.source) or _is_asking(frame)
    return None if is_local else "bridged with a source that is not of the network"


def _host_refusal(world: World, rules: Rules, frame: Frame, arrival: Arrival) -> str | None:
    """Judge what the host itself got."""
    target = arrival.flow.target
    if is_loopback(target) or arrival.place is Place.LOOPBACK:
        return "the loopback of the host is its own"
    if rules.guard is Guard.ADDRESS:
        return _address_refusal(world, frame)
    return None if _is_local(world, frame) else _source_refusal(world, frame)


def _routed_refusal(world: World, rules: Rules, frame: Frame) -> str | None:
    """Judge what left the network by way of the host, whatever it is for."""
    if rules.internal:
        return "nothing leaves an internal network"
    if rules.guard is Guard.ADDRESS and (fault := _address_refusal(world, frame)):
        return fault
    return _source_refusal(world, frame)


def _lan_refusal(world: World, rules: Rules, frame: Frame, arrival: Arrival) -> str | None:
    """Judge what left the host."""
    return _routed_refusal(world, rules, frame) or _mask_refusal(world, arrival)


def _far_refusal(world: World, rules: Rules, frame: Frame, arrival: Arrival) -> str | None:
    """Judge what came to another network: by a rule, or by pynet's relay, a program of the host."""
    if rules.internal:
        return "nothing leaves an internal network"
    return _published_refusal(world, rules, frame, arrival, "far gateway")


def _inner_refusal(*_: object) -> str:
    """Judge what came to an internal network."""
    return "nothing comes to an internal network"


def _docker_refusal(world: World, rules: Rules, frame: Frame, arrival: Arrival) -> str | None:
    """Judge what came to Docker's own bridge: by a rule, or by its proxy, a program of the host."""
    return _published_refusal(world, rules, frame, arrival, "dock gateway")


def _published_refusal(
    world: World, rules: Rules, frame: Frame, arrival: Arrival, gateway_name: str
) -> str | None:
    """Judge what came to a published port: by a rule, or by a program of the host.

    The program gets what the host does and no rule translates, and sends it on as the host.
    """
    if fault := _port_refusal(world, frame, arrival):
        return fault
    gateway = world.packed[4 if frame.kind is Kind.IP4 else 6][gateway_name]
    if frame.flow.protocol == UDP and arrival.flow.source == gateway:
        return _host_refusal(world, rules, frame, arrival)
    return _routed_refusal(world, rules, frame)


def _source_refusal(world: World, frame: Frame) -> str | None:
    """Judge a routed packet's source."""
    source = frame.flow.source
    if source in _host_addresses(world, source):
        return "its source is the host's own"
    return None if _is_of_network(world, source) else "its source is not of the network"


def _mask_refusal(world: World, arrival: Arrival) -> str | None:
    """Judge with which source something left the host."""
    source = arrival.flow.source
    version = 4 if len(source) == 4 else 6
    known = world.packed[version]
    if source in (known["host"], known.get("host link")):
        return None
    return "it left with a source that is not the host's"


def _port_refusal(world: World, frame: Frame, arrival: Arrival) -> str | None:
    """Judge whether something is for a port that the container publishes, or about one."""
    if _is_published(world, frame.flow, arrival.place):
        return None
    if frame.quote and _is_published(world, frame.quote.reverse, arrival.place):
        return None  # an error about a connection to the port
    return "it is not for a published port"


def _is_published(world: World, flow: Flow, place: Place) -> bool:
    is_host = flow.target in _host_addresses(world, flow.target)
    is_heard = flow.protocol == UDP and _is_heard(flow.target)
    return (is_host or is_heard) and any(
        (each.place, each.protocol, each.port) == (place, flow.protocol, flow.dport)
        for each in world.published
    )


def _address_refusal(world: World, frame: Frame) -> str | None:
    """Judge a frame by what `address` lets a container send at all."""
    if frame.source_mac != world.mac["own"]:
        return "its MAC address is not its sender's"
    if frame.tags:
        return "it has a VLAN tag"
    judges = {Kind.ARP: _arp_refusal, Kind.IP4: _address4_refusal, Kind.IP6: _address6_refusal}
    if frame.kind in judges:
        return judges[frame.kind](world, frame)
    return f"it is {frame.kind} {frame.ethertype:#06x}"


def _arp_refusal(world: World, frame: Frame) -> str | None:
    if frame.claimed_mac != world.mac["own"]:
        return "its ARP message has another's MAC address"
    known = world.packed[4]
    is_own = frame.flow.source in (known["own"], known["0.0.0.0"])
    return None if is_own else "its ARP message has another's address"


def _address4_refusal(world: World, frame: Frame) -> str | None:
    if frame.flow.source != world.packed[4]["own"] and not _is_asking(frame):
        return "its source is not its sender's"
    is_offer = _ends(frame) == (UDP, 67, 68)
    return "it is an answer of DHCP" if is_offer else None


def _address6_refusal(world: World, frame: Frame) -> str | None:
    own = (world.packed[6]["own"], world.packed[6]["own link"])
    if frame.flow.source not in own and not _is_asking(frame):
        return "its source is not its sender's"
    if _ends(frame) == (UDP, 547, 546):
        return "it is an answer of DHCP"
    is_whole = not frame.fragment or not frame.fragment[1]
    kind = frame.flow.sport if frame.flow.protocol == ICMP6 and is_whole else None
    if kind in (ROUTER, REDIRECT):
        return "it is a router advertisement or a redirect"
    is_false = kind == ADVERTISEMENT and (frame.claimed or frame.flow.source) not in own
    return "it advertises another's address" if is_false else None


def _ends(frame: Frame) -> tuple[int, int, int]:
    return frame.flow.protocol, frame.flow.sport, frame.flow.dport


def _answer_refusal(world: World, rules: Rules, frame: Frame, arrival: Arrival) -> str | None:
    """Judge an answer by who may have given it: the neighbour, whom a frame may reach, or others.

    The neighbour answers as itself, so its answer goes wherever a packet of its own may. All others
    answer to a source that has passed, so their answers stay in the sender's network; those to a
    translated one may end at the host, when it has forgotten the connection.
    """
    place = arrival.place
    if place in (Place.LOOPBACK, Place.INNER) or is_loopback(arrival.flow.target):
        return f"an answer to what must not have come to {place}"
    by_neighbour = _may_answer(world, rules, frame)
    if place is Place.NEAR:  # whatever it has said, an error about that may come back
        return None if by_neighbour else _near_answer_refusal(world, rules, frame, arrival)
    if place in (Place.HOST, Place.SERVICE):
        is_fine = by_neighbour or _is_known(world, frame)
        return None if is_fine else "an answer to a source that is not of the network"
    return _outside_answer_refusal(world, rules, frame, arrival, by_neighbour=by_neighbour)


def _outside_answer_refusal(
    world: World, rules: Rules, frame: Frame, arrival: Arrival, *, by_neighbour: bool
) -> str | None:
    """Judge an answer that came to another network or the LAN.

    The neighbour has given it; or the host, which tells of an error in what came from there, an
    answer to a frame that was let through.
    """
    came = replace(arrival, is_answer=False)
    is_about_own = not _routed_refusal(world, rules, frame) and (
        arrival.place is Place.LAN or not _port_refusal(world, frame, came)
    )
    if not is_about_own and (rules.internal or not by_neighbour):
        return f"an answer to what must not have come from {arrival.place}"
    if arrival.place is Place.LAN:
        return _mask_refusal(world, arrival)
    is_fine = is_about_own or _is_published(world, frame.flow.reverse, arrival.place)
    return None if is_fine else "an answer that is not for a published port"


def _near_answer_refusal(world: World, rules: Rules, frame: Frame, arrival: Arrival) -> str | None:
    """Judge an answer that the neighbour got, who has not given it, and no cause for it either.

    What is for the sender comes to all when the bridge does not know where it is.
    """
    if rules.guard is Guard.ADDRESS:
        known = world.packed[4 if len(arrival.flow.target) == 4 else 6]
        is_flooded = arrival.flow.target in (known["own"], known.get("own link"))
        return None if is_flooded else "answers go to the sender alone"
    is_fine = _is_known(world, frame)
    return None if is_fine else "an answer to a source that is not of the network"


def _is_known(world: World, frame: Frame) -> bool:
    """Tell whether the host answers to a packet's source."""
    return not _source_refusal(world, frame) or _is_local(world, frame)


def _may_answer(world: World, rules: Rules, frame: Frame) -> bool:
    """Tell whether the neighbour may have got a frame, and answers such."""
    if frame.kind not in PACKET_KINDS:
        return False
    target = frame.flow.target
    known = world.packed[4 if frame.kind is Kind.IP4 else 6]
    heard = target in (known["near"], known.get("near link")) or is_multicast(target)
    bridged = Arrival(frame.number, Place.NEAR, is_answer=False, flow=frame.flow)
    return heard and may_arrive(world, rules, frame, bridged)


def _is_of_network(world: World, source: bytes) -> bool:
    return source.startswith(world.prefixes[len(source) == 16])


def _is_local(world: World, frame: Frame) -> bool:
    """Tell whether a packet's source is of the link and not the host's, or of who has none yet."""
    source = frame.flow.source
    is_host = source in _host_addresses(world, source)
    return (_is_link_local(source) and not is_host) or _is_asking(frame)


def _is_link_local(address: bytes) -> bool:
    if len(address) == 4:
        return address[:2] == b"\xa9\xfe"
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def _is_asking(frame: Frame) -> bool:
    """Tell whether a packet of a host without an address asks for one, or joins a group.

    Nothing else may come from nowhere: the kernel sends an answer to 0.0.0.0 or :: to its loopback.
    """
    flow = frame.flow
    if any(flow.source):
        return False
    if len(flow.source) == 4:
        is_report = 224 <= flow.target[0] < 240 and flow.protocol == IGMP  # RFC 3376, 4.2.13
        return is_report or (flow.target == BROADCAST[:4] and _ends(frame) == (UDP, 68, 67))
    return flow.target[0] == 0xFF and flow.protocol == ICMP6 and flow.sport in ASKING


def is_loopback(address: bytes) -> bool:
    """Tell whether an address is one that only the host itself has."""
    if len(address) == 4:
        return address[0] == 127
    return address == bytes(15) + b"\x01" or address[:13] == bytes(10) + b"\xff\xff\x7f"


def is_multicast(address: bytes) -> bool:
    """Tell whether an address is of more than one: multicast, or an IPv4 broadcast."""
    if len(address) == 4:
        return address[0] >= 224 or address[3] == 255
    return address[0] == 0xFF


def _is_heard(target: bytes) -> bool:
    """Tell whether the host gets packets for an address that no rule takes for one of its own.

    Of every IPv6 subnet the first address is that of all routers on it (RFC 4291, 2.6.1).
    """
    is_of_routers = len(target) == 16 and not any(target[8:])
    return is_multicast(target) or _is_link_local(target) or is_of_routers


def _host_addresses(world: World, like: bytes) -> tuple[bytes, ...]:
    """Return the host's addresses of a family, but for its loopback."""
    known = world.packed[4 if len(like) == 4 else 6]
    return tuple(each for name, each in known.items() if "gateway" in name or name == "host")


_JUDGES: dict[Place, Callable[[World, Rules, Frame, Arrival], str | None]] = {
    Place.NEAR: _neighbour_refusal,
    Place.FAR: _far_refusal,
    Place.INNER: _inner_refusal,
    Place.DOCK: _docker_refusal,
    Place.LAN: _lan_refusal,
    Place.HOST: _host_refusal,
    Place.SERVICE: _host_refusal,
    Place.LOOPBACK: _host_refusal,
}


# -- reading what came


def read_frame(place: Place, data: bytes, draw: Callable[[int], Frame]) -> Arrival | None:
    """Return what an Ethernet frame is, None if it has nothing to do with what was sent."""
    ethertype, at = int.from_bytes(data[12:14]), 14
    while ethertype in (VLAN, PROVIDER) and len(data) >= at + 4:
        ethertype, at = int.from_bytes(data[at + 2 : at + 4]), at + 4
    if ethertype in (IP4, IP6):
        return read_packet(place, data[at:], draw, data[6:12])
    number = find_number(data)
    if number is None:
        return None
    flow = Flow(data[at + 14 : at + 18], data[at + 24 : at + 28], 0, data[at + 7], 0)
    blank = Flow(b"", b"", 0, 0, 0)
    return Arrival(number, place, is_answer=False, flow=flow if ethertype == ARP else blank,
                   source_mac=data[6:12])  # fmt: skip


def read_packet(
    place: Place, data: bytes, draw: Callable[[int], Frame], source_mac: bytes = NO_MAC
) -> Arrival | None:
    """Return what an IP packet is, None if it has nothing to do with what was sent."""
    try:
        flow, flags, acknowledged = _read_flow(data)
    except (struct.error, IndexError):
        return None  # the sender makes packets that end too early
    number = find_number(data)
    is_answer = number is not None and ECHO in data
    if number is None:
        if flow.protocol != TCP or acknowledged >> 24 != SEQUENCE:
            return None
        number, is_answer = (acknowledged & 0xFFFFFF) >> 7, True
    sent = draw(number)
    if flow.protocol in (ICMP, ICMP6) and flow.sport >= 0:
        is_answer = (sent.flow.protocol, sent.flow.sport) != (flow.protocol, flow.sport)
    return Arrival(number, place, is_answer, flow, source_mac, flags)


def _read_flow(data: bytes) -> tuple[Flow, int, int]:
    """Return a packet's ends, its TCP flags, and the number by which an answer knows a frame."""
    if data[0] >> 4 == 4:
        protocol, at = data[9], (data[0] & 15) * 4
        source, target = data[12:16], data[16:20]
        is_first = not int.from_bytes(data[6:8]) & 0x1FFF
    else:
        protocol, at, source, target, is_first = data[6], 40, data[8:24], data[24:40], True
        while protocol in (HOP_BY_HOP, ROUTING, DESTINATION, FRAGMENT):
            if protocol == FRAGMENT:
                is_first = is_first and not int.from_bytes(data[at + 2 : at + 4]) & 0xFFF8
                length = 8
            else:
                length = data[at + 1] * 8 + 8
            protocol, at = data[at], at + length
    if not is_first:
        return Flow(source, target, protocol, -1, -1), 0, 0  # no ports in what follows
    if protocol in (ICMP, ICMP6):
        return Flow(source, target, protocol, data[at], data[at + 1]), 0, 0
    sport, dport = struct.unpack_from("!HH", data.ljust(at + 4, b"\0"), at)
    flags, acknowledged = 0, 0
    if protocol == TCP:
        sequence, acknowledgement, flags = struct.unpack_from("!IIxB", data, at + 4)
        acknowledged = acknowledgement if flags & ACK else sequence
    return Flow(source, target, protocol, sport, dport), flags, acknowledged
