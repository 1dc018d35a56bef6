"""Gather what is known of a flow: look at everything on its way, then try it once."""

from __future__ import annotations

from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from driver.diagnosis.facts import (
    CONNECTED,
    HOST,
    Facts,
    Flow,
    Party,
    Probe,
    host_end_of,
)
from driver.errors import DriverError, KernelError
from driver.linux.conntrack import find_unanswered
from driver.linux.filters import has_filters
from driver.linux.links import default_route_interfaces
from driver.linux.nfnetlink import Connection
from driver.linux.nftrace import Trace, both_ways
from driver.linux.probe import count_too_large, send_large, try_flow
from driver.linux.view import find_way, read_counts, read_view
from driver.model import Protocol
from plugin.capture.describe import describe
from plugin.capture.filters import compile_filter
from plugin.capture.places import ALL, find_places
from plugin.capture.taps import Taps
from plugin.cli.client import ask_drift
from plugin.cli.errors import AskError
from plugin.cli.flows import find_ends, run_inside
from plugin.cli.resolve import socket_path
from plugin.cli.sandboxes import NotRunning, find_published
from plugin.cli.stopped import look_at_stopped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from driver.diagnosis.facts import Published
    from driver.model import IPAddress
    from plugin.capture.taps import Packet
    from plugin.cli.flows import Ends, Known, Target

_HEADER_BYTES = 128  # of each packet, enough for every header that is looked at
_TOO_LARGE_SECONDS = 0.3  # for somebody to say that a packet is too large
_LEGACY = ("ip_tables_names", "ip6_tables_names")  # in /proc/net, of iptables-legacy


def gather(source: str, target: Target, *, timeout: float | None, is_ipv6: bool) -> Facts:
    """Return what is known of a flow; without a timeout nothing is sent.

    Raises AskError for what cannot be asked about.
    """
    try:
        ends = find_ends(source, target, is_ipv6=is_ipv6)
    except NotRunning as error:
        if error.name != target.name:
            raise
        flow = Flow(Party(source), Party(target.name), target.protocol, target.port)
        return Facts(flow, read_view(()), stopped=look_at_stopped(target.name))
    facts = Facts(
        ends.flow,
        ends.host,
        ends.sandbox,
        ends.other,
        ends.leaving,
        lookup=ends.lookup,
    )
    address = ends.flow.destination.address
    if address is None:
        if ends.lookup is not None:
            return facts
        raise AskError(f"{ends.receiver.name} has no address that {ends.sender.name} could ask")
    facts = _look(facts, ends, address)
    is_sendable = ends.sender.sandbox is not None or ends.sender.name == HOST
    if timeout is None or target.port is None or not is_sendable:
        return facts
    if ends.leaving is not None and ends.leaving.error:
        return facts
    return _Trial(facts, ends, address, target.port, timeout).run()


def _look(facts: Facts, ends: Ends, address: IPAddress) -> Facts:
    """Add the ways, what is published, and what the driver says."""
    own = ends.flow.source.address
    is_outside = ends.sender.sandbox is None and ends.sender.name != HOST
    here, there = ends.bridges
    passing = returning = None
    arriving = here if here != there else None
    if is_outside:
        arriving = next(iter(sorted(default_route_interfaces())), None)
    if arriving is not None:
        passing = find_way(address, own or _stranger(address), arriving)
    if ends.other is not None and is_outside:
        asker = own or _stranger(address)
        returning = run_inside(ends.receiver, lambda: find_way(asker, address))
    drift, not_seen = ask_drift(socket_path())
    published: tuple[Published, ...] | None = ()
    if ends.receiver.sandbox:
        try:
            published = tuple(find_published(ends.receiver.name))
        except AskError as error:
            published, not_seen = None, (*not_seen, f"what is published ({error})")
    return replace(
        facts,
        passing=passing,
        returning=returning,
        arriving=arriving,
        published=published,
        drift=drift,
        not_seen=not_seen,
        stale=tuple(_find_stale(ends, published or ())),
        legacy=tuple(_list_legacy()),
    )


def _stranger(address: IPAddress) -> IPAddress:
    """Return an address that no network of this host has, of a family; RFC 5737 and 3849."""
    return ip_address("198.51.100.1" if address.version == 4 else "2001:db8::1")  # noqa: PLR2004


def _find_stale(ends: Ends, published: Sequence[Published]) -> Iterator[IPAddress]:
    """Yield to whom flows of the published port lead that is not the container."""
    found: set[IPAddress] = set()
    for each in published:
        is_asked = each.container_port == ends.flow.port and each.protocol is Protocol.UDP
        if is_asked and ends.flow.protocol is Protocol.UDP:
            found |= find_unanswered(each.host_ip, each.host_port) - {each.container_ip}
    yield from sorted(found, key=str)


def _list_legacy() -> Iterator[str]:
    for name in _LEGACY:
        with suppress(FileNotFoundError):  # the module is not loaded
            for table in Path("/proc/thread-self/net", name).read_text().split():
                yield f"{'ip6' if name.startswith('ip6') else 'ip'} {table}"


def _has_filters() -> bool:
    """Return whether the thread's namespace has rules of its own that may drop packets."""
    with closing(Connection()) as netfilter:
        return has_filters(netfilter)


class _Trial:
    """Tries a flow from where it is to come; watches it at its hops and through the tables."""

    def __init__(self, facts: Facts, ends: Ends, ip: IPAddress, port: int, timeout: float) -> None:
        self._facts, self._ends = facts, ends
        self._ip, self._port, self._timeout = ip, port, timeout
        self._protocol = facts.flow.protocol
        self._not_seen: list[str] = []

    def run(self) -> Facts:
        """Return the facts with what came of it."""
        probe = self._try()
        return replace(
            self._facts,
            probe=probe,
            is_large_lost=self._is_large_lost(),
            not_seen=(*self._facts.not_seen, *self._not_seen),
        )

    def _is_asked(self, packet: Packet) -> bool:
        return describe(packet).destination_port == self._port

    def _left_as(self, asked: Sequence[Packet]) -> IPAddress | None:
        """Return the address from which it left the host, None if it was not seen to."""
        way = self._facts.passing
        for each in asked:
            if way is not None and each.place.label == f"{HOST}:{way.interface}":
                return ip_address(describe(each).source)
        return None

    def _try(self) -> Probe:
        sandboxes = [each for each in (self._ends.sender, self._ends.receiver) if each.sandbox]
        places = find_places([each.sandbox for each in sandboxes if each.sandbox], ALL)
        with ExitStack() as stack:
            traces = list(self._trace(stack, sandboxes))
            taps = Taps(
                lambda place: compile_filter(self._words, _HEADER_BYTES, is_raw=place.is_raw)
            )
            try:
                stack.enter_context(closing(taps))
                taps.tap(places)
            except DriverError as error:
                self._not_seen.append(f"packets at the hops ({error})")
            before = self._count(sandboxes)
            outcome, seconds = self._attempt()
            risen = {
                name: number - before.get(name, 0)
                for name, number in self._count(sandboxes).items()
                if number > before.get(name, 0)
            }
            drop = drop_in = translation = None
            for name, trace in traces if outcome != CONNECTED else ():
                events = trace.read()
                translation = translation or (trace.find_translation(events) if not name else None)
                if drop is None and (drop := trace.find_drop(events)):
                    drop_in = name
            packets = taps.finish()
        asked = [each for each in packets if self._is_asked(each)]
        return Probe(
            outcome,
            seconds,
            seen=tuple(dict.fromkeys(each.place.label for each in asked)),
            is_answered=len(asked) < len(packets),
            drop=drop,
            drop_in=drop_in,
            translation=translation,
            left_as=self._left_as(asked),
            risen=risen,
        )

    @property
    def _words(self) -> str:
        # Without the address: it may be translated on the way.
        return f"{self._protocol.value} port {self._port}"

    def _attempt(self) -> tuple[str, float]:
        def attempt() -> tuple[str, float]:
            return try_flow(self._ip, self._protocol, self._port, self._timeout)

        sender = self._ends.sender
        return run_inside(sender, attempt) if sender.sandbox else attempt()

    def _trace(
        self, stack: ExitStack, sandboxes: Sequence[Known]
    ) -> Iterator[tuple[str | None, Trace]]:
        """Yield traces of the host's tables, and of those of the sandboxes that have any."""
        conditions = both_ways(self._ip, self._protocol, self._port)
        try:
            yield None, stack.enter_context(Trace(conditions))
        except KernelError as error:
            self._not_seen.append(f"firewall verdicts ({error})")
        for each in sandboxes:
            if run_inside(each, _has_filters):
                enter = partial(stack.enter_context, Trace(conditions))
                try:
                    yield each.name, run_inside(each, enter)
                except KernelError as error:
                    self._not_seen.append(f"verdicts of {each.name}'s own rules ({error})")

    def _count(self, sandboxes: Sequence[Known]) -> dict[str, int]:
        """Return counters of what may be dropped on the way, of the host and the sandboxes."""
        host = self._facts.host
        ways = (self._facts.passing, self._facts.leaving)
        names = {way.interface for way in ways if way is not None and way.interface}
        for view in (self._facts.sandbox, self._facts.other):
            for link in view.interfaces.values() if view is not None else ():
                end = host_end_of(link, host)
                names |= {end.name, end.master or ""} if end is not None else set()
        counts = read_counts(None, names)
        for each in sandboxes:
            view = self._facts.sandbox if each is self._ends.sender else self._facts.other
            inside = frozenset(view.interfaces) if view is not None else frozenset()
            counts |= run_inside(each, partial(read_counts, each.name, inside))
        return counts

    def _is_large_lost(self) -> bool:
        """Return whether a packet as large as the sender's interface takes is lost unsaid.

        Sent only where the host's interface takes less.
        """
        facts, sender = self._facts, self._ends.sender
        if facts.sandbox is None or facts.leaving is None or facts.passing is None:
            return False
        inside = facts.sandbox.interfaces.get(facts.leaving.interface or "")
        out = facts.host.interfaces.get(facts.passing.interface or "")
        if inside is None or out is None or facts.passing.is_local or inside.mtu <= out.mtu:
            return False
        mtu = inside.mtu
        before = count_too_large()
        is_told = run_inside(
            sender, lambda: send_large(self._ip, self._port, mtu, _TOO_LARGE_SECONDS)
        )
        return not is_told and count_too_large() > before
