"""The driver's lock: one change at a time, with a limit on how long a request waits for it.

Docker holds a container's lock while it waits for an answer, so a kernel or a disk that hangs must
not become a Docker that hangs. Who has waited long enough hears who is at work.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock as _Mutex
from threading import RLock, current_thread, get_ident, local
from typing import TYPE_CHECKING, Self

from driver.errors import Busy

if TYPE_CHECKING:
    from collections.abc import Iterator

STALLED_SECONDS = 2.0  # a request that has held the lock for so long may never end


@dataclass(slots=True, eq=False)
class Request:
    """What a thread is at work for: its name in errors, and when it may begin at the latest.

    Once `overdue`, its caller has been told that it failed: what it made is taken back. Once a
    change of it is being stored, it is too late to tell that; which of the two comes first is
    decided under a lock.
    """

    words: str
    begin_by: float  # time.monotonic()
    overdue: bool = False
    _is_stored: bool = False
    _lock: _Mutex = field(default_factory=_Mutex)

    def store(self) -> bool:
        """Record that a change is being stored; returns False if the request is overdue."""
        with self._lock:
            self._is_stored = not self.overdue
            return self._is_stored

    def give_up(self, *, also_stored: bool) -> bool:
        """Make the request overdue; returns False, and does not, for one that is being stored."""
        with self._lock:
            self.overdue = also_stored or not self._is_stored
            return self.overdue


@dataclass(frozen=True, slots=True)
class _Hold:
    """Which thread has the lock, what for, and since when."""

    thread: int
    words: str
    since: float


class Lock:
    """A re-entrant lock that serves a request in time or not at all, and knows who has it.

    A thread that serves no request, such as a repair, waits for as long as it takes.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        self._depth = 0
        self._held: _Hold | None = None  # in one piece: others look at it without the lock
        self._threads = local()

    @contextmanager
    def serving(self, request: Request) -> Iterator[None]:
        """Mark this thread as serving a request inside the block."""
        self._threads.request = request
        try:
            yield
        finally:
            self._threads.request = None

    def check(self) -> None:
        """Raise Busy if the request of this thread has been answered: its change must not stay.

        Otherwise it is not answered with an error any more; to be called right before the commit.
        """
        request = self._request()
        if request is not None and not request.store():
            raise Busy(f"{request.words}: it took too long, and was answered with an error")

    def __enter__(self) -> Self:
        request = self._request()
        held = self._held
        is_mine = held is not None and held.thread == get_ident()
        if request is None or is_mine:
            self._lock.acquire()
        else:
            self._acquire_for(request)
        self._depth += 1
        if not is_mine:
            words = current_thread().name if request is None else request.words
            self._held = _Hold(get_ident(), words, time.monotonic())
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._held = None
        self._lock.release()

    def _request(self) -> Request | None:
        request: Request | None = getattr(self._threads, "request", None)
        return request

    def _acquire_for(self, request: Request) -> None:
        """Take the lock, unless it is too late to begin: an answer of failure may be under way."""
        now = time.monotonic()
        held = self._held
        is_stalled = held is not None and now - held.since > STALLED_SECONDS
        patience = 0 if is_stalled else request.begin_by - now
        if patience > 0 and self._lock.acquire(timeout=patience):
            return
        held = self._held
        if held is None:
            raise Busy("the driver has too much to do at once; try again")
        seconds = time.monotonic() - held.since
        raise Busy(
            f"the driver is at work on something else: {held.words}, for {seconds:.1f} s now; "
            "try again, and if that does not help, look into the driver's log"
        )
