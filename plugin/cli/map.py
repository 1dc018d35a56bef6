"""`pynet map`: bridges, pairs and containers of this host as a tree, JSON or a graph."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import click
import msgspec

from plugin.cli import Failure
from plugin.cli.drawing import render_svg
from plugin.cli.errors import AskError
from plugin.cli.output import print_json, print_line, print_lines
from plugin.cli.resolve import complete_names
from plugin.cli.topology import read_topology

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from plugin.cli.topology import Bridge, Container, Topology, Uplink

_BRANCH, _LAST, _THROUGH, _PAST = "├── ", "└── ", "│   ", "    "


@click.command(name="map")
@click.argument("name", metavar="[NAME]", required=False, shell_complete=complete_names)
@click.option("--all", "everything", is_flag=True, help="Also bridges that no network has.")
@click.option("--dot", is_flag=True, help="Print a graph for Graphviz.")
@click.option("--svg", metavar="FILE|-", help="Write a drawing that a browser shows.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_map(
    name: str | None, *, everything: bool, dot: bool, svg: str | None, as_json: bool
) -> None:
    """Show what is on this host: bridges, the pairs on them, whose they are, and their ports.

    Of all of Docker's networks, from the kernel's state. NETWORK or CONTAINER shows that alone.

    \b
    Examples:
      pynet map
      pynet map back
      pynet map --svg map.svg
      pynet map --dot | dot -Tpng > map.png

    Needs root.
    """
    if os.geteuid() != 0:
        raise Failure("look into network namespaces: you must be root")
    if (dot, as_json, svg is not None).count(True) > 1:
        raise click.UsageError("one of --dot, --svg and --json")
    topology = read_topology()
    shown = list(_choose(topology.bridges, name, everything=everything))
    if name is not None and not shown:
        raise AskError(f"no network and no container on a bridge is called {name}")
    if as_json:
        print_json(_encode(topology, shown))
    elif svg is not None:
        _write(svg, render_svg(topology, shown))
    elif dot:
        print_lines(_render_dot(topology, shown))
    else:
        print_lines(_render(topology, shown))
    for each in topology.not_seen:
        print_line(f"not seen: {each}", err=True)


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


def _render(topology: Topology, bridges: list[Bridge]) -> Iterator[str]:
    """Yield the lines of a tree."""
    uplinks = "; ".join(map(_describe_uplink, topology.uplinks))
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
            yield f"{head}  {' '.join(pair.addresses)}{down}"
            below = f"{indent}{_PAST if ends else _THROUGH}{' ' * 4}"
            for port in topology.containers[pair.container].ports:
                yield f"{below}{port}"
    for pair in topology.loose:
        yield f"{pair.container}:{pair.interface}  {' '.join(pair.addresses)}  on no bridge"


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


def _render_dot(topology: Topology, bridges: list[Bridge]) -> Iterator[str]:
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
    for container in _shown(topology, bridges):
        label = _lines(container.name, *map(str, container.ports))
        yield f"  {_quote(_lines(container.name))} [label={_quote(label)}];"
    yield "}"


def _shown(topology: Topology, bridges: list[Bridge]) -> Iterator[Container]:
    names = dict.fromkeys(pair.container for bridge in bridges for pair in bridge.pairs)
    return (topology.containers[name] for name in names)


def _lines(*lines: str) -> str:
    """Join lines for a label; what others chose is escaped, the breaks are ours."""
    return "\\n".join(each.replace("\\", "\\\\").replace('"', '\\"') for each in lines)


def _quote(text: str) -> str:
    return f'"{text}"'


def _encode(topology: Topology, bridges: list[Bridge]) -> dict[str, object]:
    found: dict[str, object] = {
        "uplinks": msgspec.to_builtins(topology.uplinks),
        "bridges": msgspec.to_builtins(bridges),
        "containers": msgspec.to_builtins(list(_shown(topology, bridges))),
        "loose": msgspec.to_builtins(topology.loose),
        "not_seen": list(topology.not_seen),
    }
    return found
