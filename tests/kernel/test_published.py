"""Published ports are reached from the host and from containers, by every address there is."""

from __future__ import annotations

import socket
from dataclasses import replace
from ipaddress import IPv6Interface
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from driver.driver import BridgeDriver
from driver.model import Attach
from tests.kernel.container import FAMILIES, arrives, reaches, serving, socket_in, start
from tests.kernel.host import add_loopback_pair, ip
from tests.samples import endpoint_id, network, network_id, new_endpoint, new_join, pool, ports

if TYPE_CHECKING:
    from driver.driver import NewEndpoint
    from driver.model import Endpoint, Network
    from tests.kernel.host import RealHost

DUAL = network(1, pools=(pool("10.1.0.1/24"), pool("fd00:1::1/64")))
HOST_ADDRESSES = [(4, "127.0.0.1"), (4, "10.1.0.1"), (6, "fd00:1::1")]
each_address = pytest.mark.parametrize(("version", "address"), HOST_ADDRESSES)


def publish(driver: BridgeDriver, real: RealHost, net: Network = DUAL) -> list[Endpoint]:
    """Start two containers on a network, the first of which publishes 8080 as 80."""
    driver.create_network(net)
    started = [
        start(driver, real, number, dual_endpoint(number), has_ports=True) for number in (1, 2)
    ]
    driver.program_external_connectivity(net.id, endpoint_id(1), ports("80:8080"))
    return started


def dual_endpoint(number: int) -> NewEndpoint:
    return replace(new_endpoint(number), ipv6=IPv6Interface(f"fd00:1::{number + 1}/64"))


def host_reaches(version: int, address: str) -> bool:
    return arrives(socket.socket(FAMILIES[version]), address, 80)


@each_address
@pytest.mark.usefixtures("as_docker_leaves_it")
def test_the_host_reaches_a_published_port(
    driver: BridgeDriver, real: RealHost, version: int, address: str
) -> None:
    server, _ = publish(driver, real)
    with serving(server, version):
        assert host_reaches(version, address)


@pytest.mark.parametrize("client", [0, 1], ids=["itself", "its neighbour"])
@pytest.mark.parametrize(("version", "address"), [(4, "10.1.0.1"), (6, "fd00:1::1")])
@pytest.mark.usefixtures("as_docker_leaves_it")
def test_a_container_of_the_network_reaches_it(
    driver: BridgeDriver, real: RealHost, version: int, address: str, client: int
) -> None:
    started = publish(driver, real)
    with serving(started[0], version):
        assert arrives(socket_in(started[client], FAMILIES[version]), address, 80)


@each_address
def test_it_is_reached_on_somebodys_bridge(
    driver: BridgeDriver, real: RealHost, version: int, address: str
) -> None:
    real.add_foreign("br0")
    switch = Path("/proc/sys/net/ipv4/conf/br0/route_localnet")
    net = replace(DUAL, options=replace(DUAL.options, bridge_name="br0"))
    server, _ = publish(driver, real, net)
    with serving(server, version):
        assert host_reaches(version, address)
    driver.delete_network(net.id)
    assert switch.read_text() == "0\n"


@pytest.mark.parametrize("attach", Attach)
def test_a_direct_interface_is_as_good_as_a_handed_over_one(
    driver: BridgeDriver, real: RealHost, attach: Attach
) -> None:
    net = replace(DUAL, options=replace(DUAL.options, attach=attach))
    driver.create_network(net)
    started = []
    for number in (1, 2):
        if attach is Attach.HANDOVER:
            started.append(start(driver, real, number, dual_endpoint(number), has_ports=True))
            continue
        sandbox = real.add_sandbox(number)
        endpoint = driver.create_endpoint(dual_endpoint(number))
        info = driver.join(new_join(number, 1, sandbox, has_ports=True))
        assert info.sandbox_end is None
        started.append(endpoint.joined(sandbox))
    driver.program_external_connectivity(net.id, endpoint_id(1), ports("80:8080"))
    for version, address in HOST_ADDRESSES:
        assert reaches(started[1], started[0], version)
        with serving(started[0], version):
            assert host_reaches(version, address)


def test_what_earlier_versions_made_for_loopback_is_removed(
    driver: BridgeDriver, real: RealHost
) -> None:
    driver.create_network(DUAL)
    before = real.links(), ip("-6", "rule")
    add_loopback_pair()
    assert (real.links(), ip("-6", "rule")) != before
    for _ in range(2):
        BridgeDriver(driver._store, real.kernel).restore()
        assert (real.links(), ip("-6", "rule")) == before


def test_an_interface_of_others_with_the_name_of_that_stays(
    driver: BridgeDriver, real: RealHost
) -> None:
    ip("link", "add", "pnlo-out", "type", "bridge")
    driver.restore()
    assert "pnlo-out" in real.links()


def parameter(version: int, name: str) -> str:
    return Path(f"/proc/sys/net/ipv{version}/conf/{DUAL.bridge_name}/{name}").read_text().strip()


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (DUAL, {"disable_ipv6": "0", "accept_ra": "0"}),
        (network(1), {"disable_ipv6": "1"}),
    ],
    ids=["dual", "IPv4"],
)
def test_a_bridge_has_ipv6_only_with_an_address_of_it(
    driver: BridgeDriver, real: RealHost, net: Network, expected: dict[str, str]
) -> None:
    driver.create_network(net)
    assert {name: parameter(6, name) for name in expected} == expected
    Path(f"/proc/sys/net/ipv6/conf/{net.bridge_name}/disable_ipv6").write_text(
        "1" if net is DUAL else "0"
    )
    BridgeDriver(driver._store, real.kernel).restore()
    assert {name: parameter(6, name) for name in expected} == expected


def test_a_bridge_routes_loopback_only_to_publish(driver: BridgeDriver, real: RealHost) -> None:
    driver.create_network(network(1, internal=True))
    assert parameter(4, "route_localnet") == "0"
    driver.delete_network(network_id(1))
    driver.create_network(network(1))
    assert parameter(4, "route_localnet") == "1"
