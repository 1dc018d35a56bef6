"""End a command that runs until it is told to, with what it has begun finished."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def ending() -> Iterator[threading.Event]:
    """Lend an event that SIGINT and SIGTERM set over the block, in place of ending the process."""
    ended = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {each: signal.signal(each, lambda *_: ended.set()) for each in numbers}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
