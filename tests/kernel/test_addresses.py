"""What happens on the wire when an address changes hands."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface, ip_interface, ip_network
from typing import TYPE_CHECKING

import pytest

from driver.driver import NewJoin
from driver.model import Attach, Pool
from driver.reconcile.diff import Kind
from tests.engine.wait import wait_until
from tests.kernel.container import PORT, reaches, sandbox_of, serving, start
from tests.kernel.host import ip
from tests.samples import network, new_endpoint, pool

if TYPE_CHECKING:
    from driver.driver import BridgeDriver, NewEndpoint
    from driver.model import Endpoint
    from tests.kernel.host import RealHost

DUAL = network(1, pools=(pool("10.1.0.1/24"), pool("fd00:1::1/64")))


def test_who_lost_its_ipv6_address_is_reached_by_ipv4(
    as_docker_leaves_it: None, driver: BridgeDriver, real: RealHost
) -> None:
    """The engine takes back the address of an interface on which IPv6 has been turned off."""
    driver.create_network(DUAL)
    first = start(driver, real, 1, new_endpoint(1, ipv6="fd00:1::2/64"))
    ip("-6", "addr", "flush", "dev", "eth0", sandbox=sandbox_of(first))
    second = start(driver, real, 2, new_endpoint(2, ipv6="fd00:1::2/64"))
    third = start(driver, real, 3, new_endpoint(3, ipv6="fd00:1::4/64"))
    wait_until(lambda: reaches(third, first), 5, "the first one is reached by IPv4")
    assert reaches(third, second, 6)
    assert not driver.check()


def test_a_mac_that_a_container_took_from_another_is_found(
    as_docker_leaves_it: None, driver: BridgeDriver, real: RealHost
) -> None:
    driver.create_network(DUAL)
    first, second = (start(driver, real, number, new_endpoint(number)) for number in (1, 2))
    assert not driver.check()
    ip("link", "set", "eth0", "address", first.mac, sandbox=sandbox_of(second))
    (difference,) = driver.check()
    assert (difference.kind, difference.subject) == (Kind.MAC, first.mac)
    ip("link", "set", "eth0", "address", DUAL.bridge.mac, sandbox=sandbox_of(second))
    (difference,) = driver.check()
    assert DUAL.bridge_name in difference.text


@pytest.mark.parametrize("attach", Attach)
@pytest.mark.parametrize(
    ("gateway", "container"),
    [
        ("10.1.0.0/31", "10.1.0.1/31"),
        ("10.1.0.1/31", "10.1.0.0/31"),
        ("10.1.0.2/30", "10.1.0.1/30"),
        ("10.1.0.1/30", "10.1.0.2/30"),
        ("10.1.0.1/24", "10.1.0.254/24"),
        ("fd00:1::/127", "fd00:1::1/127"),
        ("fd00:1::1/127", "fd00:1::/127"),
        ("fd00:1::3/126", "fd00:1::1/126"),
        ("fd00:1::1/64", "fd00:1::ffff:ffff:ffff:ffff/64"),
    ],
)
@pytest.mark.usefixtures("as_docker_leaves_it")
def test_the_smallest_networks_work(
    driver: BridgeDriver, real: RealHost, gateway: str, container: str, attach: Attach
) -> None:
    """The host reaches the container, at whatever end of the subnet it is."""
    net = network(1, pools=(pool(gateway),), attach=attach)
    driver.create_network(net)
    address = ip_interface(container)
    new = replace(
        new_endpoint(1),
        ipv4=address if isinstance(address, IPv4Interface) else None,
        ipv6=address if isinstance(address, IPv6Interface) else None,
    )
    endpoint = lives(driver, real, new, attach)
    (link,) = json.loads(ip("-json", "addr", "show", "dev", net.bridge_name))
    assert link["address"] != endpoint.mac
    assert str(address.ip) not in {each.get("broadcast") for each in link["addr_info"]}
    with serving(endpoint, address.version):
        socket.create_connection((str(address.ip), PORT), 5).close()
    (link,) = json.loads(ip("-json", "addr", "show", "dev", "eth0", sandbox=sandbox_of(endpoint)))
    wrong = gateway.partition("/")[0]
    assert wrong not in {each.get("broadcast") for each in link["addr_info"]}
    assert not driver.check()


def test_a_container_may_be_all_of_its_network(
    as_docker_leaves_it: None, driver: BridgeDriver, real: RealHost
) -> None:
    driver.create_network(replace(DUAL, pools=(Pool(ip_network("10.1.0.1/32"), None),)))
    new = replace(new_endpoint(1), ipv4=IPv4Interface("10.1.0.1/32"))
    start(driver, real, 1, new)
    assert not driver.check()


def lives(driver: BridgeDriver, real: RealHost, new: NewEndpoint, attach: Attach) -> Endpoint:
    """Start a container, whoever attaches it."""
    if attach is Attach.HANDOVER:
        return start(driver, real, 1, new)
    sandbox = real.add_sandbox(1)
    driver.create_endpoint(new)
    driver.join(NewJoin(new.network_id, new.id, sandbox, has_ports=False))
    return driver.describe()[0][1][0]
