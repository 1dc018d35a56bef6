"""The options of networks and endpoints: what is taken, what is refused, and in which words."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import pytest

from driver import options
from driver.errors import InvalidRequest
from driver.model import Attach, GatewayMode, GuardAlso, MacAddress, NetworkOptions, Publish
from tests.samples import KEEPALIVE, RP_FILTER, network, sysctl

if TYPE_CHECKING:
    from driver.driver import BridgeDriver

ANY = IPv4Address("0.0.0.0")


def parse(
    generic: dict[str, str], *, has_ipv4: bool = True, has_ipv6: bool = False
) -> NetworkOptions:
    return options.parse_network_options(
        generic, internal=False, has_ipv4=has_ipv4, has_ipv6=has_ipv6
    )


def test_no_option_means_every_default() -> None:
    assert parse({}) == NetworkOptions()


def test_internal_is_passed_on() -> None:
    assert options.parse_network_options({}, internal=True, has_ipv4=True, has_ipv6=False).internal


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (options.MTU, "9000", NetworkOptions(mtu=9000)),
        (options.MTU, "0", NetworkOptions()),
        (options.MTU, "68", NetworkOptions(mtu=68)),
        (options.MTU, "65535", NetworkOptions(mtu=65535)),
        (options.BRIDGE_NAME, "br-front_1.2", NetworkOptions(bridge_name="br-front_1.2")),
        (options.BRIDGE_NAME, "b" * 15, NetworkOptions(bridge_name="b" * 15)),
        (options.IFACE_PREFIX, "front", NetworkOptions(ifname_prefix="front")),
        (options.IFACE_PREFIX, "p" * 12, NetworkOptions(ifname_prefix="p" * 12)),
        (options.ENABLE_IPV4, "true", NetworkOptions()),
        (options.ENABLE_IPV6, "0", NetworkOptions()),
        (options.BRIDGE_NAME, "", NetworkOptions()),
        (
            options.GUARD_ALSO,
            "10.1.0.9, fd00::9\t00:00:5E:00:01:01,10.1.0.9",
            NetworkOptions(
                guard_also=GuardAlso(
                    (IPv4Address("10.1.0.9"),),
                    (IPv6Address("fd00::9"),),
                    (MacAddress("00:00:5e:00:01:01"),),
                )
            ),
        ),
        (options.MASQUERADE, "false", NetworkOptions(masquerade=False)),
        (options.ICC, "0", NetworkOptions(icc=False)),
        (options.GATEWAY_MODE_IPV4, "", NetworkOptions()),
        (options.GATEWAY_MODE_IPV4, "routed", NetworkOptions(gateway_mode_ipv4=GatewayMode.ROUTED)),
        (
            options.GATEWAY_MODE_IPV6,
            "nat-unprotected",
            NetworkOptions(gateway_mode_ipv6=GatewayMode.NAT_UNPROTECTED),
        ),
        (options.HOST_BINDING, "", NetworkOptions()),
        (options.HOST_BINDING, "0.0.0.0", NetworkOptions(host_binding_ipv4=ANY)),
        (options.HOST_BINDING, "::1", NetworkOptions(host_binding_ipv6=IPv6Address("::1"))),
        (options.HOST_IPV4, "192.0.2.7", NetworkOptions(host_ipv4=IPv4Address("192.0.2.7"))),
        (options.HOST_IPV6, "2001:DB8::7", NetworkOptions(host_ipv6=IPv6Address("2001:db8::7"))),
        (options.HOST_IPV6, "", NetworkOptions()),
        (options.INHIBIT_IPV4, "true", NetworkOptions(inhibit_ipv4=True)),
        (options.TRUSTED, "", NetworkOptions()),
        (
            options.TRUSTED,
            ":eth1:wg0::eth1",
            NetworkOptions(trusted_host_interfaces=("eth1", "wg0")),
        ),
        (options.ATTACH, "direct", NetworkOptions(attach=Attach.DIRECT)),
        (options.ATTACH, "handover", NetworkOptions(attach=Attach.HANDOVER)),
        (options.ATTACH, "", NetworkOptions()),
        (options.PUBLISH, "docker", NetworkOptions(publish=Publish.DOCKER)),
        (options.PUBLISH, "", NetworkOptions()),
        (options.PROXY_PROTOCOL, "true", NetworkOptions(proxy_protocol=True)),
        (KEEPALIVE, " 600 ", NetworkOptions(sysctls=(sysctl(f"{KEEPALIVE}=600"),))),
        (
            "net.ipv4.conf.ifName.rp_filter",
            "2",
            NetworkOptions(sysctls=(sysctl(f"{RP_FILTER}=2"),)),
        ),
    ],
)
def test_an_option_is_taken(key: str, value: str, expected: NetworkOptions) -> None:
    assert parse({key: value}) == expected


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (options.MTU, "", "expected a number"),
        (options.MTU, "big", "expected a number"),
        (options.MTU, "-1", "expected a number"),
        (options.MTU, "1e3", "expected a number"),
        (options.MTU, "٣٠٠٠", "expected a number"),
        (options.MTU, "67", "68 to 65535"),
        (options.MTU, "65536", "68 to 65535"),
        (options.BRIDGE_NAME, "b" * 16, "at most 15"),
        (options.BRIDGE_NAME, "br/0", "interface name"),
        (options.BRIDGE_NAME, "br 0", "interface name"),
        (options.BRIDGE_NAME, "br\n0", "interface name"),
        (options.BRIDGE_NAME, 'br"0', "interface name"),
        (options.BRIDGE_NAME, "-br0", "interface name"),
        (options.BRIDGE_NAME, ".", "interface name"),
        (options.BRIDGE_NAME, "..", "interface name"),
        (options.BRIDGE_NAME, "brücke", "interface name"),
        (options.IFACE_PREFIX, "p" * 13, "at most 12"),
        (options.IFACE_PREFIX, "", "interface name"),
        (options.IFACE_PREFIX, "e:h", "interface name"),
        (options.MASQUERADE, "", "expected true or false"),
        (options.ICC, "maybe", "expected true or false"),
        (options.INHIBIT_IPV4, "no", "expected true or false"),
        (options.GATEWAY_MODE_IPV4, "NAT", "expected one of nat, nat-unprotected, routed, isolat"),
        (options.GATEWAY_MODE_IPV6, "bridge", "expected one of nat"),
        (options.GATEWAY_MODE_IPV4, "isolated", "needs --internal"),
        (options.GATEWAY_MODE_IPV6, "isolated", "needs --internal"),
        (options.HOST_BINDING, "localhost", "expected IPv4|Expected 4 octets|octets"),
        (options.HOST_BINDING, "127.0.0.1/8", "Only decimal|Unexpected|octet"),
        (options.HOST_BINDING, "1.2.3", "Expected 4 octets"),
        (options.HOST_BINDING, "fe80::1%eth0", "a zone has no meaning"),
        (options.HOST_IPV4, "2001:db8::7", "octets"),
        (options.HOST_IPV6, "192.0.2.7", "parts"),
        (options.HOST_IPV6, 'fe80::1%"', "a zone has no meaning"),
        (options.TRUSTED, "eth1:e/2", "interface name"),
        (options.TRUSTED, "eth1:" + "e" * 16, "at most 15"),
        (options.ATTACH, "Direct", "expected one of handover, direct"),
        (options.PROXY_PROTOCOL, "yes", "expected true or false"),
        (options.PUBLISH, "both", "expected one of pynet, docker"),
        ("pynet.publsh", "docker", r"did you mean pynet\.publish"),
        ("com.docker.network.bridge.enable_ip_masq", "1", "did you mean"),
        (options.ENABLE_IPV4, "false", "use --ipv4"),
        (options.ENABLE_IPV6, "true", "use --ipv6"),
        (options.ENABLE_IPV6, "yes", "expected true or false"),
        (
            "com.docker.network.driver.mut",
            "9000",
            r"did you mean com\.docker\.network\.driver\.mtu",
        ),
        (
            "com.docker.network.bridge.names",
            "x",
            r"did you mean com\.docker\.network\.bridge\.name",
        ),
        ("frobnicate", "1", "unknown option 'frobnicate'$"),
        ("", "1", "unknown option ''"),
        ("net", "1", "unknown option 'net'"),
        ("NET.ipv4.ip_forward", "1", "unknown option"),
    ],
)
def test_an_option_is_refused(key: str, value: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        parse({key: value})


def test_ipv6_needs_its_smallest_mtu() -> None:
    with pytest.raises(InvalidRequest, match="IPv6 needs at least 1280"):
        parse({options.MTU: "1279"}, has_ipv6=True)
    assert parse({options.MTU: "1280"}, has_ipv6=True).mtu == 1280


@pytest.mark.parametrize(
    ("generic", "internal", "words"),
    [
        ({options.PUBLISH: "docker"}, True, "an --internal network publishes nothing"),
        (
            {options.PUBLISH: "docker", options.GATEWAY_MODE_IPV4: "routed"},
            False,
            "only gateway mode nat",
        ),
        (
            {options.PUBLISH: "docker", options.GATEWAY_MODE_IPV6: "nat-unprotected"},
            False,
            "only gateway mode nat",
        ),
    ],
)
def test_contradictions_are_refused(generic: dict[str, str], words: str, *, internal: bool) -> None:
    with pytest.raises(InvalidRequest, match=words):
        options.parse_network_options(generic, internal=internal, has_ipv4=True, has_ipv6=True)


def test_an_isolated_gateway_is_for_internal_networks() -> None:
    generic = {options.GATEWAY_MODE_IPV4: "isolated"}
    parsed = options.parse_network_options(generic, internal=True, has_ipv4=True, has_ipv6=False)
    assert parsed.gateway_mode(4) is GatewayMode.ISOLATED


ISOLATED = {options.GATEWAY_MODE_IPV4: "isolated", options.GATEWAY_MODE_IPV6: "isolated"}


@pytest.mark.parametrize(
    ("generic", "internal", "expected"),
    [
        ({}, False, (False, False)),
        ({}, True, (False, False)),
        (ISOLATED, True, (True, True)),
        ({options.GATEWAY_MODE_IPV6: "isolated"}, True, (False, True)),
        ({options.INHIBIT_IPV4: "true"}, True, (True, False)),
        ({options.INHIBIT_IPV4: "true"}, False, (False, False)),
        ({options.ENABLE_IPV4: "false", options.ENABLE_IPV6: "true"}, False, (False, False)),
    ],
)
def test_which_networks_need_no_gateway_address(
    generic: dict[str, str], expected: tuple[bool, bool], *, internal: bool
) -> None:
    assert options.skips_gateway(generic, internal=internal) == expected


def test_a_check_of_options_that_will_be_refused_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="unknown option"):
        options.skips_gateway({"no.such": "1"}, internal=False)


@pytest.mark.parametrize(
    ("value", "expected"), [("front0", "front0"), ("", None), (7, None), (None, None)]
)
def test_an_endpoint_may_name_its_interface(value: object, expected: str | None) -> None:
    assert options.parse_endpoint_ifname({options.ENDPOINT_IFNAME: value}) == expected


@pytest.mark.parametrize("name", ["a/b", "e" * 16, "..", 'e"', "e\n"])
def test_an_endpoints_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"endpoint\.ifname"):
        options.parse_endpoint_ifname({options.ENDPOINT_IFNAME: name})


def test_a_parameter_in_two_spellings_is_refused() -> None:
    twice = {"net.ipv4.conf.IFNAME.rp_filter": "1", "net.ipv4.conf.ifname.rp_filter": "2"}
    with pytest.raises(InvalidRequest, match="given twice"):
        parse(twice)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [("1 t T TRUE true True", True), ("0 f F FALSE false False", False)],
)
def test_booleans_are_those_of_go(texts: str, *, expected: bool) -> None:
    assert [options.parse_bool("x", text) for text in texts.split()] == [expected] * 6


@pytest.mark.parametrize("text", ["", "yes", "on", "tRUE", "2", " true"])
def test_what_go_takes_for_no_boolean_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="option x="):
        options.parse_bool("x", text)


def test_an_endpoints_unknown_options_pass_and_parameters_count() -> None:
    given: dict[str, object] = {
        "foo.bar": "baz",
        KEEPALIVE: "300",
        "com.docker.network.portmap": [],
    }
    assert options.parse_endpoint_sysctls(given) == (sysctl(f"{KEEPALIVE}=300"),)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("net.ipv4.conf.IFNAME.rp_filter=0", {RP_FILTER}),
        (
            "net.ipv4.conf.ifname.rp_filter=0, net.ipv6.conf.IFNAME.accept_ra=2",
            {RP_FILTER, "net.ipv6.conf.IFNAME.accept_ra"},
        ),
        ("", set()),
        (7, set()),
    ],
)
def test_what_the_engine_writes_itself_is_known(label: object, expected: set[str]) -> None:
    assert options.parse_engine_sysctls({options.ENDPOINT_SYSCTLS: label}) == expected


def test_every_option_is_documented_and_tried() -> None:
    names = {each.name for each in options.NETWORK_OPTIONS}
    spelled = {
        value
        for name, value in vars(options).items()
        if name.isupper() and isinstance(value, str) and "." in value
    }
    of_endpoints = {each.name for each in options.ENDPOINT_OPTIONS}
    assert names | of_endpoints == spelled | {"net.*"}
    for each in (*options.NETWORK_OPTIONS, *options.ENDPOINT_OPTIONS):
        assert each.meaning.endswith(".")
        assert each.default
        assert each.refused


@pytest.mark.parametrize(
    ("label", "direct", "has_effect"),
    [
        (options.DEFAULT_BRIDGE, False, False),
        (options.NO_PROXY_6TO4, False, False),
        (options.ANNOUNCEMENTS, False, True),
        (options.ANNOUNCEMENT_INTERVAL, False, True),
        (options.ANNOUNCEMENTS, True, False),
        (options.ANNOUNCEMENT_INTERVAL, True, False),
    ],
)
def test_labels_of_dockers_bridge_are_taken_and_told_of(
    driver: BridgeDriver,
    caplog: pytest.LogCaptureFixture,
    label: str,
    direct: bool,  # noqa: FBT001
    has_effect: bool,  # noqa: FBT001
) -> None:
    given = {label: "1"} | ({options.ATTACH: "direct"} if direct else {})
    parsed = options.parse_network_options(given, internal=False, has_ipv4=True, has_ipv6=False)
    for _ in range(2):
        driver.create_network(replace(network(1), options=parsed))
    assert [each.message for each in caplog.records] == [
        f"network 010101010101: option {label} has no effect"
    ] * (not has_effect)


@pytest.mark.parametrize(
    "text", ["0.0.0.0", "::", "127.0.0.1", "::1", "224.0.0.18", "10.1.0.9 ff02::12"]
)
def test_no_container_may_use_an_address_that_nobody_sends_from(text: str) -> None:
    """Who is given a router's multicast group in place of its address is told so."""
    given = {options.GUARD_ALSO: text}
    with pytest.raises(InvalidRequest, match="no container sends from that"):
        options.parse_network_options(given, internal=False, has_ipv4=True, has_ipv6=True)
    with pytest.raises(InvalidRequest, match="no container sends from that"):
        options.parse_endpoint_options(given)
