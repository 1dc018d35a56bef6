"""Hosts that are odd but ordinary: pynet does there what Docker's own bridge does."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from subprocess import PIPE
from typing import TYPE_CHECKING

import pytest

from tests.engine import steps
from tests.engine.site import (
    HOST,
    HOST_ADDRESS,
    LAN,
    LAN_ADDRESS,
    LOOPBACK,
    PROBE,
    Question,
    Site,
    check,
    families,
    is_modern,
)
from tests.engine.unixhttp import request
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine

pytestmark = pytest.mark.managed

DRIVERS = ("pynet", "bridge")
PORT, PUBLISHED, OTHER = 80, 8080, 8081


@pytest.fixture
def site(engine: Engine) -> Iterator[Site]:
    with Site(engine) as site:
        yield site


@contextmanager
def without_ipv6(engine: Engine) -> Iterator[None]:
    """Have IPv6 turned off on the host in the block, as a file of sysctl.d does it."""
    keys = [f"net.ipv6.conf.{name}.disable_ipv6" for name in ("all", "default", "lo")]
    address = (f"{HOST_ADDRESS[6]}/64", "dev", "uplink")
    engine.run("sysctl", "-qw", *(f"{key}=1" for key in keys))
    try:
        yield
    finally:
        engine.run("sysctl", "-qw", *(f"{key}=0" for key in keys))
        engine.run("ip", "address", "replace", *address, "nodad")
        engine.run("ip", "-6", "route", "replace", "default", "via", LAN_ADDRESS[6])


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_host_without_ipv6_has_networks_with_it(site: Site, driver: str) -> None:
    engine = site.engine
    with without_ipv6(engine):
        site.network(driver, "a", 60)
        site.network(driver, "b", 61, ipv6=False)
        site.containers({"web": ("a", "-p", f"{PUBLISHED}:{PORT}"), "near": ("a",)})
        site.serve("web", "tcp", PORT)
        if driver == "pynet":
            steps.revive_driver(engine)
        site.container("late", "b", "-p", f"{OTHER}:{PORT}")
        site.serve("late", "tcp", PORT)
        site.serve(LAN, "tcp", PORT)
        # Up to 26 the bridge's containers have no IPv6 then either.
        near = {each: site.address("near", "a", each) for each in families(engine, driver)}
        check(
            site,
            [
                *(Question("near", site.address("web", "a", v), PORT, near[v]) for v in near),
                *(
                    question
                    for port in (PUBLISHED, OTHER)
                    for question in (
                        Question(LAN, HOST_ADDRESS[4], port, LAN_ADDRESS[4]),
                        Question(HOST, LOOPBACK[4], port, "*"),
                    )
                ),
                *(
                    Question(each, LAN_ADDRESS[4], PORT, HOST_ADDRESS[4])
                    for each in ("web", "late")
                ),
            ],
        )
        if driver == "pynet":
            told = json.loads(steps.pynet(engine, "check", "--json").stdout)
            assert told["differences"] == []
            assert "net.ipv6.conf.all.disable_ipv6" in {
                each["setting"] for each in told["warnings"]
            }


GUARD = """
table inet guard {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state vmap { established : accept, related : accept, invalid : drop }
        iifname "lan0" oifname "uplink" accept
    }
}
"""
# What an operator has that keeps every container in: how it is set and taken back, and what pynet
# calls it.
CLOSED = {
    "an operator's own table": (
        ("nft", "-f", "-"),
        ("nft", "delete", "table", "inet", "guard"),
        ("filter", "inet guard forward"),
    ),
    "no forwarding": (
        ("sysctl", "-qw", "net.ipv4.ip_forward=0"),
        ("sysctl", "-qw", "net.ipv4.ip_forward=1"),
        ("forwarding", "net.ipv4.ip_forward"),
    ),
}


def paths(site: Site, *, are_open: bool) -> list[Question]:
    """Return the ways out of a container and in from the neighbour, open or closed."""
    out, into = (HOST_ADDRESS[4], LAN_ADDRESS[4]) if are_open else (None, None)
    return [
        Question("web", LAN_ADDRESS[4], PORT, out),
        Question(LAN, HOST_ADDRESS[4], PUBLISHED, into),
    ]


def problems(engine: Engine) -> list[str]:
    """Return what health tells of."""
    assert engine.driver is not None
    found: list[str] = json.loads(request(engine.driver.socket, "GET", "/health")[1])["problems"]
    return found


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(("close", "reopen", "named"), CLOSED.values(), ids=CLOSED)
def test_what_keeps_containers_in_is_named_with_what_would_help(
    site: Site,
    driver: str,
    close: tuple[str, ...],
    reopen: tuple[str, ...],
    named: tuple[str, str],
) -> None:
    """It keeps in those of Docker's bridge as well, which does not say so."""
    engine = site.engine
    site.network(driver, "a", 60, ipv6=False)
    site.container("web", "a", "-p", f"{PUBLISHED}:{PORT}")
    site.serve("web", "tcp", PORT)
    site.serve(LAN, "tcp", PORT)
    check(site, paths(site, are_open=True))
    engine.run(*close, stdin=GUARD)
    try:
        if driver == "bridge":
            # Its proxy serves the port all the same, up to 27 or without forwarding.
            check(site, paths(site, are_open=False)[:1])
            return
        check(site, paths(site, are_open=False))
        (problem,) = wait_until(lambda: problems(engine), 5, "health says so")
        assert problem.startswith(" ".join(named))
        done = steps.pynet(engine, "check", "--json", check=False)
        assert done.returncode == 4
        (found,) = json.loads(done.stdout)["differences"]
        assert (found["kind"], found["subject"]) == named
        help_ = found["text"].rpartition("; ")[2]
        words = ("nft", "-f", "-") if help_.startswith("nft ") else tuple(help_.split())
        engine.run(*words, stdin=help_.removeprefix("nft ") + "\n")
        check(site, paths(site, are_open=True))
        assert json.loads(steps.pynet(engine, "check", "--json").stdout)["differences"] == []
    finally:
        engine.run(*reopen)
    if driver == "pynet":
        wait_until(lambda: not problems(engine), 5, "all is well")


OTHERS, OTHERS_NET = "10.210.0.2", "10.210.0.1/24"


@contextmanager
def others_containers(engine: Engine, bridge: str, card: str) -> Iterator[None]:
    """Have another program's containers on the host in the block, one on a bridge of their own.

    As LXC and Incus make it: a veth whose other end is in a namespace with the bridge as gateway,
    and rules that let everybody through.
    """
    host, inside = f"{card}", "others0"
    engine.run("ip", "netns", "add", "others")
    engine.run("ip", "link", "add", bridge, "up", "type", "bridge")
    engine.run("ip", "address", "add", OTHERS_NET, "dev", bridge)
    engine.run("ip", "link", "add", host, "type", "veth", "peer", "name", inside)
    engine.run("ip", "link", "set", host, "master", bridge, "up")
    engine.run("ip", "link", "set", inside, "netns", "others")
    within = ("ip", "netns", "exec", "others", "ip")
    engine.run(*within, "address", "add", f"{OTHERS}/24", "dev", inside)
    engine.run(*within, "link", "set", inside, "up")
    engine.run(*within, "route", "add", "default", "via", OTHERS_NET.partition("/")[0])
    rules = [("FORWARD", way, bridge, "-j", "ACCEPT") for way in ("-i", "-o")]
    for rule in rules:
        engine.run("iptables", "-w", "-A", *rule)
    serve = (
        "ip",
        "netns",
        "exec",
        "others",
        sys.executable,
        "-I",
        PROBE,
        "serve",
        "tcp",
        str(PORT),
    )
    server = engine.popen(*serve, stdout=PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()
        for rule in rules:
            engine.run("iptables", "-w", "-D", *rule)
        engine.run("ip", "link", "delete", bridge)
        engine.run("ip", "netns", "delete", "others")


def from_others(engine: Engine, *asked: tuple[str, int, bool]) -> None:
    """Ask from another program's container: where, which port, and whether there is an answer."""
    questions = [
        Question("others", host, port, "*" if open_ else None) for host, port, open_ in asked
    ]
    ask = ("ip", "netns", "exec", "others", sys.executable, "-I", PROBE, "ask")
    answers = json.loads(
        engine.run(*ask, stdin=json.dumps([each.encode() for each in questions])).stdout
    )
    wrong = [each.wrong(got) for each, got in zip(questions, answers, strict=True)]
    assert not any(wrong), wrong


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("bridge", "card"), [("lxcbr0", "vethAbCdEf"), ("incusbr0", "veth01234567"), ("br0", "eth0")]
)
def test_containers_reach_what_the_host_lets_dockers_reach(
    site: Site, driver: str, bridge: str, card: str
) -> None:
    """And nobody there reaches what they do not publish."""
    engine = site.engine
    site.network(driver, "a", 60, ipv6=False)
    site.container("web", "a", "-p", f"{PUBLISHED}:{PORT}")
    site.serve("web", "tcp", PORT, PORT + 1)
    with others_containers(engine, bridge, card):
        gateway = OTHERS_NET.partition("/")[0]
        if driver == "pynet":
            shown = ("nft", "list", "set", "inet", "pynet", "uplinks")
            wait_until(lambda: bridge in engine.run(*shown).stdout, 5, "it is known")
        check(site, [Question("web", OTHERS, PORT, gateway)])
        web = site.address("web", "a", 4)
        # Docker's bridge leaves that to the host's rules up to 27.
        closed = [(web, PORT + 1, False)] if driver == "pynet" or is_modern(engine) else []
        from_others(engine, (gateway, PUBLISHED, True), *closed)
        if driver == "pynet":
            steps.revive_driver(engine)
            check(site, [Question("web", OTHERS, PORT, gateway)])


@pytest.mark.parametrize("name", [(), ("-o", "com.docker.network.bridge.name=named")])
def test_dockers_bridges_are_kept_apart_however_they_are_called(
    site: Site, name: tuple[str, ...]
) -> None:
    engine = site.engine
    site.network("pynet", "a", 60, ipv6=False)
    site.network("bridge", "d", 62, *name, ipv6=False)
    site.containers({"web": ("a",), "dock": ("d",)})
    for each in ("web", "dock"):
        site.serve(each, "tcp", PORT)
    dock, web = site.address("dock", "d", 4), site.address("web", "a", 4)
    apart = [Question("web", dock, PORT, None), Question("dock", web, PORT, None)]
    if name:
        shown = ("nft", "list", "set", "inet", "pynet", "uplinks")
        wait_until(lambda: "named" not in engine.run(*shown).stdout, 5, "it is known")
    check(site, apart)
    steps.revive_driver(engine)
    check(site, apart)
