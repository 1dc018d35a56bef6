"""How often the long repetitions are repeated, and what a server at rest is compared by."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from plugin.server import THREADS
from tests.engine.unixhttp import request
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engine.engine import Engine

T = TypeVar("T")

PART = 10
SAMPLES = 30
REST_SECONDS = 30
BACKGROUND = ("watcher", "monitor")  # threads that every driver has from its start


def is_in_full() -> bool:
    """Tell whether this is the full soak."""
    return os.environ.get("PYNET_SOAK") == "1"


def repetitions(full: int, part: int = PART) -> int:
    """Return how often to repeat what a full run repeats so often, a part of it otherwise."""
    return full if is_in_full() else full // part


def make_all_threads(socket: Path, count: Callable[[], int], processes: Callable[[], int]) -> None:
    """Have a new server make all the threads that it keeps, by asking much at once.

    `count` returns those of its `processes` now, each of which has a first thread of its own; one
    that has just begun may still have a command running.
    """

    def has_all() -> bool:
        list(callers.map(lambda _: request(socket, "GET", "/networks"), range(2 * THREADS)))
        threads, running = at_rest(lambda: (count(), processes()))
        return threads >= THREADS + len(BACKGROUND) + running

    with ThreadPoolExecutor(2 * THREADS) as callers:
        wait_until(has_all, REST_SECONDS, "all threads")


def at_rest(look: Callable[[], T]) -> T:
    """Return what a look shows when it shows the same again and again."""
    seen: deque[T] = deque(maxlen=SAMPLES)

    def is_at_rest() -> bool:
        seen.append(look())
        return seen.count(seen[0]) == SAMPLES

    wait_until(is_at_rest, REST_SECONDS, "a driver that does nothing")
    return seen[0]


def processes(engine: Engine) -> frozenset[int]:
    """Return the driver's processes, commands that it has running included."""
    assert engine.driver is not None
    return frozenset(engine.driver.pids)
