"""A driver that has served for long holds no more than one that has just begun."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from plugin.server import THREADS
from tests.engine.remains import Usage, links, rows
from tests.engine.soak import repetitions
from tests.engine.steps import (
    KEEPALIVE,
    create_network,
    kernel_value,
    revive_driver,
    stop,
    sysctl_options,
)
from tests.engine.unixhttp import request
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from tests.engine.driver import Driver
    from tests.engine.engine import Engine

pytestmark = pytest.mark.managed

WARM_UP = 2
SAMPLES = 30


def make_all_threads(engine: Engine, driver: Driver) -> None:
    """Have a new driver make all the threads its server may have, by asking much at once."""
    processes = len(driver.pids)  # each with a first thread of its own

    def has_all() -> bool:
        list(callers.map(lambda _: request(driver.socket, "GET", "/networks"), range(2 * THREADS)))
        return Usage.of(engine).threads >= THREADS + processes

    with ThreadPoolExecutor(2 * THREADS) as callers:
        wait_until(has_all, 20, "all threads")


def usage_at_rest(engine: Engine) -> Usage:
    """Return what the driver's processes hold when they do nothing: the same, again and again."""
    seen: deque[Usage] = deque(maxlen=SAMPLES)

    def is_at_rest() -> bool:
        seen.append(Usage.of(engine))
        return seen.count(seen[0]) == SAMPLES

    wait_until(is_at_rest, 20, "a driver that does nothing")
    return seen[0]


def cycle(engine: Engine, times: int) -> None:
    """Start and stop the container."""
    for _ in range(times):
        engine.docker("start", "box")
        stop(engine, "box")


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_nothing_grows_with_the_number_of_starts(engine: Engine) -> None:
    make_all_threads(engine, revive_driver(engine))
    create_network(engine, "front", *sysctl_options({KEEPALIVE: "600"}))
    create_network(engine, "back", *sysctl_options({"net.ipv4.conf.IFNAME.arp_notify": "1"}))
    engine.docker("create", "--name", "box", "--network", "front", "bb", "sleep", "1000")
    engine.docker("network", "connect", "back", "box")
    at_rest = (links(engine), rows(engine))
    cycle(engine, WARM_UP)
    wait_until(lambda: (links(engine), rows(engine)) == at_rest, 10, "the links deleted")
    before = usage_at_rest(engine)
    count = repetitions(200)
    cycle(engine, count)
    wait_until(lambda: (links(engine), rows(engine)) == at_rest, 10, "the links deleted")
    after = usage_at_rest(engine)
    print(f"\n{engine.version}: {count} starts and stops, from {before} to {after}")
    assert after == before
    engine.docker("start", "box")
    assert kernel_value(engine, "box", KEEPALIVE) == "600"
