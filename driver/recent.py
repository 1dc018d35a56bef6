"""A bounded set of the most recent things."""

from __future__ import annotations

from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")

LENGTH = 1024


class Recent(Generic[T]):
    """A set that forgets its oldest members. Safe to use from several threads."""

    def __init__(self, length: int = LENGTH) -> None:
        self._members: dict[T, None] = {}
        self._length = length
        self._lock = Lock()

    def add(self, member: T) -> None:
        """Remember a member, as the newest."""
        with self._lock:
            self._members.pop(member, None)
            self._members[member] = None
            while len(self._members) > self._length:
                del self._members[next(iter(self._members))]

    def discard(self, member: T) -> None:
        """Forget a member; none is success."""
        with self._lock:
            self._members.pop(member, None)

    def __contains__(self, member: T) -> bool:
        """Return whether a member is remembered."""
        with self._lock:
            return member in self._members
