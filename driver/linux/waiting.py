"""Wait for descriptors with poll(2), whatever their numbers are.

select(2) takes none from 1,024 on, and a driver with a thousand published ports has such.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def wait_readable(descriptors: Iterable[int], seconds: float | None) -> frozenset[int]:
    """Return which can be read from, or have ended, after `seconds` at most; None for no limit."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    ready = poll.poll(None if seconds is None else seconds * 1000)
    return frozenset(descriptor for descriptor, _ in ready)
