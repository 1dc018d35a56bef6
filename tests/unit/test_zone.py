"""Which bridges firewalld is to let be, and what comes of a firewalld that does not."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Self, cast

import pytest
from jeepney import (
    DBusAddress,
    DBusErrorResponse,
    MessageFlag,
    new_error,
    new_method_call,
    new_method_return,
)

from driver.errors import KernelError
from driver.linux import dbus, firewalld
from driver.linux.dbus import RefusedError
from driver.linux.firewalld import POLICY, ZONE, Zone
from driver.linux.waiting import wait_readable
from driver.reconcile.diff import Kind
from tests.engine.wait import wait_until
from tests.samples import network, network_id

if TYPE_CHECKING:
    from pathlib import Path

    from jeepney import Message

    from driver.driver import BridgeDriver
    from driver.linux.dbus import Service
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


# What firewalld is told; the real one is asked in tests/engine/test_firewalls.py.


def refusal(code: str) -> RefusedError:
    """Return firewalld's word that it does not do what it was asked."""
    call = new_method_call(DBusAddress("/", firewalld.NAME, firewalld.NAME), "addInterface")
    answer = new_error(call, f"{firewalld.NAME}.Exception", "s", (f"{code}: 'br-1'",))
    return RefusedError("call addInterface", DBusErrorResponse(answer))


THEIRS = {"description": ("s", "the operator's"), "target": ("s", "ACCEPT")}


class Firewalld:
    """firewalld in memory: what is configured, what of that is loaded, and who is in the zone."""

    def __init__(self, configured: tuple[str, ...] = (), loaded: tuple[str, ...] = ()) -> None:
        self.configured: dict[str, dict[str, Any]] = dict.fromkeys(configured, THEIRS)
        self.loaded = set(loaded)
        self.interfaces: set[str] = set()
        self.refused: dict[str, str] = {}  # by interface, the code
        self.refusals = 0
        self.process: int | None = os.getpid()
        self.announced = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def watch(self, path: str, interface: str) -> None:
        pass

    def find_process(self) -> int | None:
        return self.process

    def wait(self, wake: int, seconds: float | None) -> frozenset[str]:
        if self.announced.is_set():
            self.announced.clear()
            return frozenset({"Reloaded"})
        wait_readable([wake], seconds)
        return frozenset()

    def forget(self) -> None:
        """Forget who is in the zone, as it does when it is loaded anew, and say so next."""
        self.interfaces.clear()
        self.announced.set()

    def call(
        self, path: str, method: str, signature: str = "", *given: Any, seconds: float = 0
    ) -> tuple[Any, ...]:
        verb = method.removeprefix(f"{firewalld.NAME}.")
        if verb.startswith("zone.") and verb.endswith("Interface"):
            self._move(verb, *given)
        elif verb.startswith("config.add"):
            self.configured[given[0]] = given[1]
        elif verb.endswith(".remove"):
            del self.configured[path]
        elif verb == "reload":
            self.loaded = set(self.configured)
        else:
            return (self._tell(path, verb, *given),)
        return ()

    def _move(self, verb: str, zone: str, interface: str) -> None:
        assert zone == ZONE
        if interface in self.refused:
            self.refusals += 1
            raise refusal(self.refused[interface])
        change = {"zone.addInterface": set.add, "zone.removeInterface": set.remove}[verb]
        change(self.interfaces, interface)

    def _tell(self, path: str, verb: str, name: str = "") -> Any:
        return {
            "config.getZoneNames": list(self.configured),
            "config.getPolicyNames": list(self.configured),
            "config.getZoneByName": name,
            "config.getPolicyByName": name,
            "config.zone.getSettings2": self.configured.get(path),
            "config.policy.getSettings": self.configured.get(path),
            "zone.getZones": list(self.loaded),
            "policy.getPolicies": list(self.loaded),
            "zone.getInterfaces": sorted(self.interfaces),
        }[verb]

    def bring(self, *wanted: str, is_kept: bool = True) -> None:
        """Bring the zone to what is wanted."""
        firewalld._bring(cast("Service", self), frozenset(wanted), is_kept=is_kept)


ALL = {ZONE, POLICY}
KNOWN = [(), (ZONE,), (POLICY,), (ZONE, POLICY)]


@pytest.mark.parametrize("loaded", KNOWN, ids=str)
@pytest.mark.parametrize("configured", KNOWN, ids=str)
def test_whatever_is_missing_is_made_and_loaded(
    configured: tuple[str, ...], loaded: tuple[str, ...]
) -> None:
    """Either may be the operator's, or be gone by the operator's hand."""
    wall = Firewalld(configured, loaded)
    wall.bring("br-1")
    assert wall.loaded == wall.configured.keys() == ALL
    assert wall.interfaces == {"br-1"}


def test_only_what_pynet_has_made_is_removed() -> None:
    wall = Firewalld((ZONE,))
    wall.bring("br-1")
    wall.bring(is_kept=False)
    assert wall.configured == {ZONE: THEIRS}
    assert not wall.interfaces
    wall = Firewalld()
    wall.bring("br-1")
    wall.bring()
    assert wall.configured.keys() == ALL, "there are networks yet"
    wall.bring(is_kept=False)
    assert not wall.configured


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Firewalld:
    """Lend a firewalld that a zone finds."""
    wall = Firewalld()
    monkeypatch.setattr(firewalld, "find_bus", lambda: tmp_path)
    monkeypatch.setattr(firewalld, "Service", lambda *_: wall)
    return wall


@pytest.mark.parametrize("code", ["ZONE_CONFLICT", "ZONE_ALREADY_SET"])
def test_a_bridge_that_its_operator_has_put_elsewhere_is_no_problem(
    wall: Firewalld, code: str
) -> None:
    wall.refused["br-1"] = code
    zone = Zone()
    zone.set({"br-1", "br-2"})
    assert zone.settle(10)
    assert zone.problem() is None
    assert wall.interfaces == {"br-2"}
    zone.close()


def test_what_was_refused_is_asked_for_again(
    wall: Firewalld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though nobody asks for anything else, and firewalld announces nothing."""
    monkeypatch.setattr(firewalld, "RETRY_SECONDS", 0.01)
    told: list[str | None] = []
    wall.refused["br-1"] = "INVALID_INTERFACE"
    zone = Zone()
    zone.watch(told.append)
    zone.set({"br-1"})
    assert zone.settle(10)
    assert "firewalld rejects what passes" in (zone.problem() or "")
    wait_until(lambda: wall.refusals > 5, 10, "attempts")
    wall.refused.clear()
    wait_until(lambda: zone.problem() is None, 10, "the next attempt")
    zone.close()
    assert wall.interfaces == {"br-1"}
    first, last = told
    assert first is not None
    assert first.endswith("call addInterface: INVALID_INTERFACE: 'br-1'")
    assert last is None


def test_so_it_is_when_the_same_is_wanted_again(wall: Firewalld) -> None:
    """As by a repair, which does not wait for the next attempt."""
    wall.refused["br-1"] = "INVALID_INTERFACE"
    zone = Zone()
    zone.set({"br-1"})
    wait_until(lambda: wall.refusals == 2, 10, "an attempt, and what was asked for meanwhile")
    assert zone.settle(10)
    wall.refused.clear()
    zone.set({"br-1"})
    wait_until(lambda: zone.problem() is None, firewalld.RETRY_SECONDS / 2, "another attempt")
    zone.close()
    assert wall.interfaces == {"br-1"}


@pytest.mark.parametrize(("process", "is_told"), [(None, False), (1 << 22, True)])
def test_one_that_does_not_run_is_told_nothing(
    wall: Firewalld, process: int | None, *, is_told: bool
) -> None:
    """One that is not to be seen from here may run all the same."""
    wall.process = process
    zone = Zone()
    zone.set({"br-1"})
    assert zone.settle(10)
    assert (wall.loaded == ALL) == is_told
    assert zone.problem() is None
    zone.close()


def test_one_that_is_loaded_anew_gets_the_interfaces_back(wall: Firewalld) -> None:
    """And the rest of the driver looks whether it has taken other things along."""
    looked = threading.Event()
    zone = Zone()
    zone.watch_reloads(looked.set)
    zone.set({"br-1"})
    assert zone.settle(10)
    wall.forget()
    zone.change(add={"br-2"})
    assert looked.wait(10)
    wait_until(lambda: wall.interfaces == {"br-1", "br-2"}, 10, "both bridges")
    zone.close()


def test_a_bus_that_is_gone_is_no_problem_and_keeps_nobody_waiting(
    wall: Firewalld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether firewalld runs is not known then, nor is what it has refused before."""

    def refuse(*_: object) -> None:
        raise KernelError("connect to the system bus: Connection refused")

    wall.refused["br-1"] = "INVALID_INTERFACE"
    told: list[str | None] = []
    zone = Zone()
    zone.watch(told.append)
    zone.set({"br-1"})
    assert zone.settle(10)
    assert zone.problem()
    monkeypatch.setattr(wall, "find_process", refuse)
    monkeypatch.setattr(firewalld, "Service", refuse)
    zone.set({"br-1", "br-2"})
    assert zone.settle(10)
    assert zone.problem() is None
    wait_until(lambda: told[-1] is None, 10, "health hears of it")
    zone.close()


class Bus:
    """A system bus that takes whatever it is told, and remembers it."""

    def __init__(self, _: object) -> None:
        self.told: list[Message] = []

    def send_and_get_reply(self, message: Message, *, timeout: float) -> Message:
        assert timeout > 0
        self.told.append(message)
        message.header.serial = len(self.told)
        return new_method_return(message, "as", ([],))

    def close(self) -> None:
        pass


def test_firewalld_is_not_started_by_what_it_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where it is installed and does not run, the bus would have it started: D-Bus's default."""
    monkeypatch.setattr(dbus, "prep_socket", lambda *_, **__: None)
    monkeypatch.setattr(dbus, "DBusConnection", Bus)
    with dbus.Service(tmp_path, firewalld.NAME) as service:
        assert service.call("/", f"{firewalld.NAME}.zone.getZones") == ([],)
        (message,) = cast("Bus", service._bus).told
    assert message.header.flags & MessageFlag.no_auto_start
