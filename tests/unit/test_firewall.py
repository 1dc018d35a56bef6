"""What is rendered for nft, against golden files; PYNET_GOLDEN=write makes them anew."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from driver.firewall import ruleset
from driver.firewall.base import list_chains, read_base
from driver.firewall.elements import render_changes
from driver.model import (
    EndpointOptions,
    GatewayMode,
    Guard,
    GuardAlso,
    MacAddress,
    host_end_name,
)
from tests.samples import binding, endpoint, network, pool, sandbox_key
from tests.typical import ENDPOINTS, NETWORKS, TYPICAL, Typical, dual, modes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from driver.firewall.elements import Changes
    from driver.model import Endpoint, Network
    from tests.fakes import FakeKernel

GOLDEN = Path(__file__).parent.parent / "golden"


def added(each: Typical) -> Changes:
    """Return what a network and its endpoint add."""
    return (
        ruleset.add_network(each.network)
        + ruleset.add_endpoint(each.endpoint, each.network)
        + ruleset.add_bindings(each.endpoint.id, each.endpoint.bindings)
    )


def taken(each: Typical) -> Changes:
    """Return what takes it all out again."""
    return (
        ruleset.delete_bindings(each.endpoint.bindings)
        + ruleset.delete_endpoint(each.endpoint, each.network)
        + ruleset.delete_network(each.network)
    )


FILES = {
    "base": ruleset.render_ruleset([], [], ["br-lan"]),
    "gone": ruleset.render_no_ruleset(),
    **{name: render_changes(added(each)) for name, each in TYPICAL.items()},
}
GOLDEN_FILES = FILES.keys() - {"base"}  # which is base.nft, as it is
each_typical = pytest.mark.parametrize("each", TYPICAL.values(), ids=TYPICAL)


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_the_text_is_the_golden_file(name: str) -> None:
    path = GOLDEN / f"{name}.nft"
    if os.environ.get("PYNET_GOLDEN") == "write":
        path.write_text(FILES[name])
    assert FILES[name] == path.read_text()


def test_there_is_no_other_golden_file() -> None:
    assert {path.stem for path in GOLDEN.glob("*.nft")} == GOLDEN_FILES


@each_typical
def test_what_comes_goes_element_by_element(kernel: FakeKernel, each: Typical) -> None:
    kernel.apply_rules(FILES["base"])
    before = kernel.state()
    kernel.change_elements(added(each))
    assert kernel.state() != before
    kernel.change_elements(taken(each))
    assert kernel.state() == before


def test_the_whole_is_the_sum_of_its_parts(kernel: FakeKernel) -> None:
    kernel.apply_rules(ruleset.render_ruleset(NETWORKS, ENDPOINTS, ["br-lan"]))
    whole = kernel.state()
    kernel.apply_rules(FILES["base"])
    for each in TYPICAL.values():
        kernel.change_elements(added(each))
    assert kernel.state() == whole


def test_an_endpoint_that_has_not_joined_has_no_place_in_the_rules(kernel: FakeKernel) -> None:
    bare = replace(TYPICAL["icc_off"].endpoint, attachment=None, bindings=())
    kernel.apply_rules(ruleset.render_ruleset([TYPICAL["icc_off"].network], [bare], []))
    assert kernel.elements("closed", "bridge pynet") == {}


def constant(text: str) -> str:
    """Return everything but the elements."""
    return "".join(line for line in text.splitlines() if not line.startswith("add element"))


def many_ports(number: int) -> Endpoint:
    bindings = tuple(binding(f"0.0.0.0:{port}") for port in range(1, number + 1))
    return endpoint().joined(sandbox_key(1)).published(bindings)


@pytest.mark.parametrize(
    ("networks", "endpoints"),
    [
        pytest.param([network(1)], [many_ports(1000)], id="1,000 ports"),
        pytest.param([network(number) for number in range(1, 101)], [], id="100 networks"),
        pytest.param(NETWORKS, ENDPOINTS, id="all kinds"),
    ],
)
def test_chains_and_rules_are_as_many_as_for_none(
    networks: Iterable[Network], endpoints: Iterable[Endpoint]
) -> None:
    text = ruleset.render_ruleset(networks, endpoints, ["br-lan"])
    assert constant(text) == constant(FILES["base"])


def test_every_rule_counts_what_it_applies_to() -> None:
    rules = [rule for each in list_chains() for rule in each.rules]
    assert len(rules) > 100
    assert [rule for rule in rules if len(re.findall(r"\bcounter\b", rule)) != 1] == []


def test_every_element_names_its_owner() -> None:
    text = ruleset.render_ruleset(NETWORKS, ENDPOINTS, ["br-lan"])
    elements = [line for line in text.splitlines() if line.startswith("add element")]
    pattern = r'.* comment "(network [0-9a-f]{12}|endpoint [0-9a-f]{12}|uplink)"( : .*)? }'
    assert [line for line in elements if not re.fullmatch(pattern, line)] == []
    assert len(elements) == len(set(elements))


def published(kernel: FakeKernel, *hosts: str | None) -> set[tuple[str, str]]:
    """Return set and key of what publishing on these places adds."""
    kernel.apply_rules(ruleset.render_ruleset([], [], []))
    container = "[fd00:1::2]:80" if any("[" in (host or "") for host in hosts) else "10.1.0.2:80"
    bindings = [binding(host, container) for host in hosts]
    kernel.change_elements(ruleset.add_bindings(endpoint().id, bindings))
    return set(kernel.tables["inet pynet"].elements)


OPEN4, OPEN6 = ("open4", "10.1.0.2 . tcp . 80"), ("open6", "fd00:1::2 . tcp . 80")
EVERYWHERE4, EVERYWHERE6 = ("everywhere4", "tcp . 8080"), ("everywhere6", "tcp . 8080")
RELAYED6 = ("relayed6", "tcp . 8080")


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (["0.0.0.0:8080"], {OPEN4, EVERYWHERE4}),
        (["127.0.0.1:8080"], {OPEN4, ("published4", "127.0.0.1 . tcp . 8080")}),
        (["[::]:8080"], {OPEN6, EVERYWHERE6, RELAYED6}),
        (["[::1]:8080"], {OPEN6, RELAYED6}),
        (["[fd00::9]:8080"], {OPEN6, ("published6", "fd00::9 . tcp . 8080"), RELAYED6}),
        ([None], {OPEN4}),
        (["0.0.0.0:8080", "0.0.0.0:8081"], {OPEN4, EVERYWHERE4, ("everywhere4", "tcp . 8081")}),
    ],
    ids=str,
)
def test_where_a_port_is_published(
    kernel: FakeKernel, hosts: list[str | None], expected: set[tuple[str, str]]
) -> None:
    assert published(kernel, *hosts) == expected


ROUTED, UNPROTECTED, ISOLATED = map(
    modes, (GatewayMode.ROUTED, GatewayMode.NAT_UNPROTECTED, GatewayMode.ISOLATED)
)


def names_of(each: Network) -> set[str]:
    """Return the sets to which a network adds elements."""
    return {change.set.name for change in ruleset.add_network(each)}


BRIDGE = {"bridges", "same_bridge", "arrivals", "leaving", "entering"}
ALWAYS = BRIDGE | {"home4", "subnets4"}
SOURCE = IPv4Address("192.0.2.7")


@pytest.mark.parametrize(
    ("each", "expected"),
    [
        (network(1), ALWAYS | {"masquerade4"}),
        (network(1, masquerade=False), ALWAYS),
        (network(1, internal=True), ALWAYS | {"internal"}),
        (network(1, icc=False), (ALWAYS - {"same_bridge"}) | {"no_icc", "masquerade4"}),
        (network(1, host_ipv4=SOURCE), ALWAYS | {"source4"}),
        (network(1, host_ipv4=SOURCE, masquerade=False), ALWAYS),
        (network(1, **ROUTED), ALWAYS | {"routed"}),
        (network(1, host_ipv4=SOURCE, **ROUTED), ALWAYS | {"routed"}),
        (
            network(1, **UNPROTECTED),
            ALWAYS | {"masquerade4", "unprotected"},
        ),
        (
            network(1, internal=True, **ISOLATED),
            ALWAYS | {"internal"},
        ),
        (
            dual(1, gateway_mode_ipv6=GatewayMode.ROUTED).network,
            ALWAYS | {"home6", "subnets6", "masquerade4", "routed"},
        ),
        (
            network(1, pools=(pool("fd00::1/64"),)),
            BRIDGE | {"home6", "subnets6", "masquerade6"},
        ),
        (network(1, pools=(pool("0.0.0.0/0"),)), BRIDGE),
        (replace(network(1), shared=True), BRIDGE | {"home4", "masquerade4"}),
    ],
)
def test_what_a_network_is_in(each: Network, expected: set[str]) -> None:
    assert names_of(each) == expected


def test_networks_without_addresses_do_not_meet(kernel: FakeKernel) -> None:
    null = [network(number, pools=(pool("0.0.0.0/0"),)) for number in (1, 2)]
    kernel.apply_rules(ruleset.render_ruleset([*null, network(3)], [], []))
    kernel.change_elements(ruleset.delete_network(null[0]))


def joins(each: Typical, **options: Any) -> dict[str, set[str]]:
    """Return what an endpoint with these options adds to each set: the keys, or their values."""
    asking = replace(each.endpoint, options=EndpointOptions(**options))
    found: dict[str, set[str]] = {}
    line = re.compile(
        rf'add element (\w+ pynet \w+) {{ "{host_end_name(asking.id)}"(?: \. )?'
        r'(.*) comment "[^"]*"(?: : (.*))? }'
    )
    text = render_changes(ruleset.add_endpoint(asking, each.network))
    for added_line in text.splitlines():
        if match := line.fullmatch(added_line):
            found.setdefault(match[1].rpartition(" ")[2], set()).add(match[3] or match[2])
    return found


def test_closed_ports_are_host_ends() -> None:
    assert "closed" in joins(TYPICAL["icc_off"])
    assert "closed" not in joins(TYPICAL["nat"])


MAC, VRRP = "02:42:0a:01:00:02", "00:00:5e:00:01:07"
LINK_LOCAL = "fe80::42:aff:fe01:2"


def test_an_endpoint_sends_with_its_own_addresses_and_no_other() -> None:
    assert joins(TYPICAL["nat"], guard=Guard.ADDRESS) == {
        "guards": {"goto address"},
        "macs": {MAC},
        "own4": {f"{MAC} . 10.1.0.2"},
        "own6": {f"{MAC} . fd00:1::2", f"{MAC} . {LINK_LOCAL}"},
        "targets6": {
            "0xfd000001000000000000000000000002",
            "0xfe8000000000000000420afffe010002",
        },
    }


def test_what_is_allowed_besides_is_allowed_with_each_mac() -> None:
    also = GuardAlso((IPv4Address("10.1.0.9"),), (), (MacAddress(VRRP),))
    added_sets = joins(TYPICAL["nat"], guard=Guard.ADDRESS, guard_also=also)
    assert added_sets["macs"] == {MAC, VRRP}
    assert added_sets["own4"] == {
        f"{mac} . {ip}" for mac in (MAC, VRRP) for ip in ("10.1.0.2", "10.1.0.9")
    }
    by_network = joins(TYPICAL["nat"], guard_also=also)
    assert by_network.keys() == {"guards", "own4", "own6"}
    assert by_network["own4"] == added_sets["own4"]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("nat", {}, "goto network"),
        ("nat", {"guard": Guard.OFF}, "goto off"),
        ("nat", {"connections": 9}, "goto address"),
        ("unguarded", {}, "goto off"),
        ("unguarded", {"guard": Guard.NETWORK}, "goto network"),
        ("icc_off", {}, "goto address"),
        ("internal", {}, "goto address"),
        ("internal", {"guard": Guard.OFF}, "goto off"),
    ],
)
def test_the_guard_is_the_endpoints_or_the_networks(
    name: str, options: dict[str, Any], expected: str
) -> None:
    assert joins(TYPICAL[name], **options)["guards"] == {expected}


@pytest.mark.parametrize(("own", "limit"), [({}, 1000), ({"connections": 5}, 5)])
def test_connections_are_counted_by_address(own: dict[str, Any], limit: int) -> None:
    each = TYPICAL["guarded"]
    asking = replace(each.endpoint, options=EndpointOptions(**own))
    text = render_changes(ruleset.add_endpoint(asking, each.network))
    assert f"connections4 {{ 10.9.0.2 ct count over {limit} comment" in text
    assert f"connections6 {{ fd00:9::2 ct count over {limit} comment" in text


def test_the_marks_are_a_bit_each() -> None:
    found = dict(re.findall(r"^redefine (\w+) = (0x[0-9a-f]+)", read_base(), re.MULTILINE))
    values = {name: int(value, 16) for name, value in found.items()}
    to_check, others = values.pop("TO_CHECK"), values.pop("ALL_BUT_THOSE")
    assert values["ACCEPTED"] == ruleset.ACCEPTED_MARK
    assert to_check == values["CHECKED"] | values["UNGUARDED"] == ~others & 0xFFFFFFFF
    assert [mark.bit_count() for mark in values.values()] == [1] * 4
    assert len(set(values.values())) == 4
    foreign = 0x4000 | 0x8000 | 0xFF0000
    assert not sum(values.values()) & foreign
