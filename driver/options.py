"""Parse the options of `docker network create` and of endpoints into values; no I/O.

Whatever is not known is refused by name, with the nearest known one, since an option that is
silently ignored is found out at 3 a.m.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, TypeVar

from driver.errors import InvalidRequest
from driver.model import (
    DEFAULT_MTU,
    DEFAULT_PREFIX,
    IFNAME_LENGTH,
    Attach,
    EndpointOptions,
    GatewayMode,
    Guard,
    GuardAlso,
    NetworkOptions,
    Publish,
    Sysctl,
    has_zone,
    is_plain_ifname,
    parse_mac,
)
from driver.sysctl.policy import (
    IFNAME,
    is_of_interface,
    is_sysctl,
    merge,
    parse_endpoint_label,
    parse_key,
    parse_pattern,
    parse_sysctl,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from driver.model import IPAddress, MacAddress

T = TypeVar("T")
Word = TypeVar("Word", bound=StrEnum)
Address = TypeVar("Address", IPv4Address, IPv6Address)

MIN_MTU = 68  # RFC 791; also ETH_MIN_MTU, which the kernel enforces
MIN_IPV6_MTU = 1280  # RFC 8200 section 5; below it the kernel takes IPv6 off the interface
MAX_MTU = 65535  # ETH_MAX_MTU, include/uapi/linux/if_ether.h
MAX_PRIORITY = 999_999
MAX_CONNECTIONS = 2**32 - 1  # nft_connlimit's limit is 32 bits wide
PREFIX_LENGTH = IFNAME_LENGTH - 3  # room for the number that libnetwork appends

MTU = "com.docker.network.driver.mtu"
BRIDGE_NAME = "com.docker.network.bridge.name"
IFACE_PREFIX = "com.docker.network.container_iface_prefix"
MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
ICC = "com.docker.network.bridge.enable_icc"
GATEWAY_MODE_IPV4 = "com.docker.network.bridge.gateway_mode_ipv4"
GATEWAY_MODE_IPV6 = "com.docker.network.bridge.gateway_mode_ipv6"
HOST_BINDING = "com.docker.network.bridge.host_binding_ipv4"
INHIBIT_IPV4 = "com.docker.network.bridge.inhibit_ipv4"
TRUSTED = "com.docker.network.bridge.trusted_host_interfaces"
HOST_IPV4 = "com.docker.network.host_ipv4"
HOST_IPV6 = "com.docker.network.host_ipv6"
ATTACH = "pynet.attach"
PUBLISH = "pynet.publish"
PROXY_PROTOCOL = "pynet.publish.proxy_protocol"
INHERIT = "pynet.sysctl.inherit"
PRIORITY = "pynet.sysctl.priority"
GUARD = "pynet.guard"
GUARD_ALSO = "pynet.guard.also"
CONNECTIONS = "pynet.limit.connections"
ENDPOINT_IFNAME = "com.docker.network.endpoint.ifname"
ENABLE_IPV4 = "com.docker.network.enable_ipv4"
ENABLE_IPV6 = "com.docker.network.enable_ipv6"
ENABLE = frozenset({ENABLE_IPV4, ENABLE_IPV6})
DEFAULT_BRIDGE = "com.docker.network.bridge.default_bridge"
NO_PROXY_6TO4 = "com.docker.network.driver.private.no_proxy_6to4"
ANNOUNCEMENTS = "com.docker.network.advertise_addr_nmsgs"
ANNOUNCEMENT_INTERVAL = "com.docker.network.advertise_addr_ms"
# Docker's built-in bridge knows them; here there is nothing that they could change.
WITHOUT_EFFECT = (DEFAULT_BRIDGE, NO_PROXY_6TO4)
BY_MOVER = (ANNOUNCEMENTS, ANNOUNCEMENT_INTERVAL)  # of the interface: libnetwork
ENDPOINT_SYSCTLS = "com.docker.network.endpoint.sysctls"


BY_GATEWAY = "no: Docker has given out addresses and routes by it"
BY_SOURCE = "no: what answers to that address counts on it"
BY_ENGINE = "no: the engine has acted on it"
NOTHING = "no: it has no effect"


@dataclass(frozen=True, slots=True)
class Option:
    """One option as the documentation lists it."""

    name: str
    meaning: str
    default: str
    refused: str
    field: str = ""  # of NetworkOptions, if `pynet set` may change it while the network exists
    live: str = "no"  # what becomes of a change, or why there can be none


NETWORK_OPTIONS = (
    Option(
        "net.*",
        "A kernel parameter of every sandbox on the network, under its own name; the component "
        "`IFNAME` (any case) stands for the container's interface.",
        "the kernel's",
        "a parameter that does not exist, is not per namespace, is read-only, or a value the "
        "kernel does not take",
        live="in running containers, at once",
    ),
    Option(
        INHERIT,
        "Kernel parameters that every sandbox gets from the host, as they are on the host when the "
        "container joins: patterns of names with commas in between, as "
        "`net.ipv4.tcp_keepalive_*,net.core.somaxconn`; `*` takes dots in.",
        "none",
        "a pattern that matches no parameter of a network namespace; a value of the host's that a "
        "namespace does not take",
        field="inherit",
        live="for containers that join from then on",
    ),
    Option(
        PRIORITY,
        "Which of a container's networks gets its way when they ask for different values of one "
        "parameter: the one with the greater number, then the one that was made first.",
        "`0`",
        f"anything but a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}",
        field="priority",
        live="in running containers, at once",
    ),
    Option(
        MTU,
        "MTU of the bridge and of the containers' interfaces, in bytes; 0 means the default.",
        str(DEFAULT_MTU),
        f"anything but a number from {MIN_MTU} to {MAX_MTU}; below {MIN_IPV6_MTU} with IPv6",
        field="mtu",
        live="of the bridge at once, of interfaces for containers that join from then on",
    ),
    Option(
        BRIDGE_NAME,
        "Name of the bridge on the host. A bridge that exists already is used and never deleted.",
        "`pn-` and 12 digits of the network's id",
        f"more than {IFNAME_LENGTH} characters, or the name of something that is no bridge",
        live="no: containers are on that bridge",
    ),
    Option(
        IFACE_PREFIX,
        "What the interface is called in the container, before its number.",
        f"`{DEFAULT_PREFIX}`",
        f"more than {PREFIX_LENGTH} characters, or characters an interface name cannot have",
        live="no: running containers have their interfaces' names, and Docker counts on them",
    ),
    Option(
        MASQUERADE,
        "Whether what leaves the network gets the host's address as its source.",
        "`true`",
        "anything but true or false",
        field="masquerade",
        live="at once, for connections that begin from then on",
    ),
    Option(
        ICC,
        "Whether containers of the network reach each other; if not, only by published ports.",
        "`true`",
        "anything but true or false",
        field="icc",
        live="at once, for connections that exist, too",
    ),
    Option(
        GATEWAY_MODE_IPV4,
        "`nat`: out by the host's address, in by published ports. `nat-unprotected`: the same, and "
        "container addresses are open to everybody. `routed`: no translation; published ports are "
        "reached by the container's own address. `isolated`: no address on the bridge.",
        "`nat`",
        "another mode; `isolated` without `--internal`",
        live=BY_GATEWAY,
    ),
    Option(
        GATEWAY_MODE_IPV6,
        "The same for IPv6.",
        "`nat`",
        "the same as for IPv4",
        live=BY_GATEWAY,
    ),
    Option(
        HOST_BINDING,
        "The host address on which ports are published that name none.",
        "`0.0.0.0` and `::`",
        "anything but an address",
        live="no: ports are published there",
    ),
    Option(
        INHIBIT_IPV4,
        "Whether the bridge goes without the IPv4 gateway address: another host has it.",
        "`false`",
        "anything but true or false",
        live=BY_GATEWAY,
    ),
    Option(
        TRUSTED,
        "Host interfaces, separated by colons, from which published ports are also reached by "
        "the container's own address.",
        "none",
        "what is no interface name",
        field="trusted_host_interfaces",
        live="at once, for connections that begin from then on",
    ),
    Option(
        HOST_IPV4,
        "The source address of what leaves the network, instead of the leaving interface's.",
        "the leaving interface's",
        "anything but an IPv4 address",
        live=BY_SOURCE,
    ),
    Option(
        HOST_IPV6,
        "The same for IPv6.",
        "the leaving interface's",
        "anything but an IPv6 address",
        live=BY_SOURCE,
    ),
    Option(
        ATTACH,
        "`handover`: libnetwork moves the interface into the sandbox. `direct`: pynet makes it "
        "there, faster, and `docker stats` counts nothing; Docker Engine 28 and later.",
        f"`handover`; `direct` for an endpoint with `{ENDPOINT_IFNAME}`",
        "another word",
        live="no: running containers have been attached the one way or the other",
    ),
    Option(
        PUBLISH,
        "`pynet`: published ports are pynet's. `docker`: containers get no gateway here, so that "
        "Docker attaches them to `docker_gwbridge`, publishes there and shows it in `docker ps`.",
        "`pynet`",
        "another word; `docker` with `--internal` or with a gateway mode other than `nat`",
        live="no: it decides whether containers get a gateway here, and Docker asks only once",
    ),
    Option(
        PROXY_PROTOCOL,
        "Whether the relay says who its client is: the first bytes of each TCP connection that it "
        "makes to a container are a line of the PROXY protocol (version 1). Those that the kernel "
        "translates have none, and their client's own address: let the server expect the line "
        "from the bridge's address only.",
        "`false`",
        "anything but true or false",
        live="no: containers' servers count on it",
    ),
    Option(
        GUARD,
        "What containers may send. `network`: what the host sees of it has a source of the "
        "network's subnets. `address`: only the container's own MAC and addresses, in ARP and "
        "neighbour discovery, too; no router advertisements, redirects, DHCP answers, VLAN tags or "
        "unknown protocols. `off`: anything, for containers that route.",
        "`network`; `address` with `enable_icc=false`, `--internal` or `pynet.limit.connections`",
        "another word; anything but `off` for a network without a subnet",
        field="guard",
        live="at once",
    ),
    Option(
        GUARD_ALSO,
        "Addresses, with commas or blanks in between, that every container of the network may use "
        "besides its own: IPv4, IPv6, and MAC addresses, such as a VRRP router's.",
        "none",
        "what is no address",
        field="guard_also",
        live="at once",
    ),
    Option(
        CONNECTIONS,
        "How many connections each container may have begun at a time, as the host tracks them "
        "(`conntrack`); more are dropped.",
        "no limit",
        f"anything but a number from 1 to {MAX_CONNECTIONS}",
        field="connections",
        live="at once, for connections that begin from then on",
    ),
    Option(
        ENABLE_IPV4,
        "The same as `--ipv4`; the engine acts on it.",
        "`true`",
        "a value that contradicts what the engine did",
        live=BY_ENGINE,
    ),
    Option(
        ENABLE_IPV6,
        "The same as `--ipv6`; the engine acts on it.",
        "`false`",
        "a value that contradicts what the engine did",
        live=BY_ENGINE,
    ),
    Option(
        ANNOUNCEMENTS,
        "How often the engine (28 and later) announces a container's addresses to its neighbours. "
        "No effect with `pynet.attach=direct`; the log says so.",
        "the engine's",
        "what the engine refuses",
        live=BY_ENGINE,
    ),
    Option(
        ANNOUNCEMENT_INTERVAL,
        "How many milliseconds are between two of these announcements; the same holds.",
        "the engine's",
        "what the engine refuses",
        live=BY_ENGINE,
    ),
    Option(
        DEFAULT_BRIDGE,
        "Whether a network is Docker's `docker0`. No effect: none of pynet's is. It is accepted "
        "for Compose files that have it, and the log says that it has no effect.",
        "none",
        "nothing",
        live=NOTHING,
    ),
    Option(
        NO_PROXY_6TO4,
        "Private to Docker's bridge: no proxy from IPv6 to IPv4. No effect on a network; what the "
        "engine says of a container is heeded. The log says so.",
        "none",
        "nothing",
        live=NOTHING,
    ),
)

ENDPOINT_OPTIONS = (
    Option(
        "net.*",
        "A kernel parameter of this container's sandbox, over the network's.",
        "the network's",
        "the same as for the network",
    ),
    Option(
        ENDPOINT_IFNAME,
        "The interface's name in the container (`interface_name` in a Compose file); Docker Engine "
        "28 and later. Engines before 29.8 let no driver choose it, so pynet makes such an "
        "interface in the container by itself, as with `pynet.attach=direct`. Not with "
        "`pynet.attach=handover`, with `com.docker.network.endpoint.sysctls`, or a name that the "
        "engine may give to another interface (`eth1`): then the engine names it, and the log and "
        "`pynet check` say so if the name is another.",
        "the prefix and the next number",
        "more than 15 characters, or characters an interface name cannot have",
    ),
    Option(
        GUARD,
        "What this container may send; see the network's option.",
        "the network's",
        "the same as for the network",
    ),
    Option(
        GUARD_ALSO,
        "Addresses that this container may use besides its own, and those that the network allows. "
        "Where `docker` takes commas apart, as in `--driver-opt`, put blanks in between.",
        "none",
        "the same as for the network",
    ),
    Option(
        CONNECTIONS,
        "How many connections this container may have begun at a time.",
        "the network's",
        "the same as for the network",
    ),
    Option(
        ENDPOINT_SYSCTLS,
        "Per-interface parameters that the engine (27 and later) writes itself; pynet leaves "
        "them to it.",
        "none",
        "nothing",
    ),
)


def parse_network_options(
    generic: Mapping[str, str], *, internal: bool, has_ipv4: bool, has_ipv6: bool
) -> NetworkOptions:
    """Return the options of a network; raises InvalidRequest with words for who typed them."""
    _refuse_unknown(generic, NETWORK_OPTIONS)
    _check_agrees(generic, ENABLE_IPV4, has=has_ipv4)
    _check_agrees(generic, ENABLE_IPV6, has=has_ipv6)
    options = NetworkOptions(
        bridge_name=_parse_optional(generic, BRIDGE_NAME, _parse_ifname),
        mtu=_parse_mtu(generic.get(MTU, "0"), has_ipv6=has_ipv6),
        ifname_prefix=_parse_prefix(generic.get(IFACE_PREFIX, DEFAULT_PREFIX)),
        internal=internal,
        sysctls=_parse_sysctls(generic),
        masquerade=_parse_flag(generic, MASQUERADE, default=True),
        icc=_parse_flag(generic, ICC, default=True),
        gateway_mode_ipv4=_parse_word(generic, GATEWAY_MODE_IPV4, GatewayMode.NAT),
        gateway_mode_ipv6=_parse_word(generic, GATEWAY_MODE_IPV6, GatewayMode.NAT),
        host_binding_ipv4=_parse_binding(generic, IPv4Address),
        host_binding_ipv6=_parse_binding(generic, IPv6Address),
        host_ipv4=_parse_optional(generic, HOST_IPV4, partial(_parse_address, kind=IPv4Address)),
        host_ipv6=_parse_optional(generic, HOST_IPV6, partial(_parse_address, kind=IPv6Address)),
        inhibit_ipv4=_parse_flag(generic, INHIBIT_IPV4, default=False),
        trusted_host_interfaces=_parse_trusted(generic.get(TRUSTED, "")),
        attach=_parse_optional(generic, ATTACH, partial(_parse_one_of, words=Attach)),
        publish=_parse_word(generic, PUBLISH, Publish.PYNET),
        proxy_protocol=_parse_flag(generic, PROXY_PROTOCOL, default=False),
        inherit=_parse_inherit(generic.get(INHERIT, "")),
        priority=_parse_priority(generic.get(PRIORITY, "0")),
        guard=_parse_optional(generic, GUARD, _parse_guard),
        guard_also=_parse_also(generic.get(GUARD_ALSO, "")),
        connections=_parse_optional(generic, CONNECTIONS, _parse_connections),
    )
    _check_consistent(options)
    idle = (*WITHOUT_EFFECT, *(BY_MOVER if options.attach is Attach.DIRECT else ()))
    return replace(options, without_effect=tuple(name for name in idle if name in generic))


@dataclass(frozen=True, slots=True)
class OptionChange:
    """What `pynet set` asks for: options with new values, and options that get their default."""

    given: Mapping[str, str]
    unset: frozenset[str]

    @property
    def sysctls(self) -> tuple[Sysctl, ...]:
        """The kernel parameters among the new values."""
        return _parse_sysctls(self.given)

    @property
    def inherit(self) -> tuple[str, ...]:
        """The patterns among the new values."""
        return _parse_inherit(self.given.get(INHERIT, ""))


def parse_change(given: Mapping[str, str], unset: Iterable[str]) -> OptionChange:
    """Return the change that is requested.

    Raises InvalidRequest for what is unknown, contradicts itself or cannot be changed while the
    network exists, with the reason.
    """
    dropped = frozenset(parse_key(name) if is_sysctl(name) else name for name in unset)
    if not given and not dropped:
        raise InvalidRequest("change a network: nothing to set and nothing to unset")
    _refuse_unknown([*given, *dropped], NETWORK_OPTIONS)
    change = OptionChange(given, dropped)
    twice = dropped & {*given, *(sysctl.key for sysctl in change.sysctls)}
    if twice:
        raise InvalidRequest(f"both set and unset: {', '.join(sorted(twice))}")
    for option in NETWORK_OPTIONS:
        if option.name in {*given, *dropped} and not option.field:
            reason = option.live.removeprefix("no: ")
            raise InvalidRequest(
                f"option {option.name} cannot be changed while the network exists: {reason}"
            )
    return change


def apply_change(
    options: NetworkOptions, change: OptionChange, *, has_ipv6: bool
) -> NetworkOptions:
    """Return the options with the change made; raises InvalidRequest as for a new network."""
    present = {sysctl.key for sysctl in options.sysctls}
    missing = [name for name in sorted(change.unset) if is_sysctl(name) and name not in present]
    if missing:
        raise InvalidRequest(f"unset {', '.join(missing)}: the network does not set it")
    parsed = parse_network_options(
        change.given, internal=options.internal, has_ipv4=True, has_ipv6=has_ipv6
    )
    fields = [
        option.field
        for option in NETWORK_OPTIONS
        if option.field and option.name in {*change.given, *change.unset}
    ]
    kept = (sysctl for sysctl in options.sysctls if sysctl.key not in change.unset)
    return replace(
        options,
        sysctls=merge(kept, parsed.sysctls),
        **{field: getattr(parsed, field) for field in fields},
    )


def _check_consistent(options: NetworkOptions) -> None:
    modes = (options.gateway_mode_ipv4, options.gateway_mode_ipv6)
    if GatewayMode.ISOLATED in modes and not options.internal:
        raise InvalidRequest("gateway mode isolated: a network without a gateway needs --internal")
    if options.publish is Publish.DOCKER and options.internal:
        raise InvalidRequest(f"{PUBLISH}=docker: an --internal network publishes nothing")
    if options.publish is Publish.DOCKER and set(modes) != {GatewayMode.NAT}:
        raise InvalidRequest(f"{PUBLISH}=docker: only gateway mode nat leaves publishing to Docker")


def skips_gateway(generic: Mapping[str, str], *, internal: bool) -> tuple[bool, bool]:
    """Tell for IPv4 and IPv6 whether a network of these options needs no gateway address.

    So that the address is free for a container. As Docker's bridge: when the bridge has no
    address and no container is told of one.
    """
    acted_on = {key: value for key, value in generic.items() if key not in ENABLE}
    options = parse_network_options(acted_on, internal=internal, has_ipv4=True, has_ipv6=False)
    return (
        options.gateway_mode_ipv4 is GatewayMode.ISOLATED
        or (options.inhibit_ipv4 and options.internal),
        options.gateway_mode_ipv6 is GatewayMode.ISOLATED,
    )


def parse_endpoint_sysctls(options: Mapping[str, object]) -> tuple[Sysctl, ...]:
    """Return the parameters that an endpoint asks for by driver option.

    Unknown driver options pass: they may be meant for the engine, which sends them all.
    """
    texts = {key: value for key, value in options.items() if isinstance(value, str)}
    return _parse_sysctls(texts)


def parse_engine_sysctls(options: Mapping[str, object]) -> frozenset[str]:
    """Return the keys that the engine itself will write into this endpoint's sandbox."""
    label = options.get(ENDPOINT_SYSCTLS)
    return parse_endpoint_label(label) if isinstance(label, str) else frozenset()


def parse_endpoint_ifname(options: Mapping[str, object]) -> str | None:
    """Return the interface name that an endpoint asks for, None if it leaves the choice."""
    name = options.get(ENDPOINT_IFNAME)
    if not isinstance(name, str) or not name:
        return None
    _check_ifname(ENDPOINT_IFNAME, name, IFNAME_LENGTH)
    return name


def parse_endpoint_options(options: Mapping[str, object]) -> EndpointOptions:
    """Return what an endpoint asks for in place of its network's options.

    Raises InvalidRequest for what is wrong, and for an option of ours that there is not: a guard
    whose name is mistyped guards nothing.
    """
    ours = {key: value for key, value in options.items() if key.startswith("pynet.")}
    _refuse_unknown(ours, ENDPOINT_OPTIONS)
    texts = {key: value for key, value in ours.items() if isinstance(value, str)}
    if wrong := ours.keys() - texts.keys():
        raise InvalidRequest(f"option {min(wrong)}: expected a text")
    return EndpointOptions(
        guard=_parse_optional(texts, GUARD, _parse_guard),
        guard_also=_parse_also(texts.get(GUARD_ALSO, "")),
        connections=_parse_optional(texts, CONNECTIONS, _parse_connections),
    )


def parse_bool(name: str, text: str) -> bool:
    """Return the truth value of an option, in the spellings that Docker takes (Go's ParseBool)."""
    if text in {"1", "t", "T", "TRUE", "true", "True"}:
        return True
    if text in {"0", "f", "F", "FALSE", "false", "False"}:
        return False
    raise InvalidRequest(f"option {name}={text[:80]!r}: expected true or false")


def _refuse_unknown(given: Iterable[str], known: tuple[Option, ...]) -> None:
    names = [option.name for option in known]
    for key in given:
        if key in names or is_sysctl(key):
            continue
        from difflib import get_close_matches  # noqa: PLC0415 - for who mistypes, and slow to come

        near = get_close_matches(key, names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InvalidRequest(f"unknown option {key[:200]!r}{hint}")


def _check_agrees(generic: Mapping[str, str], name: str, *, has: bool) -> None:
    if name in generic and parse_bool(name, generic[name]) != has:
        flag = f"--{name.rpartition('enable_')[2]}"
        raise InvalidRequest(
            f"option {name}={generic[name]}: this engine has not acted on it; use {flag} instead"
        )


def _parse_sysctls(options: Mapping[str, str]) -> tuple[Sysctl, ...]:
    parsed = [parse_sysctl(key, value) for key, value in options.items() if is_sysctl(key)]
    counts = Counter(sysctl.key for sysctl in parsed)
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        raise InvalidRequest(f"kernel parameter given twice: {', '.join(twice)}")
    return merge(parsed)


def _parse_mtu(text: str, *, has_ipv6: bool) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise InvalidRequest(f"option {MTU}={text[:80]!r}: expected a number of bytes")
    mtu = int(text) or DEFAULT_MTU
    if not MIN_MTU <= mtu <= MAX_MTU:
        raise InvalidRequest(f"option {MTU}={mtu}: expected {MIN_MTU} to {MAX_MTU}")
    if has_ipv6 and mtu < MIN_IPV6_MTU:
        raise InvalidRequest(f"option {MTU}={mtu}: IPv6 needs at least {MIN_IPV6_MTU} (RFC 8200)")
    return mtu


def _parse_optional(
    generic: Mapping[str, str], name: str, parse: Callable[[str, str], T]
) -> T | None:
    """Return what the option says; not given and empty are the same, as with Docker's bridge."""
    text = generic.get(name, "")
    return parse(name, text) if text else None


def _parse_ifname(option: str, text: str) -> str:
    _check_ifname(option, text, IFNAME_LENGTH)
    return text


def _parse_flag(generic: Mapping[str, str], name: str, *, default: bool) -> bool:
    return parse_bool(name, generic[name]) if name in generic else default


def _parse_word(generic: Mapping[str, str], name: str, default: Word) -> Word:
    return _parse_one_of(name, generic.get(name) or default.value, type(default))


def _parse_one_of(name: str, text: str, words: type[Word]) -> Word:
    try:
        return words(text)
    except ValueError as error:
        known = ", ".join(words)
        raise InvalidRequest(f"option {name}={text[:80]!r}: expected one of {known}") from error


def _parse_guard(name: str, text: str) -> Guard:
    return _parse_one_of(name, text, Guard)


def _parse_also(text: str) -> GuardAlso:
    ipv4: list[IPv4Address] = []
    ipv6: list[IPv6Address] = []
    macs: list[MacAddress] = []
    for each in filter(None, re.split(r"[,\s]+", text)):
        if re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", each):
            macs.append(parse_mac(each))
        elif ":" in each:
            ipv6.append(_parse_address(GUARD_ALSO, each, IPv6Address))
        else:
            ipv4.append(_parse_address(GUARD_ALSO, each, IPv4Address))
    both: tuple[IPAddress, ...] = (*ipv4, *ipv6)
    for address in both:
        if address.is_unspecified or address.is_loopback or address.is_multicast:
            raise InvalidRequest(f"option {GUARD_ALSO}={address}: no container sends from that")
    return GuardAlso() + GuardAlso(tuple(ipv4), tuple(ipv6), tuple(macs))


def _parse_connections(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text) or not 1 <= int(text) <= MAX_CONNECTIONS:
        raise InvalidRequest(
            f"option {name}={text[:80]!r}: expected a number from 1 to {MAX_CONNECTIONS}"
        )
    return int(text)


def _parse_address(option: str, text: str, kind: type[Address]) -> Address:
    try:
        address = kind(text)
    except ValueError as error:
        raise InvalidRequest(f"option {option}={text[:80]!r}: {error}") from error
    if has_zone(address):
        raise InvalidRequest(f"option {option}={text[:80]!r}: a zone has no meaning here")
    return address


def _parse_binding(generic: Mapping[str, str], kind: type[Address]) -> Address | None:
    """Return the default binding if it is of this kind; the one label holds either."""
    text = generic.get(HOST_BINDING, "")
    wanted = IPv6Address if ":" in text else IPv4Address
    return _parse_address(HOST_BINDING, text, kind) if text and kind is wanted else None


def _parse_trusted(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(filter(None, text.split(":"))))
    return tuple(_parse_ifname(TRUSTED, name) for name in names)


def _parse_priority(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,6}", text):
        raise InvalidRequest(
            f"option {PRIORITY}={text[:80]!r}: expected a whole number from -{MAX_PRIORITY} to "
            f"{MAX_PRIORITY}"
        )
    return int(text)


def _parse_inherit(text: str) -> tuple[str, ...]:
    patterns = tuple(dict.fromkeys(filter(None, (each.strip() for each in text.split(",")))))
    for pattern in patterns:
        if is_of_interface(pattern):
            raise InvalidRequest(
                f"option {INHERIT}={pattern}: the host has no {IFNAME}; that is the container's"
            )
    return tuple(map(parse_pattern, patterns))


def _parse_prefix(text: str) -> str:
    _check_ifname(IFACE_PREFIX, text, PREFIX_LENGTH)
    return text


def _check_ifname(option: str, text: str, longest: int) -> None:
    if len(text) > longest:
        raise InvalidRequest(
            f"option {option}={text[:80]!r}: {len(text)} characters; at most {longest} fit"
        )
    if not is_plain_ifname(text):
        raise InvalidRequest(
            f"option {option}={text!r}: an interface name is letters, digits, '_', '-' and '.'"
        )
