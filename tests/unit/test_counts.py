"""What is counted and what is reported as wrong, by the driver and for the operator."""

from __future__ import annotations

import time
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from driver.counts import Counts
from driver.health import Health

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

THREADS = 4
TIMES = 50


def yield_turn() -> None:
    """Let another thread go on, which an addition of C alone never does."""
    time.sleep(0.0001)


class SlowNumber(int):
    """A number that loses its thread's turn while it is added to."""

    def __add__(self, other: int) -> SlowNumber:
        yield_turn()
        return SlowNumber(int(self) + other)


class SlowKey(str):
    """A key that loses its thread's turn whenever it is looked up."""

    __slots__ = ()

    def __hash__(self) -> int:
        yield_turn()
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other)


def in_threads(work: Callable[[], None]) -> None:
    def repeat() -> None:
        for _ in range(TIMES):
            work()

    threads = [Thread(target=repeat) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(
    ("count", "counted"),
    [
        (lambda counts: counts.repaired(SlowKey("bridge")), lambda counts: counts.repairs),
        (lambda counts: counts.evicted(SlowKey("bridge")), lambda counts: counts.evictions),
        (lambda counts: counts.left_over(SlowKey("bridge")), lambda counts: counts.leftovers),
    ],
    ids=["repairs", "evictions", "leftovers"],
)
def test_nothing_is_lost_between_threads(
    count: Callable[[Counts], None], counted: Callable[[Counts], Mapping[str, int]]
) -> None:
    counts = Counts()
    in_threads(lambda: count(counts))
    assert dict(counted(counts)) == {"bridge": THREADS * TIMES}


def test_no_number_is_lost_between_threads() -> None:
    counts = Counts()
    counts._sysctl_writes = counts._watch_misses = SlowNumber()

    def work() -> None:
        counts.wrote_sysctls(3)
        counts.missed_watch()

    in_threads(work)
    total = THREADS * TIMES
    assert (counts.sysctl_writes, counts.watch_misses) == (3 * total, total)


def test_a_problem_stays_until_its_key_is_cleared() -> None:
    health = Health()
    health.report("state", "the state file was damaged")
    health.report("bridge", "repaired too often")
    health.report("state", "the state file is gone")
    assert health.problems() == ("the state file is gone", "repaired too often")
    health.clear("state")
    health.clear("never reported")
    assert health.problems() == ("repaired too often",)
