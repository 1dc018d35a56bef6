"""Every operation, failed at every call it makes: nothing is left, and the repeat succeeds.

The calls are taken from a recording of the operation, so that a new call cannot be forgotten.
Creates, joins and reports are taken back exactly. Deletes and leaves carry on: the row goes, the
failure is reported, and a restart (or the repeat) finishes what is left.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

import pytest

from driver import model, options
from driver.errors import Conflict
from driver.model import Attach, Guard, host_end_name
from driver.options import parse_change
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
from tests.unit.faults import FAULTS, STORE_CALLS, VERBS, After, Check, Scenario

if TYPE_CHECKING:
    from collections.abc import Callable

    from driver.driver import BridgeDriver
    from driver.model import Pool
    from driver.state.store import Store
    from tests.fakes import FakeKernel
    from tests.unit.faults import Operation, Prepare


def does(operation: Operation) -> Prepare:
    return lambda world: void(operation(world.driver))


def void(_: object) -> None:
    """Drop an answer."""


def kernel_has(action: Callable[[FakeKernel], None]) -> Prepare:
    return lambda world: action(world.kernel)


def creates(number: int, *sysctls: str, **kind: Any) -> Operation:
    return lambda driver: driver.create_network(network(number, *sysctls, **kind))


def places(number: int, net: int = 1, *sysctls: str, **kind: Any) -> Operation:
    return lambda driver: driver.create_endpoint(new_endpoint(number, net, *sysctls, **kind))


def creates_dual(number: int, **kind: Any) -> Operation:
    return creates(number, pools=dual_pools(number), **kind)


def dual_pools(number: int) -> tuple[Pool, ...]:
    return (pool(f"10.{number}.0.1/24"), pool(f"fd00:{number}::1/64"))


def places_dual(number: int, net: int = 1, **kind: Any) -> Operation:
    ipv6 = f"fd00:{net}::{number + 1}/64"
    return lambda driver: driver.create_endpoint(new_endpoint(number, net, ipv6=ipv6, **kind))


def joins(number: int, net: int = 1, sandbox: int = 1) -> Operation:
    join = new_join(number, net, sandbox_key(sandbox), has_ports=True)
    return lambda driver: driver.join(join)


def on_small_bridges(operation: Operation) -> Operation:
    """Have an operation think that a bridge has room for one endpoint."""

    def run(driver: BridgeDriver) -> object:
        with patch.object(model, "BRIDGE_PORTS", 1):
            return operation(driver)

    return run


def leaves(number: int, net: int = 1) -> Operation:
    return lambda driver: driver.leave(network_id(net), endpoint_id(number))


def removes(number: int, net: int = 1) -> Operation:
    return lambda driver: driver.delete_endpoint(network_id(net), endpoint_id(number))


def drops(number: int) -> Operation:
    return lambda driver: driver.delete_network(network_id(number))


def changes(number: int, *unset: str, **given: str) -> Operation:
    """Change a network's options, which go by their names in `NAMES`."""
    change = parse_change({NAMES[name]: value for name, value in given.items()}, unset)
    return lambda driver: driver.change_network(network_id(number), change)


def reports(number: int, net: int = 1) -> Operation:
    return lambda driver: driver.endpoint_info(network_id(net), endpoint_id(number))


def programs(number: int, *requests: str, net: int = 1) -> Operation:
    return lambda driver: driver.program_external_connectivity(
        network_id(net), endpoint_id(number), ports(*requests)
    )


def revokes(number: int, net: int = 1) -> Operation:
    return lambda driver: driver.revoke_external_connectivity(network_id(net), endpoint_id(number))


def in_conflict(operation: Operation) -> Operation:
    """Return an operation that another program's port stops, whatever else fails or not."""

    def run(driver: BridgeDriver) -> None:
        with pytest.raises(Conflict, match="in use by") as refusal:
            operation(driver)
        assert "injected" not in str(refusal.value)

    return run


def superseding(driver: BridgeDriver) -> None:
    driver.create_network(network(2, pools=(pool("10.1.0.1/24", "LocalDefault"),)))


NAMES = {
    "keepalive": KEEPALIVE,
    "somaxconn": SOMAXCONN,
    "rp_filter": RP_FILTER,
    "mtu": options.MTU,
    "icc": options.ICC,
    "masquerade": options.MASQUERADE,
    "trusted": options.TRUSTED,
    "inherit": options.INHERIT,
    "guard": options.GUARD,
    "also": options.GUARD_ALSO,
    "connections": options.CONNECTIONS,
}
SYSCTLS = (f"{KEEPALIVE}=600", f"{RP_FILTER}=2")
FOREIGN = kernel_has(lambda kernel: kernel.add_foreign("br0"))
SANDBOX = kernel_has(lambda kernel: kernel.add_sandbox(sandbox_key(1)))
HOST_END = host_end_name(endpoint_id(1))
MOVED = kernel_has(lambda kernel: kernel.move(HOST_END, sandbox_key(1)))
DIES = kernel_has(lambda kernel: kernel.die(sandbox_key(1)))
NETWORK = does(creates(1, *SYSCTLS))
ENDPOINT = does(places(1))
JOINED = does(joins(1))
OTHER = (does(creates(2, f"{KEEPALIVE}=900", f"{SOMAXCONN}=128")), does(places(2, 2)))
TWO = (NETWORK, ENDPOINT, *OTHER)
BOTH_JOINED = (*TWO, JOINED, does(joins(2, 2)))
DUAL, DUAL_2, DUAL_ENDPOINT = does(creates_dual(1)), does(creates_dual(2)), does(places_dual(1))
WITH_ENDPOINT = (DUAL, DUAL_ENDPOINT, SANDBOX, JOINED)
NO_ICC = does(creates(1, icc=False))
GUARDED = does(creates_dual(1, guard=Guard.ADDRESS, connections=5))
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


def restores(driver: BridgeDriver) -> None:
    driver.restore()


def stands_down(driver: BridgeDriver) -> None:
    driver.shutdown()


def repairs(driver: BridgeDriver) -> None:
    driver.repair_all()


def sees_arrive(driver: BridgeDriver) -> None:
    """Restore a driver whose sandbox comes into being, with its interface, a moment later."""
    driver.restore()
    kernel = kernel_of(driver)
    if sandbox_key(1) not in kernel.sandboxes:
        kernel.arrive(sandbox_key(1), [HOST_END])


def kernel_of(driver: BridgeDriver) -> FakeKernel:
    """Return the kernel in memory that a driver works on, counted or not."""
    found = driver._kernel
    return cast("FakeKernel", getattr(found, "target", found))


def configure(kernel: FakeKernel) -> None:
    if kernel.has_sandbox(sandbox_key(1)):
        kernel.set_interface_sysctls(sandbox_key(1), HOST_END, [sysctl(f"{RP_FILTER}=2")])


def flush(kernel: FakeKernel) -> None:
    kernel.tables.clear()
    kernel.accepted_marks.clear()
    for name in [name for name, link in kernel.links.items() if link.kind == "bridge"]:
        kernel._delete(name)


def leave_orphans(kernel: FakeKernel) -> None:
    kernel.add_foreign("pn-999999999999", alias="pynet network 99")
    kernel.add_foreign("pnh999999999999", "veth", alias="pynet endpoint 9 network 99")


ENDED = kernel_has(lambda kernel: kernel.restart())
REBOOTED = kernel_has(lambda kernel: kernel.reboot())
FLUSHED, ORPHANS = kernel_has(flush), kernel_has(leave_orphans)
DIED = kernel_has(lambda kernel: kernel.die(sandbox_key(1)))
BUSY = (*WITH_ENDPOINT, MOVED, PUBLISHED, does(creates(2, *SYSCTLS)), does(places(2, 2)))
AWAITING = (NETWORK, ENDPOINT, JOINED)


def _later(name: str, operation: Operation, *before: Prepare) -> Scenario:
    return Scenario(name, operation, before, after=After.FINISHED_LATER, may_log=True)


def is_tuned(kernel: FakeKernel) -> None:
    kernel.host |= {SOMAXCONN: "65535"}


TUNED = kernel_has(is_tuned)
HEIR = does(creates(1, inherit=("net.core.*",)))
CHANGE = changes(
    1,
    RP_FILTER,
    keepalive="300",
    somaxconn="9",
    mtu="1400",
    icc="false",
    masquerade="false",
    trusted="eth1",
    inherit="net.core.*",
    guard="address",
    also="10.1.0.100,00:00:5e:00:01:07",
    connections="100",
)

SCENARIOS = (
    Scenario("the first network", creates(1, *SYSCTLS)),
    Scenario("another network", creates(2), (NETWORK,)),
    Scenario("a network again", creates(1, *SYSCTLS), (NETWORK,)),
    Scenario("a network on somebody's bridge", creates(1, bridge_name="br0"), (FOREIGN,)),
    Scenario(
        "a network that supersedes one",
        superseding,
        (does(creates(1, pools=(pool("10.1.0.1/24", "LocalDefault"),))),),
        after=After.CARRIED_ON,
        harmless=does(drops(1)),
    ),
    Scenario("an endpoint", places(1, 1, f"{SOMAXCONN}=9"), (NETWORK,)),
    Scenario("an endpoint again", places(1), (NETWORK, ENDPOINT)),
    Scenario(
        "an endpoint that evicts one",
        places(3, host=2),
        (does(creates(1)), ENDPOINT, SANDBOX, JOINED, MOVED, DIES),
        may_log=True,
    ),
    Scenario("a join", joins(1), (NETWORK, ENDPOINT, SANDBOX)),
    Scenario("a join before the sandbox", joins(1), (NETWORK, ENDPOINT)),
    Scenario("a guarded join", joins(1), (GUARDED, DUAL_ENDPOINT, SANDBOX)),
    Scenario(
        "a guarded leave",
        leaves(1),
        (GUARDED, DUAL_ENDPOINT, SANDBOX, JOINED),
        after=After.CARRIED_ON,
    ),
    Scenario(
        "a join on an extra bridge",
        on_small_bridges(joins(3)),
        (NETWORK, ENDPOINT, SANDBOX, JOINED, does(places(3))),
    ),
    Scenario(
        "the end of a network with an extra bridge",
        drops(1),
        (NETWORK, ENDPOINT, SANDBOX, JOINED, does(places(3)), does(on_small_bridges(joins(3)))),
        after=After.CARRIED_ON,
    ),
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
    Scenario("a network that inherits", creates(1, inherit=("net.core.*",)), (TUNED,)),
    Scenario("a join that inherits", joins(1), (TUNED, HEIR, ENDPOINT, SANDBOX)),
    Scenario("a join that inherits, before the sandbox", joins(1), (TUNED, HEIR, ENDPOINT)),
    Scenario("a change of a network", CHANGE, (NETWORK,)),
    Scenario(
        "a change of a network in use",
        CHANGE,
        (*TWO, SANDBOX, JOINED, MOVED, does(reports(1)), does(joins(2, 2))),
    ),
    Scenario("a change before the sandbox", CHANGE, (NETWORK, ENDPOINT, JOINED)),
    Scenario("a change back", changes(1, KEEPALIVE), (NETWORK, ENDPOINT, SANDBOX, JOINED)),
    Scenario("the way out", programs(1), (NETWORK, ENDPOINT)),
    Scenario("the first network with IPv6", creates_dual(1)),
    Scenario("another network, the first with IPv6", creates_dual(2), (NETWORK,)),
    Scenario("a network where somebody has a bridge", creates(1), (UPLINK,)),
    Scenario("an internal network", creates_dual(1, internal=True)),
    Scenario("a join without ICC", joins(1), (NO_ICC, ENDPOINT, SANDBOX)),
    Scenario(
        "a leave without ICC",
        leaves(1),
        (NO_ICC, ENDPOINT, SANDBOX, JOINED),
        after=After.CARRIED_ON,
    ),
    Scenario("a direct join", joins(1), (DIRECT, ENDPOINT, SANDBOX)),
    Scenario("a direct join by name", joins(1), (DIRECT, does(places(1, ifname="front")), SANDBOX)),
    Scenario("a direct join again", joins(1), (DIRECT, ENDPOINT, SANDBOX, JOINED)),
    Scenario(
        "a direct leave",
        leaves(1),
        (DIRECT, ENDPOINT, SANDBOX, JOINED),
        after=After.CARRIED_ON,
        unfinished="FakeKernel.release_links",  # until the endpoint is deleted
    ),
    Scenario("ports", programs(1, *PORTS), WITH_ENDPOINT),
    Scenario("ports again", programs(1, *PORTS), (*WITH_ENDPOINT, PUBLISHED)),
    Scenario("ports before a join", programs(1, *PORTS), (DUAL, DUAL_ENDPOINT)),
    Scenario(
        "other ports",
        programs(1, "8081:80"),
        (*WITH_ENDPOINT, PUBLISHED),
        after=After.CARRIED_ON,
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
    Scenario("ports taken back", revokes(1), (*WITH_ENDPOINT, PUBLISHED), after=After.CARRIED_ON),
    Scenario("no ports taken back", revokes(1), WITH_ENDPOINT),
    Scenario("a leave with ports", leaves(1), (*WITH_ENDPOINT, PUBLISHED), after=After.CARRIED_ON),
    Scenario(
        "the end of an endpoint with ports",
        removes(1),
        (*WITH_ENDPOINT, PUBLISHED),
        after=After.CARRIED_ON,
    ),
    Scenario(
        "the end of an endpoint with ports that never joined",
        removes(1),
        (DUAL, DUAL_ENDPOINT, PUBLISHED),
        after=After.CARRIED_ON,
    ),
    Scenario(
        "the end of a network with ports",
        drops(1),
        (*WITH_ENDPOINT, PUBLISHED, does(creates(2))),
        after=After.CARRIED_ON,
    ),
    Scenario(
        "the end of the last network with ports",
        drops(1),
        (*WITH_ENDPOINT, PUBLISHED),
        after=After.CARRIED_ON,
    ),
    Scenario(
        "an endpoint that evicts one with ports",
        places_dual(3, host=2),
        (*WITH_ENDPOINT, MOVED, PUBLISHED, DIES),
        may_log=True,
    ),
    Scenario(
        "an endpoint that takes an address of one that lives",
        places_dual(3, host=2),
        (*WITH_ENDPOINT, PUBLISHED),
        may_log=True,
    ),
    Scenario(
        "the end of the only network with IPv6", drops(2), (NETWORK, DUAL_2), after=After.CARRIED_ON
    ),
    Scenario("a leave", leaves(1), (NETWORK, ENDPOINT, SANDBOX, JOINED), after=After.CARRIED_ON),
    Scenario(
        "a leave before the sandbox", leaves(1), (NETWORK, ENDPOINT, JOINED), after=After.CARRIED_ON
    ),
    Scenario("the later one leaves", leaves(2, 2), (SANDBOX, *BOTH_JOINED), after=After.CARRIED_ON),
    Scenario("the earlier one leaves", leaves(1), (SANDBOX, *BOTH_JOINED), after=After.CARRIED_ON),
    Scenario("one leaves before the sandbox", leaves(1), BOTH_JOINED, after=After.CARRIED_ON),
    Scenario("the end of an endpoint", removes(1), (NETWORK, ENDPOINT), after=After.CARRIED_ON),
    Scenario(
        "the end of a joined endpoint",
        removes(2, 2),
        (SANDBOX, *BOTH_JOINED),
        after=After.CARRIED_ON,
    ),
    Scenario(
        "the end of an endpoint that left",
        removes(1),
        (NETWORK, ENDPOINT, SANDBOX, JOINED, does(leaves(1))),
        after=After.CARRIED_ON,
    ),
    Scenario("the end of the last network", drops(1), (NETWORK,), after=After.CARRIED_ON),
    Scenario("the end of a network", drops(1), TWO, after=After.CARRIED_ON),
    Scenario(
        "the end of a network with endpoints",
        drops(1),
        (SANDBOX, *BOTH_JOINED),
        after=After.CARRIED_ON,
    ),
    Scenario(
        "the end of a network on somebody's bridge",
        drops(1),
        (FOREIGN, does(creates(1, bridge_name="br0"))),
        after=After.CARRIED_ON,
        unfinished="FakeKernel.delete_bridge",
    ),
    _later("a first start", restores, ENDED),
    _later("a restart", restores, *BUSY, ENDED),
    _later("a restart with a parameter to write", restores, *AWAITING, SANDBOX, ENDED),
    _later("a restart before the sandbox", restores, *AWAITING, ENDED),
    _later("a restart of a busy sandbox", restores, SANDBOX, *BOTH_JOINED, MOVED, ENDED),
    _later("a restart after a reboot", restores, *BUSY, REBOOTED),
    _later("a restart after others flushed all", restores, *BUSY, ENDED, FLUSHED),
    _later("a restart after a container died", restores, *BUSY, ENDED, DIED),
    _later("a restart beside orphans", restores, *BUSY, ENDED, ORPHANS),
    _later("the end beside a container", stands_down, *BUSY),
    _later("the end of an idle driver", stands_down, DUAL, does(creates(2))),
    _later("the end of a driver without networks", stands_down),
    replace(_later("the arrival of a sandbox", sees_arrive, *AWAITING, ENDED), may_forget=True),
    _later("a check", lambda driver: driver.check(), *BUSY),
    _later("a repair of what others flushed", repairs, *BUSY, FLUSHED, ORPHANS),
    _later("a repair after a container died", repairs, *BUSY, DIED),
    _later("a measurement", lambda driver: driver.read_traffic(), *BUSY),
    _later("a look at what was dropped", lambda driver: driver.read_drops(), *BUSY),
    _later("a look at connections", lambda driver: driver.read_published(), *BUSY),
    _later("a count of connections", lambda driver: driver.count_connections((), 9), *BUSY),
    _later("a look at the rules", lambda driver: driver.read_rules(), *BUSY),
    _later("advice", lambda driver: driver.advise(), *BUSY),
    _later("a list", lambda driver: driver.describe(), *BUSY),
    _later(
        "a question", lambda driver: driver.find_interface(endpoint_id(1)), *WITH_ENDPOINT, MOVED
    ),
)
EVERY = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)


@EVERY
def test_nothing_is_left_and_the_repeat_succeeds(
    scenario: Scenario, store: Store, record_property: Callable[[str, object], None]
) -> None:
    check = Check(scenario, store)
    check.run()
    record_property("fault matrix: failed calls", check.count)


def test_the_matrix_is_complete(store: Store) -> None:
    assert FAULTS.keys() == VERBS
    called = {call for scenario in SCENARIOS for call in scenario.record(store)[0]}
    verbs = {
        f"FakeKernel.{verb}"
        for verb in VERBS - {"close", "watch_damage", "watch_zone", "read_sandboxes"}
    }
    assert called == verbs | STORE_CALLS
