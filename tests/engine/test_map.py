"""`pynet map` on a host with Docker: what it draws is what the kernel has."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from tests.engine.site import HOST_ADDRESS, Site
from tests.engine.steps import KEEPALIVE, pynet, sysctl_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine

PORT, PUBLISHED = 80, 8080
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def site(engine28: Engine) -> Iterator[Site]:
    """Lend a network of pynet's, one of Docker's, and a container that is on both."""
    with Site(engine28) as site:
        site.network("pynet", "back", 60, *sysctl_options({KEEPALIVE: "600"}))
        site.network("bridge", "front", 61)
        site.containers(
            {
                "web": ("back", "-p", f"{PUBLISHED}:{PORT}"),
                "db": ("back",),
                "old": ("front", "-p", f"8081:{PORT}"),
            }
        )
        engine28.docker("network", "connect", "front", "web")
        site.serve("web", "tcp", PORT)
        site.serve("db", "tcp", 5432)
        yield site


def shown(site: Site, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        pynet(site.engine, "map", "--json", "--inside", *words).stdout
    )
    assert found["not_seen"] == []
    return found


def test_the_map_is_what_the_kernel_has(site: Site) -> None:
    engine = site.engine
    found = shown(site)
    links = {each["ifname"]: each for each in json.loads(engine.run("ip", "-json", "link").stdout)}
    bridges = {each["network"]: each for each in found["bridges"] if each["network"] != "bridge"}
    assert bridges.keys() == {"back", "front"}
    for name, members in (("back", {"web", "db"}), ("front", {"old", "web"})):
        bridge = bridges[name]
        ends = {each for each, link in links.items() if link.get("master") == bridge["name"]}
        assert {pair["end"] for pair in bridge["pairs"]} == ends
        assert {pair["container"] for pair in bridge["pairs"]} == members
        for pair in bridge["pairs"]:
            address = site.address(pair["container"], name, 4)
            assert any(each.startswith(f"{address}/") for each in pair["addresses"])
    assert bridges["back"]["sysctls"] == [f"{KEEPALIVE}=600"]
    ports = {each["name"]: each["ports"] for each in found["containers"]}
    assert ports["web"][0]["host"] == f"0.0.0.0:{PUBLISHED}"
    assert ports["web"][0]["listener"].startswith("python")
    (open_port,) = ports["db"]
    assert (open_port["number"], open_port["host"]) == (5432, None)
    assert ports["old"][0]["listener"] is None
    assert [each["text"] for each in ports["db"]] == [
        f"5432/tcp  {open_port['listener']}  (not published)"
    ]
    assert {each["where"][0] for each in found["faults"]} == {"old"}, "nothing listens there"
    plain = json.loads(pynet(engine, "map", "--json").stdout)["containers"]
    assert not any("inside" in each for each in plain), "that takes its time: --inside"
    insides = {each["name"]: each["inside"] for each in found["containers"]}
    listed = engine.run(*site.enter("web"), "ip", "route").stdout.splitlines()
    for line in listed:
        # `ip` adds how a route came to be.
        assert line.partition(" proto")[0].strip() in {
            each.partition(" src")[0] for each in insides["web"]["routes"]
        }
    assert [each for each in insides["web"]["parameters"] if each["key"] == KEEPALIVE] == [
        {"key": KEEPALIVE, "value": "600", "new": "7200"}
    ]
    assert any(":80/tcp  python" in each for each in insides["web"]["sockets"])
    assert found["traffic"].keys() >= {each["end"] for each in bridges["back"]["pairs"]}
    assert any(HOST_ADDRESS[4] in " ".join(each["addresses"]) for each in found["uplinks"])


def without_neighbours(container: dict[str, Any]) -> dict[str, Any]:
    """Return what does not come and go by itself."""
    inside = {key: value for key, value in container["inside"].items() if key != "neighbours"}
    return {**container, "inside": inside}


def test_tree_graph_drawing_page_and_json_agree(site: Site) -> None:
    found = shown(site)
    pairs = {
        (bridge["name"], pair["end"], pair["container"], pair["interface"])
        for bridge in found["bridges"]
        for pair in bridge["pairs"]
    }
    tree = pynet(site.engine, "map").stdout
    drawn, bridge = set(), ""
    for line in tree.splitlines():
        if match := re.search(r"[├└]── (\S+) ═ (\S+):(\S+)  ", line):
            drawn.add((bridge, *match.groups()))
        elif match := re.match(r"[├└]── (\S+)", line):
            bridge = match[1]
    assert drawn == pairs
    graph = pynet(site.engine, "map", "--dot").stdout
    edges = re.findall(r'"(\S+)" -- "(\S+)" \[label="(\S+) ═ (\w+)', graph)
    assert {(place, end, name, link) for name, place, end, link in edges} == pairs
    drawing = ET.fromstring(pynet(site.engine, "map", "--svg", "-").stdout)
    texts = {"".join(each.itertext()) for each in drawing.iter(f"{SVG}text")}
    assert {f"{link} ═ {end}" for _, end, _, link in pairs} <= texts
    boxes = {(each.get("class"), each.get("data-name")) for each in drawing.iter(f"{SVG}g")}
    assert {("container", name) for _, _, name, _ in pairs} <= boxes
    assert {("bridge", name) for name in ("back", "front")} <= boxes
    wires = [each for each in drawing.iter(f"{SVG}path") if each.get("class") == "wire"]
    assert len(wires) == len(pairs) + len(found["bridges"]), (
        "each pair's, and each network's way out"
    )
    page = pynet(site.engine, "map", "--html", "-").stdout
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page)
    held = json.loads(data)
    for name in ("uplinks", "bridges", "loose", "faults", "not_seen"):
        assert held[name] == found[name]
    for one, other in zip(held["containers"], found["containers"], strict=True):
        assert without_neighbours(one) == without_neighbours(other)
    alone = shown(site, "web")["bridges"]
    assert {pair["container"] for each in alone for pair in each["pairs"]} == {"web"}
    assert len(alone) == 2
    refused = pynet(site.engine, "map", "nosuch", check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
