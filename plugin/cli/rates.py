"""Turn two readings of counters into what passes a second; pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from driver.linux.flows import count_by_address, find_published

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from driver.linux.flows import Flow
    from driver.model import PortBinding, Traffic


_THOUSAND = 1000
_FEW = 9.95  # below this a digit behind the point says something


@dataclass(frozen=True, slots=True)
class Rate:
    """Bytes a second, as the container counts them."""

    received: float
    sent: float


def rate_between(before: Traffic, now: Traffic, seconds: float) -> Rate:
    """Return the rate between two looks; counters that are less than before are of another link."""
    received, sent = now.received_bytes - before.received_bytes, now.sent_bytes - before.sent_bytes
    if seconds <= 0 or received < 0 or sent < 0:
        return Rate(0, 0)
    return Rate(received / seconds, sent / seconds)


def format_rate(rate: float) -> str:
    """Return a rate for people: `11.9 MB/s`."""
    value = rate
    for unit in ("B/s", "kB/s", "MB/s", "GB/s"):
        if value < _THOUSAND - 0.5 or unit == "GB/s":
            break
        value /= _THOUSAND
    return f"{value:.1f} {unit}" if value < _FEW and unit != "B/s" else f"{value:.0f} {unit}"


@dataclass(frozen=True, slots=True)
class End:
    """A container's place on a network: its interface's end on the host, and its addresses."""

    container: str
    network: str
    host_end: str
    addresses: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Published:
    """A published port as people write it; `bindings` are what it may be translated to."""

    container: str
    networks: frozenset[str]
    host: str
    port: str
    bindings: tuple[PortBinding, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """Who is there, and what could not be looked at; `names` are by id, networks' as well."""

    ends: tuple[End, ...]
    ports: tuple[Published, ...]
    names: Mapping[str, str]
    not_seen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters at a moment, in seconds: of links, of guards by host end, and the connections.

    Connections are None where the kernel does not list them; `not_seen` says why.
    """

    moment: float
    links: Mapping[str, Traffic]
    guarded: Mapping[str, int]
    flows: tuple[Flow, ...] | None
    not_seen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerRate:
    """What passes a container's interface on a network, seen from the container, a second."""

    container: str
    network: str
    receive_bytes: float
    transmit_bytes: float
    receive_packets: float
    transmit_packets: float
    drops: float
    connections: int | None


@dataclass(frozen=True, slots=True)
class PortRate:
    """What passes a published port in both directions, a second; None where nobody counts it."""

    container: str
    host: str
    port: str
    connections: int | None
    bytes: float | None
    packets: float | None


@dataclass(frozen=True, slots=True)
class Rates:
    """All of it, over so many seconds."""

    seconds: float
    containers: tuple[ContainerRate, ...]
    ports: tuple[PortRate, ...]
    not_seen: tuple[str, ...]


def _busy(port: PortRate) -> float:
    return port.bytes or port.connections or 0


_ORDERS: dict[str, tuple[Callable[[ContainerRate], float], Callable[[PortRate], float]]] = {
    "traffic": (lambda each: each.receive_bytes + each.transmit_bytes, _busy),
    "receive": (lambda each: each.receive_bytes, _busy),
    "transmit": (lambda each: each.transmit_bytes, _busy),
    "packets": (
        lambda each: each.receive_packets + each.transmit_packets,
        lambda each: each.packets or each.connections or 0,
    ),
    "drops": (lambda each: each.drops, _busy),
    "connections": (lambda each: each.connections or 0, lambda each: each.connections or 0),
    "name": (lambda _: 0, lambda _: 0),
}
SORTS = tuple(_ORDERS)


def compare(before: Reading, after: Reading, known: Known) -> Rates:
    """Return what passed between two readings, of who is there by the second."""
    seconds = max(after.moment - before.moment, 0.001)
    counted = None
    if after.flows is not None:
        addresses = {address for end in known.ends for address in end.addresses}
        counted = count_by_address(after.flows, addresses)
    containers = tuple(
        _compare_end(before, after, end, counted, seconds)
        for end in known.ends
        if end.host_end in after.links
    )
    ports = tuple(_ports(before, after, known, seconds))
    return Rates(seconds, containers, ports, (*known.not_seen, *after.not_seen))


def order(rates: Rates, sort: str) -> Rates:
    """Return the same with the most first; what is equal, and everything for `name`, by name."""
    key, of_port = _ORDERS[sort]
    containers = sorted(rates.containers, key=lambda each: (-key(each), each.container))
    ports = sorted(rates.ports, key=lambda each: (-of_port(each), each.container, each.host))
    return replace(rates, containers=tuple(containers), ports=tuple(ports))


def find_name(known: Known, word: str) -> str | None:
    """Return the name that is meant: a name, or the beginning of one id alone; None for neither."""
    if word in known.names.values():
        return word
    found = [name for identity, name in known.names.items() if identity.startswith(word)]
    return found[0] if word and len(found) == 1 else None


def choose(known: Known, name: str | None) -> Known:
    """Return what of it is on a network or of a container of that name; all for None."""
    if name is None:
        return known
    ends = tuple(each for each in known.ends if name in {each.container, each.network})
    ports = tuple(each for each in known.ports if name in {each.container, *each.networks})
    return replace(known, ends=ends, ports=ports)


def _compare_end(
    before: Reading,
    after: Reading,
    end: End,
    counted: Mapping[bytes, int] | None,
    seconds: float,
) -> ContainerRate:
    old, new = before.links.get(end.host_end), after.links[end.host_end]

    def rate(field: str) -> float:
        return _grown(getattr(old, field, 0), getattr(new, field)) / seconds

    guarded = _grown(before.guarded.get(end.host_end, 0), after.guarded.get(end.host_end, 0))
    return ContainerRate(
        container=end.container,
        network=end.network,
        receive_bytes=rate("received_bytes"),
        transmit_bytes=rate("sent_bytes"),
        receive_packets=rate("received_packets"),
        transmit_packets=rate("sent_packets"),
        drops=rate("received_dropped") + rate("sent_dropped") + guarded / seconds,
        connections=None if counted is None else sum(counted.get(ip, 0) for ip in end.addresses),
    )


def _grown(old: int, new: int) -> int:
    """Return by how much a counter has grown; one that is less was begun anew."""
    return new - old if new >= old else new


def _ports(before: Reading, after: Reading, known: Known, seconds: float) -> Iterable[PortRate]:
    flows = after.flows or ()
    found = find_published(flows, [each for port in known.ports for each in port.bindings])
    earlier = {_key(flow): flow for flow in before.flows or ()}
    for port in known.ports:
        own = [flow for each in port.bindings for flow in found.get(each, ())]
        octets, packets = _sum(own, earlier)
        yield PortRate(
            port.container,
            port.host,
            port.port,
            connections=None if after.flows is None else sum(flow.is_open for flow in own),
            bytes=None if octets is None else octets / seconds,
            packets=None if packets is None else packets / seconds,
        )


def _sum(
    flows: Iterable[Flow], earlier: Mapping[tuple[object, ...], Flow]
) -> tuple[int | None, int | None]:
    """Return the bytes and packets of connections since then, None if one is not counted."""
    octets = packets = 0
    for flow in flows:
        if flow.bytes is None or flow.packets is None:
            return None, None
        old = earlier.get(_key(flow))
        octets += _grown(old.bytes or 0 if old else 0, flow.bytes)
        packets += _grown(old.packets or 0 if old else 0, flow.packets)
    return octets, packets


def _key(flow: Flow) -> tuple[object, ...]:
    return flow[:5]
