"""Whose values a sandbox has, from the first join to the last leave."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from driver.driver import BridgeDriver
from driver.errors import KernelError
from driver.model import host_end_name
from tests.samples import (
    KEEPALIVE,
    RP_FILTER,
    SOMAXCONN,
    endpoint_id,
    network,
    network_id,
    new_endpoint,
    new_join,
    sandbox_key,
)

if TYPE_CHECKING:
    from driver.state.store import Store
    from tests.fakes import FakeKernel

SANDBOX = sandbox_key(1)


def add(
    driver: BridgeDriver, number: int, *network_wants: str, wants: tuple[str, ...] = ()
) -> None:
    """Make a network and an endpoint of it."""
    driver.create_network(network(number, *network_wants))
    driver.create_endpoint(new_endpoint(number, number, *wants))


def join(driver: BridgeDriver, *numbers: int) -> None:
    for number in numbers:
        driver.join(new_join(number, number, SANDBOX))


def leave(driver: BridgeDriver, number: int) -> None:
    driver.leave(network_id(number), endpoint_id(number))


@pytest.fixture
def contested(driver: BridgeDriver) -> BridgeDriver:
    """Lend a driver with two networks that ask for different values."""
    add(driver, 1, f"{KEEPALIVE}=600")
    add(driver, 2, f"{KEEPALIVE}=900", f"{SOMAXCONN}=128")
    return driver


def values(kernel: FakeKernel) -> tuple[str, str]:
    return kernel.sandboxes[SANDBOX][KEEPALIVE], kernel.sandboxes[SANDBOX][SOMAXCONN]


@pytest.mark.parametrize("sandbox_first", [True, False], ids=["28", "20.10 to 27"])
def test_an_endpoints_value_is_over_its_networks(
    driver: BridgeDriver,
    kernel: FakeKernel,
    caplog: pytest.LogCaptureFixture,
    *,
    sandbox_first: bool,
) -> None:
    add(driver, 1, f"{KEEPALIVE}=600", f"{SOMAXCONN}=128", wants=(f"{KEEPALIVE}=300",))
    if sandbox_first:
        kernel.add_sandbox(SANDBOX)
    join(driver, 1)
    if not sandbox_first:
        kernel.arrive(SANDBOX)
    assert values(kernel) == ("300", "128")
    leave(driver, 1)
    assert values(kernel) == ("7200", "4096")
    assert " over " not in caplog.text, "nobody has lost anything"


@pytest.mark.parametrize("sandbox_first", [True, False], ids=["28", "20.10 to 27"])
@pytest.mark.parametrize("joins", [(1, 2), (2, 1)], ids=["as made", "the other way round"])
@pytest.mark.parametrize(
    ("leaves", "expected"), [(1, ("900", "128")), (2, ("600", "4096"))], ids=["first", "second"]
)
def test_the_first_network_wins_whoever_joins_first_and_who_stays_gets_its_value(
    contested: BridgeDriver,
    kernel: FakeKernel,
    store: Store,
    *,
    joins: tuple[int, ...],
    leaves: int,
    expected: tuple[str, str],
    sandbox_first: bool,
) -> None:
    if sandbox_first:
        kernel.add_sandbox(SANDBOX)
    join(contested, *joins)
    if not sandbox_first:
        kernel.arrive(SANDBOX)
    assert values(kernel) == ("600", "128")
    leave(contested, leaves)
    assert values(kernel) == expected
    leave(contested, 3 - leaves)
    assert values(kernel) == ("7200", "4096")
    with store.transaction():
        assert store.sandboxes() == ()


@pytest.mark.parametrize("joins", [(1, 2, 3), (3, 2, 1), (2, 3, 1)])
@pytest.mark.parametrize(
    ("priorities", "own", "winner", "reason"),
    [
        ((0, 0, 0), None, "600", "its network was made first"),
        ((0, 1, 0), None, "900", "its priority is 1, the other's 0"),
        ((-1, 0, 0), None, "900", "its priority is 0, the other's -1"),
        ((1, 2, 3), None, "1200", "its priority is 3, the other's 1"),
        ((9, 0, 0), "300", "300", "an endpoint's own option is stronger than a network's"),
    ],
)
def test_who_wins_can_be_foreseen_and_the_log_says_who_lost(
    driver: BridgeDriver,
    kernel: FakeKernel,
    caplog: pytest.LogCaptureFixture,
    *,
    joins: tuple[int, ...],
    priorities: tuple[int, ...],
    own: str | None,
    winner: str,
    reason: str,
) -> None:
    kernel.add_sandbox(SANDBOX)
    for number, priority in enumerate(priorities, 1):
        wants = (f"{KEEPALIVE}={own}",) if own and number == len(priorities) else ()
        driver.create_network(
            network(number, f"{KEEPALIVE}={300 + 300 * number}", priority=priority)
        )
        driver.create_endpoint(new_endpoint(number, number, *wants))
    join(driver, *joins)
    assert values(kernel)[0] == winner
    assert f"{KEEPALIVE}={winner} over " in caplog.text
    assert reason in caplog.text


def test_so_it_does_where_both_ask_by_their_endpoints(
    driver: BridgeDriver, kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    add(driver, 1, wants=(f"{KEEPALIVE}=300",))
    add(driver, 2, wants=(f"{KEEPALIVE}=400",))
    kernel.add_sandbox(SANDBOX)
    join(driver, 2, 1)
    assert values(kernel)[0] == "300"
    assert f"{KEEPALIVE}=300 over 400 of endpoint e2e2e2e2e2e2" in caplog.text


def test_a_contest_is_in_the_log_once_and_by_name(
    contested: BridgeDriver, kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.add_sandbox(SANDBOX)
    join(contested, 1, 2)
    (said,) = [each.message for each in caplog.records if KEEPALIVE in each.message]
    assert said == (
        "endpoint e1e1e1e1e1e1 of network 010101010101 sets net.ipv4.tcp_keepalive_time=600 over "
        "900 of endpoint e2e2e2e2e2e2 of network 020202020202: its network was made first, and "
        "neither has the greater priority"
    )
    assert SOMAXCONN not in caplog.text


def test_what_the_user_set_is_neither_written_nor_put_back(
    contested: BridgeDriver, kernel: FakeKernel
) -> None:
    kernel.add_sandbox(SANDBOX, **{KEEPALIVE: "42"})
    join(contested, 1, 2)
    assert values(kernel) == ("42", "128")
    for number in (1, 2):
        leave(contested, number)
    assert values(kernel) == ("42", "4096")


def test_a_host_that_changed_what_namespaces_copy_is_noticed(
    contested: BridgeDriver, kernel: FakeKernel
) -> None:
    kernel.pristine[KEEPALIVE] = "7000"
    kernel.add_sandbox(SANDBOX)
    join(contested, 1)
    assert values(kernel)[0] == "600"


@pytest.mark.parametrize("is_ours", [False, True], ids=["at first", "after another network"])
def test_what_the_container_sets_between_the_reading_and_the_writing_stays(
    driver: BridgeDriver,
    kernel: FakeKernel,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_ours: bool,
) -> None:
    for number, value in ((1, "900"), (2, "600")):
        add(driver, number, f"{KEEPALIVE}={value}", f"{SOMAXCONN}=128")
    kernel.add_sandbox(SANDBOX)
    if is_ours:
        join(driver, 2)
    with store.transaction():
        before = store.traces(SANDBOX).get(KEEPALIVE)
    sets_its_own(kernel, monkeypatch)
    join(driver, 1)
    assert values(kernel) == ("42", "128")
    with store.transaction():
        assert store.traces(SANDBOX).get(KEEPALIVE) == before
    assert (before is not None) is is_ours
    for number in (1, 2) if is_ours else (1,):
        leave(driver, number)
    assert values(kernel) == ("42", "4096")


def sets_its_own(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a process of the container write between the driver's next reading and writing."""
    write = kernel.write_sysctls

    def write_late(writes: Any) -> Any:
        monkeypatch.undo()
        kernel.sandboxes[SANDBOX][KEEPALIVE] = "42"
        return write(writes)

    monkeypatch.setattr(kernel, "write_sysctls", write_late)


def test_an_undo_leaves_what_the_container_has_set_meanwhile(
    driver: BridgeDriver, kernel: FakeKernel, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(driver, 1, f"{KEEPALIVE}=600", f"{SOMAXCONN}=128")
    kernel.add_sandbox(SANDBOX)

    def fail(*_: object) -> None:
        kernel.sandboxes[SANDBOX][KEEPALIVE] = "42"
        raise KernelError("no")

    monkeypatch.setattr(kernel, "create_veth", fail)
    with pytest.raises(KernelError):
        join(driver, 1)
    assert values(kernel) == ("42", "4096")
    with store.transaction():
        assert store.sandboxes() == ()


def test_a_sandbox_that_ends_between_the_reading_and_the_writing_leaves_no_trace(
    driver: BridgeDriver, kernel: FakeKernel, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(driver, 1, f"{KEEPALIVE}=600")
    kernel.add_sandbox(SANDBOX)
    write = kernel.write_sysctls

    def end(writes: Any) -> Any:
        kernel.die(SANDBOX)
        return write(writes)

    monkeypatch.setattr(kernel, "write_sysctls", end)
    join(driver, 1)
    with store.transaction():
        assert store.sandboxes() == ()


def test_who_left_before_the_sandbox_came_has_no_say(
    contested: BridgeDriver, kernel: FakeKernel
) -> None:
    join(contested, 1, 2)
    leave(contested, 2)
    kernel.arrive(SANDBOX)
    assert values(kernel) == ("600", "4096")


def test_an_interface_that_arrives_is_configured_once(
    driver: BridgeDriver, kernel: FakeKernel, store: Store
) -> None:
    add(driver, 1, "net.ipv4.conf.IFNAME.rp_filter=2")
    join(driver, 1)
    kernel.arrive(SANDBOX, [host_end_name(endpoint_id(1))])
    key = "net.ipv4.conf.pnce1e1e1e1e1e1.rp_filter"
    assert kernel.sandboxes[SANDBOX][key] == "2"
    with store.transaction():
        known = store.find_endpoint(endpoint_id(1))
    assert known is not None
    assert known.attachment is not None
    assert known.attachment.configured
    kernel.sandboxes[SANDBOX][key] = "1"
    driver.endpoint_info(network_id(1), endpoint_id(1))
    assert kernel.sandboxes[SANDBOX][key] == "1"


@pytest.mark.parametrize("has_left", [True, False])
def test_a_container_that_is_gone_before_its_interface_was_seen_is_no_failure(
    driver: BridgeDriver, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, *, has_left: bool
) -> None:
    def wait_in_vain(*_: object) -> None:
        if has_left:
            leave(driver, 1)
        raise KernelError("it was not up")

    monkeypatch.setattr(kernel, "await_interface_sysctls", wait_in_vain)
    add(driver, 1, f"{RP_FILTER}=2")
    join(driver, 1)
    if has_left:
        kernel.arrive(SANDBOX)
    else:
        with pytest.raises(KernelError):
            kernel.arrive(SANDBOX)


def test_a_sandbox_that_was_never_seen_is_told_of(
    driver: BridgeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    add(driver, 1, f"{KEEPALIVE}=600")
    join(driver, 1)
    leave(driver, 1)
    assert f"sandbox {SANDBOX} never came into sight" in caplog.text


def test_a_sandbox_that_came_is_not_told_of(
    driver: BridgeDriver, kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    add(driver, 1, f"{KEEPALIVE}=600")
    join(driver, 1)
    kernel.add_sandbox(SANDBOX)
    kernel.watches.pop(SANDBOX)()
    leave(driver, 1)
    assert "never came" not in caplog.text


@pytest.mark.parametrize("is_written", [True, False])
def test_a_driver_killed_while_it_configures_a_sandbox_knows_what_it_wrote(
    driver: BridgeDriver, kernel: FakeKernel, store: Store, *, is_written: bool
) -> None:
    """On 20.10 to 27 it writes without the lock, and stores what came of it afterwards."""
    driver.restore()
    add(driver, 1, f"{KEEPALIVE}=600")
    join(driver, 1)
    kernel.restart()
    kernel.arrive(SANDBOX)
    kernel.sandboxes[SANDBOX][KEEPALIVE] = "600" if is_written else "7200"
    again = BridgeDriver(store, kernel)
    again.restore()
    kernel.watches.pop(SANDBOX)()
    assert kernel.sandboxes[SANDBOX][KEEPALIVE] == "600"
    leave(again, 1)
    assert kernel.sandboxes[SANDBOX][KEEPALIVE] == "7200"
    with store.transaction():
        assert store.sandboxes() == ()


@pytest.mark.parametrize("staying", [(), (1,)], ids=["the last", "not the last"])
def test_who_leaves_a_sandbox_that_has_just_come_leaves_no_value_in_it(
    contested: BridgeDriver,
    kernel: FakeKernel,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    staying: tuple[int, ...],
) -> None:
    add(contested, 3, f"{RP_FILTER}=2", f"{SOMAXCONN}=256")
    join(contested, *staying, 3)
    monkeypatch.setattr(kernel, "await_interface_sysctls", lambda *_: leave(contested, 3))
    kernel.arrive(SANDBOX)
    assert values(kernel) == ("600" if staying else "7200", "4096")
    with store.transaction():
        assert set(store.traces(SANDBOX)) == ({KEEPALIVE} if staying else set())


@pytest.mark.parametrize("sandbox_first", [True, False], ids=["28", "27"])
@pytest.mark.parametrize("is_engines", [True, False])
def test_what_the_engine_writes_into_an_interface_itself_is_left_to_it(
    driver: BridgeDriver, kernel: FakeKernel, *, sandbox_first: bool, is_engines: bool
) -> None:
    host_end = host_end_name(endpoint_id(1))
    driver.create_network(network(1, f"{RP_FILTER}=2"))
    keys = frozenset({RP_FILTER} if is_engines else ())
    driver.create_endpoint(replace(new_endpoint(), engine_keys=keys))
    if sandbox_first:
        kernel.add_sandbox(SANDBOX)
    driver.join(new_join())
    if sandbox_first:
        kernel.move(host_end, SANDBOX)
        driver.endpoint_info(network_id(1), endpoint_id(1))
    else:
        kernel.arrive(SANDBOX, [host_end])
    written = kernel.sandboxes[SANDBOX][f"net.ipv4.conf.{host_end.replace('pnh', 'pnc')}.rp_filter"]
    assert written == ("0" if is_engines else "2")
    assert driver.check() == ()
