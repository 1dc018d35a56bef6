"""A network that has outgrown its bridge is still one network; a bridge has room for two here."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from socket import IPPROTO_IP, SOCK_DGRAM
from typing import TYPE_CHECKING, Any

import pytest

from driver import model, options
from driver.driver import BridgeDriver, NewJoin
from driver.errors import KernelError
from driver.linux.rtnetlink import BridgePort, Rtnetlink, VethPeer
from driver.model import Attach, EndpointId, Guard, MacAddress, find_room, host_end_name
from driver.options import parse_change
from driver.state.store import Store
from tests.engine.soak import repetitions
from tests.engine.wait import wait_until
from tests.kernel.container import (
    FAMILIES,
    arrives,
    calling,
    is_connected,
    reaches,
    sandbox_of,
    serving,
    socket_in,
    start,
)
from tests.kernel.host import ip, run
from tests.samples import KEEPALIVE, endpoint_id, network, new_endpoint, one_of_many, pool, ports

if TYPE_CHECKING:
    from pathlib import Path

    from driver.linux.linux import LinuxKernel
    from driver.model import Endpoint
    from tests.kernel.host import RealHost

POOLS = (pool("10.1.0.1/24"), pool("fd00:1::1/64"))
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2  # linux/in.h; Python's socket has neither
COUNT = 5
REFUSED_SECONDS = 1.0
FIRST, SECOND, THIRD = "pn-010101010101", "pn1010101010101", "pn2010101010101"

pytestmark = pytest.mark.usefixtures("as_docker_leaves_it")


@pytest.fixture(autouse=True)
def small_bridges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "BRIDGE_PORTS", 2)


def fill(driver: BridgeDriver, real: RealHost, **wanted: Any) -> list[Endpoint]:
    """Start five containers on a network, which then has three bridges."""
    driver.create_network(network(1, f"{KEEPALIVE}=600", pools=POOLS, **wanted))
    return [
        start(
            driver,
            real,
            number,
            new_endpoint(number, 1, ipv6=f"fd00:1::{number + 1}/64"),
            has_ports=True,
        )
        for number in range(1, COUNT + 1)
    ]


def bridges(real: RealHost) -> dict[str, str | None]:
    """Return what bridge each host end is on."""
    links = real.links()
    return {name: link.bridge for name, link in links.items() if name.startswith("pnh")}


def test_the_lowest_bridge_with_room_is_taken() -> None:
    assert next(find_room({})) == 0
    assert next(find_room({0: 2, 1: 1})) == 1
    assert next(find_room({0: 1, 1: 2})) == 0
    assert list(find_room(dict.fromkeys(range(10), 2))) == []


@pytest.mark.parametrize("guard", Guard)
@pytest.mark.parametrize("version", FAMILIES)
def test_all_reach_each_other(
    driver: BridgeDriver, real: RealHost, version: int, guard: Guard
) -> None:
    endpoints = fill(driver, real, guard=guard)
    assert list(bridges(real).values()) == [FIRST, FIRST, SECOND, SECOND, THIRD]
    for client in endpoints:
        for server in endpoints:
            assert client is server or reaches(client, server, version)
    assert driver.check() == ()


@pytest.mark.parametrize("version", FAMILIES)
def test_apart_they_reach_each_other_by_published_ports_only(
    driver: BridgeDriver, real: RealHost, version: int
) -> None:
    host = {4: "10.1.0.1", 6: "fd00:1::1"}[version]  # the gateway's: on the way without a route
    endpoints = fill(driver, real, icc=False)
    for number, server in enumerate(endpoints):
        published = ports(f"{8000 + number}:80")
        driver.program_external_connectivity(server.network_id, server.id, published)
    pairs = [(0, 2), (2, 0), (2, 3), (2, 4), (4, 1), (0, 1)]
    for one, other in pairs:
        with calling(endpoints[one], endpoints[other], version) as caller:
            assert not is_connected(caller, REFUSED_SECONDS), (one, other)
    for one, other in [*pairs, (2, 2), (0, 0)]:
        with serving(endpoints[other], version, 80):
            caller = socket_in(endpoints[one], FAMILIES[version])
            assert arrives(caller, host, 8000 + other), (one, other)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_fifteen_hundred_on_one_network(
    driver: BridgeDriver, real: RealHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As large as bridges are; as long as it is no soak, a tenth of both."""
    many = repetitions(1500)
    monkeypatch.setattr(model, "BRIDGE_PORTS", many * 2 // 3)
    wide = (pool("10.1.0.1/16"),)
    driver.create_network(network(1, f"{KEEPALIVE}=600", pools=wide, attach=Attach.DIRECT))
    endpoints = [attach(driver, real, number) for number in range(1, many + 1)]
    assert Counter(bridges(real).values()) == {FIRST: many * 2 // 3, SECOND: many // 3}
    for number, client in enumerate(endpoints):
        for distance in (1, many // 2):
            server = endpoints[(number + distance) % many]
            assert reaches(client, server), (number, distance)
            # All namespaces share one table of neighbours, which has room for 1,024
            # (net.ipv4.neigh.default.gc_thresh3); docs/operations.md tells who runs so many.
            for each in (client, server):
                ip("neigh", "flush", "dev", "eth0", sandbox=sandbox_of(each))
    assert driver.check() == ()
    driver.delete_network(network(1).id)
    wait_until(lambda: not real.links(), 60, "all links are deleted")


def attach(driver: BridgeDriver, real: RealHost, number: int) -> Endpoint:
    """Start a container whose interface the driver makes."""
    new = one_of_many(number)
    endpoint = driver.create_endpoint(new)
    sandbox = real.add_sandbox(number)
    driver.join(NewJoin(new.network_id, new.id, sandbox, has_ports=False))
    return endpoint.joined(sandbox)


def test_nothing_is_left_of_it(driver: BridgeDriver, real: RealHost) -> None:
    fill(driver, real)
    driver.delete_network(network(1).id)
    wait_until(lambda: not real.links(), 5, "all links are deleted")
    assert "pynet" not in run("nft", "list", "ruleset")


def test_it_comes_back_after_a_restart(
    driver: BridgeDriver, real: RealHost, linux: LinuxKernel, tmp_path: Path
) -> None:
    endpoints = fill(driver, real)
    run("ip", "link", "del", SECOND)
    run("ip", "link", "del", THIRD)
    run("nft", "flush", "ruleset")
    assert driver.check() != ()
    again = BridgeDriver(Store(tmp_path / "state"), linux)
    again.restore()
    assert again.check() == ()
    assert reaches(endpoints[1], endpoints[4])
    assert reaches(endpoints[4], endpoints[2])


def test_a_joint_that_is_lost_is_found_and_mended(driver: BridgeDriver, real: RealHost) -> None:
    endpoints = fill(driver, real)
    run("ip", "link", "del", next(name for name in real.links() if name.startswith("pnu1")))
    assert {each.subject for each in driver.check()} == {SECOND}
    assert driver.repair_all() == ()
    assert reaches(endpoints[0], endpoints[2])


def mtus(real: RealHost) -> set[int]:
    """Return the MTUs of all that networks have on the host."""
    return {link.mtu for name, link in real.links().items() if re.match("pn(?!lo)", name)}


def test_another_mtu_is_that_of_all_bridges_joints_and_host_ends(
    driver: BridgeDriver, real: RealHost
) -> None:
    endpoints = fill(driver, real)
    driver.change_network(network(1).id, parse_change({options.MTU: "9000"}, ()))
    assert mtus(real) == {9000}
    assert driver.check() == ()
    first, last = endpoints[0], endpoints[4]  # on the first bridge, and on the third
    for endpoint in (first, last):
        ip("link", "set", "eth0", "mtu", "9000", sandbox=sandbox_of(endpoint))
    with socket_in(last, FAMILIES[4], SOCK_DGRAM) as there:
        there.bind((str(last.addresses[0].ip), 7))
        there.settimeout(5)
        with socket_in(first, FAMILIES[4], SOCK_DGRAM) as here:
            here.setsockopt(IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
            here.sendto(bytes(8900), there.getsockname())
        assert len(there.recv(9000)) == 8900


@pytest.mark.parametrize("kind", ["pnu1", "pnd2", "pnh", "pn1"])
def test_an_mtu_that_somebody_lowered_is_found_and_mended(
    driver: BridgeDriver, real: RealHost, kind: str
) -> None:
    fill(driver, real)
    name = next(name for name in real.links() if name.startswith(kind))
    run("ip", "link", "set", name, "mtu", "1300")
    # A bridge whose MTU nobody has changed follows its ports' (br_mtu_auto_adjust()).
    assert name in {part for each in driver.check() for part in (each.subject, each.text[-15:])}
    assert driver.repair_all() == ()
    assert real.links()[name].mtu == 1500


def test_who_leaves_makes_room(driver: BridgeDriver, real: RealHost) -> None:
    fill(driver, real)
    of = (network(1).id, endpoint_id(2))
    driver.leave(*of)
    driver.delete_endpoint(*of)
    new = replace(new_endpoint(9, 1, host=30), id=EndpointId("9" * 64))
    start(driver, real, 9, new)
    assert bridges(real)[host_end_name(new.id)] == FIRST


def test_the_kernel_has_the_last_word_on_room(
    driver: BridgeDriver, real: RealHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # as large as they are
    driver.create_network(network(1))
    with Rtnetlink() as route:
        bridge = route.find_link(FIRST)
        assert bridge is not None
        for number in range(1023):
            other = VethPeer(f"o{number}", MacAddress("02:00:00:00:00:01"))
            port = BridgePort(
                f"p{number}", "", 1500, bridge.index, hairpin=False, without_link_local=True
            )
            route.create_port(port, 0, other)
    driver.create_endpoint(new_endpoint())
    run("ip", "link", "del", "p7")  # the trunk to the next bridge needs one
    with Rtnetlink() as route:
        route.create_veth("p7", 1500, 0, VethPeer("o7", MacAddress("02:00:00:00:00:01")))
    driver.join(NewJoin(network(1).id, endpoint_id(1), real.add_sandbox(1), has_ports=False))
    assert bridges(real)[host_end_name(endpoint_id(1))] == FIRST
    driver.create_endpoint(new_endpoint(2))
    with pytest.raises(KernelError, match="is full"):
        driver.join(NewJoin(network(1).id, endpoint_id(2), real.add_sandbox(2), has_ports=False))
