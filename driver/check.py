"""Compare what is stored with what the kernel has, and say what differs; performs no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import TYPE_CHECKING

from driver.model import host_end_name, sandbox_end_name, short
from driver.ports import find_relays

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from driver.model import Bridge, Endpoint, HostPort, Network, NetworkId, Relay, SandboxKey
    from driver.reality import Link


class Kind(StrEnum):
    """What sort of thing differs; each has one way of being mended."""

    BRIDGE = "bridge"
    HOST_END = "host end"
    SEVERED = "severed"  # a host end that is gone while its container runs: nobody can mend it
    DEAD = "dead endpoint"
    LEFTOVER = "leftover"
    RULES = "rules"
    ACCEPT = "forward accept"
    LOOPBACK = "loopback pair"
    RESERVATION = "reservation"
    RELAY = "relay"
    PARAMETER = "parameter"
    MAC = "MAC address"  # that two have: a container's own doing, or somebody's on the bridge

    @property
    def heals(self) -> bool:
        """Whether it is the healer's to mend: not what nobody can, nor what mends itself.

        The relay's own supervisor starts it, and tries again for as long as that fails.
        """
        return self not in (Kind.SEVERED, Kind.RELAY)


class Existence(Enum):
    """Whether a sandbox is there, as far as this process can tell."""

    IS = auto()
    WAS = auto()  # seen before, and gone
    UNSEEN = auto()  # yet to come (engines up to 27), or where this process cannot see it


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be: what it is, which, and what is wrong with it.

    `blocked` tells that nothing can be done about it before somebody else's link has gone.
    """

    kind: Kind
    subject: str
    text: str
    blocked: bool = False

    def __str__(self) -> str:
        """Return it as a sentence for people."""
        return f"{self.kind} {self.subject}: {self.text}"


def compare_bridges(networks: Iterable[Network], links: Mapping[str, Link]) -> Iterator[Difference]:
    """Yield what is wrong with the networks' bridges."""
    for network in networks:
        for bridge in network.bridges:
            link = links.get(bridge.name)
            faults = ["is gone"] if link is None else _bridge_faults(bridge, link)
            blocked = is_blocked(bridge, links)
            for fault in faults:
                text = f"{fault} (network {short(network.id)})"
                yield Difference(Kind.BRIDGE, bridge.name, text, blocked=blocked)
        for number, joint in zip(network.parts, network.joints, strict=True):
            part = network.bridge_at(number)
            for end, bridge_name in ((joint.host_end, joint.bridge), (joint.sandbox_end, part)):
                if end not in links or any(_host_end_faults(links[end], bridge_name)):
                    yield Difference(Kind.BRIDGE, part, f"is not joined to {joint.bridge}: {end}")


def is_blocked(bridge: Bridge, links: Mapping[str, Link]) -> bool:
    """Tell whether somebody else's link has the name of a bridge, and may not be used as one."""
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
            yield "is somebody else's by now"
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
) -> Iterator[Difference]:
    """Yield what is wrong with the joined endpoints."""
    for endpoint in endpoints:
        if endpoint.attachment is None:
            continue
        name = host_end_name(endpoint.id)
        link = links.get(name)
        if is_dead(endpoint, links, sandboxes):
            yield Difference(Kind.DEAD, endpoint.id, "its sandbox has ended")
        elif link is not None:
            bridge = bridge_of(endpoint, networks)
            blocked = is_blocked(bridge, links)
            for fault in _host_end_faults(link, bridge.name):
                yield Difference(Kind.HOST_END, name, fault, blocked=blocked)
        else:
            yield Difference(
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
) -> Iterator[Difference]:
    """Yield the MAC addresses that two on one network have; `inside` has the containers'."""
    endpoints = tuple(endpoints)
    for network in networks:
        owners: dict[str, list[str]] = {}
        bridges = {bridge.name for bridge in network.bridges}
        known = {host_end_name(each.id) for each in endpoints}
        known |= {end for joint in network.joints for end in (joint.host_end, joint.sandbox_end)}
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
                yield Difference(Kind.MAC, mac, f"{text} (network {short(network.id)})")


def is_dead(
    endpoint: Endpoint, links: Mapping[str, Link], sandboxes: Mapping[SandboxKey, Existence]
) -> bool:
    """Tell whether a joined endpoint's sandbox has ended.

    That its path is gone is not enough: see `Existence`. A sandbox that ended takes the pair with
    it in the end, or libnetwork brings the other end back; while it lives the other end is there.
    """
    attachment = endpoint.attachment
    if attachment is None or sandboxes[attachment.sandbox] is Existence.IS:
        return False
    has_come_back = attachment.configured and sandbox_end_name(endpoint.id) in links
    has_ended = sandboxes[attachment.sandbox] is Existence.WAS
    return has_ended or has_come_back or host_end_name(endpoint.id) not in links


def _host_end_faults(link: Link, bridge: str) -> Iterator[str]:
    if link.bridge != bridge:
        yield f"is not on bridge {bridge}" + (f" but on {link.bridge}" if link.bridge else "")
    if not link.up:
        yield "is down"


def find_leftovers(
    networks: Iterable[Network], endpoints: Iterable[Endpoint], links: Mapping[str, Link]
) -> Iterator[Difference]:
    """Yield the links of ours that belong to no network and to no endpoint."""
    networks = tuple(networks)
    known = {bridge.name for network in networks for bridge in network.bridges}
    known |= {joint.host_end for network in networks for joint in network.joints}
    known |= {host_end_name(endpoint.id) for endpoint in endpoints}
    for name, link in sorted(links.items()):
        if link.is_ours and name not in known:
            yield Difference(Kind.LEFTOVER, name, "belongs to no network or endpoint")


def compare_rules(wanted: frozenset[str], found: frozenset[str]) -> Iterator[Difference]:
    """Yield every line of our tables that is missing, and every one that should not be there."""
    for text, lines in (("is missing", wanted - found), ("is not ours", found - wanted)):
        for line in sorted(lines):
            yield Difference(Kind.RULES, line[:200], text)


def compare_reservations(
    endpoints: Iterable[Endpoint], reserved: Collection[HostPort]
) -> Iterator[Difference]:
    """Yield the published host ports that nothing keeps from others."""
    for endpoint in endpoints:
        for binding in endpoint.bindings:
            if binding.host is not None and binding.host not in reserved:
                yield Difference(
                    Kind.RESERVATION,
                    str(binding.host),
                    f"is not reserved for endpoint {short(endpoint.id)}",
                )


def compare_relays(
    endpoints: Iterable[Endpoint],
    networks: Mapping[NetworkId, Network],
    relayed: Collection[Relay],
) -> Iterator[Difference]:
    """Yield the published host ports at which only the kernel answers, and nobody else does."""
    for endpoint in endpoints:
        for relay in find_relays(endpoint.bindings, networks[endpoint.network_id]):
            if relay not in relayed:
                yield Difference(
                    Kind.RELAY,
                    str(relay.place),
                    f"is not served by the relay for endpoint {short(endpoint.id)}",
                )
