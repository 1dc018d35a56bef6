"""Direct attachment: the driver makes the interface in the sandbox, and says no where it cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from driver.errors import Conflict
from driver.model import Attach, host_end_name, takes_name_of
from tests.samples import (
    endpoint,
    endpoint_id,
    network,
    network_id,
    new_endpoint,
    new_join,
    sandbox_key,
)

if TYPE_CHECKING:
    from driver.driver import BridgeDriver
    from tests.fakes import FakeKernel

SANDBOX = sandbox_key(1)
DIRECT = Attach.DIRECT


def add(driver: BridgeDriver, number: int, ifname: str | None = None, **options: Any) -> None:
    """Make a network and an endpoint of it."""
    driver.create_network(network(number, **options))
    driver.create_endpoint(new_endpoint(number, number, ifname=ifname))


@pytest.mark.parametrize(("asked", "given"), [(None, "front0"), ("web", "web")])
def test_the_interface_is_made_and_found_and_taken_away(
    driver: BridgeDriver, kernel: FakeKernel, asked: str | None, given: str
) -> None:
    kernel.add_sandbox(SANDBOX)
    add(driver, 1, asked, attach=DIRECT, ifname_prefix="front")
    assert driver.join(new_join()).sandbox_end is None
    (link,) = kernel.inside.values()
    assert [str(each) for each in link.addresses] == ["10.1.0.2/24"]
    assert driver.find_interface(endpoint_id(1)) == given
    driver.leave(network_id(1), endpoint_id(1))
    assert not kernel.inside
    assert driver.find_interface(endpoint_id(1)) is None


def test_an_engine_that_makes_the_sandbox_later_is_refused(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    add(driver, 1, attach=DIRECT)
    before = kernel.state()
    with pytest.raises(Conflict, match="this needs Docker Engine 28 or later"):
        driver.join(new_join())
    assert kernel.state() == before


@pytest.mark.parametrize("direct_first", [True, False])
def test_two_ways_to_attach_do_not_share_a_prefix(
    driver: BridgeDriver, kernel: FakeKernel, *, direct_first: bool
) -> None:
    kernel.add_sandbox(SANDBOX)
    add(driver, 1, **({"attach": DIRECT} if direct_first else {}))
    add(driver, 2, **({} if direct_first else {"attach": DIRECT}))
    driver.join(new_join(1, 1))
    before = kernel.state()
    with pytest.raises(Conflict, match="both call interfaces eth…"):
        driver.join(new_join(2, 2))
    assert kernel.state() == before
    add(driver, 3, attach=DIRECT, ifname_prefix="front")
    driver.join(new_join(3, 3))


@pytest.mark.parametrize(
    ("ifname", "prefix", "expected"),
    [
        (None, "eth", True),
        (None, "front", False),
        ("eth7", "front", True),
        ("eth", "eth", False),
        ("eth0a", "eth", False),
        ("web", "eth", False),
    ],
)
def test_which_names_may_meet(ifname: str | None, prefix: str, *, expected: bool) -> None:
    direct = replace(endpoint(), ifname=ifname)
    assert takes_name_of(direct, network(2), network(1, ifname_prefix=prefix)) is expected


def test_a_name_is_told_to_who_moves_the_interface(driver: BridgeDriver) -> None:
    driver.create_network(network(1))
    driver.create_endpoint(new_endpoint(1, ifname="front0"))
    assert driver.join(new_join(1)).ifname == "front0"


@pytest.mark.parametrize(("given", "is_told"), [("front0", False), ("eth0", True)])
def test_an_engine_that_takes_no_name_is_told_of(
    driver: BridgeDriver,
    kernel: FakeKernel,
    caplog: pytest.LogCaptureFixture,
    given: str,
    is_told: bool,  # noqa: FBT001
) -> None:
    """Once in the log, and whenever somebody checks."""
    add(driver, 1, "front0", attach=Attach.HANDOVER)
    kernel.add_sandbox(sandbox_key(1))
    driver.join(new_join(1))
    driver.endpoint_info(network_id(1), endpoint_id(1))
    assert not caplog.records, "the interface has not come yet"
    host_end = host_end_name(endpoint_id(1))
    kernel.move(host_end, sandbox_key(1))
    kernel.links[host_end].peer = given
    for _ in range(3):
        driver.endpoint_info(network_id(1), endpoint_id(1))
    text = "its interface is called eth0 and not front0"
    assert [text in each.message for each in caplog.records] == [True] * is_told
    assert [text in each.text for each in driver.advise()] == [True] * is_told
    assert not driver.check()


def test_an_interface_that_is_attached_directly_has_its_name(
    driver: BridgeDriver, kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.add_sandbox(sandbox_key(1))
    add(driver, 1, "front0", attach=DIRECT)
    driver.endpoint_info(network_id(1), endpoint_id(1))
    assert not caplog.records
    assert not driver.advise()


def test_a_name_that_is_asked_for_is_given_without_being_told_how(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    kernel.add_sandbox(SANDBOX)
    add(driver, 1, "wan")
    add(driver, 2)
    for _ in range(2):  # a repeated call gets the same answer
        assert driver.join(new_join()).sandbox_end is None
    assert driver.join(new_join(2, 2)).sandbox_end is not None
    assert driver.find_interface(endpoint_id(1)) == "wan"
    driver.leave(network_id(1), endpoint_id(1))
    assert not kernel.inside


@pytest.mark.parametrize(
    ("ifname", "options", "keys", "is_there"),
    [
        ("eth1", {}, (), True),  # libnetwork may give it to another interface
        ("lan7", {"ifname_prefix": "lan"}, (), True),
        ("wan", {}, ("net.ipv4.conf.IFNAME.rp_filter",), True),  # libnetwork writes those
        ("wan", {}, (), False),  # an engine up to 27
        ("wan", {"attach": Attach.HANDOVER}, (), True),
        (None, {}, (), True),
    ],
)
def test_libnetwork_has_the_interface_otherwise(
    driver: BridgeDriver,
    kernel: FakeKernel,
    ifname: str | None,
    options: dict[str, Any],
    keys: tuple[str, ...],
    *,
    is_there: bool,
) -> None:
    if is_there:
        kernel.add_sandbox(SANDBOX)
    driver.create_network(network(1, **options))
    driver.create_endpoint(replace(new_endpoint(1, ifname=ifname), engine_keys=frozenset(keys)))
    info = driver.join(new_join())
    assert (info.sandbox_end is not None, info.ifname) == (True, ifname)
