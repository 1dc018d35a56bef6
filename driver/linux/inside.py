"""Look at what a namespace has besides interfaces: routes, neighbours, sockets, parameters.

Of the calling thread's namespace, as `view`. In lines for people: a map shows them, and nothing is
decided by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from driver.errors import KernelError
from driver.linux import sysctl
from driver.linux.rtnetlink import Rtnetlink
from driver.linux.sock_diag import SockDiag
from driver.linux.view import list_listeners

if TYPE_CHECKING:
    from collections.abc import Mapping

    from driver.diagnosis.facts import Listener
    from driver.linux.rtnetlink import ListedRoute, Neighbour

_LINK_LOCAL = "fe80::/64"  # which every interface with IPv6 has
_MAIN = 254  # RT_TABLE_MAIN
_QUIET = 0x40  # NUD_NOARP: multicast, and what needs no asking


@dataclass(frozen=True, slots=True)
class Parameter:
    """A kernel parameter that differs from a namespace's that is made now."""

    key: str
    value: str
    new: str


@dataclass(frozen=True, slots=True)
class Inside:
    """What a namespace has; routes and neighbours nearly as iproute2 writes them."""

    routes: tuple[str, ...]
    neighbours: tuple[str, ...]
    sockets: tuple[str, ...]
    parameters: tuple[Parameter, ...]


def read_inside(pristine: Mapping[str, str], owners: Mapping[int, str]) -> Inside:
    """Return what the namespace has, beside what a new one has; raises KernelError."""
    try:
        with Rtnetlink() as route:
            names = {link.index: link.name for link in route.links()}
            listed = [each for each in route.routes() if each.destination != _LINK_LOCAL]
            routes = [_write_route(each, names) for each in listed]
            known = [each for each in route.neighbours() if not each.state & _QUIET]
        with SockDiag() as diag:
            listeners = list_listeners(diag.listeners(), owners)
    except OSError as error:
        raise KernelError(f"look at a network namespace: {error.strerror or error}") from error
    values = sysctl.read_settable()
    return Inside(
        routes=tuple(sorted(routes, key=_in_order)),
        neighbours=tuple(sorted(_write_neighbour(each, names) for each in known)),
        sockets=tuple(dict.fromkeys(map(_write_socket, listeners))),
        parameters=tuple(
            Parameter(key, " ".join(value.split()), " ".join(pristine[key].split()))
            for key, value in sorted(values.items())
            if key in pristine and pristine[key] != value
        ),
    )


def _write_route(route: ListedRoute, names: Mapping[int, str]) -> str:
    words = [] if route.kind == "unicast" else [route.kind]
    words.append(route.destination)
    for gateway, index in route.hops:
        words += ["via", gateway] if gateway else []
        words += ["dev", names.get(index, str(index))] if index else []
    words += ["src", route.source] if route.source else []
    words += ["metric", str(route.metric)] if route.metric else []
    words += ["table", str(route.table)] if route.table != _MAIN else []
    return " ".join(words)


def _in_order(line: str) -> tuple[bool, bool, str]:
    """Put the way out first, IPv4 in front of IPv6."""
    return ":" in line, not line.startswith("default"), line


def _write_neighbour(neighbour: Neighbour, names: Mapping[int, str]) -> str:
    where = names.get(neighbour.interface, str(neighbour.interface))
    if neighbour.has_failed:
        return f"{neighbour.ip} dev {where} does not answer"
    return f"{neighbour.ip} dev {where} {neighbour.mac or 'is being asked for'}"


def _write_socket(listener: Listener) -> str:
    return f"{listener.place}/{listener.protocol.value}  {listener.owner}"
