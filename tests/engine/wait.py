"""Wait for conditions, never for time to pass."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

INTERVAL = 0.01


def wait_until(condition: Callable[[], T], timeout: float, what: str) -> T:
    """Poll until the condition holds and return its value; else say what did not come."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout} s")
        time.sleep(INTERVAL)
    return value
