"""A handful of typical networks, each with a container, for everything that shows the rules."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, IPv6Interface
from typing import TYPE_CHECKING, Any

from driver.firewall.ports import order_requests, plan_candidates
from driver.model import GatewayMode, Guard, GuardAlso, MacAddress
from tests.samples import endpoint, network, new_endpoint, pool, ports, sandbox_key

if TYPE_CHECKING:
    from driver.driver import NewEndpoint
    from driver.model import Endpoint, Network, PortRequest

EPHEMERAL = range(32768, 60999)


@dataclass(frozen=True)
class Typical:
    """A network and what its one container publishes."""

    network: Network
    requests: tuple[PortRequest, ...] = ()

    @property
    def number(self) -> int:
        """What network and endpoint are counted by."""
        return int(self.network.id[:2], 16)

    @property
    def new_endpoint(self) -> NewEndpoint:
        """What CreateEndpoint asks for."""
        ipv6 = IPv6Interface(f"fd00:{self.number}::2/64") if self.network.has_family(6) else None
        return replace(new_endpoint(self.number, self.number, host=2), ipv6=ipv6)

    @property
    def endpoint(self) -> Endpoint:
        """The container's endpoint, joined and published."""
        new = self.new_endpoint
        bare = replace(endpoint(self.number, self.number), ipv4=new.ipv4, ipv6=new.ipv6)
        choices = (
            next(plan_candidates(each, bare, self.network, EPHEMERAL, 0), ())
            for each in order_requests(self.requests)
        )
        bindings = tuple(binding for chosen in choices for binding in chosen)
        return bare.joined(sandbox_key(self.number)).published(bindings)


def dual(number: int, *requests: str, **options: Any) -> Typical:
    """Return a network with a pool of either family."""
    pools = (pool(f"10.{number}.0.1/24"), pool(f"fd00:{number}::1/64"))
    return Typical(network(number, pools=pools, **options), ports(*requests))


def modes(mode: GatewayMode) -> dict[str, Any]:
    return {"gateway_mode_ipv4": mode, "gateway_mode_ipv6": mode}


TYPICAL = {
    "nat": dual(1, "8080:80", "127.0.0.1:5353:53/udp", "[::1]:9000:9000"),
    "routed": dual(2, "443", **modes(GatewayMode.ROUTED)),
    "unprotected": dual(3, **modes(GatewayMode.NAT_UNPROTECTED)),
    "icc_off": dual(4, "8084:80", icc=False),
    "internal": dual(5, internal=True),
    "source_address": dual(
        6, host_ipv4=IPv4Address("192.0.2.7"), host_ipv6=IPv6Address("2001:db8::7")
    ),
    "trusted": dual(7, "8087:80", trusted_host_interfaces=("eth1", "wg0")),
    "no_masquerade": dual(8, masquerade=False, bridge_name="br-front"),
    "guarded": dual(
        9,
        guard=Guard.ADDRESS,
        guard_also=GuardAlso(
            (IPv4Address("10.9.0.100"),),
            (IPv6Address("fd00:9::100"),),
            (MacAddress("00:00:5e:00:01:07"),),
        ),
        connections=1000,
    ),
    "unguarded": dual(10, guard=Guard.OFF),
    "guarded_also": dual(11, guard_also=GuardAlso(ipv4=(IPv4Address("192.0.2.100"),))),
}
NETWORKS = tuple(each.network for each in TYPICAL.values())
ENDPOINTS = tuple(each.endpoint for each in TYPICAL.values())
