"""Who reaches whom, with real packets: pynet and, where it can, Docker's own bridge, side by side.

Each site is asked a table of questions; the test says which answers were wrong, all at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine import steps
from tests.engine.hosts import with_legacy_iptables, without_iptables
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
    is_modern,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.engine.engine import Engine

pytestmark = pytest.mark.managed

BRIDGE = "com.docker.network.bridge"
PORT, UNPUBLISHED = 80, 81
PUBLISHED, LOCAL_ONLY, FAR, DOCK, DEFAULT = 8080, 8081, 8082, 8083, 8084
DRIVERS = ("pynet", "bridge")


@pytest.fixture
def site(engine: Engine) -> Iterator[Site]:
    with Site(engine) as site:
        yield site


def build(site: Site, driver: str, *options: str) -> None:
    """Build the site that most tests ask in.

    Network `a` (web, near) with the options, network `b` (far), a bridge of Docker's `d` (dock) and
    Docker's default bridge (default). All but `near` publish a port.
    """
    ipv6 = 6 in families(site.engine, driver)
    site.network(driver, "a", 60, *options, ipv6=ipv6)
    site.network(driver, "b", 61, ipv6=ipv6)
    site.network("bridge", "d", 62, ipv6=6 in families(site.engine, "bridge"))
    published = ("-p", f"{PUBLISHED}:{PORT}", "-p", f"127.0.0.1:{LOCAL_ONLY}:{PORT}")
    site.containers(
        {
            "web": ("a", *published),
            "near": ("a",),
            "far": ("b", "-p", f"{FAR}:{PORT}"),
            "dock": ("d", "-p", f"{DOCK}:{PORT}"),
            "default": ("bridge", "-p", f"{DEFAULT}:{PORT}"),
        }
    )
    for name in ("web", "near", "far", "dock", "default"):
        site.serve(name, "tcp", PORT, UNPUBLISHED)
    site.serve(LAN, "tcp", PORT)


def apart(site: Site, places: dict[str, str]) -> Iterator[Question]:
    """Yield that nobody reaches anybody: containers by name, each on a network of its own."""
    for origin in places:
        for other, address in places.items():
            if other != origin:
                yield Question(origin, address, PORT, None)
                yield Question(origin, address, UNPUBLISHED, None)


def places(site: Site, driver: str, version: int) -> dict[str, str]:
    """Return a container of each network that has this family, with its address."""
    found = {"web": site.address("web", "a", version), "far": site.address("far", "b", version)}
    if version in families(site.engine, "bridge"):
        found["dock"] = site.address("dock", "d", version)
    if version == 4:
        found["default"] = site.address("default", "bridge", version)
    return found


@pytest.mark.managed("always")
@pytest.mark.parametrize("driver", DRIVERS)
def test_nat_mode_opens_published_ports_and_nothing_else(site: Site, driver: str) -> None:
    build(site, driver)
    questions = [
        Question(HOST, LOOPBACK[4], LOCAL_ONLY, "*"),
        Question(LAN, HOST_ADDRESS[4], LOCAL_ONLY, None),
    ]
    for version in families(site.engine, driver):
        everybody = places(site, driver, version)
        web, near = everybody["web"], site.address("near", "a", version)
        gateway = "10.60.0.1" if version == 4 else "fd60::1"
        outside, neighbour = HOST_ADDRESS[version], LAN_ADDRESS[version]
        ports = {"web": PUBLISHED, "far": FAR, "dock": DOCK, "default": DEFAULT}
        questions += apart(site, everybody)
        questions += [
            *(Question(HOST, ip, PUBLISHED, "*") for ip in (LOOPBACK[version], outside, gateway)),
            Question(LAN, outside, PUBLISHED, neighbour),
            Question(LAN, web, UNPUBLISHED, None),
            Question("near", web, UNPUBLISHED, near),
            # A port published by itself, by a neighbour, on every other network.
            Question("near", outside, PUBLISHED, "*"),
            *(
                Question(origin, outside, ports[owner], "*")
                for origin in everybody
                for owner in everybody
            ),
            *(Question(each, neighbour, PORT, outside) for each in ("web", "far")),
        ]
        if driver == "pynet" or is_modern(site.engine):
            # Docker's bridge leaves a published port open on the container's address up to 27.
            questions.append(Question(LAN, web, PORT, None))
    check(site, questions)


def test_networks_are_apart_where_docker_has_no_firewall(site: Site) -> None:
    are_apart(site, without_iptables)


@pytest.mark.managed("never")  # the older iptables is out of the plugin's reach
def test_networks_are_apart_where_docker_uses_the_older_iptables(site: Site) -> None:
    are_apart(site, with_legacy_iptables)


def are_apart(site: Site, firewall: Callable[[Engine], AbstractContextManager[None]]) -> None:
    """Ask on a host that has booted with this firewall, and boot it again afterwards."""
    engine = site.engine
    engine.reboot()
    try:
        with firewall(engine):
            build(site, "pynet")
            questions: list[Question] = []
            for version in (4, 6):
                everybody = places(site, "pynet", version)
                outside, neighbour = HOST_ADDRESS[version], LAN_ADDRESS[version]
                web, near = everybody["web"], site.address("near", "a", version)
                # Docker's own two bridges may have nobody to keep them apart.
                for bridge in {"dock", "default"} & everybody.keys():
                    ours = {name: everybody[name] for name in ("web", "far", bridge)}
                    questions += apart(site, ours)
                questions += [
                    Question(LAN, web, PORT, None),
                    Question(LAN, outside, PUBLISHED, neighbour),
                    Question("web", outside, FAR, "*"),
                    Question("web", outside, PUBLISHED, "*"),
                    Question("web", neighbour, PORT, outside),
                    Question("near", web, UNPUBLISHED, near),
                ]
            check(site, questions)
    finally:
        engine.reboot()  # for the next test, the firewall of a fresh machine


@pytest.mark.managed("always")
@pytest.mark.parametrize("driver", DRIVERS)
def test_nobody_else_reaches_the_loopback_of_the_host(site: Site, driver: str) -> None:
    """Neither what is published there nor what listens there, by who routes 127.0.0.0/8 to us."""
    if driver == "bridge" and not is_modern(site.engine):
        pytest.skip("Docker's bridge lets a neighbour in to what is bound to 127.0.0.1, up to 27")
    site.network(driver, "a", 60, ipv6=6 in families(site.engine, driver))
    site.containers({"web": ("a", "-p", f"127.0.0.1:{LOCAL_ONLY}:{PORT}"), "near": ("a",)})
    site.serve("web", "tcp", PORT)
    site.serve(HOST, "tcp", FAR)
    for origin, via in ((LAN, HOST_ADDRESS[4]), ("near", "10.60.0.1")):
        site.run(origin, "ip", "address", "delete", "127.0.0.1/8", "dev", "lo")
        site.run(origin, "ip", "route", "add", "127.0.0.0/8", "via", via)
        site.run(origin, "sysctl", "-w", "net.ipv4.conf.all.route_localnet=1")
    try:
        check(
            site,
            [
                *(Question(HOST, LOOPBACK[4], port, "*") for port in (LOCAL_ONLY, FAR)),
                *(
                    Question(origin, LOOPBACK[4], port, None)
                    for origin in (LAN, "near")
                    for port in (LOCAL_ONLY, FAR)
                ),
            ],
        )
    finally:
        site.run(LAN, "ip", "route", "delete", "127.0.0.0/8")
        site.run(LAN, "ip", "address", "add", "127.0.0.1/8", "dev", "lo")


def mode_options(mode: str) -> list[str]:
    """Return the words of a network that has a gateway mode for both families."""
    return [word for v in (4, 6) for word in ("-o", f"{BRIDGE}.gateway_mode_ipv{v}={mode}")]


@pytest.mark.parametrize("driver", DRIVERS)
def test_gateway_modes_that_open_container_addresses(site: Site, driver: str) -> None:
    if driver == "bridge" and not is_modern(site.engine):
        pytest.skip("Docker's bridge has gateway modes from 27 on")
    site.network(driver, "a", 60, *mode_options("nat-unprotected"))
    site.network(driver, "b", 61, *mode_options("routed"))
    site.containers(
        {
            "open": ("a", "-p", f"{PUBLISHED}:{PORT}"),
            "routed": ("b", "-p", f"{FAR}:{PORT}"),
        }
    )
    for name in ("open", "routed"):
        site.serve(name, "tcp", PORT, UNPUBLISHED)
    site.serve(LAN, "tcp", PORT)
    questions = []
    for version in (4, 6):
        outside, neighbour = HOST_ADDRESS[version], LAN_ADDRESS[version]
        open_, routed = site.address("open", "a", version), site.address("routed", "b", version)
        questions += [
            Question(LAN, open_, PORT, neighbour),
            Question(LAN, open_, UNPUBLISHED, neighbour),
            Question(LAN, outside, PUBLISHED, neighbour),
            Question("open", neighbour, PORT, outside),
            Question(LAN, routed, PORT, neighbour),
            Question(LAN, routed, UNPUBLISHED, None),
            Question(LAN, outside, FAR, None),
            Question("routed", neighbour, PORT, routed),
        ]
    check(site, questions)


@pytest.mark.managed("always")
@pytest.mark.parametrize("driver", DRIVERS)
def test_without_icc_containers_reach_published_ports_only(site: Site, driver: str) -> None:
    """For pynet, whether or not bridged frames pass iptables; Docker's bridge needs that."""
    ipv6 = 6 in families(site.engine, driver)
    site.network(driver, "a", 60, "-o", f"{BRIDGE}.enable_icc=false", ipv6=ipv6)
    site.containers({"web": ("a", "-p", f"{PUBLISHED}:{PORT}"), "near": ("a",)})
    site.serve("web", "tcp", PORT, UNPUBLISHED)
    site.serve(LAN, "tcp", PORT)
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
            Question(HOST, LOOPBACK[version], PUBLISHED, "*"),
        ]
    if driver == "bridge":
        check(site, questions)
        return
    words = [f"net.bridge.bridge-nf-call-ip{six}tables" for six in ("", "6")]
    try:
        for passes in ("0", "1"):
            site.engine.run("sysctl", "-w", *[f"{word}={passes}" for word in words])
            check(site, questions)
    finally:
        site.engine.run("sysctl", "-w", *[f"{word}=1" for word in words])


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_internal_network_has_no_way_in_or_out(site: Site, driver: str) -> None:
    ipv6 = 6 in families(site.engine, driver)
    site.network(driver, "a", 60, "--internal", ipv6=ipv6)
    site.network(driver, "b", 61, ipv6=ipv6)
    site.containers({"web": ("a", "-p", f"{PUBLISHED}:{PORT}"), "near": ("a",), "far": ("b",)})
    for name in ("web", "far"):
        site.serve(name, "tcp", PORT)
    site.serve(LAN, "tcp", PORT)
    questions = [Question(HOST, LOOPBACK[4], PUBLISHED, None)]
    for version in families(site.engine, driver):
        web = site.address("web", "a", version)
        gateway = "10.60.0.1" if version == 4 else "fd60::1"
        # What leaves is dropped, not merely unrouted: the container finds the way by itself. (The
        # bridge of 20.10 gives it one.)
        site.run("web", "ip", f"-{version}", "route", "replace", "default", "via", gateway)
        questions += [
            Question("near", web, PORT, site.address("near", "a", version)),
            Question(LAN, web, PORT, None),
            Question(LAN, HOST_ADDRESS[version], PUBLISHED, None),
            Question("far", web, PORT, None),
            Question("web", LAN_ADDRESS[version], PORT, None),
            Question("web", site.address("far", "b", version), PORT, None),
        ]
    check(site, questions)


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_isolated_gateway_leaves_the_host_out(site: Site, driver: str) -> None:
    if driver == "bridge" and not is_modern(site.engine):
        pytest.skip("Docker's bridge has gateway mode isolated from 28 on")
    site.network(driver, "a", 60, "--internal", *mode_options("isolated"))
    site.containers({"web": ("a",), "near": ("a",)})
    site.serve("web", "tcp", PORT)
    questions = []
    for version in (4, 6):
        web = site.address("web", "a", version)
        questions += [
            Question("near", web, PORT, site.address("near", "a", version)),
            Question(HOST, web, PORT, None),
            Question(LAN, web, PORT, None),
        ]
    check(site, questions)


@pytest.mark.parametrize("driver", DRIVERS)
def test_source_address_of_what_leaves(site: Site, driver: str) -> None:
    engine = site.engine
    fixed = {4: "192.0.2.11", 6: "2001:db8:2::11"}
    # Docker's bridge knows host_ipv6 from 25 on, IPv6 by itself from 27 on.
    versions = families(engine, driver)
    for version in versions:
        with_prefix = f"{fixed[version]}/{24 if version == 4 else 64}"
        engine.run("ip", "address", "add", with_prefix, "dev", "uplink", "nodad")
    try:
        sources = [f"com.docker.network.host_ipv{each}={fixed[each]}" for each in versions]
        words = [word for source in sources for word in ("-o", source)]
        ipv6 = 6 in versions
        site.network(driver, "fixed", 63, *words, ipv6=ipv6)
        plain = ("-o", f"{BRIDGE}.enable_ip_masquerade=false")
        site.network(driver, "plain", 64, *plain, ipv6=ipv6)
        site.containers({"one": ("fixed",), "two": ("plain",)})
        site.serve(LAN, "tcp", PORT)
        questions = []
        for version in versions:
            neighbour = LAN_ADDRESS[version]
            questions.append(Question("one", neighbour, PORT, fixed[version]))
            if driver == "pynet" or not is_modern(engine):
                # From 28 on Docker's bridge drops the answers: what is for a container's address.
                own = site.address("two", "plain", version)
                questions.append(Question("two", neighbour, PORT, own))
        check(site, questions)
    finally:
        for version in versions:
            with_prefix = f"{fixed[version]}/{24 if version == 4 else 64}"
            engine.run("ip", "address", "delete", with_prefix, "dev", "uplink")


@pytest.mark.parametrize("driver", DRIVERS)
def test_trusted_interfaces_reach_published_ports_directly(site: Site, driver: str) -> None:
    if driver == "bridge" and not is_modern(site.engine):
        pytest.skip("Docker's bridge knows trusted interfaces from 28.2 on")
    site.network(driver, "a", 60, "-o", f"{BRIDGE}.trusted_host_interfaces=uplink:other")
    site.container("web", "a", "-p", f"{PUBLISHED}:{PORT}")
    site.serve("web", "tcp", PORT, UNPUBLISHED)
    questions = []
    for version in (4, 6):
        web = site.address("web", "a", version)
        questions += [
            Question(LAN, web, PORT, LAN_ADDRESS[version]),
            Question(LAN, web, UNPUBLISHED, None),
        ]
    check(site, questions)


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_gateway_can_be_another_than_the_bridge(site: Site, driver: str) -> None:
    """Two networks: one names a router of its own, one leaves the bridge without an address."""
    auxiliary = ("--aux-address", "DefaultGatewayIPv4=10.60.0.254")
    site.network(driver, "a", 60, *auxiliary, ipv6=False)
    site.containers({"web": ("a",), "router": ("a", "--ip", "10.60.0.253")})
    assert "via 10.60.0.254 " in steps.execute(site.engine, "web", "ip", "route")
    if driver == "bridge" and not is_modern(site.engine):
        return  # Docker's bridge knows inhibit_ipv4 from 23 on, and makes it work from 28 on
    identity = site.network(driver, "b", 61, "-o", f"{BRIDGE}.inhibit_ipv4=true", ipv6=False)
    site.container("far", "b")
    name = f"{'pn' if driver == 'pynet' else 'br'}-{identity[:12]}"
    bridge = steps.host_link(site.engine, name)
    assert bridge is not None
    assert not [each for each in bridge["addr_info"] if each["family"] == "inet"]
    # Whoever has the address is the gateway: somebody on the bridge, say.
    assert "via 10.61.0.1 " in steps.execute(site.engine, "far", "ip", "route")
