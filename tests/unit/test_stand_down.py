"""At its end the driver leaves in the kernel what running containers need, and nothing else."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import Future
from copy import deepcopy
from ipaddress import ip_interface
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from driver.driver import BridgeDriver
from driver.errors import Busy, KernelError
from driver.model import host_end_name
from plugin import server
from tests.fakes import Calls, FakeKernel, counted_kernel
from tests.samples import (
    endpoint_id,
    network,
    network_id,
    new_endpoint,
    new_join,
    pool,
    ports,
    sandbox_key,
)

if TYPE_CHECKING:
    from driver.model import IPInterface
    from driver.state.store import Store

SANDBOX = sandbox_key(1)
BRIDGES = ("pn-010101010101", "pn-020202020202")


@pytest.fixture
def busy(driver: BridgeDriver, kernel: FakeKernel) -> BridgeDriver:
    """Lend a driver with two networks, one of which a container with a port runs on."""
    driver.restore()
    kernel.add_sandbox(SANDBOX)
    for number in (1, 2):
        driver.create_network(network(number))
        driver.create_endpoint(new_endpoint(number, number))
    driver.join(new_join(1, 1, SANDBOX, has_ports=True))
    driver.program_external_connectivity(network_id(1), endpoint_id(1), ports("8080:80"))
    return driver


def elements(kernel: FakeKernel) -> str:
    return repr(kernel.tables)


def test_what_a_container_runs_on_stays(busy: BridgeDriver, kernel: FakeKernel) -> None:
    busy.shutdown()
    assert set(BRIDGES) & kernel.links.keys() == {BRIDGES[0]}
    assert BRIDGES[0] in elements(kernel)
    assert BRIDGES[1] not in elements(kernel)
    assert kernel.accepted_marks


def test_a_restart_brings_back_the_rest(
    busy: BridgeDriver, store: Store, kernel: FakeKernel
) -> None:
    before = kernel.state()
    busy.shutdown()
    kernel.restart()
    BridgeDriver(store, kernel).restore()
    assert kernel.state() == before


def test_without_a_container_nothing_is_left(busy: BridgeDriver, kernel: FakeKernel) -> None:
    busy.leave(network_id(1), endpoint_id(1))
    busy.delete_endpoint(network_id(1), endpoint_id(1))
    busy.shutdown()
    assert not set(BRIDGES) & kernel.links.keys()
    assert not kernel.tables
    assert not kernel.accepted_marks


def test_a_container_that_died_unseen_is_no_reason_to_stay(
    busy: BridgeDriver, kernel: FakeKernel
) -> None:
    kernel.move(host_end_name(endpoint_id(1)), SANDBOX)
    kernel.die(SANDBOX)
    busy.shutdown()
    assert not kernel.tables
    assert not set(BRIDGES) & kernel.links.keys()


def test_a_bridge_with_somebody_elses_interface_stays(
    busy: BridgeDriver, kernel: FakeKernel
) -> None:
    kernel.add_foreign("tap0", "tun", bridge=BRIDGES[1])
    busy.shutdown()
    assert BRIDGES[1] in kernel.links
    assert kernel.links["tap0"].bridge == BRIDGES[1]


def test_somebody_elses_bridge_is_as_it_was(
    driver: BridgeDriver, store: Store, kernel: FakeKernel
) -> None:
    """With the address that it had, though the network was to have the same."""
    shared = network(1, bridge_name="br0", pools=(pool("10.1.0.1/24"), pool("fd00:1::1/64")))
    theirs = [ip_interface("192.0.2.1/24"), shared.gateways[0]]

    def addresses() -> list[IPInterface]:
        return list(kernel.links["br0"].addresses)

    kernel.add_foreign("br0", addresses=tuple(theirs))
    driver.restore()
    driver.create_network(shared)
    assert addresses() == [*theirs, shared.gateways[1]]
    driver.shutdown()
    assert addresses() == theirs
    kernel.restart()
    BridgeDriver(store, kernel).restore()
    assert addresses() == [*theirs, shared.gateways[1]]


def test_nothing_is_mended_any_more(busy: BridgeDriver, kernel: FakeKernel) -> None:
    """Else what has just been taken out of the kernel were there again."""
    busy.start_watching()
    busy.shutdown()
    assert not [each for each in threading.enumerate() if each.name == "watcher"]
    before = kernel.state()
    kernel.on_damage()
    assert kernel.state() == before
    busy.close()


def test_the_link_that_libnetwork_is_about_to_look_for_stays(
    busy: BridgeDriver, kernel: FakeKernel
) -> None:
    """Between Leave and DeleteEndpoint engines 28 to 29.7.1 crash when it is not there."""
    busy.leave(network_id(1), endpoint_id(1))
    links = kernel.links.keys() - {BRIDGES[1]}
    busy.shutdown()
    assert kernel.links.keys() == links


def test_a_step_that_fails_does_not_keep_the_others_from_being_done(
    store: Store, kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    driver = BridgeDriver(store, kernel)
    for number in (1, 2):
        driver.create_network(network(number))
    recorded = Calls()
    BridgeDriver(store, counted_kernel(deepcopy(kernel), recorded)).shutdown()
    at = recorded.made.index("FakeKernel.delete_bridge")
    failing = counted_kernel(kernel, Calls(at, KernelError("delete bridge: busy")))
    BridgeDriver(store, failing).shutdown()
    assert "busy" in caplog.text
    assert len(set(BRIDGES) & kernel.links.keys()) == 1
    assert not kernel.tables


def end_process(driver: BridgeDriver) -> None:
    """Do what the process does at its end."""
    starting: Future[BridgeDriver] = Future()
    starting.set_result(driver)
    worker = SimpleNamespace(app=SimpleNamespace(starting=starting))
    server._end(cast("Any", None), cast("Any", worker))


def test_the_end_of_the_process_finishes_what_goes_on_beside_requests(
    busy: BridgeDriver, store: Store, kernel: FakeKernel
) -> None:
    """Such as links that are being deleted, and the log of the state file."""
    busy.join(new_join(2, 2, sandbox_key(2)))
    busy.start_watching()
    assert kernel.watches
    end_process(busy)
    assert not kernel.watches
    assert BRIDGES[0] in kernel.links
    assert not [each for each in threading.enumerate() if each.name == "watcher"]
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        busy.describe()


def test_the_end_waits_for_a_lock_that_is_held_for_ever_no_longer_than_it_is_given(
    driver: BridgeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever told it to end kills it, and what it has set going with it."""
    monkeypatch.setattr(server, "STAND_DOWN_SECONDS", 0.1)
    ended: list[Exception] = []

    def end() -> None:
        try:
            end_process(driver)
        except Busy as error:
            ended.append(error)

    with driver._lock:  # by somebody who never gives it back
        ending = threading.Thread(target=end, daemon=True)
        ending.start()
        ending.join(20)
        assert len(ended) == 1
        assert not ending.is_alive()
    ending.join()


def test_a_driver_without_networks_has_nothing_to_do(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    driver.restore()
    before = kernel.state()
    driver.shutdown()
    assert kernel.state() == before
