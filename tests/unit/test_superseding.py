"""A network whose addresses Docker has given away anew: gone if nothing is on it, else kept."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from driver.errors import Conflict
from driver.model import host_end_name
from tests.samples import (
    counted,
    endpoint_id,
    network,
    network_id,
    new_endpoint,
    new_join,
    pool,
    ports,
    sandbox_key,
)
from tests.unit.test_fault_matrix import joins, on_small_bridges

if TYPE_CHECKING:
    from driver.driver import BridgeDriver
    from driver.model import Network
    from tests.fakes import FakeKernel

SPACE = "LocalDefault"
FOUR, SIX = pool("10.1.0.1/24", SPACE), pool("fd00:1::1/64", SPACE)
OTHER_FOUR, OTHER_SIX = pool("10.9.0.1/24", SPACE), pool("fd00:9::1/64", SPACE)
OLD = network(1, pools=(FOUR, SIX))
NEW = {
    "the same addresses": network(2, pools=(FOUR, SIX)),
    "a part of them": network(2, pools=(pool("10.1.0.129/25", SPACE),)),
    "those of IPv4": network(2, pools=(FOUR, OTHER_SIX)),
    "those of IPv6": network(2, pools=(OTHER_FOUR, SIX)),
    "those of IPv6 alone": network(2, pools=(SIX,)),
}
each_new = pytest.mark.parametrize("new", NEW.values(), ids=NEW)


@each_new
def test_nothing_is_left_of_one_without_containers(
    driver: BridgeDriver, kernel: FakeKernel, new: Network
) -> None:
    driver.create_network(OLD)
    driver.create_network(new)
    assert [each for each, _ in driver.describe()] == [new]
    assert OLD.bridge_name not in kernel.links
    assert OLD.bridge_name not in str(kernel.tables)
    assert driver.check() == ()
    assert counted(driver.counts.evictions) == {"network": 1}


@pytest.mark.parametrize("is_joined", [True, False], ids=["running", "about to start"])
@each_new
def test_one_with_a_container_stays_and_the_new_one_is_refused(
    driver: BridgeDriver, kernel: FakeKernel, new: Network, *, is_joined: bool
) -> None:
    driver.create_network(OLD)
    driver.create_endpoint(new_endpoint(1, ipv6="fd00:1::2/64"))
    if is_joined:
        kernel.add_sandbox(sandbox_key(1))
        driver.join(new_join(has_ports=True))
        kernel.move(host_end_name(endpoint_id(1)), sandbox_key(1))
        driver.program_external_connectivity(OLD.id, endpoint_id(1), ports("8080:80"))
    before, described = kernel.state(), driver.describe()
    with pytest.raises(Conflict, match=r"subnet .* overlaps .* of 010101010101"):
        driver.create_network(new)
    assert (kernel.state(), driver.describe()) == (before, described)
    assert driver.check() == ()
    assert not counted(driver.counts.evictions)


def test_one_that_docker_gave_other_addresses_by_hand_is_no_reason(driver: BridgeDriver) -> None:
    """Two address spaces may hold the same addresses; whose they are now nobody can tell."""
    driver.create_network(OLD)
    elsewhere = network(2, pools=(replace(FOUR, address_space="somebody's"),))
    with pytest.raises(Conflict, match="overlaps"):
        driver.create_network(elsewhere)
    assert [each for each, _ in driver.describe()] == [OLD]


def test_its_further_bridges_go_with_it(driver: BridgeDriver, kernel: FakeKernel) -> None:
    driver.create_network(OLD)
    for number in (1, 2):
        kernel.add_sandbox(sandbox_key(number))
        driver.create_endpoint(new_endpoint(number))
        on_small_bridges(joins(number, 1, number))(driver)
    for number in (1, 2):
        driver.delete_endpoint(network_id(1), endpoint_id(number))
    assert len(driver.describe()[0][0].bridges) == 2
    driver.create_network(NEW["a part of them"])
    assert kernel.links.keys() == {"pn-020202020202"}
    assert driver.check() == ()
