"""A restart brings the kernel to what the state file says, and touches nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from driver.driver import BridgeDriver
from driver.errors import KernelError
from driver.model import host_end_name
from driver.reconcile.diff import Kind
from tests.fakes import Calls, FakeKernel, counted_kernel
from tests.samples import (
    KEEPALIVE,
    RP_FILTER,
    endpoint_id,
    network,
    network_id,
    new_endpoint,
    new_join,
    place,
    ports,
    sandbox_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from driver.state.store import Store

HOST_ENDS = {number: host_end_name(endpoint_id(number)) for number in (1, 2, 3)}


@pytest.fixture
def kernel(store: Store) -> FakeKernel:
    """Lend a kernel with two networks: one endpoint joined, one awaiting its sandbox, one not."""
    kernel = FakeKernel()
    kernel.add_foreign("docker0")
    kernel.add_foreign("veth1234567", "veth", alias="somebody's")
    driver = BridgeDriver(store, kernel)
    driver.restore()
    kernel.add_sandbox(sandbox_key(1))
    for number in (1, 2):
        driver.create_network(network(number, f"{KEEPALIVE}=600", f"{RP_FILTER}=2"))
    for number, net in ((1, 1), (2, 2), (3, 1)):
        driver.create_endpoint(new_endpoint(number, net))
    for number in (1, 2):
        driver.join(new_join(number, number, sandbox_key(number), has_ports=number == 1))
    driver.program_external_connectivity(network_id(1), endpoint_id(1), ports("8080:80", "90"))
    kernel.move(HOST_ENDS[1], sandbox_key(1))
    driver.endpoint_info(network_id(1), endpoint_id(1))
    return kernel


def restart(store: Store, kernel: FakeKernel) -> BridgeDriver:
    kernel.restart()
    driver = BridgeDriver(store, kernel)
    driver.restore()
    return driver


def test_a_restart_changes_nothing_that_is_right(store: Store, kernel: FakeKernel) -> None:
    before = kernel.state()
    for _ in range(2):
        restart(store, kernel)
        assert kernel.state() == before


@pytest.mark.parametrize("name", ["pn-010101010101", "pn-020202020202"])
def test_a_bridge_that_somebody_removed_comes_back_with_its_ports(
    store: Store, kernel: FakeKernel, name: str
) -> None:
    before = kernel.state()
    kernel._delete(name)
    restart(store, kernel)
    assert kernel.state() == before


def test_a_name_that_somebody_has_taken_is_one_failure_not_one_for_each_container(
    store: Store, kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing can be done for them before that link has gone."""
    kernel._delete("pn-010101010101")
    kernel.add_foreign("pn-010101010101")
    kernel.restart()
    caplog.clear()
    BridgeDriver(store, kernel).restore()
    (line,) = [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
    assert "use pn-010101010101 as bridge" in line or "use bridge pn-010101010101" in line
    assert kernel.links[HOST_ENDS[1]].bridge is None


def test_rules_that_somebody_flushed_come_back(store: Store, kernel: FakeKernel) -> None:
    before = kernel.state()
    kernel.tables.clear()
    kernel.forwarding.clear()
    kernel.accepted_marks.clear()
    restart(store, kernel)
    assert kernel.state() == before


def test_a_port_that_somebody_took_meanwhile_stays_published(
    store: Store, kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    taken = place("0.0.0.0:8080")
    kept = kernel.reserved - {taken}
    before = kernel.state()
    kernel.restart()
    kernel.taken[taken] = "nginx (pid 812)"
    BridgeDriver(store, kernel).restore()
    assert kernel.reserved == kept
    assert str(taken) in caplog.text
    del kernel.taken[taken]
    kernel.reserved.add(taken)
    assert kernel.state() == before


def test_what_a_relay_holds_and_nobody_has_is_let_go(store: Store, kernel: FakeKernel) -> None:
    """A new driver gets all that a relay holds; an endpoint may be gone by then."""
    before = kernel.state()
    kernel.restart()
    kernel.reserved |= {place("0.0.0.0:9000"), place("[::]:9000"), place("[::]:8080")}
    BridgeDriver(store, kernel).restore()
    assert kernel.state() == before


def test_a_port_that_was_published_before_the_join_stays_reserved(
    store: Store, kernel: FakeKernel
) -> None:
    driver = restart(store, kernel)
    driver.program_external_connectivity(network_id(1), endpoint_id(3), ports("7000:7"))
    before = kernel.state()
    restart(store, kernel)
    assert kernel.state() == before


def test_an_awaited_sandbox_is_configured_after_a_restart(store: Store, kernel: FakeKernel) -> None:
    restart(store, kernel)
    kernel.arrive(sandbox_key(2), [HOST_ENDS[2]])
    values = kernel.sandboxes[sandbox_key(2)]
    assert values[KEEPALIVE] == "600"
    assert values["net.ipv4.conf.pnce2e2e2e2e2e2.rp_filter"] == "2"


def test_a_sandbox_that_came_meanwhile_is_configured(store: Store, kernel: FakeKernel) -> None:
    kernel.restart()
    kernel.arrive(sandbox_key(2), [HOST_ENDS[2]])
    restart(store, kernel)
    assert kernel.sandboxes[sandbox_key(2)][KEEPALIVE] == "600"
    kernel.watches.pop(sandbox_key(2))()
    values = kernel.sandboxes[sandbox_key(2)]
    assert values["net.ipv4.conf.pnce2e2e2e2e2e2.rp_filter"] == "2"


def test_what_the_user_set_survives_a_restart(store: Store, kernel: FakeKernel) -> None:
    kernel.sandboxes[sandbox_key(1)][KEEPALIVE] = "42"
    driver = restart(store, kernel)
    driver.leave(network_id(1), endpoint_id(1))
    assert kernel.sandboxes[sandbox_key(1)][KEEPALIVE] == "42"


def test_a_container_that_died_meanwhile_is_forgotten(store: Store, kernel: FakeKernel) -> None:
    kernel.die(sandbox_key(1))
    restart(store, kernel)
    with store.transaction():
        assert {each.id for each in store.endpoints()} == {endpoint_id(2), endpoint_id(3)}
        assert store.sandboxes() == (sandbox_key(2),), "which is yet to come"
    assert not kernel.reserved
    assert not kernel.elements("everywhere4")


def test_after_a_reboot_endpoints_go_and_networks_come_back(
    store: Store, kernel: FakeKernel
) -> None:
    kernel.reboot()
    driver = restart(store, kernel)
    assert kernel.links.keys() == {"pn-010101010101", "pn-020202020202"}
    assert len(kernel.elements("bridges")) == 2
    with store.transaction():
        assert store.endpoints() == ()
        assert store.sandboxes() == ()
    driver.create_endpoint(new_endpoint(1))
    driver.join(new_join(1, 1, sandbox_key(9)))
    assert HOST_ENDS[1] in kernel.links


def test_a_boot_leaves_it_to_docker_to_turn_on_forwarding(store: Store, kernel: FakeKernel) -> None:
    kernel.reboot()
    driver = restart(store, kernel)
    assert not kernel.forwarding
    driver.create_endpoint(new_endpoint(1))
    driver.join(new_join(1, 1, sandbox_key(9)))
    assert kernel.forwarding == {4}


def test_orphans_of_ours_go_and_links_of_others_stay(store: Store, kernel: FakeKernel) -> None:
    before = kernel.state()
    kernel.add_foreign("pn-999999999999", alias="pynet network 99")
    kernel.add_foreign("pnh999999999999", "veth", alias="pynet endpoint 9 network 99")
    kernel.add_foreign("pnh888888888888", "veth")
    restart(store, kernel)
    left = kernel.state()
    assert "pnh888888888888" in left["links"]
    del left["links"]["pnh888888888888"]
    assert left == before


def test_a_step_that_fails_does_not_keep_the_others_from_being_done(
    store: Store, kernel: FakeKernel
) -> None:
    kernel.reboot()
    kernel.boot = "first boot"
    whole = Calls()
    BridgeDriver(store, counted_kernel(kernel, whole)).restore()
    assert whole.made.count("FakeKernel.ensure_bridge") == 2
    for index in range(1, len(whole.made)):  # without the first, boot_id, nothing can be known
        kernel.reboot()
        kernel.boot = "first boot"
        faulty = Calls(index, KernelError("injected"))
        BridgeDriver(store, counted_kernel(kernel, faulty)).restore()
        call = faulty.made[index] if index < len(faulty.made) else "none: the rest is done"
        missing = {"FakeKernel.ensure_bridge": 1}.get(call, 0)
        assert len(kernel.links) == 2 - missing, call
        restart(store, kernel)
        assert len(kernel.links) == 2, call
        assert kernel.tables, call


class Refusing(FakeKernel):
    """A kernel that refuses rules which hold some words, whatever else comes with them."""

    def __init__(self, *words: str) -> None:
        super().__init__()
        self._words = words

    def run_nft(self, text: str) -> None:
        self._refuse(text)
        super().run_nft(text)

    def preview_rules(self, text: str, tables: Sequence[str]) -> frozenset[str]:
        self._refuse(text)
        return super().preview_rules(text, tables)

    def _refuse(self, text: str) -> None:
        for word in self._words:
            if word in text:
                raise KernelError(f"refused: {word}")


NETWORK, ENDPOINT = '"pn-020202020202"', '"pnhe2e2e2e2e2e2"'


@pytest.mark.parametrize(
    ("refused", "is_lost"),
    [
        (NETWORK, lambda key: NETWORK in key or key.startswith("10.2.")),
        (f"guards {{ {ENDPOINT}", lambda key: ENDPOINT in key),
        ("everywhere4 { tcp . 8080 ", lambda key: "tcp . " in key),
    ],
    ids=["a network", "an endpoint", "its ports"],
)
def test_what_has_rules_that_are_refused_takes_nothing_else_along(
    store: Store, kernel: FakeKernel, refused: str, is_lost: Callable[[str], bool]
) -> None:
    picky = Refusing(refused)
    for each in (1, 2):
        picky.add_sandbox(sandbox_key(each))
    BridgeDriver(store, picky).restore()
    assert picky.accepted_marks
    assert picky.forwarding == kernel.forwarding
    lost = {
        key
        for table, each in kernel.tables.items()
        for _, key in each.elements.keys() - picky.tables[table].elements.keys()
    }
    assert lost
    assert all(map(is_lost, lost)), lost


def test_what_cannot_be_looked_at_is_said_and_keeps_nothing_from_being_mended(
    store: Store, kernel: FakeKernel
) -> None:
    driver = restart(store, kernel)
    kernel._delete("pn-010101010101")
    blind = Refusing("pn-020202020202")
    vars(blind).update({**vars(kernel), "_words": blind._words})
    driver = BridgeDriver(store, blind)
    found = {each.kind: each for each in driver.check()}
    assert found.keys() >= {Kind.BRIDGE, Kind.RULES}
    assert "cannot be looked at: refused" in found[Kind.RULES].text
    driver.repair_all()
    assert "pn-010101010101" in blind.links


@pytest.mark.parametrize("error", [KernelError("injected"), OSError("injected")], ids=repr)
def test_whatever_a_step_fails_with_the_others_are_done(
    store: Store, kernel: FakeKernel, error: Exception
) -> None:
    kernel.reboot()
    restart(store, kernel)  # which forgets the endpoints
    recorded = Calls()
    BridgeDriver(store, counted_kernel(kernel, recorded)).restore()
    kernel.reboot()
    at = recorded.made.index("FakeKernel.ensure_bridge")
    kernel.boot = "another boot"
    BridgeDriver(store, counted_kernel(kernel, Calls(at, error))).restore()
    assert len(kernel.links) == 1
    assert kernel.tables


def test_what_new_namespaces_have_is_looked_up_once_for_all_sandboxes(
    store: Store, kernel: FakeKernel
) -> None:
    """To look makes a namespace and destroys it, under the driver's lock."""
    driver = BridgeDriver(store, kernel)
    for number in range(4, 9):
        kernel.add_sandbox(sandbox_key(number), **{KEEPALIVE: "42"})
        driver.create_endpoint(new_endpoint(number))
        driver.join(new_join(number, 1, sandbox_key(number)))
    for look in (BridgeDriver.check, BridgeDriver.restore):
        calls = Calls()
        look(BridgeDriver(store, counted_kernel(kernel, calls)))
        assert calls.made.count("FakeKernel.read_pristine") == 1, look
    kernel.pristine[KEEPALIVE] = "42"  # the next look sees what the host has by now
    assert {each.subject for each in driver.check()} == {sandbox_key(n) for n in range(4, 9)}


def test_rules_that_were_flushed_are_one_line_of_the_log(
    store: Store, kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    driver = restart(store, kernel)
    for table in kernel.tables.values():
        table.elements.clear()
    assert len(driver.check()) > 3
    with caplog.at_level("INFO"):
        assert driver.repair_all() == ()
    (line,) = [each.getMessage() for each in caplog.records if "repairing" in each.getMessage()]
    assert "rules and elements, such as: rules " in line


def test_a_rule_that_was_left_in_dockers_chain_differs_and_goes(store: Store) -> None:
    """Its deletion may have failed, since another program had the lock of iptables."""
    kernel = FakeKernel()
    driver = restart(store, kernel)
    kernel.ensure_forward_accept(1 << 29)
    (difference,) = driver.check()
    assert difference.kind is Kind.ACCEPT
    assert driver.repair_all() == ()
    assert not kernel.accepted_marks


def test_without_networks_there_are_no_rules(store: Store) -> None:
    kernel = FakeKernel()
    kernel.apply_rules("table inet pynet {}\n")
    kernel.ensure_forward_accept(1 << 29)
    restart(store, kernel)
    assert not kernel.tables
    assert not kernel.accepted_marks
