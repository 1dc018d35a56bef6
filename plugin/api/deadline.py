"""Run a driver operation within Docker's deadline.

Docker holds the container's lock while it waits, and has no timeout of its own. What hangs in the
kernel or on a disk cannot be interrupted: the caller is answered, and the operation ends later.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from threading import Lock, get_ident
from typing import TYPE_CHECKING, TypeVar

from driver.errors import Busy
from driver.lock import Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from driver.driver import BridgeDriver
    from driver.health import Health

T = TypeVar("T")

BEGIN_SECONDS = 3.0  # an operation that cannot begin in time never does
DOCKER_SECONDS = 4.5  # until Docker is answered
ADMIN_SECONDS = 9.0  # no lock of Docker's is held for a person; `pynet` waits 10 s
COMMIT_SECONDS = 0.3  # longer, for a change that is being stored
MOST_OVERDUE = 16  # operations that may hang; the kernel is beyond help by then
THREADS = 80  # more than gunicorn's, by those that may hang: an operation never waits for a thread

log = logging.getLogger("pynet")


@dataclass(slots=True, eq=False)
class _Operation:
    """One call of the driver, and the thread that it runs in."""

    request: Request
    began: float = field(default_factory=time.monotonic)
    thread: int | None = None

    def run(self, driver: BridgeDriver, work: Callable[[BridgeDriver], T]) -> T:
        self.thread = get_ident()
        with driver.serving(self.request):
            return work(driver)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def place(self) -> str:
        """The stack of its thread."""
        frame = sys._current_frames().get(self.thread or 0)  # noqa: SLF001 - documented
        if frame is None:
            return "an unknown place"
        return "".join(traceback.format_stack(frame)).rstrip()


class Deadline:
    """Runs operations in a thread pool, and reports the overdue ones to `health` until they end."""

    def __init__(self, driver: Callable[[], BridgeDriver], health: Health) -> None:
        self._driver = driver
        self._health = health
        self._pool = ThreadPoolExecutor(THREADS, "operation")
        self._lock = Lock()
        self._overdue: set[_Operation] = set()

    def run(self, words: str, work: Callable[[BridgeDriver], T], seconds: float) -> T:
        """Return what `work` returns, or raise what it raises.

        `words` name the operation in errors and in the log. Raises Busy after `seconds`; then
        nothing of it stays: it has not begun, or what it did is taken back when it ends.
        """
        if len(self._overdue) >= MOST_OVERDUE:
            raise Busy(
                f"{MOST_OVERDUE} earlier requests have not ended: the kernel or a disk hangs; "
                "look into the driver's log"
            )
        driver = self._driver()
        operation = _Operation(Request(words, begin_by=time.monotonic() + BEGIN_SECONDS))
        future = self._pool.submit(operation.run, driver, work)
        if not _ends_within(future, seconds):
            if future.cancel():
                raise Busy("the driver has too much to do at once; try again")
            # A change that is being stored is about to end; where that hangs, it is overdue, too.
            request = operation.request
            if request.give_up(also_stored=False) or (
                not _ends_within(future, COMMIT_SECONDS) and request.give_up(also_stored=True)
            ):
                raise self._report_overdue(operation, future)
        return future.result()

    def _report_overdue(self, operation: _Operation, future: Future[T]) -> Busy:
        """Report an operation that does not end, until it does; return its caller's answer."""
        words = operation.request.words
        now = time.strftime("%H:%M:%S")
        problem = f"{words}: no end since {now}, answered with an error"
        with self._lock:
            self._overdue.add(operation)
        self._health.report(_key(operation), problem)
        log.error("%s; it hangs at\n%s", problem, operation.place)
        future.add_done_callback(partial(self._clear_overdue, operation))
        return Busy(
            f"no end after {operation.seconds:.1f} s: the kernel or a disk does not answer; what "
            "has been begun is taken back or finished as soon as that is possible"
        )

    def _clear_overdue(self, operation: _Operation, future: Future[object]) -> None:
        with self._lock:
            self._overdue.discard(operation)
        self._health.clear(_key(operation))
        log.warning(
            "%s, which was answered with an error, ended after %.1f s: %s",
            operation.request.words,
            operation.seconds,
            future.exception() or "ok",
        )


def _key(operation: _Operation) -> str:
    return f"overdue {id(operation)}"


def _ends_within(future: Future[T], seconds: float) -> bool:
    try:
        future.exception(seconds)
    except TimeoutError:
        return False
    return True
