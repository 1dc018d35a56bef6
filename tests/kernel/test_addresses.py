"""What happens on the wire when an address changes hands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from driver.check import Kind
from tests.engine.wait import wait_until
from tests.kernel.container import reaches, sandbox_of, start
from tests.kernel.host import ip
from tests.samples import network, new_endpoint, pool

if TYPE_CHECKING:
    from driver.bridge import BridgeDriver
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
