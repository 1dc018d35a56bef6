"""The wire: every call as the engines send it (protocol.md §3), and every answer."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from typing import TYPE_CHECKING, Any

import pytest

from driver.driver import NewPorts
from driver.errors import InvalidRequest
from driver.model import Endpoint, JoinInfo, MacAddress, SandboxKey
from driver.options import ENDPOINT_SYSCTLS
from plugin.api import protocol
from tests.samples import (
    KEEPALIVE,
    RP_FILTER,
    endpoint_id,
    network,
    network_id,
    new_endpoint,
    new_join,
    pool,
    ports,
    sandbox_key,
    sysctl,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NETWORK: dict[str, Any] = {
    "NetworkID": network_id(1),
    "Options": {
        "com.docker.network.enable_ipv4": True,
        "com.docker.network.enable_ipv6": False,
        "com.docker.network.internal": True,
        "com.docker.network.generic": {KEEPALIVE: "600", "com.docker.network.driver.mtu": "9000"},
    },
    "IPv4Data": [
        {
            "AddressSpace": "LocalDefault",
            "Pool": "10.91.0.0/24",
            "Gateway": "10.91.0.1/24",
            "AuxAddresses": {"vt": "10.91.0.250/24"},
        }
    ],
    "IPv6Data": [],
}
ENDPOINT: dict[str, Any] = {
    "NetworkID": network_id(1),
    "EndpointID": endpoint_id(1),
    "Interface": {"Address": "10.91.0.129/24", "AddressIPv6": "", "MacAddress": ""},
    "Options": {
        "com.docker.network.endpoint.exposedports": [{"Proto": 6, "Port": 80}],
        "com.docker.network.portmap": [
            {"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080}
        ],
        "com.docker.network.endpoint.dnsservers": ["1.1.1.1"],
        "com.docker.network.endpoint.macaddress": "AhEiM0RV",
        "foo.bar": "baz",
    },
}
IDS = {"NetworkID": network_id(1), "EndpointID": endpoint_id(1)}
JOIN = IDS | {
    "SandboxKey": "/var/run/docker/netns/1031dcd9b150",
    "Options": {"com.docker.network.portmap": []},
}
DISCOVERY = {
    "DiscoveryType": 1,
    "DiscoveryData": {"Address": "10.0.0.1", "BindAddress": "10.0.0.1", "Self": True},
}
GENERIC = "com.docker.network.generic"


def decode(decoder: Callable[[Mapping[str, Any]], Any], call: object) -> Any:
    return decoder(protocol.parse_body(json.dumps(call).encode()))


def with_pool(**changes: object) -> dict[str, Any]:
    return NETWORK | {"IPv4Data": [NETWORK["IPv4Data"][0] | changes]}


def with_interface(**changes: object) -> dict[str, Any]:
    return ENDPOINT | {"Interface": ENDPOINT["Interface"] | changes}


def with_option(key: str, value: object) -> dict[str, Any]:
    return NETWORK | {"Options": NETWORK["Options"] | {key: value}}


def test_create_network_is_decoded() -> None:
    assert decode(protocol.decode_create_network, NETWORK) == network(
        1,
        f"{KEEPALIVE}=600",
        pools=(pool("10.91.0.1/24", "LocalDefault"),),
        mtu=9000,
        internal=True,
    )


@pytest.mark.parametrize(
    ("call", "pools"),
    [
        pytest.param(with_pool(Gateway=""), (None,), id="no gateway"),
        pytest.param(with_pool(Gateway=None), (None,), id="null gateway"),
        pytest.param(
            NETWORK
            | {"IPv4Data": None, "IPv6Data": [{"Pool": "fd00::/64", "Gateway": "fd00::1/64"}]},
            ("fd00::1/64",),
            id="IPv6 only",
        ),
        pytest.param(
            {"NetworkID": network_id(1), "IPv4Data": [{"Pool": "10.1.0.0/24"}]},
            (None,),
            id="nothing but a pool",
        ),
        pytest.param(NETWORK | {"Options": None}, ("10.91.0.1/24",), id="null options"),
        pytest.param(with_option(GENERIC, None), ("10.91.0.1/24",), id="null generic"),
    ],
)
def test_what_an_engine_leaves_out_is_none(call: object, pools: tuple[str | None, ...]) -> None:
    if isinstance(call, dict) and not call.get("IPv4Data"):
        call = {key: value for key, value in call.items() if key != "Options"}
    decoded = decode(protocol.decode_create_network, call)
    assert tuple(each.gateway and str(each.gateway) for each in decoded.pools) == pools


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({}, "NetworkID"),
        (NETWORK | {"NetworkID": None}, "NetworkID"),
        (NETWORK | {"NetworkID": 7}, "NetworkID"),
        (NETWORK | {"NetworkID": "../../etc"}, "is no network id"),
        (NETWORK | {"NetworkID": ""}, "is no network id"),
        (NETWORK | {"IPv4Data": []}, "neither an IPv4 nor an IPv6 pool"),
        (NETWORK | {"IPv4Data": {}}, "IPv4Data"),
        (NETWORK | {"IPv4Data": [None]}, "IPv4Data"),
        (NETWORK | {"Options": []}, "Options"),
        (with_pool(Pool=None), "Pool"),
        (with_pool(Pool=""), "pool ''"),
        (with_pool(Pool="10.91.0.1/24"), "host bits set"),
        (with_pool(Pool="fd00::/64", Gateway=""), "expected IPv4"),
        (with_pool(Gateway="10.91.0.1"), "prefix length"),
        (with_pool(Gateway="10.92.0.1/24"), "is not in the pool"),
        (with_pool(Gateway="fd00::1/64"), "expected IPv4"),
        (with_pool(Gateway="nonsense/24"), "address 'nonsense/24'"),
        (with_option(GENERIC, "text"), "expected an object"),
        (with_option(GENERIC, {"com.docker.network.driver.mtu": 9000}), "expected a string"),
        (with_option(GENERIC, {"no.such": "1"}), "unknown option"),
        (with_option("com.docker.network.internal", "yes"), "expected true or false"),
        ([], "malformed"),
        ("text", "malformed"),
        (None, "malformed"),
    ],
)
def test_a_malformed_create_network_is_refused(call: object, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        decode(protocol.decode_create_network, call)


def test_create_endpoint_is_decoded() -> None:
    expected = replace(new_endpoint(1), ipv4=IPv4Interface("10.91.0.129/24"))
    assert decode(protocol.decode_create_endpoint, ENDPOINT) == expected


@pytest.mark.parametrize(
    ("call", "changes"),
    [
        (with_interface(MacAddress="02:11:22:33:44:55"), {"mac": "02:11:22:33:44:55"}),
        (with_interface(AddressIPv6="fd00::2/64"), {"ipv6": IPv6Interface("fd00::2/64")}),
        (with_interface(Address=""), {"ipv4": None}),
        (with_interface(Address=None, AddressIPv6=None, MacAddress=None), {"ipv4": None}),
        (ENDPOINT | {"Interface": None}, {"ipv4": None}),
        (IDS, {"ipv4": None}),
        (ENDPOINT | {"Options": None}, {}),
        (ENDPOINT | {"Options": {KEEPALIVE: "5"}}, {"sysctls": (sysctl(f"{KEEPALIVE}=5"),)}),
        (
            ENDPOINT | {"Options": {ENDPOINT_SYSCTLS: f"{RP_FILTER}=0"}},
            {"engine_keys": frozenset({RP_FILTER})},
        ),
    ],
)
def test_an_endpoint_may_have_more_or_less(call: object, changes: dict[str, Any]) -> None:
    plain = decode(protocol.decode_create_endpoint, ENDPOINT)
    assert decode(protocol.decode_create_endpoint, call) == replace(plain, **changes)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"NetworkID": network_id(1)}, "EndpointID"),
        (ENDPOINT | {"EndpointID": "a/b" * 8}, "is no endpoint id"),
        (with_interface(Address="10.91.0.129"), "prefix length"),
        (with_interface(Address="fd00::2/64"), "expected IPv4"),
        (with_interface(AddressIPv6="10.0.0.1/8"), "expected IPv6"),
        (with_interface(AddressIPv6="fe80::1%eth0/64"), "zone"),
        (with_interface(Address=7), "Interface.Address"),
        (with_interface(MacAddress="nonsense"), "is no MAC address"),
        (with_interface(MacAddress="01:00:5e:00:00:01"), "multicast"),
        (ENDPOINT | {"Interface": []}, "Interface"),
        (ENDPOINT | {"Options": {"net.ipv4.x/y": "1"}}, "is no kernel parameter"),
    ],
)
def test_a_malformed_create_endpoint_is_refused(call: object, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        decode(protocol.decode_create_endpoint, call)


def test_join_is_decoded() -> None:
    sandbox = SandboxKey("/var/run/docker/netns/1031dcd9b150")
    assert decode(protocol.decode_join, JOIN) == new_join(1, 1, sandbox)
    assert decode(protocol.decode_join, JOIN | with_ports(WEB)).has_ports


@pytest.mark.parametrize(
    "key", ["", "relative", "/a/../b", "/..", "/a\nb", "/a\0b", "/" + "x" * 4095, None, 7]
)
def test_a_sandbox_is_an_absolute_path(key: object) -> None:
    with pytest.raises(InvalidRequest, match="SandboxKey"):
        decode(protocol.decode_join, JOIN | {"SandboxKey": key})


def test_the_other_calls_are_decoded() -> None:
    assert decode(protocol.decode_network_call, IDS) == network_id(1)
    assert decode(protocol.decode_endpoint_call, IDS) == (network_id(1), endpoint_id(1))
    decode(protocol.decode_discovery, DISCOVERY)


@pytest.mark.parametrize(
    "call", [{}, {"DiscoveryType": "x"}, {"DiscoveryType": 1, "DiscoveryData": 1}]
)
def test_a_malformed_discovery_is_refused(call: object) -> None:
    with pytest.raises(InvalidRequest):
        decode(protocol.decode_discovery, call)


@pytest.mark.parametrize("mac", [None, "02:42:0a:01:00:02"])
def test_a_mac_that_was_given_is_not_answered(mac: str | None) -> None:
    new = new_endpoint(mac=mac)
    chosen = MacAddress("02:42:0a:01:00:02")
    endpoint = Endpoint(new.id, new.network_id, new.ipv4, new.ipv6, chosen)
    expected = {"Interface": {"MacAddress": chosen}} if mac is None else {}
    assert protocol.encode_create_endpoint(new, endpoint) == expected


@pytest.mark.parametrize(
    ("gateways", "expected"),
    [
        ((None, None), ("", "")),
        ((ip_address("10.1.0.1"), None), ("10.1.0.1", "")),
        ((None, ip_address("fd00::1")), ("", "fd00::1")),
    ],
)
def test_a_join_is_answered(gateways: tuple[Any, Any], expected: tuple[str, str]) -> None:
    answer = protocol.encode_join(JoinInfo("pnc123", "eth", *gateways))
    assert answer == {
        "InterfaceName": {"SrcName": "pnc123", "DstPrefix": "eth"},
        "Gateway": expected[0],
        "GatewayIPv6": expected[1],
    }


def test_a_name_that_was_asked_for_is_answered() -> None:
    answer = protocol.encode_join(JoinInfo("pnc123", "eth", None, None, "front0"))
    names = {"SrcName": "pnc123", "DstPrefix": "eth", "DstName": "front0"}
    assert answer["InterfaceName"] == names
    inside = protocol.encode_join(JoinInfo(None, "eth", None, None, "front0"))
    assert "InterfaceName" not in inside


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 9999 + b"1"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="malformed" if body else "no body"):
        protocol.parse_body(body)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({}, ""),
        ({"NetworkID": 7, "EndpointID": None}, ""),
        ({"NetworkID": network_id(1)}, " network=010101010101"),
        (IDS, " network=010101010101 endpoint=e1e1e1e1e1e1"),
        ({"NetworkID": "a\nb"}, " network=a\\nb"),
    ],
)
def test_a_subject_is_told_as_far_as_it_can_be(call: dict[str, Any], words: str) -> None:
    assert protocol.describe_subject(call) == words


def test_a_sandbox_key_is_what_was_sent() -> None:
    join = decode(protocol.decode_join, JOIN | {"SandboxKey": sandbox_key(1)})
    assert join.sandbox == sandbox_key(1)


def test_an_interface_that_is_there_already_is_not_answered() -> None:
    answer = protocol.encode_join(JoinInfo(None, "eth", ip_address("10.1.0.1"), None))
    assert answer == {"Gateway": "10.1.0.1", "GatewayIPv6": ""}


# As protocol.md §3 has it from real engines; HostPortEnd comes with every entry.
WEB = {"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080}
DNS = {"Proto": 17, "Port": 53, "HostIP": "127.0.0.1", "HostPort": 9000, "HostPortEnd": 9005}


def with_ports(*entries: object) -> dict[str, Any]:
    return IDS | {"Options": {protocol.PORT_MAP: list(entries)}}


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (with_ports(WEB), ["8080:80"]),
        (with_ports(WEB, DNS), ["8080:80", "127.0.0.1:9000-9005:53/udp"]),
        (with_ports({"Proto": 132, "Port": 7}), ["7/sctp"]),
        (with_ports(WEB | {"HostPort": 0, "HostPortEnd": 0}), ["80"]),
        (with_ports(WEB | {"HostPortEnd": 0}), ["8080:80"]),
        (with_ports(WEB | {"HostPort": 0}), ["0-8080:80"]),
        (with_ports(WEB | {"HostIP": None, "IP": None}), ["8080:80"]),
        (with_ports(WEB | {"HostIP": "::1"}), ["[::1]:8080:80"]),
        (with_ports(WEB | {"HostIP": "0.0.0.0"}), ["0.0.0.0:8080:80"]),
        (with_ports(WEB | {"unknown": [1]}), ["8080:80"]),
        (with_ports(), []),
        (IDS | {"Options": {protocol.PORT_MAP: None}}, []),
        (IDS | {"Options": {}}, []),
        (IDS | {"Options": None}, []),
        (IDS, []),
    ],
)
def test_a_port_map_is_decoded(call: object, expected: list[str]) -> None:
    decoded = decode(protocol.decode_external_connectivity, call)
    assert decoded == NewPorts(network_id(1), endpoint_id(1), ports(*expected))


@pytest.mark.parametrize("value", [True, False])
def test_it_is_decoded_that_another_is_the_way_out_by_ipv6(value: bool) -> None:  # noqa: FBT001
    options = {"com.docker.network.driver.private.no_proxy_6to4": value}
    decoded = decode(protocol.decode_external_connectivity, IDS | {"Options": options})
    assert decoded.only_ipv4 is value


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({}, "portmap.*`Proto`"),
        (None, "portmap"),
        ("80", "portmap"),
        ({"Proto": 6}, "portmap.*`Port`"),
        ({"Proto": "tcp", "Port": 80}, "portmap.*Proto"),
        (WEB | {"Proto": 1}, "port 80 of protocol 1: not possible"),
        (WEB | {"Proto": 10**30}, "portmap|protocol"),
        (WEB | {"Port": 0}, "port 0 of protocol 6: not possible"),
        (WEB | {"Port": -1}, "portmap"),
        (WEB | {"Port": 65536}, "portmap"),
        (WEB | {"Port": 80.5}, "portmap"),
        (WEB | {"HostPort": 65536}, "portmap"),
        (WEB | {"HostPort": "8080"}, "portmap"),
        (WEB | {"HostPort": 8081}, "8081-8080: ends before it starts"),
        (WEB | {"HostIP": "localhost"}, "publish on 'localhost'"),
        (WEB | {"HostIP": "127.0.0.1:80"}, "publish on '127.0.0.1:80'"),
        (WEB | {"HostIP": 7}, "portmap"),
        (WEB | {"HostIP": "::1%eth0"}, "a zone has no meaning"),
    ],
)
@pytest.mark.parametrize("name", ["join", "external_connectivity"])
def test_a_malformed_port_map_is_refused(entry: object, words: str, name: str) -> None:
    decoder = {
        "join": protocol.decode_join,
        "external_connectivity": protocol.decode_external_connectivity,
    }[name]
    call = with_ports(entry) | {"SandboxKey": sandbox_key(1)}
    with pytest.raises(InvalidRequest, match=words):
        decode(decoder, call)


@pytest.mark.parametrize("value", [{"a": 1}, "text", 7, True])
def test_a_port_map_is_a_list(value: object) -> None:
    with pytest.raises(InvalidRequest, match="portmap"):
        decode(protocol.decode_external_connectivity, IDS | {"Options": {protocol.PORT_MAP: value}})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, (False, False)),
        ({}, (False, False)),
        (
            {
                protocol.INTERNAL: True,
                GENERIC: {"com.docker.network.bridge.gateway_mode_ipv4": "isolated"},
            },
            (True, False),
        ),
    ],
)
def test_a_gateway_check_is_decoded_and_answered(
    options: object, expected: tuple[bool, bool]
) -> None:
    skips = decode(protocol.decode_gw_alloc_check, {"Options": options})
    assert skips == expected
    answer = protocol.encode_gw_alloc_check(skips)
    assert answer == {"SkipIPv4": expected[0], "SkipIPv6": expected[1]}


@pytest.mark.parametrize(
    ("aux", "expected"),
    [
        ({}, None),
        (None, None),
        ({"printer": "10.91.0.9/24"}, None),
        ({"DefaultGatewayIPv4": "10.91.0.9/24"}, "10.91.0.9"),
        ({"DefaultGatewayIPv6": "nonsense"}, None),
    ],
)
def test_an_aux_address_may_be_the_gateway(aux: object, expected: str | None) -> None:
    (decoded,) = decode(protocol.decode_create_network, with_pool(AuxAddresses=aux)).pools
    assert decoded.default_gateway == (expected and ip_address(expected))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("10.92.0.9/24", "is not in the pool"),
        ("10.91.0.9", "prefix length"),
        ("nonsense", "address 'nonsense'"),
        ("fd00::1/64", "expected IPv4"),
    ],
)
def test_a_gateway_outside_is_refused(value: str, words: str) -> None:
    call = with_pool(AuxAddresses={"DefaultGatewayIPv4": value})
    with pytest.raises(InvalidRequest, match=words):
        decode(protocol.decode_create_network, call)
