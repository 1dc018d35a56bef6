"""Networks, endpoints, port bindings and sysctls as values, and their transitions; no I/O."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import TYPE_CHECKING, NewType

from driver.errors import Conflict, InvalidRequest, KernelError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network

NetworkId = NewType("NetworkId", str)
EndpointId = NewType("EndpointId", str)
SandboxKey = NewType("SandboxKey", str)
MacAddress = NewType("MacAddress", str)

DEFAULT_MTU = 1500
DEFAULT_PREFIX = "eth"
IFNAME_LENGTH = 15  # IFNAMSIZ less the closing NUL, include/uapi/linux/if.h
# The kernel has 1,023 ports a bridge (BR_MAX_PORTS in net/bridge/br_private.h). Some are for the
# trunks to extra bridges, and for what the host's administrator puts there.
BRIDGE_PORTS = 1000
PARTS = range(1, 10)  # one digit of an interface's name
ID_LENGTH = 12  # what `docker ps` and `docker network ls` show of an id

_ID = re.compile(r"[0-9a-z]{12,64}")  # 64 hex from the engine, 25 of [0-9a-z] from swarm
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_IFNAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*")
_DISABLE_IPV6 = re.compile(r"net\.ipv6\.conf\.(all|default|IFNAME)\.disable_ipv6")
_MULTICAST_BIT = 0x01


def parse_network_id(text: str) -> NetworkId:
    """Return the text as a network id; raises InvalidRequest for anything that is not one."""
    return NetworkId(_parse_id(text, "network"))


def parse_endpoint_id(text: str) -> EndpointId:
    """Return the text as an endpoint id; raises InvalidRequest for anything that is not one."""
    return EndpointId(_parse_id(text, "endpoint"))


def _parse_id(text: str, what: str) -> str:
    if not _ID.fullmatch(text):
        raise InvalidRequest(f"{text[:80]!r} is no {what} id: 12 to 64 characters of 0-9 and a-z")
    return text


def parse_mac(text: str) -> MacAddress:
    """Return the text as a unicast MAC address in lower case; raises InvalidRequest otherwise."""
    mac = text.lower()
    if not _MAC.fullmatch(mac):
        raise InvalidRequest(f"{text[:80]!r} is no MAC address: expected aa:bb:cc:dd:ee:ff")
    if int(mac[:2], 16) & _MULTICAST_BIT:
        raise InvalidRequest(f"{mac} is a multicast MAC address; an interface needs a unicast one")
    return MacAddress(mac)


def has_zone(address: IPAddress | IPInterface) -> bool:
    """Return whether an address has a zone (fe80::1%eth0), which may be any text at all.

    No zone may come into nft text, and none has a meaning here.
    """
    return isinstance(address, IPv6Address) and address.scope_id is not None


def short(identity: str) -> str:
    """Return the part of an id that Docker shows to people."""
    return identity[:ID_LENGTH]


def derive_mac(address: IPAddress) -> MacAddress:
    """Return the MAC address that belongs to an address: the same address, the same MAC.

    A neighbour's ARP or NDP cache then stays right when a container comes back on its address.
    IPv4 shows itself in the last four bytes, as with Docker's built-in bridge (02:42:ip);
    IPv6 is hashed. Both are locally administered unicast addresses.
    """
    if isinstance(address, IPv4Address):
        tail = b"\x42" + address.packed
    else:
        tail = hashlib.sha256(address.packed).digest()[:5]
    return MacAddress((b"\x02" + tail).hex(":"))


def hash_mac(identity: str) -> MacAddress:
    """Return the MAC address of an endpoint that has no address: the same id, the same MAC."""
    return MacAddress((b"\x02" + hashlib.sha256(identity.encode()).digest()[:5]).hex(":"))


def derive_link_local(mac: MacAddress) -> IPv6Address:
    """Return the link-local address that the kernel makes of a MAC address (RFC 4291, A)."""
    raw = bytes.fromhex(mac.replace(":", ""))
    host = bytes([raw[0] ^ 0x02]) + raw[1:3] + b"\xff\xfe" + raw[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + host)


@dataclass(frozen=True, slots=True)
class Sysctl:
    """One kernel parameter that a network or an endpoint asks for.

    `key` is dotted, in lower case, and may hold the component `IFNAME`, which stands for the
    name that the interface has in the sandbox.
    """

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Trace:
    """What this driver did to one parameter of one sandbox.

    `before` is what it takes to put it back; `written` is what the kernel showed right after.
    """

    key: str
    before: str
    written: str


@dataclass(frozen=True, slots=True)
class SysctlWrite:
    """A value for one parameter of one sandbox, as long as the kernel shows an expected one there.

    Any other value is a process's of the container, written since the parameter was read.
    """

    key: str
    value: str
    expected: frozenset[str]

    def replaces(self, value: str) -> bool:
        """Return whether a value is an expected one, however its numbers are separated."""
        return value.split() in [each.split() for each in self.expected]


@dataclass(frozen=True, slots=True)
class Pool:
    """One subnet of a network, the gateway address in it, and who gave it out.

    `default_gateway` is where containers send what leaves, if that is not the bridge (the aux
    addresses DefaultGatewayIPv4 and DefaultGatewayIPv6).

    Within one address space Docker's address management never hands out overlapping pools.
    """

    subnet: IPNetwork
    gateway: IPInterface | None
    address_space: str = ""
    default_gateway: IPAddress | None = None

    def overlaps(self, other: Pool) -> bool:
        """Return whether the two subnets share an address.

        A subnet of length 0 is the null address manager's way of saying that there is none.
        """
        if 0 in (self.subnet.prefixlen, other.subnet.prefixlen):
            return False
        return (
            self.subnet.network_address in other.subnet
            or other.subnet.network_address in self.subnet
        )


class GatewayMode(StrEnum):
    """How a network's containers and the rest of the world reach each other, for one family."""

    NAT = "nat"  # out through the host's address, in through published ports only
    NAT_UNPROTECTED = "nat-unprotected"  # the same, and container addresses are open to all
    ROUTED = "routed"  # no translation; published ports are reached by the container's address
    ISOLATED = "isolated"  # no address on the bridge: not even the host is there

    @property
    def translates(self) -> bool:
        """Whether addresses are translated: masquerading, and ports published on the host."""
        return self in {GatewayMode.NAT, GatewayMode.NAT_UNPROTECTED}


class Attach(StrEnum):
    """Who puts the interface into the sandbox."""

    HANDOVER = "handover"  # libnetwork moves, names and addresses it; works everywhere
    DIRECT = "direct"  # the driver makes it there, complete; engine 28 and later


class Publish(StrEnum):
    """Who publishes ports."""

    PYNET = "pynet"
    DOCKER = "docker"  # Docker, through docker_gwbridge: `docker ps` shows them


class Guard(StrEnum):
    """What an endpoint may send, as its port on the bridge enforces it."""

    OFF = "off"  # anything, from any source: for containers that route foreign addresses
    NETWORK = "network"  # what the host sees has a source of the network's subnets
    ADDRESS = "address"  # the endpoint's own MAC and addresses only


@dataclass(frozen=True, slots=True)
class GuardAlso:
    """Addresses that endpoints may send with besides their own, such as a VRRP router's."""

    ipv4: tuple[IPv4Address, ...] = ()
    ipv6: tuple[IPv6Address, ...] = ()
    macs: tuple[MacAddress, ...] = ()

    def __add__(self, other: GuardAlso) -> GuardAlso:
        """Return what either of the two permits."""
        return GuardAlso(
            tuple(dict.fromkeys(self.ipv4 + other.ipv4)),
            tuple(dict.fromkeys(self.ipv6 + other.ipv6)),
            tuple(dict.fromkeys(self.macs + other.macs)),
        )


class Protocol(StrEnum):
    """A transport protocol whose ports can be published."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


@dataclass(frozen=True, slots=True)
class PortRequest:
    """One `-p` of a container: any host address if `host_ip` is None, any port if `first` is 0."""

    protocol: Protocol
    container_port: int
    host_ip: IPAddress | None
    first: int
    last: int


@dataclass(frozen=True, slots=True, order=True)
class HostPort:
    """A place on the host where a port is published; the unspecified address means all of them."""

    protocol: Protocol
    ip: IPAddress
    port: int

    def collides(self, other: HostPort) -> bool:
        """Return whether bind(2) takes only one of the two: all addresses collide with each."""
        if (self.protocol, self.port) != (other.protocol, other.port):
            return False
        same_family = self.ip.version == other.ip.version
        is_any = self.ip.is_unspecified or other.ip.is_unspecified
        return same_family and (is_any or self.ip == other.ip)

    def __str__(self) -> str:
        """Return it as `docker ps` writes it: 0.0.0.0:8080/tcp, [::]:8080/tcp."""
        ip = f"[{self.ip}]" if self.ip.version == 6 else str(self.ip)  # noqa: PLR2004
        return f"{ip}:{self.port}/{self.protocol}"


class BridgeFull(KernelError):  # noqa: N818 - it is what the bridge is
    """The kernel has no port left on the bridge."""


class PortInUse(Conflict):
    """The host port `place` is in use."""

    def __init__(self, text: str, place: HostPort) -> None:
        super().__init__(text)
        self.place = place


@dataclass(frozen=True, slots=True)
class PortBinding:
    """A published port; `host` is None where the network is routed and nothing is translated."""

    protocol: Protocol
    container_ip: IPAddress
    container_port: int
    host: HostPort | None

    @property
    def is_translated(self) -> bool:
        """Whether the kernel leads what comes to the host's port to the container's.

        Not from the host's ::1: the kernel takes a reply to that only from an interface that has
        ::1 as a local address (rt6_need_strict()), and IPv6 has no route_localnet.
        """
        if self.host is None or self.host.ip.version != self.container_ip.version:
            return False
        return self.host.ip.version == 4 or not self.host.ip.is_loopback  # noqa: PLR2004

    @property
    def is_relayed(self) -> bool:
        """Whether something that comes to the host's port only a relay can lead there.

        The kernel translates between addresses of one family, forwards nothing that has a
        link-local source or comes from ::1, and takes broadcast and multicast for the host's own.
        """
        if self.host is None or self.protocol is Protocol.SCTP:
            return False
        if self.host.ip.version == 4:  # noqa: PLR2004
            return self.protocol is Protocol.UDP and self.host.ip.is_unspecified
        return True


@dataclass(frozen=True, slots=True)
class Relay:
    """A host port that the relay serves, and where it connects to.

    `proxy_protocol` tells whether it says there who its client is.
    """

    place: HostPort
    ip: IPAddress
    port: int
    proxy_protocol: bool = False


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """What the person who made the network asked for, each with its default."""

    bridge_name: str | None = None
    mtu: int = DEFAULT_MTU
    ifname_prefix: str = DEFAULT_PREFIX
    internal: bool = False
    sysctls: tuple[Sysctl, ...] = ()
    masquerade: bool = True
    icc: bool = True
    gateway_mode_ipv4: GatewayMode = GatewayMode.NAT
    gateway_mode_ipv6: GatewayMode = GatewayMode.NAT
    host_binding_ipv4: IPv4Address | None = None
    host_binding_ipv6: IPv6Address | None = None
    host_ipv4: IPv4Address | None = None
    host_ipv6: IPv6Address | None = None
    inhibit_ipv4: bool = False
    trusted_host_interfaces: tuple[str, ...] = ()
    attach: Attach | None = None  # None for what suits each endpoint: see `attaches_directly`
    publish: Publish = Publish.PYNET
    proxy_protocol: bool = False
    inherit: tuple[str, ...] = ()
    priority: int = 0  # of the parameters, over those of a container's other networks
    guard: Guard | None = None  # None for the network's default: see `Network.guard`
    guard_also: GuardAlso = GuardAlso()
    connections: int | None = None  # an endpoint's at a time, None for as many as it likes
    without_effect: tuple[str, ...] = ()  # labels of Docker's bridge that mean nothing here

    def gateway_mode(self, version: int) -> GatewayMode:
        """Return the gateway mode of an address family, 4 or 6."""
        return self.gateway_mode_ipv4 if version == 4 else self.gateway_mode_ipv6  # noqa: PLR2004

    def source_address(self, version: int) -> IPAddress | None:
        """Return the address that outgoing traffic of a family gets, None for the interface's."""
        return self.host_ipv4 if version == 4 else self.host_ipv6  # noqa: PLR2004


@dataclass(frozen=True, slots=True)
class Bridge:
    """The Linux bridge that a network has on the host.

    `routes_loopback` lets the host's own 127.0.0.1 reach ports published by the network.
    """

    name: str
    alias: str
    mac: MacAddress
    mtu: int
    addresses: tuple[IPInterface, ...]
    must_be_ours: bool
    routes_loopback: bool = False

    @property
    def required_alias(self) -> str | None:
        """What the link of its name has to carry, None if it may be another program's."""
        return self.alias if self.must_be_ours else None

    @property
    def link_local(self) -> IPv6Interface | None:
        """Its link-local address; None for a bridge without IPv6, on which that is off."""
        if all(address.version == 4 for address in self.addresses):  # noqa: PLR2004
            return None
        return IPv6Interface((derive_link_local(self.mac), 64))


@dataclass(frozen=True, slots=True)
class Traffic:
    """What has passed an endpoint's link since it was made, as its container counts it.

    Dropped on its way to the container, and on its way from it at the host's end: the container's
    own end counts what it does not even hand over.
    """

    received_bytes: int
    received_packets: int
    sent_bytes: int
    sent_packets: int
    received_dropped: int
    sent_dropped: int


@dataclass(frozen=True, slots=True)
class Count:
    """What a counter of nftables has counted since the tables were made."""

    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class RuleCount:
    """A rule as `base.nft` has it, in a chain of a table, and the packets that it applied to."""

    table: str
    chain: str
    rule: str
    count: Count


@dataclass(frozen=True, slots=True)
class Usage:
    """The tracked connections of something: how many are open, and what has passed them.

    `traffic` is None while the kernel does not count it (net.netfilter.nf_conntrack_acct).
    """

    connections: int
    traffic: Count | None = None


@dataclass(frozen=True, slots=True)
class Drops:
    """Packets that were dropped, by reason (a counter each in `base.nft`).

    `totals` since the tables were made; `by_interface` by the interface that a packet came by, for
    interfaces by which any came within the last day.
    """

    totals: Mapping[str, int]
    by_interface: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Veth:
    """The pair that joins an endpoint to its bridge: host end there, sandbox end for it.

    `hairpin` lets a frame go back where it came from: a container's own published port.
    `bridge_alias` is what the bridge has to carry, None if it may be another program's.
    """

    host_end: str
    sandbox_end: str
    alias: str
    bridge: str
    mac: MacAddress
    mtu: int
    hairpin: bool = False
    bridge_alias: str | None = None


@dataclass(frozen=True, slots=True)
class DirectInterface:
    """How the driver itself configures a sandbox end, when it attaches directly.

    `name` is None for the next free number after `prefix`. `announced` tells whether neighbours are
    to hear where the addresses are.
    """

    name: str | None
    prefix: str
    addresses: tuple[IPInterface, ...]
    announced: bool = False


@dataclass(frozen=True, slots=True)
class Network:
    """A network as Docker defined it, once, in CreateNetwork.

    `parts` are the extra bridges that it has come to need since, by number. `shared` tells
    whether its bridge was another program's when the network was created: other hosts may be on
    that bridge, and the network's subnet may be theirs, too.
    """

    id: NetworkId
    pools: tuple[Pool, ...]
    options: NetworkOptions = field(default_factory=NetworkOptions)
    parts: tuple[int, ...] = field(default=(), compare=False)
    shared: bool = field(default=False, compare=False)

    @property
    def bridge_name(self) -> str:
        """The bridge's interface name: the user's, or `pn-` and the short id."""
        return self.options.bridge_name or f"pn-{short(self.id)}"

    @property
    def gateways(self) -> tuple[IPInterface, ...]:
        """The gateway addresses of all pools, in the order Docker gave them."""
        return tuple(pool.gateway for pool in self.pools if pool.gateway is not None)

    @property
    def bridge(self) -> Bridge:
        """The bridge that this network needs on the host."""
        # Without a gateway any address of the subnets may be a container's, and its MAC with it.
        mac = derive_mac(self.gateways[0].ip) if self.gateways else hash_mac(self.id)
        return Bridge(
            name=self.bridge_name,
            alias=network_alias(self.id),
            mac=mac,
            mtu=self.options.mtu,
            addresses=tuple(filter(self._is_on_bridge, self.gateways)),
            must_be_ours=not self.shared,
            routes_loopback=self.publishes(4),
        )

    @property
    def bridges(self) -> tuple[Bridge, ...]:
        """All bridges of the network, the first one first."""
        return (self.bridge, *map(self.part, self.parts))

    @property
    def trunks(self) -> tuple[Veth, ...]:
        """The pairs that join the extra bridges to the first one."""
        return tuple(map(self.trunk, self.parts))

    @property
    def macs(self) -> frozenset[MacAddress]:
        """The MAC addresses that the network has itself, which no endpoint may have."""
        bridges = (bridge.mac for bridge in self.bridges)
        return frozenset((*bridges, *(trunk.mac for trunk in self.trunks)))

    def part(self, number: int) -> Bridge:
        """Return the extra bridge of a number from 1 on; the host has no address on it."""
        return Bridge(
            name=self.bridge_at(number),
            alias=f"pynet part {number} of network {self.id}",
            mac=hash_mac(f"part {number} of {self.id}"),
            mtu=self.options.mtu,
            addresses=(),
            must_be_ours=True,
        )

    def trunk(self, number: int) -> Veth:
        """Return the pair between the first bridge, where its host end is, and a further one.

        A frame may go back where it came from: br_netfilter translates on the first bridge, and the
        published port may be of a neighbour on the further one.
        """
        return Veth(
            host_end=f"pnu{number}{self.id[: ID_LENGTH - 1]}",
            sandbox_end=f"pnd{number}{self.id[: ID_LENGTH - 1]}",
            alias=f"pynet joint {number} of network {self.id}",
            bridge=self.bridge_name,
            mac=hash_mac(f"joint {number} of {self.id}"),
            mtu=self.options.mtu,
            hairpin=True,
            bridge_alias=self.bridge.required_alias,
        )

    def bridge_at(self, number: int) -> str:
        """Return the name of the bridge of a number, 0 for the first."""
        return f"pn{number}{short(self.id)}" if number else self.bridge_name

    def _is_on_bridge(self, gateway: IPInterface) -> bool:
        if gateway.version == 4 and self.options.inhibit_ipv4:  # noqa: PLR2004
            return False
        return self.options.gateway_mode(gateway.version) is not GatewayMode.ISOLATED

    def has_family(self, version: int) -> bool:
        """Return whether the network has a pool of an address family, 4 or 6."""
        return any(pool.subnet.version == version for pool in self.pools)

    def subnets(self, version: int) -> tuple[IPNetwork, ...]:
        """Return the subnets of an address family; the null address manager's is none."""
        found = (pool.subnet for pool in self.pools if pool.subnet.version == version)
        return tuple(subnet for subnet in found if subnet.prefixlen)

    @property
    def guard(self) -> Guard:
        """The guard of endpoints that ask for none themselves.

        Where containers must not reach each other, or nothing outside, a forged address would be
        the way around that. Without a subnet there is no telling which sources are right.
        """
        options = self.options
        if options.guard is not None:
            return options.guard
        if not self.subnets(4) + self.subnets(6):
            return Guard.OFF
        if not options.icc or options.internal or options.connections is not None:
            return Guard.ADDRESS
        return Guard.NETWORK

    def refuse_guard(self, guard: Guard) -> None:
        """Raise InvalidRequest for a guard that cannot hold on this network."""
        if guard is not Guard.OFF and not self.subnets(4) + self.subnets(6):
            raise InvalidRequest(
                f"pynet.guard={guard}: the network has no subnet to tell sources by"
            )

    def refuse_sysctls(self, sysctls: Iterable[Sysctl]) -> None:
        """Raise InvalidRequest for parameters that contradict the network itself.

        libnetwork turns IPv6 on again on an interface with an IPv6 address, which the driver gets
        to know only afterwards.
        """
        for sysctl in sysctls:
            name = _DISABLE_IPV6.fullmatch(sysctl.key)
            if name and self.has_family(6) and sysctl.value.strip() != "0":
                raise InvalidRequest(
                    f"{sysctl.key}={sysctl.value}: the network has IPv6, and the engine turns it "
                    "on; make the network without IPv6, or have the container do without by its "
                    "own --sysctl net.ipv6.conf.all.disable_ipv6=1"
                )

    def publishes(self, version: int) -> bool:
        """Return whether ports of the network can be published on the host in an address family."""
        options = self.options
        return (
            self.has_family(version)
            and not options.internal
            and options.publish is Publish.PYNET
            and options.gateway_mode(version).translates
        )

    def forwards(self, version: int) -> bool:
        """Return whether the host must forward packets of a family for this network."""
        return self.has_family(version) and not self.options.internal

    def clash(self, other: Network) -> str | None:
        """Return why this new network cannot live beside the other, None if it can."""
        if self.bridge_name == other.bridge_name:
            return f"bridge {self.bridge_name} is network {short(other.id)}'s; one serves one"
        for pool in self.pools:
            for theirs in other.pools:
                if pool.overlaps(theirs):
                    return f"subnet {pool.subnet} overlaps {theirs.subnet} of {short(other.id)}"
        return None

    def supersedes(self, other: Network) -> bool:
        """Return whether the other network must be dead because this one was given its addresses.

        Docker ignores the errors of DeleteNetwork and never sends it to a driver that is down,
        so a network that Docker forgot can be left here; its addresses are then handed out anew.
        """
        return any(
            pool.overlaps(theirs) and pool.address_space == theirs.address_space != ""
            for pool in self.pools
            for theirs in other.pools
        )

    def contains(self, address: IPInterface) -> bool:
        """Return whether the address is of one of the network's pools."""
        return any(address.ip in pool.subnet for pool in self.pools)

    def gateway_for(self, address: IPInterface | None) -> IPAddress | None:
        """Return the gateway that a container with this address uses, None if it has none.

        An internal network hands out none: libnetwork installs whatever a driver returns, even
        there.
        """
        if address is None or self.options.internal or self.options.publish is Publish.DOCKER:
            return None
        for pool in self.pools:
            if address.ip in pool.subnet:
                return pool.default_gateway or (pool.gateway.ip if pool.gateway else None)
        return None


@dataclass(frozen=True, slots=True)
class Attachment:
    """That an endpoint has joined a sandbox, and whether its interface has its parameters.

    `configured` also tells that the sandbox has been seen: on engines up to 27 it comes after Join.
    `inherited` is what its network's patterns found on the host at that moment.
    `bridge` is the number of the network's bridge that its host end is on. `wants_ports` tells
    whether its container publishes any, `direct` whether the driver made the interface in the
    sandbox by itself.
    """

    sandbox: SandboxKey
    configured: bool = False
    inherited: tuple[Sysctl, ...] = ()
    bridge: int = 0
    wants_ports: bool = False
    direct: bool = False


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """What an endpoint asks for in place of its network's options; None for the network's."""

    guard: Guard | None = None
    guard_also: GuardAlso = GuardAlso()
    connections: int | None = None
    recovered: bool = False  # known from its link alone, after the state file was lost


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A container's place in a network, from CreateEndpoint to DeleteEndpoint.

    `engine_keys` are the per-interface parameters that the engine itself writes for it.
    """

    id: EndpointId
    network_id: NetworkId
    ipv4: IPv4Interface | None
    ipv6: IPv6Interface | None
    mac: MacAddress
    sysctls: tuple[Sysctl, ...] = ()
    engine_keys: frozenset[str] = frozenset()
    ifname: str | None = None
    options: EndpointOptions = EndpointOptions()
    attachment: Attachment | None = None
    bindings: tuple[PortBinding, ...] = ()

    @property
    def addresses(self) -> tuple[IPInterface, ...]:
        """The addresses that Docker gave the endpoint, IPv4 first."""
        return tuple(address for address in (self.ipv4, self.ipv6) if address is not None)

    @property
    def is_in_rules(self) -> bool:
        """Whether the firewall has a place for it; the frames of all others are dropped."""
        return self.attachment is not None or self.options.recovered

    @property
    def is_direct(self) -> bool:
        """Whether the driver made its interface in the sandbox by itself."""
        return self.attachment is not None and self.attachment.direct

    def joined(
        self,
        sandbox: SandboxKey,
        inherited: tuple[Sysctl, ...] = (),
        *,
        wants_ports: bool = False,
        direct: bool = False,
    ) -> Endpoint:
        """Return the endpoint attached to the sandbox; raises Conflict if it is in another.

        It keeps what it inherited when it joined first.
        """
        if self.attachment is not None and self.attachment.sandbox != sandbox:
            raise Conflict(
                f"join endpoint {short(self.id)} to {sandbox}: it is in "
                f"{self.attachment.sandbox} and has not left"
            )
        attachment = self.attachment or Attachment(
            sandbox, inherited=inherited, wants_ports=wants_ports, direct=direct
        )
        return replace(self, attachment=attachment)

    def on_bridge(self, number: int) -> Endpoint:
        """Return the attached endpoint on the network's bridge of that number."""
        if self.attachment is None:
            return self
        return replace(self, attachment=replace(self.attachment, bridge=number))

    def configured(self) -> Endpoint:
        """Return the endpoint with its interface's parameters written."""
        if self.attachment is None:
            return self
        return replace(self, attachment=replace(self.attachment, configured=True))

    def left(self) -> Endpoint:
        """Return the endpoint out of its sandbox; leaving twice is leaving."""
        return replace(self, attachment=None)

    def published(self, bindings: tuple[PortBinding, ...]) -> Endpoint:
        """Return the endpoint with these ports published, in place of those it had."""
        return replace(self, bindings=bindings)

    def address(self, version: int) -> IPInterface | None:
        """Return the endpoint's address of a family, 4 or 6."""
        return self.ipv4 if version == 4 else self.ipv6  # noqa: PLR2004

    def only(self, families: Collection[int]) -> Endpoint:
        """Return the endpoint as it is to publish: without its addresses of other families."""
        return replace(
            self,
            ipv4=self.ipv4 if 4 in families else None,  # noqa: PLR2004
            ipv6=self.ipv6 if 6 in families else None,  # noqa: PLR2004
        )

    def definition(self) -> Endpoint:
        """Return what CreateEndpoint defined, without what happened since: for comparisons."""
        return replace(self, attachment=None, bindings=())

    def without(self, addresses: Iterable[IPInterface]) -> Endpoint:
        """Return the endpoint without these addresses, and without the ports published to them."""
        lost = {address.ip for address in addresses}
        return replace(
            self,
            ipv4=None if self.ipv4 is None or self.ipv4.ip in lost else self.ipv4,
            ipv6=None if self.ipv6 is None or self.ipv6.ip in lost else self.ipv6,
            bindings=tuple(each for each in self.bindings if each.container_ip not in lost),
        )

    def shares_address(self, other: Endpoint) -> bool:
        """Return whether this endpoint was given an address that another one of the network has.

        Docker's address management hands out no address twice, but after a crash it forgets
        endpoints without telling a v1 driver, and engine 29 takes back one of two addresses.
        """
        if self.network_id != other.network_id or self.id == other.id:
            return False
        mine = {address.ip for address in self.addresses}
        return any(address.ip in mine for address in other.addresses)


def guard_of(endpoint: Endpoint, network: Network) -> Guard:
    """Return the guard of an endpoint: its own, or the network's."""
    if endpoint.options.guard is not None:
        return endpoint.options.guard
    if endpoint.options.connections is not None and network.options.guard is None:
        return Guard.ADDRESS
    return network.guard


def connections_of(endpoint: Endpoint, network: Network) -> int | None:
    """Return how many connections an endpoint may have at a time; None for no limit."""
    own = endpoint.options.connections
    return network.options.connections if own is None else own


def veth_of(endpoint: Endpoint, network: Network) -> Veth:
    """Return the veth pair that joins the endpoint to the network's bridge.

    With hairpin as soon as its container publishes ports: they may be programmed later, or by
    another of its endpoints for now.
    """
    attachment = endpoint.attachment
    number = attachment.bridge if attachment else 0
    bridge = network.part(number) if number else network.bridge
    return Veth(
        host_end=host_end_name(endpoint.id),
        sandbox_end=sandbox_end_name(endpoint.id),
        alias=endpoint_alias(endpoint.network_id, endpoint.id),
        bridge=bridge.name,
        mac=endpoint.mac,
        mtu=network.options.mtu,
        hairpin=bool(endpoint.bindings or (attachment and attachment.wants_ports)),
        bridge_alias=bridge.required_alias,
    )


def find_room(taken: Mapping[int, int]) -> Iterator[int]:
    """Yield the numbers of the bridges that have room, given how many endpoints are on each.

    The lowest first, so that a network with few endpoints has one bridge.
    """
    return (number for number in (0, *PARTS) if taken.get(number, 0) < BRIDGE_PORTS)


def attaches_directly(endpoint: Endpoint, network: Network, *, has_sandbox: bool) -> bool:
    """Return whether the driver makes the endpoint's interface in the sandbox by itself.

    As the network says. Else where the endpoint asks for a name that the engine would not give: it
    takes none from a driver before 29.8. Not if the sandbox is yet to come (engines up to 27), if
    the engine has parameters of its own to write into the interface, or if it may give the name to
    an interface of another network, by its prefix.
    """
    if network.options.attach is not None:
        return network.options.attach is Attach.DIRECT
    if endpoint.ifname is None or endpoint.engine_keys or not has_sandbox:
        return False
    return not _is_numbered(endpoint.ifname, network.options.ifname_prefix)


def _is_numbered(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and name[len(prefix) :].isdigit()


def takes_name_of(direct: Endpoint, theirs: Network, ours: Network) -> bool:
    """Return whether a directly attached interface may have the name that libnetwork gives another.

    libnetwork numbers the interfaces that it names itself by prefix, whatever is there already, and
    joins a container's networks in random order.
    """
    prefix = theirs.options.ifname_prefix
    if direct.ifname is None:
        return ours.options.ifname_prefix == prefix
    return _is_numbered(direct.ifname, prefix)


def host_end_name(endpoint_id: EndpointId) -> str:
    """Return the interface name of the endpoint's host end."""
    return f"pnh{short(endpoint_id)}"


def sandbox_end_name(endpoint_id: EndpointId) -> str:
    """Return the name that the endpoint's sandbox end has while it is in the host's namespace."""
    return f"pnc{short(endpoint_id)}"


def network_alias(network_id: NetworkId) -> str:
    """Return the interface alias that marks a bridge as the network's.

    The whole id, so that `ip -d link` explains itself and a lost state file can be rebuilt.
    """
    return f"pynet network {network_id}"


def endpoint_alias(network_id: NetworkId, endpoint_id: EndpointId) -> str:
    """Return the interface alias that marks a host end as the endpoint's."""
    return f"pynet endpoint {endpoint_id} network {network_id}"


def is_plain_ifname(name: str) -> bool:
    """Return whether an interface name is one that may stand in nft text and in a path."""
    plain = _IFNAME.fullmatch(name) is not None
    return plain and len(name) <= IFNAME_LENGTH and name not in {".", ".."}


def is_our_alias(alias: str) -> bool:
    """Return whether an interface alias is one that this driver wrote."""
    return alias.startswith(("pynet network ", "pynet endpoint ", "pynet part ", "pynet joint "))


@dataclass(frozen=True, slots=True)
class JoinInfo:
    """What libnetwork needs to finish a join: the interface to move, its name, the gateways.

    `sandbox_end` is None when the interface is in the sandbox already. `ifname` is the name that
    was asked for, None for the next number after the prefix.
    """

    sandbox_end: str | None
    ifname_prefix: str
    gateway: IPAddress | None
    gateway_ipv6: IPAddress | None
    ifname: str | None = None
