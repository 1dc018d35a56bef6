"""`pynet doctor` on a host with Docker: each cause is provoked, and is the one that it names."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.site import HOST, HOST_ADDRESS, LAN, LAN_ADDRESS, Site
from tests.engine.steps import pynet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine

PORT, PUBLISHED, ELSEWHERE, SERVICE = 80, 8080, 3000, 7070
TIMEOUT = "0.5"
DRIVERS = ("pynet", "bridge")


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def site(engine28: Engine, driver: str) -> Iterator[Site]:
    """Lend two networks, one with a server and its client, one with a stranger."""
    with Site(engine28) as site:
        for number, name in ((60, "back"), (61, "front")):
            site.network(driver, name, number)
        site.container(
            "web", "back", "-p", f"{PUBLISHED}:{PORT}", "-p", f"127.0.0.1:81:{ELSEWHERE}"
        )
        site.container("client", "back")
        site.container("stranger", "front")
        site.serve("web", "tcp", PORT)
        site.serve(HOST, "tcp", SERVICE)
        site.serve(LAN, "tcp", SERVICE)
        yield site


def ask(site: Site, *words: str) -> dict[str, Any]:
    """Return what the doctor says, and what it exits with, which agree."""
    done = pynet(site.engine, "doctor", "--json", "--timeout", TIMEOUT, *words, check=False)
    assert done.returncode in {0, 4}, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found["cause"] is None else 4)
    assert found["not_seen"] == []
    return found


def cause(site: Site, *words: str) -> str | None:
    """Return the id of the cause, None if nothing is wrong; there are no warnings besides."""
    found = ask(site, *words)
    return found["cause"] and str(found["cause"]["id"])


LAN_SERVICE = f"{LAN_ADDRESS[4]}:{SERVICE}"


def test_nothing_is_wrong_with_what_works(site: Site) -> None:
    for source, target in (
        ("client", f"web:{PORT}"),
        ("client", f"host:{SERVICE}"),
        ("client", LAN_SERVICE),
        ("host", f"web:{PORT}"),
        ("client", f"{HOST_ADDRESS[4]}:{PUBLISHED}"),
    ):
        found = ask(site, source, target)
        assert (found["verdict"], found["cause"]) == ("reaches", None), found
        assert {step["state"] for step in found["steps"]} == {"ok"}, found
    found = ask(site, "outside", f"web:{PORT}")
    assert {step["state"] for step in found["steps"]} == {"ok"}, found
    assert found["cause"] is None


@contextmanager
def listening(site: Site, where: str, address: str, port: int) -> Iterator[None]:
    """Have something listen at one address of a place."""
    code = (
        "import socket, sys; s = socket.create_server((sys.argv[1], int(sys.argv[2])));"
        "print(flush=True); sys.stdin.read()"
    )
    argv = (*site.enter(where), sys.executable, "-c", code, address, str(port))
    running = site.engine.popen(*argv, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    assert running.stdout is not None
    assert running.stdout.readline() == "\n"
    yield
    running.result()


def test_the_application_listens_elsewhere_or_not_at_all(site: Site) -> None:
    with listening(site, "web", "127.0.0.1", ELSEWHERE):
        for source in ("client", "host"):
            found = ask(site, source, f"web:{ELSEWHERE}")
            assert (found["verdict"], found["cause"]["id"]) == ("refused", "listens-elsewhere")
            assert f"127.0.0.1:{ELSEWHERE}" in found["cause"]["text"]
            assert "python" in found["steps"][0]["text"]
    assert cause(site, "client", "web:81") == "not-listening"


def test_a_service_of_the_host_listens_on_loopback_only(site: Site) -> None:
    with listening(site, HOST, "127.0.0.1", ELSEWHERE):
        assert cause(site, "client", f"host:{ELSEWHERE}") == "listens-elsewhere"


def test_an_internal_network_leads_nowhere(site: Site, driver: str) -> None:
    site.network(driver, "inner", 62, "--internal")
    site.container("inside", "inner")
    assert cause(site, "inside", LAN_SERVICE) == "no-route"


def test_an_interface_was_set_down(site: Site) -> None:
    site.engine.run(*site.enter("client"), "ip", "link", "set", "eth0", "down")
    assert cause(site, "client", f"web:{PORT}") == "interface-down"
    assert cause(site, "outside", "client:80") == "not-published"


def test_a_route_of_the_host_forbids(site: Site) -> None:
    site.engine.run("ip", "route", "add", "blackhole", LAN_ADDRESS[4])
    try:
        assert cause(site, "client", LAN_SERVICE) == "forbidden-route"
    finally:
        site.engine.run("ip", "route", "del", "blackhole", LAN_ADDRESS[4])


def test_networks_are_apart(site: Site, driver: str) -> None:
    found = ask(site, "stranger", f"web:{PORT}")
    assert found["cause"]["id"] == ("own-policy" if driver == "pynet" else "docker-policy"), found
    if driver == "pynet":
        site.network(driver, "closed", 63, "-o", "com.docker.network.bridge.enable_icc=false")
        for name in ("one", "two"):
            site.container(name, "closed")
        site.serve("one", "tcp", PORT)
        found = ask(site, "two", f"one:{PORT}")
        assert found["cause"]["id"] == "own-policy"
        assert "enable_icc=false" in found["cause"]["text"]


def test_another_programs_table_drops_what_is_forwarded(site: Site) -> None:
    run = site.engine.run
    run("nft", "add", "table", "inet", "fw")
    hook = "{ type filter hook forward priority 0; policy drop; }"
    run("nft", "add", "chain", "inet", "fw", "f", hook)
    try:
        found = ask(site, "client", LAN_SERVICE)
        assert found["cause"]["id"] == "foreign-firewall"
        assert "inet fw f, policy drop" in found["cause"]["text"]
        run("nft", "add", "rule", "inet", "fw", "f", "tcp", "dport", str(SERVICE), "drop")
        assert "rule 1: tcp dport 7070 drop" in ask(site, "client", LAN_SERVICE)["cause"]["text"]
    finally:
        run("nft", "delete", "table", "inet", "fw")


def test_the_host_does_not_forward(site: Site) -> None:
    site.engine.run("sysctl", "-w", "net.ipv4.ip_forward=0")
    try:
        assert cause(site, "client", LAN_SERVICE) == "forwarding-off"
    finally:
        site.engine.run("sysctl", "-w", "net.ipv4.ip_forward=1")


def test_the_hosts_own_firewall_keeps_containers_from_its_services(site: Site) -> None:
    rule = ("INPUT", "-p", "tcp", "--dport", str(SERVICE), "-j", "DROP")
    site.engine.run("iptables", "-I", *rule)
    try:
        found = ask(site, "client", f"host:{SERVICE}")
        assert found["cause"]["id"] == "host-firewall"
        assert "ip filter INPUT, rule 1" in found["cause"]["text"]
    finally:
        site.engine.run("iptables", "-D", *rule)


def test_frames_within_a_bridge_pass_iptables(site: Site) -> None:
    key = "net.bridge.bridge-nf-call-iptables"
    before = site.engine.run("sysctl", "-n", key).stdout.strip()
    run = site.engine.run
    run("sysctl", "-w", f"{key}=1")
    run("nft", "add", "table", "inet", "fw")
    run(
        "nft",
        "add",
        "chain",
        "inet",
        "fw",
        "f",
        "{ type filter hook forward priority 0; policy drop; }",
    )
    try:
        assert cause(site, "client", f"web:{PORT}") == "bridged-through-iptables"
    finally:
        run("nft", "delete", "table", "inet", "fw")
        run("sysctl", "-w", f"{key}={before}")


def test_what_left_the_host_is_not_answered(site: Site) -> None:
    site.engine.lan_run("nft", "add", "table", "inet", "far")
    site.engine.lan_run(
        "nft", "add", "chain", "inet", "far", "i", "{ type filter hook input priority 0; }"
    )
    site.engine.lan_run("nft", "add", "rule", "inet", "far", "i", "tcp", "dport", "7071", "drop")
    try:
        assert cause(site, "client", f"{LAN_ADDRESS[4]}:7071") == "beyond"
    finally:
        site.engine.lan_run("nft", "delete", "table", "inet", "far")


def test_a_port_is_not_published_or_on_loopback_only(site: Site) -> None:
    site.serve("web", "tcp", 90, ELSEWHERE)
    assert cause(site, "outside", "web:90") == "not-published"
    assert cause(site, "outside", f"web:{ELSEWHERE}") == "published-elsewhere"


def test_a_host_end_is_off_its_bridge(site: Site, driver: str) -> None:
    end = host_end(site, "client")
    assert site.engine.driver is not None
    if driver == "pynet":
        site.engine.driver.kill()  # or it puts it back at once
    site.engine.run("ip", "link", "set", end, "nomaster")
    done = pynet(
        site.engine, "doctor", "--json", "--timeout=0.5", "client", f"web:{PORT}", check=False
    )
    assert json.loads(done.stdout)["cause"]["id"] == "off-bridge"


def test_an_answer_leaves_by_another_network(site: Site) -> None:
    site.engine.docker("network", "connect", "front", "web", "--gw-priority=1")
    bridge = bridge_name(site, "front")
    site.engine.run("sysctl", "-w", f"net.ipv4.conf.{bridge}.rp_filter=1")
    found = ask(site, "outside", f"web:{PORT}")
    assert found["cause"]["id"] == "answer-elsewhere"


def host_end(site: Site, name: str) -> str:
    """Return the host's end of a container's first interface."""
    inside = json.loads(pynet(site.engine, "exec", name, "ip", "-json", "link").stdout)
    (index,) = (each["link_index"] for each in inside if each["ifname"] == "eth0")
    links = json.loads(site.engine.run("ip", "-json", "link").stdout)
    (end,) = (each["ifname"] for each in links if each["ifindex"] == index)
    return str(end)


def bridge_name(site: Site, network: str) -> str:
    return pynet(
        site.engine, "exec", network, "--", "sh", "-c", "echo $PYNET_BRIDGE"
    ).stdout.strip()
