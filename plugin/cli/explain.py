"""Explain the source of each kernel parameter; no I/O.

The driver knows what networks and endpoints ask for, Docker what a container's own `--sysctl` says.
"""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from driver.options import INHERIT
from driver.sysctl.policy import DOCKER_DEFAULTS, is_same, match

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

# What makes a machine a router is the host's own affair: Docker and this driver turn it on there.
# To forward IPv4 turns accept_redirects off (inet_forward_change() in net/ipv4/devinet.c).
ROUTING = (
    "net.ipv4.ip_forward",
    "net.ipv[46].conf.*.forwarding",
    "net.ipv4.conf.all.accept_redirects",
)
SECRETS = ("net.ipv4.tcp_fastopen_key", "net.ipv6.conf.*.stable_secret")
LOOPBACK = ("net.*.conf.lo.*", "net.*.neigh.lo.*")  # every namespace has one of its own
LEFT_OUT = (*ROUTING, *SECRETS, *LOOPBACK)


@dataclass(frozen=True, slots=True)
class Line:
    """One parameter: what the host has, a new namespace, who asked for what, who has what.

    `actual` is by container; `differs` if one of them has not what was asked for.
    """

    parameter: str
    host: str | None
    pristine: str | None
    asked: str | None
    by: str
    actual: Mapping[str, str]
    differs: bool

    @property
    def is_nobodys(self) -> bool:
        """Whether it is of no interest: the same in every container, or left out of audits."""
        left_out = self.by == "kernel" and match(LEFT_OUT, [self.parameter])
        return self.by == "docker" or bool(left_out)

    @property
    def is_lost(self) -> bool:
        """Whether the host's value does not arrive and nobody asked for another."""
        values = self.actual.values() or [self.pristine or ""]
        host = self.host
        return (
            self.by == "kernel"
            and host is not None
            and not self.is_nobodys
            and any(not is_same(host, value) for value in values)
        )


def explain_network(
    rows: Iterable[Mapping[str, Any]],
    names: Mapping[str, str],
    own: Mapping[str, Collection[str]],
) -> list[Line]:
    """Return the lines of a network; `names` are the containers', by endpoint.

    `own` holds the parameters that an endpoint or its container has asked for itself, by endpoint:
    there the network's value is not to be expected.
    """
    return [_network_line(row, names, own) for row in rows]


def find_differing(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the endpoints of a network that have another value than the network asks for."""
    return {
        endpoint
        for row in rows
        for endpoint, value in row["actual"].items()
        if row["asked"] is not None and not is_same(row["asked"], value)
    }


def _network_line(
    row: Mapping[str, Any], names: Mapping[str, str], own: Mapping[str, Collection[str]]
) -> Line:
    key, asked = row["key"], row["asked"]
    expected = (value for each, value in row["actual"].items() if key not in own.get(each, ()))
    return Line(
        parameter=key,
        host=row["host"],
        pristine=row["pristine"],
        asked=asked,
        by=row["by"] or "kernel",
        actual={names.get(each, each): value for each, value in row["actual"].items()},
        differs=asked is not None and any(not is_same(asked, each) for each in expected),
    )


def explain_container(
    rows: Iterable[Mapping[str, Any]], name: str, own: Mapping[str, str] | None
) -> list[Line]:
    """Return the lines of a container; `own` is its `--sysctl`, None if Docker cannot be asked."""
    return [_container_line(row, name, own) for row in rows]


def _container_line(row: Mapping[str, Any], name: str, own: Mapping[str, str] | None) -> Line:
    actual: str | None = next(iter(row["actual"].values()), None)
    asked, by = _who(row, actual, own)
    return Line(
        parameter=row["key"],
        host=row["host"],
        pristine=row["pristine"],
        asked=asked,
        by=by,
        actual={} if actual is None else {name: actual},
        differs=asked is not None and actual is not None and not is_same(asked, actual),
    )


def _who(
    row: Mapping[str, Any], actual: str | None, own: Mapping[str, str] | None
) -> tuple[str | None, str]:
    """Return what was asked for and by whom, the strongest first."""
    key, asked = row["key"], row["asked"]
    if own is not None and key in own:
        return own[key], "container"
    is_new = actual is None or is_same(actual, row["pristine"] or "")
    is_dockers = not is_new and is_same(str(actual), DOCKER_DEFAULTS.get(key, ""))
    if asked is not None:
        # A value that is neither a new namespace's nor what was asked for: without Docker's word
        # it counts as the container's own.
        is_own = own is None and not is_new and not is_dockers and not is_same(asked, str(actual))
        return (actual, "container") if is_own else (asked, str(row["by"]))
    if is_dockers:
        return actual, "docker"
    if is_new:
        return None, "kernel"
    return (actual, "container") if own is None else (None, "other")


def summarise(actual: Mapping[str, str]) -> str:
    """Return what containers have in few words: the value, or how many have which."""
    counts = Counter(" ".join(value.split()) for value in actual.values())
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{value} ({count})" for value, count in counts.most_common()) or "-"


@dataclass(frozen=True, slots=True)
class Finding:
    """One parameter of the host's: what containers get, and where the host's value was set.

    `refused` says why no network may set the host's value, if none may.
    """

    parameter: str
    host: str
    container: str
    set_in: str | None = None
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Audit:
    """The host's parameters by what becomes of them in a new container.

    `chosen` have another value than the host's because the network asks for it.
    """

    reset: tuple[Finding, ...]
    chosen: tuple[Finding, ...]
    copied: tuple[Finding, ...]
    host_wide: tuple[Finding, ...]

    @property
    def portable(self) -> tuple[Finding, ...]:
        """What a network can carry over of what is reset."""
        return tuple(each for each in self.reset if each.refused is None)


def audit(
    report: Mapping[str, Mapping[str, str]],
    asked: Mapping[str, str],
    set_in: Mapping[str, str],
) -> Audit:
    """Compare the host with what a new container gets, on a network that asks for `asked`.

    `set_in` tells where a host's value was set, as far as that is known.
    """
    groups: dict[str, list[Finding]] = {"reset": [], "chosen": [], "copied": [], "host_wide": []}
    host, pristine, refused = report["host"], report["pristine"], report["refused"]
    left_out = set(match(LEFT_OUT, host))
    for key, value in sorted(host.items()):
        if key in left_out:
            continue
        gets = asked.get(key, pristine.get(key))
        differs = "chosen" if key in asked else "reset"
        group = "host_wide" if gets is None else "copied" if is_same(value, gets) else differs
        groups[group].append(
            Finding(key, value, value if gets is None else gets, set_in.get(key), refused.get(key))
        )
    return Audit(**{name: tuple(found) for name, found in groups.items()})


def suggest_options(findings: Collection[Finding]) -> list[str]:
    """Return the options of `docker network create` that carry the host's values over."""
    return [
        shlex.join(["-o", f"{each.parameter}={' '.join(each.host.split())}"]) for each in findings
    ]


def suggest_inherit(findings: Collection[Finding]) -> str:
    """Return the option that carries them over as they are whenever a container starts."""
    return shlex.join(["-o", f"{INHERIT}={','.join(each.parameter for each in findings)}"])


def suggest_compose(findings: Sequence[Finding]) -> list[str]:
    """Return the lines of a Compose file to the same end, for use besides the project's own.

    Compose merges the files that it is given (docs.docker.com/reference/compose-file/merge); the
    same lines at the end of a file that has `networks:` would make it one with the key twice.
    """
    lines = [
        f'      {each.parameter}: "{" ".join(each.host.split()).replace("$", "$$")}"'
        for each in findings
    ]
    return [
        "# docker compose -f compose.yaml -f THIS_FILE up",
        "# NAME is the network's below `networks:` in compose.yaml, or `default`.",
        "networks:",
        "  NAME:",
        "    driver: pynet",
        "    driver_opts:",
        *lines,
    ]
