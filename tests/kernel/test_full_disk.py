"""A full disk keeps nothing from being forgotten, whatever is the first that the driver forgets.

The kernel is the one in memory: the disk is what is real here.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from driver.driver import BridgeDriver
from driver.errors import StoreError
from driver.model import host_end_name
from driver.state.reserve import BYTES
from driver.state.reserve import NAME as RESERVE
from driver.state.store import COPY_NAME, Store
from tests.fakes import FakeKernel
from tests.kernel.test_server_state import SIZE, fill
from tests.samples import (
    KEEPALIVE,
    endpoint_id,
    network,
    network_id,
    new_endpoint,
    new_join,
    one_of_many,
    place,
    pool,
    ports,
    sandbox_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from driver.model import EndpointId

    Step = Callable[["World"], object]

WIDE = network(1, f"{KEEPALIVE}=600", pools=(pool("10.1.0.1/16"),))


@dataclass
class World:
    """A driver whose state is on a small disk; a container with a port runs, another was made."""

    state: Path
    store: Store
    kernel: FakeKernel
    driver: BridgeDriver

    def fill(self) -> Path:
        """Have nothing more fit on the disk, nor into what SQLite has of it already."""
        filled = fill(self.state)
        with pytest.raises(StoreError, match="full"):
            self.crowd()
        assert (self.state / RESERVE).exists()
        return filled

    def crowd(self) -> None:
        """Make more endpoints than there is room for."""
        for number in range(100, 1000):
            self.driver.create_endpoint(one_of_many(number))

    def restart(self) -> None:
        """Restore on the file that is open: to open it again may give the reserve up."""
        self.kernel.restart()
        self.driver = BridgeDriver(self.store, self.kernel)
        self.driver.restore()

    @property
    def endpoints(self) -> set[EndpointId]:
        """Return which of the first endpoints are known."""
        known = {each.id for _, endpoints in self.driver.describe() for each in endpoints}
        return known & {endpoint_id(1), endpoint_id(2), endpoint_id(3)}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    state = tmp_path / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "x", state], check=True)
    store, kernel = Store(state), FakeKernel()
    driver = BridgeDriver(store, kernel)
    driver.restore()
    driver.create_network(WIDE)
    for number in (1, 2, 3):
        driver.create_endpoint(new_endpoint(number))
    for number in (1, 3):
        kernel.add_sandbox(sandbox_key(number))
        driver.join(new_join(number, 1, sandbox_key(number), has_ports=True))
        kernel.move(host_end_name(endpoint_id(number)), sandbox_key(number))
    driver.program_external_connectivity(network_id(1), endpoint_id(1), ports("8080:80"))
    yield World(state, store, kernel, driver)
    store.close()


def die(world: World) -> None:
    world.kernel.die(sandbox_key(1))


def reboot(world: World) -> None:
    world.kernel.reboot()


def leave_half(world: World) -> None:
    """Have a container leave, and the driver die before it has put its parameters back."""
    with world.store.transaction():
        (left,) = [each for each in world.store.endpoints() if each.id == endpoint_id(1)]
        world.store.put_bindings(left.id, ())
        world.store.put_endpoint(left.left())


def repair(world: World) -> None:
    assert world.driver.repair_all() == ()


def heal(world: World) -> None:
    world.driver._reconciler.repair(lambda found: found)


FORGETTING: dict[str, tuple[Step, Step, set[int]]] = {
    "who died while the driver was down": (die, World.restart, {2, 3}),
    "who was before a reboot": (reboot, World.restart, set()),
    "who is found dead when asked": (die, repair, {2, 3}),
    "who is found dead by itself": (die, heal, {2, 3}),
    "what a leave had not forgotten yet": (leave_half, World.restart, {1, 2, 3}),
}


@pytest.mark.parametrize(("happens", "forgets", "left"), FORGETTING.values(), ids=FORGETTING)
def test_what_nobody_asks_for_is_forgotten_as_the_first_thing_on_a_full_disk(
    world: World, happens: Step, forgets: Step, left: set[int]
) -> None:
    happens(world)
    world.fill()
    forgets(world)
    assert world.endpoints == {endpoint_id(number) for number in left}
    assert not world.kernel.reserved
    assert not (world.state / RESERVE).exists()
    with world.store.transaction():
        traced = set(world.store.sandboxes())
    assert traced <= {sandbox_key(number) for number in (1, 3) if number in left}
    if happens is leave_half:
        assert world.kernel.sandboxes[sandbox_key(1)][KEEPALIVE] == "7200"
        assert traced == {sandbox_key(3)}


def test_the_reserve_is_taken_up_again_for_the_next_time(world: World) -> None:
    for number in (1, 3):
        filled = world.fill()
        world.driver.leave(network_id(1), endpoint_id(number))
        assert not (world.state / RESERVE).exists()
        filled.unlink()
        world.driver.create_network(network(number + 1))
        assert (world.state / RESERVE).stat().st_size == BYTES
    assert world.endpoints == {endpoint_id(number) for number in (1, 2, 3)}


def test_a_copy_that_does_not_fit_leaves_no_half_of_it_and_the_last_one_as_it_was(
    world: World,
) -> None:
    before = (world.state / COPY_NAME).read_bytes()
    filled = fill(world.state)
    health = world.store._health
    with filled.open("r+b") as file:  # room for the row, and none for a copy of the file
        file.truncate(file.seek(0, 2) - 96 * 1024)
    world.driver.create_network(network(2))
    (problem,) = health.problems()
    assert "keep a copy of the state file" in problem
    assert {each.name for each in world.state.iterdir() if "copy" in each.name} == {COPY_NAME}
    assert (world.state / COPY_NAME).read_bytes() == before
    filled.unlink()
    world.driver.create_network(network(3))
    assert not health.problems()
    assert (world.state / COPY_NAME).read_bytes() != before


def test_what_is_published_no_more_is_withdrawn_on_a_full_disk(world: World) -> None:
    """Another endpoint has become its container's way out by IPv6."""
    world.fill()
    world.driver.program_external_connectivity(
        network_id(1), endpoint_id(1), ports("8080:80"), only_ipv4=True
    )
    assert world.kernel.reserved == {place("0.0.0.0:8080")}
    assert not world.kernel.relayed
