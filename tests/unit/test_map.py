"""`pynet map` draws any topology: whole, without overlaps, harmless whatever it is called."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest

from driver.diagnosis.facts import Drift
from driver.diagnosis.steps import FAULT, OK, WARNING
from plugin.cli.drawing import render_svg
from plugin.cli.topology import Bridge, Container, Pair, Port, Topology, Uplink, examine

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '<script>alert(1)</script>"\x1b[31m\u202e'


def topology(containers: int, networks: int = 1, name: str = "c") -> Topology:
    """Return containers that are each on one of the networks, the first on all of them."""
    pairs: list[list[Pair]] = [[] for _ in range(networks)]
    for number in range(containers):
        for place in range(networks) if number == 0 else [number % networks]:
            end, own = f"pnh{place}-{number}", f"10.{place}.{number // 250}.{number % 250}/16"
            pair = Pair(f"{name}{number}", f"eth{place}", end, is_up=True, addresses=(own,))
            pairs[place].append(pair)
    bridges = tuple(
        Bridge(f"pn-{n}", f"net{n}", "pynet", ("10.0.0.0/24",), True, False, (), tuple(each))  # noqa: FBT003
        for n, each in enumerate(pairs)
    )
    ports = (Port(80, "tcp", "0.0.0.0:8080", "nginx (pid 7)", "0.0.0.0:80"),)
    names = [f"{name}{number}" for number in range(containers)]
    uplink = Uplink("ens3", ("192.0.2.1/24",), 1500, True, True)  # noqa: FBT003
    return Topology((uplink,), bridges, {n: Container(n, ports) for n in names}, (), ())


def drawn(shown: Topology) -> ET.Element:
    return ET.fromstring(render_svg(shown, shown.bridges))


@pytest.mark.parametrize(
    ("containers", "networks"), [(0, 0), (0, 1), (1, 1), (3, 2), (40, 5), (300, 9)]
)
def test_everything_is_drawn_and_no_box_covers_another(containers: int, networks: int) -> None:
    drawing = drawn(topology(containers, networks))
    groups = {
        kind: [g for g in drawing.iter(f"{SVG}g") if g.get("class") == kind]
        for kind in ("container", "bridge", "host")
    }
    assert [len(each) for each in groups.values()] == [containers, networks, 1]
    for kind, found in groups.items():
        edges = []
        for group in found:
            (box,) = group.iter(f"{SVG}rect")
            edges.append(
                (int(box.get("y", "")), int(box.get("y", "")) + int(box.get("height", "")))
            )
        edges.sort()
        assert all(one[1] <= two[0] for one, two in pairwise(edges)), kind
        assert all(bottom <= int(drawing.get("height", "")) for _, bottom in edges)


def test_a_name_is_text_and_nothing_else() -> None:
    text = render_svg(shown := topology(1, name=HOSTILE), shown.bridges)
    assert "<script" not in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", text)
    titles = {"".join(each.itertext()) for each in ET.fromstring(text).iter(f"{SVG}text")}
    assert any(title.startswith("<script>alert(1)</script>") for title in titles)


def test_what_is_down_is_marked() -> None:
    shown = topology(2)
    (bridge,) = shown.bridges
    pairs = (replace(bridge.pairs[0], is_up=False), bridge.pairs[1])
    drawing = drawn(replace(shown, bridges=(replace(bridge, pairs=pairs, is_up=False),)))
    wrong = {g.get("data-name") for g in drawing.iter(f"{SVG}g") if "wrong" in g.get("class", "")}
    assert wrong == {"c0", "net0"}
    assert [each.get("class") for each in drawing.iter(f"{SVG}path")] == [
        "wire wrong",
        "wire",
        "wire",
    ]


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        (
            Port(80, "tcp", "0.0.0.0:8080", "nginx (pid 7)", "0.0.0.0:80"),
            "0.0.0.0:8080->80/tcp  nginx (pid 7)",
        ),
        (Port(80, "tcp", "[::]:8080", None, None), "[::]:8080->80/tcp  nothing listens"),
        (
            Port(9000, "tcp", None, "node (pid 9)", "127.0.0.1:9000"),
            "9000/tcp  node (pid 9) on 127.0.0.1:9000  (not published)",
        ),
    ],
)
def test_a_port_is_a_line(port: Port, expected: str) -> None:
    assert str(port) == expected


def ids(shown: Topology, *drift: Drift) -> list[str | None]:
    """Return the causes that are found, None for what is only worth a look."""
    steps = (step for step in examine(shown, drift) if step.state != OK)
    return [step.cause.cause.id if step.cause else None for step in steps]


def test_nothing_is_wrong_where_all_is_well() -> None:
    assert {step.state for step in examine(topology(3, 2), ())} == {OK}


def test_what_is_wrong_on_a_host_is_named() -> None:
    shown = topology(2)
    (bridge,), (uplink,) = shown.bridges, shown.uplinks
    lost = Pair("c9", "eth0", None, is_up=True, addresses=())
    down = replace(bridge.pairs[0], is_up=False)
    silent = {"c0": Container("c0", (Port(80, "tcp", "0.0.0.0:8080", None, None),))}
    for broken, expected in (
        (replace(shown, uplinks=(replace(uplink, is_up=False),)), "uplink-down"),
        (replace(shown, bridges=(replace(bridge, is_up=False),)), "interface-down"),
        (replace(shown, bridges=(replace(bridge, pairs=(down,)),)), "interface-down"),
        (replace(shown, loose=(lost,)), "severed"),
        (replace(shown, loose=(replace(lost, end="pnh9"),)), "off-bridge"),
        (replace(shown, containers={**shown.containers, **silent}), None),
    ):
        assert ids(broken) == [expected]
    first, second = bridge.pairs
    for twice, kind in (
        (replace(second, addresses=("10.0.0.2/24",)), "address-twice"),
        (replace(second, addresses=(), mac="02:00:00:00:00:01"), "mac-twice"),
    ):
        pairs = (replace(first, addresses=("10.0.0.2/24",), mac="02:00:00:00:00:01"), twice)
        assert ids(replace(shown, bridges=(replace(bridge, pairs=pairs),))) == [kind]
    assert ids(shown, Drift("rules", "inet pynet", "is missing")) == ["drift"]
    states = [step.state for step in examine(replace(shown, loose=(lost,)), ())]
    assert (states.count(FAULT), states.count(WARNING)) == (1, 0)
