"""What is counted and what is reported as wrong, by the driver and for the operator."""

from __future__ import annotations

from threading import Thread
from typing import TYPE_CHECKING

from driver.counts import Counts
from driver.health import Health

if TYPE_CHECKING:
    from collections.abc import Callable

THREADS = 8
TIMES = 2000


def in_threads(work: Callable[[], None]) -> None:
    def repeat() -> None:
        for _ in range(TIMES):
            work()

    threads = [Thread(target=repeat) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_nothing_is_lost_between_threads() -> None:
    counts = Counts()

    def work() -> None:
        counts.repaired("bridge")
        counts.evicted("endpoint")
        counts.left_over("link", 2)
        counts.wrote_sysctls(3)
        counts.missed_watch()

    in_threads(work)
    total = THREADS * TIMES
    assert counts.repairs == {"bridge": total}
    assert counts.evictions == {"endpoint": total}
    assert counts.leftovers == {"link": 2 * total}
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
