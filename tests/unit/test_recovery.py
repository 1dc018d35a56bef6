"""A state file that was damaged or lost: nothing is thrown away, and what is lost is said."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
from typing import TYPE_CHECKING, Any

import pytest

from driver import model
from driver.driver import BridgeDriver
from driver.errors import StateDamaged, StoreError
from driver.health import Health
from driver.model import host_end_name
from driver.options import ICC, MTU, parse_change
from driver.state.recovery import open_state
from driver.state.store import COPY_NAME, FILE_NAME, Store
from tests.fakes import FakeKernel
from tests.samples import (
    KEEPALIVE,
    endpoint_id,
    network,
    network_id,
    new_endpoint,
    new_join,
    pool,
    ports,
    sandbox_key,
)
from tests.unit.faults import World
from tests.unit.test_fault_matrix import EVERY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.unit.faults import Scenario

FULL = 2  # of PRAGMA synchronous: what is committed waits for the disk
BACK = network(1, f"{KEEPALIVE}=600")
FRONT = network(
    2, internal=True, icc=False, mtu=1400, pools=(pool("10.2.0.1/24"), pool("fd00::1/64"))
)


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def folder(tmp_path: Path, kernel: FakeKernel) -> Path:
    """Lend the state folder of a driver that was killed, with two running containers."""
    folder, killed = tmp_path / "state", tmp_path / "killed"
    driver = BridgeDriver(Store(folder), kernel)
    driver.restore()
    for each in (BACK, FRONT):
        driver.create_network(each)
    for number in (1, 2):
        kernel.add_sandbox(sandbox_key(number))
        driver.create_endpoint(new_endpoint(number, number))
        driver.join(new_join(number, number, sandbox=sandbox_key(number)))
        kernel.move(host_end_name(endpoint_id(number)), sandbox_key(number))
    driver.program_external_connectivity(network_id(1), endpoint_id(1), ports("8080:80"))
    shutil.copytree(folder, killed)  # to close it would have SQLite tidy up its log
    driver.close()
    kernel.restart()
    (killed / f"{FILE_NAME}-shm").unlink()
    return killed


def truncate(file: Path) -> None:
    """Cut off its end."""
    checkpoint(file)
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)


def truncate_but_not_its_log(file: Path) -> None:
    """Cut off what the log has, too: SQLite mends that by itself."""
    with file.open("r+b") as opened:
        opened.truncate(100)


def empty(file: Path) -> None:
    """Cut it off entirely, and its log with it."""
    file.write_bytes(b"")
    file.with_name(f"{file.name}-wal").unlink()


def empty_but_not_its_log(file: Path) -> None:
    file.write_bytes(b"")


def overwrite(file: Path) -> None:
    """Have another program's data in the middle of it."""
    checkpoint(file)
    content = bytearray(file.read_bytes())
    content[4096:20480] = b"x" * 16384
    file.write_bytes(content)


def garble(file: Path) -> None:
    file.with_name(f"{file.name}-wal").unlink()
    file.write_bytes(b"this is no database, and long enough to be one" * 100)


def garble_a_row(file: Path) -> None:
    execute(file, 'UPDATE network SET options = \'{"mtu": "wide"}\'')


def garble_an_address(file: Path) -> None:
    execute(file, "UPDATE endpoint SET ipv4 = '10.1.0.300/24'")


def lose_a_table(file: Path) -> None:
    execute(file, "DROP TABLE trace", "DROP TABLE binding")


def checkpoint(file: Path) -> None:
    execute(file, "PRAGMA wal_checkpoint(TRUNCATE)")


def execute(file: Path, *statements: str) -> None:
    db = sqlite3.connect(file, isolation_level=None)
    for statement in statements:
        db.execute(statement).fetchall()
    db.close()


DAMAGES = [
    truncate,
    empty_but_not_its_log,
    overwrite,
    garble,
    garble_a_row,
    garble_an_address,
    lose_a_table,
]


def start(folder: Path, kernel: FakeKernel) -> tuple[BridgeDriver, tuple[str, ...]]:
    """Start a driver again; return it and what health says."""
    health = Health()
    driver = BridgeDriver(open_state(folder, kernel, health), kernel, health=health)
    driver.restore()
    return driver, health.problems()


def set_aside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(f"{FILE_NAME}.damaged-*"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_networks_come_back_whole_from_the_copy(
    folder: Path, kernel: FakeKernel, damage: Callable[[Path], None]
) -> None:
    before = kernel.state()
    damage(folder / FILE_NAME)
    driver, problems = start(folder, kernel)
    networks = {each.id: each for each, _ in driver.describe()}
    assert networks == {BACK.id: BACK, FRONT.id: FRONT}
    assert kernel.state()["links"] == before["links"]
    endpoints = {each.id for _, ends in driver.describe() for each in ends}
    assert endpoints == {endpoint_id(1), endpoint_id(2)}
    (problem,) = problems
    assert "the state file was damaged (" in problem
    assert "its copy of 2" in problem
    assert "e1e1e1e1e1e1" in problem  # came after the copy
    names = set_aside(folder)
    assert re.fullmatch(r"pynet\.db\.damaged-\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d", names[0])
    assert names[0] in problem
    assert driver.check() == ()
    driver.close()


def test_nobody_else_may_read_what_was_put_back_together(folder: Path, kernel: FakeKernel) -> None:
    before = os.umask(0o022)
    try:
        DAMAGES[0](folder / FILE_NAME)
        driver, _ = start(folder, kernel)
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()}
        driver.close()
    finally:
        os.umask(before)
    assert f"{FILE_NAME}-wal" in modes
    assert set(modes.values()) == {0o600}, modes


def test_a_state_file_that_others_could_read_is_closed_to_them(folder: Path) -> None:
    """And its log, which has what it has: SQLite takes the one that a killed driver left."""
    files = [folder / f"{FILE_NAME}{suffix}" for suffix in ("", "-wal", "-shm")]
    for file in files:
        file.touch()
        file.chmod(0o644)
    store = Store(folder)
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in files} == {
        file.name: 0o600 for file in files
    }
    store.close()


@pytest.mark.parametrize("damage", [*DAMAGES, empty])
def test_without_the_copy_what_the_kernel_shows_comes_back(
    folder: Path, kernel: FakeKernel, damage: Callable[[Path], None]
) -> None:
    before = kernel.state()
    damage(folder / FILE_NAME)
    (folder / COPY_NAME).unlink()
    driver, problems = start(folder, kernel)
    networks = {each.id: each for each, _ in driver.describe()}
    assert networks.keys() == {BACK.id, FRONT.id}
    assert {pool.subnet for pool in networks[BACK.id].pools} == {BACK.pools[0].subnet}
    assert [pool.gateway for pool in networks[FRONT.id].pools] == [
        pool.gateway for pool in FRONT.pools
    ]
    assert networks[BACK.id].options.sysctls == ()
    assert networks[FRONT.id].options == FRONT.options
    assert kernel.state()["links"].keys() == before["links"].keys()
    guarded = str(kernel.tables["bridge pynet"].elements)
    for number in (1, 2):  # the frames of all that are not guarded are dropped
        assert f'"{host_end_name(endpoint_id(number))}"' in guarded
    (problem,) = problems
    assert "networks 010101010101, 020202020202 are known from their bridges" in problem
    assert "endpoints e1e1e1e1e1e1, e2e2e2e2e2e2 are known from their links" in problem
    assert bool(set_aside(folder)) == (damage is not empty)
    # Docker goes on with what it knows.
    for number in (1, 2):
        driver.leave(network_id(number), endpoint_id(number))
        driver.delete_endpoint(network_id(number), endpoint_id(number))
        driver.delete_network(network_id(number))
    assert kernel.links == {}
    driver.close()


def test_a_network_has_the_pools_that_its_bridge_shows_and_none_of_the_kernels_own(
    folder: Path, kernel: FakeKernel
) -> None:
    """Every bridge with IPv6 has an address of fe80::/64: as pools they would all overlap."""
    garble(folder / FILE_NAME)
    (folder / COPY_NAME).unlink()
    driver, _ = start(folder, kernel)
    pools = {each.id: {str(pool.subnet) for pool in each.pools} for each, _ in driver.describe()}
    assert pools == {BACK.id: {"10.1.0.0/24"}, FRONT.id: {"10.2.0.0/24", "fd00::/64"}}
    driver.create_network(network(3, pools=(pool("10.3.0.1/24"), pool("fd00:3::1/64"))))
    assert driver.check() == ()
    driver.close()


def test_a_network_with_a_further_bridge_keeps_it(
    tmp_path: Path, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "BRIDGE_PORTS", 1)
    driver = BridgeDriver(Store(tmp_path / "first"), kernel)
    driver.restore()
    driver.create_network(BACK)
    for number in (1, 2):
        kernel.add_sandbox(sandbox_key(number))
        driver.create_endpoint(new_endpoint(number))
        driver.join(new_join(number, 1, sandbox_key(number)))
        kernel.move(host_end_name(endpoint_id(number)), sandbox_key(number))
    driver.close()
    before = kernel.state()["links"]
    kernel.restart()
    again, _ = start(tmp_path / "second", kernel)
    ((found, endpoints),) = again.describe()
    assert (len(found.bridges), len(endpoints)) == (2, 2)
    assert kernel.state()["links"] == before
    assert again.check() == ()
    for number in (1, 2):
        again.leave(network_id(1), endpoint_id(number))
        again.delete_endpoint(network_id(1), endpoint_id(number))
    again.delete_network(network_id(1))
    assert kernel.links == {}
    again.close()


def test_what_is_changed_holds_for_containers_that_are_known_from_their_links_alone(
    folder: Path, kernel: FakeKernel
) -> None:
    """They run, though nobody knows any more in which sandbox."""
    garble(folder / FILE_NAME)
    (folder / COPY_NAME).unlink()
    driver, _ = start(folder, kernel)
    driver.change_network(network_id(1), parse_change({ICC: "false", MTU: "9000"}, ()))
    end = host_end_name(endpoint_id(1))
    assert f'"{end}"' in kernel.elements("closed", "bridge pynet")
    assert kernel.links[end].mtu == kernel.links[BACK.bridge_name].mtu == 9000
    assert driver.check() == ()
    driver.change_network(network_id(1), parse_change({}, (ICC,)))
    assert f'"{end}"' not in kernel.elements("closed", "bridge pynet")
    assert driver.check() == ()
    driver.close()


def test_what_was_put_back_together_outlives_a_power_failure(
    folder: Path, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    garble(folder / FILE_NAME)
    (folder / COPY_NAME).unlink()
    levels: list[object] = []
    add_network = Store.add_network

    def watched(store: Store, *what: Any) -> None:
        levels.append(store._one("PRAGMA synchronous"))
        add_network(store, *what)

    monkeypatch.setattr(Store, "add_network", watched)
    start(folder, kernel)[0].close()
    assert levels == [(FULL,)] * 2
    copied = sqlite3.connect(folder / COPY_NAME)
    assert copied.execute("SELECT count(*) FROM network").fetchone() == (2,)
    copied.close()


def test_a_file_that_breaks_while_the_driver_runs_is_told_of_by_health(
    folder: Path, kernel: FakeKernel
) -> None:
    driver, problems = start(folder, kernel)
    assert problems == ()
    with sqlite3.connect(folder / FILE_NAME) as other:  # so that nothing is remembered
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        other.execute("INSERT INTO boot VALUES ('x')")
        other.execute("DELETE FROM boot WHERE id = 'x'")
    other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    other.close()
    content = bytearray((folder / FILE_NAME).read_bytes())
    content[4096:] = b"x" * (len(content) - 4096)
    (folder / FILE_NAME).write_bytes(content)
    with pytest.raises(StateDamaged):
        driver.describe()
    (problem,) = driver.health.problems()
    assert "malformed" in problem
    assert "restart the driver, which puts the state file back together" in problem
    driver.close()


def test_a_copy_that_is_damaged_too_is_set_aside_as_well(folder: Path, kernel: FakeKernel) -> None:
    garble(folder / FILE_NAME)
    (folder / COPY_NAME).write_bytes(b"no database either, and long enough to be one" * 100)
    driver, (problem,) = start(folder, kernel)
    assert "its copy, now" in problem
    assert "is damaged, too" in problem
    assert len(set_aside(folder)) == 2
    assert len(driver.describe()) == 2
    driver.close()


def test_a_copy_that_is_empty_is_none(folder: Path, kernel: FakeKernel) -> None:
    """As a full disk leaves one."""
    garble(folder / FILE_NAME)
    (folder / COPY_NAME).write_bytes(b"")
    driver, (problem,) = start(folder, kernel)
    assert "there is no copy of it" in problem
    assert "its copy of" not in problem
    assert len(driver.describe()) == 2
    driver.close()


def test_a_lost_file_is_no_new_one_while_the_kernel_has_networks(
    folder: Path, kernel: FakeKernel
) -> None:
    for file in folder.iterdir():
        file.unlink()
    before = kernel.state()["links"].keys()
    driver, (problem,) = start(folder, kernel)
    assert "are known from their bridges" in problem
    assert kernel.state()["links"].keys() == before
    driver.close()


def test_it_is_told_until_the_damaged_file_is_removed(folder: Path, kernel: FakeKernel) -> None:
    garble(folder / FILE_NAME)
    start(folder, kernel)[0].close()
    driver, (problem,) = start(folder, kernel)
    driver.close()
    (name,) = set_aside(folder)
    assert name in problem
    assert "then remove it" in problem
    (folder / name).unlink()
    driver, problems = start(folder, kernel)
    assert problems == ()
    driver.close()


def test_a_whole_file_and_a_new_one_are_no_problem(
    folder: Path, kernel: FakeKernel, tmp_path: Path
) -> None:
    for driver, problems in (
        start(folder, kernel),
        start(tmp_path / "new", FakeKernel()),
    ):
        assert problems == ()
        driver.close()
    assert set_aside(folder) == []


@pytest.mark.parametrize("statement", ["PRAGMA user_version = 99"])
def test_a_newer_version_is_left_alone(folder: Path, kernel: FakeKernel, statement: str) -> None:
    execute(folder / FILE_NAME, statement)
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(StoreError, match="start the newer pynet that wrote it"):
        open_state(folder, kernel, Health())
    assert {path.name for path in folder.iterdir()} == before
    assert set_aside(folder) == []


def test_the_copy_is_of_the_last_change_of_networks(folder: Path) -> None:
    copied = sqlite3.connect(folder / COPY_NAME)
    assert copied.execute("SELECT count(*) FROM network").fetchone() == (2,)
    copied.close()
    assert (folder / COPY_NAME).stat().st_mode & 0o777 == 0o600
    store = Store(folder)
    with store.transaction(durable=True):
        store.delete_network(network_id(2))
    copied = sqlite3.connect(folder / COPY_NAME)
    assert copied.execute("SELECT id FROM network").fetchall() == [(network_id(1),)]
    copied.close()
    store.close()


@EVERY
def test_the_copy_has_networks_as_whatever_changed_them_left_them(
    scenario: Scenario, store: Store
) -> None:
    """Docker repeats none of it; a copy is made of what outlives a power failure."""
    world = World(store, scenario.prepare)
    before = world.rows("network", "pool")
    scenario.operation(world.driver)
    after = world.rows("network", "pool")
    if after == before:
        return
    copied = sqlite3.connect(store._copy)
    found = [
        sorted(copied.execute(f"SELECT * FROM {table}"), key=str) for table in ("network", "pool")
    ]
    copied.close()
    assert found == after
