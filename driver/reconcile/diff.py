"""Compare the stored with the observed state; no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import TYPE_CHECKING

from driver.firewall.filters import Hook, Interface, describe_packet
from driver.firewall.ports import find_relays
from driver.firewall.ruleset import ACCEPTED_MARK, FORWARD_PRIORITY
from driver.model import host_end_name, sandbox_end_name, short

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from driver.firewall.filters import BaseChain
    from driver.model import (
        Bridge,
        Endpoint,
        HostPort,
        IPAddress,
        IPInterface,
        Network,
        NetworkId,
        Relay,
        SandboxKey,
    )
    from driver.observed import Link, Passage

FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
ELEMENT = ", element "  # what a line of our tables has that is an element of a set or map
UPLINKS = f" set uplinks{ELEMENT}"
BRIDGE_FORWARDING = "net.ipv4.conf.IFNAME.forwarding"  # of IPv6, that of all is in force


class Kind(StrEnum):
    """What sort of thing differs; each has one way of being mended."""

    BRIDGE = "bridge"
    HOST_END = "host end"
    SEVERED = "severed"  # a host end that is gone while its container runs: it cannot be repaired
    DEAD = "dead endpoint"
    LEFTOVER = "leftover"
    RULES = "rules"
    UPLINK = "uplink"  # a bridge of others that came or went, or turned out to be Docker's
    ACCEPT = "forward accept"
    RESERVATION = "reservation"
    RELAY = "relay"
    PARAMETER = "parameter"
    FORWARDING = "forwarding"  # a parameter of the host that is the operator's
    ROUTE = "route"  # to a network's containers, past its bridge or nowhere
    FILTER = "filter"  # a chain of another program that drops what ours lets pass
    ZONE = "zone"  # of firewalld's; its own thread tries again and again
    MAC = "MAC address"  # that two have: a container's own doing, or another port's


# What the driver does not mend by itself: only Docker can, or it is the operator's to decide.
TOLD = frozenset({Kind.SEVERED, Kind.FORWARDING, Kind.ROUTE, Kind.FILTER})
# The relay's own supervisor starts it, and tries again for as long as that fails.
MENDS_ITSELF = frozenset({Kind.RELAY})


class Existence(Enum):
    """Whether a sandbox is there, as far as this process can tell."""

    IS = auto()
    WAS = auto()  # seen before, and gone
    UNSEEN = auto()  # yet to come (engines up to 27), or where this process cannot see it


@dataclass(frozen=True, slots=True)
class Drift:
    """One thing that is not as it should be: what it is, which, and what is wrong with it.

    `blocked` tells that nothing can be done about it before another program's link has gone,
    `contested` that others break it again and again, so that one more time is no news.
    """

    kind: Kind
    subject: str
    text: str
    blocked: bool = False
    contested: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        """Return it as a sentence for people."""
        return f"{self.kind} {self.subject}: {self.text}"


def compare_bridges(networks: Iterable[Network], links: Mapping[str, Link]) -> Iterator[Drift]:
    """Yield what is wrong with the networks' bridges."""
    for network in networks:
        for bridge in network.bridges:
            link = links.get(bridge.name)
            faults = ["is gone"] if link is None else _bridge_faults(bridge, link)
            blocked = is_blocked(bridge, links)
            for fault in faults:
                text = f"{fault} (network {short(network.id)})"
                yield Drift(Kind.BRIDGE, bridge.name, text, blocked=blocked)
        for number, trunk in zip(network.parts, network.trunks, strict=True):
            part = network.bridge_at(number)
            for end, bridge_name in ((trunk.host_end, trunk.bridge), (trunk.sandbox_end, part)):
                if end not in links or any(_host_end_faults(links[end], bridge_name, trunk.mtu)):
                    yield Drift(Kind.BRIDGE, part, f"is not joined to {trunk.bridge}: {end}")


def is_blocked(bridge: Bridge, links: Mapping[str, Link]) -> bool:
    """Return whether another program's link has a bridge's name and may not be used as one."""
    link = links.get(bridge.name)
    if link is None or link.alias == bridge.alias:
        return False
    return link.kind != "bridge" or bridge.must_be_ours


def _bridge_faults(bridge: Bridge, link: Link) -> Iterator[str]:
    if link.kind != "bridge":
        yield "is an interface of another kind by now"
        return
    if not link.up:
        yield "is down"
    for address in bridge.addresses:
        if address not in link.addresses:
            yield f"has lost its address {address}"
    if link.alias != bridge.alias:
        if bridge.must_be_ours:
            yield "is another program's by now"
        return
    if link.mtu != bridge.mtu:
        yield f"has an MTU of {link.mtu} instead of {bridge.mtu}"
    if link.mac != bridge.mac:
        yield f"has the MAC address {link.mac} instead of {bridge.mac}"


def compare_endpoints(
    endpoints: Iterable[Endpoint],
    networks: Mapping[NetworkId, Network],
    links: Mapping[str, Link],
    sandboxes: Mapping[SandboxKey, Existence],
) -> Iterator[Drift]:
    """Yield what is wrong with the joined endpoints."""
    for endpoint in endpoints:
        if endpoint.attachment is None:
            continue
        name = host_end_name(endpoint.id)
        link = links.get(name)
        if is_dead(endpoint, links, sandboxes):
            yield Drift(Kind.DEAD, endpoint.id, "its sandbox has ended")
        elif link is not None:
            bridge = bridge_of(endpoint, networks)
            blocked = is_blocked(bridge, links)
            for fault in _host_end_faults(link, bridge.name, bridge.mtu):
                yield Drift(Kind.HOST_END, name, fault, blocked=blocked)
        else:
            yield Drift(
                Kind.SEVERED,
                name,
                f"is gone while its container runs, endpoint {short(endpoint.id)}; connect the "
                "container to the network anew, or restart it",
            )


def bridge_of(endpoint: Endpoint, networks: Mapping[NetworkId, Network]) -> Bridge:
    """Return the bridge that an endpoint's host end belongs on."""
    number = endpoint.attachment.bridge if endpoint.attachment else 0
    network = networks[endpoint.network_id]
    return network.part(number) if number else network.bridge


def compare_macs(
    networks: Iterable[Network],
    endpoints: Iterable[Endpoint],
    links: Mapping[str, Link],
    inside: Mapping[str, str],
) -> Iterator[Drift]:
    """Yield the MAC addresses that two on one network have; `inside` has the containers'."""
    endpoints = tuple(endpoints)
    for network in networks:
        owners: dict[str, list[str]] = {}
        bridges = {bridge.name for bridge in network.bridges}
        known = {host_end_name(each.id) for each in endpoints}
        for name, link in links.items():
            if name == network.bridge_name or (link.bridge in bridges and name not in known):
                owners.setdefault(link.mac, []).append(name)
        for endpoint in endpoints:
            mac = inside.get(host_end_name(endpoint.id))
            if endpoint.network_id == network.id and mac:
                owners.setdefault(mac, []).append(f"endpoint {short(endpoint.id)}")
        for mac, names in owners.items():
            # A bridge without a MAC of its own has that of one of its ports.
            if len(names) > 1 and any(name.startswith("endpoint ") for name in names):
                text = f"is that of {' and of '.join(names)}; give all but one another"
                yield Drift(Kind.MAC, mac, f"{text} (network {short(network.id)})")


def is_dead(
    endpoint: Endpoint, links: Mapping[str, Link], sandboxes: Mapping[SandboxKey, Existence]
) -> bool:
    """Return whether a joined endpoint's sandbox has ended.

    That its path is gone is not enough: see `Existence`. A sandbox that ended takes the pair with
    it in the end, or libnetwork brings the other end back; while it lives the other end is there.
    """
    attachment = endpoint.attachment
    if attachment is None or sandboxes[attachment.sandbox] is Existence.IS:
        return False
    has_come_back = attachment.configured and sandbox_end_name(endpoint.id) in links
    has_ended = sandboxes[attachment.sandbox] is Existence.WAS
    return has_ended or has_come_back or host_end_name(endpoint.id) not in links


def _host_end_faults(link: Link, bridge: str, mtu: int) -> Iterator[str]:
    if link.bridge != bridge:
        yield f"is not on bridge {bridge}" + (f" but on {link.bridge}" if link.bridge else "")
    if not link.up:
        yield "is down"
    if link.mtu < mtu:  # a greater one is of before the network's was changed
        yield f"has an MTU of {link.mtu} instead of {mtu}"


def find_leftovers(
    networks: Iterable[Network], endpoints: Iterable[Endpoint], links: Mapping[str, Link]
) -> Iterator[Drift]:
    """Yield the links of ours that belong to no network and to no endpoint."""
    networks = tuple(networks)
    known = {bridge.name for network in networks for bridge in network.bridges}
    known |= {trunk.host_end for network in networks for trunk in network.trunks}
    known |= {host_end_name(endpoint.id) for endpoint in endpoints}
    for name, link in sorted(links.items()):
        if link.is_ours and name not in known:
            yield Drift(Kind.LEFTOVER, name, "belongs to no network or endpoint")


def find_ends(
    networks: Mapping[NetworkId, Network], endpoints: Iterable[Endpoint], damaged: Collection[str]
) -> dict[IPAddress, str]:
    """Return an address of a container for each network and family, with the network's bridge.

    But for networks on another program's bridge, whose routes are that one's, and on damaged
    bridges, whose routes come back with them.
    """
    ends: dict[tuple[str, int], IPAddress] = {}
    for endpoint in endpoints:
        network = networks[endpoint.network_id]
        if network.shared or network.bridge_name in damaged:
            continue
        for address in endpoint.addresses:
            if any(_leads_to(own, address.ip) for own in network.bridge.addresses):
                ends.setdefault((network.bridge_name, address.version), address.ip)
    return {ip: bridge for (bridge, _), ip in ends.items()}


def _leads_to(own: IPInterface, ip: IPAddress) -> bool:
    """Return whether the kernel has a route to an address from a bridge's own."""
    return ip in own.network and ip != own.ip


def compare_passage(
    networks: Mapping[NetworkId, Network], endpoints: Iterable[Endpoint], passage: Passage
) -> Iterator[Drift]:
    """Yield what keeps containers' packets from passing this host, beside our own rules."""
    joined = {each.network_id: each for each in endpoints if each.attachment is not None}
    running = tuple(networks[each] for each in joined)
    for version, key in FORWARDING.items():
        if key in passage.closed and any(network.forwards(version) for network in running):
            text = f"is 0, so nothing of IPv{version} passes this host; sysctl -w {key}=1"
            yield Drift(Kind.FORWARDING, key, text)
    for network in running:
        key = BRIDGE_FORWARDING.replace("IFNAME", network.bridge_name)
        if key in passage.closed and network.forwards(4):
            text = f"is 0, so nothing that its containers send passes this host; sysctl -w {key}=1"
            yield Drift(Kind.FORWARDING, key, text)
    by_bridge = {network.bridge_name: network for network in running}
    for ip, way in passage.ways.items():
        yield from _compare_way(ip, way, by_bridge)
    for chain in passage.filters:
        if chain.hook is Hook.FORWARD:
            yield from _compare_filter(chain, running, passage)


def _compare_way(
    ip: IPAddress, way: str | None, networks: Mapping[str, Network]
) -> Iterator[Drift]:
    for bridge, network in networks.items():
        subnets = [each for each in network.subnets(ip.version) if ip in each]
        if not subnets or way == bridge:
            continue
        where = f"leads to {way}" if way else "is missing"
        six = "-6 " if ip.version == 6 else ""  # noqa: PLR2004
        yield Drift(
            Kind.ROUTE,
            str(subnets[0]),
            f"{where} instead of to {bridge}, by the routes and rules of this host; "
            f"ip {six}route replace {subnets[0]} dev {bridge}",
        )


def _compare_filter(
    chain: BaseChain, networks: Iterable[Network], passage: Passage
) -> Iterator[Drift]:
    """Yield that a chain drops what comes from containers, or goes to them, of these networks."""
    sees_mark = chain.priority > FORWARD_PRIORITY
    mark = ACCEPTED_MARK if sees_mark else 0
    stopped: dict[str, list[str]] = {}
    for network in networks:
        index = passage.indexes.get(network.bridge_name)
        if index is None:
            continue
        bridge = Interface(network.bridge_name, index)
        for version in (4, 6):
            if not (network.forwards(version) and chain.sees(version)):
                continue
            for direction, ends in (("from", {"source": bridge}), ("to", {"target": bridge})):
                if chain.surely_drops(describe_packet(version, mark=mark, **ends)):
                    stopped.setdefault(bridge.name, []).append(direction)
    if not stopped:
        return
    name, directions = next(iter(stopped.items()))
    what = " and ".join(dict.fromkeys(directions))
    others = f" and of {len(stopped) - 1} networks more" if len(stopped) > 1 else ""
    rule = f"meta mark and {ACCEPTED_MARK:#x} != 0" if sees_mark else f'iifname "{name}"'
    also = "" if sees_mark else f'; nft insert rule {chain} oifname "{name}" accept'
    yield Drift(
        Kind.FILTER,
        str(chain),
        f"drops by its policy what goes {what} containers on {name}{others}, whatever pynet's own "
        f"rules accept; nft insert rule {chain} {rule} accept{also}",
    )


def compare_rules(wanted: frozenset[str], found: frozenset[str]) -> Iterator[Drift]:
    """Yield every line of our tables that is missing, and every one that should not be there.

    Elements only if all else is as it should be: else they may not have been read.
    """
    if any(ELEMENT not in line for line in wanted ^ found):
        wanted, found = (
            frozenset(line for line in lines if ELEMENT not in line) for lines in (wanted, found)
        )
    for text, lines in (("is missing", wanted - found), ("is not ours", found - wanted)):
        for line in sorted(lines):
            kind = Kind.UPLINK if UPLINKS in line else Kind.RULES
            yield Drift(kind, line[:200], text)


def compare_reservations(
    endpoints: Iterable[Endpoint], reserved: Collection[HostPort]
) -> Iterator[Drift]:
    """Yield the published host ports that nothing keeps from others."""
    for endpoint in endpoints:
        for binding in endpoint.bindings:
            if binding.host is not None and binding.host not in reserved:
                yield Drift(
                    Kind.RESERVATION,
                    str(binding.host),
                    f"is not reserved for endpoint {short(endpoint.id)}",
                )


def compare_relays(
    endpoints: Iterable[Endpoint],
    networks: Mapping[NetworkId, Network],
    relayed: Collection[Relay],
) -> Iterator[Drift]:
    """Yield the published host ports at which only the kernel answers."""
    for endpoint in endpoints:
        for relay in find_relays(endpoint.bindings, networks[endpoint.network_id]):
            if relay not in relayed:
                yield Drift(
                    Kind.RELAY,
                    str(relay.place),
                    f"is not served by the relay for endpoint {short(endpoint.id)}",
                )
