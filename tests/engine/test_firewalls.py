"""An operator's firewall beside Docker: every way that Docker's own bridge has, pynet has."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.engine import steps, ways
from tests.engine.conftest import THRIFTY, Choice, start
from tests.engine.driver import REPOSITORY
from tests.engine.firewalls import firewalld, ufw
from tests.engine.hosts import bridged_frames, with_legacy_iptables, without_iptables
from tests.engine.site import LAN, LAN_ADDRESS, Question, Site, is_modern
from tests.engine.unixhttp import request
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.conftest import Engines
    from tests.engine.driver import Driver
    from tests.engine.engine import Engine
    from tests.engine.firewalls import Firewalld

DRIVERS = ("pynet", "bridge")
PAGE = REPOSITORY / "docs/operations.md"
COMMANDS = ("iptables", "ip6tables")
USER = "DOCKER-USER"
FROM_LAN = f"-s {LAN_ADDRESS[4]}/32 -j DROP"
ASKED_FOR = "-p tcp -m conntrack --ctdir ORIGINAL --ctorigdstport"
FROM_OUTSIDE = {(4, ways.LAN_IN), (4, ways.OUT)}  # what comes from there, answers included
PROXIED = {(4, ways.NEAR_IN), (4, ways.FAR_IN)}  # on Docker's bridge
TO_PORTS = {*PROXIED, (4, ways.LAN_IN)}
DROPPING = """table inet operator {
    chain forward { type filter hook forward priority filter; policy drop; }
}"""
# Docker's bridge has a proxy for what containers send to a port of the host, where its rules do not
# get through; pynet forwards that, which the operator has forbidden.
BY_PROXY = {(v, name) for v in (4, 6) for name in (ways.NEAR_IN, ways.FAR_IN)}
NOT_FORWARDED = {
    *((v, name) for v in (4, 6) for name in (ways.OUT, ways.LAN_IN, ways.NEIGHBOUR)),
    *BY_PROXY,
}
APPENDED = "appended"
# What operators and their tools write in the chain that is theirs, and what that closes.
RULES = {
    "by source": ([f"-I {USER} {FROM_LAN}"], FROM_OUTSIDE),
    APPENDED: ([f"-A {USER} {FROM_LAN}"], FROM_OUTSIDE),
    "by interface": ([f"-I {USER} -i uplink -j DROP"], FROM_OUTSIDE),
    "by the port asked for": (
        [f"-I {USER} {ASKED_FOR} {ways.published(each)} -j DROP" for each in DRIVERS],
        TO_PORTS,
    ),
    "by a jump to a chain of bans": (
        ["-N f2b", f"-A f2b {FROM_LAN}", f"-I {USER} -j f2b"],
        FROM_OUTSIDE,
    ),
}
ZONE = ("--zone=pynet", "--list-interfaces")
SECONDS = 15.0  # how long a change of firewalld's may take to be followed


@pytest.fixture(params=THRIFTY)
def site(request: pytest.FixtureRequest, engines: Engines) -> Iterator[Site]:
    for engine in engines.lend(Choice(request.param), driver=True):
        with Site(engine) as site:
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
    """Tell whether Docker's and pynet's rules are in FORWARD, for both families.

    The jump itself: the chain that it leads to is there before, where firewalld has written in it.
    """
    ipv4, ipv6 = (engine.run(tables, "-S", "FORWARD").stdout for tables in COMMANDS)
    jump = f"-A FORWARD -j {USER}\n"
    is_dockers = jump in ipv4 and (jump in ipv6 or not is_modern(engine))
    return is_dockers and all("--comment pynet" in each for each in (ipv4, ipv6))


def pynet_networks(site: Site) -> list[str]:
    """Return the names of all networks of pynet's."""
    words = ("network", "ls", "-f", "driver=pynet", "--format", "{{.Name}}")
    return site.engine.docker(*words).stdout.split()


def await_both(site: Site, wall: Firewalld) -> None:
    """Wait until Docker and pynet have followed a change of firewalld's."""
    await_zone(site, wall, *pynet_networks(site))
    wait_until(lambda: is_followed(site.engine), SECONDS, "the rules in FORWARD")


def unprotected(site: Site) -> dict[ways.Way, Question]:
    """Make a network whose containers are open to the neighbour, and return what asks for them."""
    modes = (f"com.docker.network.bridge.gateway_mode_ipv{v}=nat-unprotected" for v in (4, 6))
    site.network("pynet", "c60", 62, *(word for mode in modes for word in ("-o", mode)))
    site.container("open", "c60")
    site.serve("open", "tcp", ways.PORT)
    return {
        ways.Way("pynet", version, "lan to container"): Question(
            LAN, site.address("open", "c60", version), ways.PORT, LAN_ADDRESS[version]
        )
        for version in (4, 6)
    }


def test_firewalld_lets_everything_through(site: Site) -> None:
    faults = list[str]()
    with with_firewalld(site.engine) as wall:
        ways.build(site, *DRIVERS)
        ways.serve_outside(site)
        asked = {**ways.ways(site, *DRIVERS), **unprotected(site)}
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


def test_firewalld_lets_everything_of_the_managed_plugin_through(managed_engine: Engine) -> None:
    """It reaches the bus by another way."""
    with Site(managed_engine) as site, with_firewalld(managed_engine) as wall:
        ways.build(site, "pynet")
        ways.serve_outside(site)
        asked = ways.ways(site, "pynet")
        faults = [*ways.find_faults(site, "firewalld", asked)]
        wall.command("--complete-reload")
        await_both(site, wall)
        faults += ways.find_faults(site, "after --complete-reload", asked)
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

        wall.stop()
        engine.docker("network", "rm", "again")
        wall.start()
        wait_until(lambda: not is_defined(wall), SECONDS, "what went meanwhile is forgotten, too")


def test_nobody_waits_for_a_firewalld_that_hangs(engine28: Engine) -> None:
    """Nobody but Docker: engines up to 26.1 ask firewalld at every network, for whatever driver."""
    engine = engine28
    with Site(engine) as site, with_firewalld(engine) as wall:
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


@contextmanager
def rules(engine: Engine, *wanted: str) -> Iterator[None]:
    """Have the operators' chain hold these rules in the block."""
    before = engine.run("iptables", "-w", "-S", USER).stdout.splitlines()[1:]
    for rule in wanted:
        engine.run("iptables", "-w", *rule.split())
    try:
        yield
    finally:
        for rule in (f"-F {USER}", *before):
            engine.run("iptables", "-w", *rule.split())
        for rule in ("-F f2b", "-X f2b"):
            engine.run("iptables", "-w", *rule.split(), check=False)


@contextmanager
def policy(engine: Engine, word: str) -> Iterator[None]:
    """Have FORWARD do this with what no rule judges, in the block."""
    before = [engine.run(each, "-w", "-S", "FORWARD").stdout.splitlines()[0] for each in COMMANDS]
    for command in COMMANDS:
        engine.run(command, "-w", "-P", "FORWARD", word)
    try:
        yield
    finally:
        for command, line in zip(COMMANDS, before, strict=True):
            engine.run(command, "-w", *line.split())


@contextmanager
def table(engine: Engine, text: str) -> Iterator[None]:
    """Have a table `inet operator` in the block."""
    engine.run("nft", "-f", "-", stdin=text)
    try:
        yield
    finally:
        engine.run("nft", "delete", "table", "inet", "operator")


def page(heading: str, kind: str, **names: str) -> list[str]:
    """Return what operators are told to write there, in blocks of a kind, a line each or a text.

    Names are what stands on this host for those of the page.
    """
    _, _, section = PAGE.read_text().partition("\n## Beside your firewall\n")
    _, _, section = section.partition("\n## ")[0].partition(f"\n### {heading}\n")
    text = section.partition("\n### ")[0]
    for name, value in {"eth0": "uplink", **names}.items():
        text = text.replace(name.replace("_", "-"), value)
    blocks = re.findall(rf"```{re.escape(kind)}\n(.*?)```", text, re.DOTALL)
    assert blocks, (heading, kind)
    if kind == "console":
        return [line.removeprefix("# ") for block in blocks for line in block.splitlines()]
    return blocks


def test_every_way_is_as_the_operator_has_it(site: Site) -> None:
    engine, faults = site.engine, list[str]()
    ways.build(site, *DRIVERS)
    ways.serve_outside(site)
    asked = ways.ways(site, *DRIVERS)
    faults += ways.find_faults(site, "nothing else", asked)
    for name, (written, closed) in RULES.items():
        if name == APPENDED and not is_modern(engine):
            continue  # before, Docker's chain ends with a RETURN
        with rules(engine, *written):
            faults += ways.find_faults(site, name, asked, closed, PROXIED)
    for word in ("DROP", "ACCEPT"):
        for passing in (True, False):
            with policy(engine, word), bridged_frames(engine, pass_iptables=passing):
                when = f"policy {word}, br_netfilter {passing}"
                faults += ways.find_faults(site, when, asked)
    with table(engine, DROPPING):
        faults += ways.find_faults(site, "a table that drops", asked, NOT_FORWARDED, BY_PROXY)
    assert not faults, "\n".join(faults)


def test_what_operators_are_told_to_write_does_what_is_said(site: Site) -> None:
    engine, faults = site.engine, list[str]()
    ways.build(site, "pynet")
    ways.serve_outside(site)
    asked = ways.ways(site, "pynet")
    port = {"8080": str(ways.published("pynet")), "br_front": bridge_of(site, "a60")}
    first, second, third = page("DOCKER-USER", "console", **port)
    for line, closed in (
        (first, {(4, ways.LAN_IN)}),
        (second, {(4, ways.LAN_IN)}),
        (third, {(6, ways.LAN_IN)}),
    )[: 3 if is_modern(engine) else 2]:  # before, Docker has no such chain for IPv6
        engine.run(*line.split())
        faults += ways.find_faults(site, line, asked, closed)
        engine.run(*line.replace("-I", "-D").split())
    forward, incoming = page("nftables", "nft", **port)
    with table(engine, forward):
        closed = {(version, ways.LAN_IN) for version in (4, 6)}
        faults += ways.find_faults(site, forward, asked, closed)
    with table(engine, incoming):
        faults += ways.find_faults(site, incoming, asked)
    with table(engine, incoming.replace("7070", "7071")):
        closed = {(version, ways.TO_HOST) for version in (4, 6)}
        faults += ways.find_faults(site, "another service", asked, closed)
    assert not faults, "\n".join(faults)


def test_ufw_lets_everything_through_but_to_the_host(site: Site) -> None:
    engine, faults = site.engine, list[str]()
    with booted(engine), ufw(engine) as wall:
        start(engine, driver=True)
        ways.build(site, *DRIVERS)
        ways.serve_outside(site)
        asked = ways.ways(site, *DRIVERS)
        to_host = {(version, ways.TO_HOST) for version in (4, 6)}
        # A container reaches Docker's own proxy, a service of the host's, as little.
        faults += ways.find_faults(site, "ufw, then Docker", asked, to_host)
        wall.command("disable")
        wall.command("--force", "enable")
        wait_until(lambda: is_followed(engine), SECONDS, "the rules in FORWARD")
        faults += ways.find_faults(site, "ufw enabled anew", asked, to_host)

        asked = ways.ways(site, "pynet")
        names = {"8080": str(ways.published("pynet")), "br_front": bridge_of(site, "a60")}
        (line,) = page("ufw", "console", **names)
        wall.command(*line.split()[1:])
        faults += ways.find_faults(site, line, asked)
        (text,) = page("ufw", "after.rules", **names)
        wall.append("/etc/ufw/after.rules", text)
        wall.command("reload")
        wait_until(lambda: is_followed(engine), SECONDS, "the rules in FORWARD")
        faults += ways.find_faults(site, text, asked, {(4, ways.LAN_IN)})
    assert not faults, "\n".join(faults)


def test_what_operators_are_told_of_firewalld_does_what_is_said(site: Site) -> None:
    faults = list[str]()
    with with_firewalld(site.engine) as wall:
        ways.build(site, "pynet")
        ways.serve_outside(site)
        asked = ways.ways(site, "pynet")
        bridge = bridge_of(site, "a60")
        names = {"8080": str(ways.published("pynet")), "br_front": bridge}
        lines = page("firewalld", "console", **names)
        for line in lines[2:]:
            wall.command(*line.split()[1:])
        await_both(site, wall)
        faults += ways.find_faults(site, "a direct rule", asked, {(4, ways.LAN_IN)})
        for line in lines[:2]:
            wall.command(*line.split()[1:])
        await_zone(site, wall, "b60")
        assert wall.command(f"--get-zone-of-interface={bridge}") == "work"
    assert not faults, "\n".join(faults)


def test_nothing_is_worse_where_docker_has_no_firewall(site: Site) -> None:
    engine = site.engine
    with booted(engine), without_iptables(engine):
        faults = look(site)
    assert not faults, "\n".join(faults)


def test_nothing_is_worse_where_docker_uses_the_older_iptables(site: Site) -> None:
    engine = site.engine
    with booted(engine), with_legacy_iptables(engine):
        faults = look(site)
    assert not faults, "\n".join(faults)


def look(site: Site) -> list[str]:
    ways.build(site, *DRIVERS)
    ways.serve_outside(site)
    return [*ways.find_faults(site, "booted", ways.ways(site, *DRIVERS))]
