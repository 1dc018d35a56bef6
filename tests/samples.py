"""Networks, endpoints and sandboxes to test with, each named by a small number."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Any

from driver.bridge import NewEndpoint
from driver.model import (
    EndpointId,
    MacAddress,
    Network,
    NetworkId,
    NetworkOptions,
    Pool,
    SandboxKey,
    Sysctl,
)

KEEPALIVE = "net.ipv4.tcp_keepalive_time"
SOMAXCONN = "net.core.somaxconn"
RP_FILTER = "net.ipv4.conf.IFNAME.rp_filter"


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
    )
