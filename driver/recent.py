"""Remember the last so many things; for what is worth knowing for a while and must not pile up."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")

LENGTH = 1024


class Recent(Generic[T]):
    """A set that forgets its oldest members. Safe to use from several threads."""

    def __init__(self, length: int = LENGTH) -> None:
        self._members: dict[T, None] = {}
        self._length = length

    def add(self, member: T) -> None:
        """Remember a member, as the newest."""
        self._members.pop(member, None)
        self._members[member] = None
        while len(self._members) > self._length:
            self._members.pop(next(iter(self._members)), None)

    def discard(self, member: T) -> None:
        """Forget a member; none is success."""
        self._members.pop(member, None)

    def __contains__(self, member: T) -> bool:
        """Tell whether a member is remembered."""
        return member in self._members
