"""In which order things happen, and what happens in between: no moment in which anything is wrong.

Compared are not the calls, but what is true between any two of them.
"""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, Any, cast

import pytest

from driver.driver import BridgeDriver
from driver.errors import KernelError
from driver.model import host_end_name
from driver.observed import Passage
from driver.reconcile.watcher import RECHECK_SECONDS
from tests.engine.wait import wait_until
from tests.fakes import FakeKernel
from tests.samples import (
    KEEPALIVE,
    RP_FILTER,
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
from tests.unit.faults import World
from tests.unit.test_fault_matrix import EVERY, joins, on_small_bridges

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from driver.linux import Kernel
    from driver.model import Bridge, SandboxKey
    from driver.state.store import Store
    from tests.unit.faults import Scenario

    Operation = Callable[[BridgeDriver], object]

DUAL = network(1, pools=(pool("10.1.0.1/24"), pool("fd00:1::1/64")))
TEXTS = ("8080:80", "127.0.0.1:5353:53/udp", "7000-7003:7000", "443")
ALL = {("tcp", 8080), ("udp", 5353), ("tcp", 7000), ("tcp", 32768)}
END = host_end_name(endpoint_id(1))


class Between:
    """A kernel that has something looked at after every one of its verbs."""

    def __init__(self, kernel: FakeKernel, look: Callable[[FakeKernel], None]) -> None:
        self._kernel = kernel
        self._look = look

    def __getattr__(self, name: str) -> Callable[..., Any]:
        verb = getattr(self._kernel, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return verb(*args, **kwargs)
            finally:
                self._look(self._kernel)

        return call


def translated(kernel: FakeKernel) -> set[tuple[str, int]]:
    """Return the host ports that are translated to containers, by protocol and number."""
    maps = ("everywhere4", "everywhere6", "published4", "published6")
    keys = [key.split(" . ")[-2:] for name in maps for key in kernel.elements(name)]
    return {(protocol, int(number)) for protocol, number in keys}


def reserved(kernel: FakeKernel) -> set[tuple[str, int]]:
    return {(place.protocol.value, place.port) for place in kernel.reserved}


def another(driver: BridgeDriver) -> None:
    """Have another endpoint take the port of the first, whose container died unseen."""
    driver.create_endpoint(new_endpoint(2, ipv6="fd00:1::3/64"))
    driver.join(new_join(2, 1, sandbox_key(2), has_ports=True))
    driver.program_external_connectivity(DUAL.id, endpoint_id(2), ports("8080:80"))


PUBLISHING: dict[str, Operation] = {
    "ports": lambda driver: driver.program_external_connectivity(
        DUAL.id, endpoint_id(1), ports(*TEXTS)
    ),
    "other ports": lambda driver: driver.program_external_connectivity(
        DUAL.id, endpoint_id(1), ports("8081:80", "443")
    ),
    "one family": lambda driver: driver.program_external_connectivity(
        DUAL.id, endpoint_id(1), ports(*TEXTS), only_ipv4=True
    ),
    "none": lambda driver: driver.revoke_external_connectivity(DUAL.id, endpoint_id(1)),
    "a leave": lambda driver: driver.leave(DUAL.id, endpoint_id(1)),
    "the endpoint's end": lambda driver: driver.delete_endpoint(DUAL.id, endpoint_id(1)),
    "the network's end": lambda driver: driver.delete_network(DUAL.id),
    "a taker of its address": lambda driver: driver.create_endpoint(new_endpoint(3, host=2)),
    "a repair": lambda driver: driver.repair_all(),
}


@pytest.mark.parametrize("operation", PUBLISHING.values(), ids=PUBLISHING)
def test_no_port_is_ever_translated_that_another_process_might_take(
    store: Store, kernel: FakeKernel, operation: Operation
) -> None:
    seen: list[set[tuple[str, int]]] = []

    def look(kernel: FakeKernel) -> None:
        assert translated(kernel) <= reserved(kernel)
        seen.append(translated(kernel))

    driver = BridgeDriver(store, cast("Kernel", Between(kernel, look)))
    driver.create_network(DUAL)
    driver.create_endpoint(new_endpoint(ipv6="fd00:1::2/64"))
    kernel.add_sandbox(sandbox_key(1))
    driver.join(new_join(has_ports=True))
    kernel.move(END, sandbox_key(1))
    PUBLISHING["ports"](driver)
    assert translated(kernel) == ALL
    seen.clear()
    operation(driver)
    assert seen
    assert driver.check() == ()


def test_nor_when_a_dead_container_had_it(store: Store, kernel: FakeKernel) -> None:
    def look(kernel: FakeKernel) -> None:
        assert translated(kernel) <= reserved(kernel)

    driver = BridgeDriver(store, cast("Kernel", Between(kernel, look)))
    driver.create_network(DUAL)
    driver.create_endpoint(new_endpoint(ipv6="fd00:1::2/64"))
    kernel.add_sandbox(sandbox_key(1))
    driver.join(new_join(has_ports=True))
    PUBLISHING["ports"](driver)
    kernel.die(sandbox_key(1))
    del kernel.links[END]
    kernel.add_sandbox(sandbox_key(2))
    another(driver)
    assert translated(kernel) == {("tcp", 8080)}
    assert counted(driver.counts.evictions) == {"endpoint": 1}
    assert driver.check() == ()


@pytest.mark.parametrize("sandbox_first", [True, False], ids=["28", "20.10 to 27"])
def test_what_guards_a_link_is_there_before_its_first_packet(
    store: Store, kernel: FakeKernel, *, sandbox_first: bool
) -> None:
    def look(kernel: FakeKernel) -> None:
        if END in kernel.links:
            assert END in str(kernel.tables["bridge pynet"].elements)

    driver = BridgeDriver(store, cast("Kernel", Between(kernel, look)))
    driver.create_network(DUAL)
    driver.create_endpoint(new_endpoint(ipv6="fd00:1::2/64"))
    if sandbox_first:
        kernel.add_sandbox(sandbox_key(1))
    driver.join(new_join(has_ports=True))
    assert END in kernel.links
    assert driver.check() == ()


@EVERY
def test_no_transaction_is_begun_without_the_lock(
    scenario: Scenario, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads share the state file: one's transaction would fail in the middle of another's."""
    world = World(store, scenario.prepare)
    transaction = store.transaction

    def look(**kind: bool) -> AbstractContextManager[None]:
        held = world.driver._lock._held
        assert held is not None
        assert held.thread == get_ident()
        return transaction(**kind)

    monkeypatch.setattr(store, "transaction", look)
    scenario.operation(world.driver)


# While the driver starts.


class Unlucky(FakeKernel):
    """A kernel whose bridges cannot be made for as long as it is told so."""

    refuses = False

    def ensure_bridge(self, bridge: Bridge) -> Any:
        if self.refuses:
            self.refuses = False
            raise KernelError(f"create bridge {bridge.name}: no buffer space")
        return super().ensure_bridge(bridge)


def test_what_a_start_could_not_restore_is_restored_soon_after(store: Store) -> None:
    """Nothing else breaks that would have it looked at."""
    kernel = Unlucky()
    driver = BridgeDriver(store, kernel)
    driver.restore()
    driver.create_network(network(1))
    kernel.reboot()
    kernel.boot, kernel.refuses = "first boot", True
    driver = BridgeDriver(store, kernel)
    driver.start()
    try:
        wait_until(lambda: network(1).bridge_name in kernel.links, 10, "the bridge")
        wait_until(lambda: driver.check() == (), 10, "everything")
    finally:
        driver.close()


def test_what_only_others_can_mend_is_told_from_the_start(store: Store) -> None:
    """Nothing breaks that would have it looked at: it was so before."""
    kernel = FakeKernel()
    driver = BridgeDriver(store, kernel)
    driver.restore()
    driver.create_network(network(1))
    driver.create_endpoint(new_endpoint())
    kernel.add_sandbox(sandbox_key(1))
    driver.join(new_join())
    kernel.passage = Passage(closed=frozenset({"net.ipv4.ip_forward"}))
    driver = BridgeDriver(store, kernel)
    driver.start()
    try:
        (problem,) = wait_until(driver.health.problems, 10, "a problem")
        assert "net.ipv4.ip_forward: is 0" in problem
    finally:
        driver.close()


def test_what_is_removed_is_no_problem_any_more(store: Store) -> None:
    """At once, not when what only others can mend is looked at the next time."""
    kernel = FakeKernel()
    driver = BridgeDriver(store, kernel)
    driver.start()
    try:
        driver.create_network(network(1))
        driver.create_endpoint(new_endpoint())
        kernel.add_sandbox(sandbox_key(1))
        driver.join(new_join())
        kernel.move(END, sandbox_key(1))
        del kernel.links[END]
        kernel.on_damage()
        (problem,) = wait_until(driver.health.problems, 10, "a problem")
        assert "is gone while its container runs" in problem
        driver.leave(network_id(1), endpoint_id(1))
        wait_until(lambda: not driver.health.problems(), RECHECK_SECONDS / 2, "its end")
    finally:
        driver.close()


class Damaged(FakeKernel):
    """A kernel whose bridge somebody deletes at a moment of the restoring, and which tells of it.

    As a kernel does it: whoever does not listen yet is not told.
    """

    at = ""

    def damage(self, moment: str) -> None:
        if moment == self.at:
            self.at = ""
            self._delete(network(1).bridge_name)
            self.on_damage()

    def run_nft(self, text: str) -> None:
        super().run_nft(text)
        self.damage("rules")

    def list_reserved(self) -> Any:
        self.damage("ports")
        return super().list_reserved()

    def has_sandbox(self, sandbox: SandboxKey) -> bool:
        self.damage("sandbox")
        return super().has_sandbox(sandbox)


@pytest.mark.parametrize("moment", ["rules", "ports", "sandbox"])
def test_what_breaks_while_the_driver_restores_is_mended(store: Store, moment: str) -> None:
    kernel = Damaged()
    driver = BridgeDriver(store, kernel)
    driver.restore()
    driver.create_network(network(1))
    driver.create_endpoint(new_endpoint())
    kernel.add_sandbox(sandbox_key(1))
    driver.join(new_join(has_ports=True))
    driver.program_external_connectivity(network_id(1), endpoint_id(1), ports("8080:80"))
    driver = BridgeDriver(store, kernel)
    kernel.at = moment
    driver.start()
    try:
        assert not kernel.at
        wait_until(lambda: driver.check() == (), 10, "everything")
        assert kernel.links[END].bridge == network(1).bridge_name
    finally:
        driver.close()


# While a sandbox comes (engines up to 27).


def test_an_endpoint_that_moved_on_meanwhile_is_not_taken_for_configured(
    driver: BridgeDriver, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its interface was written to where it no longer is, and will be looked for in the other."""
    wait = FakeKernel.await_interface_sysctls

    def move_on(self: FakeKernel, *args: Any) -> None:
        wait(self, *args)
        monkeypatch.undo()
        driver.leave(network_id(1), endpoint_id(1))
        driver.join(new_join(1, 1, sandbox_key(2)))

    driver.create_network(network(1, f"{KEEPALIVE}=600", f"{RP_FILTER}=2"))
    driver.create_endpoint(new_endpoint())
    driver.join(new_join())
    monkeypatch.setattr(FakeKernel, "await_interface_sysctls", move_on)
    kernel.arrive(sandbox_key(1), [END])
    assert driver.check() == ()
    kernel.arrive(sandbox_key(2), [END])
    values = kernel.sandboxes[sandbox_key(2)]
    assert values["net.ipv4.conf.pnce1e1e1e1e1e1.rp_filter"] == "2"
    assert values[KEEPALIVE] == "600"


# Several things at once.


def test_a_dead_container_and_a_broken_firewall_are_mended_in_one_go(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    """For no moment longer does a port lead to the dead."""
    driver.create_network(DUAL)
    for number in (1, 2):
        kernel.add_sandbox(sandbox_key(number))
        driver.create_endpoint(new_endpoint(number, ipv6=f"fd00:1::{number + 1}/64"))
        on_small_bridges(joins(number, 1, number))(driver)
        driver.program_external_connectivity(
            DUAL.id, endpoint_id(number), ports(f"{8080 + number}:80")
        )
    kernel.die(sandbox_key(2))
    del kernel.links[host_end_name(endpoint_id(2))]
    kernel.tables.clear()
    assert driver.repair_all() == ()
    assert translated(kernel) == reserved(kernel) == {("tcp", 8081)}
