"""No string from a request reaches nft or a path unparsed, and a refused request leaves nothing.

Hostile text goes through every field of every request, over the wire. What reaches the kernel is
held against a grammar: addresses, integers and plain interface names are all that may vary.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import Client

from driver import options
from driver.driver import BridgeDriver
from driver.firewall import ruleset
from driver.sysctl.policy import path_components
from plugin.api import create_app
from plugin.api.protocol import GENERIC, INTERNAL, PORT_MAP
from tests.fakes import FakeKernel
from tests.samples import KEEPALIVE, endpoint_id, network_id, sandbox_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from driver.state.store import Store

IDS = {"NetworkID": network_id(1), "EndpointID": endpoint_id(1)}
FORBIDDEN = '"\n{};$@\\`%'
SNIPPETS = (
    *FORBIDDEN,
    '" }',
    '"; flush ruleset; add table inet x {',
    "\n}\nflush ruleset\n",
    "$(reboot)",
    "`reboot`",
    "../../etc/passwd",
    "/",
    "..",
    "-rf",
    " ",
    "\0",
    "%eth0",
    "é",
    "\u0661",
)
ADDRESSES = ("10.1.0.2", "192.0.2.7", "127.0.0.1", "0.0.0.0", "fd00:1::2", "fe80::1", "::1", "::")
WORDS = (
    *ADDRESSES,
    *(f"{address}/24" for address in ADDRESSES),
    "10.1.0.0/24",
    "10.1.0.1/24",
    "fd00:1::/64",
    "fd00:1::1/64",
    "fe80::/64",
    "0.0.0.0/0",
    "eth0",
    "eth1:wg0",
    "br-front",
    "true",
    "false",
    "nat",
    "routed",
    "isolated",
    "direct",
    "docker",
    "1500",
    "02:42:0a:01:00:02",
    network_id(1),
    "",
)
words = st.sampled_from(WORDS)
snippets = st.sampled_from(SNIPPETS)
# Python takes any text at all for the zone of an IPv6 address.
zoned = st.builds(
    "{}%{}{}".format,
    st.sampled_from(("fe80::1", "::1", "fe80::", "fd00:1::", "fd00:1::2")),
    st.sampled_from(('"; drop }', "\nflush ruleset\n", "eth0")),
    st.sampled_from(("", "/64", "/128")),
)
hostile = st.one_of(
    zoned,
    st.builds("{}{}{}".format, words, snippets, words),
    st.builds("{}{}".format, snippets, words),
    snippets,
    st.text(max_size=20),
)


def mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return what is usual, three times of four, and hostile text otherwise."""
    return st.one_of(usual, usual, usual, hostile)


def text(*usual: str) -> st.SearchStrategy[Any]:
    return mostly(st.sampled_from(usual))


# What people give for each option, and what is nearly right.
USUAL: dict[str, tuple[str, ...]] = {
    options.MTU: ("9000", "1500", "0"),
    options.BRIDGE_NAME: ("br0", "br-front"),
    options.IFACE_PREFIX: ("front",),
    options.GATEWAY_MODE_IPV4: ("nat", "routed", "nat-unprotected"),
    options.GATEWAY_MODE_IPV6: ("nat", "routed", "nat-unprotected"),
    options.HOST_BINDING: ("127.0.0.1", "::1", "0.0.0.0"),
    options.TRUSTED: ("eth1", "eth1:wg0"),
    options.HOST_IPV4: ("192.0.2.7",),
    options.HOST_IPV6: ("2001:db8::7",),
    options.ATTACH: ("handover", "direct"),
    options.PUBLISH: ("pynet", "pynet", "docker"),
    KEEPALIVE: ("600",),
    **dict.fromkeys((options.MASQUERADE, options.ICC, options.INHIBIT_IPV4), ("true", "false")),
    **dict.fromkeys((options.ENABLE_IPV4, options.ENABLE_IPV6), ("true",)),
}
VALUES = {name: text(*usual) for name, usual in USUAL.items()}
generic = st.one_of(
    st.fixed_dictionaries({}, optional=VALUES),
    st.dictionaries(st.sampled_from([*VALUES]) | hostile, hostile, max_size=2),
    st.sampled_from(sorted(VALUES)).flatmap(
        lambda key: st.fixed_dictionaries({key: VALUES[key]}),
    ),
)
pool4 = st.fixed_dictionaries(
    {"Pool": text("10.1.0.0/24"), "Gateway": text("10.1.0.1/24")},
    optional={
        "AddressSpace": text("LocalDefault"),
        "AuxAddresses": st.dictionaries(
            text("DefaultGatewayIPv4", "printer"), text("10.1.0.9/24"), max_size=2
        ),
    },
)
pool6 = st.fixed_dictionaries({"Pool": text("fd00:1::/64"), "Gateway": text("fd00:1::1/64")})
networks = st.fixed_dictionaries(
    {
        "NetworkID": text(network_id(1)),
        "Options": st.fixed_dictionaries(
            {GENERIC: generic},
            optional={INTERNAL: st.booleans()},
        ),
        "IPv4Data": st.lists(pool4, max_size=2),
        "IPv6Data": st.lists(pool6, max_size=2),
    }
)
endpoints = st.fixed_dictionaries(
    {
        **{key: text(value) for key, value in IDS.items()},
        "Interface": st.fixed_dictionaries(
            {
                "Address": text("10.1.0.2/24", "10.1.0.2/24", ""),
                "AddressIPv6": text("fd00:1::2/64", ""),
                "MacAddress": text("", "02:42:0a:01:00:02"),
            }
        ),
        "Options": st.fixed_dictionaries(
            {},
            optional={
                options.ENDPOINT_IFNAME: text("front0"),
                options.ENDPOINT_SYSCTLS: text("net.ipv4.conf.IFNAME.rp_filter=1"),
                KEEPALIVE: text("300"),
            },
        )
        | st.dictionaries(hostile, hostile, max_size=2),
    }
)
port = st.integers(0, 9) | st.integers(-1, 70000)
port_maps = st.lists(
    st.fixed_dictionaries(
        {"Proto": st.sampled_from([6, 17, 132]) | st.integers(), "Port": port},
        optional={
            "IP": hostile,
            "HostIP": text("", "127.0.0.1", "0.0.0.0", "::1"),
            "HostPort": port,
            "HostPortEnd": port,
        },
    ),
    max_size=3,
)
port_options = st.fixed_dictionaries({PORT_MAP: mostly(port_maps)})
joins = st.fixed_dictionaries(
    {
        **{key: text(value) for key, value in IDS.items()},
        "SandboxKey": text(sandbox_key(1)),
        "Options": port_options,
    }
)
programs = st.fixed_dictionaries(
    {**{key: text(value) for key, value in IDS.items()}, "Options": port_options}
)
LIFE = {
    "CreateNetwork": networks,
    "CreateEndpoint": endpoints,
    "Join": joins,
    "ProgramExternalConnectivity": programs,
}


class Watched(FakeKernel):
    """A kernel that has every address, and remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.add_sandbox(sandbox_key(1))

    def state(self) -> dict[str, Any]:
        return super().state() | {"texts": None, "forwarding": None, "forward_policies": None}

    def run_nft(self, text: str) -> None:
        self.texts.append(text)
        super().run_nft(text)

    def _has_address(self, _: object) -> bool:
        return True


IFNAME = r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,14}"
PART = rf'"{IFNAME}"|[0-9a-f:.]+(/\d+)?|\d+|0x[0-9a-f]{{32}}|tcp|udp|sctp|ipv4|ipv6'
VALUE = r"[0-9a-f:.]+( \. \d+)?|accept|drop|goto [a-z_]+"
ELEMENT = re.compile(
    rf"(add|delete) element (inet|bridge) pynet [a-z0-9_]+ "
    rf"\{{ ({PART})( \. ({PART}))*( ct count over \d+)?"
    rf'( comment "(network|endpoint) [0-9a-z]{{12}}")?( : ({VALUE}))? \}}'
)
CONSTANT = ruleset.render_ruleset([], [], [])


def strange_lines(texts: list[str]) -> Iterator[str]:
    """Yield the lines of nft text that are neither constant nor an element as it should be."""
    constant = set(CONSTANT.splitlines())
    for line in "".join(texts).split("\n"):
        if line and line not in constant and not ELEMENT.fullmatch(line):
            yield line


def strange_names(kernel: FakeKernel) -> Iterator[str]:
    """Yield what links are called and tagged that a request may have slipped something into."""
    for name, link in kernel.links.items():
        tag = r"(pynet (network|endpoint) [0-9a-z ]+|)|pynet: from the host's ::1"
        if not re.fullmatch(IFNAME, name) or not re.fullmatch(tag, link.alias):
            yield f"{name} {link.alias}"
    for _, name in kernel.inside:
        if not re.fullmatch(IFNAME, name):
            yield name
    for values in kernel.sandboxes.values():
        for key in values:
            if {"..", ".", ""} & set(path_components(key, "eth0")) or "/" in key:
                yield key


def send(client: Client, name: str, call: object) -> int:
    """Send a call and return its status; a refusal has words."""
    response = client.post(f"/NetworkDriver.{name}", data=json.dumps(call).encode())
    answer = cast("dict[str, Any]", response.get_json(force=True))
    assert response.status_code in {200, 400, 409}, answer
    assert (response.status_code == 200) == ("Err" not in answer)
    return response.status_code


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.fixed_dictionaries(LIFE))
def test_whatever_is_accepted_is_plain_and_whatever_is_refused_leaves_nothing(
    store: Store, calls: dict[str, Any]
) -> None:
    kernel = Watched()
    driver = BridgeDriver(store, kernel)
    client = Client(create_app(lambda: driver))
    untouched = kernel.state()
    for name, call in calls.items():
        before = kernel.state()
        if send(client, name, call) != 200:
            assert kernel.state() == before, name
        assert list(strange_lines(kernel.texts)) == []
        assert list(strange_names(kernel)) == []
    gone = {"NetworkID": calls["CreateNetwork"]["NetworkID"]}
    send(client, "DeleteNetwork", gone)
    assert kernel.state() == untouched


@pytest.mark.parametrize("key", sorted(VALUES))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=hostile)
def test_every_option_alone(store: Store, key: str, value: str) -> None:
    kernel = Watched()
    driver = BridgeDriver(store, kernel)
    client = Client(create_app(lambda: driver))
    call = {
        "NetworkID": network_id(1),
        "Options": {GENERIC: {key: value}},
        "IPv4Data": [{"Pool": "10.1.0.0/24", "Gateway": "10.1.0.1/24"}],
        "IPv6Data": [{"Pool": "fd00:1::/64", "Gateway": "fd00:1::1/64"}],
    }
    send(client, "CreateNetwork", call)
    assert list(strange_lines(kernel.texts)) == []
    assert list(strange_names(kernel)) == []
    send(client, "DeleteNetwork", IDS)


GATEWAY, ZONE = "fd00:1::1/64", '%"; drop }'
POOL = {"Pool": "fd00:1::/64", "Gateway": GATEWAY}
GOOD = {"NetworkID": network_id(1), "IPv6Data": [POOL]}


def with_port(**places: str) -> dict[str, Any]:
    return IDS | {"Options": {PORT_MAP: [{"Proto": 6, "Port": 80} | places]}}


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("CreateNetwork", GOOD | {"IPv6Data": [POOL | {"Pool": f"fd00:1::{ZONE}/64"}]}),
        ("CreateNetwork", GOOD | {"IPv6Data": [POOL | {"Gateway": f"fd00:1::1{ZONE}/64"}]}),
        (
            "CreateNetwork",
            GOOD
            | {
                "IPv6Data": [POOL | {"AuxAddresses": {"DefaultGatewayIPv6": f"fd00:1::9{ZONE}/64"}}]
            },
        ),
        ("CreateNetwork", GOOD | {"Options": {GENERIC: {options.HOST_IPV6: f"fd00::7{ZONE}"}}}),
        ("CreateNetwork", GOOD | {"Options": {GENERIC: {options.HOST_BINDING: f"fd00::7{ZONE}"}}}),
        ("CreateEndpoint", IDS | {"Interface": {"AddressIPv6": f"fd00:1::2{ZONE}/64"}}),
        ("ProgramExternalConnectivity", with_port(HostIP=f"::1{ZONE}")),
        ("Join", with_port(HostIP=f"::1{ZONE}") | {"SandboxKey": sandbox_key(1)}),
    ],
)
def test_no_address_has_a_zone(store: Store, name: str, call: dict[str, Any]) -> None:
    driver = BridgeDriver(store, Watched())
    client = Client(create_app(lambda: driver))
    if name != "CreateNetwork":
        assert send(client, "CreateNetwork", GOOD) == 200
    response = client.post(f"/NetworkDriver.{name}", data=json.dumps(call).encode())
    assert response.status_code == 400
    assert "a zone has no meaning here" in response.get_json(force=True)["Err"]


def test_the_grammar_tells_what_is_hostile() -> None:
    wrong = (
        'add element inet pynet bridges { "a"b" comment "network 010101010101" }',
        'add element inet pynet home4 { fe80::1%eth0 . "br0" }',
        "add element inet pynet bridges { br0 }; flush ruleset",
        "flush ruleset",
    )
    assert list(strange_lines(["\n".join(wrong)])) == list(wrong)
    assert list(strange_lines(["$(reboot)"])) == ["$(reboot)"]
