"""What is known of a flow and of the namespaces on its way, as values; no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from driver.model import IPAddress, IPInterface, IPNetwork, Protocol

OUTSIDE, HOST = "outside", "host"


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of a namespace.

    `master` is the name of the bridge that it is on, `other_end` the index of a veth's other end,
    0 if there is none; `moved` tells that this is in another namespace.
    """

    index: int
    name: str
    kind: str | None
    mac: str
    mtu: int
    is_up: bool
    has_carrier: bool
    master: str | None = None
    other_end: int = 0
    moved: bool = False
    alias: str = ""
    addresses: frozenset[IPInterface] = frozenset()


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that takes what comes to a port; `owner` is its process, `node (pid 4711)`.

    An unspecified IPv6 address takes IPv4 as well unless `is_v6_only`. `waiting` connections are
    not accepted yet, of at most `backlog`; of UDP these are the bytes of datagrams that are not
    read yet, and those that there is room for. `lost` found no room since it was opened.
    """

    protocol: Protocol
    ip: IPAddress
    port: int
    owner: str
    is_v6_only: bool = False
    waiting: int = 0
    backlog: int = 0
    lost: int = 0

    def takes(self, ip: IPAddress) -> bool:
        """Return whether what is sent to this address comes to it, its port being right."""
        if self.ip.is_unspecified:
            return self.ip.version == ip.version or (self.ip.version == 6 and not self.is_v6_only)  # noqa: PLR2004
        return self.ip == ip

    @property
    def place(self) -> str:
        """Where it listens, as people write it."""
        return place_of(self.ip, self.port)


def place_of(ip: IPAddress, port: int) -> str:
    """Return an address and a port as people write them."""
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"  # noqa: PLR2004


@dataclass(frozen=True, slots=True)
class Routed:
    """A route that is no default route: what goes to a prefix goes out by an interface."""

    prefix: IPNetwork
    interface: str


@dataclass(frozen=True, slots=True)
class Way:
    """Where a packet goes: out by an interface, to a gateway, or nowhere for an error's reason."""

    interface: str | None = None
    gateway: IPAddress | None = None
    is_local: bool = False
    error: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """What a namespace shows: interfaces by name, listeners, parameters, neighbours.

    `silent` are those that were asked for and did not answer, `macs` what is known of the others.
    `ports_of` says by MAC address behind which ports its bridges know it, `routes` is what is
    routed where, but for what is the namespace's own, `neighbour_entries` how many neighbours the
    kernel keeps, of all namespaces.
    """

    interfaces: Mapping[str, Interface]
    listeners: tuple[Listener, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    silent: frozenset[IPAddress] = frozenset()
    macs: Mapping[IPAddress, str] = field(default_factory=dict)
    ports_of: Mapping[str, frozenset[str]] = field(default_factory=dict)
    routes: tuple[Routed, ...] = ()
    neighbour_entries: int = 0

    def owner_of(self, ip: IPAddress) -> Interface | None:
        """Return the interface that has an address."""
        found = (
            each
            for each in self.interfaces.values()
            if any(address.ip == ip for address in each.addresses)
        )
        return next(found, None)

    def at(self, index: int) -> Interface | None:
        """Return the interface of an index."""
        found = (each for each in self.interfaces.values() if each.index == index)
        return next(found, None)


@dataclass(frozen=True, slots=True)
class Party:
    """An end of a flow: a container with its sandbox, the host, or something outside.

    `address` is what it is spoken to at, or speaks from as far as that is known.
    """

    name: str
    sandbox: str | None = None
    address: IPAddress | None = None

    @property
    def is_container(self) -> bool:
        """Whether it has a sandbox."""
        return self.sandbox is not None


@dataclass(frozen=True, slots=True)
class Published:
    """A port of the container's that is published, as `pynet ports` or `docker ps` lists it."""

    host_ip: IPAddress
    host_port: int
    container_ip: IPAddress
    container_port: int
    protocol: Protocol


@dataclass(frozen=True, slots=True)
class Lookup:
    """A name that was looked up, from where the flow begins, and what came of it.

    `error` is None, or one of the words below. `upstreams` are whom Docker's own server asks, as
    far as that is known. `answering` are those of them, or of `servers`, that answer the host.
    """

    name: str
    servers: tuple[str, ...]
    seconds: float = 0.0
    address: IPAddress | None = None
    error: str | None = None
    answering: tuple[str, ...] = ()
    upstreams: tuple[str, ...] = ()


NO_SUCH_NAME, NO_ANSWER, NO_SERVER = "no such name", "no answer", "no name server"


@dataclass(frozen=True, slots=True)
class Stopped:
    """A container that does not run: what Docker says of it, and who has its ports of the host.

    `taken` are pairs of a place and its owner.
    """

    error: str
    taken: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Flow:
    """What is asked about; without a port it is asked whether the address is reached at all."""

    source: Party
    destination: Party
    protocol: Protocol
    port: int | None

    def __str__(self) -> str:
        """Return it as people write it."""
        port = "" if self.port is None else f":{self.port}/{self.protocol.value}"
        return f"{self.source.name} > {self.destination.name}{port}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A rule, or a chain's policy, that dropped the probe."""

    family: str
    table: str
    chain: str
    hook: str
    rule: str | None

    @property
    def place(self) -> str:
        """What dropped it, in a few words."""
        by = "policy drop" if self.rule is None else self.rule
        return f"{self.family} {self.table} {self.chain}, {by}"


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of trying: `outcome` is "connected", "refused", "silent" or an error's words.

    `seen` are the hops at which the probe was seen, `answered` whether anything came back at the
    last of them. `drop` is what a trace has shown of a firewall: the host's, or that of the sandbox
    `drop_in`. `translation` is another program's rule that sent it elsewhere. `left_as` is the
    address that it left the host from. `risen` are counters that have risen meanwhile, by what they
    count, and by where if that is not the host.
    """

    outcome: str
    seconds: float
    seen: tuple[str, ...] = ()
    is_answered: bool = False
    drop: Verdict | None = None
    drop_in: str | None = None
    translation: str | None = None
    left_as: IPAddress | None = None
    risen: Mapping[str, int] = field(default_factory=dict)

    @property
    def passes(self) -> bool:
        """Whether there is somebody who answers."""
        return self.outcome == CONNECTED


CONNECTED, REFUSED, SILENT = "connected", "refused", "silent"
# What `risen` counts.
NO_TRANSLATION, WRONG_SUM, NO_ROOM = "insert_failed", "wrong checksum", "no room"


@dataclass(frozen=True, slots=True)
class Drift:
    """Something that the driver says is not as it should be, with the words that help."""

    kind: str
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known of a flow.

    `sandbox` is the source's view, `other` the destination's; None where there is none. `leaving`
    is the way in the source's sandbox, `passing` that through the host, `returning` the answer's in
    the destination's sandbox. `arriving` is the host's interface by which the flow comes to it.
    `published` is None where Docker could not be asked. `stale` are the answerers of tracked flows
    of a published port that lead elsewhere than to the container. `is_large_lost` tells that a
    packet as large as the source's interface takes was lost on the way, without a word to it.
    `legacy` are the tables of iptables-legacy. `not_seen` says what could not be looked at.
    """

    flow: Flow
    host: View
    sandbox: View | None = None
    other: View | None = None
    leaving: Way | None = None
    passing: Way | None = None
    returning: Way | None = None
    published: tuple[Published, ...] | None = ()
    drift: tuple[Drift, ...] = ()
    probe: Probe | None = None
    not_seen: tuple[str, ...] = ()
    arriving: str | None = None
    lookup: Lookup | None = None
    stopped: Stopped | None = None
    stale: tuple[IPAddress, ...] = ()
    is_large_lost: bool = False
    legacy: tuple[str, ...] = ()


def host_end_of(link: Interface, host: View) -> Interface | None:
    """Return the host's end of an interface of a sandbox."""
    end = host.at(link.other_end)
    return end if end is not None and end.moved and end.other_end == link.index else None


def bridge_of(view: View | None, ip: IPAddress | None, host: View) -> str | None:
    """Return the bridge behind which a sandbox has an address, None for none."""
    link = view.owner_of(ip) if view is not None and ip is not None else None
    end = host_end_of(link, host) if link is not None else None
    return end.master if end is not None else None
