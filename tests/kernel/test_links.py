"""What bridges and links have, do and cost besides what they are asked for."""

from __future__ import annotations

import errno
import json
import socket
import threading
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, ip_interface
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pyroute2.netlink.rtnl import RTM_DELLINK, RTMGRP_LINK
from pyroute2.netlink.rtnl.ifinfmsg import IFF_UP
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from driver.errors import Conflict
from driver.linux import links, netns, sysctl
from driver.linux.rtnetlink import Rtnetlink, _change_link, _link
from driver.linux.session import NetlinkError
from driver.model import DirectInterface, Endpoint, MacAddress, veth_of
from driver.observed import find_exits, find_uplinks
from tests.engine.wait import wait_until
from tests.kernel.host import ip
from tests.samples import endpoint_id, network, pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pyroute2.netlink import nlmsg

    from driver.linux.linux import LinuxKernel
    from driver.model import SandboxKey
    from tests.kernel.host import RealHost

DUAL = network(1, pools=(pool("10.1.0.1/24"), pool("fd00:1::1/64")))
VETH = veth_of(Endpoint(endpoint_id(1), DUAL.id, None, None, MacAddress("02:42:0a:01:00:02")), DUAL)


def link_local(name: str) -> list[IPv6Interface]:
    """Return the link-local addresses that can be used, as `ip` shows them."""
    shown = json.loads(ip("-json", "-6", "addr", "show", name, "scope", "link", "-tentative"))
    addresses = [each for link in shown for each in link.get("addr_info", ()) if each]
    return [IPv6Interface(f"{each['local']}/{each['prefixlen']}") for each in addresses]


def test_a_bridge_has_its_link_local_address_before_anything_is_on_it(linux: LinuxKernel) -> None:
    linux.ensure_bridge(DUAL.bridge)
    assert link_local(DUAL.bridge_name) == [DUAL.bridge.link_local]


def test_a_bridge_that_went_down_has_it_again_when_it_is_mended(linux: LinuxKernel) -> None:
    linux.ensure_bridge(DUAL.bridge)
    ip("link", "set", DUAL.bridge_name, "down")
    assert link_local(DUAL.bridge_name) == []
    linux.ensure_bridge(DUAL.bridge)
    assert link_local(DUAL.bridge_name) == [DUAL.bridge.link_local]


@pytest.mark.usefixtures("linux")
def test_it_is_the_one_that_the_kernel_would_give() -> None:
    ip("link", "add", "plain", "address", DUAL.bridge.mac, "type", "bridge")
    ip("link", "add", "port", "master", "plain", "up", "type", "veth", "peer", "other")
    ip("link", "set", "other", "up")
    ip("link", "set", "plain", "up")
    wait_until(lambda: link_local("plain"), 10, "the kernel's address")
    assert link_local("plain") == [DUAL.bridge.link_local]


def test_a_bridge_without_ipv6_has_none(linux: LinuxKernel) -> None:
    only = replace(DUAL.bridge, addresses=(ip_interface("10.1.0.1/24"),))
    linux.ensure_bridge(only)
    assert only.link_local is None
    assert json.loads(ip("-json", "-6", "addr", "show", only.name)) in ([], [{}])


def test_a_host_end_has_no_address(linux: LinuxKernel) -> None:
    """On a bridge with a carrier, so that the kernel has had its chance when the bridge has."""
    linux.ensure_bridge(replace(DUAL.bridge, addresses=()))
    ip("link", "add", "plain", "type", "veth", "peer", "other")
    linux.create_veth(VETH)
    for name in (VETH.sandbox_end, "other", "plain"):
        ip("link", "set", name, "up")
    wait_until(lambda: link_local(VETH.sandbox_end) and link_local("plain"), 10, "addresses")
    assert json.loads(ip("-json", "-6", "addr", "show", VETH.host_end)) in ([], [{}])


def test_an_mtu_too_small_for_ipv6_is_no_reason_to_fail(linux: LinuxKernel) -> None:
    linux.ensure_bridge(replace(DUAL.bridge, mtu=1000, addresses=DUAL.bridge.addresses[:1]))
    linux.create_veth(replace(VETH, mtu=1000))
    assert not Path("/proc/sys/net/ipv6/conf", VETH.host_end).exists()


def test_a_kernel_without_ipv6_is_no_reason_to_fail(
    linux: LinuxKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysctl, "has_ipv6", lambda: False)
    linux.ensure_bridge(replace(DUAL.bridge, addresses=DUAL.bridge.addresses[:1]))
    linux.create_veth(VETH)
    assert linux.observe_links()[VETH.host_end].up


ETH_P_ALL = 3  # include/uapi/linux/if_ether.h
UP_LO = partial(_change_link, 1, flags=IFF_UP)
DELETE_LO = partial(_link, RTM_DELLINK, 1)  # which the kernel refuses
DELETE_NONE = partial(_link, RTM_DELLINK, 9999)
DISABLED, FORWARDING = 0, 3  # BR_STATE_…, include/uapi/linux/if_bridge.h


def port_states(news: socket.socket) -> Iterator[tuple[str, int]]:
    """Yield what the kernel tells of bridges' ports: whose state it tells, and the state."""
    while True:
        for message in MarshalRtnl().parse(news.recv(65536)):
            if message["family"] == socket.AF_BRIDGE:
                state = message.get_attr("IFLA_PROTINFO").get_attr("IFLA_BRPORT_STATE")
                yield message.get_attr("IFLA_IFNAME"), state


def test_a_bridge_opens_the_port_once_when_the_sandbox_end_is_up(linux: LinuxKernel) -> None:
    """Each opening and closing walks through all ports of the bridge, with the kernel's lock."""
    linux.ensure_bridge(DUAL.bridge)
    second = veth_of(Endpoint(endpoint_id(2), DUAL.id, None, None, VETH.mac), DUAL)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as news:
        news.bind((0, RTMGRP_LINK))
        news.settimeout(10)
        linux.create_veth(VETH)
        linux.create_veth(second)
        states = port_states(news)
        before = {state for _, state in takewhile(lambda each: each[0] == VETH.host_end, states)}
        assert before == {DISABLED}
        ip("link", "set", VETH.sandbox_end, "up")
        assert (VETH.host_end, FORWARDING) in states


def test_a_pair_that_is_refused_takes_nothing_of_others_with_it(linux: LinuxKernel) -> None:
    """All of it goes to the kernel at once, and the kernel goes on after what it refuses."""
    linux.ensure_bridge(DUAL.bridge)
    ip("link", "add", VETH.sandbox_end, "type", "ifb")
    with pytest.raises(Conflict, match="the name is taken"):
        linux.create_veth(VETH)
    assert linux.observe_links().keys() >= {VETH.sandbox_end}
    assert VETH.host_end not in linux.observe_links()


@pytest.mark.parametrize(
    ("changes", "done"),
    [
        ([DELETE_LO, UP_LO], 0),
        ([UP_LO, DELETE_LO, UP_LO], 1),
        ([UP_LO, UP_LO, DELETE_NONE, DELETE_LO], 2),
    ],
)
def test_of_several_changes_the_first_that_is_refused_is_told(
    linux: LinuxKernel, changes: list[Callable[[], nlmsg]], done: int
) -> None:
    ip("link", "set", "lo", "down")
    with Rtnetlink() as route:
        with pytest.raises(NetlinkError) as refused:
            route.request(*(change() for change in changes))
        assert refused.value.done == done
        lo = route.find_link("lo")  # its answer is not one of those before
    assert lo is not None
    assert lo.is_up


def announcements(
    neighbour: socket.socket, wanted: set[IPv4Address | IPv6Address]
) -> set[IPv4Address | IPv6Address]:
    """Return the addresses that a neighbour hears of by themselves, as soon as it has the wanted.

    Gratuitous ARP has the address as its own target (RFC 5227); of IPv6 it is an unsolicited
    neighbour advertisement (RFC 4861).
    """
    heard: set[IPv4Address | IPv6Address] = set()
    while not heard >= wanted:
        frame = neighbour.recv(2048)
        if frame[12:14] == b"\x08\x06" and frame[28:32] == frame[38:42]:
            heard.add(IPv4Address(frame[28:32]))
        if frame[12:14] == b"\x86\xdd" and (frame[20], frame[54]) == (58, 136):
            heard.add(IPv6Address(frame[62:78]))
    return heard


def packets_of_eth0() -> socket.socket:
    heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    heard.bind(("eth0", ETH_P_ALL))
    heard.settimeout(10)
    return heard


def test_neighbours_hear_of_every_interface_that_is_announced(real: RealHost) -> None:
    """The bridge opens the port a little after the link is up, and drops what came before."""
    real.kernel.ensure_bridge(DUAL.bridge)

    def attach(number: int) -> SandboxKey:
        addresses = ip_interface(f"10.1.0.{number}/24"), ip_interface(f"fd00:1::{number:x}/64")
        mac = MacAddress(f"02:42:0a:01:00:{number:02x}")
        endpoint = Endpoint(endpoint_id(number), DUAL.id, None, None, mac)
        sandbox = real.add_sandbox(number)
        interface = DirectInterface("eth0", "eth", addresses, announced=True)
        real.kernel.create_veth_in(veth_of(endpoint, DUAL), sandbox, interface)
        wanted.update(each.ip for each in addresses)
        return sandbox

    wanted: set[IPv4Address | IPv6Address] = set()
    with (
        netns.open_namespace(attach(2)) as namespace,
        netns.run_in(namespace, packets_of_eth0) as neighbour,
    ):
        wanted.clear()
        for number in range(3, 23):
            attach(number)
        assert announcements(neighbour, wanted) >= wanted


@pytest.mark.parametrize(("refusal", "told"), [(errno.EBUSY, True), (errno.ENODEV, False)])
def test_an_announcement_that_is_refused_is_told_unless_the_interface_has_gone(
    real: RealHost,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    refusal: int,
    told: bool,
) -> None:
    refused = threading.Event()

    def refuse(*_: object) -> None:
        refused.set()
        raise NetlinkError(refusal)

    monkeypatch.setattr(Rtnetlink, "set_mac_and_mtu", refuse)
    real.kernel.ensure_bridge(DUAL.bridge)
    sandbox, before = real.add_sandbox(1), threading.active_count()
    real.kernel.create_veth_in(VETH, sandbox, DirectInterface("eth0", "eth", (), announced=True))
    assert refused.wait(10)
    wait_until(lambda: threading.active_count() == before, 10, "the end of the thread")
    assert real.links()[VETH.host_end].up
    assert (f"announce the addresses behind {VETH.host_end}" in caplog.text) == told


def test_a_link_named_twice_is_deleted_as_one(
    linux: LinuxKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leave and DeleteEndpoint both hand it over, and to put links into a group costs a walk."""
    linux.ensure_bridge(DUAL.bridge)
    linux.create_veth(VETH)
    monkeypatch.setattr(Rtnetlink, "delete_group", partial(pytest.fail, "it went by a group"))
    linux.delete_links([VETH.host_end, VETH.host_end])
    assert VETH.host_end not in linux.observe_links()


def test_a_link_made_anew_is_not_deleted_by_a_reaper_that_is_behind(
    linux: LinuxKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    original = links.delete_links

    def behind(which: Iterable[str | int]) -> None:
        if threading.current_thread().name == "link-reaper":
            go_on.wait(10)
        original(which)

    monkeypatch.setattr(links, "delete_links", behind)
    linux.ensure_bridge(DUAL.bridge)
    linux.create_veth(VETH)
    linux.release_links([VETH.host_end])
    linux.delete_links([VETH.host_end])  # as a join does, before it makes the link
    linux.create_veth(VETH)
    go_on.set()
    linux._reaper.close()
    assert VETH.host_end in linux.observe_links()


def test_a_link_that_is_released_goes_also_after_one_of_its_name(linux: LinuxKernel) -> None:
    linux.ensure_bridge(DUAL.bridge)
    for _ in range(2):
        linux.delete_links([VETH.host_end])
        linux.create_veth(VETH)
        linux.release_links([VETH.host_end])
    linux._reaper.close()
    assert links.find_index(VETH.host_end) is None


def test_a_route_to_half_of_everything_is_no_default_route(linux: LinuxKernel) -> None:
    """As a VPN has two of them, so that the default route stays."""
    for name in ("half", "whole"):
        ip("link", "add", name, "type", "bridge")
        ip("link", "set", name, "up")
    ip("route", "add", "0.0.0.0/1", "dev", "half")
    assert not links.default_route_interfaces()
    ip("route", "add", "default", "dev", "whole")
    assert links.default_route_interfaces() == {"whole"}


def test_a_bridge_is_dockers_for_as_long_as_it_is_there(real: RealHost) -> None:
    """Also when its last container has gone; not another of its name."""
    for _ in range(2):
        real.add_foreign("named")
        assert find_uplinks(real.kernel.observe_links()) == {"named"}
        real.add_foreign("veth0a1b2c3", "veth")
        real.enslave("veth0a1b2c3", "named")
        assert not find_uplinks(real.kernel.observe_links())
        ip("link", "delete", "veth0a1b2c3")
        assert not find_uplinks(real.kernel.observe_links())
        ip("link", "delete", "named")
        assert not find_uplinks(real.kernel.observe_links())


@pytest.mark.parametrize("families", [(), (4,), (6,), (4, 6)], ids=str)
def test_the_bridge_that_the_host_goes_out_by_is_known(
    real: RealHost, families: tuple[int, ...]
) -> None:
    """By a default route of either family."""
    for name in ("named", "other"):
        real.add_foreign(name)
        ip("link", "set", name, "up")
    for version in families:
        ip(f"-{version}", "route", "add", "default", "dev", "named")
    links = real.kernel.observe_links()
    assert find_exits(links) == ({"named"} if families else set())
