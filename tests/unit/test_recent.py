"""What is remembered for a while, by several threads at once."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from driver.recent import Recent

if TYPE_CHECKING:
    from collections.abc import Iterator

THREADS = 8
TIMES = 400_000


@pytest.fixture
def hurried() -> Iterator[None]:
    """Have threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hurried")
def test_several_threads_may_use_it() -> None:
    recent: Recent[int] = Recent(1)

    def use(thread: int) -> None:
        for number in range(thread, TIMES, THREADS):
            recent.add(number)

    with ThreadPoolExecutor(THREADS) as pool:
        for each in [pool.submit(use, thread) for thread in range(THREADS)]:
            each.result()


def test_it_forgets_its_oldest_members() -> None:
    recent: Recent[int] = Recent(2)
    for number in (1, 2, 1, 3):
        recent.add(number)
    assert [number in recent for number in (1, 2, 3)] == [True, False, True]
