"""Networks, endpoints and sandboxes to test with, each named by a small number."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import TYPE_CHECKING, Any

from driver.driver import NewEndpoint, NewJoin
from driver.model import (
    Endpoint,
    EndpointId,
    HostPort,
    MacAddress,
    Network,
    NetworkId,
    NetworkOptions,
    Pool,
    PortBinding,
    PortRequest,
    Protocol,
    SandboxKey,
    Sysctl,
)

KEEPALIVE = "net.ipv4.tcp_keepalive_time"
SOMAXCONN = "net.core.somaxconn"
RP_FILTER = "net.ipv4.conf.IFNAME.rp_filter"


if TYPE_CHECKING:
    from prometheus_client import Counter


def network_id(number: int) -> NetworkId:
    return NetworkId(f"{number:02x}" * 32)


def endpoint_id(number: int) -> EndpointId:
    return EndpointId(f"{number + 0xE0:02x}" * 32)


def sandbox_key(number: int) -> SandboxKey:
    return SandboxKey(f"/var/run/docker/netns/{number:012x}")


def sysctl(text: str) -> Sysctl:
    """Return the parameter that `key=value` spells."""
    key, _, value = text.partition("=")
    return Sysctl(key, value)


def pool(gateway: str, space: str = "") -> Pool:
    """Return the pool that a gateway address with its prefix length lies in."""
    interface = ip_interface(gateway)
    return Pool(interface.network, interface, space)


def network(
    number: int = 1, *sysctls: str, pools: tuple[Pool, ...] = (), **options: Any
) -> Network:
    """Return a network on 10.NUMBER.0.0/24, unless other pools are given."""
    return Network(
        id=network_id(number),
        pools=pools or (pool(f"10.{number}.0.1/24"),),
        options=NetworkOptions(sysctls=tuple(map(sysctl, sysctls)), **options),
    )


def new_endpoint(
    number: int = 1,
    net: int = 1,
    *sysctls: str,
    host: int | None = None,
    ipv6: str | None = None,
    mac: str | None = None,
    ifname: str | None = None,
) -> NewEndpoint:
    """Return what CreateEndpoint asks for: an endpoint at 10.NET.0.(NUMBER + 1)."""
    return NewEndpoint(
        id=endpoint_id(number),
        network_id=network_id(net),
        ipv4=IPv4Interface(f"10.{net}.0.{host or number + 1}/24"),
        ipv6=None if ipv6 is None else IPv6Interface(ipv6),
        mac=None if mac is None else MacAddress(mac),
        sysctls=tuple(map(sysctl, sysctls)),
        engine_keys=frozenset(),
        ifname=ifname,
    )


def one_of_many(number: int, net: int = 1) -> NewEndpoint:
    """Return an endpoint on 10.NET.0.0/16 that shares id and address with no other number."""
    return replace(
        new_endpoint(1, net),
        id=EndpointId(f"{net:02x}{number:010x}" + 52 * "e"),
        ipv4=IPv4Interface(f"10.{net}.{1 + number // 250}.{2 + number % 250}/16"),
    )


def endpoint(number: int = 1, net: int = 1, *addresses: str) -> Endpoint:
    """Return an endpoint at these addresses, at 10.NET.0.(NUMBER + 1) unless some are given."""
    given = [ip_interface(each) for each in addresses or (f"10.{net}.0.{number + 1}/24",)]
    by_family = {each.version: each for each in given}
    ipv4, ipv6 = by_family.get(4), by_family.get(6)
    return Endpoint(
        id=endpoint_id(number),
        network_id=network_id(net),
        ipv4=ipv4 if isinstance(ipv4, IPv4Interface) else None,
        ipv6=ipv6 if isinstance(ipv6, IPv6Interface) else None,
        mac=MacAddress("02:42:0a:01:00:02"),
    )


def new_join(
    number: int = 1, net: int = 1, sandbox: SandboxKey | None = None, *, has_ports: bool = False
) -> NewJoin:
    """Return what Join asks for: endpoint NUMBER of network NET in the first sandbox."""
    return NewJoin(
        network_id(net), endpoint_id(number), sandbox or sandbox_key(1), has_ports=has_ports
    )


_PUBLISH = re.compile(
    r"(?:(?:\[(?P<six>.*)\]|(?P<four>\d+(?:\.\d+){3})):)?"
    r"(?:(?P<first>\d*)(?:-(?P<last>\d+))?:)?(?P<port>\d+)(?:/(?P<protocol>\w+))?"
)


def counted(counter: Counter) -> dict[str, int]:
    """Return what a counter has counted, by its label; under no name if it has none."""
    (metric,) = counter.collect()
    return {
        "".join(sample.labels.values()): int(sample.value)
        for sample in metric.samples
        if sample.name.endswith("_total")
    }


def ports(*texts: str) -> tuple[PortRequest, ...]:
    """Return what `docker run -p TEXT -p …` asks for: [IP:][FIRST[-LAST]:]PORT[/PROTOCOL]."""
    return tuple(map(_port, texts))


def _port(text: str) -> PortRequest:
    match = _PUBLISH.fullmatch(text)
    assert match, text
    host, first = match["six"] or match["four"], int(match["first"] or 0)
    return PortRequest(
        protocol=Protocol(match["protocol"] or "tcp"),
        container_port=int(match["port"]),
        host_ip=ip_address(host) if host else None,
        first=first,
        last=int(match["last"] or first),
    )


def place(text: str) -> HostPort:
    """Return a place on the host as `docker ps` writes it: 0.0.0.0:8080/tcp."""
    request = _port(text)
    assert request.host_ip is not None
    return HostPort(request.protocol, request.host_ip, request.container_port)


def binding(host: str | None, container: str = "10.1.0.2:80") -> PortBinding:
    """Return a binding of a container's address and port to a place on the host."""
    inner = place(container)
    at = host and place(host)
    protocol = at.protocol if at else inner.protocol
    return PortBinding(protocol, inner.ip, inner.port, at or None)
