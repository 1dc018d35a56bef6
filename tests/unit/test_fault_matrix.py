"""Every operation, failed at every call it makes: nothing is left, and the repeat succeeds.

The calls are taken from a recording of the operation, so that a new call cannot be forgotten.
Creates, joins and reports are taken back exactly. Deletes and leaves carry on: the row goes, the
failure is reported, and a restart (or the repeat) finishes what is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from driver.bridge import BridgeDriver
from driver.errors import Conflict, DriverError, KernelError, StoreError
from driver.kernel import Kernel
from driver.model import Attach, host_end_name
from tests.fakes import Calls, FakeKernel, counted_kernel, counted_store
from tests.samples import (
    KEEPALIVE,
    RP_FILTER,
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
    sysctl,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from driver.model import Pool
    from driver.store import Store

    Operation = Callable[[BridgeDriver], object]
    Prepare = Callable[["World"], None]

TABLES = ("network", "pool", "endpoint", "binding", "trace", "boot")
# Every verb of the kernel but those of restoring, of standing down, of the sandbox's arrival, of
# the process, and those that only look.
VERBS = {name for name in vars(Kernel) if not name.startswith("_")} - {
    "ensure_port",
    "list_rules",
    "preview_rules",
    "has_forward_accept",
    "has_loopback_pair",
    "list_reserved",
    "watch_damage",
    "read_traffic",
    "boot_id",
    "await_interface_sysctls",
    "close",
    "find_interface",
}
MAY_CONFLICT = frozenset(
    {"FakeKernel.ensure_bridge", "FakeKernel.create_veth", "FakeKernel.create_veth_in"}
)


class World:
    """A driver with its store and kernel, and everything that it can leave behind."""

    def __init__(self, store: Store, prepare: Prepare) -> None:
        self.store = store
        self.kernel = FakeKernel()
        self.driver = BridgeDriver(store, self.kernel)
        for table in reversed(TABLES):
            store._db.execute(f"DELETE FROM {table}")
        self.driver.restore()
        prepare(self)

    def state(self) -> dict[str, Any]:
        """Return all links, rules, reservations, sandboxes, watches and rows.

        But for forwarding, which stays on once a network needed it, as Docker leaves it.
        """
        rows = {"intent": self.intent(), "memory": self.rows("trace", "boot")}
        return self.kernel.state() | {"forwarding": None} | rows

    def intent(self) -> list[list[Any]]:
        """Return the rows of what Docker has asked for."""
        return self.rows("network", "pool", "endpoint", "binding")

    def rows(self, *tables: str) -> list[list[Any]]:
        """Return the rows of some tables."""
        found = (self.store._db.execute(f"SELECT * FROM {table}") for table in tables)
        return [sorted(each, key=str) for each in found]

    def run(self, operation: Operation, calls: Calls) -> None:
        """Run an operation on a driver whose calls are counted."""
        operation(
            BridgeDriver(counted_store(self.store, calls), counted_kernel(self.kernel, calls))
        )

    def fails(self, operation: Operation, calls: Calls) -> bool:
        """Run an operation, one call of which is made to fail; tell whether it reports that."""
        try:
            self.run(operation, calls)
        except DriverError as error:
            return "injected" in str(error)
        return False

    def restart(self) -> None:
        """Start the driver anew."""
        self.kernel.restart()
        self.driver = BridgeDriver(self.store, self.kernel)
        self.driver.restore()


@dataclass(frozen=True)
class Scenario:
    """An operation, what has been before it, and what becomes of it when a call fails.

    `may_log`: some failures concern what is left over, and are logged instead of reported.
    `harmless`: what a failure may leave done, because it is right whatever follows.
    `unfinished`: a call whose failure nothing makes good.
    """

    name: str
    operation: Operation
    before: tuple[Prepare, ...] = ()
    deletes: bool = False
    may_log: bool = False
    harmless: Prepare | None = None
    unfinished: str = ""

    def prepare(self, world: World) -> None:
        for step in self.before:
            step(world)

    def acceptable(self, store: Store) -> list[dict[str, Any]]:
        """Return the states that a reported failure may leave."""
        world = World(store, self.prepare)
        states = [world.state()]
        if self.harmless is not None:
            self.harmless(world)
            states.append(world.state())
        return states

    def record(self, store: Store) -> tuple[list[str], World]:
        """Return the calls that the operation makes and the world that it leads to."""
        world, calls = World(store, self.prepare), Calls()
        world.run(self.operation, calls)
        return calls.made, world


def does(operation: Operation) -> Prepare:
    return lambda world: void(operation(world.driver))


def void(_: object) -> None:
    """Drop an answer."""


def kernel_has(action: Callable[[FakeKernel], None]) -> Prepare:
    return lambda world: action(world.kernel)


def creates(number: int, *sysctls: str, **options: Any) -> Operation:
    return lambda driver: driver.create_network(network(number, *sysctls, **options))


def places(number: int, net: int = 1, *sysctls: str, **kind: Any) -> Operation:
    return lambda driver: driver.create_endpoint(new_endpoint(number, net, *sysctls, **kind))


def creates_dual(number: int, **options: Any) -> Operation:
    return creates(number, pools=dual_pools(number), **options)


def dual_pools(number: int) -> tuple[Pool, ...]:
    return (pool(f"10.{number}.0.1/24"), pool(f"fd00:{number}::1/64"))


def places_dual(number: int, net: int = 1, **kind: Any) -> Operation:
    ipv6 = f"fd00:{net}::{number + 1}/64"
    return lambda driver: driver.create_endpoint(new_endpoint(number, net, ipv6=ipv6, **kind))


def joins(number: int, net: int = 1, sandbox: int = 1) -> Operation:
    join = new_join(number, net, sandbox_key(sandbox), has_ports=True)
    return lambda driver: driver.join(join)


def leaves(number: int, net: int = 1) -> Operation:
    return lambda driver: driver.leave(network_id(net), endpoint_id(number))


def removes(number: int, net: int = 1) -> Operation:
    return lambda driver: driver.delete_endpoint(network_id(net), endpoint_id(number))


def drops(number: int) -> Operation:
    return lambda driver: driver.delete_network(network_id(number))


def reports(number: int, net: int = 1) -> Operation:
    return lambda driver: driver.endpoint_info(network_id(net), endpoint_id(number))


def programs(number: int, *requests: str, net: int = 1) -> Operation:
    return lambda driver: driver.program_external_connectivity(
        network_id(net), endpoint_id(number), ports(*requests)
    )


def revokes(number: int, net: int = 1) -> Operation:
    return lambda driver: driver.revoke_external_connectivity(network_id(net), endpoint_id(number))


def in_conflict(operation: Operation) -> Operation:
    """Return an operation that somebody else's port stops, whatever else fails or not."""

    def run(driver: BridgeDriver) -> None:
        with pytest.raises(Conflict, match="in use by") as refusal:
            operation(driver)
        assert "injected" not in str(refusal.value)

    return run


def superseding(driver: BridgeDriver) -> None:
    driver.create_network(network(2, pools=(pool("10.1.0.1/24", "LocalDefault"),)))


SYSCTLS = (f"{KEEPALIVE}=600", f"{RP_FILTER}=2")
FOREIGN = kernel_has(lambda kernel: kernel.add_foreign("br0"))
SANDBOX = kernel_has(lambda kernel: kernel.add_sandbox(sandbox_key(1)))
HOST_END = host_end_name(endpoint_id(1))
MOVED = kernel_has(lambda kernel: kernel.move(HOST_END, sandbox_key(1)))
NETWORK = does(creates(1, *SYSCTLS))
ENDPOINT = does(places(1))
JOINED = does(joins(1))
OTHER = (does(creates(2, f"{KEEPALIVE}=900", f"{SOMAXCONN}=128")), does(places(2, 2)))
TWO = (NETWORK, ENDPOINT, *OTHER)
BOTH_JOINED = (*TWO, JOINED, does(joins(2, 2)))
DUAL, DUAL_2, DUAL_ENDPOINT = does(creates_dual(1)), does(creates_dual(2)), does(places_dual(1))
WITH_ENDPOINT = (DUAL, DUAL_ENDPOINT, SANDBOX, JOINED)
NO_ICC = does(creates(1, icc=False))
DIRECT = does(creates(1, attach=Attach.DIRECT))
PORTS = ("8080:80", "127.0.0.1:5353:53/udp", "7000-7009:7000", "443")
PUBLISHED = does(programs(1, *PORTS))


def has_uplink(kernel: FakeKernel) -> None:
    kernel.add_foreign("br-lan")
    kernel.add_foreign("eth1", "device", bridge="br-lan")


def is_taken(kernel: FakeKernel) -> None:
    for each in ("0.0.0.0:7000", "[::]:7001", "[::]:32768"):
        kernel.taken[place(each)] = "nginx (pid 812)"


UPLINK, TAKEN = kernel_has(has_uplink), kernel_has(is_taken)


def configure(kernel: FakeKernel) -> None:
    kernel.set_interface_sysctls(sandbox_key(1), HOST_END, [sysctl(f"{RP_FILTER}=2")])


SCENARIOS = (
    Scenario("the first network", creates(1, *SYSCTLS)),
    Scenario("another network", creates(2), (NETWORK,)),
    Scenario("a network again", creates(1, *SYSCTLS), (NETWORK,)),
    Scenario("a network on somebody's bridge", creates(1, bridge_name="br0"), (FOREIGN,)),
    Scenario(
        "a network that supersedes one",
        superseding,
        (does(creates(1, pools=(pool("10.1.0.1/24", "LocalDefault"),))),),
        deletes=True,
        harmless=does(drops(1)),
    ),
    Scenario("an endpoint", places(1, 1, f"{SOMAXCONN}=9"), (NETWORK,)),
    Scenario("an endpoint again", places(1), (NETWORK, ENDPOINT)),
    Scenario(
        "an endpoint that evicts one",
        places(3, host=2),
        (NETWORK, ENDPOINT, SANDBOX, JOINED),
        may_log=True,
    ),
    Scenario("a join", joins(1), (NETWORK, ENDPOINT, SANDBOX)),
    Scenario("a join before the sandbox", joins(1), (NETWORK, ENDPOINT)),
    Scenario("a join again", joins(1), (NETWORK, ENDPOINT, SANDBOX, JOINED)),
    Scenario(
        "a join after a leave",
        joins(1),
        (NETWORK, ENDPOINT, JOINED, does(leaves(1))),
        harmless=kernel_has(lambda kernel: kernel.delete_links([HOST_END])),
    ),
    Scenario("another join of a sandbox", joins(2, 2), (*TWO, SANDBOX, JOINED)),
    Scenario("another join before the sandbox", joins(2, 2), (*TWO, JOINED)),
    Scenario(
        "a report",
        reports(1),
        (NETWORK, ENDPOINT, SANDBOX, JOINED, MOVED),
        may_log=True,
        harmless=kernel_has(configure),
    ),
    Scenario("the way out", programs(1), (NETWORK, ENDPOINT)),
    Scenario("the first network with IPv6", creates_dual(1)),
    Scenario("another network, the first with IPv6", creates_dual(2), (NETWORK,)),
    Scenario("a network where somebody has a bridge", creates(1), (UPLINK,)),
    Scenario("an internal network", creates_dual(1, internal=True)),
    Scenario("a join without ICC", joins(1), (NO_ICC, ENDPOINT, SANDBOX)),
    Scenario("a leave without ICC", leaves(1), (NO_ICC, ENDPOINT, SANDBOX, JOINED), deletes=True),
    Scenario("a direct join", joins(1), (DIRECT, ENDPOINT, SANDBOX)),
    Scenario("a direct join by name", joins(1), (DIRECT, does(places(1, ifname="front")), SANDBOX)),
    Scenario("a direct join again", joins(1), (DIRECT, ENDPOINT, SANDBOX, JOINED)),
    Scenario(
        "a direct leave",
        leaves(1),
        (DIRECT, ENDPOINT, SANDBOX, JOINED),
        deletes=True,
        unfinished="FakeKernel.release_links",  # until the endpoint is deleted
    ),
    Scenario("ports", programs(1, *PORTS), WITH_ENDPOINT),
    Scenario("ports again", programs(1, *PORTS), (*WITH_ENDPOINT, PUBLISHED)),
    Scenario("ports before a join", programs(1, *PORTS), (DUAL, DUAL_ENDPOINT)),
    Scenario(
        "other ports",
        programs(1, "8081:80"),
        (*WITH_ENDPOINT, PUBLISHED),
        deletes=True,
        harmless=does(revokes(1)),
    ),
    Scenario("ports of which some are taken", programs(1, *PORTS), (*WITH_ENDPOINT, TAKEN)),
    Scenario(
        "ports that somebody has",
        in_conflict(programs(1, "9000:1", "7000:1")),
        (*WITH_ENDPOINT, TAKEN),
    ),
    Scenario(
        "ports that another endpoint has",
        in_conflict(programs(2, "443:443", "127.0.0.1:8080:80")),
        (*WITH_ENDPOINT, PUBLISHED, does(places_dual(2)), does(joins(2, 1, 2))),
        may_log=True,  # a sandbox that cannot be looked at is taken to be alive
    ),
    Scenario("ports taken back", revokes(1), (*WITH_ENDPOINT, PUBLISHED), deletes=True),
    Scenario("no ports taken back", revokes(1), WITH_ENDPOINT),
    Scenario("a leave with ports", leaves(1), (*WITH_ENDPOINT, PUBLISHED), deletes=True),
    Scenario(
        "the end of an endpoint with ports", removes(1), (*WITH_ENDPOINT, PUBLISHED), deletes=True
    ),
    Scenario(
        "the end of an endpoint with ports that never joined",
        removes(1),
        (DUAL, DUAL_ENDPOINT, PUBLISHED),
        deletes=True,
    ),
    Scenario(
        "the end of a network with ports",
        drops(1),
        (*WITH_ENDPOINT, PUBLISHED, does(creates(2))),
        deletes=True,
    ),
    Scenario(
        "the end of the last network with ports",
        drops(1),
        (*WITH_ENDPOINT, PUBLISHED),
        deletes=True,
    ),
    Scenario(
        "an endpoint that evicts one with ports",
        places_dual(3, host=2),
        (*WITH_ENDPOINT, PUBLISHED),
        may_log=True,
    ),
    Scenario("the end of the only network with IPv6", drops(2), (NETWORK, DUAL_2), deletes=True),
    Scenario("a leave", leaves(1), (NETWORK, ENDPOINT, SANDBOX, JOINED), deletes=True),
    Scenario("a leave before the sandbox", leaves(1), (NETWORK, ENDPOINT, JOINED), deletes=True),
    Scenario("the later one leaves", leaves(2, 2), (SANDBOX, *BOTH_JOINED), deletes=True),
    Scenario("the earlier one leaves", leaves(1), (SANDBOX, *BOTH_JOINED), deletes=True),
    Scenario("one leaves before the sandbox", leaves(1), BOTH_JOINED, deletes=True),
    Scenario("the end of an endpoint", removes(1), (NETWORK, ENDPOINT), deletes=True),
    Scenario(
        "the end of a joined endpoint",
        removes(2, 2),
        (SANDBOX, *BOTH_JOINED),
        deletes=True,
    ),
    Scenario(
        "the end of an endpoint that left",
        removes(1),
        (NETWORK, ENDPOINT, SANDBOX, JOINED, does(leaves(1))),
        deletes=True,
    ),
    Scenario("the end of the last network", drops(1), (NETWORK,), deletes=True),
    Scenario("the end of a network", drops(1), TWO, deletes=True),
    Scenario(
        "the end of a network with endpoints", drops(1), (SANDBOX, *BOTH_JOINED), deletes=True
    ),
    Scenario(
        "the end of a network on somebody's bridge",
        drops(1),
        (FOREIGN, does(creates(1, bridge_name="br0"))),
        deletes=True,
        unfinished="FakeKernel.delete_bridge",
    ),
)
EVERY = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)


def errors_of(call: str) -> Iterator[DriverError]:
    """Yield every way in which a call can fail."""
    if call.startswith("Store."):
        yield StoreError("injected")
        return
    yield KernelError("injected")
    if call in MAY_CONFLICT:
        yield Conflict("injected")


def cases(calls: list[str]) -> Iterator[tuple[int, DriverError]]:
    """Yield every failure of a recording: which call, and how."""
    for index, call in enumerate(calls):
        for error in errors_of(call):
            yield index, error


@EVERY
def test_nothing_is_left_and_the_repeat_succeeds(scenario: Scenario, store: Store) -> None:
    calls, good = scenario.record(store)
    after = good.state()
    good.restart()
    after_restart = good.state()
    acceptable = scenario.acceptable(store)
    gone = [after["intent"]] + [state["intent"] for state in acceptable if scenario.harmless]
    for index, error in cases(calls):
        if calls[index] == scenario.unfinished:
            continue
        where = f"{calls[index]} fails, call {index} of {len(calls)}"
        world = World(store, scenario.prepare)
        reported = world.fails(scenario.operation, Calls(index, error))
        assert reported or scenario.may_log, where
        if reported and not scenario.deletes:
            assert world.state() in acceptable, where
        if scenario.deletes and calls[index].startswith("FakeKernel."):
            assert world.intent() in gone, where
        scenario.operation(world.driver)
        if not scenario.deletes and reported:
            assert world.state() == after, where
        world.restart()
        assert world.state() == after_restart, where


def test_the_matrix_is_complete(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    recordings = [scenario.record(store)[0] for scenario in SCENARIOS]
    count = sum(len(list(cases(calls))) for calls in recordings)
    with capsys.disabled():
        print(f" {count} failures in {len(SCENARIOS)} scenarios", end="")
    assert count > 300
    called = {call for calls in recordings for call in calls}
    verbs = {f"FakeKernel.{verb}" for verb in VERBS}
    assert verbs <= called, f"no scenario calls {verbs - called}"
