"""Decide on which host addresses and ports a container's ports are published; performs no I/O.

Whether a port is free on the host is only known by binding it, so a request becomes candidates, in
order, each of which is taken as a whole or not at all.
"""

from __future__ import annotations

from collections import defaultdict
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from driver.errors import InvalidRequest
from driver.model import HostPort, PortBinding

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from driver.model import Endpoint, IPAddress, Network, PortRequest, Protocol

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


def plan_candidates(
    request: PortRequest,
    endpoint: Endpoint,
    network: Network,
    ephemeral: range,
    start: int,
) -> Iterator[tuple[PortBinding, ...]]:
    """Yield the sets of bindings that satisfy a request, the preferred one first.

    One set publishes the same port number for both address families. `ephemeral` are the ports to
    choose from when the request leaves the choice, `start` the one to begin with. None at all is
    yielded if the endpoint has no address of the family that the request names.
    """
    places, routed = _outcome(request, endpoint, network)
    if not places:
        if routed:
            yield routed
        return
    for port in _ports(request, ephemeral, start):
        yield (
            *routed,
            *(
                _bind(request, endpoint, ip.version, HostPort(request.protocol, ip, port))
                for ip in places
            ),
        )


def find_unserved(requests: Iterable[PortRequest], endpoint: Endpoint) -> list[PortRequest]:
    """Return the requests that name a host address of a family that the endpoint does not have."""
    return [
        each
        for each in requests
        if each.host_ip is not None and endpoint.address(each.host_ip.version) is None
    ]


def is_satisfied(requests: Collection[PortRequest], endpoint: Endpoint, network: Network) -> bool:
    """Tell whether an endpoint's bindings are the answer to these requests, and to no others.

    The engine repeats the call, and a port that it left to us must not change for that.
    """
    if not endpoint.bindings:
        return not requests
    wanted: dict[_Target, list[range]] = defaultdict(list)
    routed: set[PortBinding] = set()
    for request in set(requests):
        places, opened = _outcome(request, endpoint, network)
        routed.update(opened)
        for ip in places:
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
    """Tell whether each span can have one of the ports to itself, with none left over.

    The span that ends first takes the lowest: whoever comes later could do no more with it.
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
    request: PortRequest, endpoint: Endpoint, network: Network
) -> tuple[tuple[IPAddress, ...], tuple[PortBinding, ...]]:
    """Return where on the host a request is published, and what is opened without translation.

    Both are nothing for a host address of a family that the endpoint does not have: each of two
    ways out, one a family, is told all ports of the container.
    """
    routed = tuple(_bind(request, endpoint, version) for version in _routed(endpoint, network))
    return _places(request, endpoint, network), routed


def _places(request: PortRequest, endpoint: Endpoint, network: Network) -> tuple[IPAddress, ...]:
    """Return the host addresses to publish on: those that the network can translate."""
    wanted = (request.host_ip,) if request.host_ip is not None else _default_places(network)
    return tuple(
        ip
        for ip in wanted
        if network.publishes(ip.version) and endpoint.address(ip.version) is not None
    )


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
