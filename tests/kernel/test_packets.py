"""Containers of one network reach each other on a machine as Docker leaves it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from driver.driver import BridgeDriver
from driver.firewall import ruleset
from tests.engine.wait import wait_until
from tests.kernel.container import calling, is_connected, reaches, sandbox_of, start
from tests.kernel.host import COMMANDS, ip, run
from tests.samples import KEEPALIVE, RP_FILTER, network, new_endpoint, pool

if TYPE_CHECKING:
    from driver.linux.linux import LinuxKernel
    from driver.model import Endpoint
    from tests.kernel.host import RealHost

NETWORK = network(
    1, f"{KEEPALIVE}=600", f"{RP_FILTER}=2", pools=(pool("10.1.0.1/24"), pool("fd00:1::1/64"))
)


@pytest.fixture
def two(as_docker_leaves_it: None, driver: BridgeDriver, real: RealHost) -> list[Endpoint]:
    """Start two containers on one network."""
    driver.create_network(NETWORK)
    return [
        start(driver, real, number, new_endpoint(number, ipv6=f"fd00:1::{number + 1}/64"))
        for number in (1, 2)
    ]


def dropped(command: str) -> int:
    """Return how many packets FORWARD's policy has dropped."""
    listing = run(command, "-w", "-n", "-v", "-x", "-L", "FORWARD")
    counted = re.search(r"policy DROP (\d+) packets", listing)
    assert counted
    return int(counted[1])


@pytest.mark.parametrize("version", [4, 6])
def test_it_is_our_rule_that_lets_them_pass(
    two: list[Endpoint], linux: LinuxKernel, version: int
) -> None:
    client, server = two
    assert reaches(client, server, version)
    assert dropped(COMMANDS[version]) == 0
    linux.delete_forward_accept(ruleset.ACCEPTED_MARK)
    with calling(client, server, version) as caller:
        wait_until(lambda: dropped(COMMANDS[version]), 5, "the policy drops the packet")
        assert not is_connected(caller)


def test_a_container_reaches_its_gateway(two: list[Endpoint]) -> None:
    for address in ("10.1.0.1", "fd00:1::1"):
        ip("neigh", "flush", "all", sandbox=sandbox_of(two[0]))
        ip("route", "get", address, sandbox=sandbox_of(two[0]))
    bridge = ip("-6", "addr", "show", "dev", NETWORK.bridge_name, "scope", "global")
    assert "fd00:1::1" in bridge
    assert "tentative" not in bridge
    assert "dadfailed" not in bridge


def test_sandboxes_have_their_parameters(two: list[Endpoint], real: RealHost) -> None:
    for endpoint in two:
        assert real.value(sandbox_of(endpoint), KEEPALIVE) == "600"
        assert real.value(sandbox_of(endpoint), "net.ipv4.conf.eth0.rp_filter") == "2"


def test_a_restart_mends_what_others_broke(
    two: list[Endpoint], driver: BridgeDriver, linux: LinuxKernel
) -> None:
    ip("link", "del", NETWORK.bridge_name)
    run("nft", "flush", "ruleset")
    for command in COMMANDS.values():
        run(command, "-w", "-P", "FORWARD", "DROP")
    restarted = BridgeDriver(driver._store, linux)
    restarted.restore()
    for version in (4, 6):
        assert reaches(two[0], two[1], version)
