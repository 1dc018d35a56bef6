"""End what goes on until it is told to stop: in order, and with what has come so far."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def ending() -> Iterator[threading.Event]:
    """Have SIGINT and SIGTERM set an event over the block, in place of what they do else."""
    ended = threading.Event()
    before = {
        each: signal.signal(each, lambda *_: ended.set())
        for each in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
