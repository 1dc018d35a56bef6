"""What differs between intent and kernel is named: what it is, which, and what is wrong with it."""

from __future__ import annotations

import sys
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest

from driver.driver import BridgeDriver
from driver.errors import Conflict
from driver.firewall.filters import BaseChain, Compare, Doubt, Fact, Fate, Hook, Load, Verdict
from driver.firewall.ruleset import FORWARD_PRIORITY
from driver.model import host_end_name
from driver.observed import Link, Passage
from driver.reconcile.diff import (
    Existence,
    Kind,
    compare_bridges,
    compare_endpoints,
    compare_rules,
    find_ends,
    find_leftovers,
)
from tests.fakes import FakeKernel
from tests.samples import (
    KEEPALIVE,
    endpoint,
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
    from driver.state.store import Store

NET = network(1)
IS, WAS, UNSEEN = Existence
JOINED = endpoint(1).joined(sandbox_key(1))
HOST_END = host_end_name(JOINED.id)
BRIDGE = Link(
    kind="bridge",
    alias=NET.bridge.alias,
    mac=NET.bridge.mac,
    mtu=1500,
    up=True,
    addresses=frozenset(NET.bridge.addresses),
)
PORT = Link("veth", "pynet endpoint 1 network 1", "", 1500, up=True, bridge=NET.bridge_name)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, ""),
        ({"up": False}, "is down"),
        ({"addresses": frozenset()}, "has lost its address 10.1.0.1/24"),
        ({"mtu": 1400}, "has an MTU of 1400 instead of 1500"),
        ({"mac": "02:00:00:00:00:01"}, "has the MAC address 02:00:00:00:00:01 instead of"),
        ({"kind": "dummy"}, "is an interface of another kind by now"),
        ({"alias": ""}, "is another program's by now"),
    ],
)
def test_what_is_wrong_with_a_bridge(change: dict[str, Any], text: str) -> None:
    links = {NET.bridge_name: replace(BRIDGE, **change)}
    found = list(compare_bridges([NET], links))
    assert [each.kind for each in found] == [Kind.BRIDGE] * bool(text)
    assert all(text in str(each) for each in found)


def test_a_bridge_that_is_gone() -> None:
    (found,) = compare_bridges([NET], {})
    assert str(found) == "bridge pn-010101010101: is gone (network 010101010101)"


def test_somebody_elses_bridge_need_only_work() -> None:
    net = replace(network(1, bridge_name="br-lan"), shared=True)
    other = replace(BRIDGE, alias="", mtu=9000, mac="02:00:00:00:00:01")
    assert not list(compare_bridges([net], {"br-lan": other}))
    (found,) = compare_bridges([replace(net, shared=False)], {"br-lan": other})
    assert found.blocked
    (found,) = compare_bridges([net], {"br-lan": replace(other, kind="dummy")})
    assert found.blocked, "nothing can be put on it before it has gone"


@pytest.mark.parametrize(
    ("link", "existence", "kind", "text"),
    [
        (PORT, IS, None, ""),
        (PORT, UNSEEN, None, ""),
        (PORT, WAS, Kind.DEAD, "its sandbox has ended"),
        (replace(PORT, up=False), IS, Kind.HOST_END, "is down"),
        (replace(PORT, bridge=None), IS, Kind.HOST_END, "is not on bridge pn-010101010101"),
        (replace(PORT, bridge="br0"), IS, Kind.HOST_END, "but on br0"),
        (None, IS, Kind.SEVERED, "is gone while its container runs"),
        (None, UNSEEN, Kind.DEAD, "its sandbox has ended"),
    ],
)
def test_what_is_wrong_with_an_endpoint(
    link: Link | None, existence: Existence, kind: Kind | None, text: str
) -> None:
    links = {} if link is None else {HOST_END: link}
    sandboxes = {sandbox_key(1): existence}
    found = list(compare_endpoints([JOINED], {NET.id: NET}, links, sandboxes))
    assert [each.kind for each in found] == ([kind] if kind else [])
    assert all(text in each.text for each in found)


@pytest.mark.parametrize(
    ("was_seen", "is_back", "is_dead"),
    [(False, True, False), (True, True, True), (True, False, False)],
    ids=["not yet come", "ended, and libnetwork cleaned up", "out of our sight"],
)
def test_a_sandbox_without_a_path(was_seen: bool, is_back: bool, is_dead: bool) -> None:  # noqa: FBT001
    joined = JOINED.configured() if was_seen else JOINED
    links = {HOST_END: PORT} | ({HOST_END.replace("pnh", "pnc"): PORT} if is_back else {})
    sandboxes = {sandbox_key(1): UNSEEN}
    found = [each.kind for each in compare_endpoints([joined], {NET.id: NET}, links, sandboxes)]
    assert found == [Kind.DEAD] * is_dead


def test_an_endpoint_that_has_not_joined_needs_nothing() -> None:
    assert not list(compare_endpoints([endpoint(1)], {NET.id: NET}, {}, {}))


def test_links_of_ours_that_belong_to_nothing() -> None:
    links = {
        NET.bridge_name: BRIDGE,
        HOST_END: PORT,
        "pnh999999999999": PORT,
        "pn-999999999999": Link("bridge", "", "", 1500, up=False, half_made=True),
        "docker0": replace(BRIDGE, alias=""),
    }
    found = find_leftovers([NET], [JOINED], links)
    assert [each.subject for each in found] == ["pn-999999999999", "pnh999999999999"]


def test_elements_are_compared_if_all_else_is_as_it_should_be() -> None:
    """Else they may not have been read."""
    wanted, found = frozenset({"a", "s, element 1"}), frozenset({"b"})
    assert [each.subject for each in compare_rules(wanted, found)] == ["a", "b"]
    found = frozenset({"a", "s, element 2"})
    assert [each.subject for each in compare_rules(wanted, found)] == [
        "s, element 1",
        "s, element 2",
    ]


def test_rules_are_compared_both_ways() -> None:
    found = list(compare_rules(frozenset({"a", "b"}), frozenset({"b", "c"})))
    assert [str(each) for each in found] == ["rules a: is missing", "rules c: is not ours"]


def test_ways_are_looked_up_for_a_container_of_each_network_and_family() -> None:
    """But not on another program's bridge, nor on one that is damaged: routes come with it."""
    net = network(1, pools=(pool("10.1.0.1/24"), pool("fd00:1::1/64")))
    name = net.bridge_name
    ends = [
        endpoint(1, 1, "10.1.0.2/24", "fd00:1::2/64").joined(sandbox_key(1)),
        endpoint(2, 1, "10.1.0.3/24", "fd00:1::3/64").joined(sandbox_key(2)),
    ]
    looked_up = {ip_address("10.1.0.2"): name, ip_address("fd00:1::2"): name}
    assert find_ends({net.id: net}, ends, ()) == looked_up
    assert find_ends({net.id: net}, ends, (name,)) == {}
    assert find_ends({net.id: replace(net, shared=True)}, ends, ()) == {}


@pytest.fixture
def world(store: Store) -> tuple[BridgeDriver, FakeKernel]:
    """Lend a driver with a container that publishes a port, and nothing wrong."""
    kernel = FakeKernel()
    driver = BridgeDriver(store, kernel)
    driver.restore()
    kernel.add_sandbox(sandbox_key(1))
    driver.create_network(network(1, f"{KEEPALIVE}=600"))
    driver.create_endpoint(new_endpoint())
    driver.join(new_join())
    driver.program_external_connectivity(network_id(1), endpoint_id(1), ports("8080:80"))
    assert driver.check() == ()
    return driver, kernel


def test_a_parameter_that_was_never_written_is_missing_until_repaired(
    world: tuple[BridgeDriver, FakeKernel], store: Store
) -> None:
    driver, kernel = world
    kernel.sandboxes[sandbox_key(1)][KEEPALIVE] = "7200"
    with store.transaction():
        store.delete_traces(sandbox_key(1), [KEEPALIVE])
    (found,) = driver.check()
    assert (found.kind, found.subject) == (Kind.PARAMETER, sandbox_key(1))
    assert found.text == f"{KEEPALIVE}=600 was not written"
    assert driver.repair_all() == ()
    assert kernel.sandboxes[sandbox_key(1)][KEEPALIVE] == "600"


def test_a_parameter_that_the_container_set_is_its_own(
    world: tuple[BridgeDriver, FakeKernel],
) -> None:
    driver, kernel = world
    kernel.sandboxes[sandbox_key(1)][KEEPALIVE] = "42"
    assert driver.check() == ()


def test_a_port_that_nobody_keeps_is_reserved_when_asked(
    world: tuple[BridgeDriver, FakeKernel],
) -> None:
    driver, kernel = world
    before = set(kernel.reserved)
    kernel.reserved.clear()
    found = driver.check()
    assert {each.kind for each in found} == {Kind.RESERVATION}
    assert (
        str(found[0]) == "reservation 0.0.0.0:8080/tcp: is not reserved for endpoint e1e1e1e1e1e1"
    )
    assert driver.repair_all() == ()
    assert kernel.reserved == before


def test_a_dead_endpoint_goes_with_its_ports(
    world: tuple[BridgeDriver, FakeKernel], store: Store
) -> None:
    driver, kernel = world
    kernel.die(sandbox_key(1))
    del kernel.links[host_end_name(endpoint_id(1))]
    assert [each.kind for each in driver.check()] == [Kind.DEAD]
    assert driver.repair_all() == ()
    assert not kernel.reserved
    assert driver.describe()[0][1] == ()


def test_what_nobody_can_mend_stays_said(world: tuple[BridgeDriver, FakeKernel]) -> None:
    driver, kernel = world
    del kernel.links[host_end_name(endpoint_id(1))]
    (left,) = driver.repair_all()
    assert left.kind is Kind.SEVERED


def test_a_port_of_a_dead_container_is_given_to_the_next(
    world: tuple[BridgeDriver, FakeKernel],
) -> None:
    driver, kernel = world
    del kernel.sandboxes[sandbox_key(1)]  # and libnetwork has brought the interface back
    kernel.add_sandbox(sandbox_key(2))
    driver.create_endpoint(new_endpoint(2))
    driver.join(new_join(2, 1, sandbox_key(2)))
    driver.program_external_connectivity(network_id(1), endpoint_id(2), ports("8080:80"))
    assert [each.id for each in driver.describe()[0][1]] == [endpoint_id(2)]
    assert driver.check() == ()


def test_a_port_of_a_living_container_is_not(world: tuple[BridgeDriver, FakeKernel]) -> None:
    driver, kernel = world
    kernel.add_sandbox(sandbox_key(2))
    driver.create_endpoint(new_endpoint(2))
    driver.join(new_join(2, 1, sandbox_key(2)))
    with pytest.raises(Conflict, match="port is in use by endpoint e1e1e1e1e1e1"):
        driver.program_external_connectivity(network_id(1), endpoint_id(2), ports("8080:80"))


CHAIN = BaseChain("inet", "guard", "forward", Hook.FORWARD, 0, {"forward": ()})
MARKED = (Load(1, Fact.MARK), Compare(1, (0x20000000).to_bytes(4, sys.byteorder), equal=True))
ACCEPTS = (*MARKED, Verdict(Fate.ACCEPT))
BRIDGE_INDEX = {NET.bridge_name: 7}


@pytest.mark.parametrize(
    ("passage", "kind", "subject", "helps"),
    [
        (
            Passage(closed=frozenset({"net.ipv4.ip_forward"})),
            Kind.FORWARDING,
            "net.ipv4.ip_forward",
            "sysctl -w net.ipv4.ip_forward=1",
        ),
        (
            Passage(closed=frozenset({f"net.ipv4.conf.{NET.bridge_name}.forwarding"})),
            Kind.FORWARDING,
            f"net.ipv4.conf.{NET.bridge_name}.forwarding",
            f"sysctl -w net.ipv4.conf.{NET.bridge_name}.forwarding=1",
        ),
        (
            Passage(ways={ip_address("10.1.0.2"): "eth0"}),
            Kind.ROUTE,
            "10.1.0.0/24",
            f"ip route replace 10.1.0.0/24 dev {NET.bridge_name}",
        ),
        (
            Passage(ways={ip_address("10.1.0.2"): None}),
            Kind.ROUTE,
            "10.1.0.0/24",
            f"ip route replace 10.1.0.0/24 dev {NET.bridge_name}",
        ),
        (
            Passage(filters=(replace(CHAIN, priority=FORWARD_PRIORITY + 1),), indexes=BRIDGE_INDEX),
            Kind.FILTER,
            "inet guard forward",
            "nft insert rule inet guard forward meta mark and 0x20000000 != 0 accept",
        ),
        *(
            (
                Passage(filters=(replace(CHAIN, priority=priority),), indexes=BRIDGE_INDEX),
                Kind.FILTER,
                "inet guard forward",
                f'nft insert rule inet guard forward oifname "{NET.bridge_name}" accept',
            )
            # At the same priority the older one comes first, and ours is made anew at every start.
            for priority in (FORWARD_PRIORITY - 10, FORWARD_PRIORITY)
        ),
        (Passage(closed=frozenset({"net.ipv6.conf.all.forwarding"})), None, "", ""),
        (Passage(filters=(replace(CHAIN, family="ip6"),), indexes=BRIDGE_INDEX), None, "", ""),
        (Passage(filters=(replace(CHAIN, hook=Hook.INPUT),), indexes=BRIDGE_INDEX), None, "", ""),
        (
            Passage(
                filters=(replace(CHAIN, chains={"forward": (ACCEPTS,)}),), indexes=BRIDGE_INDEX
            ),
            None,
            "",
            "",
        ),
        (
            Passage(
                filters=(replace(CHAIN, chains={"forward": ((Doubt(), Verdict(Fate.ACCEPT)),)}),),
                indexes=BRIDGE_INDEX,
            ),
            None,
            "",
            "",
        ),
    ],
)
def test_what_keeps_packets_from_passing_is_named_with_what_helps(
    world: tuple[BridgeDriver, FakeKernel],
    passage: Passage,
    kind: Kind | None,
    subject: str,
    helps: str,
) -> None:
    driver, kernel = world
    kernel.passage = passage
    found = driver.check()
    assert [(each.kind, each.subject) for each in found] == ([(kind, subject)] if kind else [])
    assert all(each.text.endswith(f"; {helps}") for each in found)
    driver.leave(network_id(1), endpoint_id(1))
    assert driver.check() == (), "without a container nothing has to pass"


def test_bridges_of_others_that_come_and_go_are_no_damage(
    world: tuple[BridgeDriver, FakeKernel],
) -> None:
    driver, kernel = world
    for number in range(9):  # more often than what is broken is repaired
        kernel.add_foreign(f"lxcbr{number}")
        (found,) = driver.check()
        assert found.kind is Kind.UPLINK
        assert driver.repair_all() == ()
    assert len(kernel.elements("uplinks")) == 9


def test_a_network_that_is_made_takes_note_of_them(world: tuple[BridgeDriver, FakeKernel]) -> None:
    """Its containers are to reach them at once, not when the watcher has looked."""
    driver, kernel = world
    kernel.add_foreign("lxcbr0")
    driver.create_network(network(2))
    assert driver.check() == ()
