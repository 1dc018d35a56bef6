"""`pynet trace`: a packet's way over this host, hop by hop and rule by rule, to where it ends."""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from driver.diagnosis.facts import HOST
from driver.errors import DriverError
from driver.linux.nftrace import Trace, both_ways
from driver.linux.probe import try_flow
from plugin.capture.describe import describe, identify, identify_headers
from plugin.capture.filters import compile_filter
from plugin.capture.places import ALL, find_places
from plugin.capture.taps import Taps
from plugin.cli import DIFFERS, Failure
from plugin.cli.errors import AskError
from plugin.cli.flows import find_ends, parse_target, run_inside
from plugin.cli.output import print_json, print_line
from plugin.cli.resolve import complete_names
from plugin.cli.sandboxes import find_published
from plugin.cli.seconds import Seconds

if TYPE_CHECKING:
    from driver.linux.nftrace import Event
    from plugin.capture.taps import Packet
    from plugin.cli.flows import Ends

DECIDING = "deciding"
_HEADER_BYTES = 128  # of each packet, enough for every header that is shown
_SEND_SECONDS = 2.0  # for the answer to what was sent
_AFTER_SECONDS = 0.3  # for what follows the last packet that was asked for
# A packet that was on its way while the taps were opened has been missed at its first hops.
_ON_ITS_WAY = 20_000_000  # nanoseconds, more than it takes over a busy host


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends a trace: one packet that is sent, or so many that come, or the time."""

    send: bool
    count: int
    seconds: float


@dataclass(slots=True)
class Way:
    """What a packet met: the hops at which it was seen, and the rules that applied to it.

    `again` is how often it was sent again, by who had no answer.
    """

    packets: list[Packet] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    again: int = 0

    def add(self, packet: Packet) -> None:
        """Add a hop, the first time that the packet is seen there."""
        seen = [(each.place, each.is_outgoing) for each in self.packets]
        if (packet.place, packet.is_outgoing) not in seen:
            self.packets.append(packet)
        elif seen[0] == (packet.place, packet.is_outgoing):
            self.again += 1

    def is_from(self, nanoseconds: int) -> bool:
        """Return whether it was first seen at a time, or after it."""
        return bool(self.packets) and self.packets[0].nanoseconds >= nanoseconds

    @property
    def drop(self) -> Event | None:
        """The rule, or policy, by which it ended."""
        return next((each for each in self.events if each.verdict == "drop"), None)


@click.command
@click.argument("source", metavar="FROM", shell_complete=complete_names)
@click.argument("target", metavar="TO:PORT[/udp]", shell_complete=complete_names)
@click.option("--send", is_flag=True, help="Send one packet instead of waiting for some.")
@click.option(
    "--count", type=click.IntRange(1), default=1, metavar="N", help="End after N packets."
)
@click.option("--for", "seconds", type=Seconds(0.1), default=30.0, metavar="SECONDS")
@click.option(
    "--rules", type=click.Choice([DECIDING, "all"]), default=DECIDING, help="Which to show."
)
@click.option("-6", "is_ipv6", is_flag=True, help="By IPv6 where both are there.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a packet.")
def trace(  # noqa: PLR0913 - the options of the command line
    source: str,
    target: str,
    *,
    send: bool,
    count: int,
    seconds: float,
    rules: str,
    is_ipv6: bool,
    as_json: bool,
) -> None:
    """Show a packet's way over this host: interfaces, tables, and where it died.

    Waits for the flow's next packets, of both directions, or sends one. Adds one nftables table,
    which ends with the command, whatever that ends by. FROM and TO are as for `pynet doctor`; from
    `outside` it can only wait.

    \b
    Examples:
      pynet trace web 203.0.113.10:443 --send
      pynet trace outside web:80 --count 2
      pynet trace client db:5432 --rules all

    Exits with 4 if a packet was dropped, with 1 if none came. Needs root.
    """
    if os.geteuid() != 0:
        raise Failure("trace packets: you must be root")
    wanted = parse_target(target)
    if wanted.port is None:
        raise click.UsageError("a trace needs a port: TO:PORT")
    ends = find_ends(source, wanted, is_ipv6=is_ipv6)
    if send and ends.sender.sandbox is None and ends.sender.name != HOST:
        raise click.UsageError("nothing can be sent from outside: leave --send out, and wait")
    if ends.flow.destination.address is None:
        raise AskError(f"{ends.receiver.name} has no address of that family")
    limits = Limits(send, count, min(seconds, _SEND_SECONDS) if send else seconds)
    ways = _follow(ends, limits, rules=rules, as_json=as_json)
    if not ways:
        raise Failure(f"no packet of {ends.flow} for {limits.seconds:g} s")
    if any(way.drop for way in ways):
        raise click.exceptions.Exit(DIFFERS)


def _follow(ends: Ends, limits: Limits, *, rules: str, as_json: bool) -> list[Way]:
    conditions, words = _conditions(ends)
    places = find_places(
        [each for each in (ends.sender.sandbox, ends.receiver.sandbox) if each], ALL
    )
    with ExitStack() as stack:
        tracing = stack.enter_context(Trace(conditions))
        taps = Taps(lambda place: compile_filter(words, _HEADER_BYTES, is_raw=place.is_raw))
        stack.enter_context(closing(taps))
        taps.tap(places)
        ways = _collect(ends, tracing, taps, limits)
        for way in ways:
            if as_json:
                print_json(_encode(way, tracing), indent=None)
            else:
                _print(way, tracing, rules)
        if tracing.lost:
            print_line("the kernel had more to tell of rules than could be taken", err=True)
        if taps.lost:
            print_line(f"{taps.lost} packets at the hops were lost", err=True)
    return ways


def _conditions(ends: Ends) -> tuple[list[str], str]:
    """Return what marks the packets for the tables, and the filter for the hops."""
    flow, ip, port = ends.flow, ends.flow.destination.address, ends.flow.port
    assert ip is not None  # noqa: S101 - seen to by the caller
    assert port is not None  # noqa: S101
    word = flow.protocol.value
    conditions, ports = [*both_ways(ip, flow.protocol, port)], {port}
    if ends.sender.sandbox is None and ends.receiver.sandbox is not None:
        for each in find_published(ends.receiver.name):
            if each.container_port == port and each.protocol is flow.protocol:
                ports.add(each.host_port)
                conditions.append(f"{word} dport {each.host_port}")
    return list(dict.fromkeys(conditions)), " or ".join(f"{word} port {n}" for n in sorted(ports))


def _collect(ends: Ends, tracing: Trace, taps: Taps, limits: Limits) -> list[Way]:
    """Return the ways of the packets that came, each packet once, in the order of the first hop."""
    ways: dict[bytes, Way] = {}
    whole_from = 0 if limits.send else time.time_ns() + _ON_ITS_WAY
    sender = threading.Thread(target=_send, args=(ends, limits.seconds), daemon=True)
    if limits.send:
        sender.start()
    end = time.monotonic() + limits.seconds + _AFTER_SECONDS
    while (left := end - time.monotonic()) > 0:
        for packet in taps.read(min(left, 0.1)):
            ways.setdefault(identify(packet), Way()).add(packet)
        came = sum(way.is_from(whole_from) for way in ways.values())
        is_sent = limits.send and bool(ways) and not sender.is_alive()
        if is_sent or (not limits.send and came >= limits.count):
            end = min(end, time.monotonic() + _AFTER_SECONDS)
    for packet in taps.finish():
        ways.setdefault(identify(packet), Way()).add(packet)
    for event in tracing.read():
        ways.setdefault(identify_headers(*event.headers), Way()).events.append(event)
    found = [way for way in ways.values() if way.is_from(whole_from)]
    return found if limits.send else found[: limits.count]


def _send(ends: Ends, seconds: float) -> None:
    flow = ends.flow
    ip, port = flow.destination.address, flow.port
    assert ip is not None  # noqa: S101 - seen to by the caller
    assert port is not None  # noqa: S101

    def attempt() -> object:
        return try_flow(ip, flow.protocol, port, seconds)

    try:
        run_inside(ends.sender, attempt) if ends.sender.sandbox else attempt()
    except (AskError, DriverError) as error:
        print_line(f"send one: {error}", err=True)


def _print(way: Way, tracing: Trace, rules: str) -> None:
    first = way.packets[0]
    print_line(f"{describe(first)!s:<60} {'µs':>8}")
    before, after = _split(way.packets)
    for packet in before:
        _print_hop(packet, first)
    shown = way.events if rules == "all" else _deciding(way.events)
    last = ""
    for event in shown:
        hook = event.hook if event.hook != last else ""
        last = event.hook
        dead = "X" if event.verdict == "drop" else " "
        what = f"policy {event.verdict}" if event.is_policy else tracing.describe_rule(event)
        place = f"{event.family} {event.table}"
        print_line(f"{dead} {hook:<12} {place:<16} {event.chain}, {what}")
    for packet in after:
        _print_hop(packet, first)
    if way.drop is not None:
        print_line(f"  died in hook {way.drop.hook}")
    if way.again:
        print_line(f"  sent again {way.again} times: there was no answer")
    print_line()


def _print_hop(packet: Packet, first: Packet) -> None:
    where, _, interface = packet.place.label.partition(":")
    way = "out" if packet.is_outgoing else "in"
    micros = (packet.nanoseconds - first.nanoseconds) // 1000
    changed = str(describe(packet))
    told = "" if changed == str(describe(first)) else changed
    print_line(f"  {where:<12} {interface:<16} {way:<4}{told:<26} {micros:>8}".rstrip())


def _split(packets: list[Packet]) -> tuple[list[Packet], list[Packet]]:
    """Return the hops before the host's hooks and those behind them."""
    for number, packet in enumerate(packets):
        if packet.place.namespace is None and packet.is_outgoing:
            return packets[:number], packets[number:]
    return packets, []


def _deciding(events: list[Event]) -> list[Event]:
    """Return the last event of each table at each hook: what it came to there."""
    last: dict[tuple[str, str, str], Event] = {}
    for event in events:
        key = event.hook, event.family, event.table
        last.pop(key, None)
        last[key] = event
    return list(last.values())


def _encode(way: Way, tracing: Trace) -> dict[str, Any]:
    first = way.packets[0]
    found = describe(first)
    return {
        "time": first.nanoseconds / 1e9,
        "protocol": found.protocol,
        "source": found.source,
        "source_port": found.source_port,
        "destination": found.destination,
        "destination_port": found.destination_port,
        "text": found.text,
        "hops": [
            {
                "interface": each.place.label,
                "direction": "out" if each.is_outgoing else "in",
                "microseconds": (each.nanoseconds - first.nanoseconds) / 1000,
                "packet": str(describe(each)),
            }
            for each in way.packets
        ],
        "rules": [
            {
                "hook": each.hook,
                "family": each.family,
                "table": each.table,
                "chain": each.chain,
                "handle": each.handle or None,
                "rule": None if each.is_policy else tracing.describe_rule(each),
                "verdict": each.verdict,
                "target": each.target or None,
                "mark": each.mark,
            }
            for each in way.events
        ],
        "dropped": way.drop is not None,
        "sent_again": way.again,
    }
