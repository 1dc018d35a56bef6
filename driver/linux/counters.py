"""Read what pynet's tables have counted: rules, drops, connections to published ports."""

from __future__ import annotations

import socket
from collections import Counter
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

from driver.linux.nfnetlink import parse_attributes, parse_nested, parse_text
from driver.linux.tables import read_counters, read_elements, read_rules
from driver.model import Count, Drops, HostPort, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from driver.linux.nfnetlink import Connection
    from driver.model import IPAddress

_SET = "dropped_"
_KEY, _EXPRESSION, _EXPRESSIONS, _VALUE = 1, 7, 11, 1  # NFTA_SET_ELEM_…, NFTA_DATA_VALUE
_NAME, _DATA = 1, 2  # NFTA_EXPR_…
_BYTES, _PACKETS = 1, 2  # NFTA_COUNTER_…
_OBJECT_NAME = 2  # NFTA_OBJREF_IMM_NAME
_PUBLISHED: dict[str, IPAddress] = {  # and the address that stands for all of them
    "published4": IPv4Address(0),
    "published6": IPv6Address(0),
    "everywhere4": IPv4Address(0),
    "everywhere6": IPv6Address(0),
}
_PROTOCOLS = {
    socket.IPPROTO_TCP: Protocol.TCP,
    socket.IPPROTO_UDP: Protocol.UDP,
    socket.IPPROTO_SCTP: Protocol.SCTP,
}


def read_drops(netfilter: Connection) -> Drops:
    """Return the counters of both tables; nothing of a table that is not there.

    Only the counters and the sets named after them are listed: the tables hold elements by the
    thousand. Raises NetlinkError if nftables cannot be read.
    """
    totals: Counter[str] = Counter()
    by_interface: dict[str, Counter[str]] = {}
    for family, reason, counted in tuple(read_counters(netfilter)):
        packets = _packets(counted)
        totals[reason] += packets
        if packets:
            for interface, number in _interfaces(netfilter, family, reason):
                by_interface.setdefault(interface, Counter())[reason] += number
    return Drops(dict(totals), {name: dict(each) for name, each in by_interface.items()})


def read_rule_counts(netfilter: Connection) -> Mapping[tuple[str, str], tuple[Count, ...]]:
    """Return the counter of every rule of both tables, in the rules' order, by family and chain.

    Nothing of a table that is not there. Raises NetlinkError if nftables cannot be read.
    """
    named = {(family, name): counted for family, name, counted in read_counters(netfilter)}
    found: dict[tuple[str, str], tuple[Count, ...]] = {}
    for family, chain, expressions in read_rules(netfilter):
        count = Count(0, 0)
        for expression in expressions:
            name, data = parse_text(expression[_NAME]), parse_attributes(expression.get(_DATA, b""))
            if name == "counter":
                count = _count(data)
            elif name == "objref":
                count = _count(named.get((family, parse_text(data[_OBJECT_NAME])), {}))
        found[family, chain] = (*found.get((family, chain), ()), count)
    return found


def read_published(netfilter: Connection) -> dict[HostPort, int]:
    """Return how many connections have been led to the container, by published port.

    A connection's first packet alone comes by these maps. Raises NetlinkError.
    """
    found: dict[HostPort, int] = {}
    for name, everywhere in _PUBLISHED.items():
        for element in read_elements(netfilter, "inet", name):
            key = parse_attributes(element[_KEY])[_VALUE]
            # The parts fill registers of 4 bytes each: an address if it is one, protocol and port.
            address, protocol, port = key[:-8], _PROTOCOLS[key[-8]], key[-4:-2]
            ip = ip_address(address) if address else everywhere
            host = HostPort(protocol, ip, int.from_bytes(port, "big"))
            if expression := _expression(element):
                found[host] = _packets(parse_attributes(parse_attributes(expression)[_DATA]))
    return found


def _count(counter: Mapping[int, bytes]) -> Count:
    return Count(_packets(counter), int.from_bytes(counter.get(_BYTES, b""), "big"))


def _interfaces(netfilter: Connection, family: str, reason: str) -> Iterator[tuple[str, int]]:
    for element in read_elements(netfilter, family, f"{_SET}{reason}"):
        interface = parse_text(parse_attributes(element[_KEY])[_VALUE])
        yield interface, _packets(parse_attributes(parse_attributes(_expression(element))[_DATA]))


def _expression(element: Mapping[int, bytes]) -> bytes:
    """Return what an element counts by: kernels tell of one and of several in other ways."""
    several = next(parse_nested(element.get(_EXPRESSIONS, b"")), b"")
    return element.get(_EXPRESSION, several)


def _packets(counter: Mapping[int, bytes]) -> int:
    return int.from_bytes(counter.get(_PACKETS, b""), "big")
