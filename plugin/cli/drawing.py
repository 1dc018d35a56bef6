"""Draw a topology as SVG: containers, networks and the host in columns, with straight wires.

A wire leads from the line of a container's interface to the interface's network. Colour says one
thing only: that something is wrong. Light and dark as whoever looks prefers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from plugin.escape import escape as visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from plugin.cli.topology import Bridge, Pair, Topology

_LINE, _PAD, _GAP = 18, 12, 18  # of text; inside a box; between boxes
_LETTER = 8  # the width of one
_WIDTHS = {"container": 420, "bridge": 310, "host": 260}
_LEFT = {"container": 20, "bridge": 560, "host": 990}
_TOP, _BASELINE = 56, 13


@dataclass(frozen=True, slots=True)
class Box:
    """A box with a title and lines; `wrong` are the numbers of the lines that say of a fault."""

    kind: str
    title: str
    lines: tuple[str, ...]
    top: int
    wrong: frozenset[int] = frozenset()

    @property
    def left(self) -> int:
        """Where its column begins."""
        return _LEFT[self.kind]

    @property
    def width(self) -> int:
        """How wide its column is."""
        return _WIDTHS[self.kind]

    @property
    def height(self) -> int:
        """How high it has to be for its lines."""
        return 2 * _PAD + _LINE * (1 + len(self.lines))

    def line_at(self, number: int) -> int:
        """Return the middle of a line, 0 being the title."""
        return self.top + _PAD + _LINE * number + _LINE // 2


@dataclass(frozen=True, slots=True)
class Wire:
    """What leads from one place to another."""

    x1: int
    y1: int
    x2: int
    y2: int
    is_wrong: bool = False


def render_svg(topology: Topology, bridges: Sequence[Bridge]) -> str:
    """Return the drawing of these bridges, with their containers and the host."""
    boxes, wires = _lay_out(topology, bridges)
    height = max((box.top + box.height for box in boxes), default=_TOP) + _PAD
    width = _LEFT["host"] + _WIDTHS["host"] + 20
    style = files("plugin.cli").joinpath("drawing.css").read_text()
    size = f'width="{width}" height="{height}"'
    heads = (("container", "containers"), ("bridge", "networks"), ("host", "host"))
    space = 'xmlns="http://www.w3.org/2000/svg"'
    parts = [
        f'<svg {space} viewBox="0 0 {width} {height}" {size} role="img">',
        "<title>Networks of this host</title>",
        f"<style>{style}</style>",
        f'<rect class="page" {size}/>',
        *(f'<text class="head" x="{_LEFT[kind]}" y="34">{words}</text>' for kind, words in heads),
        *map(_draw_wire, wires),
        *(line for box in boxes for line in _draw_box(box)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _lay_out(topology: Topology, bridges: Sequence[Bridge]) -> tuple[list[Box], list[Wire]]:
    """Place each container beside the first network that it is on, and networks beside those."""
    pairs: dict[str, list[Pair]] = {}
    for bridge in bridges:
        for pair in bridge.pairs:
            pairs.setdefault(pair.container, []).append(pair)
    containers: dict[str, Box] = {}
    networks: list[Box] = []
    below = _TOP
    for bridge in bridges:
        top = bottom = below
        for name in dict.fromkeys(pair.container for pair in bridge.pairs):
            if name not in containers:
                containers[name] = box = _container(topology, name, pairs[name], bottom)
                bottom += box.height + _GAP
        network = _network(bridge, top)
        # In the middle of its containers, if those need more room.
        network = replace(network, top=max(top, (top + bottom - _GAP - network.height) // 2))
        networks.append(network)
        below = max(bottom, network.top + network.height + _GAP)
    host = _host(topology)
    wires = [*_wires(bridges, containers, networks, pairs), *_ways_out(bridges, networks, host)]
    return [*containers.values(), *networks, host], wires


def _container(topology: Topology, name: str, pairs: Sequence[Pair], top: int) -> Box:
    own = [f"{each.interface} ═ {each.end}{'' if each.is_up else '  down'}" for each in pairs]
    lines = []
    for head, pair in zip(own, pairs, strict=True):
        lines += [head, *(f"  {address}" for address in pair.addresses)]
    wrong = frozenset(n for n, line in enumerate(lines) if line.endswith("  down"))
    return Box("container", name, (*lines, *map(str, topology.containers[name].ports)), top, wrong)


def _network(bridge: Bridge, top: int) -> Box:
    lines = [bridge.name, *bridge.subnets, *bridge.sysctls]
    lines += ["internal"] if bridge.is_internal else []
    is_down = bridge.pairs and not bridge.is_up
    lines += ["down"] if is_down else []
    wrong = frozenset({len(lines) - 1} if is_down else ())
    return Box("bridge", bridge.network or bridge.name, tuple(lines), top, wrong)


def _host(topology: Topology) -> Box:
    lines: list[str] = []
    wrong = set()
    for each in topology.uplinks:
        if not each.is_up:
            wrong.add(len(lines))
        lines.append(f"{each.name}{'  default' if each.leads_out else ''}")
        lines += [f"  {address}" for address in each.addresses]
    return Box("host", "host", tuple(lines), _TOP, frozenset(wrong))


def _wires(
    bridges: Sequence[Bridge],
    containers: dict[str, Box],
    networks: Sequence[Box],
    pairs: dict[str, list[Pair]],
) -> Iterator[Wire]:
    for bridge, network in zip(bridges, networks, strict=True):
        for number, pair in enumerate(bridge.pairs):
            box, line = containers[pair.container], 1
            for other in pairs[pair.container]:
                if other is pair:
                    break
                line += 1 + len(other.addresses)
            at = network.top + network.height * (number + 1) // (len(bridge.pairs) + 1)
            start = box.left + box.width
            yield Wire(start, box.line_at(line), network.left, at, not pair.is_up)


def _ways_out(bridges: Sequence[Bridge], networks: Sequence[Box], host: Box) -> Iterator[Wire]:
    leading = [box for bridge, box in zip(bridges, networks, strict=True) if not bridge.is_internal]
    for number, box in enumerate(leading):
        at = host.top + host.height * (number + 1) // (len(leading) + 1)
        yield Wire(box.left + box.width, box.line_at(0), host.left, at)


def _draw_box(box: Box) -> Iterator[str]:
    wrong = " wrong" if box.wrong else ""
    yield f'<g class="{box.kind}{wrong}" data-name="{_text(box.title)}">'
    place = f'x="{box.left}" y="{box.top}" width="{box.width}" height="{box.height}"'
    yield f'<rect {place} rx="6"/>'
    x, y = box.left + _PAD, box.top + _PAD + _BASELINE
    most = (box.width - 2 * _PAD) // _LETTER
    for number, line in enumerate((box.title, *box.lines)):
        kind = "title" if not number else "fault" if number - 1 in box.wrong else "line"
        whole = f"<title>{_text(line)}</title>" if len(line) > most else ""
        shown = line if len(line) <= most else f"{line[: most - 1]}…"
        at = f'x="{x}" y="{y + number * _LINE}"'
        yield f'<text class="{kind}" xml:space="preserve" {at}>{_text(shown)}{whole}</text>'
    yield "</g>"


def _draw_wire(wire: Wire) -> str:
    wrong = " wrong" if wire.is_wrong else ""
    bend = wire.x1 + 24
    way = f"M{wire.x1} {wire.y1} H{bend} L{wire.x2 - 24} {wire.y2} H{wire.x2}"
    return f'<path class="wire{wrong}" d="{way}"/>'


def _text(text: str) -> str:
    return escape(visible(text))
