"""Addresses that change hands: who is dead for it, and who lives on without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from driver.errors import Conflict, InvalidRequest
from driver.model import Guard, derive_mac, host_end_name
from driver.options import parse_change
from driver.reconcile.diff import Kind
from tests.samples import (
    counted,
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
    from driver.driver import BridgeDriver, NewEndpoint
    from driver.model import Endpoint
    from tests.fakes import FakeKernel

DUAL = (pool("10.1.0.1/24"), pool("fd00:1::1/64"))


def start(driver: BridgeDriver, kernel: FakeKernel, new: NewEndpoint, sandbox: int) -> None:
    """Have Docker start a container, up to its interface's being in it."""
    kernel.add_sandbox(sandbox_key(sandbox))
    driver.create_endpoint(new)
    driver.join(new_join(sandbox, 1, sandbox_key(sandbox), has_ports=True))
    kernel.move(host_end_name(new.id), sandbox_key(sandbox))
    driver.endpoint_info(network_id(1), new.id)


def found(driver: BridgeDriver, number: int) -> Endpoint | None:
    """Return an endpoint as it is stored."""
    endpoints = driver.describe()[0][1]
    return next((each for each in endpoints if each.id == endpoint_id(number)), None)


def words(kernel: FakeKernel) -> str:
    """Return all elements of our tables as one text."""
    return str([table.elements for table in kernel.tables.values()])


@pytest.fixture
def living(driver: BridgeDriver, kernel: FakeKernel) -> BridgeDriver:
    """Lend a driver with a running container that has two addresses, and ports on both."""
    driver.create_network(network(1, pools=DUAL, guard=Guard.ADDRESS, connections=9))
    start(driver, kernel, new_endpoint(1, ipv6="fd00:1::2/64"), 1)
    driver.program_external_connectivity(network_id(1), endpoint_id(1), ports("8080:80"))
    return driver


def test_an_endpoint_that_lives_loses_the_address_and_nothing_else(
    living: BridgeDriver, kernel: FakeKernel
) -> None:
    """As engine 29 does where a container's own parameter turns IPv6 off on its interface."""
    start(living, kernel, new_endpoint(2, ipv6="fd00:1::2/64"), 2)
    first = found(living, 1)
    assert first is not None
    assert (str(first.ipv4), first.ipv6) == ("10.1.0.2/24", None)
    assert host_end_name(endpoint_id(1)) in kernel.links
    assert kernel.elements("everywhere4") == {"tcp . 8080": "10.1.0.2 . 80"}
    assert not kernel.elements("everywhere6")
    assert kernel.reserved == {place("0.0.0.0:8080")}
    owners = {key.partition(" . ")[0] for key in kernel.elements("own6", "bridge pynet")}
    assert f'"{host_end_name(endpoint_id(1))}"' in owners, "its link-local address"
    own = [key for key in kernel.elements("own6", "bridge pynet") if key.endswith("fd00:1::2")]
    assert [key.partition(" . ")[0] for key in own] == [f'"{host_end_name(endpoint_id(2))}"']
    assert not living.check()
    assert not counted(living.counts.evictions)


def test_what_it_lost_stays_the_others_when_it_goes(
    living: BridgeDriver, kernel: FakeKernel
) -> None:
    start(living, kernel, new_endpoint(2, ipv6="fd00:1::2/64"), 2)
    living.program_external_connectivity(network_id(1), endpoint_id(2), ports("[::]:8080:80"))
    living.leave(network_id(1), endpoint_id(1))
    living.delete_endpoint(network_id(1), endpoint_id(1))
    assert kernel.elements("everywhere6") == {"tcp . 8080": "fd00:1::2 . 80"}
    assert "fd00:1::2" in kernel.elements("connections6")
    assert not living.check()


def test_its_last_address_may_go_too(living: BridgeDriver, kernel: FakeKernel) -> None:
    start(living, kernel, new_endpoint(2, host=2, ipv6="fd00:1::2/64"), 2)
    first = found(living, 1)
    assert first is not None
    assert (first.addresses, first.bindings) == ((), ())
    assert not kernel.reserved
    assert not living.check()
    living.restore()
    assert not living.check()


def test_an_endpoint_whose_sandbox_ended_is_evicted(
    living: BridgeDriver, kernel: FakeKernel
) -> None:
    kernel.die(sandbox_key(1))
    living.create_endpoint(new_endpoint(2, ipv6="fd00:1::2/64"))
    assert found(living, 1) is None
    assert not kernel.reserved
    assert counted(living.counts.evictions) == {"endpoint": 1}


def test_an_endpoint_whose_interface_is_gone_is_evicted(
    living: BridgeDriver, kernel: FakeKernel
) -> None:
    del kernel.links[host_end_name(endpoint_id(1))]
    living.create_endpoint(new_endpoint(2, ipv6="fd00:1::2/64"))
    assert found(living, 1) is None
    assert counted(living.counts.evictions) == {"endpoint": 1}


def test_an_endpoint_that_never_joined_is_evicted(driver: BridgeDriver) -> None:
    driver.create_network(network(1))
    driver.create_endpoint(new_endpoint(1))
    driver.create_endpoint(new_endpoint(2, host=2))
    assert found(driver, 1) is None


def choose_mac(driver: BridgeDriver, number: int, mac: str | None = None) -> str:
    return driver.create_endpoint(new_endpoint(number, mac=mac)).mac


def test_a_mac_that_was_asked_for_is_no_one_elses(driver: BridgeDriver) -> None:
    """Such as the one that another address has from the driver."""
    driver.create_network(network(1))
    later = str(derive_mac(new_endpoint(2).ipv4.ip))  # type: ignore[union-attr]
    assert choose_mac(driver, 1, later) == later
    other = choose_mac(driver, 2)
    assert other != later
    assert choose_mac(driver, 2) == other, "the same again gets the same answer"
    driver.create_network(network(2))
    assert driver.create_endpoint(new_endpoint(3, 2, mac=later)).mac == later


def test_a_mac_is_refused_with_who_has_it(driver: BridgeDriver) -> None:
    driver.create_network(network(1))
    mac = choose_mac(driver, 1)
    with pytest.raises(Conflict, match=f"{mac}: endpoint e1e1e1e1e1e1 of the same network has it"):
        choose_mac(driver, 2, mac)
    assert found(driver, 2) is None
    with pytest.raises(Conflict, match="the network's bridge has it"):
        choose_mac(driver, 2, network(1).bridge.mac)


def test_a_mac_that_only_a_dead_container_has_is_free(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    """And nothing of that one is left."""
    driver.create_network(network(1))
    start(driver, kernel, new_endpoint(1, mac="02:00:00:00:00:01"), 1)
    driver.program_external_connectivity(network_id(1), endpoint_id(1), ports("8080:80"))
    with pytest.raises(Conflict):
        choose_mac(driver, 2, "02:00:00:00:00:01")
    kernel.die(sandbox_key(1))
    assert choose_mac(driver, 2, "02:00:00:00:00:01") == "02:00:00:00:00:01"
    assert found(driver, 1) is None
    assert counted(driver.counts.evictions) == {"endpoint": 1}
    assert not kernel.reserved
    assert driver.check() == ()


def test_a_mac_that_two_have_is_a_difference(driver: BridgeDriver, kernel: FakeKernel) -> None:
    driver.create_network(network(1))
    for number in (1, 2):
        start(driver, kernel, new_endpoint(number), number)
    assert not driver.check()
    ends = [host_end_name(endpoint_id(number)) for number in (1, 2)]
    kernel.macs[ends[1]] = kernel.macs[ends[0]]
    (difference,) = driver.check()
    assert difference.kind is Kind.MAC
    assert "endpoint e1e1e1e1e1e1 and of endpoint e2e2e2e2e2e2" in difference.text
    kernel.macs[ends[1]] = network(1).bridge.mac
    (difference,) = driver.repair_all()
    assert "pn-010101010101 and of endpoint e2e2e2e2e2e2" in difference.text
    kernel.macs[ends[1]] = "02:00:00:00:00:09"
    kernel.add_foreign("tap0", "tun", mac="02:00:00:00:00:09", bridge=network(1).bridge_name)
    (difference,) = driver.check()
    assert "tap0 and of endpoint e2e2e2e2e2e2" in difference.text


@pytest.mark.parametrize("name", ["all", "default", "IFNAME"])
def test_ipv6_is_not_turned_off_on_a_network_that_has_it(
    driver: BridgeDriver, kernel: FakeKernel, name: str
) -> None:
    """The engine would turn it on again."""
    key = f"net.ipv6.conf.{name}.disable_ipv6"
    kernel.pristine |= {f"net.ipv6.conf.{each}.disable_ipv6": "0" for each in (name, "lo")}
    with pytest.raises(InvalidRequest, match=rf"{key}=1: the network has IPv6"):
        driver.create_network(network(1, f"{key}=1", pools=DUAL))
    driver.create_network(network(1, f"{key}=0", pools=DUAL))
    with pytest.raises(InvalidRequest, match=rf"{key}=1: the network has IPv6"):
        driver.change_network(network_id(1), parse_change({key: "1"}, ()))
    with pytest.raises(InvalidRequest, match=rf"{key}=1: the network has IPv6"):
        driver.create_endpoint(new_endpoint(1, 1, f"{key}=1", ipv6="fd00:1::2/64"))
    driver.create_endpoint(new_endpoint(1, 1, f"{key}=1"))
    driver.create_network(network(2, f"{key}=1"))
