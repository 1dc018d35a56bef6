"""Published ports: which are taken, by whom, where they lead, and what they outlive."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from subprocess import PIPE
from typing import TYPE_CHECKING

import pytest

from tests.engine import steps
from tests.engine.driver import REPOSITORY
from tests.engine.managed import ManagedPlugin
from tests.engine.sctp import PACKET, receive, send
from tests.engine.site import (
    HOST,
    HOST_ADDRESS,
    LAN,
    LAN_ADDRESS,
    LOOPBACK,
    Question,
    Site,
    check,
    families,
    major,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine

pytestmark = pytest.mark.managed

UNIT = REPOSITORY / "packaging/pynet.service"
BINDING = "com.docker.network.bridge.host_binding_ipv4"
PORT, PUBLISHED = 80, 8080
DRIVERS = ("pynet", "bridge")
CLIENT_PORT = 40000


@pytest.fixture
def site(engine: Engine) -> Iterator[Site]:
    with Site(engine) as site:
        yield site


def from_lan(*ports: int) -> list[Question]:
    """Return that the neighbour reaches these ports, with its own address as the source."""
    return [Question(LAN, HOST_ADDRESS[4], port, LAN_ADDRESS[4]) for port in ports]


def from_everywhere(
    port: int, protocol: str = "tcp", versions: tuple[int, ...] = (4, 6)
) -> list[Question]:
    """Return that the neighbour and the host reach a port, in these families."""
    return [
        question
        for version in versions
        for question in (
            Question(LAN, HOST_ADDRESS[version], port, LAN_ADDRESS[version], protocol),
            Question(HOST, LOOPBACK[version], port, "*", protocol),
            Question(HOST, HOST_ADDRESS[version], port, "*", protocol),
        )
    ]


def refused(engine: Engine, network: str, *words: str) -> str:
    """Return why a container cannot be started."""
    line = ("run", "--rm", "--network", network, *words, "bb", "true")
    done = engine.docker(*line, check=False)
    assert done.returncode != 0
    return done.stderr


@pytest.mark.managed("always")
@pytest.mark.parametrize("driver", DRIVERS)
def test_default_binding_ranges_and_chosen_ports(site: Site, driver: str) -> None:
    engine = site.engine
    site.network(driver, "a", 60, "-o", f"{BINDING}=127.0.0.1", ipv6=False)
    site.network(driver, "b", 61, ipv6=False)
    site.containers(
        {
            "local": ("a", "-p", f"{PUBLISHED}:{PORT}"),
            "first": ("b", "-p", f"9000-9001:{PORT}", "-p", "9010-9012:7000-7002"),
            # Two places for one port; and one left to the driver.
            "second": ("b", "-p", f"9000-9001:{PORT}", "-p", f"9020:{PORT}", "-p", "81"),
        }
    )
    site.serve("local", "tcp", PORT)
    site.serve("first", "tcp", PORT, 7000, 7001, 7002)
    site.serve("second", "tcp", PORT, 81)
    if driver == "pynet":
        listed = steps.published(engine)
        (chosen,) = {each["host_port"] for each in listed if each["container_port"] == 81}
    else:
        place = engine.docker("port", "second", "81").stdout.splitlines()[0]
        chosen = int(place.rpartition(":")[2])
    assert chosen >= 32768
    check(
        site,
        [
            Question(HOST, LOOPBACK[4], PUBLISHED, "*"),
            Question(LAN, HOST_ADDRESS[4], PUBLISHED, None),
            *from_lan(9000, 9001, 9010, 9011, 9012, 9020, chosen),
        ],
    )
    words = refused(engine, "b", "-p", f"9000-9001:{PORT}")
    if driver == "pynet":
        assert "9000-9001: all are in use" in words


def test_a_default_binding_and_every_exposed_port(site: Site) -> None:
    site.network("pynet", "a", 60, "-o", f"{BINDING}={HOST_ADDRESS[6]}")
    site.network("pynet", "b", 61)
    site.containers(
        {
            "six": ("a", "-p", f"{PUBLISHED}:{PORT}"),
            "all": ("b", "--expose", str(PORT), "--expose", "53/udp", "-P"),
        }
    )
    site.serve("six", "tcp", PORT)
    site.serve("all", "tcp", PORT)
    site.serve("all", "udp", 53)
    listed = [each for each in steps.published(site.engine) if each["container"] == "all"]
    chosen = {each["protocol"]: each["host_port"] for each in listed}
    assert {each["host_ip"] for each in listed} == {"0.0.0.0", "::"}
    check(
        site,
        [
            Question(LAN, HOST_ADDRESS[6], PUBLISHED, LAN_ADDRESS[6]),
            Question(LAN, HOST_ADDRESS[4], PUBLISHED, None),
            Question(HOST, LOOPBACK[6], PUBLISHED, None),
            *from_everywhere(chosen["tcp"]),
            *from_everywhere(chosen["udp"], "udp"),
        ],
    )


@pytest.mark.managed("always")
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_conflict_says_who_holds_the_port(site: Site, protocol: str) -> None:
    engine = site.engine
    site.network("pynet", "a", 60)
    site.network("bridge", "d", 62, ipv6=False)
    site.serve(HOST, protocol, 8083)
    site.containers(
        {
            "ours": ("a", "-p", f"8081:{PORT}/{protocol}"),
            "docker": ("d", "-p", f"8082:{PORT}/{protocol}"),
        }
    )
    endpoint = steps.endpoint(engine, "ours", "a")["EndpointID"]
    before = engine.run("nft", "-s", "list", "table", "inet", "pynet").stdout
    holders = {8081: f"endpoint {endpoint[:12]} of network ", 8082: "docker", 8083: "python"}
    for port, holder in holders.items():
        words = refused(engine, "a", "-p", f"8079:{PORT}", "-p", f"{port}:{PORT}/{protocol}")
        assert f":{port}/{protocol}: port is in use by {holder}" in words
    # Docker's bridge finds the port taken, too, whoever of pynet's has it.
    assert "8081" in refused(engine, "d", "-p", f"8081:{PORT}/{protocol}")
    # Nothing stays of what was refused, not even the port that was free.
    assert engine.run("nft", "-s", "list", "table", "inet", "pynet").stdout == before
    site.container("free", "d", "-p", f"8079:{PORT}")


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_gateway_network_has_the_ports(site: Site, driver: str) -> None:
    """They move to the network that takes the gateway's role, and go back when that leaves."""
    engine = site.engine
    versions = families(engine, driver)
    # Up to 27 the first name of the alphabet wins, from 28 on a priority.
    has_priorities = major(engine) >= 28
    first, second = ("a", "b") if has_priorities else ("b", "a")
    site.network(driver, "a", 60, ipv6=6 in versions)
    site.network(driver, "b", 61, ipv6=6 in versions)
    site.container("web", first, "-p", f"{PUBLISHED}:{PORT}")
    site.serve("web", "tcp", PORT)

    def is_on(network: str) -> None:
        if driver == "pynet":
            listed = steps.published(engine)
            assert {each["network"] for each in listed} == {network}
            addresses = {site.address("web", network, version) for version in versions}
            assert {each["container_ip"] for each in listed} == addresses
        check(site, from_everywhere(PUBLISHED, versions=versions))

    is_on(first)
    priority = ("--gw-priority", "10") if has_priorities else ()
    engine.docker("network", "connect", *priority, second, "web")
    is_on(second)
    engine.docker("network", "disconnect", second, "web")
    is_on(first)
    if has_priorities:  # the same at a start, where the engine joins the networks in random order
        engine.docker("rm", "-f", "web")
        both = ("--network", "name=b,gw-priority=10", "-p", f"{PUBLISHED}:{PORT}")
        site.container("web", "a", *both)
        site.serve("web", "tcp", PORT)
        is_on("b")


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_udp_flow_is_never_left_on_a_dead_address(site: Site, driver: str) -> None:
    engine = site.engine
    if driver == "bridge" and (major(engine) < 26 or major(engine) >= 29):
        pytest.skip("Docker's bridge, 20.10 and 29, leaves a flow to its proxy that began before")
    versions = families(engine, driver)
    site.network(driver, "a", 60, ipv6=6 in versions)
    flow = [
        Question(LAN, HOST_ADDRESS[version], 5353, LAN_ADDRESS[version], "udp", CLIENT_PORT)
        for version in versions
    ]
    nobody = [replace(question, seen=None) for question in flow]
    other = Question(LAN, HOST_ADDRESS[4], 5454, LAN_ADDRESS[4], "udp", CLIENT_PORT)
    site.serve(HOST, "udp", 5454)
    check(site, [other, *nobody])  # begun before it is published
    site.container("web", "a", "-p", "5353:53/udp")
    site.serve("web", "udp", 53)
    check(site, flow)
    old = site.address("web", "a", 4)
    steps.stop(engine, "web")
    check(site, nobody)  # it goes on while there is nobody
    site.container("squatter", "a", "--ip", old)
    engine.docker("start", "web")
    assert site.address("web", "a", 4) != old
    site.serve("web", "udp", 53)
    check(site, flow)
    # Only those flows were forgotten.
    line = ("conntrack", "-L", "-p", "udp", "--orig-port-dst", "5454")
    assert f"sport={CLIENT_PORT} dport=5454" in engine.run(*line).stdout


@pytest.mark.parametrize("version", [4, 6])
def test_sctp_is_translated(site: Site, version: int) -> None:
    """A kernel may have no SCTP sockets, so a packet is sent and caught in the raw."""
    site.network("pynet", "a", 60)
    site.container("web", "a", "-p", f"{PUBLISHED}:{PORT}/sctp")
    with receive(site, "web", version) as caught:
        send(site, HOST_ADDRESS[version], PUBLISHED)
        packet = caught()
    assert packet == (LAN_ADDRESS[version], PORT, PACKET)


@pytest.mark.managed("never")
def test_the_service_may_do_what_publishing_takes(site: Site) -> None:
    """Binding a low port and naming a holder need more of a service than making links."""
    engine = site.engine
    lines = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)
    names = " ".join(lines).split()
    words = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in names)
    assert engine.driver is not None
    engine.driver.terminate()
    engine.start_driver(wrapper=("setpriv", "--no-new-privs", f"--bounding-set=-all,{words}"))
    site.network("pynet", "a", 60)
    site.container("web", "a", "-p", f"{PORT}:{PORT}")
    site.serve("web", "tcp", PORT)
    check(site, from_everywhere(PORT))
    site.network("bridge", "d", 62, ipv6=False)
    site.container("dock", "d", "-p", "81:81")
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    listener = (
        "import socket; s = socket.create_server(('', 8082)); print('ready', flush=True); input()"
    )
    with engine.popen(*nobody, sys.executable, "-c", listener, stdin=PIPE, stdout=PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        assert "in use by docker" in refused(engine, "a", "-p", "81:81")
        assert "in use by python" in refused(engine, "a", "-p", "8082:81")
        holder.kill_group()


def test_published_ports_outlive_the_driver(site: Site) -> None:
    engine = site.engine
    site.network("pynet", "a", 60)
    site.network("bridge", "d", 62, ipv6=False)
    site.container("web", "a", "-p", f"{PUBLISHED}:{PORT}")
    site.serve("web", "tcp", PORT)
    assert engine.driver is not None
    engine.driver.kill()
    # Nobody is needed for it; but a plugin's relay, which serves ::1, is of the plugin's processes.
    dies = isinstance(engine.driver, ManagedPlugin)
    everywhere = from_everywhere(PUBLISHED)
    check(site, [each for each in everywhere if not (dies and each.host == LOOPBACK[6])])
    engine.start_driver()
    check(site, from_everywhere(PUBLISHED))
    assert "port is in use by endpoint " in refused(engine, "a", "-p", f"{PUBLISHED}:{PORT}")
    assert str(PUBLISHED) in refused(engine, "d", "-p", f"{PUBLISHED}:{PORT}")


def test_published_ports_outlive_dockerd(site: Site) -> None:
    engine = site.engine
    engine.stop_dockerd()
    engine.start_dockerd("--live-restore")
    site.network("pynet", "a", 60)
    site.container("web", "a", "-p", f"{PUBLISHED}:{PORT}")
    site.serve("web", "tcp", PORT)
    engine.kill_dockerd()
    check(site, from_everywhere(PUBLISHED))
    engine.start_dockerd("--live-restore")
    check(site, from_everywhere(PUBLISHED))
    assert "port is in use by endpoint " in refused(engine, "a", "-p", f"{PUBLISHED}:{PORT}")
    engine.docker("rm", "-f", "web")
    site.container("again", "a", "-p", f"{PUBLISHED}:{PORT}")
    site.serve("again", "tcp", PORT)
    check(site, from_everywhere(PUBLISHED))


def test_docker_publishes_when_it_is_told_to(site: Site) -> None:
    engine = site.engine
    site.network("pynet", "a", 60, "-o", "pynet.publish=docker", ipv6=False)
    site.containers({"web": ("a", "-p", f"{PUBLISHED}:{PORT}"), "near": ("a",)})
    site.serve("web", "tcp", PORT)
    assert f":{PUBLISHED}->{PORT}/tcp" in engine.docker("ps", "--format", "{{.Ports}}").stdout
    assert steps.published(engine) == []
    near, web = site.address("near", "a", 4), site.address("web", "a", 4)
    check(site, [*from_lan(PUBLISHED), Question("near", web, PORT, near)])
