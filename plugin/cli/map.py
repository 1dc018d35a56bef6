"""`pynet map`: bridges, pairs and containers of this host as a tree, JSON or a graph."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from driver.linux.traffic import read_traffic
from plugin.cli import Failure
from plugin.cli.client import ask_drift
from plugin.cli.described import (
    describe,
    find_faults,
    list_shown,
    list_traffic,
    read_insides,
)
from plugin.cli.drawing import render_svg
from plugin.cli.errors import AskError
from plugin.cli.live import LiveMap
from plugin.cli.output import print_json, print_line, print_lines, show_live
from plugin.cli.rates import format_rate, rate_between
from plugin.cli.resolve import complete_names, socket_path
from plugin.cli.signals import ending
from plugin.cli.topology import read_topology
from plugin.cli.webpage import render_page

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from plugin.cli.live import Choose
    from plugin.cli.rates import Rate
    from plugin.cli.topology import Bridge, Topology, Uplink

MOST_PORT = 65535
REFRESH_SECONDS = 1.0

_BRANCH, _LAST, _THROUGH, _PAST = "├── ", "└── ", "│   ", "    "


@click.command(name="map")
@click.argument("name", metavar="[NAME]", required=False, shell_complete=complete_names)
@click.option("--all", "everything", is_flag=True, help="Also bridges that no network has.")
@click.option("--watch", is_flag=True, help="Show rates, each second, until Ctrl-C.")
@click.option(
    "--serve",
    metavar="[PORT]",
    type=click.IntRange(0, MOST_PORT),
    is_flag=False,
    flag_value=0,
    help="Serve a page on the loopback address, until Ctrl-C.",
)
@click.option("-6", "is_ipv6", is_flag=True, help="With --serve: on ::1, not 127.0.0.1.")
@click.option("--html", metavar="FILE|-", help="Write that page, as it is now, into one file.")
@click.option("--svg", metavar="FILE|-", help="Write a drawing that a browser shows.")
@click.option("--dot", is_flag=True, help="Print a graph for Graphviz.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--inside", is_flag=True, help="With --json: routes, sockets and more of containers.")
def show_map(  # noqa: PLR0913 - the options of the command line
    name: str | None,
    *,
    everything: bool,
    watch: bool,
    serve: int | None,
    is_ipv6: bool,
    html: str | None,
    svg: str | None,
    dot: bool,
    as_json: bool,
    inside: bool,
) -> None:
    """Show what is on this host: bridges, the pairs on them, whose they are, and their ports.

    Of all of Docker's networks, from the kernel's state. NETWORK or CONTAINER shows that alone.

    \b
    Examples:
      pynet map
      pynet map back
      pynet map --watch
      pynet map --serve
      pynet map --html map.html
      pynet map --dot | dot -Tpng > map.png

    --serve prints a URL with a secret, which is for a browser of this machine, or for one that
    reaches it by `ssh -L`. Needs root.
    """
    if os.geteuid() != 0:
        raise Failure("look into network namespaces: you must be root")
    is_served = serve is not None
    _check_one((dot, as_json, watch, svg is not None, html is not None, is_served))
    _check_with("-6", "--serve", asked=is_ipv6, given=is_served)
    _check_with("--inside", "--json", asked=inside, given=as_json)

    choose = _choose_by(name, everything=everything)
    if serve is not None:
        from plugin.cli.webserver import serve_map  # noqa: PLC0415 - and Flask with it

        serve_map(choose, serve, is_ipv6=is_ipv6)
        return
    if watch:
        _watch(choose)
        return
    topology = read_topology()
    shown = choose(topology.bridges)
    if name is not None:
        own = tuple(each for each in topology.loose if each.container == name)
        topology = replace(topology, loose=own)
    if as_json:
        print_json(_encode(topology, shown, inside=inside))
    elif html is not None:
        _write(html, render_page(_encode(topology, shown, inside=True)))
    elif svg is not None:
        _write(svg, render_svg(topology, shown))
    else:
        print_lines(_render_dot(topology, shown) if dot else _render(topology, shown))
    for each in topology.not_seen:
        print_line(f"not seen: {each}", err=True)


def _check_one(asked: Sequence[bool]) -> None:
    if asked.count(True) > 1:
        raise click.UsageError("one of --watch, --serve, --html, --svg, --dot and --json")


def _check_with(option: str, other: str, *, asked: bool, given: bool) -> None:
    if asked and not given:
        raise click.UsageError(f"{option} is for {other}")


def _choose_by(name: str | None, *, everything: bool) -> Choose:
    """Return what chooses the bridges that are asked for, and refuses if there are none."""

    def choose(bridges: Iterable[Bridge]) -> list[Bridge]:
        shown = list(_choose(bridges, name, everything=everything))
        if name is not None and not shown:
            raise AskError(f"no network and no container on a bridge is called {name}")
        return shown

    return choose


def _watch(choose: Choose) -> None:
    """Show the tree with rates until a signal comes."""
    if not sys.stdout.isatty():
        raise click.UsageError("--watch is for a terminal; programs read --json, twice")

    def frames() -> Iterator[Iterator[str]]:
        before, then = read_traffic(), time.monotonic()
        while not ended.wait(REFRESH_SECONDS):
            shown, error = live.current()
            counted, now = read_traffic(), time.monotonic()
            rates = {
                name: rate_between(before[name], each, now - then)
                for name, each in counted.items()
                if name in before
            }
            before, then = counted, now
            yield chain([error] if error else [], _render(shown.topology, shown.bridges, rates))

    with LiveMap(choose) as live, ending() as ended:
        show_live(frames())


def _write(where: str, text: str) -> None:
    try:
        with click.open_file(where, "w", encoding="utf-8") as output:
            output.write(text)
    except OSError as error:
        raise Failure(f"write {where}: {error.strerror}") from error


def _choose(bridges: Iterable[Bridge], name: str | None, *, everything: bool) -> Iterator[Bridge]:
    """Yield the bridges that are asked for; of a container those that it is on, with it alone."""
    for bridge in bridges:
        if name is None:
            if everything or bridge.network is not None:
                yield bridge
        elif name in {bridge.network, bridge.name}:
            yield bridge
        elif own := tuple(pair for pair in bridge.pairs if pair.container == name):
            yield replace(bridge, pairs=own)


def _render(
    topology: Topology, bridges: Sequence[Bridge], rates: Mapping[str, Rate] | None = None
) -> Iterator[str]:
    """Yield the lines of a tree, with the rates that are known."""
    rates = rates or {}
    uplinks = "; ".join(
        f"{_describe_uplink(each)}{_describe_rate(rates, each.name, is_uplink=True)}"
        for each in topology.uplinks
    )
    yield f"host  {uplinks}".rstrip()
    for number, bridge in enumerate(bridges):
        is_last = number == len(bridges) - 1
        yield f"{_LAST if is_last else _BRANCH}{_describe_bridge(bridge)}"
        indent = _PAST if is_last else _THROUGH
        for place, pair in enumerate(bridge.pairs):
            ends = place == len(bridge.pairs) - 1
            branch = f"{indent}{_LAST if ends else _BRANCH}"
            head = f"{branch}{pair.end} ═ {pair.container}:{pair.interface}"
            down = "" if pair.is_up else "  down"
            rate = _describe_rate(rates, pair.end)
            yield f"{head}  {' '.join(pair.addresses)}{down}{rate}"
            below = f"{indent}{_PAST if ends else _THROUGH}{' ' * 4}"
            for port in topology.containers[pair.container].ports:
                yield f"{below}{port}"
    for pair in topology.loose:
        yield f"{pair.container}:{pair.interface}  {' '.join(pair.addresses)}  on no bridge"


def _describe_rate(rates: Mapping[str, Rate], name: str | None, *, is_uplink: bool = False) -> str:
    """Return what comes into a container, or the host, and goes out, if anything does."""
    if name is None or name not in rates:
        return ""
    into, out = rates[name].received, rates[name].sent
    if is_uplink:  # the other end of it is somebody else's
        into, out = out, into
    words = [f"{format_rate(each)} {way}" for each, way in ((into, "in"), (out, "out")) if each]
    return "".join(f"  {each}" for each in words)


def _describe_uplink(uplink: Uplink) -> str:
    words = [uplink.name, *uplink.addresses, f"MTU {uplink.mtu}"]
    words += ["default"] if uplink.leads_out else []
    words += [] if uplink.is_up else ["down"]
    return " ".join(words)


def _describe_bridge(bridge: Bridge) -> str:
    words = [bridge.name, bridge.network or "(no network)", *bridge.subnets]
    words += ["internal"] if bridge.is_internal else []
    words += [] if bridge.is_up else ["down"]
    words += [] if bridge.pairs else ["nobody on it"]
    return "  ".join([*words, *bridge.sysctls])


def _render_dot(topology: Topology, bridges: Sequence[Bridge]) -> Iterator[str]:
    """Yield a graph in Graphviz's language: containers, pairs, bridges, the host, from the left."""
    yield "graph pynet {"
    yield "  rankdir=LR; node [shape=box, fontname=monospace];"
    yield f"  host [label={_quote(_lines('host', *map(_describe_uplink, topology.uplinks)))}];"
    for bridge in bridges:
        label = _lines(bridge.network or bridge.name, bridge.name, *bridge.subnets)
        yield f"  {_quote(_lines(bridge.name))} [label={_quote(label)}];"
        yield f"  {_quote(_lines(bridge.name))} -- host;"
        for pair in bridge.pairs:
            ends = _lines(f"{pair.end} ═ {pair.interface}", *pair.addresses)
            wire = f"{_quote(_lines(pair.container))} -- {_quote(_lines(bridge.name))}"
            yield f"  {wire} [label={_quote(ends)}];"
    for container in list_shown(topology, bridges):
        label = _lines(container.name, *map(str, container.ports))
        yield f"  {_quote(_lines(container.name))} [label={_quote(label)}];"
    yield "}"


def _lines(*lines: str) -> str:
    """Join lines for a label; what others chose is escaped, the breaks are ours."""
    return "\\n".join(each.replace("\\", "\\\\").replace('"', '\\"') for each in lines)


def _quote(text: str) -> str:
    return f'"{text}"'


def _encode(topology: Topology, bridges: Sequence[Bridge], *, inside: bool) -> dict[str, Any]:
    """Return what the page shows; what is inside of containers takes 30 ms of each."""
    drift, silence = ask_drift(socket_path())
    faults = find_faults(topology, bridges, drift)
    insides = read_insides(list_shown(topology, bridges)) if inside else None
    found = describe(topology, bridges, faults, insides)
    found["not_seen"] = [*topology.not_seen, *(() if topology.not_seen else silence)]
    found["traffic"] = list_traffic(topology, bridges, read_traffic())
    return found
