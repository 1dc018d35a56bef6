"""A network's second bridge and second family, where one thinks of the first: at an end, a loss."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from driver.driver import BridgeDriver
from driver.errors import Conflict
from driver.model import Attach, host_end_name
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
from tests.unit.test_fault_matrix import joins, on_small_bridges

if TYPE_CHECKING:
    from driver.driver import NewEndpoint
    from driver.state.store import Store
    from tests.fakes import FakeKernel

FOUR, SIX = pool("10.1.0.1/24"), pool("fd00:1::1/64")
FIRST, SECOND, TRUNK = network(1).bridge_name, network(1).bridge_at(1), network(1).trunk(1)


def start(driver: BridgeDriver, kernel: FakeKernel, *numbers: int) -> None:
    """Start containers on the network, one on each of its bridges."""
    for number in numbers:
        kernel.add_sandbox(sandbox_key(number))
        driver.create_endpoint(new_endpoint(number))
        on_small_bridges(joins(number, 1, number))(driver)
        kernel.move(host_end_name(endpoint_id(number)), sandbox_key(number))


def end(driver: BridgeDriver, *numbers: int) -> None:
    for number in numbers:
        driver.leave(network_id(1), endpoint_id(number))
        driver.delete_endpoint(network_id(1), endpoint_id(number))


@pytest.fixture
def wide(driver: BridgeDriver, kernel: FakeKernel) -> BridgeDriver:
    """Lend a driver with a network of two bridges, and a container on each."""
    driver.restore()
    driver.create_network(network(1))
    start(driver, kernel, 1, 2)
    assert kernel.links[host_end_name(endpoint_id(2))].bridge == SECOND
    return driver


def test_at_the_drivers_end_nothing_is_left_of_an_idle_network(
    wide: BridgeDriver, store: Store, kernel: FakeKernel
) -> None:
    end(wide, 1, 2)
    before = kernel.state()
    wide.shutdown()
    assert kernel.links == {}
    assert not kernel.tables
    kernel.restart()
    again = BridgeDriver(store, kernel)
    again.restore()
    assert kernel.state() == before
    assert again.check() == ()


@pytest.mark.parametrize("staying", [1, 2])
def test_at_the_drivers_end_both_stay_for_a_container_on_either(
    wide: BridgeDriver, kernel: FakeKernel, staying: int
) -> None:
    end(wide, 3 - staying)
    before = kernel.state()
    wide.shutdown()
    assert kernel.state() == before


@pytest.mark.parametrize("bridge", [FIRST, SECOND])
def test_at_the_drivers_end_both_stay_for_somebody_elses_port_on_either(
    wide: BridgeDriver, kernel: FakeKernel, bridge: str
) -> None:
    end(wide, 1, 2)
    kernel.add_foreign("tap0", "tun", bridge=bridge)
    before = kernel.links.keys()
    wide.shutdown()
    assert kernel.links.keys() == before


def test_after_a_boot_there_is_one_bridge_as_at_first(
    wide: BridgeDriver, store: Store, kernel: FakeKernel
) -> None:
    """No endpoint outlives a boot, and without endpoints nobody needs the second."""
    kernel.reboot()
    again = BridgeDriver(store, kernel)
    again.restore()
    assert kernel.links.keys() == {FIRST}
    assert [len(each.bridges) for each, _ in again.describe()] == [1]
    start(again, kernel, 1, 2)
    assert kernel.links[host_end_name(endpoint_id(2))].bridge == SECOND
    assert again.check() == ()


def test_who_is_dead_is_evicted_from_the_second(wide: BridgeDriver, kernel: FakeKernel) -> None:
    wide.program_external_connectivity(network_id(1), endpoint_id(2), ports("8080:80"))
    kernel.die(sandbox_key(2))
    start_anew = new_endpoint(3, host=3)
    wide.create_endpoint(start_anew)
    assert not kernel.reserved
    assert endpoint_id(2) not in str(kernel.tables)
    kernel.add_sandbox(sandbox_key(3))
    wide.join(new_join(3, 1, sandbox_key(3)))
    assert wide.check() == ()
    assert counted(wide.counts.evictions) == {"endpoint": 1}


def test_a_bridge_that_is_emptied_takes_the_next(wide: BridgeDriver, kernel: FakeKernel) -> None:
    end(wide, 2)
    start(wide, kernel, 3)
    assert kernel.links[host_end_name(endpoint_id(3))].bridge == SECOND
    end(wide, 1)
    start(wide, kernel, 4)
    assert kernel.links[host_end_name(endpoint_id(4))].bridge == FIRST
    assert wide.check() == ()


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_whichever_is_deleted_comes_back_with_its_ports(
    wide: BridgeDriver, kernel: FakeKernel, name: str
) -> None:
    before = kernel.state()
    kernel._delete(name)
    assert name in {each.subject for each in wide.check()}
    assert wide.repair_all() == ()
    assert kernel.state() == before


@pytest.mark.parametrize("name", [FIRST, SECOND])
@pytest.mark.parametrize("damage", [{"up": False}, {"mtu": 1400}, {"mac": "02:00:00:00:00:09"}])
def test_whichever_is_damaged_is_named_and_mended(
    wide: BridgeDriver, kernel: FakeKernel, name: str, damage: dict[str, object]
) -> None:
    before = kernel.state()
    kernel.links[name] = replace(kernel.links[name], **damage)  # type: ignore[arg-type]
    assert {each.subject for each in wide.check()} == {name}
    assert wide.repair_all() == ()
    assert kernel.state() == before


@pytest.mark.parametrize("end", [TRUNK.host_end, TRUNK.sandbox_end])
@pytest.mark.parametrize("damage", [{"bridge": None}, {"up": False}, {"mtu": 1400}])
def test_whichever_end_of_what_joins_them_is_damaged_the_second_is_named_and_it_is_mended(
    wide: BridgeDriver, kernel: FakeKernel, end: str, damage: dict[str, object]
) -> None:
    before = kernel.state()
    kernel.links[end] = replace(kernel.links[end], **damage)  # type: ignore[arg-type]
    assert [(each.kind, each.subject) for each in wide.check()] == [(Kind.BRIDGE, SECOND)]
    assert wide.repair_all() == ()
    assert kernel.state() == before


def test_no_container_gets_the_mac_address_of_any_of_them(wide: BridgeDriver) -> None:
    """Nor of what joins them: a bridge would send frames to either."""
    ((whole, _),) = wide.describe()
    assert len(whole.macs) == 3
    for number, mac in enumerate(sorted(whole.macs), start=3):
        with pytest.raises(Conflict, match=f"{mac}: the network's bridge has it"):
            wide.create_endpoint(new_endpoint(number, mac=mac))


@pytest.mark.parametrize("number", [1, 2])
def test_a_container_that_takes_the_mac_address_of_any_of_them_is_named(
    wide: BridgeDriver, kernel: FakeKernel, number: int
) -> None:
    """Frames to it would go to the other bridge."""
    kernel.macs[host_end_name(endpoint_id(number))] = TRUNK.mac
    (found,) = wide.check()
    assert (found.kind, found.subject) == (Kind.MAC, TRUNK.mac)
    assert TRUNK.sandbox_end in found.text


@pytest.mark.parametrize(("taken", "number"), [(FIRST, 1), (SECOND, 2)])
def test_nothing_can_be_done_for_who_is_on_one_whose_name_somebody_has_taken(
    wide: BridgeDriver, kernel: FakeKernel, taken: str, number: int
) -> None:
    """And for nobody on the other."""
    kernel._delete(taken)
    kernel.add_foreign(taken)
    kernel._delete(host_end_name(endpoint_id(3 - number)))
    ends = {each.subject: each.blocked for each in wide.check() if each.kind is Kind.HOST_END}
    assert ends == {host_end_name(endpoint_id(number)): True}


# The second family, alone.


def of_ipv6(number: int, host: int | None = None) -> NewEndpoint:
    """Return what CreateEndpoint asks for on a network that has IPv6 alone."""
    return replace(new_endpoint(number, ipv6=f"fd00:1::{host or number + 1:x}/64"), ipv4=None)


@pytest.mark.parametrize("attach", Attach)
def test_an_endpoint_of_ipv6_alone_lives_and_ends(
    driver: BridgeDriver, kernel: FakeKernel, attach: Attach
) -> None:
    driver.create_network(network(1, pools=(SIX,), attach=attach))
    before = kernel.state()
    kernel.add_sandbox(sandbox_key(1))
    driver.create_endpoint(of_ipv6(1))
    info = driver.join(new_join(has_ports=True))
    assert (info.gateway, str(info.gateway_ipv6)) == (None, "fd00:1::1")
    driver.program_external_connectivity(network_id(1), endpoint_id(1), ports("8080:80"))
    assert kernel.reserved == {place("[::]:8080")}
    assert kernel.elements("everywhere6") == {"tcp . 8080": "fd00:1::2 . 80"}
    assert driver.check() == ()
    end(driver, 1)
    kernel.die(sandbox_key(1))
    assert kernel.state() | {"macs": {}} == before
    assert driver.check() == ()


@pytest.mark.parametrize("joined", [True, False], ids=["died unseen", "never joined"])
def test_one_that_docker_forgot_gives_its_address_to_the_next(
    driver: BridgeDriver, kernel: FakeKernel, *, joined: bool
) -> None:
    """After a crash of dockerd nobody tells of it, and its address comes again."""
    driver.create_network(network(1, pools=(SIX,)))
    driver.create_endpoint(of_ipv6(1))
    if joined:
        kernel.add_sandbox(sandbox_key(1))
        driver.join(new_join())
        kernel.move(host_end_name(endpoint_id(1)), sandbox_key(1))
        kernel.die(sandbox_key(1))
    driver.create_endpoint(of_ipv6(2, 2))
    ((_, endpoints),) = driver.describe()
    assert [each.id for each in endpoints] == [endpoint_id(2)]
    assert counted(driver.counts.evictions) == {"endpoint": 1}
    assert driver.check() == ()


def test_one_that_lives_loses_it_and_two_never_have_one(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    driver.create_network(network(1, pools=(SIX,)))
    driver.create_endpoint(of_ipv6(1))
    kernel.add_sandbox(sandbox_key(1))
    driver.join(new_join())
    kernel.move(host_end_name(endpoint_id(1)), sandbox_key(1))
    driver.create_endpoint(of_ipv6(2, 2))
    ((_, endpoints),) = driver.describe()
    assert {each.id: str(each.ipv6) for each in endpoints} == {
        endpoint_id(1): "None",
        endpoint_id(2): "fd00:1::2/64",
    }
    assert driver.check() == ()


@pytest.mark.parametrize("first", [(FOUR,), (FOUR, SIX), (SIX,)], ids=["4", "dual", "6"])
@pytest.mark.parametrize("is_internal", [False, True])
def test_whichever_network_is_first_the_next_one_has_all_that_it_needs(
    driver: BridgeDriver, store: Store, kernel: FakeKernel, first: tuple[object, ...], *,
    is_internal: bool,
) -> None:  # fmt: skip
    """In particular the way from the host's ::1, which the first network of IPv6 needs."""
    driver.restore()
    driver.create_network(network(1, pools=first, internal=is_internal))  # type: ignore[arg-type]
    for number, pools in ((2, (pool("10.2.0.1/24"), pool("fd00:2::1/64"))), (3, ())):
        driver.create_network(network(number, pools=pools))
        assert driver.check() == ()
    before = kernel.state()
    kernel.restart()
    BridgeDriver(store, kernel).restore()
    assert kernel.state() == before
