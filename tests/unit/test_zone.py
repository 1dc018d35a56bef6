"""Which bridges firewalld is to let be, and what comes of a firewalld that does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from driver.linux import firewalld
from driver.linux.firewalld import Zone
from driver.reconcile.diff import Kind
from tests.samples import network, network_id

if TYPE_CHECKING:
    import pytest

    from driver.driver import BridgeDriver
    from driver.state.store import Store
    from tests.fakes import FakeKernel

ONE, TWO = network(1), network(2)


def test_every_bridge_is_in_the_zone_as_long_as_its_network_is(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    driver.create_network(ONE)
    driver.create_network(TWO)
    assert kernel.zone == {ONE.bridge_name, TWO.bridge_name}
    driver.delete_network(network_id(1))
    assert kernel.zone == {TWO.bridge_name}
    driver.delete_network(network_id(2))
    assert kernel.zone == frozenset()


def test_a_restart_brings_the_zone_back(
    driver: BridgeDriver, kernel: FakeKernel, store: Store
) -> None:
    driver.create_network(ONE)
    driver.create_network(TWO)
    kernel.zone = frozenset()
    driver.restore()
    assert kernel.zone == {ONE.bridge_name, TWO.bridge_name}


def test_a_bridge_that_leads_out_of_the_host_stays_where_its_operator_has_it(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    kernel.add_foreign("br0")
    kernel.add_foreign("eth0", "vxlan", bridge="br0")
    driver.create_network(ONE)
    driver.create_network(network(2, bridge_name="br0"))
    assert kernel.zone == {ONE.bridge_name}
    driver.restore()
    assert kernel.zone == {ONE.bridge_name}


def test_a_bridge_of_the_operators_that_leads_nowhere_is_let_be(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    kernel.add_foreign("br0")
    driver.create_network(ONE)
    driver.create_network(network(2, bridge_name="br0"))
    assert kernel.zone == {ONE.bridge_name, "br0"}
    driver.restore()
    assert kernel.zone == {ONE.bridge_name, "br0"}


def test_a_network_that_firewalld_keeps_waiting_is_made(
    driver: BridgeDriver, kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.zone_answers = False
    driver.create_network(ONE)
    assert "firewalld has not done within 2 s" in caplog.text
    assert [each.id for each, _ in driver.describe()] == [ONE.id]


def test_what_firewalld_refuses_is_known(driver: BridgeDriver, kernel: FakeKernel) -> None:
    driver.start()
    driver.create_network(ONE)
    kernel.on_zone("firewalld rejects what passes: INVALID_ZONE")
    assert driver.health.problems() == ("firewalld rejects what passes: INVALID_ZONE",)
    kernel.problem_of_zone = "firewalld rejects what passes: INVALID_ZONE"
    assert [each.kind for each in driver.check()] == [Kind.ZONE]
    kernel.on_zone(None)
    assert not driver.health.problems()
    driver.close()


def test_a_host_without_a_system_bus_has_no_thread_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewalld, "BUSES", ())
    zone = Zone()
    zone.set({"br-1"})
    assert zone._thread is None
    assert zone.settle(60)
    assert zone.problem() is None
    zone.close()
