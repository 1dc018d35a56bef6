"""The pair that is made while the engine is between CreateEndpoint and Join, on the real kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

from driver import model
from driver.model import Attach, host_end_name
from driver.options import MTU, parse_change
from tests.engine.wait import wait_until
from tests.kernel.host import ip
from tests.kernel.server import Server, endpoint, ids
from tests.kernel.server import network as network_call
from tests.samples import KEEPALIVE, endpoint_id, network, network_id, new_endpoint, new_join

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from driver.bridge import BridgeDriver
    from driver.model import Endpoint
    from tests.kernel.host import RealHost

ONE = (network_id(1), endpoint_id(1))
HOST_END = host_end_name(endpoint_id(1))


def index() -> str:
    """Return the interface index of the host end, by which the kernel tells links apart."""
    return ip("-o", "link", "show", HOST_END).partition(":")[0]


def prepare(driver: BridgeDriver, attach: Attach = Attach.HANDOVER) -> None:
    """Have an endpoint be about to join."""
    driver.create_network(network(1, f"{KEEPALIVE}=600", attach=attach))
    driver.create_endpoint(new_endpoint(1))
    driver.ensure_pair(*ONE)


def join(driver: BridgeDriver, real: RealHost, *, has_ports: bool = False) -> None:
    """Have it join, and its interface be moved."""
    sandbox = real.add_sandbox(1)
    driver.join(replace(new_join(1, 1, sandbox), has_ports=has_ports))
    assert real.value(sandbox, KEEPALIVE) == "600"
    real.move(HOST_END, sandbox)


@pytest.mark.parametrize("has_ports", [False, True])
def test_a_join_takes_it(driver: BridgeDriver, real: RealHost, *, has_ports: bool) -> None:
    prepare(driver)
    made, before = index(), real.links()[HOST_END]
    assert (before.up, before.hairpin) == (True, False)
    join(driver, real, has_ports=has_ports)
    assert (index(), real.links()[HOST_END].hairpin) == (made, has_ports)
    assert driver.check() == ()


def changed(driver: BridgeDriver) -> None:
    driver.change_network(network_id(1), parse_change({MTU: "1400"}, ()))


def deleted(_: BridgeDriver) -> None:
    ip("link", "delete", HOST_END)


@pytest.mark.parametrize("spoil", [changed, deleted])
def test_one_of_no_use_is_made_anew(
    driver: BridgeDriver, real: RealHost, spoil: Callable[[BridgeDriver], None]
) -> None:
    prepare(driver)
    made = index()
    spoil(driver)
    join(driver, real)
    assert index() != made
    mtu = {endpoint.network_id: each.options.mtu for each, (endpoint,) in driver.describe()}
    assert real.links()[HOST_END].mtu == mtu[network_id(1)]
    assert driver.check() == ()


def test_one_that_others_have_taken_off_its_bridge_is_put_back(
    driver: BridgeDriver, real: RealHost
) -> None:
    prepare(driver)
    made = index()
    ip("link", "set", HOST_END, "nomaster", "down")
    join(driver, real)
    assert index() == made
    assert driver.check() == ()


def test_it_goes_with_its_endpoint(driver: BridgeDriver, real: RealHost) -> None:
    prepare(driver)
    assert driver.check() == ()  # it is no leftover meanwhile
    driver.delete_endpoint(*ONE)
    wait_until(lambda: HOST_END not in real.links(), 10, "the link is deleted")
    prepare(driver)
    made = index()
    driver.delete_network(network_id(1))
    wait_until(lambda: HOST_END not in real.links(), 10, "the link is deleted")
    prepare(driver)
    assert index() != made
    join(driver, real)


def test_there_is_none_ahead_of_a_direct_join(driver: BridgeDriver, real: RealHost) -> None:
    prepare(driver, Attach.DIRECT)
    assert HOST_END not in real.links()


def test_who_has_joined_gets_no_other(driver: BridgeDriver, real: RealHost) -> None:
    prepare(driver)
    join(driver, real)
    made = index()
    driver.ensure_pair(*ONE)
    assert index() == made


def test_it_is_on_the_bridge_that_the_join_finds_room_on(
    driver: BridgeDriver, real: RealHost
) -> None:
    def bridge_of(number: int) -> str | None:
        return real.links()[host_end_name(endpoint_id(number))].bridge

    def parts() -> list[int]:
        return [joined_on(endpoint) for _, among in driver.describe() for endpoint in among]

    def joined_on(endpoint: Endpoint) -> int:
        return endpoint.attachment.bridge if endpoint.attachment else -1

    driver.create_network(network(1))
    with patch.object(model, "BRIDGE_PORTS", 2):
        for number in range(1, 5):
            driver.create_endpoint(new_endpoint(number))
            driver.ensure_pair(network_id(1), endpoint_id(number))
            # The join makes a bridge that there is not yet.
            assert (host_end_name(endpoint_id(number)) in real.links()) == (number != 3)
            driver.join(new_join(number, 1, real.add_sandbox(number)))
    assert parts() == [0, 0, 1, 1]
    assert bridge_of(1) == bridge_of(2) != bridge_of(3)
    assert bridge_of(3) == bridge_of(4)


def test_it_is_made_when_docker_has_its_answer(tmp_path: Path) -> None:
    with Server(tmp_path / "server") as server:
        assert server.call("CreateNetwork", network_call(1)) == (200, {})
        assert server.call("CreateEndpoint", endpoint(1))[0] == 200
        assert "pnh" in ip("link")
        assert server.call("DeleteEndpoint", ids(1))[0] == 200
        wait_until(lambda: "pnh" not in ip("link"), 10, "the link is deleted")
        status, _ = server.call("CreateEndpoint", {**endpoint(2), "Interface": {"Address": "no"}})
        assert status == 400
        assert "pnh" not in ip("link")
