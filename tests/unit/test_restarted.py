"""What only a restart shows: what came to an end meanwhile, and what the process remembered."""

from __future__ import annotations

from ipaddress import IPv4Interface
from typing import TYPE_CHECKING

import pytest

from driver.driver import BridgeDriver
from driver.errors import InvalidRequest
from driver.model import host_end_name
from driver.options import parse_change
from driver.reconcile.diff import Kind
from tests.samples import (
    KEEPALIVE,
    SOMAXCONN,
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
    from driver.state.store import Store
    from tests.fakes import FakeKernel

DUAL = network(1, f"{KEEPALIVE}=600", pools=(pool("10.1.0.1/24"), pool("fd00:1::1/64")))


def start(driver: BridgeDriver, kernel: FakeKernel, number: int, *texts: str) -> None:
    """Start a container that publishes these ports."""
    kernel.add_sandbox(sandbox_key(number))
    driver.create_endpoint(new_endpoint(number, ipv6=f"fd00:1::{number + 1}/64"))
    driver.join(new_join(number, 1, sandbox_key(number), has_ports=True))
    kernel.move(host_end_name(endpoint_id(number)), sandbox_key(number))
    driver.endpoint_info(network_id(1), endpoint_id(number))
    driver.program_external_connectivity(network_id(1), endpoint_id(number), ports(*texts))


def restart(store: Store, kernel: FakeKernel) -> BridgeDriver:
    kernel.restart()
    driver = BridgeDriver(store, kernel)
    driver.restore()
    return driver


@pytest.fixture
def busy(driver: BridgeDriver, kernel: FakeKernel) -> BridgeDriver:
    """Lend a driver with two containers that publish UDP ports, and others' flows beside theirs."""
    driver.restore()
    driver.create_network(DUAL)
    start(driver, kernel, 1, "5353:53/udp", "127.0.0.1:5454:54/udp", "8080:80")
    start(driver, kernel, 2, "6363:63/udp")
    kernel.flows = {
        place(each)
        for port in (5353, 6363, 7373)
        for each in (f"192.0.2.1:{port}/udp", f"[2001:db8::1]:{port}/udp", f"192.0.2.1:{port}")
    } | {place("127.0.0.1:5454/udp"), place("127.0.0.2:5454/udp")}
    return driver


LEFT = {
    place("192.0.2.1:5353"),
    place("127.0.0.2:5454/udp"),
    *(
        place(each)
        for port in (6363, 7373)
        for each in (f"192.0.2.1:{port}/udp", f"[2001:db8::1]:{port}/udp", f"192.0.2.1:{port}")
    ),
}


def test_no_flow_goes_on_to_a_container_that_died_meanwhile(
    busy: BridgeDriver, store: Store, kernel: FakeKernel
) -> None:
    """A peer that goes on sending keeps its flow for ever, to an address that the next has."""
    kernel.die(sandbox_key(1))
    again = restart(store, kernel)
    assert kernel.flows == LEFT
    assert again.check() == ()


def test_nor_to_one_that_is_found_dead(busy: BridgeDriver, kernel: FakeKernel) -> None:
    kernel.die(sandbox_key(1))
    assert [each.kind for each in busy.check()] == [Kind.DEAD]
    assert busy.repair_all() == ()
    assert kernel.flows == LEFT


def test_a_restart_interrupts_no_flow_of_those_who_live(
    busy: BridgeDriver, store: Store, kernel: FakeKernel
) -> None:
    before = set(kernel.flows)
    restart(store, kernel)
    assert kernel.flows == before


def test_an_address_that_the_host_has_lost_keeps_no_other_port_from_its_place(
    driver: BridgeDriver, store: Store, kernel: FakeKernel
) -> None:
    """By DHCP, or of a VPN that is not up yet."""
    driver.restore()
    driver.create_network(DUAL)
    kernel.add_foreign("eth0", "dummy", addresses=(IPv4Interface("192.0.2.7/24"),))
    start(driver, kernel, 1, "192.0.2.7:80:80", "192.0.2.7:81:81", "8080:80")
    start(driver, kernel, 2, "9090:90")
    before = set(kernel.reserved)
    kernel.links["eth0"].addresses = ()
    again = restart(store, kernel)
    lost = {place("192.0.2.7:80"), place("192.0.2.7:81")}
    assert kernel.reserved == before - lost
    assert {each.subject for each in again.check()} == set(map(str, lost))
    kernel.add_foreign("eth0", "dummy", addresses=(IPv4Interface("192.0.2.7/24"),))
    assert again.repair_all() == ()
    assert kernel.reserved == before


@pytest.mark.parametrize("is_restarted", [False, True])
def test_what_a_module_brought_is_inherited_by_the_next_network(
    driver: BridgeDriver, store: Store, kernel: FakeKernel, *, is_restarted: bool
) -> None:
    """New parameters come with modules, while the driver runs."""
    driver.restore()
    kernel.host[SOMAXCONN] = "65535"
    driver.create_network(network(1, inherit=("net.core.*",)))
    with pytest.raises(InvalidRequest, match="this kernel has no such parameter"):
        driver.create_network(network(2, inherit=("net.mptcp.*",)))
    kernel.pristine["net.mptcp.enabled"] = "1"
    kernel.host["net.mptcp.enabled"] = "0"
    if is_restarted:
        driver = restart(store, kernel)
    driver.create_network(network(2, inherit=("net.mptcp.*",)))
    kernel.add_sandbox(sandbox_key(1))
    driver.create_endpoint(new_endpoint(1, 2))
    driver.join(new_join(1, 2))
    assert kernel.sandboxes[sandbox_key(1)]["net.mptcp.enabled"] == "0"


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("unset", [True, False], ids=["unset", "another value"])
def test_what_a_container_set_after_its_join_outlives_a_change_of_the_network(
    busy: BridgeDriver, store: Store, kernel: FakeKernel, *, is_restarted: bool, unset: bool
) -> None:
    kernel.sandboxes[sandbox_key(1)][KEEPALIVE] = "42"
    driver = restart(store, kernel) if is_restarted else busy
    change = parse_change({}, (KEEPALIVE,)) if unset else parse_change({KEEPALIVE: "300"}, ())
    driver.change_network(network_id(1), change)
    values = [kernel.sandboxes[sandbox_key(number)][KEEPALIVE] for number in (1, 2)]
    assert values == ["42", "7200" if unset else "300"]
    for number in (1, 2):
        driver.leave(network_id(1), endpoint_id(number))
    values = [kernel.sandboxes[sandbox_key(number)][KEEPALIVE] for number in (1, 2)]
    assert values == ["42", "7200"]


def test_what_a_look_has_asked_is_asked_again_by_whoever_comes_later(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    """The host may change, at any moment, what new namespaces copy from it."""
    driver.create_network(network(1, f"{KEEPALIVE}=600"))
    for number, own in ((1, {KEEPALIVE: "42"}), (2, {})):
        kernel.add_sandbox(sandbox_key(number), **own)
        driver.create_endpoint(new_endpoint(number))
        driver.join(new_join(number, 1, sandbox_key(number)))
        assert driver.check() == ()
        assert driver.repair_all() == ()
        kernel.pristine[KEEPALIVE] = "7000"
    assert kernel.sandboxes[sandbox_key(2)][KEEPALIVE] == "600"


def test_a_sandbox_that_one_of_two_has_left_is_still_known_to_have_been(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    """Its path goes first, and the links into it a moment later."""
    kernel.add_sandbox(sandbox_key(1))
    for number in (1, 2):
        driver.create_network(network(number))
        driver.create_endpoint(new_endpoint(number, number))
        driver.join(new_join(number, number))
        kernel.move(host_end_name(endpoint_id(number)), sandbox_key(1))
    driver.leave(network_id(1), endpoint_id(1))
    del kernel.sandboxes[sandbox_key(1)]
    assert [(each.kind, each.subject) for each in driver.check()] == [(Kind.DEAD, endpoint_id(2))]
    assert driver.repair_all() == ()


def test_a_sandbox_that_came_and_went_unlooked_at_has_ended(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    """On engines up to 27, where it comes after the join: only who awaited it has seen it."""
    driver.create_network(network(1))
    driver.create_endpoint(new_endpoint())
    driver.join(new_join())
    assert driver.check() == ()
    kernel.arrive(sandbox_key(1), [host_end_name(endpoint_id(1))])
    del kernel.sandboxes[sandbox_key(1)]
    assert [each.kind for each in driver.check()] == [Kind.DEAD]
    assert driver.repair_all() == ()


def test_a_sandbox_whose_path_comes_again_has_not_ended(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    """On engines up to 27 it is yet to come when an endpoint joins it anew."""
    driver.create_network(network(1))
    for number in (1, 2):
        driver.create_endpoint(new_endpoint(number))
        driver.join(new_join(number))
        kernel.arrive(sandbox_key(1), [host_end_name(endpoint_id(number))])
        driver.leave(network_id(1), endpoint_id(number))
        kernel.die(sandbox_key(1))
        driver.delete_endpoint(network_id(1), endpoint_id(number))
    driver.create_endpoint(new_endpoint(3))
    driver.join(new_join(3))
    assert driver.check() == ()
    assert driver.repair_all() == ()
    assert [each.id for each in driver.describe()[0][1]] == [endpoint_id(3)]


def test_an_interface_whose_host_end_is_gone_has_no_name(
    busy: BridgeDriver, kernel: FakeKernel
) -> None:
    """`pynet inspect` asks for it, also while a container is leaving."""
    assert busy.find_interface(endpoint_id(1)) == "pnce1e1e1e1e1e1"
    del kernel.links[host_end_name(endpoint_id(1))]
    assert busy.find_interface(endpoint_id(1)) is None
    kernel.die(sandbox_key(2))
    assert busy.find_interface(endpoint_id(2)) is None
    assert busy.find_interface(endpoint_id(9)) is None
