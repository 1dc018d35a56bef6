"""Count what happens besides answering requests; knows no format and decides nothing.

A count only grows, and begins anew with the process, as Prometheus expects of a counter.
"""

from __future__ import annotations

from collections import Counter
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Counts:
    """What the driver has done of its own accord since it started. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._repairs: Counter[str] = Counter()
        self._evictions: Counter[str] = Counter()
        self._leftovers: Counter[str] = Counter()
        self._sysctl_writes = 0
        self._watch_misses = 0

    def repaired(self, kind: str) -> None:
        """Count one thing that others had broken and that was mended, such as a `bridge`."""
        with self._lock:
            self._repairs[kind] += 1

    def evicted(self, kind: str) -> None:
        """Count a `network` or an `endpoint` that Docker had forgotten and that made way."""
        with self._lock:
            self._evictions[kind] += 1

    def left_over(self, kind: str, number: int = 1) -> None:
        """Count what belonged to nothing and was removed, such as a `link`."""
        with self._lock:
            self._leftovers[kind] += number

    def wrote_sysctls(self, number: int) -> None:
        """Count parameters written into sandboxes."""
        with self._lock:
            self._sysctl_writes += number

    def missed_watch(self) -> None:
        """Count a sandbox, or its interface, that was awaited and was not seen in time."""
        with self._lock:
            self._watch_misses += 1

    @property
    def repairs(self) -> Mapping[str, int]:
        """Return the repairs, by what was mended."""
        with self._lock:
            return dict(self._repairs)

    @property
    def evictions(self) -> Mapping[str, int]:
        """Return the evictions, by what made way."""
        with self._lock:
            return dict(self._evictions)

    @property
    def leftovers(self) -> Mapping[str, int]:
        """Return the leftovers, by what they were."""
        with self._lock:
            return dict(self._leftovers)

    @property
    def sysctl_writes(self) -> int:
        """Return how many parameters were written into sandboxes."""
        return self._sysctl_writes

    @property
    def watch_misses(self) -> int:
        """Return how many awaited sandboxes, or their interfaces, were not seen in time."""
        return self._watch_misses
