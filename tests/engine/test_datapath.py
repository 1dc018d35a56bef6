"""Who reaches whom, with real packets: pynet and, where it can, Docker's own bridge, side by side.

Each site is asked a table of questions; the test says which answers were wrong, all at once.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.engine.site import HOST, HOST_ADDRESS, LAN, LAN_ADDRESS, LOOPBACK, SHORT, Site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine

BRIDGE = "com.docker.network.bridge"
PORT, PUBLISHED, LOCAL_ONLY, UNPUBLISHED = 80, 8080, 8081, 81
DRIVERS = ("pynet", "bridge")


@dataclass(frozen=True)
class Question:
    """Ask `host:port` from a place; `seen` is the expected answer, None for no answer at all."""

    origin: str
    host: str
    port: int
    seen: str | None
    protocol: str = "tcp"

    def wrong(self, site: Site) -> str | None:
        """Return what was wrong, None if the answer is as expected; `*` is any answer."""
        timeout = SHORT if self.seen is None else 5.0
        got = site.ask(self.origin, self.host, self.port, self.protocol, timeout=timeout)
        if got == self.seen or (self.seen == "*" and got is not None):
            return None
        what = f"{self.origin} asks {self.host} {self.port}/{self.protocol}"
        return f"{what}: expected {self.seen}, got {got}"


def check(site: Site, questions: list[Question]) -> None:
    """Ask everything at once, then fail with all that was wrong."""
    with ThreadPoolExecutor(max_workers=8) as askers:
        wrong = [said for said in askers.map(lambda each: each.wrong(site), questions) if said]
    assert not wrong, "\n".join(wrong)


def families(engine: Engine, driver: str) -> tuple[int, ...]:
    """Return the families that the driver translates on this engine.

    Docker's bridge does so for IPv6 by default from 27 on.
    """
    return (4, 6) if driver == "pynet" or engine.version.startswith("28") else (4,)


@pytest.fixture
def site(engine: Engine) -> Iterator[Site]:
    with Site(engine) as site:
        yield site


def build(site: Site, driver: str, *options: str) -> None:
    """Build the site that most tests ask in.

    Network `a` (web, near) with the options, network `b` (far), Docker's own `d` (dock).
    """
    ipv6 = 6 in families(site.engine, driver)
    site.network(driver, "a", 60, *options, ipv6=ipv6)
    site.network(driver, "b", 61, ipv6=ipv6)
    site.network("bridge", "d", 62, ipv6=6 in families(site.engine, "bridge"))
    published = ("-p", f"{PUBLISHED}:{PORT}", "-p", f"127.0.0.1:{LOCAL_ONLY}:{PORT}")
    site.container("web", "a", *published)
    site.container("near", "a")
    site.container("far", "b")
    site.container("dock", "d")
    for name in ("web", "near", "far", "dock"):
        site.serve(name, "tcp", PORT, UNPUBLISHED)
    site.serve(LAN, "tcp", PORT)


@pytest.mark.parametrize("driver", DRIVERS)
def test_nat_mode_opens_published_ports_and_nothing_else(site: Site, driver: str) -> None:
    build(site, driver)
    questions = [
        Question(HOST, LOOPBACK[4], LOCAL_ONLY, "*"),
        Question(LAN, HOST_ADDRESS[4], LOCAL_ONLY, None),
    ]
    is_old_bridge = driver == "bridge" and not site.engine.version.startswith("28")
    for version in families(site.engine, driver):
        web, far = site.address("web", "a", version), site.address("far", "b", version)
        gateway = "10.60.0.1" if version == 4 else "fd60::1"
        outside, neighbour = HOST_ADDRESS[version], LAN_ADDRESS[version]
        questions += [
            Question(HOST, LOOPBACK[version], PUBLISHED, "*"),
            Question(HOST, outside, PUBLISHED, "*"),
            Question(HOST, gateway, PUBLISHED, "*"),
            Question(LAN, outside, PUBLISHED, neighbour),
            # Docker's bridge leaves a published port open on the container's address up to 27.
            *([] if is_old_bridge else [Question(LAN, web, PORT, None)]),
            Question(LAN, web, UNPUBLISHED, None),
            Question("near", web, UNPUBLISHED, site.address("near", "a", version)),
            Question("near", outside, PUBLISHED, "*"),
            Question("web", outside, PUBLISHED, "*"),
            Question("far", outside, PUBLISHED, "*"),
            Question("far", web, PORT, None),
            Question("web", far, PORT, None),
            Question("web", neighbour, PORT, outside),
        ]
        if version in families(site.engine, "bridge"):
            dock = site.address("dock", "d", version)
            questions += [
                Question("dock", outside, PUBLISHED, "*"),
                Question("dock", web, PORT, None),
                Question("web", dock, PORT, None),
            ]
    check(site, questions)


def test_a_neighbour_cannot_reach_what_is_bound_to_loopback(site: Site) -> None:
    site.network("pynet", "a", 60)
    site.container("web", "a", "-p", f"127.0.0.1:{LOCAL_ONLY}:{PORT}")
    site.container("near", "a")
    site.serve("web", "tcp", PORT)
    lan = site.engine.lan_run
    lan("ip", "address", "delete", "127.0.0.1/8", "dev", "lo")
    lan("ip", "route", "add", "127.0.0.0/8", "via", HOST_ADDRESS[4])
    lan("sysctl", "-w", "net.ipv4.conf.all.route_localnet=1")
    try:
        check(
            site,
            [
                Question(HOST, LOOPBACK[4], LOCAL_ONLY, "*"),
                Question(LAN, LOOPBACK[4], LOCAL_ONLY, None),
            ],
        )
    finally:
        lan("ip", "route", "delete", "127.0.0.0/8")
        lan("ip", "address", "add", "127.0.0.1/8", "dev", "lo")


@pytest.mark.parametrize("driver", DRIVERS)
def test_nat_unprotected_mode_opens_every_port_of_a_container(site: Site, driver: str) -> None:
    if driver == "bridge" and not site.engine.version.startswith("28"):
        pytest.skip("Docker's bridge has gateway modes from 27 on")
    modes = [f"{BRIDGE}.gateway_mode_ipv{version}=nat-unprotected" for version in (4, 6)]
    build(site, driver, "-o", modes[0], "-o", modes[1])
    questions = []
    for version in families(site.engine, driver):
        web, neighbour = site.address("web", "a", version), LAN_ADDRESS[version]
        questions += [
            Question(LAN, web, PORT, neighbour),
            Question(LAN, web, UNPUBLISHED, neighbour),
            Question(LAN, HOST_ADDRESS[version], PUBLISHED, neighbour),
            Question("web", neighbour, PORT, HOST_ADDRESS[version]),
        ]
    check(site, questions)


@pytest.mark.parametrize("driver", DRIVERS)
def test_routed_mode_translates_nothing_and_opens_published_ports(site: Site, driver: str) -> None:
    if driver == "bridge" and not site.engine.version.startswith("28"):
        pytest.skip("Docker's bridge has gateway modes from 27 on")
    modes = [f"{BRIDGE}.gateway_mode_ipv{version}=routed" for version in (4, 6)]
    build(site, driver, "-o", modes[0], "-o", modes[1])
    questions = []
    for version in families(site.engine, driver):
        web, neighbour = site.address("web", "a", version), LAN_ADDRESS[version]
        questions += [
            Question(LAN, web, PORT, neighbour),
            Question(LAN, web, UNPUBLISHED, None),
            Question(LAN, HOST_ADDRESS[version], PUBLISHED, None),
            Question("web", neighbour, PORT, web),
        ]
    check(site, questions)


@pytest.mark.parametrize("driver", DRIVERS)
def test_without_icc_containers_reach_published_ports_only(site: Site, driver: str) -> None:
    build(site, driver, "-o", f"{BRIDGE}.enable_icc=false")
    questions = []
    for version in families(site.engine, driver):
        web, outside = site.address("web", "a", version), HOST_ADDRESS[version]
        questions += [
            Question("near", web, PORT, None),
            Question("near", web, UNPUBLISHED, None),
            Question("near", outside, PUBLISHED, "*"),
            Question("web", outside, PUBLISHED, "*"),
            Question("near", LAN_ADDRESS[version], PORT, outside),
            Question(LAN, outside, PUBLISHED, LAN_ADDRESS[version]),
        ]
    check(site, questions)


@pytest.mark.parametrize("bridged_frames_pass_iptables", ["0", "1"])
def test_without_icc_whatever_bridged_frames_pass(
    site: Site, bridged_frames_pass_iptables: str
) -> None:
    words = [f"net.bridge.bridge-nf-call-ip{six}tables" for six in ("", "6")]
    set_both = [f"{word}={bridged_frames_pass_iptables}" for word in words]
    site.engine.run("sysctl", "-w", *set_both)
    try:
        site.network("pynet", "a", 60, "-o", f"{BRIDGE}.enable_icc=false")
        site.container("web", "a", "-p", f"{PUBLISHED}:{PORT}")
        site.container("near", "a")
        site.serve("web", "tcp", PORT)
        questions = []
        for version in (4, 6):
            questions += [
                Question("near", site.address("web", "a", version), PORT, None),
                Question("near", HOST_ADDRESS[version], PUBLISHED, "*"),
                Question("web", HOST_ADDRESS[version], PUBLISHED, "*"),
                Question(HOST, LOOPBACK[version], PUBLISHED, "*"),
            ]
        check(site, questions)
    finally:
        site.engine.run("sysctl", "-w", *[f"{word}=1" for word in words])


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_internal_network_has_no_way_in_or_out(site: Site, driver: str) -> None:
    build(site, driver, "--internal")
    questions = [Question(HOST, LOOPBACK[4], PUBLISHED, None)]
    for version in families(site.engine, driver):
        web = site.address("web", "a", version)
        gateway = "10.60.0.1" if version == 4 else "fd60::1"
        # What leaves is dropped, not merely unrouted: the container finds the way by itself.
        sandbox = site.engine.docker(
            "inspect", "-f", "{{.NetworkSettings.SandboxKey}}", "web"
        ).stdout.strip()
        site.engine.run(
            "nsenter", f"--net={sandbox}", "ip", f"-{version}", "route", "add", "default",
            "via", gateway,
        )  # fmt: skip
        questions += [
            Question("near", web, PORT, site.address("near", "a", version)),
            Question(LAN, web, PORT, None),
            Question(LAN, HOST_ADDRESS[version], PUBLISHED, None),
            Question("far", web, PORT, None),
            Question("web", LAN_ADDRESS[version], PORT, None),
            Question("web", site.address("far", "b", version), PORT, None),
        ]
    check(site, questions)


def test_an_isolated_gateway_leaves_the_host_out(site: Site) -> None:
    modes = [f"{BRIDGE}.gateway_mode_ipv{version}=isolated" for version in (4, 6)]
    site.network("pynet", "a", 60, "--internal", "-o", modes[0], "-o", modes[1])
    site.container("web", "a")
    site.container("near", "a")
    site.serve("web", "tcp", PORT)
    questions = []
    for version in (4, 6):
        web = site.address("web", "a", version)
        questions += [
            Question("near", web, PORT, site.address("near", "a", version)),
            Question(HOST, web, PORT, None),
        ]
    check(site, questions)


@pytest.mark.parametrize("driver", DRIVERS)
def test_source_address_of_what_leaves(site: Site, driver: str) -> None:
    engine = site.engine
    engine.run("ip", "address", "add", "192.0.2.11/24", "dev", "uplink")
    try:
        site.network(
            driver, "fixed", 63, "-o", "com.docker.network.host_ipv4=192.0.2.11", ipv6=False
        )
        site.network(driver, "plain", 64, "-o", f"{BRIDGE}.enable_ip_masquerade=false", ipv6=False)
        site.container("one", "fixed")
        site.container("two", "plain")
        site.serve(LAN, "tcp", PORT)
        questions = [Question("one", LAN_ADDRESS[4], PORT, "192.0.2.11")]
        if driver == "pynet" or not engine.version.startswith("28"):
            # From 28 on Docker's bridge drops the answers: whatever is for a container's address.
            own = site.address("two", "plain", 4)
            questions.append(Question("two", LAN_ADDRESS[4], PORT, own))
        check(site, questions)
    finally:
        engine.run("ip", "address", "delete", "192.0.2.11/24", "dev", "uplink")


@pytest.mark.parametrize("driver", DRIVERS)
def test_default_binding_ranges_and_chosen_ports(site: Site, driver: str) -> None:
    engine = site.engine
    site.network(driver, "a", 60, "-o", f"{BRIDGE}.host_binding_ipv4=127.0.0.1", ipv6=False)
    site.container("local", "a", "-p", f"{PUBLISHED}:{PORT}")
    site.network(driver, "b", 61, ipv6=False)
    site.container("first", "b", "-p", f"9000-9001:{PORT}", "-p", "9010-9012:7000-7002")
    site.container("second", "b", "-p", f"9000-9001:{PORT}")
    site.serve("local", "tcp", PORT)
    site.serve("first", "tcp", PORT, 7000, 7001, 7002)
    site.serve("second", "tcp", PORT)
    check(
        site,
        [
            Question(HOST, LOOPBACK[4], PUBLISHED, "*"),
            Question(LAN, HOST_ADDRESS[4], PUBLISHED, None),
            *(
                Question(LAN, HOST_ADDRESS[4], port, LAN_ADDRESS[4])
                for port in (9000, 9001, 9010, 9011, 9012)
            ),
        ],
    )
    third = engine.docker(
        "run", "--rm", "--network", "b", "-p", f"9000-9001:{PORT}", "bb", "true", check=False
    )
    assert third.returncode != 0
    if driver == "pynet":
        assert "9000-9001: all are in use" in third.stderr


@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_every_protocol_is_published(site: Site, protocol: str) -> None:
    site.network("pynet", "a", 60)
    site.container("web", "a", "-p", f"{PUBLISHED}:{PORT}/{protocol}")
    try:
        site.serve("web", protocol, PORT)
    except AssertionError:
        pytest.skip(f"this kernel has no {protocol}")
    questions = []
    for version in (4, 6):
        questions += [
            Question(LAN, HOST_ADDRESS[version], PUBLISHED, LAN_ADDRESS[version], protocol),
            Question(HOST, LOOPBACK[version], PUBLISHED, "*", protocol),
            Question(HOST, HOST_ADDRESS[version], PUBLISHED, "*", protocol),
        ]
    check(site, questions)
