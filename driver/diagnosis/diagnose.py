"""Decide from facts why a flow does not arrive; no I/O.

Layer by layer from the container outwards. The first fault is the answer; what is found behind it
are warnings, for it may be in the way of the same packets. What a probe has shown is stronger than
what the settings let expect.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from driver.diagnosis.application import (
    look_at_published,
    look_at_socket,
    look_up,
    look_whether_it_runs,
)
from driver.diagnosis.container import look_at_destination, look_at_gateway, look_at_sandbox
from driver.diagnosis.facts import HOST, REFUSED, SILENT
from driver.diagnosis.firewall import look_at_firewall
from driver.diagnosis.host import look_at_host, look_at_uplink
from driver.diagnosis.steps import FAULT, OK, WARNING, Step, fault
from driver.model import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from driver.diagnosis.causes import Found
    from driver.diagnosis.facts import Facts, Probe

REACHES, DROPPED, UNANSWERED, UNKNOWN = "reaches", "dropped", "unanswered", "unknown"
# What a connection passes beside: it sends small packets only.
_BESIDE = frozenset({"mtu-too-large"})


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The answer: what becomes of the flow, why, and what was looked at on the way."""

    verdict: str
    cause: Found | None
    steps: tuple[Step, ...]


def diagnose(facts: Facts) -> Diagnosis:
    """Return what becomes of the flow, and why."""
    steps: list[Step] = []
    cause: Found | None = None
    probe = facts.probe
    passes = probe is not None and probe.passes
    if probe is not None and passes:
        steps.append(Step("probe", OK, f"{facts.flow} answers after {probe.seconds * 1000:.1f} ms"))
    for step in _walk(facts):
        is_in_the_way = step.cause is not None and (not passes or step.cause.cause.id in _BESIDE)
        if step.state == FAULT and cause is None and is_in_the_way:
            cause = step.cause
            steps.append(step)
        else:
            steps.append(replace(step, state=WARNING) if step.state == FAULT else step)
    if cause is None and not passes and probe is not None:
        step = _from_outcome(facts, probe)
        cause = step.cause
        steps.append(step)
    return Diagnosis(_verdict(facts, cause), cause, tuple(steps))


def _verdict(facts: Facts, cause: Found | None) -> str:
    probe = facts.probe
    if probe is not None:
        if probe.passes:
            return REACHES
        if probe.drop is not None:
            return DROPPED
        if probe.outcome == REFUSED:
            return REFUSED
        return UNKNOWN if _proves_nothing(facts, probe) and cause is None else UNANSWERED
    if cause is None:
        return UNKNOWN
    return REFUSED if cause.cause.layer == "socket" else DROPPED


def _proves_nothing(facts: Facts, probe: Probe) -> bool:
    """Return whether the silence is that of a UDP port, which need not answer."""
    return facts.flow.protocol is Protocol.UDP and probe.outcome == SILENT


def _walk(facts: Facts) -> Iterator[Step]:
    """Yield what each layer says, from the application outwards."""
    for look in (
        look_up,
        look_whether_it_runs,
        look_at_published,
        look_at_socket,
        look_at_sandbox,
        look_at_destination,
        look_at_gateway,
        look_at_host,
        look_at_firewall,
        look_at_uplink,
    ):
        yield from look(facts)


def _from_outcome(facts: Facts, probe: Probe) -> Step:
    """Say what is left when a probe failed and nothing on this host explains it."""
    way = facts.passing
    name, ip = facts.flow.source.name, facts.flow.destination.address
    if probe.outcome == os.strerror(errno.EADDRNOTAVAIL):
        return fault("sandbox", "ports-used-up", name=name, ip=ip)
    if _proves_nothing(facts, probe):
        return Step("beyond", OK, "no answer by UDP, which proves nothing: not all have one")
    if probe.outcome == REFUSED:
        return Step("beyond", OK, f"{facts.flow.destination.name} refuses the connection")
    out = way.interface if way is not None and not way.is_local and facts.other is None else None
    if out is not None and f"{HOST}:{out}" in probe.seen and not probe.is_answered:
        return fault("beyond", "beyond", interface=out)
    step = fault("beyond", "unexplained", name=name)
    return replace(step, text=f"{probe.outcome}: {step.text}")
