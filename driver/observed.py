"""The observed state of the kernel as values; no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from driver.model import is_our_alias, is_plain_ifname

DOCKERS_BRIDGE = re.compile("docker0|docker_gwbridge|br-[0-9a-f]{12}")
DOCKERS_PORT = re.compile("veth[0-9a-f]{7}")

if TYPE_CHECKING:
    from collections.abc import Mapping

    from driver.firewall.filters import BaseChain
    from driver.model import IPAddress, IPInterface, Veth


@dataclass(frozen=True, slots=True)
class Link:
    """An interface of the host, ours or not.

    `kind` is the kernel's word for it ("bridge", "veth"), None for a network card. `bridge` is the
    name of the bridge that it is a port of, `addresses` are a bridge's own. `half_made` marks one
    that this driver had only begun to make. `hairpin` tells whether its bridge sends frames back by
    it. `leads_out` marks the interface by which the host's default route goes, `dockers` a bridge
    that an interface of Docker's own is on, or has been.
    """

    kind: str | None
    alias: str
    mac: str
    mtu: int
    up: bool
    bridge: str | None = None
    addresses: frozenset[IPInterface] = frozenset()
    half_made: bool = False
    hairpin: bool = False
    leads_out: bool = False
    dockers: bool = False

    def is_port(self, veth: Veth) -> bool:
        """Return whether it is the host end that was asked for, as it was asked for."""
        is_there = self.alias == veth.alias and self.bridge == veth.bridge and self.up
        return is_there and self.mtu >= veth.mtu and (self.hairpin or not veth.hairpin)

    @property
    def is_ours(self) -> bool:
        """Whether this driver made it for a network or an endpoint."""
        return self.half_made or is_our_alias(self.alias)


@dataclass(frozen=True, slots=True)
class HostSettings:
    """Settings of the host that bear on pynet's networks; what cannot be told is left out.

    By address family: `neighbours` is how many its table of neighbours takes, `forwards` has those
    whose packets are forwarded, `forward_policies` is what becomes of a forwarded packet that no
    rule of iptables judges, ACCEPT or DROP. `source_checks` is by interface: the rp_filter in
    force.
    """

    neighbours: Mapping[int, int]
    forwards: frozenset[int]
    forward_policies: Mapping[int, str]
    source_checks: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Passage:
    """What decides whether packets of pynet's networks pass this host, beside pynet's own rules.

    `closed` are the parameters of forwarding that are 0, `filters` others' chains that drop by
    policy, `ways` by which interface the host sends to an address, None if by none, and `indexes`
    the numbers of interfaces.
    """

    closed: frozenset[str] = frozenset()
    filters: tuple[BaseChain, ...] = ()
    ways: Mapping[IPAddress, str | None] = field(default_factory=dict)
    indexes: Mapping[str, int] = field(default_factory=dict)


def find_uplinks(links: Mapping[str, Link]) -> frozenset[str]:
    """Return the bridges, neither ours nor Docker's, that what containers send may go to.

    They lead to the LAN, to virtual machines, or to containers of others, and the host's own rules
    judge that. Which ports a bridge has does not tell: inside LXC the host's only card is a veth.
    Docker's own bridges are known by the names that Docker gives them, and those that its users
    have named by its interfaces on them; one that the host itself goes out by is not kept from
    anybody.
    """
    exits = find_exits(links)
    return frozenset(
        name
        for name, link in links.items()
        if link.kind == "bridge"
        and not is_our_alias(link.alias)
        and (name in exits or not _is_dockers(name, link))
        # An interface name may hold quotes; one that does is not worth the risk in nft text.
        and is_plain_ifname(name)
    )


def find_exits(links: Mapping[str, Link]) -> frozenset[str]:
    """Return the bridges that lead out of the host: by a card, or by its own default route."""
    cards = {link.bridge for link in links.values() if link.bridge and link.kind != "veth"}
    return frozenset(
        name
        for name, link in links.items()
        if link.kind == "bridge" and (name in cards or link.leads_out)
    )


def is_dockers_port(name: str) -> bool:
    """Return whether an interface's name is one that Docker makes for a container's host end.

    libnetwork takes 7 hexadecimal digits (netutils.GenerateIfaceName()); LXC, Incus, podman and CNI
    take other numbers of others.
    """
    return DOCKERS_PORT.fullmatch(name) is not None


def _is_dockers(name: str, link: Link) -> bool:
    return link.dockers or DOCKERS_BRIDGE.fullmatch(name) is not None


def find_bridges_with_ports(links: Mapping[str, Link]) -> frozenset[str]:
    """Return the bridges, ours and others', that an interface is on."""
    return frozenset(link.bridge for link in links.values() if link.bridge)
