"""What many parameters and many sandboxes cost, on a kernel that does everything for real."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from werkzeug.test import Client

from driver.driver import NewJoin
from driver.linux import sysctl as kernel_sysctl
from driver.options import parse_change
from plugin.api import create_app
from tests.engine.soak import repetitions
from tests.samples import KEEPALIVE, network, network_id, one_of_many, pool, ports

if TYPE_CHECKING:
    from collections.abc import Callable

    from driver.driver import BridgeDriver
    from driver.model import SandboxKey
    from tests.kernel.host import RealHost

TWENTY = {
    "net.core.somaxconn": "8192",
    "net.ipv4.ip_default_ttl": "63",
    "net.ipv4.ip_local_port_range": "10000 60000",
    "net.ipv4.tcp_ecn": "1",
    "net.ipv4.tcp_fin_timeout": "30",
    "net.ipv4.tcp_keepalive_intvl": "30",
    "net.ipv4.tcp_keepalive_probes": "5",
    "net.ipv4.tcp_keepalive_time": "600",
    "net.ipv4.tcp_max_syn_backlog": "8192",
    "net.ipv4.tcp_mtu_probing": "1",
    "net.ipv4.tcp_notsent_lowat": "131072",
    "net.ipv4.tcp_orphan_retries": "3",
    "net.ipv4.tcp_retries1": "4",
    "net.ipv4.tcp_retries2": "8",
    "net.ipv4.tcp_rmem": "4096 65536 1048576",
    "net.ipv4.tcp_slow_start_after_idle": "0",
    "net.ipv4.tcp_syn_retries": "4",
    "net.ipv4.tcp_synack_retries": "3",
    "net.ipv4.tcp_tw_reuse": "1",
    "net.ipv4.tcp_wmem": "4096 65536 1048576",
}
JOINS = 25
JOIN_MILLISECONDS = 3.0
SECONDS = 1.0
SCRAPE_SECONDS = 0.2  # of a thousand endpoints
BESIDE_OTHERS = 10.0  # times as long, on a machine that has more to do; a fault is a hundred times


def clock(action: Callable[[], object]) -> float:
    """Return the seconds that an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def is_done_within(seconds: float, action: Callable[[], object]) -> float:
    """Do it, in so many seconds of the processor's time; return how many it was of the clock's."""
    before = time.process_time()
    took = clock(action)
    assert time.process_time() - before < seconds
    assert took < BESIDE_OTHERS * seconds
    return took


def join(driver: BridgeDriver, number: int, net: int, sandbox: SandboxKey) -> float:
    """Join an endpoint of its own to a network; return the seconds of the processor's time."""
    new = one_of_many(number, net)
    driver.create_endpoint(new)
    before = time.process_time()
    driver.join(NewJoin(new.network_id, new.id, sandbox, has_ports=False))
    return time.process_time() - before


def test_twenty_parameters_cost_a_join_little(driver: BridgeDriver, real: RealHost) -> None:
    wide = {number: (pool(f"10.{number}.0.1/16"),) for number in (1, 2)}
    driver.create_network(network(1, pools=wide[1]))
    wanted = [f"{key}={value}" for key, value in TWENTY.items()]
    driver.create_network(network(2, *wanted, pools=wide[2]))
    taken: dict[int, list[float]] = {1: [], 2: []}
    for number in range(JOINS):  # in turn, so that a busy moment hits both alike
        for net, series in taken.items():
            series.append(join(driver, number, net, real.add_sandbox(2 * number + net)))
    # The least of many: what the work costs, without what a busy machine adds to it.
    cost = (min(taken[2]) - min(taken[1])) * 1000
    print(f" {cost:.1f} ms for {len(TWENTY)} parameters", end="")
    assert cost < JOIN_MILLISECONDS


def test_a_network_of_all_parameters_is_soon_made(driver: BridgeDriver) -> None:
    """A thousand are more than a kernel has: all that there are, scaled."""
    pristine = kernel_sysctl.read_pristine()
    wanted = [f"{key}={value}" for key, value in pristine.items() if not key.endswith("_key")]
    limit = SECONDS * len(wanted) / 1000
    seconds = is_done_within(limit, lambda: driver.create_network(network(1, *wanted)))
    print(f" {seconds:.2f} s for {len(wanted)} parameters", end="")
    is_done_within(SECONDS, lambda: driver.create_network(network(2, inherit=("net.*",))))


@pytest.mark.soak
def test_a_change_reaches_many_sandboxes_within_a_second(
    driver: BridgeDriver, real: RealHost
) -> None:
    many = repetitions(1000)
    driver.create_network(network(1, f"{KEEPALIVE}=600", pools=(pool("10.1.0.1/16"),)))
    sandboxes = [real.add_sandbox(1 + number) for number in range(many)]
    for number, sandbox in enumerate(sandboxes):
        join(driver, number, 1, sandbox)
    change = parse_change({KEEPALIVE: "300"}, ())
    seconds = is_done_within(SECONDS, lambda: driver.change_network(network_id(1), change))
    print(f" {seconds:.2f} s for {many} sandboxes", end="")
    assert {real.value(sandbox, KEEPALIVE) for sandbox in sandboxes} == {"300"}


@pytest.mark.soak
def test_a_scrape_beside_many_containers_costs_little(driver: BridgeDriver, real: RealHost) -> None:
    many = repetitions(1000)
    driver.create_network(network(1, pools=(pool("10.1.0.1/16"),)))
    for number in range(many):
        new, sandbox = one_of_many(number), real.add_sandbox(1 + number)
        driver.create_endpoint(new)
        driver.join(NewJoin(new.network_id, new.id, sandbox, has_ports=True))
        published = ports(f"127.0.0.1:{20_000 + number}:80")
        driver.program_external_connectivity(new.network_id, new.id, published)
    client = Client(create_app(lambda: driver))
    answers = []

    def scrape() -> None:
        answers.append(client.get("/metrics"))

    scrape()  # what is looked up but once
    seconds = is_done_within(SCRAPE_SECONDS * many / 1000 + 0.02, scrape)
    print(f" {seconds * 1000:.0f} ms for {many} endpoints and ports", end="")
    assert answers[-1].text.count("\npynet_published_port_connections{") == many
