"""One container with two ways out, one a family, as engine 29 tells of them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from driver.errors import Conflict
from driver.model import host_end_name
from tests.samples import (
    endpoint_id,
    network,
    network_id,
    new_endpoint,
    new_join,
    place,
    pool,
    ports,
    sandbox_key,
)

if TYPE_CHECKING:
    from driver.driver import BridgeDriver
    from tests.fakes import FakeKernel

TEXTS = ("8070:80", "127.0.0.1:81:81", "[::1]:81:81", "[::]:82:82/udp", "0.0.0.0:53:53/udp")
IPV4 = {"0.0.0.0:8070", "127.0.0.1:81", "0.0.0.0:53/udp"}
IPV6 = {"[::]:8070", "[::1]:81", "[::]:82/udp"}
KINDS = ("dual", "4", "6")


def connect(driver: BridgeDriver, kernel: FakeKernel, number: int, kind: str = "dual") -> None:
    """Join the container to a network of a kind, as engines 28 and later do."""
    four, six = pool(f"10.{number}.0.1/24"), pool(f"fd00:{number}::1/64")
    pools = {"dual": (four, six), "4": (four,), "6": (six,)}[kind]
    driver.create_network(network(number, pools=pools))
    new = new_endpoint(number, number, ipv6=None if kind == "4" else f"fd00:{number}::2/64")
    if kind == "6":
        new = replace(new, ipv4=None)
    driver.create_endpoint(new)
    kernel.sandboxes.setdefault(sandbox_key(1), dict(kernel.pristine))
    driver.join(new_join(number, number, sandbox_key(1), has_ports=True))
    kernel.move(host_end_name(endpoint_id(number)), sandbox_key(1))


def program(driver: BridgeDriver, number: int, *texts: str, only_ipv4: bool = False) -> None:
    driver.program_external_connectivity(
        network_id(number), endpoint_id(number), ports(*texts or TEXTS), only_ipv4=only_ipv4
    )


def published(driver: BridgeDriver, number: int) -> set[str]:
    """Return where an endpoint has ports on the host."""
    found = {each.id: each for _, endpoints in driver.describe() for each in endpoints}
    bindings = found[endpoint_id(number)].bindings
    return {str(each.host).removesuffix("/tcp") for each in bindings}


@pytest.mark.parametrize("first", ["dual", "4"])
@pytest.mark.parametrize("second", ["dual", "6"])
def test_the_second_one_comes_for_ipv6(
    driver: BridgeDriver, kernel: FakeKernel, first: str, second: str
) -> None:
    """The first one is told that it is there for IPv4 alone before the second one is told."""
    connect(driver, kernel, 1, first)
    program(driver, 1)
    connect(driver, kernel, 2, second)
    kernel.default_routes[sandbox_key(1)] = host_end_name(endpoint_id(1))
    program(driver, 1, only_ipv4=True)
    program(driver, 2)
    assert (published(driver, 1), published(driver, 2)) == (IPV4, IPV6)
    assert kernel.reserved == set(map(place, IPV4 | IPV6))
    assert not driver.check()
    driver.leave(network_id(1), endpoint_id(1))
    program(driver, 2)
    assert published(driver, 2) == (IPV4 | IPV6 if second == "dual" else IPV6)


@pytest.mark.parametrize("first", ["dual", "6"])
@pytest.mark.parametrize("second", ["dual", "4"])
def test_the_second_one_comes_for_ipv4(
    driver: BridgeDriver, kernel: FakeKernel, first: str, second: str
) -> None:
    connect(driver, kernel, 1, first)
    program(driver, 1)
    connect(driver, kernel, 2, second)
    kernel.default_routes[sandbox_key(1)] = host_end_name(endpoint_id(2))
    program(driver, 1)
    program(driver, 2, only_ipv4=True)
    assert (published(driver, 1), published(driver, 2)) == (IPV6, IPV4)
    program(driver, 2, only_ipv4=True)
    program(driver, 1)
    assert (published(driver, 1), published(driver, 2)) == (IPV6, IPV4)
    assert not driver.check()
    driver.leave(network_id(2), endpoint_id(2))
    del kernel.default_routes[sandbox_key(1)]
    program(driver, 1)
    assert published(driver, 1) == (IPV4 | IPV6 if first == "dual" else IPV6)


def test_who_is_told_nothing_else_takes_ipv4_over(driver: BridgeDriver, kernel: FakeKernel) -> None:
    """Though what the kernel shows of the routes may not be true yet."""
    connect(driver, kernel, 1)
    program(driver, 1)
    connect(driver, kernel, 2)
    program(driver, 2, only_ipv4=True)
    assert (published(driver, 1), published(driver, 2)) == (IPV6, IPV4)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_dockers_bridge_may_be_the_way_out_by_ipv4(
    driver: BridgeDriver, kernel: FakeKernel, kind: str
) -> None:
    connect(driver, kernel, 1, kind)
    for text in IPV4:
        kernel.taken[place(text)] = "dockerd (pid 812)"
    kernel.default_routes[sandbox_key(1)] = "eth1 of docker0"
    program(driver, 1)
    assert published(driver, 1) == (IPV6 if kind == "dual" else set())


def test_dockers_bridge_may_become_it(driver: BridgeDriver, kernel: FakeKernel) -> None:
    """It binds the host's ports right after this endpoint was told that something has changed."""
    connect(driver, kernel, 1)
    program(driver, 1)
    kernel.default_routes[sandbox_key(1)] = "eth1 of docker0"
    program(driver, 1)
    assert published(driver, 1) == IPV6


def test_a_port_that_somebody_else_has_stays_an_error(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    connect(driver, kernel, 1)
    kernel.taken[place("0.0.0.0:8070")] = "nginx (pid 812)"
    with pytest.raises(Conflict, match="8070/tcp: port is in use by nginx"):
        program(driver, 1)
    with pytest.raises(Conflict, match="8070/tcp: port is in use by nginx"):
        program(driver, 1, only_ipv4=True)


def test_who_is_relayed_loses_that_with_ipv4(driver: BridgeDriver, kernel: FakeKernel) -> None:
    """What comes to the host's IPv6 is led to the container's IPv4 address."""
    connect(driver, kernel, 1, "4")
    program(driver, 1)
    assert kernel.relayed
    connect(driver, kernel, 2, "4")
    program(driver, 2, only_ipv4=True)
    assert (published(driver, 1), published(driver, 2)) == (set(), IPV4)
    assert {each.ip for each in kernel.relayed} == {ip_address("10.2.0.3")}
    assert driver.check() == ()
