"""Who may know an address by another MAC, and so has to hear of the new one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from driver.announcements import Neighbours
from driver.driver import BridgeDriver, NewEndpoint
from driver.model import Attach, DirectInterface, Endpoint, MacAddress, SandboxKey, Veth, derive_mac
from tests.fakes import FakeKernel
from tests.samples import (
    endpoint,
    network,
    network_id,
    new_endpoint,
    new_join,
    pool,
    sandbox_key,
)

if TYPE_CHECKING:
    from driver.state.store import Store

CHOSEN = MacAddress("02:00:00:00:00:01")


def ours(each: Endpoint) -> Endpoint:
    """Return the endpoint with the MAC that its first address gives it."""
    return replace(each, mac=derive_mac(each.addresses[0].ip))


PLAIN = ours(endpoint(1))
DUAL = ours(endpoint(2, 1, "10.1.0.3/24", "fd00:1::3/64"))
OWN = replace(PLAIN, mac=CHOSEN)


@pytest.mark.parametrize(
    ("before", "then", "expected"),
    [
        ([], PLAIN, False),
        ([], DUAL, False),
        ([], OWN, True),  # somebody may have had the address before the driver started
        ([PLAIN], PLAIN, False),
        ([PLAIN], OWN, True),
        ([OWN], PLAIN, True),
        ([OWN], OWN, False),
        ([OWN, PLAIN], PLAIN, False),
        ([DUAL], replace(ours(endpoint(1)), ipv6=DUAL.ipv6), True),
        ([OWN], replace(PLAIN, network_id=network_id(2)), False),
        ([], replace(PLAIN, ipv4=None, mac=CHOSEN), False),  # nothing to be known by
    ],
)
def test_they_hear_of_what_they_may_know_otherwise(
    before: list[Endpoint], then: Endpoint, *, expected: bool
) -> None:
    neighbours = Neighbours()
    for each in before:
        neighbours.remember(each)
    assert neighbours.may_be_wrong_about(then) == expected


def test_the_oldest_are_forgotten() -> None:
    neighbours = Neighbours(length=2)
    others = [replace(OWN, ipv4=endpoint(number).ipv4) for number in (2, 3)]
    for each in (OWN, others[0], OWN):
        neighbours.remember(each)
    assert neighbours.may_be_wrong_about(PLAIN)
    neighbours.remember(others[1])
    assert neighbours.may_be_wrong_about(PLAIN), "it is not the oldest: it was used again"
    neighbours.remember(others[0])
    assert not neighbours.may_be_wrong_about(PLAIN)


class WatchedKernel(FakeKernel):
    """Notes which interfaces are announced."""

    def __init__(self) -> None:
        super().__init__()
        self.announced: list[bool] = []

    def create_veth_in(self, veth: Veth, sandbox: SandboxKey, interface: DirectInterface) -> None:
        super().create_veth_in(veth, sandbox, interface)
        self.announced.append(interface.announced)


@pytest.mark.parametrize("is_deleted_at_once", [False, True])
def test_whoever_leaves_is_remembered(store: Store, *, is_deleted_at_once: bool) -> None:
    kernel = WatchedKernel()
    kernel.add_sandbox(sandbox_key(1))
    driver = BridgeDriver(store, kernel)
    driver.create_network(network(1, attach=Attach.DIRECT))

    def live(new: NewEndpoint) -> None:
        driver.create_endpoint(new)
        driver.join(new_join())
        if not is_deleted_at_once:
            driver.leave(new.network_id, new.id)
        driver.delete_endpoint(new.network_id, new.id)

    for mac in (None, CHOSEN, CHOSEN, None, None):
        live(new_endpoint(mac=mac))
    assert kernel.announced == [False, True, False, True, False]


def test_whoever_loses_an_address_is_remembered(store: Store) -> None:
    """By it the neighbours know one that lives on without it."""
    kernel = WatchedKernel()
    driver = BridgeDriver(store, kernel)
    pools = (pool("10.1.0.1/24"), pool("fd00:1::1/64"))
    driver.create_network(network(1, pools=pools, attach=Attach.DIRECT))
    for number in (1, 2):
        kernel.add_sandbox(sandbox_key(number))
        driver.create_endpoint(new_endpoint(number, ipv6="fd00:1::2/64"))
        driver.join(new_join(number, 1, sandbox_key(number)))
    assert kernel.announced == [False, True]
