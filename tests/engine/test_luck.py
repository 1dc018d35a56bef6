"""The driver is killed at any moment, again and again, while containers come and go."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from random import Random
from threading import Event
from typing import TYPE_CHECKING

import pytest

from tests.engine.remains import await_nothing_left
from tests.engine.site import transferring
from tests.engine.soak import repetitions
from tests.engine.steps import DUAL_STACK, create_network, ping, revive_driver, run
from tests.unit.strangers import random_seed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.engine.engine import Engine

KILLS = 500
WORKERS = 3
LONGEST = 0.5  # seconds that a driver lives at most after it is up


def come_and_go(engine: Engine, name: str, over: Event) -> int:
    """Start and stop a container until it is over; return how often that worked.

    A start that the driver's death cuts short may fail; Docker says so, and the next one works.
    """
    worked = 0
    while not over.is_set():
        started = engine.docker("start", name, check=False).returncode == 0
        stopped = engine.docker("stop", "-t", "0", name, check=False).returncode == 0
        worked += started and stopped
    return worked


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_killed_at_random_under_load(
    engine28: Engine, record_property: Callable[[str, object], None]
) -> None:
    seed, kills = random_seed(), repetitions(KILLS)
    record_property("kills' seed, PYNET_SEED", str(seed))
    random, over = Random(seed), Event()
    create_network(engine28, "back", *DUAL_STACK)
    for name in ("source", "target"):
        run(engine28, name, "back")
    names = [f"box{number}" for number in range(WORKERS)]
    for number, name in enumerate(names):
        publish = ("-p", f"{8080 + number}:80")
        engine28.docker("create", "--name", name, "--network=back", *publish, "bb", "sleep", "999")
    with transferring(engine28, "source", "target"), ThreadPoolExecutor(WORKERS) as pool:
        loads = [pool.submit(come_and_go, engine28, name, over) for name in names]
        try:
            for _ in range(kills):
                over.wait(random.uniform(0, LONGEST))
                revive_driver(engine28)
        finally:
            over.set()
        worked = sum(load.result() for load in loads)
    record_property("kills at random", kills)
    record_property("starts and stops between them", worked)
    assert worked
    engine28.docker("start", *names)
    for name in names:
        ping(engine28, name, "target")
    ping(engine28, "source", "target")
    engine28.docker("rm", "-f", "source", "target", *names)
    engine28.docker("network", "rm", "back")
    await_nothing_left(engine28)
    assert "does not expect" not in engine28.log("driver")
