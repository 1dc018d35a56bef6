"""Advice is given where a setting of the host leaves something open, and nowhere else."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv6Interface
from typing import TYPE_CHECKING

import pytest

from driver.observed import HostSettings, Link
from driver.reconcile.advice import advise, find_entrances
from plugin.cli import DIFFERS
from tests.samples import endpoint, network, pool, sandbox_key
from tests.unit.command import DUAL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from driver.model import Endpoint, Network
    from tests.fakes import FakeKernel
    from tests.unit.command import Run

NEIGHBOURS = "net.ipv{}.neigh.default.gc_thresh3"
SOURCES = "net.ipv4.conf.*.rp_filter"
DUAL_NET = network(1, pools=(pool("10.1.0.1/24"), pool("fd00:1::1/64")))
V6_NET = network(1, pools=(pool("fd00:1::1/64"),))
INTERNAL = network(1, internal=True)


def settings(
    neighbours: Mapping[int, int] | None = None,
    forwards: tuple[int, ...] = (4, 6),
    policies: Mapping[int, str] | None = None,
    sources: Mapping[str, int] | None = None,
) -> HostSettings:
    return HostSettings(
        neighbours or {}, frozenset(forwards), policies or {4: "DROP", 6: "DROP"}, sources or {}
    )


def joined(number: int, ipv6: str | None = None) -> Endpoint:
    made = replace(endpoint(number), ipv6=None if ipv6 is None else IPv6Interface(ipv6))
    return made.joined(sandbox_key(number))


@pytest.mark.parametrize(
    ("networks", "given", "expected"),
    [
        ([DUAL_NET], settings(), []),
        ([DUAL_NET], settings(policies={4: "ACCEPT"}), ["iptables FORWARD"]),
        ([DUAL_NET], settings(policies={4: "ACCEPT"}, forwards=(6,)), []),
        ([DUAL_NET], settings(policies={4: "DROP", 6: "ACCEPT"}), ["ip6tables FORWARD"]),
        ([DUAL_NET], settings(policies={5: "unknown"}), []),
        ([network(1)], settings(policies={6: "ACCEPT"}), []),
        ([INTERNAL], settings(policies={4: "ACCEPT", 6: "ACCEPT"}), []),
        ([], settings(policies={4: "ACCEPT", 6: "ACCEPT"}, sources={"eth0": 0}), []),
        ([DUAL_NET], settings(sources={"eth0": 0, "eth1": 1, "eth2": 2}), [SOURCES]),
        ([INTERNAL], settings(sources={"eth0": 0}), [SOURCES]),
        ([V6_NET], settings(sources={"eth0": 0}), []),
        ([DUAL_NET], settings(sources={"eth1": 1, "eth2": 2}), []),
    ],
)
def test_what_is_left_open_is_named(
    networks: list[Network], given: HostSettings, expected: list[str]
) -> None:
    assert [each.setting for each in advise(networks, [], given)] == expected


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        ({4: 2, 6: 1}, []),
        ({4: 1, 6: 1}, [4]),
        ({4: 2, 6: 0}, [6]),
        ({4: 0, 6: 0}, [4, 6]),
        ({}, []),
    ],
)
def test_a_table_of_neighbours_has_room_for_every_endpoint(
    room: Mapping[int, int], expected: list[int]
) -> None:
    endpoints = [joined(1, "fd00:1::2/64"), joined(2), endpoint(3)]  # the last runs nowhere
    found = list(advise([DUAL_NET], endpoints, settings(neighbours=room)))
    assert [each.setting for each in found] == [NEIGHBOURS.format(each) for each in expected]


def test_the_words_say_what_to_do() -> None:
    given = settings({4: 1}, policies={4: "ACCEPT"}, sources={"wlan0": 0, "eth0": 0})
    room, forward, sources = (
        each.text for each in advise([DUAL_NET], [joined(1), joined(2)], given)
    )
    assert room.startswith("is 1, less than the 2 endpoints with IPv4")
    assert room.endswith("set it to 4 or more")
    assert "net.ipv4.ip_forward is 1" in forward
    assert forward.endswith("iptables -P FORWARD DROP")
    assert sources.startswith("is 0 for eth0, wlan0: ")


def link(kind: str | None, *, up: bool = True, bridge: str | None = None, alias: str = "") -> Link:
    return Link(kind, alias, "", 1500, up=up, bridge=bridge)


def test_what_leads_into_the_host_is_told_from_what_does_not() -> None:
    links = {
        "lo": link(None),
        "eth0": link(None),
        "eth1": link(None, up=False),
        "eth2": link(None, bridge="br-lan"),
        "br-lan": link("bridge"),
        "eth0.100": link("vlan"),
        "lxc0": link("veth"),
        "wg0": link("wireguard"),
        "dummy0": link("dummy"),
        "docker0": link("bridge"),
        "veth1": link("veth", bridge="docker0"),
        DUAL.bridge_name: link("bridge", alias=DUAL.bridge.alias),
        "pnhe1e1e1e1e1e1": link("veth", bridge=DUAL.bridge_name, alias="pynet endpoint 1"),
    }
    assert find_entrances(links) == {"eth0", "br-lan", "eth0.100", "lxc0"}


def weaken(kernel: FakeKernel) -> None:
    kernel.neighbours = {4: 0, 6: 1024}
    kernel.forward_policies[6] = "ACCEPT"
    kernel.add_foreign("eth0", "vxlan")


def test_a_warning_is_no_damage(run: Run, kernel: FakeKernel) -> None:
    weaken(kernel)
    result = run("check")
    assert result.exit_code == 0
    first, blank, title, head, *rows = result.stdout.splitlines()
    assert (first, blank) == ("nothing differs", "")
    assert title.startswith("Warnings: no damage")
    assert head.split() == ["SETTING", "WARNING"]
    # `back` routes IPv6, and turned forwarding on.
    assert [row.split("  ")[0] for row in rows] == [
        NEIGHBOURS.format(4),
        "ip6tables FORWARD",
        SOURCES,
    ]
    answer = json.loads(run("check", "--json").stdout)
    assert answer["differences"] == []
    assert [each["setting"] for each in answer["warnings"]] == [
        NEIGHBOURS.format(4),
        "ip6tables FORWARD",
        SOURCES,
    ]


def test_damage_and_warnings_are_told_apart(run: Run, kernel: FakeKernel) -> None:
    weaken(kernel)
    kernel.links[DUAL.bridge_name].up = False
    result = run("check")
    assert result.exit_code == DIFFERS
    assert result.stdout.splitlines()[1].endswith("is down (network 010101010101)")
    assert "Warnings: no damage" in result.stdout
    answer = json.loads(run("check", "--json").stdout)
    assert (len(answer["differences"]), len(answer["warnings"])) == (1, 3)
    assert run("check", "--repair").exit_code == 0, "and the warnings stay"
    assert len(json.loads(run("check", "--json").stdout)["warnings"]) == 3
