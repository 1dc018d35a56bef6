"""Do the work of requests in threads that an answer need not wait for; knows no protocol.

What hangs in the kernel or on a disk cannot be interrupted, so whoever asked is told after a while
and the work goes on. To hand it over costs 50 microseconds.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Lock, Thread, get_ident
from typing import TYPE_CHECKING, TypeVar

from driver.errors import Busy

if TYPE_CHECKING:
    from collections.abc import Callable

    from driver.health import Health
    from driver.lock import Request

T = TypeVar("T")

MOST_OVERDUE = 16  # requests that may hang; the kernel is beyond help by then
MOST_IDLE = 4

log = logging.getLogger("pynet")


class Crew:
    """Threads that work for requests, as many as are at work and a few more. Thread-safe.

    A request that is overdue is reported to `health` until its work ends.
    """

    def __init__(self, health: Health) -> None:
        self._health = health
        self._lock = Lock()
        self._tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._idle = 0
        self._overdue: set[Request] = set()

    @property
    def is_stuck(self) -> bool:
        """Tell whether a request is overdue."""
        return bool(self._overdue)

    def run(self, work: Callable[[], T], request: Request, answer_by: float) -> T:
        """Return what `work` returns or raise what it raises, if that comes in time.

        Raises Busy at `answer_by`, a time.monotonic(); the work goes on, and the log says how it
        ended.
        """
        if len(self._overdue) >= MOST_OVERDUE:
            raise Busy(
                f"{MOST_OVERDUE} earlier requests have not ended: the kernel or a disk hangs; "
                "look into the driver's log"
            )
        outcome: Future[T] = Future()
        workers: list[int] = []

        def perform() -> None:
            workers.append(get_ident())
            try:
                outcome.set_result(work())
            except BaseException as failure:  # noqa: BLE001 - raised again where it is awaited
                outcome.set_exception(failure)

        began = time.monotonic()
        self._hand_over(perform)
        try:
            return outcome.result(max(answer_by - began, 0))
        except TimeoutError:
            if outcome.done():
                return outcome.result()
        self._give_up(outcome, request, began, workers)
        raise Busy(
            f"no end after {time.monotonic() - began:.1f} s: the kernel or a disk does not answer; "
            "what has been begun is taken back or finished as soon as that is possible"
        )

    def _hand_over(self, task: Callable[[], None]) -> None:
        with self._lock:
            is_short = self._idle == 0
            if not is_short:
                self._idle -= 1
        self._tasks.put(task)
        if is_short:
            Thread(target=self._work, name="crew", daemon=True).start()

    def _work(self) -> None:
        while True:
            task = self._tasks.get()
            task()
            del task  # its request and answer, which nobody needs while this thread is idle
            with self._lock:
                if self._idle >= MOST_IDLE:
                    return
                self._idle += 1

    def _give_up(
        self, outcome: Future[T], request: Request, began: float, workers: list[int]
    ) -> None:
        request.overdue = True
        with self._lock:
            self._overdue.add(request)
        problem = (
            f"{request.words}: no end since {time.strftime('%H:%M:%S')}, answered with an error"
        )
        self._health.report(_key(request), problem)
        log.error("%s; it hangs at\n%s", problem, _where(workers))

        def end(ended: Future[T]) -> None:
            with self._lock:
                self._overdue.discard(request)
            self._health.clear(_key(request))
            failure = ended.exception()
            log.warning(
                "%s, which was answered with an error, ended after %.1f s: %s",
                request.words,
                time.monotonic() - began,
                "ok" if failure is None else failure,
            )

        outcome.add_done_callback(end)


def _key(request: Request) -> str:
    return f"overdue {id(request)}"


def _where(workers: list[int]) -> str:
    """Return where a thread is at the moment."""
    frame = sys._current_frames().get(workers[0]) if workers else None  # noqa: SLF001 - documented
    return "an unknown place" if frame is None else "".join(traceback.format_stack(frame)).rstrip()
