"""What comes and goes leaves nothing: links, rules, rows, descriptors, threads."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from driver.driver import NewJoin
from driver.model import EndpointId, SandboxKey, host_end_name
from tests.engine.wait import wait_until
from tests.kernel.container import start
from tests.kernel.host import descriptors, mount_namespace, run
from tests.samples import (
    KEEPALIVE,
    RP_FILTER,
    endpoint_id,
    network,
    network_id,
    new_endpoint,
    new_join,
)

if TYPE_CHECKING:
    from driver.driver import BridgeDriver
    from tests.kernel.host import RealHost

LIVES = 200
REST_SECONDS = 30  # links go in the background, 15 to 30 ms each
NETWORK = network(1, f"{KEEPALIVE}=600", f"{RP_FILTER}=2")


def remains(driver: BridgeDriver, real: RealHost) -> dict[str, object]:
    """Return everything that a life could leave behind."""
    tables = ("network", "endpoint", "trace")
    rows = {table: driver._store._db.execute(f"SELECT * FROM {table}") for table in tables}
    return {
        "links": set(real.links()),
        "rules": run("nft", "-s", "list", "ruleset"),
        "rows": {table: found.fetchall() for table, found in rows.items()},
        "descriptors": descriptors(),
        "threads": {thread.name for thread in threading.enumerate()},
        "watches": set(real.kernel._watch._awaited),
    }


def live(driver: BridgeDriver, number: int, sandbox: SandboxKey) -> None:
    """Have an endpoint live, from CreateEndpoint to DeleteEndpoint."""
    # An endpoint's id never comes back; the link of an earlier life may be on its way out still.
    identity = EndpointId(f"{number:012x}" + 52 * "e")
    new = replace(new_endpoint(1, 1, host=2 + number % 200), id=identity)
    driver.create_endpoint(new)
    driver.join(NewJoin(new.network_id, new.id, sandbox, has_ports=False))
    driver.leave(new.network_id, new.id)
    driver.delete_endpoint(new.network_id, new.id)


def test_many_lives_leave_nothing(driver: BridgeDriver, real: RealHost) -> None:
    there, to_come = real.add_sandbox(1), real.expect_sandbox(2)
    sockets = descriptors()["socket"]
    driver.create_network(NETWORK)
    for number, sandbox in enumerate((there, to_come)):  # the threads that stay are started
        live(driver, number, sandbox)
    wait_until(
        lambda: set(real.links()) == {NETWORK.bridge_name}, REST_SECONDS, "the links are deleted"
    )
    wait_until(
        lambda: descriptors()["socket"] == sockets, REST_SECONDS, "the background is at rest"
    )
    before = remains(driver, real)
    for number in range(2, LIVES):
        live(driver, number, there if number % 2 else to_come)
    with suppress(TimeoutError):
        wait_until(lambda: remains(driver, real) == before, REST_SECONDS, "it is as it was")
    assert remains(driver, real) == before
    assert real.value(there, KEEPALIVE) == "7200"


def test_a_network_leaves_nothing(driver: BridgeDriver, real: RealHost) -> None:
    driver.create_network(network(9))
    driver.delete_network(network_id(9))
    before = remains(driver, real)
    driver.create_network(NETWORK)
    start(driver, real, 1, new_endpoint())
    driver.delete_network(NETWORK.id)
    wait_until(lambda: not real.links(), REST_SECONDS, "all links are deleted")
    assert remains(driver, real)["rows"] == before["rows"]
    assert "pynet" not in run("nft", "list", "ruleset")


def test_a_sandbox_that_comes_after_join_is_configured(
    driver: BridgeDriver, real: RealHost
) -> None:
    sandbox = real.expect_sandbox(1)
    driver.create_network(NETWORK)
    driver.create_endpoint(new_endpoint())
    driver.join(new_join(1, 1, sandbox))
    mount_namespace(sandbox)
    wait_until(
        lambda: real.value(sandbox, KEEPALIVE) == "600", REST_SECONDS, "the parameter is written"
    )
    real.move(host_end_name(endpoint_id(1)), sandbox)
    key = "net.ipv4.conf.eth0.rp_filter"
    wait_until(lambda: real.value(sandbox, key) == "2", REST_SECONDS, "the interface is configured")
    driver.leave(network_id(1), endpoint_id(1))
    # Who wrote them learns of that only when it comes to note what was there before.
    wait_until(lambda: real.value(sandbox, KEEPALIVE) == "7200", REST_SECONDS, "the value before")


def test_what_the_user_set_is_left_alone(driver: BridgeDriver, real: RealHost) -> None:
    sandbox = real.add_sandbox(1)
    run("nsenter", f"--net={sandbox}", "sysctl", "-w", f"{KEEPALIVE}=500")
    driver.create_network(NETWORK)
    start_in = new_endpoint()
    driver.create_endpoint(start_in)
    driver.join(new_join(1, 1, sandbox))
    assert real.value(sandbox, KEEPALIVE) == "500"
    driver.leave(network_id(1), start_in.id)
    assert real.value(sandbox, KEEPALIVE) == "500"


def test_the_host_keeps_its_own_values(driver: BridgeDriver, real: RealHost) -> None:
    own = Path("/proc/sys/net/ipv4/tcp_keepalive_time")
    before = own.read_text()
    driver.create_network(NETWORK)
    start(driver, real, 1, new_endpoint())
    assert own.read_text() == before != "600\n"
