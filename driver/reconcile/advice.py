"""Find host settings that weaken pynet's networks; no I/O.

Advice is no damage: nothing of pynet's is missing, and only the host's operator may change
these settings. Only what pynet's own rules do not make up for is in here. br_netfilter is not: who
reaches whom on a bridge is decided in the table of family bridge, which sees every frame whether or
not iptables does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from driver.firewall.filters import Hook, Interface, describe_packet
from driver.model import short
from driver.observed import find_uplinks

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from driver.firewall.filters import Packet
    from driver.model import Endpoint, Network
    from driver.observed import HostSettings, Link, Passage

COMMANDS = {4: "iptables", 6: "ip6tables"}
FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
# No packet of others comes in by them, or none whose source the kernel has not checked already:
# WireGuard takes from a peer only what its AllowedIPs say.
HARMLESS_KINDS = frozenset({"dummy", "wireguard"})
# What an operator writes to have a host without IPv6; a file of sysctl.d has them in a row.
NO_IPV6 = {name: f"net.ipv6.conf.{name}.disable_ipv6" for name in ("all", "lo")}
# Every container that sends anything off its link takes an entry on the host, and one of its own
# for the gateway; the kernel counts those of all namespaces together (neigh_alloc()).
ENTRIES_EACH = 2


@dataclass(frozen=True, slots=True)
class Advice:
    """One setting of the host that might better be another: which, and what that leaves open."""

    setting: str
    text: str


def find_entrances(links: Mapping[str, Link]) -> frozenset[str]:
    """Return the interfaces by which packets of others reach the host, containers' aside.

    What is a port of something else receives nothing itself, and a bridge only leads out if it has
    a port that is no container's.
    """
    uplinks = find_uplinks(links)
    return frozenset(
        name
        for name, link in links.items()
        if link.up
        and link.bridge is None
        and not link.is_ours
        and link.kind not in HARMLESS_KINDS
        and name != "lo"
        and (link.kind != "bridge" or name in uplinks)
    )


def advise(
    networks: Collection[Network], endpoints: Iterable[Endpoint], settings: HostSettings
) -> Iterator[Advice]:
    """Yield what to think about, as far as these networks are concerned."""
    joined = [each for each in endpoints if each.attachment is not None]
    for version in (4, 6):
        yield from _advise_on_neighbours(version, joined, settings)
    for version in (4, 6):
        if any(network.forwards(version) for network in networks):
            yield from _advise_on_forwarding(version, settings)
    if any(network.has_family(4) for network in networks):
        yield from _advise_on_sources(settings)


def advise_on_ipv6(networks: Iterable[Network], host: Mapping[str, str]) -> Iterator[Advice]:
    """Yield what a host without IPv6 keeps these networks from; `host` has its parameters.

    A network's own bridge and its containers have IPv6 all the same, as with Docker's bridge.
    """
    if not any(network.has_family(6) for network in networks):
        return
    if host.get(NO_IPV6["all"]) == "1":
        yield Advice(
            NO_IPV6["all"],
            "is 1, so this host's interfaces have no IPv6: by IPv6 containers reach each other and "
            "this host, but no other host, and none reaches their ports; IPv4 works. "
            f"If it is not meant so, sysctl -w {NO_IPV6['all']}=0",
        )
    elif host.get(NO_IPV6["lo"]) == "1":
        yield Advice(
            NO_IPV6["lo"],
            "is 1, so this host has no ::1 by which to reach published ports; its other addresses "
            f"work. If it is not meant so, sysctl -w {NO_IPV6['lo']}=0",
        )


def advise_on_filters(networks: Iterable[Network], passage: Passage) -> Iterator[Advice]:
    """Yield which chains of others stop what goes between containers and the host itself.

    Many hosts mean that, so it is no difference.
    """
    known = {each.bridge_name: each for each in networks if each.bridge_name in passage.indexes}
    for chain in passage.filters:
        if chain.hook is Hook.FORWARD:
            continue
        is_input = chain.hook is Hook.INPUT
        stopped = [
            name
            for name, network in known.items()
            if any(
                network.has_family(version)
                and chain.sees(version)
                and chain.surely_drops(_between(version, name, passage, is_input=is_input))
                for version in (4, 6)
            )
        ]
        if stopped:
            side, what = ("iifname", "to this host") if is_input else ("oifname", "from this host")
            yield Advice(
                str(chain),
                f"drops by its policy what goes {what} by {', '.join(stopped)}: "
                + (
                    "containers reach no service of this host"
                    if is_input
                    else "this host does not reach containers, nor their published ports"
                )
                + f'. If it is not meant so, nft insert rule {chain} {side} "{stopped[0]}" accept',
            )


def _between(version: int, name: str, passage: Passage, *, is_input: bool) -> Packet:
    """Return a packet between the host and containers on a bridge."""
    bridge = Interface(name, passage.indexes[name])
    if is_input:
        return describe_packet(version, source=bridge)
    return describe_packet(version, target=bridge)


def describe_wrong_name(endpoint: Endpoint, name: str) -> str:
    """Return what there is to say of an interface that was to have another name."""
    return (
        f"its interface is called {name} and not {endpoint.ifname}: Docker Engine takes a name "
        "from a driver from 29.8 on; before, a network with pynet.attach=direct gives it"
    )


def advise_on_names(misnamed: Mapping[Endpoint, str]) -> Iterator[Advice]:
    """Yield advice on interfaces that do not have the names that were asked for."""
    for endpoint, name in misnamed.items():
        yield Advice(f"endpoint {short(endpoint.id)}", describe_wrong_name(endpoint, name))


def _advise_on_neighbours(
    version: int, joined: Iterable[Endpoint], settings: HostSettings
) -> Iterator[Advice]:
    count = sum(
        any(address.version == version for address in endpoint.addresses) for endpoint in joined
    )
    room = settings.neighbours.get(version)
    if room is not None and room < count:
        yield Advice(
            f"net.ipv{version}.neigh.default.gc_thresh3",
            f"is {room}, less than the {count} endpoints with IPv{version}: the kernel has no room "
            "for all their neighbours, and connections fail now here, now there; set it to "
            f"{ENTRIES_EACH * count} or more",
        )


def _advise_on_forwarding(version: int, settings: HostSettings) -> Iterator[Advice]:
    if version in settings.forwards and settings.forward_policies.get(version) == "ACCEPT":
        command = COMMANDS[version]
        yield Advice(
            f"{command} FORWARD",
            f"has the policy ACCEPT while {FORWARDING[version]} is 1: what no rule drops this host "
            f"routes for everybody, though not into pynet's networks; unless it is to be a router, "
            f"{command} -P FORWARD DROP",
        )


def _advise_on_sources(settings: HostSettings) -> Iterator[Advice]:
    """Yield advice on interfaces without a check of IPv4 sources; for IPv6 the kernel has none."""
    unchecked = sorted(name for name, mode in settings.source_checks.items() if mode == 0)
    if unchecked:
        yield Advice(
            "net.ipv4.conf.*.rp_filter",
            f"is 0 for {', '.join(unchecked)}: a neighbour there can send with any IPv4 source "
            "address but those of pynet's networks; what trusts an address, on this host or "
            "behind a published port, is deceived. Set it to 1 where answers leave by the "
            "interface that the question came by",
        )
