"""`pynet top`: what passes each container and each published port, live or once."""

from __future__ import annotations

import math
import os
import sys
from typing import TYPE_CHECKING

import click
import msgspec

from plugin.cli import Failure
from plugin.cli.errors import AskError
from plugin.cli.output import json_option, print_json, print_line, print_table
from plugin.cli.rates import SORTS, choose, compare, find_name, order
from plugin.cli.readings import Counters
from plugin.cli.resolve import complete_names, socket_path
from plugin.cli.seconds import Seconds
from plugin.cli.signals import ending

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from threading import Event

    from plugin.cli.rates import Rates

    Table = tuple[Sequence[str], Sequence[Sequence[str]], Sequence[int]]

_CONTAINERS = ("CONTAINER", "NETWORK", "IN/s", "OUT/s", "PKT IN", "PKT OUT", "DROPS/s", "CONNS")
_PORTS = ("HOST", "CONTAINER", "PORT", "CONNS", "BYTES/s", "PKT/s")
_THOUSAND = 1000
_UNITS = ("", "k", "M", "G", "T", "P")
_LONGEST = 3600  # seconds between two readings


@click.command
@click.argument(
    "name", metavar="[NETWORK|CONTAINER]", required=False, shell_complete=complete_names
)
@click.option("--sort", type=click.Choice(SORTS), default=SORTS[0], help="What comes first.")
@click.option(
    "--interval",
    type=Seconds(0.1, _LONGEST),
    default=1.0,
    metavar="SECONDS",
    help="How long to count; 1.",
)
@click.option("--once", is_flag=True, help="Count once and end.")
@json_option
def top(name: str | None, *, sort: str, interval: float, once: bool, as_json: bool) -> None:
    """Show what passes each container and published port a second, on all of Docker's networks.

    In and out are seen from the container. Drops are packets that its link did not take and, on
    pynet's networks, those that its guard dropped. Connections are those that the kernel tracks and
    that are open; of a published port, those that it translates. Its bytes show while
    net.netfilter.nf_conntrack_acct is 1.

    Not on a terminal it prints tables, or with --json an object a line. Ctrl-C ends it.

    \b
    Examples:
      pynet top
      pynet top back --sort drops
      pynet top web --once --json

    Needs root.
    """
    if os.geteuid() != 0:
        raise Failure("read the counters of containers: you must be root")
    if not math.isfinite(interval):
        raise click.UsageError(f"--interval {interval}: how long is that?")
    with ending() as ended:
        rounds = _measure(Counters(socket_path()), name, interval, ended)
        found = (order(each, sort) for each in rounds)
        if once or as_json or not sys.stdout.isatty():
            show = (lambda each: _print_json(each, 2 if once else None)) if as_json else _print
            for rates in found:
                show(rates)
                if once:
                    return
            return
        from plugin.cli.screen import open_screen  # noqa: PLC0415 - slow to come, and only for this

        with open_screen() as draw:
            for rates in found:
                draw(_title(name, rates), _tables(rates))


def _measure(
    counters: Counters, name: str | None, interval: float, ended: Event
) -> Iterator[Rates]:
    """Yield what has passed, turn for turn, until it is to end.

    Raises AskError if nothing has the name at first; who goes later may come again.
    """
    before = counters.read()
    known = counters.know(before)
    if name is not None:
        meant = find_name(known, name)
        if meant is None:
            raise AskError(f"no network and no container that runs is called {name}")
        name = meant
    while not ended.wait(interval):
        after = counters.read()
        yield compare(before, after, choose(counters.know(after), name))
        before = after


def _print_json(rates: Rates, indent: int | None) -> None:
    print_json(msgspec.to_builtins(rates), indent)
    sys.stdout.flush()


def _print(rates: Rates) -> None:
    for head, rows, marked in _tables(rates):
        print_table(head, rows, marked)
        print_line()
    for each in rates.not_seen:
        print_line(f"not seen: {each}", err=True)
    sys.stdout.flush()


def _title(name: str | None, rates: Rates) -> str:
    received = sum(each.receive_bytes for each in rates.containers)
    sent = sum(each.transmit_bytes for each in rates.containers)
    words = [f"pynet top{f' {name}' if name else ''}", f"{len(rates.containers)} interfaces"]
    words += [f"in {_short(received)}B/s", f"out {_short(sent)}B/s"]
    return "  ".join([*words, *(f"not seen: {each}" for each in rates.not_seen)])


def _tables(rates: Rates) -> list[Table]:
    """Return containers and, if there are any, ports; what drops is marked."""
    containers = [
        (
            each.container,
            each.network,
            _short(each.receive_bytes),
            _short(each.transmit_bytes),
            _short(each.receive_packets),
            _short(each.transmit_packets),
            _short(each.drops),
            _count(each.connections),
        )
        for each in rates.containers
    ]
    marked = [number for number, each in enumerate(rates.containers) if each.drops]
    ports = [
        (
            each.host,
            each.container,
            each.port,
            _count(each.connections),
            "-" if each.bytes is None else _short(each.bytes),
            "-" if each.packets is None else _short(each.packets),
        )
        for each in rates.ports
    ]
    tables: list[Table] = [(_CONTAINERS, containers, marked)]
    return [*tables, (_PORTS, ports, [])] if ports else tables


def _count(number: int | None) -> str:
    return "-" if number is None else str(number)


def _short(number: float) -> str:
    """Return a number in three digits or four: 0, 0.3, 12, 998, 1.0k, 12k, 3.4M."""
    power = 0
    while round(number) >= _THOUSAND and power < len(_UNITS) - 1:
        number, power = number / _THOUSAND, power + 1
    digits = f"{number:.1f}" if number < 10 and (power or number % 1) else f"{number:.0f}"  # noqa: PLR2004
    return f"{digits}{_UNITS[power]}"
