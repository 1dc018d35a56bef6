"""The page of `pynet map`, in a real browser: what it draws is what `pynet map --json` says."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

import pytest

from driver.linux.inside import Inside, Parameter
from driver.linux.waiting import wait_readable
from plugin.cli.described import describe, find_faults
from plugin.cli.webpage import render_page
from tests.engine.browser import FILES, Page, apart, start_words
from tests.engine.driver import REPOSITORY
from tests.engine.site import Site
from tests.engine.steps import KEEPALIVE, pynet, pynet_command, sysctl_options
from tests.unit.test_map import HOSTILE, topology

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from plugin.cli.topology import Topology
    from tests.engine.command import Command
    from tests.engine.engine import Engine

PORT, ECHO = 80, 9999
# What the page shows, in the words of the JSON.
PAIRS = """[...document.querySelectorAll('[data-kind=pair]')].map(({dataset}) =>
    [dataset.bridge, dataset.name, dataset.container, dataset.interface])"""
NAMES = "[...document.querySelectorAll('[data-kind={}]')].map(({{dataset}}) => dataset.name)"
TEXTS = "[...document.querySelectorAll('[data-kind=pair]')].map((each) => each.textContent)"
DETAILS = "document.querySelector('#details').innerText"
STATUS = "document.querySelector('#status').textContent"
READY = "document.readyState === 'complete' && document.querySelector('.bar')"
PICTURES = REPOSITORY / "docs"
MOST_BYTES = 150_000


def names(page: Page, kind: str) -> list[str]:
    found: list[str] = page.run(NAMES.format(kind))
    return found


def assert_drawn(page: Page, shown: dict[str, Any]) -> None:
    """Compare what is drawn, unfolded, with the JSON."""
    pairs = [
        (bridge["name"], pair["end"], pair["container"], pair["interface"])
        for bridge in shown["bridges"]
        for pair in bridge["pairs"]
    ]
    assert sorted(map(tuple, page.run(PAIRS))) == sorted(pairs)
    assert sorted(names(page, "container")) == sorted(each["name"] for each in shown["containers"])
    networks = [each["network"] or each["name"] for each in shown["bridges"]]
    assert sorted(names(page, "network")) == sorted(networks)
    assert names(page, "uplink") == [each["name"] for each in shown["uplinks"]]
    texts = page.run(TEXTS)
    for bridge in shown["bridges"]:
        for pair in bridge["pairs"]:
            own = [
                each for each in texts if each.startswith(f"{pair['interface']} ═ {pair['end']}")
            ]
            assert any(all(ip in each for ip in pair["addresses"]) for each in own), (pair, texts)


# -- one file, of any size


def encode(shown: Topology) -> dict[str, Any]:
    inside = Inside(
        ("default via 10.0.0.1 dev eth0",),
        ("10.0.0.1 dev eth0 02:00:00:00:00:01",),
        ("0.0.0.0:80/tcp  nginx (pid 7)",),
        (Parameter(KEEPALIVE, "600", "7200"),),
    )
    faults = find_faults(shown, shown.bridges, ())
    return describe(shown, shown.bridges, faults, dict.fromkeys(shown.containers, inside))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[Page]:
    """Lend a browser that has no network at all."""
    if os.geteuid() != 0:
        pytest.skip("the browser's root needs root")
    with apart(folder) as page:
        page.resize(1320, 900)
        yield page


def open_file(page: Page, folder: Path, shown: dict[str, Any]) -> str:
    """Have the page in a file opened; return its URL, which no other has had."""
    name = f"{len(list(folder.iterdir()))}.html"
    (folder / name).write_text(render_page(shown))
    page.requested.clear()
    page.open(f"{FILES}{name}", until=READY)
    return f"{FILES}{name}"


def type_search(page: Page, text: str) -> None:
    page.run("document.querySelector('#search').select()")
    page.type(text)


@pytest.mark.parametrize(("containers", "networks"), [(3, 2), (40, 2), (300, 9)])
def test_a_file_shows_what_it_holds(
    page: Page, folder: Path, containers: int, networks: int
) -> None:
    shown = encode(topology(containers, networks))
    url = open_file(page, folder, shown)
    assert (len(names(page, "fold")) > 0) is (containers >= 40)
    if containers >= 40:
        # Two boxes for a network; none of its containers.
        assert sorted(names(page, "fold")) == sorted(2 * [f"net{n}" for n in range(networks)])
        assert names(page, "container") == []
        page.click("[data-kind=fold][data-name=net1]")
        in_net1 = {each["container"] for each in shown["bridges"][1]["pairs"]}
        assert {each[2] for each in page.run(PAIRS)} == in_net1
        page.click("#fold")
        assert page.run("document.querySelector('#fold').textContent") == "Fold all"
    assert_drawn(page, shown)
    assert page.run(STATUS).startswith(f"{containers} containers, {networks} networks")
    for name in ("containers", "pairs", "networks"):
        assert_apart(page, name)
    assert page.errors == []
    assert set(page.requested) <= {url, "data:,"}


def assert_apart(page: Page, column: str) -> None:
    """Look that no box of a column covers another."""
    edges = page.run(
        f"[...document.querySelectorAll('[aria-label={column}] .box')].map((each) =>"
        " [each.offsetTop, each.offsetTop + each.offsetHeight])"
    )
    edges.sort()
    assert all(one[1] <= two[0] for one, two in pairwise(edges)), column


def test_a_search_leaves_the_one_that_is_looked_for(page: Page, folder: Path) -> None:
    open_file(page, folder, encode(topology(300, 9)))
    type_search(page, "PNH3-57")
    assert page.run(PAIRS) == [["pn-3", "pnh3-57", "c57", "eth3"]]
    assert names(page, "container") == ["c57"]
    assert page.run(STATUS).startswith("1 of 300 containers")
    for text, expected in (
        ("10.3.0.57/", ["c57"]),
        ("net4 c58", ["c58"]),
        ("net4 c57", []),
        ("nosuch", []),
    ):
        type_search(page, text)
        assert names(page, "container") == expected, text
    assert "Nothing has “nosuch”" in page.run("document.querySelector('#board').innerText")
    page.press("Escape")
    assert page.run(STATUS).startswith("300 containers")
    page.run("document.querySelector('#fold').focus()")
    page.press("/")
    assert page.run("document.activeElement.id") == "search"


def test_a_click_shows_what_is_inside(page: Page, folder: Path) -> None:
    shown = encode(topology(3, 2))
    open_file(page, folder, shown)
    assert page.run("document.querySelector('#details').hidden")
    page.click("[data-kind=container][data-name=c1]")
    told = page.run(DETAILS)
    (own,) = (each for each in shown["containers"] if each["name"] == "c1")
    for part in ("routes", "neighbours", "sockets"):
        assert all(
            line.replace("  ", " ") in told.replace("  ", " ") for line in own["inside"][part]
        )
    assert "pnh1-1 on net1" in told.replace("\n", " ")
    assert f"{KEEPALIVE} = 600 (new: 7200)" in told
    assert own["capture"] in told
    assert page.run("document.activeElement.id") == "details"
    page.run("document.querySelector('.copy').click()")
    page.wait("/Copied|Selected/.test(document.querySelector('.copy').textContent)")
    page.press("Escape")
    assert page.run("document.querySelector('#details').hidden")
    assert page.run("document.activeElement.dataset.name") == "c1"
    page.click("[data-kind=network][data-bridge=pn-0] .stay")
    assert "10.0.0.0/24" in page.run(DETAILS)
    page.click("[data-kind=uplink]")
    assert "MTU 1500" in page.run(DETAILS)
    page.press("Escape")


def test_every_box_has_a_name_and_is_reached_by_keys(page: Page, folder: Path) -> None:
    open_file(page, folder, encode(topology(3, 2)))
    unnamed = "[...document.querySelectorAll('#board button')].filter((each) => !each.ariaLabel)"
    assert page.run(f"{unnamed}.length") == 0
    page.run("document.querySelector('[data-kind=container]').focus()")
    page.press("ArrowDown")
    assert page.run("document.activeElement.dataset.name") == "c2"


def test_what_is_wrong_is_red_and_comes_first(page: Page, folder: Path) -> None:
    shown = topology(40, 2)
    one, two = shown.bridges
    pairs = (*one.pairs[:5], replace(one.pairs[5], is_up=False), *one.pairs[6:])
    open_file(page, folder, encode(replace(shown, bridges=(replace(one, pairs=pairs), two))))
    container = pairs[5].container
    assert f"eth0 in {container} is down" in page.run("document.querySelector('#faults').innerText")
    wrong = "[...document.querySelectorAll('.box.wrong')].map(({dataset}) => dataset.name)"
    assert page.run(wrong) == ["net0"]
    page.click("#faults button")
    assert sorted(page.run(wrong)) == [container, pairs[5].end]
    assert page.run("document.querySelectorAll('.wire.wrong').length") == 2
    assert container in page.run(DETAILS)


def test_a_name_is_text_and_nothing_else(page: Page, folder: Path) -> None:
    open_file(page, folder, encode(topology(2, name=HOSTILE)))
    assert len(names(page, "container")) == 2
    assert all(each.startswith("<script>alert(1)</script>") for each in names(page, "container"))
    page.click("[data-kind=container]")
    assert "<script>alert(1)</script>" in page.run(DETAILS)
    assert page.run("document.querySelectorAll('script').length") == 4
    assert page.errors == []


# -- served, of a host with Docker


@pytest.fixture
def site(engine28: Engine) -> Iterator[Site]:
    with Site(engine28) as site:
        site.network("pynet", "back", 60, *sysctl_options({KEEPALIVE: "600"}))
        site.network("bridge", "front", 61)
        site.containers(
            {
                "web": ("back", "-p", f"8080:{PORT}"),
                "db": ("back",),
                "old": ("front", "-p", f"8081:{PORT}"),
            }
        )
        engine28.docker("network", "connect", "front", "web")
        site.serve("web", "tcp", PORT)
        site.serve("db", "tcp", 5432)
        yield site


@contextmanager
def serving(engine: Engine, *words: str) -> Iterator[tuple[Command, str]]:
    """Have the page served over the block; yields what serves it, and the URL that it prints."""
    command, env = pynet_command("map", "--serve", *words)
    running = engine.popen(*command, env=env, stdout=PIPE, stderr=PIPE)
    try:
        assert running.stdout is not None
        url = running.stdout.readline().strip()
        if not url:
            raise AssertionError(running.communicate()[1])
        yield running, url
    finally:
        running.kill_group()
        for stream in (running.stdout, running.stderr):
            if stream is not None:
                stream.close()


@contextmanager
def browsing(engine: Engine, folder: Path) -> Iterator[Page]:
    """Lend a browser on the engine's host, as somebody who sits there has it."""
    spaces = ("unshare", "--mount", "--propagation", "private", "--")
    running = engine.popen(*spaces, *start_words(folder), stdin=PIPE, stdout=PIPE)
    try:
        yield Page(running)
    finally:
        running.kill_group()
        for stream in (running.stdin, running.stdout):
            if stream is not None:
                stream.close()


def test_the_page_shows_this_host_and_goes_with_it(site: Site, tmp_path: Path) -> None:
    engine = site.engine
    with serving(engine) as (running, url), browsing(engine, tmp_path) as page:
        match = re.fullmatch(r"(http://127\.0\.0\.1:\d+/)open/([\w-]{40,})", url)
        assert match, url
        root, secret = match.groups()
        page.resize(1320, 600)
        page.open(root, until="/open the URL/.test(document.body?.innerText)")
        page.errors.clear()
        page.open(url, until=READY)
        assert page.run("location.href") == root
        assert page.run("document.cookie") == ""
        shown = json.loads(pynet(engine, "map", "--json", "--inside").stdout)
        assert_drawn(page, shown)
        assert {each["state"] for each in shown["faults"]} == {"warn"}, "at old nothing listens"
        assert page.run("document.querySelector('#faults').hidden")

        web = next(each for each in shown["containers"] if each["name"] == "web")
        page.click("[data-kind=container][data-name=web]")
        page.wait(f"/Routes/.test({DETAILS})")
        told = page.run(DETAILS)
        assert "default via 10.60.0.1" in told
        assert all(line in told for line in web["inside"]["routes"])
        assert f"{KEEPALIVE} = 600 (new: 7200)" in told
        assert "0.0.0.0:8080->80/tcp" in told
        page.press("Escape")

        (end,) = (each[1] for each in page.run(PAIRS) if each[2] == "old")
        type_search(page, end)
        assert [each[2] for each in page.run(PAIRS)] == ["old"]
        page.press("Escape")

        site.echo("db", ECHO)
        with site.stream("web", site.address("db", "back", 4), ECHO):
            page.wait("document.querySelectorAll('.wire.flows').length >= 2")
            page.wait("/[kMG]B[/]s/.test(document.querySelector('#board').innerText)")
            take_pictures(page)

        # The kernel tells of what is down, Docker of who is new.
        site.run("db", "ip", "link", "set", "eth0", "down")
        page.wait("document.querySelector('[data-kind=container][data-name=db].wrong')")
        assert "eth0 in db is down" in page.run("document.querySelector('#faults').innerText")
        site.run("db", "ip", "link", "set", "eth0", "up")
        page.wait("!document.querySelector('.wrong')")
        site.container("new", "front")
        page.wait("document.querySelector('[data-kind=container][data-name=new]')")

        assert page.errors == []
        assert {each.partition("?")[0].removeprefix(root) for each in page.requested} <= {
            "", "map.css", "map.js", "shape.js", "details.js", "map.json", "container.json",
            f"open/{secret}", "data:,",
        }  # fmt: skip
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 0
        page.wait(f"/no longer answers/.test({STATUS})")
        assert running.stderr is not None
        assert "ssh -L" in running.stderr.read()


def take_pictures(page: Page) -> None:
    """Write the pictures of the documents, if that is wanted: all of it, and one beside it."""
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=0, y=0)
    for scheme, width in (("light", 1260), ("dark", 1680)):
        page.prefer(scheme)
        page.resize(width, 640)
        picture = page.picture()
        if os.environ.get("PYNET_DOCS") == "write":
            assert len(picture) <= MOST_BYTES
            (PICTURES / f"map-{scheme}.png").write_bytes(picture)
        page.click("[data-kind=container][data-name=web]")
        page.wait(f"/Routes/.test({DETAILS})")
    page.press("Escape")


def test_a_second_one_has_its_own_port_and_a_taken_one_is_refused(site: Site) -> None:
    with serving(site.engine, "-6") as (_, url):
        match = re.fullmatch(r"http://\[::1\]:(\d+)/open/[\w-]{40,}", url)
        assert match, url
        refused = pynet(site.engine, "map", "-6", "--serve", match[1], check=False)
    assert refused.returncode == 1
    assert f"listen on ::1 port {match[1]}: Address already in use" in refused.stderr
    unknown = pynet(site.engine, "map", "nosuch", "--serve", check=False)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "called nosuch" in unknown.stderr


def test_a_file_and_the_json_agree(site: Site, tmp_path: Path) -> None:
    shown = json.loads(pynet(site.engine, "map", "--json").stdout)
    with apart(tmp_path) as page:
        (tmp_path / "map.html").write_text(pynet(site.engine, "map", "--html", "-").stdout)
        page.open(f"{FILES}map.html", until=READY)
        assert_drawn(page, shown)


def test_rates_are_shown_on_a_terminal(site: Site) -> None:
    ours, theirs = pty.openpty()
    command, env = pynet_command("map", "back", "--watch")
    env |= {"TERM": "xterm-256color", "COLUMNS": "160", "LINES": "40"}
    site.echo("db", ECHO)
    with site.stream("web", site.address("db", "back", 4), ECHO):
        running = site.engine.popen(*command, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        written = ""
        while not re.search(r"web:eth0  \S+ \S+  [\d.]+ [kMG]B/s in  [\d.]+ [kMG]B/s out", written):
            assert wait_readable([ours], 20), written
            written += os.read(ours, 65536).decode(errors="replace")
        running.send_signal(signal.SIGINT)
        while wait_readable([ours], 20):
            try:
                os.read(ours, 65536)
            except OSError:  # how a terminal says that nobody writes any more
                break
        os.close(ours)
        assert running.wait(10) == 0
