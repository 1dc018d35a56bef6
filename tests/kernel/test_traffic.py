"""What has passed a container's link is told as the container counts it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from driver.linux import netns
from driver.model import Traffic, host_end_name
from tests.engine.wait import wait_until
from tests.kernel.container import sandbox_of, socket_in, start
from tests.samples import network, new_endpoint

if TYPE_CHECKING:
    from driver.driver import BridgeDriver
    from driver.linux.linux import LinuxKernel
    from driver.model import Endpoint
    from tests.kernel.host import RealHost

DATAGRAMS = 20


def counted_inside(endpoint: Endpoint) -> Traffic:
    """Return what the container's own interface has counted."""
    with netns.open_namespace(sandbox_of(endpoint)) as namespace:
        text = netns.run_in(namespace, Path("/proc/thread-self/net/dev").read_text)
    (line,) = (line for line in text.splitlines() if "eth0:" in line)
    columns = [int(column) for column in line.partition(":")[2].split()]
    return Traffic(columns[0], columns[1], columns[8], columns[9], columns[3], columns[11])


def test_it_is_what_the_container_counts(
    driver: BridgeDriver, linux: LinuxKernel, real: RealHost
) -> None:
    driver.create_network(network(1))
    endpoint = start(driver, real, 1, new_endpoint(1))
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host,
        socket_in(endpoint, socket.AF_INET, socket.SOCK_DGRAM) as inside,
    ):
        host.bind(("10.1.0.1", 0))
        for _ in range(DATAGRAMS):
            inside.sendto(bytes(1000), host.getsockname())
        _, caller = host.recvfrom(2000)
        host.sendto(bytes(500), caller)
        inside.settimeout(5)
        assert len(inside.recv(2000)) == 500

    def told() -> Traffic:
        return linux.read_traffic()[host_end_name(endpoint.id)]

    wait_until(lambda: told() == counted_inside(endpoint), 5, "both ends counting the same")
    assert told().sent_bytes > DATAGRAMS * 1000 > told().received_bytes > 500
    assert told().sent_packets >= DATAGRAMS > told().received_packets > 0


def test_it_is_told_of_every_link_of_the_host(linux: LinuxKernel, real: RealHost) -> None:
    real.add_foreign("br0")
    assert linux.read_traffic().keys() == {"lo", "br0"}
