"""An operator's firewall beside Docker: every way that Docker's own bridge has, pynet has."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.engine import steps, ways
from tests.engine.conftest import start
from tests.engine.firewalls import firewalld
from tests.engine.site import Site
from tests.engine.unixhttp import request
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.driver import Driver
    from tests.engine.engine import Engine
    from tests.engine.firewalls import Firewalld

DRIVERS = ("pynet", "bridge")
ZONE = ("--zone=pynet", "--list-interfaces")
SECONDS = 15.0  # how long a change of firewalld's may take to be followed


@pytest.fixture
def site(engine28: Engine) -> Iterator[Site]:
    with Site(engine28) as site:
        yield site


@contextmanager
def booted(engine: Engine) -> Iterator[None]:
    """Have the host boot anew with what is begun in the block, and once more afterwards."""
    engine.reboot()
    try:
        yield
    finally:
        engine.reboot()  # for the next test, the firewall of a fresh machine


@contextmanager
def with_firewalld(engine: Engine) -> Iterator[Firewalld]:
    """Have a host that booted with firewalld, then with Docker and the driver."""
    with booted(engine), firewalld(engine) as wall:
        start(engine, driver=True)
        yield wall


def bridge_of(site: Site, network: str) -> str:
    """Return the bridge of a network of pynet's."""
    return f"pn-{site.engine.docker('network', 'inspect', '-f', '{{.Id}}', network).stdout[:12]}"


def await_zone(site: Site, wall: Firewalld, *networks: str) -> None:
    """Wait until pynet's zone has the bridges of these networks, and no others."""
    wanted = {bridge_of(site, network) for network in networks}
    wait_until(lambda: set(wall.command(*ZONE).split()) == wanted, SECONDS, f"{wanted} in the zone")


def is_defined(wall: Firewalld) -> bool:
    """Tell whether anything of pynet's is in the permanent configuration."""
    lists = (wall.command("--permanent", kind) for kind in ("--get-zones", "--get-policies"))
    return any("pynet" in each for each in lists)


def is_followed(engine: Engine) -> bool:
    """Tell whether Docker's and pynet's rules are in FORWARD, for both families."""
    shown = (engine.run(tables, "-S").stdout.split() for tables in ("iptables", "ip6tables"))
    return all({"DOCKER-USER", "pynet"} <= set(words) for words in shown)


def await_both(site: Site, wall: Firewalld) -> None:
    """Wait until Docker and pynet have followed a change of firewalld's."""
    await_zone(site, wall, "a60", "b60")
    wait_until(lambda: is_followed(site.engine), SECONDS, "the rules in FORWARD")


@pytest.mark.managed("always")
def test_firewalld_lets_everything_through(site: Site) -> None:
    faults: list[str] = []
    with with_firewalld(site.engine) as wall:
        ways.build(site, *DRIVERS)
        ways.serve_outside(site)
        asked = ways.ways(site, *DRIVERS)
        faults += ways.find_faults(site, "firewalld", asked)
        for change in ("--reload", "--complete-reload"):
            wall.command(change)
            await_both(site, wall)
            faults += ways.find_faults(site, f"after {change}", asked)
        wall.stop()
        faults += ways.find_faults(site, "without firewalld", ways.ways(site, "pynet"))
        wall.start()
        await_both(site, wall)
        faults += ways.find_faults(site, "after a restart of firewalld", asked)
    assert not faults, "\n".join(faults)


def test_the_zone_is_there_as_long_as_networks_are(site: Site) -> None:
    """Also for one that is made before firewalld is started, and where others meddle."""
    engine = site.engine
    with with_firewalld(engine) as wall:
        wall.stop()
        steps.create_network(engine, "early")
        wall.start()
        await_zone(site, wall, "early")
        steps.create_network(engine, "late")
        early, late = bridge_of(site, "early"), bridge_of(site, "late")
        assert set(wall.command(*ZONE).split()) == {early, late}, "when it is made it is let be"

        wall.command("--zone=pynet", f"--remove-interface={late}")
        await_zone(site, wall, "early", "late")
        # Where the operator puts a bridge, it stays, as Docker's does.
        wall.command("--zone=work", f"--change-interface={late}")
        steps.revive_driver(engine)
        assert wall.command(f"--get-zone-of-interface={late}") == "work"
        assert set(wall.command(*ZONE).split()) == {early}

        engine.docker("network", "rm", "early")
        await_zone(site, wall)
        engine.docker("network", "rm", "late")
        wait_until(lambda: not is_defined(wall), SECONDS, "no zone and no policy")
        wall.command("--reload")
        assert "pynet" not in wall.command("--get-zones")
        steps.create_network(engine, "again")
        assert wall.command(*ZONE) == bridge_of(site, "again")


def test_nobody_waits_for_a_firewalld_that_hangs(site: Site) -> None:
    engine = site.engine
    with with_firewalld(engine) as wall:
        driver = engine.driver
        assert driver is not None
        steps.create_network(engine, "first")
        with wall.paused():
            began = time.monotonic()
            steps.create_network(engine, "second")
            steps.run_once(engine, "second", "true")
            assert time.monotonic() - began < SECONDS / 2
            wait_until(lambda: "no answer in" in health(driver), SECONDS, "health says so")
            found = steps.pynet(engine, "check", check=False).stdout
            assert "firewalld rejects what passes" in found
        await_zone(site, wall, "first", "second")
        wait_until(lambda: "firewalld" not in health(driver), SECONDS, "health is well again")


def health(driver: Driver) -> str:
    return request(driver.socket, "GET", "/health")[1].decode()
