"""`pynet doctor` on a host with Docker: each cause is provoked, and is the one that it names."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from subprocess import PIPE
from typing import TYPE_CHECKING

import pytest

from tests.engine.diagnosis import (
    Case,
    ask,
    bridge_name,
    host_end,
    listening,
    parameter,
    running,
    tried,
)
from tests.engine.site import HOST, HOST_ADDRESS, LAN, LAN_ADDRESS, Site, major
from tests.engine.steps import pynet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.engine.engine import Engine

PORT, PUBLISHED, ELSEWHERE, SERVICE, SILENT = 80, 8080, 3000, 7070, 7071
LAN_SERVICE = f"{LAN_ADDRESS[4]}:{SERVICE}"
BRIDGED = "net.bridge.bridge-nf-call-iptables"
POLICY_DROP = "{ type filter hook forward priority 0; policy drop; }"
HEALTHY = (
    ("client", f"web:{PORT}"),
    ("client", f"host:{SERVICE}"),
    ("client", LAN_SERVICE),
    ("host", f"web:{PORT}"),
    ("client", f"{HOST_ADDRESS[4]}:{PUBLISHED}"),
)


@pytest.fixture(params=["pynet", "bridge"])
def driver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def site(newest_engine: Engine, driver: str) -> Iterator[Site]:
    """Lend networks of one driver: with a server and its client, with a stranger, internal."""
    with Site(newest_engine) as site:
        site.network(driver, "back", 60)
        site.network(driver, "front", 61)
        site.network(driver, "inner", 62, "--internal")
        ports = ("-p", f"{PUBLISHED}:{PORT}", "-p", f"127.0.0.1:81:{ELSEWHERE}")
        site.containers(
            {
                "web": ("back", *ports),
                "client": ("back",),
                "stranger": ("front",),
                "inside": ("inner",),
            }
        )
        site.serve("web", "tcp", PORT, 90)
        site.serve(HOST, "tcp", SERVICE)
        site.serve(LAN, "tcp", SERVICE)
        yield site


@contextmanager
def foreign_table(site: Site, *rule: str) -> Iterator[None]:
    """Have another program's table drop what is forwarded: by its policy, or by a rule."""
    run = site.engine.run
    with running(
        site, "nft", "add", "table", "inet", "fw", undo=("nft", "delete", "table", "inet", "fw")
    ):
        run(
            "nft",
            "add",
            "chain",
            "inet",
            "fw",
            "f",
            POLICY_DROP if not rule else POLICY_DROP.replace("drop", "accept"),
        )
        if rule:
            run("nft", "add", "rule", "inet", "fw", "f", *rule)
        yield


@contextmanager
def bridged(site: Site) -> Iterator[None]:
    """Have frames within a bridge pass iptables, beside a table that drops them."""
    with parameter(site, BRIDGED, "1"), foreign_table(site):
        yield


@contextmanager
def silent_lan(site: Site) -> Iterator[None]:
    """Have the neighbour not answer at a port."""
    run = site.engine.lan_run
    run("nft", "add", "table", "inet", "far")
    try:
        run("nft", "add", "chain", "inet", "far", "i", "{ type filter hook input priority 0; }")
        run("nft", "add", "rule", "inet", "far", "i", "tcp", "dport", str(SILENT), "drop")
        yield
    finally:
        run("nft", "delete", "table", "inet", "far")


def host_rule(site: Site) -> AbstractContextManager[None]:
    """Have the host's own firewall keep everybody from one of its services."""
    rule = ("INPUT", "-p", "tcp", "--dport", str(SERVICE), "-j", "DROP")
    return running(site, "iptables", "-I", *rule, undo=("iptables", "-D", *rule))


@contextmanager
def other_way_back(site: Site) -> Iterator[None]:
    """Have the host answer a stranger by another interface than the stranger comes by."""
    route = ("198.51.100.0/24", "dev", "docker0")
    with (
        parameter(site, "net.ipv4.conf.uplink.rp_filter", "1"),
        running(site, "ip", "route", "add", *route, undo=("ip", "route", "del", *route)),
    ):
        yield


def deaf_bridge(site: Site) -> AbstractContextManager[None]:
    """Have the bridge answer no ARP; who knows its MAC address already would not notice."""
    site.engine.run(*site.enter("client"), "ip", "neigh", "flush", "all")
    return parameter(site, f"net.ipv4.conf.{bridge_name(site, 'back')}.arp_ignore", "8")


def wrong_neighbour(site: Site) -> AbstractContextManager[None]:
    """Have the host know the server by a MAC address that nobody has."""
    entry = (site.address("web", "back", 4), "dev", bridge_name(site, "back"))
    wrong = (*entry, "lladdr", "02:00:00:00:00:99", "nud", "permanent")
    return running(site, "ip", "neigh", "replace", *wrong, undo=("ip", "neigh", "del", *entry))


@contextmanager
def one_port(site: Site) -> Iterator[None]:
    """Have the client one port of its own for its calls, and a connection that uses it."""
    key = "net.ipv4.ip_local_port_range"
    inside = site.enter("client")
    before = site.engine.run(*inside, "sysctl", "-n", key).stdout.strip()
    site.engine.run(*inside, "sysctl", "-w", f"{key}=50000 50000")
    code = (
        "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2])));"
        "print(flush=True); sys.stdin.read()"
    )
    argv = (*inside, sys.executable, "-c", code, site.address("web", "back", 4), str(PORT))
    caller = site.engine.popen(*argv, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    assert caller.stdout is not None
    assert caller.stdout.readline() == "\n"
    yield
    caller.result()
    site.engine.run(*inside, "sysctl", "-w", f"{key}={before}")


def blackhole(site: Site) -> AbstractContextManager[None]:
    """Have a route of the host's forbid an address."""
    route = ("blackhole", LAN_ADDRESS[4])
    return running(site, "ip", "route", "add", *route, undo=("ip", "route", "del", *route))


def on_loopback(where: str) -> Callable[[Site], AbstractContextManager[None]]:
    return lambda site: listening(site, where, "127.0.0.1", ELSEWHERE)


def by_rule(site: Site) -> AbstractContextManager[None]:
    return foreign_table(site, "tcp", "dport", str(SERVICE), "drop")


NO_ROUTE = Case("no-route", "inside", LAN_SERVICE)
OLD = replace(NO_ROUTE, bridge="docker-policy")  # Docker gave internal networks a way out, once

CASES = (
    Case(
        "listens-elsewhere",
        "client",
        f"web:{ELSEWHERE}",
        on_loopback("web"),
        f"127.0.0.1:{ELSEWHERE}",
        "refused",
    ),
    Case("listens-elsewhere", "host", f"web:{ELSEWHERE}", on_loopback("web"), verdict="refused"),
    Case("listens-elsewhere", "client", f"host:{ELSEWHERE}", on_loopback(HOST), verdict="refused"),
    Case("not-listening", "client", "web:81", verdict="refused"),
    Case("not-published", "outside", "web:90"),
    Case("published-elsewhere", "outside", f"web:{ELSEWHERE}", words="127.0.0.1:81"),
    NO_ROUTE,
    Case("foreign-firewall", "client", LAN_SERVICE, foreign_table, "inet fw f, policy drop"),
    Case("foreign-firewall", "client", LAN_SERVICE, by_rule, "rule 1: tcp dport 7070 drop"),
    Case(
        "forwarding-off",
        "client",
        LAN_SERVICE,
        lambda site: parameter(site, "net.ipv4.ip_forward", "0"),
    ),
    Case("host-firewall", "client", f"host:{SERVICE}", host_rule, "ip filter INPUT, rule 1"),
    Case("bridged-through-iptables", "client", f"web:{PORT}", bridged, BRIDGED),
    Case("forbidden-route", "client", LAN_SERVICE, blackhole),
    Case("arp-ignored", "client", LAN_SERVICE, deaf_bridge),
    Case("stale-neighbour", "host", f"web:{PORT}", wrong_neighbour, "02:00:00:00:00:99"),
    Case("ports-used-up", "client", f"web:{PORT}", one_port, verdict="unanswered"),
    Case("beyond", "client", f"{LAN_ADDRESS[4]}:{SILENT}", silent_lan, "uplink", "unanswered"),
    Case("reverse-path", "198.51.100.7", f"web:{PORT}", other_way_back, "by uplink for forged"),
    Case(
        "own-policy", "stranger", f"web:{PORT}", words="different networks", bridge="docker-policy"
    ),
)


def test_each_cause_is_named_and_nothing_is_where_all_is_well(site: Site, driver: str) -> None:
    cases = [OLD if each == NO_ROUTE and major(site.engine) < 26 else each for each in CASES]
    faults = [fault for each in cases if (fault := tried(site, driver, each))]
    for source, target in HEALTHY:
        found = ask(site, source, target)
        states = {step["state"] for step in found["steps"]}
        if (found["verdict"], found["cause"], states, found["not_seen"]) != (
            "reaches",
            None,
            {"ok"},
            [],
        ):
            faults.append(f"{source} > {target}: {found}")
    found = ask(site, "outside", f"web:{PORT}")
    if found["cause"] is not None or {step["state"] for step in found["steps"]} != {"ok"}:
        faults.append(f"outside: {found}")
    done = pynet(site.engine, "doctor", "--json", check=False)
    said = {step["state"] for step in json.loads(done.stdout)["steps"]}
    # A port that only another case has a listener for is worth a look, and no fault.
    if done.returncode != 0 or not said <= {"ok", "warn"}:
        faults.append(f"the host and all networks: {done.stdout}")
    assert not faults, "\n".join(faults)


def test_what_was_set_down_taken_off_or_leads_elsewhere(site: Site, driver: str) -> None:
    engine = site.engine
    if major(engine) < 28:
        pytest.skip("networks have gateway priorities from 28 on")
    engine.docker("network", "connect", "front", "web", "--gw-priority=1")
    bridge = bridge_name(site, "front")
    with ExitStack() as stack:
        stack.enter_context(parameter(site, f"net.ipv4.conf.{bridge}.rp_filter", "1"))
        assert ask(site, "outside", f"web:{PORT}")["cause"]["id"] == "answer-elsewhere"
    engine.run(*site.enter("stranger"), "ip", "link", "set", "eth0", "down")
    assert ask(site, "stranger", LAN_SERVICE)["cause"]["id"] == "interface-down"
    assert engine.driver is not None
    if driver == "pynet":
        engine.driver.kill()  # or it puts it back at once
    engine.run("ip", "link", "set", host_end(site, "client"), "nomaster")
    assert ask(site, "client", f"web:{PORT}")["cause"]["id"] == "off-bridge"
    done = pynet(engine, "doctor", check=False)
    assert done.returncode == 4
    assert "[off-bridge]" in done.stdout
    assert "[interface-down]" in done.stdout


def test_the_closed_network_says_that_it_is_closed(newest_engine: Engine) -> None:
    with Site(newest_engine) as site:
        site.network("pynet", "closed", 63, "-o", "com.docker.network.bridge.enable_icc=false")
        site.containers({"one": ("closed",), "two": ("closed",)})
        site.serve("one", "tcp", PORT)
        found = ask(site, "two", f"one:{PORT}")
        assert found["cause"]["id"] == "own-policy"
        assert "enable_icc=false" in found["cause"]["text"]


def test_a_network_may_have_ipv6_alone(newest_engine: Engine) -> None:
    if major(newest_engine) < 28:
        pytest.skip("networks may be without IPv4 from 28 on")
    with Site(newest_engine) as site:
        words = ("--ipv6", "--ipv4=false", "--subnet", "fd64::/64", "-d", "pynet", "six")
        newest_engine.docker("network", "create", *words)
        site.containers({"one": ("six", "-p", f"{PUBLISHED}:{PORT}"), "two": ("six",)})
        site.serve("one", "tcp", PORT)
        found = ask(site, "two", f"one:{PORT}")
        assert (found["verdict"], found["cause"]) == ("reaches", None), found
        assert ask(site, "outside", f"one:{PORT}")["cause"] is None
