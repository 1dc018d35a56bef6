"""Decide on which host addresses and ports a container's ports are published; no I/O.

Whether a port is free on the host is only known by binding it, so a request becomes candidates, in
order, each of which is taken as a whole or not at all.
"""

from __future__ import annotations

from collections import defaultdict
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from driver.errors import InvalidRequest
from driver.model import HostPort, PortBinding, Protocol, Relay

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from driver.model import Endpoint, IPAddress, Network, PortRequest

    # What is reached at an address of the host: the container's protocol and port.
    _Target = tuple[Protocol, int, IPAddress]

MAX_PORT = 65535
ANY_IPV4 = IPv4Address("0.0.0.0")  # noqa: S104 - published on all addresses, as Docker does
ANY_IPV6 = IPv6Address("::")


def order_requests(requests: Iterable[PortRequest]) -> list[PortRequest]:
    """Return the requests with fixed ports first, so that a chosen port never takes a fixed one.

    The engine sends them in random order; the rest is sorted to give the same answer each time.
    """
    return sorted(
        set(requests),
        key=lambda each: (
            each.last - each.first if each.first else MAX_PORT,
            each.protocol,
            each.container_port,
            each.first,
            str(each.host_ip),
        ),
    )


def plan_candidates(  # noqa: PLR0913 - all of it decides
    request: PortRequest,
    endpoint: Endpoint,
    network: Network,
    ephemeral: range,
    start: int,
    *,
    relays: bool = False,
) -> Iterator[tuple[PortBinding, ...]]:
    """Yield the sets of bindings that satisfy a request, the preferred one first.

    One set publishes the same port number for both address families. `ephemeral` are the ports to
    choose from when the request leaves the choice, `start` the one to begin with. None at all is
    yielded if the endpoint has no address of the family that the request names. `relays` tells
    whether an endpoint without IPv6 is published on the host's IPv6 addresses, too.
    """
    places, routed = _outcome(request, endpoint, network, relays=relays)
    if not places:
        if routed:
            yield routed
        return
    for port in _ports(request, ephemeral, start):
        yield (
            *routed,
            *(
                _bind(request, endpoint, version, HostPort(request.protocol, ip, port))
                for ip, version in places
            ),
        )


def find_relays(bindings: Iterable[PortBinding], network: Network) -> Iterator[Relay]:
    """Yield what a relay has to serve of an endpoint's published ports."""
    for binding in bindings:
        if binding.host is not None and binding.is_relayed:
            yield Relay(
                binding.host,
                binding.container_ip,
                binding.container_port,
                proxy_protocol=network.options.proxy_protocol,
            )


def find_unserved(
    requests: Iterable[PortRequest], endpoint: Endpoint, network: Network, *, relays: bool = False
) -> list[PortRequest]:
    """Return the requests that name a host address of a family that the endpoint does not have."""
    return [
        each
        for each in requests
        if each.host_ip is not None
        and endpoint.address(each.host_ip.version) is None
        and not (relays and _can_relay(each, endpoint, network))
    ]


def is_satisfied(
    requests: Collection[PortRequest],
    endpoint: Endpoint,
    network: Network,
    *,
    relays: bool = False,
) -> bool:
    """Return whether an endpoint's bindings are the answer to these requests, and to no others.

    The engine repeats the call, and a port that it left to us must not change for that.
    """
    if not endpoint.bindings:
        return not requests
    wanted: dict[_Target, list[range]] = defaultdict(list)
    routed: set[PortBinding] = set()
    for request in set(requests):
        places, opened = _outcome(request, endpoint, network, relays=relays)
        routed.update(opened)
        for ip, _ in places:
            wanted[request.protocol, request.container_port, ip].append(_span(request))
    bound: dict[_Target, list[int]] = defaultdict(list)
    for each in endpoint.bindings:
        if each.host is not None:
            bound[each.protocol, each.container_port, each.host.ip].append(each.host.port)
    return (
        routed == {each for each in endpoint.bindings if each.host is None}
        and wanted.keys() == bound.keys()
        and all(_share_out(spans, bound[target]) for target, spans in wanted.items())
    )


def _share_out(spans: Iterable[range], ports: Iterable[int]) -> bool:
    """Return whether each span can have one of the ports to itself, with none left over.

    The span that ends first takes the lowest: a later one could do no more with it.
    """
    free = sorted(ports)
    for span in sorted(spans, key=lambda each: each.stop):
        port = next((each for each in free if each in span), None)
        if port is None:
            return False
        free.remove(port)
    return not free


def _span(request: PortRequest) -> range:
    """Return the host ports that a request leaves to choose from."""
    return range(request.first or 1, (request.last if request.first else MAX_PORT) + 1)


def _outcome(
    request: PortRequest, endpoint: Endpoint, network: Network, *, relays: bool
) -> tuple[tuple[tuple[IPAddress, int], ...], tuple[PortBinding, ...]]:
    """Return where on the host a request is published, and what is opened without translation.

    Both are nothing for a host address of a family that the endpoint does not have: each of two
    ways out, one a family, is told all ports of the container.
    """
    routed = tuple(_bind(request, endpoint, version) for version in _routed(endpoint, network))
    return tuple(_places(request, endpoint, network, relays=relays)), routed


def _places(
    request: PortRequest, endpoint: Endpoint, network: Network, *, relays: bool
) -> Iterator[tuple[IPAddress, int]]:
    """Yield the host addresses to publish on, each with the family of the container's address.

    Those are the ones that the network can translate; and, as Docker's proxy has it, those of IPv6
    for an endpoint that has IPv4 alone.
    """
    wanted = (request.host_ip,) if request.host_ip is not None else _default_places(network)
    for ip in wanted:
        if endpoint.address(ip.version) is not None:
            if network.publishes(ip.version):
                yield ip, ip.version
        elif ip.version == 6 and relays and _can_relay(request, endpoint, network):  # noqa: PLR2004
            yield ip, 4


def _can_relay(request: PortRequest, endpoint: Endpoint, network: Network) -> bool:
    """Return whether a port can be relayed from IPv6 to the endpoint's IPv4 address."""
    is_stream_or_datagram = request.protocol is not Protocol.SCTP
    return is_stream_or_datagram and endpoint.ipv4 is not None and network.publishes(4)


def _default_places(network: Network) -> tuple[IPAddress, ...]:
    """Return where ports are published that name no host address."""
    options = network.options
    if options.host_binding_ipv6 is not None:
        return (options.host_binding_ipv6,)
    if options.host_binding_ipv4 is None or options.host_binding_ipv4.is_unspecified:
        return (ANY_IPV4, ANY_IPV6)
    return (options.host_binding_ipv4,)


def _routed(endpoint: Endpoint, network: Network) -> tuple[int, ...]:
    """Return the families in which the port is opened on the container's own address only."""
    return tuple(
        version
        for version in (4, 6)
        if endpoint.address(version) is not None
        and network.forwards(version)
        and not network.options.gateway_mode(version).translates
    )


def _bind(
    request: PortRequest, endpoint: Endpoint, version: int, host: HostPort | None = None
) -> PortBinding:
    address = endpoint.address(version)
    if address is None:
        raise InvalidRequest(f"publish {host}: the container has no IPv{version} address")
    return PortBinding(request.protocol, address.ip, request.container_port, host)


def _ports(request: PortRequest, ephemeral: range, start: int) -> Iterator[int]:
    if request.first:
        yield from _span(request)
        return
    begin = max(start, ephemeral.start) if start < ephemeral.stop else ephemeral.start
    yield from range(begin, ephemeral.stop)
    yield from range(ephemeral.start, begin)
