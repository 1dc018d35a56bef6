"""How much passes an interface in a second, from two looks at its counters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from driver.model import Traffic

_THOUSAND = 1000
_FEW = 9.95  # below this a digit behind the point says something


@dataclass(frozen=True, slots=True)
class Rate:
    """Bytes a second, as the container counts them."""

    received: float
    sent: float


def rate_between(before: Traffic, now: Traffic, seconds: float) -> Rate:
    """Return the rate between two looks; counters that are less than before are of another link."""
    received, sent = now.received_bytes - before.received_bytes, now.sent_bytes - before.sent_bytes
    if seconds <= 0 or received < 0 or sent < 0:
        return Rate(0, 0)
    return Rate(received / seconds, sent / seconds)


def format_rate(rate: float) -> str:
    """Return a rate for people: `11.9 MB/s`."""
    value = rate
    for unit in ("B/s", "kB/s", "MB/s", "GB/s"):
        if value < _THOUSAND - 0.5 or unit == "GB/s":
            break
        value /= _THOUSAND
    return f"{value:.1f} {unit}" if value < _FEW and unit != "B/s" else f"{value:.0f} {unit}"
