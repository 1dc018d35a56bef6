"""What bridges and host ends have of IPv6 besides what they are asked to have."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv6Interface, ip_interface
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from driver.kernel import sysctl
from driver.model import Endpoint, MacAddress, veth_of
from tests.engine.wait import wait_until
from tests.kernel.host import ip
from tests.samples import endpoint_id, network, pool

if TYPE_CHECKING:
    from driver.kernel.linux import LinuxKernel

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
