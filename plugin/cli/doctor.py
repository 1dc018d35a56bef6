"""`pynet doctor`: why a flow does not arrive, in one sentence, and what helps, in another."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import click

from driver.diagnosis.diagnose import FAULT, diagnose
from driver.diagnosis.facts import HOST, Drift, Facts, Probe
from driver.errors import DriverError, KernelError
from driver.linux.links import default_route_interfaces
from driver.linux.nftrace import Trace, both_ways
from driver.linux.probe import CONNECTED, try_flow
from driver.linux.view import find_way
from plugin.capture.describe import describe
from plugin.capture.filters import compile_filter
from plugin.capture.places import ALL, find_places
from plugin.capture.taps import Taps
from plugin.cli import DIFFERS, Failure
from plugin.cli.client import ask_driver
from plugin.cli.errors import AskError, DriverDown
from plugin.cli.flows import find_ends, parse_target, run_inside
from plugin.cli.output import json_option, print_json, print_line
from plugin.cli.resolve import complete_names, socket_path
from plugin.cli.sandboxes import find_published
from plugin.cli.topology import examine, read_topology

if TYPE_CHECKING:
    from driver.diagnosis.diagnose import Diagnosis, Step
    from driver.linux.nftrace import Trace as Tracing
    from driver.model import IPAddress
    from plugin.cli.flows import Known, Target

_MARKS = {"ok": "ok", "fault": "FAULT", "warn": "warn"}


@click.command
@click.argument("source", metavar="[FROM]", required=False, shell_complete=complete_names)
@click.argument("target", metavar="[TO:PORT]", required=False, shell_complete=complete_names)
@click.option("--no-probe", is_flag=True, help="Look only; send nothing.")
@click.option("--timeout", type=click.FloatRange(0.1, 60), default=2.0, metavar="SECONDS")
@click.option("-6", "is_ipv6", is_flag=True, help="Ask by IPv6 where both are there.")
@json_option
def doctor(  # noqa: PLR0913 - the options of the command line
    source: str | None,
    target: str | None,
    *,
    no_probe: bool,
    timeout: float,
    is_ipv6: bool,
    as_json: bool,
) -> None:
    """Say why a flow does not arrive, in one sentence, and what helps, in another.

    FROM and TO are containers, on any network of Docker's, `host`, `outside`, or addresses. Looks
    at sockets, interfaces, routes, rules and published ports; then tries the flow once from where
    it is to come, and follows the packet through all nftables tables. Changes nothing.

    Without FROM and TO it looks at the host and all networks: what is down, gone or in the way.

    \b
    Examples:
      pynet doctor
      pynet doctor web 203.0.113.10:443
      pynet doctor web db:5432
      pynet doctor web host:8080
      pynet doctor outside web:80
      pynet doctor host web:53/udp

    Exits with 4 if it found a fault. Needs root.
    """
    if os.geteuid() != 0:
        raise Failure("look into network namespaces: you must be root")
    if source is None:
        faults = _look_at_all(as_json=as_json)
        raise click.exceptions.Exit(DIFFERS if faults else 0)
    if target is None:
        raise click.UsageError(f"{source} to where? pynet doctor FROM TO:PORT")
    facts = _gather(
        source, parse_target(target), timeout=None if no_probe else timeout, is_ipv6=is_ipv6
    )
    found = diagnose(facts)
    if as_json:
        print_json(_encode(facts, found))
    else:
        _print(facts, found)
    if found.cause is not None:
        raise click.exceptions.Exit(DIFFERS)


def _look_at_all(*, as_json: bool) -> bool:
    """Print what is wrong with the host and its networks; return whether anything is."""
    topology = read_topology()
    drift, not_seen = _ask_drift()
    steps = examine(topology, drift)
    if as_json:
        encoded = [_encode_step(step) for step in steps]
        print_json({"steps": encoded, "not_seen": [*topology.not_seen, *not_seen]})
    else:
        for step in steps:
            _print_step(step)
        for each in dict.fromkeys((*topology.not_seen, *not_seen)):
            print_line(f"not seen: {each}")
    return any(step.state == FAULT for step in steps)


def _gather(source: str, target: Target, *, timeout: float | None, is_ipv6: bool) -> Facts:
    """Look at everything on the way, then try it."""
    ends = find_ends(source, target, is_ipv6=is_ipv6)
    address, other, own = ends.flow.destination.address, ends.other, ends.flow.source.address
    if address is None:
        raise AskError(f"{ends.receiver.name} has no address that {ends.sender.name} could ask")
    is_outside = ends.sender.sandbox is None and ends.sender.name != HOST
    here, there = ends.bridges
    passing = returning = None
    arriving = here if here != there else None
    if is_outside:
        arriving = next(iter(sorted(default_route_interfaces())), None)
    if arriving is not None:
        passing = find_way(address, own or _stranger(address), arriving)
    if other is not None and is_outside:
        asker = own or _stranger(address)
        returning = run_inside(ends.receiver, lambda: find_way(asker, address))
    drift, silence = _ask_drift()
    published = tuple(find_published(ends.receiver.name)) if ends.receiver.sandbox else ()
    facts = Facts(
        ends.flow,
        ends.host,
        ends.sandbox,
        other,
        ends.leaving,
        passing,
        returning,
        published,
        drift,
        None,
        silence,
        arriving,
    )
    if timeout is None or target.port is None or is_outside:
        return facts
    if ends.leaving is not None and ends.leaving.error:
        return facts
    probe, not_seen = _try(facts, ends.sender, ends.receiver, timeout)
    return replace(facts, probe=probe, not_seen=(*silence, *not_seen))


def _stranger(address: IPAddress) -> IPAddress:
    """Return an address that no network of this host has, of a family; RFC 5737 and 3849."""
    return ip_address("198.51.100.1" if address.version == 4 else "2001:db8::1")  # noqa: PLR2004


def _ask_drift() -> tuple[tuple[Drift, ...], tuple[str, ...]]:
    """Return what pynet's driver says differs, and what was not seen if it is silent."""
    try:
        found = ask_driver(socket_path(), "/differences")["differences"]
    except DriverDown as error:
        return (), (f"pynet's own state ({error})",)
    except AskError as error:
        return (), (f"drift ({error})",)
    return tuple(Drift(each["kind"], each["subject"], each["text"]) for each in found), ()


def _try(
    facts: Facts, sender: Known, receiver: Known, timeout: float
) -> tuple[Probe, tuple[str, ...]]:
    """Try the flow from where it is to come; watch it at its hops and through the tables."""
    flow, not_seen = facts.flow, []
    ip, port = flow.destination.address, flow.port
    assert ip is not None  # noqa: S101 - seen to by the caller
    assert port is not None  # noqa: S101
    places = find_places([each for each in (sender.sandbox, receiver.sandbox) if each], ALL)
    with ExitStack() as stack:
        trace: Tracing | None = None
        try:
            trace = stack.enter_context(Trace(both_ways(ip, flow.protocol, port)))
        except KernelError as error:
            not_seen.append(f"firewall verdicts ({error})")
        words = f"{flow.protocol.value} port {port} and host {ip}"
        try:
            taps = Taps(lambda place: compile_filter(words, 128, is_raw=place.is_raw))
            stack.enter_context(closing(taps))
            taps.tap(places)
        except DriverError as error:
            not_seen.append(f"packets at the hops ({error})")
            taps = None

        def attempt() -> tuple[str, float]:
            return try_flow(ip, flow.protocol, port, timeout)

        outcome, seconds = run_inside(sender, attempt) if sender.sandbox else attempt()
        packets = taps.finish() if taps else []
        drop = trace.find_drop() if trace is not None and outcome != CONNECTED else None
    asked = [each for each in packets if describe(each).destination_port == port]
    seen = tuple(dict.fromkeys(each.place.label for each in asked))
    answered = len(asked) < len(packets)
    return Probe(outcome, seconds, seen, answered, drop), tuple(not_seen)


def _print(facts: Facts, found: Diagnosis) -> None:
    for step in found.steps:
        _print_step(step)
    for each in facts.not_seen:
        print_line(f"not seen: {each}")
    print_line(f"{facts.flow}: {found.verdict}")


def _print_step(step: Step) -> None:
    print_line(f"{_MARKS[step.state]:<6} {step.layer:<9} {step.text}")
    if step.cause is not None:
        print_line(f"{'':<6} {'':<9} cause   {step.cause.text}  [{step.cause.cause.id}]")
        print_line(f"{'':<6} {'':<9} remedy  {step.cause.remedy}")


def _encode_step(step: Step) -> dict[str, Any]:
    return {
        "layer": step.layer,
        "state": step.state,
        "text": step.text,
        "cause": None if step.cause is None else step.cause.cause.id,
        "evidence": step.evidence,
    }


def _encode(facts: Facts, found: Diagnosis) -> dict[str, Any]:
    cause = found.cause
    return {
        "from": facts.flow.source.name,
        "to": facts.flow.destination.name,
        "flow": {
            "protocol": facts.flow.protocol.value,
            "source": str(facts.flow.source.address or "") or None,
            "destination": str(facts.flow.destination.address or "") or None,
            "port": facts.flow.port,
        },
        "verdict": found.verdict,
        "cause": None
        if cause is None
        else {"id": cause.cause.id, "text": cause.text, "remedy": cause.remedy},
        "steps": [_encode_step(step) for step in found.steps],
        "not_seen": list(facts.not_seen),
    }
