"""Reservations are sockets: what they keep out, what they leave behind, who else has a port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from driver.driver import BridgeDriver
from driver.errors import Conflict
from driver.linux import ports as module
from driver.model import PortInUse, Protocol
from tests.kernel.container import start
from tests.kernel.host import bound, descriptors, run
from tests.samples import (
    binding,
    endpoint_id,
    network,
    network_id,
    new_endpoint,
    place,
    pool,
    ports,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from driver.linux.linux import LinuxKernel
    from tests.kernel.host import RealHost

PLACES = ("0.0.0.0:8080", "127.0.0.1:8080", "[::]:8080", "[::1]:8080", "0.0.0.0:5353/udp")
MANY = 5000
SECONDS_A_FLOW = 0.0002  # 25,000 in 5 s


@pytest.mark.parametrize("text", PLACES)
def test_a_reserved_port_is_nobody_elses(linux: LinuxKernel, text: str) -> None:
    linux.reserve_ports([place(text)])
    with pytest.raises(OSError, match="Address already in use"):
        bound(place(text))
    linux.release_ports([place(text)])
    bound(place(text)).close()


def lingering(port: int) -> None:
    """Leave a closed connection of a server that has ended on a port, in TIME_WAIT."""
    with socket.create_server(("127.0.0.1", port)) as server:
        client = socket.create_connection(("127.0.0.1", port))
        served, _ = server.accept()
        served.close()  # whoever closes first is the one to linger
        client.close()


@pytest.mark.parametrize("text", ["0.0.0.0:8080", "127.0.0.1:8080"])
def test_a_port_on_which_connections_linger_is_reserved_for_good(
    linux: LinuxKernel, text: str
) -> None:
    lingering(8080)
    with pytest.raises(OSError, match="Address already in use"):
        bound(place(text))
    linux.reserve_ports([place(text)])
    with pytest.raises(OSError, match="Address already in use"):
        socket.create_server(("127.0.0.1", 8080))  # with SO_REUSEADDR
    with pytest.raises(PortInUse):
        linux.reserve_ports([place("127.0.0.1:8080" if text.startswith("0") else "0.0.0.0:8080")])
    linux.release_ports([place(text)])
    socket.create_server(("127.0.0.1", 8080)).close()


def test_reservations_leave_no_descriptor(linux: LinuxKernel) -> None:
    places = [place(text) for text in ("0.0.0.0:1", "[::]:1", "0.0.0.0:2/udp")]
    linux.reserve_ports(places)
    linux.release_ports(places)
    before = descriptors()
    for _ in range(3):
        linux.reserve_ports(places)
        with pytest.raises(PortInUse):
            linux.reserve_ports([place("0.0.0.0:3"), place("127.0.0.1:1")])
        linux.release_ports(places)
    assert descriptors() == before


def test_a_protocol_that_the_kernel_has_not_needs_no_socket(
    linux: LinuxKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module._TYPES, Protocol.SCTP, (socket.SOCK_STREAM, 253))
    where = place("0.0.0.0:9899/sctp")
    before = descriptors()
    linux.reserve_ports([where])
    assert descriptors() == before
    with pytest.raises(PortInUse, match="9899/sctp"):
        linux.reserve_ports([where])
    linux.release_ports([where])
    linux.reserve_ports([where])


@pytest.mark.parametrize("theirs", ["0.0.0.0:8080", "127.0.0.1:8080"])
def test_a_foreign_process_is_named_and_nothing_is_left(
    driver: BridgeDriver, real: RealHost, theirs: str
) -> None:
    driver.create_network(network(1))
    new = new_endpoint()
    start(driver, real, 1, new, has_ports=True)
    before = real.elements("everywhere4"), descriptors()["socket"]
    real.take(place(theirs))
    with pytest.raises(Conflict, match=rf"8080/tcp: port is in use by \S+ \(pid {os.getpid()}\)"):
        driver.program_external_connectivity(new.network_id, new.id, ports("8081:81", "8080:80"))
    assert (real.elements("everywhere4"), descriptors()["socket"] - 1) == before
    bound(place("0.0.0.0:8081")).close()


HOLD = "import socket, sys; s = socket.create_server((sys.argv[1], 8080)); print(); input()"


@pytest.mark.parametrize("asked", ["127.0.0.1", "127.0.0.2"])
def test_of_two_processes_the_one_with_the_address_is_named(linux: LinuxKernel, asked: str) -> None:
    with ExitStack() as stack:
        holders: dict[str, subprocess.Popen[bytes]] = {}
        for address in ("127.0.0.1", "127.0.0.2"):
            holders[address] = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", HOLD, address],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            stack.callback(holders[address].kill)
            ready = holders[address].stdout
            assert ready is not None
            assert ready.readline()  # it holds the port
        owner = linux.find_port_owner(place(f"{asked}:8080"))
        assert owner.endswith(f"(pid {holders[asked].pid})")
        assert linux.find_port_owner(place("127.0.0.3:8080")) == "another process"
        assert linux.find_port_owner(place("0.0.0.0:8080")) != "another process"


@pytest.mark.parametrize(
    ("held", "asked"),
    [("::", "[::1]:8080"), ("::ffff:127.0.0.1", "127.0.0.1:8080"), ("::", "127.0.0.1:8080")],
)
def test_a_socket_of_both_families_is_found(linux: LinuxKernel, held: str, asked: str) -> None:
    with socket.create_server((held, 8080), family=socket.AF_INET6, dualstack_ipv6=True):
        assert linux.find_port_owner(place(asked)).endswith(f"(pid {os.getpid()})")


def test_another_endpoint_is_named(driver: BridgeDriver, real: RealHost) -> None:
    driver.create_network(network(1))
    for number in (1, 2):
        start(driver, real, number, new_endpoint(number), has_ports=True)
    driver.program_external_connectivity(network_id(1), endpoint_id(1), ports("127.0.0.1:8080:80"))
    with pytest.raises(Conflict, match="in use by endpoint e1e1e1e1e1e1 of network 010101010101"):
        driver.program_external_connectivity(network_id(1), endpoint_id(2), ports("8080:80"))
    driver.leave(network_id(1), endpoint_id(1))
    driver.program_external_connectivity(network_id(1), endpoint_id(2), ports("8080:80"))
    assert real.elements("everywhere4") == {"tcp . 8080 : 10.1.0.3 . 80"}


def test_a_restart_reserves_again(driver: BridgeDriver, real: RealHost, linux: LinuxKernel) -> None:
    driver.create_network(network(1))
    start(driver, real, 1, new_endpoint(), has_ports=True)
    driver.program_external_connectivity(
        network_id(1), endpoint_id(1), ports("8080:80", "53:53/udp")
    )
    linux._reservations.close()
    bound(place("0.0.0.0:8080")).close()
    BridgeDriver(driver._store, linux).restore()
    for text in ("0.0.0.0:8080", "0.0.0.0:53/udp"):
        with pytest.raises(OSError, match="Address already in use"):
            bound(place(text))


@pytest.mark.parametrize("host", ["192.0.2.1", "[2001:db8::1]"])
def test_udp_flows_end_with_publishing_and_with_the_container(
    driver: BridgeDriver, real: RealHost, host: str
) -> None:
    driver.create_network(network(1, pools=(pool("10.1.0.1/24"), pool("fd00:1::1/64"))))
    start(driver, real, 1, new_endpoint(ipv6="fd00:1::2/64"), has_ports=True)
    other = place(f"{host}:54/udp")
    identity = network_id(1), endpoint_id(1)
    publish = partial(driver.program_external_connectivity, *identity, ports("53:53/udp"))
    operations: list[Callable[[], None]] = [publish, partial(driver.leave, *identity)]
    for operation in operations:
        real.track(place(f"{host}:53/udp"), other)
        operation()
        assert real.flows() == {other}
        run("conntrack", "-F")


def test_a_name_servers_many_flows_are_forgotten_within_dockers_time(linux: LinuxKernel) -> None:
    run("ip", "link", "set", "lo", "up")
    run("nft", "add table ip t; add chain ip t c { type filter hook output priority 0; }")
    run("nft", "add rule ip t c ct state new accept")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        for number in range(MANY):
            client.sendto(b"", (f"127.1.{number >> 8}.{number & 0xFF}", 53))
    tracked = Path("/proc/sys/net/netfilter/nf_conntrack_count")
    assert int(tracked.read_text()) >= MANY
    began = time.process_time()
    linux.forget_flows([binding("0.0.0.0:53/udp", "10.1.0.2:53/udp")])
    assert time.process_time() - began < MANY * SECONDS_A_FLOW
    assert int(tracked.read_text()) < MANY


def test_where_an_operator_sees_reservations(linux: LinuxKernel) -> None:
    """As docs/operations.md has it."""
    linux.reserve_ports([place("0.0.0.0:8080"), place("0.0.0.0:5353/udp")])
    me = f"pid={os.getpid()},"
    udp = run("ss", "-ulnpH", "sport", "=", "5353")
    assert me in udp
    assert not run("ss", "-tlnpH", "sport", "=", "8080")
    if "--bound-inactive" not in run("ss", "--help"):
        pytest.skip("this iproute2 is older than 6.8")
    assert me in run("ss", "-tnpH", "--bound-inactive", "sport", "=", "8080")
