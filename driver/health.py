"""The driver's current problems, for `GET /health`."""

from __future__ import annotations

from threading import Lock


class Health:
    """The problems there are: each under a key of its reporter, until that clears it.

    Thread-safe. A problem is a sentence for the operator: what is wrong, and what to do about it.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._problems: dict[str, str] = {}

    def report(self, key: str, problem: str) -> None:
        """Record a problem, replacing an earlier one with the same key."""
        with self._lock:
            self._problems[key] = problem

    def clear(self, key: str) -> None:
        """Clear the problem with this key; absence is success."""
        with self._lock:
            self._problems.pop(key, None)

    def problems(self) -> tuple[str, ...]:
        """Return the problems, the oldest first; none means that all is well."""
        with self._lock:
            return tuple(self._problems.values())
