"""Put a topology, its faults and its traffic into one value, for JSON and for pages."""

from __future__ import annotations

import shlex
import socket
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from driver.diagnosis.steps import OK
from driver.errors import DriverError
from driver.linux import netns, sysctl
from driver.linux.inside import Inside, read_inside
from driver.linux.view import find_all_owners
from plugin.cli.topology import examine

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from driver.diagnosis.facts import Drift
    from driver.diagnosis.steps import Step
    from driver.model import Traffic
    from plugin.cli.topology import Bridge, Container, Pair, Topology


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, or worth a look if `state` is "warn"; `where` are the names that it is about.

    Those are of containers, host ends, bridges and uplinks; of drift whatever the driver names.
    """

    state: str
    text: str
    remedy: str | None
    id: str | None
    where: tuple[str, ...]


def find_faults(
    topology: Topology, bridges: Iterable[Bridge], drift: Iterable[Drift]
) -> tuple[Fault, ...]:
    """Return what `pynet doctor` says of the host and these bridges, with where that is."""
    nothing = replace(topology, uplinks=(), bridges=(), loose=())
    parts = [_Part(replace(nothing, uplinks=(each,)), (each.name,)) for each in topology.uplinks]
    for bridge in bridges:
        parts += _parts(nothing, bridge)
    for pair in topology.loose:
        parts.append(_Part(replace(nothing, loose=(pair,)), _names(pair)))
    parts += [_Part(nothing, (each.subject,), drift=(each,)) for each in drift]
    return tuple(dict.fromkeys(fault for part in parts for fault in part.find()))


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a topology to be looked at by itself, so that it is known where a fault is.

    Only what is found at some layers counts, if any are named.
    """

    topology: Topology
    where: tuple[str, ...]
    layers: frozenset[str] = frozenset()
    drift: tuple[Drift, ...] = ()

    def find(self) -> Iterator[Fault]:
        for step in examine(self.topology, self.drift):
            if step.state != OK and (not self.layers or step.layer in self.layers):
                yield _fault(step, self.where)


def _parts(nothing: Topology, bridge: Bridge) -> Iterator[_Part]:
    """Yield a bridge, each pair on it, and pairs that have something of each other's."""
    network, others = frozenset({"network"}), frozenset({"sandbox", "socket"})
    alone = replace(bridge, pairs=bridge.pairs[:1])
    yield _Part(replace(nothing, bridges=(alone,)), (bridge.name,), network)
    owners: dict[str, list[Pair]] = {}
    for pair in bridge.pairs:
        alone = replace(bridge, pairs=(pair,))
        yield _Part(replace(nothing, bridges=(alone,)), _names(pair), others)
        for own in {pair.mac, *(each.partition("/")[0] for each in pair.addresses)} - {""}:
            owners.setdefault(own, []).append(pair)
    for pairs in owners.values():
        if len(pairs) > 1:
            both = replace(bridge, is_up=True, pairs=tuple(pairs))
            names = tuple(name for pair in pairs for name in _names(pair))
            yield _Part(replace(nothing, bridges=(both,)), names, network)


def _names(pair: Pair) -> tuple[str, ...]:
    return (pair.container, *((pair.end,) if pair.end else ()))


def _fault(step: Step, where: tuple[str, ...]) -> Fault:
    cause = step.cause
    if cause is None:
        return Fault(step.state, step.text, None, None, where)
    return Fault(step.state, cause.text, cause.remedy, cause.cause.id, where)


def read_insides(containers: Iterable[Container]) -> dict[str, Inside]:
    """Look into the sandboxes of containers; one that has ended meanwhile is left out."""
    pristine, owners = sysctl.read_pristine(), find_all_owners()
    found = {each.name: look_into(each, pristine, owners) for each in containers}
    return {name: inside for name, inside in found.items() if inside is not None}


def look_into(
    container: Container, pristine: Mapping[str, str], owners: Mapping[int, str]
) -> Inside | None:
    """Return what a container's sandbox holds, None if it has ended."""
    try:
        with netns.open_namespace(container.sandbox) as namespace:
            return netns.run_in(namespace, lambda: read_inside(pristine, owners))
    except DriverError:
        return None


def list_shown(topology: Topology, bridges: Iterable[Bridge]) -> tuple[Container, ...]:
    """Return the containers that are on these bridges, or on none."""
    pairs = [*(pair for bridge in bridges for pair in bridge.pairs), *topology.loose]
    return tuple(
        topology.containers[name] for name in dict.fromkeys(each.container for each in pairs)
    )


def describe(
    topology: Topology,
    bridges: Sequence[Bridge],
    faults: Sequence[Fault],
    insides: Mapping[str, Inside] | None = None,
) -> dict[str, Any]:
    """Return all that a page shows but for rates; what is in sandboxes if that is given."""
    containers = []
    for each in list_shown(topology, bridges):
        ports = [{**msgspec.to_builtins(port), "text": str(port)} for port in each.ports]
        shown = {
            "name": each.name,
            "ports": ports,
            "sandbox": each.sandbox,
            "capture": shlex.join(["pynet", "capture", each.name, "--where", "all"]),
        }
        if insides is not None:
            shown["inside"] = msgspec.to_builtins(insides.get(each.name))
        containers.append(shown)
    return {
        "host": socket.gethostname(),
        "time": f"{datetime.now():%Y-%m-%d %H:%M:%S}",  # noqa: DTZ005 - for people
        "uplinks": msgspec.to_builtins(topology.uplinks),
        "bridges": msgspec.to_builtins(tuple(bridges)),
        "containers": containers,
        "loose": msgspec.to_builtins(topology.loose),
        "faults": msgspec.to_builtins(tuple(faults)),
        "not_seen": list(topology.not_seen),
    }


def list_traffic(
    topology: Topology, bridges: Iterable[Bridge], counted: Mapping[str, Traffic]
) -> dict[str, tuple[int, int]]:
    """Return the bytes that came in and went out by host end and by uplink.

    In and out of the container, and of the host.
    """
    ends = [pair.end for bridge in bridges for pair in bridge.pairs if pair.end in counted]
    found = {}
    for end in ends:
        if end is not None:
            found[end] = counted[end].received_bytes, counted[end].sent_bytes
    for uplink in topology.uplinks:
        if uplink.name in counted:
            # It counts as the other end of it would.
            other = counted[uplink.name]
            found[uplink.name] = other.sent_bytes, other.received_bytes
    return found
