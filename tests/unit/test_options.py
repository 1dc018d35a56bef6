"""The options of networks and endpoints: what is taken, what is refused, and in which words."""

from __future__ import annotations

import pytest

from driver import options
from driver.errors import InvalidRequest
from driver.model import NetworkOptions
from tests.samples import KEEPALIVE, RP_FILTER, sysctl


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
        (options.BRIDGE_NAME, "", "interface name"),
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
    assert names == {
        "net.*",
        options.MTU,
        options.BRIDGE_NAME,
        options.IFACE_PREFIX,
        options.ENABLE_IPV4,
        options.ENABLE_IPV6,
    }
    for each in (*options.NETWORK_OPTIONS, *options.ENDPOINT_OPTIONS):
        assert each.meaning.endswith(".")
        assert each.default
        assert each.refused
