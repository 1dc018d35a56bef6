"""The managed plugin goes: what it leaves to running containers, and that nothing else is left.

What the documents tell people to type is what is typed here.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.engine import plugin_image
from tests.engine.conftest import THRIFTY
from tests.engine.driver import REPOSITORY
from tests.engine.engine import Engine
from tests.engine.plugin_image import NAME
from tests.engine.remains import Presence, driver_links, rules
from tests.engine.site import HOST_ADDRESS, LAN, Site
from tests.engine.soak import is_in_full
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = REPOSITORY / "docs/operations.md"
PORT, PUBLISHED = 80, 8080
FORWARD = "hook forward priority filter; policy "
DISABLE, REMOVE = ("plugin", "disable"), ("plugin", "rm")


def told(heading: str) -> str:
    """Return the last commands that the page gives under a heading."""
    section = re.split(r"^#+ ", PAGE.read_text().split(f"# {heading}\n")[1], flags=re.MULTILINE)[0]
    block: str = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[-1]
    return block


def do_as_told(engine: Engine, heading: str) -> None:
    """Type what the page tells, with the plugin's own reference in the place of the example's."""
    commands = re.sub(r"^REF=.*$", f"REF={NAME}", told(heading), flags=re.MULTILINE)
    engine.run(*engine.chroot("sh", "-eu", "-c", commands))


def files(engine: Engine) -> list[str]:
    """List what is called as the driver is, on the host's disk and in its `/run`."""
    places = (engine.folder / "lib", engine.folder / "upper", engine.outside / "run")
    found = (path.relative_to(place) for place in places for path in place.rglob("*pynet*"))
    return sorted(map(str, found))


@pytest.fixture(params=THRIFTY)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """Lend a host that nobody has used."""
    with Engine(request.param) as engine, Site(engine) as site:
        yield site


@pytest.fixture
def before(site: Site) -> Presence:
    """Enable the plugin and make a network by either name; return what was there before."""
    before = Presence.of(site.engine)
    assert files(site.engine) == []
    plugin_image.create(site.engine)
    site.engine.docker("plugin", "enable", NAME)
    site.network("pynet", "short", 60)
    site.network(NAME, "full", 61)
    # Forwarding of IPv6 was off: it stays on, and so does FORWARD dropping what nobody accepts.
    rules = before.rules.replace(f"{FORWARD}accept", f"{FORWARD}drop")
    if "table ip6 filter" not in rules:  # up to 26 Docker does nothing about IPv6
        chain = f"\tchain FORWARD {{\n\t\ttype filter {FORWARD}drop;\n\t}}\n"
        rules += f"table ip6 filter {{\n{chain}}}\n"
    return replace(before, rules=rules)


def await_presence(engine: Engine, wanted: Presence) -> None:
    """Wait until a host is as it was; the engine ends a plugin's processes after its answer."""
    try:
        wait_until(lambda: Presence.of(engine) == wanted, 10, "a host as it was")
    except TimeoutError:
        assert Presence.of(engine) == wanted


def test_removed_as_the_page_tells_it_leaves_nothing_at_all(site: Site, before: Presence) -> None:
    engine = site.engine
    for network, port in (("short", PUBLISHED), ("full", PUBLISHED + 1)):
        site.container(f"on-{network}", network, "-p", f"{port}:{PORT}")
    engine.docker("rm", "-f", "on-short", "on-full")
    do_as_told(engine, "Removing the plugin")
    await_presence(engine, before)
    assert files(engine) == []


def test_the_page_removes_nothing_under_a_running_container(site: Site, before: Presence) -> None:
    engine = site.engine
    site.container("web", "short", "-p", f"{PUBLISHED}:{PORT}")
    site.echo("web", PORT)
    with site.stream(LAN, HOST_ADDRESS[4], PUBLISHED), pytest.raises(Exception, match="endpoints"):
        do_as_told(engine, "Removing the plugin")


def test_gone_while_docker_has_networks_it_leaves_them_to_docker(
    site: Site, before: Presence
) -> None:
    engine = site.engine
    assert engine.docker(*DISABLE, NAME, check=False).returncode != 0  # it is in use
    engine.docker(*DISABLE, "-f", NAME)
    await_presence(engine, before)
    engine.docker(*REMOVE, "-f", NAME)
    await_presence(engine, before)
    if is_in_full():
        engine.docker("network", "rm", "short", timeout=60)  # Docker waits 15 s for an answer
        assert engine.docker("network", "ls", "-q", "--filter=driver=pynet").stdout == ""


def test_gone_under_a_running_container_it_leaves_that_its_network(
    site: Site, before: Presence
) -> None:
    engine = site.engine
    site.container("web", "short", "-p", f"{PUBLISHED}:{PORT}")
    site.echo("web", PORT)
    bridges = {name for name in driver_links(engine) if name.startswith("pn-")}
    assert len(bridges) == 2
    with site.stream(LAN, HOST_ADDRESS[4], PUBLISHED):
        engine.docker(*DISABLE, "-f", NAME)
        engine.docker(*REMOVE, "-f", NAME)
        left = Presence.of(engine)
        kept = set(driver_links(engine)) & bridges
        (idle,) = bridges - kept
        assert len(kept) == 1
        assert len(set(left.links) - set(before.links)) == 2, "bridge and host end"
        assert idle not in left.rules
        assert (left.listening, left.names) == (before.listening, before.names)
    if is_in_full():
        engine.docker("rm", "-f", "web", timeout=120)  # three times 15 s
    do_as_told(engine, "When the driver is gone and networks are left")
    now = Presence.of(engine)
    assert "pynet" not in now.rules
    assert replace(now, rules="", processes=[]) == replace(before, rules="", processes=[])
    assert "DOCKER" in rules(engine)
    assert files(engine) == []
