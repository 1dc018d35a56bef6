"""Networks and endpoints as values: ids, addresses, and how they may change."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driver import model
from driver.errors import Conflict, InvalidRequest
from driver.model import Endpoint, GatewayMode, MacAddress, Pool, Publish
from tests.samples import endpoint_id, network, network_id, pool, sandbox_key

if TYPE_CHECKING:
    from collections.abc import Callable

SPACE = "LocalDefault"
MAC = MacAddress("02:42:0a:01:00:02")


def endpoint(number: int = 1, net: int = 1, *addresses: str) -> Endpoint:
    given = {f"ipv{ip_interface(each).version}": ip_interface(each) for each in addresses}
    return Endpoint(
        endpoint_id(number),
        network_id(net),
        ipv4=given.get("ipv4"),  # type: ignore[arg-type]
        ipv6=given.get("ipv6"),  # type: ignore[arg-type]
        mac=MAC,
    )


@pytest.mark.parametrize("text", ["a" * 12, "0123456789ab" * 5, "f" * 64, "z8" * 12 + "q"])
@pytest.mark.parametrize("parse", [model.parse_network_id, model.parse_endpoint_id])
def test_ids_of_the_engine_and_of_swarm_pass(parse: Callable[[str], str], text: str) -> None:
    assert parse(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a" * 11,
        "a" * 65,
        "A" * 64,
        "../" * 6,
        "a" * 12 + "/",
        "a.b" * 6,
        "é" * 20,
        "a" * 20 + "\n",
    ],
)
@pytest.mark.parametrize("parse", [model.parse_network_id, model.parse_endpoint_id])
def test_what_is_no_id_is_refused(parse: Callable[[str], str], text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"is no (network|endpoint) id"):
        parse(text)


@pytest.mark.parametrize("text", ["02:42:0a:01:00:02", "AA:bb:CC:dd:EE:ff", "00:00:00:00:00:00"])
def test_a_mac_is_read_in_lower_case(text: str) -> None:
    assert model.parse_mac(text) == text.lower()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "02:42",
        "02-42-0a-01-00-02",
        "0242.0a01.0002",
        "02:42:0a:01:00:02\n",
        "gg" * 6,
        "01:00:5e:00:00:01",
        "ff:ff:ff:ff:ff:ff",
    ],
)
def test_what_is_no_unicast_mac_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="MAC address"):
        model.parse_mac(text)


@pytest.mark.parametrize(
    ("address", "mac"),
    [
        ("10.1.0.2", "02:42:0a:01:00:02"),
        ("192.168.255.1", "02:42:c0:a8:ff:01"),
        ("fd00:1::2", "02:72:84:7a:69:37"),
    ],
)
def test_the_same_address_has_the_same_mac_for_ever(address: str, mac: str) -> None:
    assert model.derive_mac(ip_address(address)) == mac


@settings(max_examples=30)
@given(st.ip_addresses(), st.ip_addresses())
def test_macs_are_local_unicast_and_differ(one: model.IPAddress, other: model.IPAddress) -> None:
    first, second = model.derive_mac(one), model.derive_mac(other)
    assert model.parse_mac(first) == first
    assert (first == second) == (one == other)


@pytest.mark.parametrize(
    ("mine", "theirs", "reason"),
    [
        pytest.param({}, {}, None, id="nothing in common"),
        pytest.param({"bridge_name": "br0"}, {"bridge_name": "br0"}, "bridge br0", id="a bridge"),
        pytest.param({"pools": (pool("10.2.0.9/25"),)}, {}, "overlaps", id="a subnet in a subnet"),
        pytest.param(
            {"pools": (pool("10.7.0.1/24"), pool("10.0.0.1/8"))}, {}, "overlaps", id="around"
        ),
        pytest.param({"pools": (pool("0.0.0.0/0"),)}, {}, None, id="the null address manager"),
        pytest.param({"pools": (pool("fd00::1/64"),)}, {}, None, id="another family"),
    ],
)
def test_networks_clash_over_bridges_and_subnets(
    mine: dict[str, object], theirs: dict[str, object], reason: str | None
) -> None:
    one, other = network(1, **mine), network(2, **theirs)  # type: ignore[arg-type]
    for said in (one.clash(other), other.clash(one)):
        assert (said is None) == (reason is None)
        assert reason is None or reason in str(said)


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        (pool("10.1.0.1/24", SPACE), pool("10.1.0.1/24", SPACE), True),
        (pool("10.1.0.1/24", SPACE), pool("10.1.0.129/25", SPACE), True),
        (pool("10.1.0.1/24", SPACE), pool("10.1.0.1/24", "GlobalDefault"), False),
        (pool("10.1.0.1/24"), pool("10.1.0.1/24"), False),
        (pool("10.1.0.1/24", SPACE), pool("10.2.0.1/24", SPACE), False),
    ],
)
def test_a_network_supersedes_whoever_had_its_addresses(
    mine: Pool, theirs: Pool, *, expected: bool
) -> None:
    assert network(1, pools=(mine,)).supersedes(network(2, pools=(theirs,))) is expected


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (endpoint(2, 1, "10.1.0.2/24"), True),
        (endpoint(2, 1, "10.1.0.9/24", "fd00::2/64"), True),
        (endpoint(2, 1, "10.1.0.9/24", "fd00::9/64"), False),
        (endpoint(2, 2, "10.1.0.2/24"), False),
        (endpoint(1, 1, "10.1.0.2/24"), False),
        (endpoint(2, 1), False),
    ],
)
def test_an_endpoint_shares_an_address_of_its_network(other: Endpoint, *, expected: bool) -> None:
    assert endpoint(1, 1, "10.1.0.2/24", "fd00::2/64").shares_address(other) is expected


SEVERAL = (
    pool("10.1.0.1/24"),
    pool("10.2.0.254/24"),
    replace(pool("10.3.0.1/24"), gateway=None),
    pool("fd00::1/64"),
)


@pytest.mark.parametrize(
    ("address", "gateway"),
    [
        ("10.1.0.7/24", "10.1.0.1"),
        ("10.2.0.7/24", "10.2.0.254"),
        ("10.3.0.7/24", None),
        ("10.4.0.7/24", None),
        ("fd00::7/64", "fd00::1"),
    ],
)
def test_the_gateway_is_that_of_the_addresss_pool(address: str, gateway: str | None) -> None:
    expected = gateway and ip_address(gateway)
    assert network(1, pools=SEVERAL).gateway_for(ip_interface(address)) == expected
    assert network(1, pools=SEVERAL, internal=True).gateway_for(ip_interface(address)) is None


def test_no_address_has_no_gateway() -> None:
    assert network(1).gateway_for(None) is None


def test_the_gateway_may_be_another_host_or_dockers() -> None:
    elsewhere = replace(pool("10.1.0.1/24"), default_gateway=ip_address("10.1.0.9"))
    address = ip_interface("10.1.0.7/24")
    assert network(1, pools=(elsewhere,)).gateway_for(address) == ip_address("10.1.0.9")
    docker = network(1, pools=(elsewhere,), publish=Publish.DOCKER)
    assert docker.gateway_for(address) is None


DUAL = (pool("10.1.0.1/24"), pool("fd00::1/64"))
MODE = GatewayMode


@pytest.mark.parametrize(
    ("options", "on_bridge", "publishes", "forwards"),
    [
        ({}, "46", "46", "46"),
        ({"internal": True}, "46", "", ""),
        ({"inhibit_ipv4": True}, "6", "46", "46"),
        ({"internal": True, "gateway_mode_ipv4": MODE.ISOLATED}, "6", "", ""),
        ({"internal": True, "gateway_mode_ipv6": MODE.ISOLATED}, "4", "", ""),
        ({"gateway_mode_ipv4": MODE.ROUTED}, "46", "6", "46"),
        ({"gateway_mode_ipv6": MODE.NAT_UNPROTECTED}, "46", "46", "46"),
        ({"publish": Publish.DOCKER}, "46", "", "46"),
    ],
)
def test_what_a_network_has_and_does_by_family(
    options: dict[str, Any], on_bridge: str, publishes: str, forwards: str
) -> None:
    net = network(1, pools=DUAL, **options)
    assert "".join(str(each.version) for each in net.bridge.addresses) == on_bridge
    assert "".join(str(version) for version in (4, 6) if net.publishes(version)) == publishes
    assert "".join(str(version) for version in (4, 6) if net.forwards(version)) == forwards
    assert net.bridge.routes_loopback is ("4" in publishes)


def test_a_family_that_a_network_has_not_is_not_served() -> None:
    net = network(1)
    assert [net.has_family(6), net.publishes(6), net.forwards(6)] == [False] * 3


def test_a_bridge_has_every_gateway_and_a_mac_that_stays() -> None:
    bridge = network(1, pools=SEVERAL, mtu=9000).bridge
    assert [str(each) for each in bridge.addresses] == [
        "10.1.0.1/24",
        "10.2.0.254/24",
        "fd00::1/64",
    ]
    assert (bridge.name, bridge.mac, bridge.mtu) == ("pn-010101010101", "02:42:0a:01:00:01", 9000)
    assert bridge.must_be_ours
    named = network(1, bridge_name="br0")
    assert named.bridge.required_alias == named.bridge.alias
    assert replace(named, shared=True).bridge.required_alias is None


def test_a_bridge_without_a_gateway_has_a_mac_all_the_same() -> None:
    bare = replace(pool("10.3.0.1/24"), gateway=None)
    mac = network(1, pools=(bare,)).bridge.mac
    assert mac == network(1, pools=(bare,)).bridge.mac != network(2, pools=(bare,)).bridge.mac


@pytest.mark.parametrize("subnet", ["10.1.0.0/30", "10.1.0.0/31", "10.1.0.1/32", "10.1.0.0/29"])
@pytest.mark.parametrize("position", [None, 0, 1, -1])
def test_a_bridge_has_no_containers_mac(subnet: str, position: int | None) -> None:
    """Whichever address is its gateway, and where none is."""
    for text in (subnet, f"fd00:1::/{int(subnet.rpartition('/')[2]) + 96}"):
        whole = ip_network(text)
        gateway = None if position is None else whole[position % whole.num_addresses]
        interface = None if gateway is None else ip_interface(f"{gateway}/{whole.prefixlen}")
        bridge = network(1, pools=(Pool(whole, interface),)).bridge
        others = {model.derive_mac(each) for each in whole if each != gateway}
        assert bridge.mac not in others


def test_names_fit_and_say_whose_they_are() -> None:
    veth = model.veth_of(endpoint(), network(1))
    names = (network(1).bridge_name, veth.host_end, veth.sandbox_end)
    assert all(len(name) == model.IFNAME_LENGTH for name in names)
    assert model.is_our_alias(veth.alias)
    assert model.is_our_alias(network(1).bridge.alias)
    assert not model.is_our_alias("pynetwork")


def test_joining_again_is_joining_once() -> None:
    joined = endpoint().joined(sandbox_key(1)).configured()
    assert joined.joined(sandbox_key(1)) == joined
    with pytest.raises(Conflict, match="has not left"):
        joined.joined(sandbox_key(2))
    assert joined.left().left() == endpoint() == joined.definition()
    assert joined.left().joined(sandbox_key(2)).attachment is not None


def test_what_has_not_joined_is_not_configured() -> None:
    assert endpoint().configured() == endpoint()
