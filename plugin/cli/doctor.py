"""`pynet doctor`: why a flow does not arrive, in one sentence, and what helps, in another."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import click

from driver.diagnosis.diagnose import bridge_of, diagnose, host_end_of
from driver.diagnosis.facts import HOST, OUTSIDE, Drift, Facts, Flow, Party, Probe
from driver.errors import DriverError, KernelError, NotFound
from driver.linux import netns
from driver.linux.nftrace import Trace
from driver.linux.probe import SILENT, try_flow
from driver.linux.view import find_way, read_view
from driver.model import Protocol
from plugin.capture.filters import compile_filter
from plugin.capture.places import ALL, Sandbox, find_places
from plugin.capture.taps import Taps
from plugin.cli import DIFFERS, Failure
from plugin.cli.client import ask_driver
from plugin.cli.errors import AskError, DriverDown
from plugin.cli.output import json_option, print_json, print_line
from plugin.cli.resolve import complete_names, socket_path
from plugin.cli.sandboxes import find_published, find_sandboxes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    from driver.diagnosis.diagnose import Diagnosis
    from driver.diagnosis.facts import View, Way
    from driver.linux.nftrace import Trace as Tracing
    from driver.model import IPAddress

    T = TypeVar("T")

_TARGET = re.compile(r"(?P<name>\[[^]]+\]|[^/]+?)(?::(?P<port>\d+))?(?:/(?P<protocol>tcp|udp))?")
_MARKS = {"ok": "ok", "fault": "FAULT", "warn": "warn", "skipped": "-"}
_MOST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Target:
    """What the second word asks for: a name or address, and a port."""

    name: str
    port: int | None
    protocol: Protocol


@click.command
@click.argument("source", metavar="FROM", shell_complete=complete_names)
@click.argument("target", metavar="TO[:PORT[/udp]]", shell_complete=complete_names)
@click.option("--no-probe", is_flag=True, help="Look only; send nothing.")
@click.option("--timeout", type=click.FloatRange(0.1, 60), default=2.0, metavar="SECONDS")
@click.option("-6", "is_ipv6", is_flag=True, help="Ask by IPv6 where both are there.")
@json_option
def doctor(  # noqa: PLR0913 - the options of the command line
    source: str, target: str, *, no_probe: bool, timeout: float, is_ipv6: bool, as_json: bool
) -> None:
    """Say why a flow does not arrive, in one sentence, and what helps, in another.

    FROM and TO are containers, on any network of Docker's, `host`, `outside`, or addresses. Looks
    at sockets, interfaces, routes, rules and published ports; then tries the flow once from where
    it is to come, and follows the packet through all nftables tables. Changes nothing.

    \b
    Examples:
      pynet doctor web 203.0.113.10:443
      pynet doctor web db:5432
      pynet doctor web host:8080
      pynet doctor outside web:80
      pynet doctor host web:53/udp

    Exits with 4 if it found a fault. Needs root.
    """
    if os.geteuid() != 0:
        raise Failure("look into network namespaces: you must be root")
    facts = _gather(source, _parse(target), timeout=None if no_probe else timeout, is_ipv6=is_ipv6)
    found = diagnose(facts)
    if as_json:
        print_json(_encode(facts, found))
    else:
        _print(facts, found)
    if found.cause is not None:
        raise click.exceptions.Exit(DIFFERS)


def _parse(text: str) -> Target:
    with suppress(ValueError):  # an IPv6 address without a port has colons of its own
        return Target(str(ip_address(text)), None, Protocol.TCP)
    match = _TARGET.fullmatch(text)
    if match is None:
        raise click.UsageError(f"{text!r} is no NAME, NAME:PORT or NAME:PORT/udp")
    port = None if match["port"] is None else int(match["port"])
    if port is not None and not 0 < port <= _MOST_PORT:
        raise click.UsageError(f"{port} is no port")
    return Target(match["name"].strip("[]"), port, Protocol(match["protocol"] or "tcp"))


def _gather(source: str, target: Target, *, timeout: float | None, is_ipv6: bool) -> Facts:
    """Look at everything on the way, then try it."""
    ports = () if target.port is None else (target.port,)
    host = read_view(ports)
    sender, receiver = _find(source), _find(target.name)
    sandbox = _inside(sender, lambda: read_view(ports)) if sender.sandbox else None
    other = _inside(receiver, lambda: read_view(None)) if receiver.sandbox else None
    version = 6 if is_ipv6 else 4
    address = _choose(receiver, other, sandbox, host, version)
    leaving: Way | None = None
    if sandbox is not None and address is not None:
        leaving = _inside(sender, lambda: find_way(address))
    own = _own_address(sender, sandbox, leaving, version)
    flow = Flow(
        Party(sender.name, sender.path, own),
        Party(receiver.name, receiver.path, address),
        target.protocol,
        target.port,
    )
    here, there = bridge_of(sandbox, own, host), bridge_of(other, address, host)
    passing = None
    if address is not None and here is not None and here != there:
        passing = find_way(address, own, here)
    returning = None
    if other is not None and sender.name == OUTSIDE and address is not None:
        returning = _inside(receiver, lambda: find_way(_stranger(address), address))
    drift, silence = _ask_drift()
    published = tuple(find_published(receiver.name)) if receiver.sandbox else ()
    facts = Facts(
        flow, host, sandbox, other, leaving, passing, returning, published, drift, None, silence
    )
    if timeout is None or target.port is None or address is None or sender.name == OUTSIDE:
        return facts
    if leaving is not None and leaving.error:
        return facts
    probe, not_seen = _try(facts, sender, receiver, timeout)
    return replace(facts, probe=probe, not_seen=(*silence, *not_seen))


@dataclass(frozen=True, slots=True)
class _Known:
    """What a name stands for: a sandbox, the host, something outside, or an address."""

    name: str
    sandbox: Sandbox | None = None
    address: IPAddress | None = None

    @property
    def path(self) -> str | None:
        return self.sandbox.path if self.sandbox else None


def _find(name: str) -> _Known:
    if name in {HOST, OUTSIDE}:
        return _Known(name)
    with suppress(ValueError):
        return _Known(name, address=ip_address(name))
    found = find_sandboxes(name, socket_path())
    if found.is_network:
        raise AskError(f"{name} is a network: name a container of it")
    if not found.sandboxes:
        raise AskError(f"{name} does not run: it has no network namespace")
    return _Known(found.sandboxes[0].name, found.sandboxes[0])


def _inside(known: _Known, work: Callable[[], T]) -> T:
    assert known.sandbox is not None  # noqa: S101 - asked of sandboxes only
    try:
        with netns.open_namespace(known.sandbox.path) as namespace:
            return netns.run_in(namespace, work)
    except NotFound as error:
        raise AskError(f"{known.name} has ended meanwhile: {error}") from error


def _choose(
    receiver: _Known, other: View | None, sandbox: View | None, host: View, version: int
) -> IPAddress | None:
    """Return the address that the flow goes to: on a common network if there is one."""
    if receiver.address is not None:
        return receiver.address
    if other is not None:
        own = _addresses(other, version)
        bridges = (
            {} if sandbox is None else {_bridge(link, host) for link in sandbox.interfaces.values()}
        )
        near = [ip for ip in own if bridge_of(other, ip, host) in bridges]
        return next(iter(near or own), None)
    if receiver.name == HOST and sandbox is not None:
        bridges = [_bridge(link, host) for link in sandbox.interfaces.values()]
        for name in filter(None, bridges):
            for ip in _of_version(host.interfaces[name].addresses, version):
                return ip
    return None


def _bridge(link: Any, host: View) -> str | None:
    end = host_end_of(link, host)
    return end.master if end is not None else None


def _addresses(view: View, version: int) -> list[IPAddress]:
    found = (each.addresses for each in view.interfaces.values() if each.kind == "veth")
    return [ip for addresses in found for ip in _of_version(addresses, version)]


def _of_version(addresses: Iterable[Any], version: int) -> list[IPAddress]:
    usable = (each.ip for each in addresses if not each.is_link_local and not each.is_loopback)
    return sorted(ip for ip in usable if ip.version == version)


def _own_address(
    sender: _Known, sandbox: View | None, leaving: Way | None, version: int
) -> IPAddress | None:
    if sender.address is not None or sandbox is None or leaving is None:
        return sender.address
    link = sandbox.interfaces.get(leaving.interface or "")
    return next(iter(_of_version(link.addresses, version)), None) if link is not None else None


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
    facts: Facts, sender: _Known, receiver: _Known, timeout: float
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
            trace = stack.enter_context(Trace(ip, flow.protocol, port))
        except KernelError as error:
            not_seen.append(f"firewall verdicts ({error})")
        words = f"{flow.protocol.value} port {port}"
        try:
            taps = Taps(lambda place: compile_filter(words, 128, is_raw=place.is_raw))
            stack.enter_context(closing(taps))
            taps.tap(places)
        except DriverError as error:
            not_seen.append(f"packets at the hops ({error})")
            taps = None

        def attempt() -> tuple[str, float]:
            return try_flow(ip, flow.protocol, port, timeout)

        outcome, seconds = _inside(sender, attempt) if sender.sandbox else attempt()
        packets = taps.finish() if taps else []
        drop = trace.find_drop() if trace is not None and outcome == SILENT else None
    asked = [each for each in packets if _is_question(each, port)]
    seen = tuple(dict.fromkeys(each.place.label for each in asked))
    answered = len(asked) < len(packets)
    return Probe(outcome, seconds, seen, answered, drop), tuple(not_seen)


def _is_question(packet: Any, port: int) -> bool:
    from plugin.capture.describe import describe  # noqa: PLC0415

    return describe(packet).destination_port == port


def _print(facts: Facts, found: Diagnosis) -> None:
    for step in found.steps:
        print_line(f"{_MARKS[step.state]:<6} {step.layer:<9} {step.text}")
        if step.cause is not None:
            print_line(f"{'':<6} {'':<9} cause   {step.cause.text}  [{step.cause.cause.id}]")
            print_line(f"{'':<6} {'':<9} remedy  {step.cause.remedy}")
    for each in facts.not_seen:
        print_line(f"not seen: {each}")
    print_line(f"{facts.flow}: {found.verdict}")


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
        "steps": [
            {
                "layer": step.layer,
                "state": step.state,
                "text": step.text,
                "cause": None if step.cause is None else step.cause.cause.id,
                "evidence": step.evidence,
            }
            for step in found.steps
        ],
        "not_seen": list(facts.not_seen),
    }
