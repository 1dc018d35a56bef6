"""What is known of a flow and of the namespaces on its way, as values; no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from driver.model import IPAddress, IPInterface, Protocol

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

    An unspecified IPv6 address takes IPv4 as well unless `is_v6_only`.
    """

    protocol: Protocol
    ip: IPAddress
    port: int
    owner: str
    is_v6_only: bool = False
    waiting: int = 0
    backlog: int = 0

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
    """

    interfaces: Mapping[str, Interface]
    listeners: tuple[Listener, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    silent: frozenset[IPAddress] = frozenset()
    macs: Mapping[IPAddress, str] = field(default_factory=dict)

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
    last of them. `drop` is what a trace has shown of a firewall.
    """

    outcome: str
    seconds: float
    seen: tuple[str, ...] = ()
    is_answered: bool = False
    drop: Verdict | None = None


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
    `not_seen` says what could not be looked at.
    """

    flow: Flow
    host: View
    sandbox: View | None = None
    other: View | None = None
    leaving: Way | None = None
    passing: Way | None = None
    returning: Way | None = None
    published: tuple[Published, ...] = ()
    drift: tuple[Drift, ...] = ()
    probe: Probe | None = None
    not_seen: tuple[str, ...] = ()
    arriving: str | None = None
