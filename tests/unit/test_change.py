"""Changing a network while it exists: what may be, what reaches whom, what is put back."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import pytest

from driver import options
from driver.driver import BridgeDriver
from driver.errors import Conflict, InvalidRequest, NotFound
from driver.firewall import ruleset
from driver.model import Guard, GuardAlso, host_end_name
from driver.options import NETWORK_OPTIONS, apply_change, parse_change
from tests.fakes import FakeKernel
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
    sysctl,
)
from tests.typical import TYPICAL

if TYPE_CHECKING:
    from driver.state.store import Store
    from driver.sysctl.sandbox import ChangeOutcome

RMEM = "net.ipv4.tcp_rmem"
NETWORK = network(1, f"{KEEPALIVE}=600", f"{RP_FILTER}=2")


def change(driver: BridgeDriver, *unset: str, **given: str) -> ChangeOutcome:
    """Change the network; `__` in a name stands for a dot."""
    wanted = {name.replace("__", "."): value for name, value in given.items()}
    return driver.change_network(network_id(1), parse_change(wanted, unset))


def keepalive(driver: BridgeDriver, value: str) -> ChangeOutcome:
    return driver.change_network(network_id(1), parse_change({KEEPALIVE: value}, ()))


def start(driver: BridgeDriver, kernel: FakeKernel, number: int = 1, **user: str) -> None:
    """Start a container, as engine 28 does."""
    kernel.add_sandbox(sandbox_key(number), **user)
    driver.create_endpoint(new_endpoint(number))
    driver.join(new_join(number, 1, sandbox_key(number)))
    kernel.move(host_end_name(endpoint_id(number)), sandbox_key(number))
    driver.endpoint_info(network_id(1), endpoint_id(number))


def value(kernel: FakeKernel, key: str = KEEPALIVE, number: int = 1) -> str:
    return kernel.sandboxes[sandbox_key(number)][key]


def rp_filter(kernel: FakeKernel, number: int = 1) -> str:
    name = host_end_name(endpoint_id(number)).replace("pnh", "pnc")
    return value(kernel, f"net.ipv4.conf.{name}.rp_filter", number)


@pytest.fixture
def running(driver: BridgeDriver, kernel: FakeKernel) -> BridgeDriver:
    """Lend a driver with a container on the network."""
    driver.restore()
    driver.create_network(NETWORK)
    start(driver, kernel)
    return driver


# What may be changed.


@pytest.mark.parametrize("option", NETWORK_OPTIONS, ids=lambda each: each.name)
def test_every_option_is_changed_or_refused_with_its_reason(option: options.Option) -> None:
    name = KEEPALIVE if option.name == "net.*" else option.name
    if option.field or option.name == "net.*":
        assert not option.live.startswith("no")
        assert parse_change({}, [name]).unset == {name}
        return
    assert option.live.startswith("no: ")
    with pytest.raises(InvalidRequest, match=f"{name} cannot be changed .*: {option.live[4:]}"):
        parse_change({name: "x"}, ())


@pytest.mark.parametrize(
    ("given", "unset", "words"),
    [
        ({}, (), "nothing to set"),
        ({"com.docker.network.driver.mtuu": "1"}, (), "did you mean com.docker.network.driver.mtu"),
        ({}, ("nonsense",), "unknown option 'nonsense'"),
        ({"net.ipv4.TCP_x": "1"}, (), "is no kernel parameter"),
        ({}, ("net.ipv4.TCP_x",), "is no kernel parameter"),
        ({KEEPALIVE: ""}, (), "the value is empty"),
        ({KEEPALIVE: "1"}, (KEEPALIVE,), f"both set and unset: {KEEPALIVE}"),
        ({"net.ipv4.conf.ifname.rp_filter": "1"}, (RP_FILTER,), "both set and unset"),
        ({options.MTU: "1"}, (options.MTU,), "both set and unset"),
    ],
)
def test_what_makes_no_sense_is_refused(
    given: dict[str, str], unset: tuple[str, ...], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        parse_change(given, unset)


def test_options_are_given_and_taken() -> None:
    before = network(1, f"{KEEPALIVE}=600", f"{SOMAXCONN}=9", mtu=1400, icc=False).options
    wanted = {f"{options.MASQUERADE}": "false", KEEPALIVE: "300", options.TRUSTED: "eth1:eth2"}
    changed = apply_change(before, parse_change(wanted, [SOMAXCONN, options.MTU]), has_ipv6=False)
    assert changed == (
        network(
            1,
            f"{KEEPALIVE}=300",
            icc=False,
            masquerade=False,
            trusted_host_interfaces=("eth1", "eth2"),
        ).options
    )


@pytest.mark.parametrize(
    ("given", "unset", "words"),
    [
        ({options.MTU: "1000"}, (), "IPv6 needs at least 1280"),
        ({options.ICC: "maybe"}, (), "expected true or false"),
        ({}, (SOMAXCONN,), f"unset {SOMAXCONN}: the network does not set it"),
    ],
)
def test_a_value_is_refused_as_for_a_new_network(
    given: dict[str, str], unset: tuple[str, ...], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        apply_change(NETWORK.options, parse_change(given, unset), has_ipv6=True)


def test_parameters_are_tried_before_anything_is_changed(
    running: BridgeDriver, kernel: FakeKernel
) -> None:
    before = kernel.state()
    for wanted in ({KEEPALIVE: "much"}, {"net.ipv4.tcp_nothing": "1"}, {options.INHERIT: "net.x*"}):
        with pytest.raises(InvalidRequest):
            running.change_network(network_id(1), parse_change(wanted, ()))
    assert kernel.state() == before


def test_a_network_that_is_not_there_is_said(driver: BridgeDriver) -> None:
    with pytest.raises(NotFound, match="not known to pynet"):
        keepalive(driver, "1")


# Whom it reaches.


def test_what_runs_gets_the_new_value(running: BridgeDriver, kernel: FakeKernel) -> None:
    start(running, kernel, 2)
    outcome = keepalive(running, "300")
    assert outcome.changed == {sandbox_key(1), sandbox_key(2)}
    assert [value(kernel, number=number) for number in (1, 2)] == ["300", "300"]


def test_a_container_that_set_it_itself_keeps_it(running: BridgeDriver, kernel: FakeKernel) -> None:
    start(running, kernel, 2, **{KEEPALIVE: "42"})
    outcome = keepalive(running, "300")
    assert outcome.changed == {sandbox_key(1)}
    assert outcome.kept == {sandbox_key(2): [KEEPALIVE]}
    assert value(kernel, number=2) == "42"
    outcome = running.change_network(network_id(1), parse_change({}, [KEEPALIVE]))
    assert outcome.kept == {}
    assert value(kernel, number=2) == "42"


def test_a_value_that_somebody_changed_since_is_left_alone(
    running: BridgeDriver, kernel: FakeKernel
) -> None:
    kernel.sandboxes[sandbox_key(1)][KEEPALIVE] = "555"
    assert keepalive(running, "300").kept == {sandbox_key(1): [KEEPALIVE]}
    assert value(kernel) == "555"


def test_a_value_that_a_container_sets_during_the_change_is_kept_and_named(
    running: BridgeDriver, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = kernel.write_sysctls

    def write_late(writes: Any) -> Any:
        kernel.sandboxes[sandbox_key(1)][KEEPALIVE] = "42"
        return write(writes)

    monkeypatch.setattr(kernel, "write_sysctls", write_late)
    outcome = change(running, **{KEEPALIVE: "300", SOMAXCONN: "9"})
    assert outcome.kept == {sandbox_key(1): [KEEPALIVE]}
    assert outcome.changed == {sandbox_key(1)}
    assert (value(kernel), value(kernel, SOMAXCONN)) == ("42", "9")


def test_an_endpoints_own_value_is_stronger(driver: BridgeDriver, kernel: FakeKernel) -> None:
    driver.create_network(NETWORK)
    kernel.add_sandbox(sandbox_key(1))
    driver.create_endpoint(new_endpoint(1, 1, f"{KEEPALIVE}=700"))
    driver.join(new_join())
    assert keepalive(driver, "300").changed == set()
    assert value(kernel) == "700"


def test_a_new_parameter_comes_and_goes(running: BridgeDriver, kernel: FakeKernel) -> None:
    change(running, **{SOMAXCONN: "9"})
    assert value(kernel, SOMAXCONN) == "9"
    change(running, SOMAXCONN, KEEPALIVE)
    assert (value(kernel, SOMAXCONN), value(kernel)) == ("4096", "7200")


def test_it_is_put_back_to_what_was_there_first(running: BridgeDriver, kernel: FakeKernel) -> None:
    for each in ("300", "400", "500"):
        keepalive(running, each)
    running.leave(network_id(1), endpoint_id(1))
    assert value(kernel) == "7200"


def test_nothing_of_it_is_left(running: BridgeDriver, store: Store) -> None:
    change(running, KEEPALIVE, **{SOMAXCONN: "9"})
    running.leave(network_id(1), endpoint_id(1))
    with store.transaction():
        assert store.sandboxes() == ()


def test_the_interface_follows(running: BridgeDriver, kernel: FakeKernel) -> None:
    assert rp_filter(kernel) == "2"
    outcome = running.change_network(network_id(1), parse_change({RP_FILTER: "1"}, ()))
    assert outcome.changed == {sandbox_key(1)}
    assert rp_filter(kernel) == "1"
    kernel.sandboxes[sandbox_key(1)]["net.ipv4.conf.default.rp_filter"] = "0"
    change(running, RP_FILTER)
    assert rp_filter(kernel) == "0"


def test_another_network_of_the_container_has_the_say_that_it_had(
    running: BridgeDriver, kernel: FakeKernel
) -> None:
    running.create_network(network(2, f"{KEEPALIVE}=900", priority=1))
    running.create_endpoint(new_endpoint(2, 2))
    running.join(new_join(2, 2, sandbox_key(1)))
    outcome = keepalive(running, "300")
    assert value(kernel) == "900"
    (overruling,) = outcome.overruled[sandbox_key(1)]
    assert (overruling.sysctl.value, overruling.network) == ("900", network_id(2))
    running.leave(network_id(2), endpoint_id(2))
    assert value(kernel) == "300"


def test_another_priority_changes_who_has_the_say(
    running: BridgeDriver, kernel: FakeKernel
) -> None:
    running.create_network(network(2, f"{KEEPALIVE}=900"))
    running.create_endpoint(new_endpoint(2, 2))
    running.join(new_join(2, 2, sandbox_key(1)))
    assert value(kernel) == "600"
    assert change(running, **{options.PRIORITY: "-1"}).overruled
    assert value(kernel) == "900"
    assert not change(running, options.PRIORITY).overruled
    assert value(kernel) == "600"


def test_so_it_does_where_nothing_had_to_be_written_and_the_driver_is_another(
    running: BridgeDriver, kernel: FakeKernel, store: Store
) -> None:
    """Then nothing tells that the value is nobody's own, but what a new namespace has."""
    pristine = kernel.pristine[KEEPALIVE]
    keepalive(running, pristine)
    start(running, kernel, 2)
    running.create_network(network(2, f"{KEEPALIVE}=900"))
    running.create_endpoint(new_endpoint(3, 2))
    running.join(new_join(3, 2, sandbox_key(2)))
    assert value(kernel, number=2) == pristine
    again = BridgeDriver(store, kernel)
    again.restore()
    assert not change(again, **{options.PRIORITY: "-1"}).kept
    assert value(kernel, number=2) == "900"
    assert not change(again, options.PRIORITY).kept
    assert value(kernel, number=2) == pristine


def test_what_is_inherited_takes_the_place_of_what_is_unset(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    kernel.host[KEEPALIVE] = "650"
    driver.create_network(network(1, f"{KEEPALIVE}=600", inherit=("net.ipv4.*",)))
    start(driver, kernel)
    change(driver, KEEPALIVE)
    assert value(kernel) == "650"


def test_new_patterns_are_for_those_who_come(running: BridgeDriver, kernel: FakeKernel) -> None:
    kernel.host[SOMAXCONN] = "65535"
    change(running, **{options.INHERIT: "net.core.*"})
    start(running, kernel, 2)
    assert [value(kernel, SOMAXCONN, number) for number in (1, 2)] == ["4096", "65535"]


def test_a_sandbox_that_is_yet_to_come_gets_the_new_value(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    driver.create_network(NETWORK)
    driver.create_endpoint(new_endpoint())
    driver.join(new_join())
    outcome = keepalive(driver, "300")
    assert outcome.awaited == {sandbox_key(1)}
    kernel.arrive(sandbox_key(1), [host_end_name(endpoint_id(1))])
    assert (value(kernel), rp_filter(kernel)) == ("300", "2")


@pytest.mark.parametrize("has_come", [False, True])
def test_a_sandbox_that_is_just_coming_gets_the_new_value(
    driver: BridgeDriver, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, *, has_come: bool
) -> None:
    """Whether its interface has been written to by then or has yet to come."""
    host_end = host_end_name(endpoint_id(1))
    driver.create_network(NETWORK)
    driver.create_endpoint(new_endpoint())
    driver.join(new_join())
    wait = FakeKernel.await_interface_sysctls

    def change_while_waiting(self: FakeKernel, *args: object) -> None:
        if has_come:
            wait(self, *args)  # type: ignore[arg-type]
        wanted = {KEEPALIVE: "300", RP_FILTER: "1"}
        driver.change_network(network_id(1), parse_change(wanted, ()))
        if not has_come:
            kernel.move(host_end, sandbox_key(1))
            wait(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(FakeKernel, "await_interface_sysctls", change_while_waiting)
    kernel.arrive(sandbox_key(1), [host_end] if has_come else [])
    assert (value(kernel), rp_filter(kernel)) == ("300", "1")
    driver.leave(network_id(1), endpoint_id(1))
    assert value(kernel) == "7200"


def test_a_container_that_has_ended_is_no_obstacle(
    running: BridgeDriver, kernel: FakeKernel
) -> None:
    start(running, kernel, 2)
    kernel.die(sandbox_key(1))
    kernel.watches.clear()
    assert keepalive(running, "300").changed == {sandbox_key(2)}


# What else it does.


def test_the_firewall_follows_in_one_transaction(
    running: BridgeDriver, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[str] = []

    def run_nft(text: str) -> None:
        applied.append(text)
        FakeKernel.run_nft(kernel, text)

    monkeypatch.setattr(kernel, "run_nft", run_nft)
    wanted = {options.ICC: "false", options.MASQUERADE: "false", options.TRUSTED: "eth1"}
    running.change_network(network_id(1), parse_change(wanted, ()))
    assert len(applied) == 1
    bridge = f'"{NETWORK.bridge_name}"'
    assert (bridge in kernel.elements("no_icc"), kernel.elements("same_bridge")) == (True, {})
    assert kernel.elements("masquerade4") == {}
    assert list(kernel.elements("trusted")) == [f'"eth1" . {bridge}']
    host_end = host_end_name(endpoint_id(1))
    assert list(kernel.elements("closed", "bridge pynet")) == [f'"{host_end}"']
    start(running, kernel, 2)
    assert len(kernel.elements("closed", "bridge pynet")) == 2
    running.leave(network_id(1), endpoint_id(1))
    running.leave(network_id(1), endpoint_id(2))
    assert kernel.elements("closed", "bridge pynet") == {}


@pytest.mark.parametrize("old", TYPICAL)
@pytest.mark.parametrize(
    "new",
    [
        {"icc": False},
        {"masquerade": False},
        {"icc": True},
        {"guard": Guard.OFF},
        {"guard": Guard.ADDRESS, "connections": 7},
        {"guard_also": GuardAlso(ipv4=(IPv4Address("192.0.2.9"),))},
    ],
)
def test_a_change_of_rules_leads_to_the_same_as_beginning_anew(
    kernel: FakeKernel, old: str, new: dict[str, Any]
) -> None:
    before = TYPICAL[old]
    after = replace(before.network, options=replace(before.network.options, **new))
    kernel.apply_rules(ruleset.render_ruleset([before.network], [before.endpoint], []))
    kernel.change_elements(ruleset.change_network(before.network, after, [before.endpoint]))
    led_to = kernel.tables
    kernel.apply_rules(ruleset.render_ruleset([after], [before.endpoint], []))
    assert led_to == kernel.tables


def test_the_mtu_is_the_bridges_at_once_and_that_of_those_who_come(
    running: BridgeDriver, kernel: FakeKernel
) -> None:
    change(running, **{options.MTU: "1400"})
    start(running, kernel, 2)
    names = [NETWORK.bridge_name, *(host_end_name(endpoint_id(number)) for number in (1, 2))]
    assert [kernel.links[name].mtu for name in names] == [1400, 1500, 1400]
    assert running.check() == (), "a greater one does no harm"


def test_a_greater_mtu_is_that_of_running_containers_host_ends_at_once(
    running: BridgeDriver, kernel: FakeKernel
) -> None:
    """Else they would drop what those that come from then on may send."""
    change(running, **{options.MTU: "9000"})
    names = NETWORK.bridge_name, host_end_name(endpoint_id(1))
    assert [kernel.links[name].mtu for name in names] == [9000, 9000]
    assert running.check() == ()


# What Docker does afterwards, and the driver's end.


def test_dockers_repeat_of_the_creation_is_known_after_a_change(
    running: BridgeDriver, store: Store
) -> None:
    keepalive(running, "300")
    running.create_network(NETWORK)
    with store.transaction():
        known = store.find_network(NETWORK.id)
        assert known is not None
        assert sysctl(f"{KEEPALIVE}=300") in known.options.sysctls
        assert store.find_definition(NETWORK.id) == NETWORK
    with pytest.raises(Conflict, match="defined otherwise"):
        running.create_network(network(1, f"{KEEPALIVE}=300", f"{RP_FILTER}=2"))


def test_a_change_outlives_the_driver(
    running: BridgeDriver, store: Store, kernel: FakeKernel
) -> None:
    keepalive(running, "300")
    kernel.restart()
    again = BridgeDriver(store, kernel)
    again.restore()
    assert value(kernel) == "300"
    start(again, kernel, 2)
    assert value(kernel, number=2) == "300"
    again.leave(network_id(1), endpoint_id(1))
    assert value(kernel) == "7200"


def test_a_change_that_was_interrupted_is_made_good_by_its_repeat(
    running: BridgeDriver, kernel: FakeKernel
) -> None:
    kernel.sandboxes[sandbox_key(1)][KEEPALIVE] = "300"  # written, and then the driver died
    assert keepalive(running, "300").kept == {}
    running.leave(network_id(1), endpoint_id(1))
    assert value(kernel) == "7200"
