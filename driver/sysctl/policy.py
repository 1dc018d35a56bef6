"""Decide which sysctls a sandbox gets; performs no I/O.

A sandbox's sysctls come from, strongest first: the container's own `--sysctl`, the endpoint's
driver options, the network's options, what the network inherits from the host, the operator's
defaults for all networks, the kernel's default.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from driver.errors import InvalidRequest
from driver.model import Sysctl, SysctlWrite, Trace

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from driver.model import EndpointId, NetworkId

PREFIX = "net."
IFNAME = "IFNAME"
VALUE_LENGTH = 4096  # proc_sys_call_handler() takes at most KMALLOC_MAX; a page is what sysctl uses

# What dockerd writes into every container that does not say otherwise (moby, WithSysctls in
# daemon/oci_linux.go), so finding it in a sandbox does not mean that the user asked for it.
DOCKER_DEFAULTS: Mapping[str, str] = {
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0\t2147483647",
}

_COMPONENT = re.compile(r"[a-z0-9_-]+")
_PATTERN = re.compile(r"net\.[A-Za-z0-9_.*?\[\]!-]+")
_PER_INTERFACE = re.compile(r"net\.(ipv4|ipv6|mpls)\.(conf|neigh)\.([^.]+)\.[^.]+")
NAMESPACE_WIDE_NAMES = frozenset({"all", "default", "lo"})


@dataclass(frozen=True, slots=True)
class SysctlPolicy:
    """The policy of the host's operator for the sysctls of all networks.

    `defaults` go into every sandbox unless a stronger source sets them; `allowed` are patterns of
    the names that networks and endpoints may set, none for all.
    """

    defaults: tuple[Sysctl, ...] = ()
    allowed: tuple[str, ...] = ()

    def check(self, sysctls: Iterable[Sysctl]) -> None:
        """Raise InvalidRequest for the first sysctl that users may not set on this host."""
        self.check_keys(sysctl.key for sysctl in sysctls)

    def check_keys(self, keys: Iterable[str]) -> None:
        """Raise InvalidRequest for the first name that users may not set on this host."""
        if not self.allowed:
            return
        for key in keys:
            if not any(fnmatchcase(key, pattern) for pattern in self.allowed):
                raise InvalidRequest(
                    f"{key}: the operator of this host does not let networks set it; "
                    f"allowed are {', '.join(self.allowed)}"
                )


class Source(StrEnum):
    """The sources of a sysctl's value, the strongest first."""

    ENDPOINT = "endpoint"
    NETWORK = "network"
    INHERIT = "inherit"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class RequestedValue:
    """A value requested for a sandbox, and its source; of all endpoints if it names none."""

    sysctl: Sysctl
    source: Source
    endpoint: EndpointId | None = None
    network: NetworkId | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class SysctlSources:
    """The sysctls of one endpoint of a sandbox, by source; a network's next one has no id yet.

    `priority` is the network's `pynet.sysctl.priority`.
    """

    endpoint: EndpointId | None
    own: Collection[Sysctl]
    network: Collection[Sysctl]
    inherited: Collection[Sysctl]
    network_id: NetworkId | None = None
    priority: int = 0

    def request(self, source: Source, sysctls: Iterable[Sysctl]) -> list[RequestedValue]:
        """Return sysctls as values that this endpoint requests."""
        return [
            RequestedValue(each, source, self.endpoint, self.network_id, self.priority)
            for each in sysctls
        ]


def rank(
    defaults: Iterable[Sysctl], endpoints: Sequence[SysctlSources]
) -> tuple[RequestedValue, ...]:
    """Return every value requested for a sandbox, the weakest first.

    The first of `endpoints` is of the network that was made last. A source is stronger than the
    next whatever the network. Between networks the greater priority wins, then the one that was
    made first: not the order of joins, which Docker chooses anew at each start (its map of networks
    has none).
    """
    weakest_first = sorted(endpoints, key=lambda each: each.priority)
    ranked = [RequestedValue(sysctl, Source.DEFAULT) for sysctl in defaults]
    for each in weakest_first:
        ranked += each.request(Source.INHERIT, each.inherited)
    for each in weakest_first:
        ranked += each.request(Source.NETWORK, each.network)
    for each in weakest_first:
        ranked += each.request(Source.ENDPOINT, each.own)
    return tuple(ranked)


def effective(ranked: Iterable[RequestedValue]) -> dict[str, RequestedValue]:
    """Return the values that take effect, by key; `ranked` as `rank` returns them."""
    return {each.sysctl.key: each for each in ranked}


@dataclass(frozen=True, slots=True)
class Override:
    """A sysctl for which two networks of a container request different values by name."""

    winner: RequestedValue
    loser: RequestedValue

    @property
    def reason(self) -> str:
        """The rule of precedence by which the winner is the stronger."""
        if self.winner.source is not self.loser.source:
            return "an endpoint's own option is stronger than a network's"
        if self.winner.priority != self.loser.priority:
            return f"its priority is {self.winner.priority}, the other's {self.loser.priority}"
        return "its network was made first, and neither has the greater priority"


def find_overrides(ranked: Collection[RequestedValue]) -> list[Override]:
    """Return the values requested by name that another network overrides; as `rank` orders them."""
    winners = effective(ranked)
    return [
        Override(winner, each)
        for each in ranked
        for winner in [winners[each.sysctl.key]]
        if each.source in {Source.NETWORK, Source.ENDPOINT}
        and each.endpoint != winner.endpoint
        and not is_same(each.sysctl.value, winner.sysctl.value)
    ]


NO_POLICY = SysctlPolicy()


def is_sysctl(key: str) -> bool:
    """Return whether an option's name is meant to be a sysctl."""
    return key.startswith(PREFIX)


def parse_key(key: str) -> str:
    """Return the name of a sysctl, with `ifname` in any case read as IFNAME.

    Its components are the only thing that later becomes a path below /proc/sys, so nothing but
    lower-case letters, digits, `_` and `-` passes. Raises InvalidRequest.
    """
    components = [IFNAME if part.upper() == IFNAME else part for part in key.split(".")]
    wrong = [part for part in components if part != IFNAME and not _COMPONENT.fullmatch(part)]
    if wrong or components[0] != "net" or len(components) < 3:  # noqa: PLR2004 - net.FAMILY.KEY
        raise InvalidRequest(
            f"{key[:200]!r} is no kernel parameter of a network: expected net.….…, "
            "such as net.ipv4.tcp_keepalive_time"
        )
    parameter = ".".join(components)
    _check_interface(parameter)
    return parameter


def parse_sysctl(key: str, value: str) -> Sysctl:
    """Return the sysctl that `key=value` requests; raises InvalidRequest."""
    parameter = parse_key(key)
    text = value.strip()
    if not text or len(text) > VALUE_LENGTH or not text.replace("\t", " ").isprintable():
        raise InvalidRequest(f"{parameter}={value[:80]!r}: the value is empty or no plain text")
    return Sysctl(parameter, text)


def _check_interface(parameter: str) -> None:
    match = _PER_INTERFACE.fullmatch(parameter)
    if IFNAME in parameter and (match is None or match[3] != IFNAME):
        raise InvalidRequest(
            f"{parameter}: {IFNAME} stands for an interface only as in "
            f"net.ipv4.conf.{IFNAME}.rp_filter or net.ipv6.neigh.{IFNAME}.…"
        )
    if match and match[3] not in {IFNAME, *NAMESPACE_WIDE_NAMES}:
        raise InvalidRequest(
            f"{parameter}: the interface has its name only in the container; "
            f"write {IFNAME} instead of {match[3]!r}"
        )


def parse_endpoint_label(text: str) -> frozenset[str]:
    """Return the keys in a `com.docker.network.endpoint.sysctls` label.

    The engine writes those itself (from 27 on), as the container's own.
    """
    pairs = (entry.partition("=") for entry in text.split(","))
    return frozenset(
        parse_sysctl(key.strip(), value).key for key, _, value in pairs if is_sysctl(key.strip())
    )


def parse_pattern(text: str) -> str:
    """Return a pattern of sysctl names, as a shell's: `*`, which matches dots too, `?`, `[…]`.

    Raises InvalidRequest for what can match no sysctl of a network.
    """
    if not _PATTERN.fullmatch(text):
        raise InvalidRequest(
            f"{text[:200]!r} matches no kernel parameter of a network: expected net.…, "
            "such as net.ipv4.tcp_*"
        )
    return text


def match(patterns: Iterable[str], keys: Iterable[str]) -> list[str]:
    """Return the keys that any of the patterns matches."""
    wanted = tuple(patterns)
    return [key for key in keys if any(fnmatchcase(key, pattern) for pattern in wanted)]


def is_of_interface(key: str) -> bool:
    """Return whether a name belongs to the interface rather than to the whole sandbox."""
    return IFNAME in key.split(".")


def is_same(one: str, other: str) -> bool:
    """Return whether two values are the same to the kernel, which writes tabs between numbers."""
    return one.split() == other.split()


def path_components(key: str, ifname: str) -> tuple[str, ...]:
    """Return the path of a sysctl below /proc/sys, IFNAME replaced.

    Components, because an interface name may hold a dot (`eth0.100`).
    """
    return tuple(ifname if part == IFNAME else part for part in key.split("."))


def merge(*sources: Iterable[Sysctl]) -> tuple[Sysctl, ...]:
    """Return the sysctls of all sources, a later source overriding an earlier one."""
    merged = {sysctl.key: sysctl for source in sources for sysctl in source}
    return tuple(merged[key] for key in sorted(merged))


def plan_writes(
    wanted: Iterable[Sysctl],
    current: Mapping[str, str],
    pristine: Mapping[str, str],
    traces: Mapping[str, Trace],
) -> list[SysctlWrite]:
    """Return which sysctls of a sandbox to write, and what; not what is there already.

    A sysctl whose value is neither a pristine namespace's, nor Docker's own default, nor
    ours, was set by the container's `--sysctl` and is left alone: from engine 28 on those are
    written before Join, and nothing in the protocol tells. A value of ours is written again even
    if it is there, so that the trace tells the truth after a write that was interrupted.
    """
    plan: list[SysctlWrite] = []
    for sysctl in wanted:
        is_ours = is_ours_to_write(sysctl.key, current, pristine, traces)
        is_there = is_same(current.get(sysctl.key, ""), sysctl.value)
        if (is_ours or is_there) if sysctl.key in traces else (is_ours and not is_there):
            expected = frozenset({current[sysctl.key]})
            plan.append(SysctlWrite(sysctl.key, sysctl.value, expected))
    return plan


def find_overruling(
    wanted: Iterable[Sysctl], requested: Mapping[str, RequestedValue]
) -> list[RequestedValue]:
    """Return the effective values that differ from those that are wanted."""
    return [
        requested[sysctl.key]
        for sysctl in wanted
        if sysctl.key in requested and not is_same(requested[sysctl.key].sysctl.value, sysctl.value)
    ]


def find_kept(
    wanted: Iterable[Sysctl],
    current: Mapping[str, str],
    pristine: Mapping[str, str],
    traces: Mapping[str, Trace],
) -> list[str]:
    """Return the wanted sysctls that keep another value, since the container set it itself."""
    return [
        sysctl.key
        for sysctl in wanted
        if sysctl.key in current
        and not is_ours_to_write(sysctl.key, current, pristine, traces)
        and not is_same(current[sysctl.key], sysctl.value)
    ]


def is_ours_to_write(
    key: str,
    current: Mapping[str, str],
    pristine: Mapping[str, str],
    traces: Mapping[str, Trace],
) -> bool:
    """Return whether the value is the kernel's, a default of Docker's or this driver's."""
    if key not in current:
        return False
    value = current[key]
    trace = traces.get(key)
    if trace is not None and value == trace.written:
        return True
    return value == pristine.get(key) or value == DOCKER_DEFAULTS.get(key)


def foresee_traces(current: Mapping[str, str], plan: Iterable[SysctlWrite]) -> tuple[Trace, ...]:
    """Return the traces that these writes will leave, as the kernel will show what they wrote.

    It shows the numbers of a vector between tabs (proc_dointvec(), kernel/sysctl.c).
    """
    return tuple(Trace(each.key, current[each.key], "\t".join(each.value.split())) for each in plan)


def plan_undo(traces: Iterable[Trace]) -> list[SysctlWrite]:
    """Return the writes that restore what was there before, unless it was changed since.

    The last first: the kernel may take one value only beside another (ip_local_port_range and
    ip_unprivileged_port_start, net/ipv4/sysctl_net_ipv4.c).
    """
    newest_first = reversed(tuple(traces))
    return [SysctlWrite(each.key, each.before, frozenset({each.written})) for each in newest_first]


def plan_restores(staying: Mapping[str, str], traces: Mapping[str, Trace]) -> list[SysctlWrite]:
    """Return what to write when an endpoint has left a sandbox that may live on.

    What another endpoint of the sandbox requests (`staying`) is written, the rest is restored to
    what it was; a value that the container has changed since is left alone. A trace that differs
    from what is there and requested is of a change that was interrupted. The order is that of
    `plan_undo`.
    """
    return [
        SysctlWrite(key, value, frozenset({trace.written, staying.get(key, trace.written)}))
        for key, trace in reversed(tuple(traces.items()))
        for value in [staying.get(key, trace.before)]
        if not is_same(value, trace.written)
    ]
