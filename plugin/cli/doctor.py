"""`pynet doctor`: why a flow does not arrive, in one sentence, and what helps, in another."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from driver.diagnosis.diagnose import diagnose
from driver.diagnosis.steps import FAULT
from plugin.cli import DIFFERS, Failure
from plugin.cli.client import ask_drift
from plugin.cli.flows import parse_target
from plugin.cli.gather import gather
from plugin.cli.output import json_option, print_json, print_line
from plugin.cli.resolve import complete_names, socket_path
from plugin.cli.seconds import Seconds
from plugin.cli.topology import examine, read_topology

if TYPE_CHECKING:
    from driver.diagnosis.diagnose import Diagnosis
    from driver.diagnosis.facts import Facts
    from driver.diagnosis.steps import Step

_MARKS = {"ok": "ok", "fault": "FAULT", "warn": "warn", "unknown": "-"}


@click.command
@click.argument("source", metavar="[FROM]", required=False, shell_complete=complete_names)
@click.argument("target", metavar="[TO:PORT]", required=False, shell_complete=complete_names)
@click.option("--no-probe", is_flag=True, help="Look only; send nothing.")
@click.option("--timeout", type=Seconds(0.1, 60), default=2.0, metavar="SECONDS")
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

    FROM and TO are containers, on any network of Docker's, `host`, `outside`, addresses, or names,
    which are looked up as FROM would. Looks at sockets, interfaces, routes, rules and published
    ports; then tries the flow once from where it is to come, and follows the packet through all
    nftables tables. Changes nothing.

    Without FROM and TO it looks at the host and all networks: what is down, gone or in the way.

    \b
    Examples:
      pynet doctor
      pynet doctor web example.com:443
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
    facts = gather(
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
    drift, not_seen = ask_drift(socket_path())
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
