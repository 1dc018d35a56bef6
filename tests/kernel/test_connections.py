"""What has come to a published port is counted, and what of it is open: that and nothing else."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from driver.linux import flows
from driver.model import HostPort, Protocol
from tests.engine.wait import wait_until
from tests.kernel.container import FAMILIES, serving, socket_in
from tests.kernel.host import run
from tests.kernel.test_published import publish
from tests.samples import binding

if TYPE_CHECKING:
    from driver.driver import BridgeDriver
    from driver.model import Endpoint, PortBinding, Usage
    from tests.kernel.host import RealHost

EVERYWHERE = {
    4: HostPort(Protocol.TCP, ip_address("0.0.0.0"), 80),
    6: HostPort(Protocol.TCP, ip_address("::"), 80),
}
GATEWAYS = {4: "10.1.0.1", 6: "fd00:1::1"}
ACCOUNTING = Path("/proc/sys/net/netfilter/nf_conntrack_acct")
PLENTY = 10**6


@pytest.fixture
def server(driver: BridgeDriver, real: RealHost) -> Endpoint:
    """Return a container that publishes 8080 as 80."""
    started, _ = publish(driver, real)
    ACCOUNTING.write_text("0")
    return started


def connect(stack: ExitStack, version: int, address: str, port: int) -> socket.socket:
    opened = stack.enter_context(socket.socket(FAMILIES[version]))
    opened.settimeout(5)
    opened.connect((address, port))
    return opened


def bindings(driver: BridgeDriver) -> tuple[PortBinding, ...]:
    return tuple(
        binding for _, ends in driver.describe() for end in ends for binding in end.bindings
    )


def usage(driver: BridgeDriver) -> dict[int, Usage]:
    found = driver.count_connections(bindings(driver), PLENTY)
    assert found is not None
    return {each.host.ip.version: use for each, use in found.items() if each.host is not None}


@pytest.mark.usefixtures("as_docker_leaves_it")
def test_connections_are_counted_by_port_and_are_no_drift(
    driver: BridgeDriver, server: Endpoint
) -> None:
    assert driver.read_published() == dict.fromkeys(EVERYWHERE.values(), 0)
    with serving(server, 6), ExitStack() as stack:
        for _ in range(3):
            connect(stack, 4, GATEWAYS[4], 80)
        connect(stack, 6, GATEWAYS[6], 80)
        direct = next(str(each.ip) for each in server.addresses if each.version == 4)
        connect(stack, 4, direct, 8080)  # by its own address: nobody has translated that
        counted = {EVERYWHERE[4]: 3, EVERYWHERE[6]: 1}
        assert driver.read_published() == counted
        shown = json.loads(run("nft", "-j", "list", "map", "inet", "pynet", "everywhere4"))
        ((element, _),) = shown["nftables"][1]["map"]["elem"]
        assert element["elem"]["counter"]["packets"] == 3
        assert {version: use.connections for version, use in usage(driver).items()} == {4: 3, 6: 1}
        assert {use.traffic for use in usage(driver).values()} == {None}
        assert driver.check() == ()
        driver.repair_all()
        assert driver.read_published() == counted, "nothing was wrong, so nothing was made anew"
    # The listener is gone, too, and what nobody had accepted was reset.
    wait_until(lambda: usage(driver)[4].connections == 0, 5, "the connections' end")
    assert driver.read_published() == counted


@pytest.mark.usefixtures("as_docker_leaves_it")
def test_bytes_are_told_while_the_kernel_counts_them(
    driver: BridgeDriver, server: Endpoint
) -> None:
    ACCOUNTING.write_text("1")
    with serving(server, 6), ExitStack() as stack:
        connect(stack, 4, GATEWAYS[4], 80).sendall(bytes(10_000))
        wait_until(lambda: usage(driver)[4].connections == 1, 5, "the connection")
        traffic = usage(driver)[4].traffic
    assert traffic is not None
    assert 10_000 < traffic.bytes < 12_000
    assert traffic.packets >= 4


@pytest.mark.usefixtures("as_docker_leaves_it")
def test_a_host_that_tracks_too_many_is_not_looked_through(
    driver: BridgeDriver, server: Endpoint
) -> None:
    with serving(server, 6), ExitStack() as stack:
        connect(stack, 4, GATEWAYS[4], 80)
        assert driver.count_connections(bindings(driver), 0) is None


@pytest.mark.usefixtures("as_docker_leaves_it")
def test_of_an_address_what_it_has_begun_and_what_it_answers(
    driver: BridgeDriver, server: Endpoint
) -> None:
    own = next(each.ip.packed for each in server.addresses if each.version == 4)
    with serving(server, 6), ExitStack() as stack, socket.socket() as listener:
        listener.bind((GATEWAYS[4], 0))
        listener.listen()
        for _ in range(2):
            connect(stack, 4, GATEWAYS[4], 80)
        caller = stack.enter_context(socket_in(server, socket.AF_INET))
        caller.settimeout(5)
        caller.connect(listener.getsockname())
        assert flows.count_by_address(flows.read_flows(), {own, bytes(4)}) == {own: 3}


@pytest.mark.parametrize("translated", [True, False])
def test_what_is_published_on_one_address_is_not_of_another(*, translated: bool) -> None:
    """Also where an older kernel lists what nobody has translated."""
    server = ip_address("10.1.0.2").packed
    here, there = (ip_address(each).packed for each in ("192.0.2.1", "192.0.2.2"))
    passing = [
        flows.Flow(6, b"", 9, place, 8080, server if translated else place, 80, True, None, None)  # noqa: FBT003
        for place in (here, there, there)
    ]
    own = [binding(f"{each}:8080", "10.1.0.2:80") for each in ("192.0.2.1", "192.0.2.2", "0.0.0.0")]
    found = flows.count_published(passing, own)
    counted = [found[each].connections for each in own]
    assert counted == ([1, 2, 3] if translated else [0, 0, 0])
