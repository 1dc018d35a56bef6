"""Do the work of requests in threads, and let nobody wait for what does not end; no protocol.

What hangs in the kernel or on a disk cannot be interrupted, so whoever asked is told after a while
and the work goes on. It is the server's loop that tells: a thread to wait beside each that works
would cost every request a tenth of a millisecond.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from math import inf
from threading import Lock, Thread, get_ident
from typing import TYPE_CHECKING, TypeVar

from driver.errors import Busy

if TYPE_CHECKING:
    from collections.abc import Callable

    from driver.health import Health
    from driver.lock import Request

T = TypeVar("T")

CALLER = "pynet.caller"  # in the WSGI environment: the Caller
MOST_OVERDUE = 16  # requests that may hang; the kernel is beyond help by then
MOST_IDLE = 4
COMMIT_SECONDS = 0.3  # how long an answer waits for a change that is being stored; Docker waits 5 s

log = logging.getLogger("pynet")


@dataclass(slots=True, eq=False)
class Task:
    """What a thread of a crew does; who raises in it is logged, for nobody waits for it."""

    work: Callable[[], None]
    is_done: bool = False
    is_given_up: bool = False


class _Seat:
    """Where a thread without a task waits for one.

    Each has a lock of its own: a queue that all waited at would wake a second thread for every
    task, to find nothing, and to hold the interpreter's lock against the first meanwhile.
    """

    def __init__(self) -> None:
        self._task: Task
        self._bell = Lock()
        self._bell.acquire()

    def give(self, task: Task) -> None:
        """Wake who waits, for a task."""
        self._task = task
        self._bell.release()

    def wait(self) -> Task:
        """Return the task that is given here, once it is."""
        self._bell.acquire()
        task = self._task
        del self._task
        return task


class Crew:
    """Up to `most` threads that work for requests, as many as have a task and a few more.

    What cannot have a thread yet waits for one, in order.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = Lock()
        self._tasks: deque[Task] = deque()  # that wait for a thread
        self._idle: list[_Seat] = []  # threads that wait for a task, the last to work at the end
        self._threads = 0  # without those that were given up

    def hand_over(self, task: Task) -> None:
        """Have a thread do the task, the one with the warmest cache."""
        with self._lock:
            self._tasks.append(task)
            if self._idle:
                self._idle.pop().give(self._tasks.popleft())
            is_joined = self._join()
        if is_joined:
            self._start()

    def give_up(self, task: Task) -> None:
        """Have another thread in place of one that does not come to the end of its task."""
        with self._lock:
            if task.is_done:
                return
            task.is_given_up = True
            self._threads -= 1
            is_joined = self._join()
        if is_joined:
            self._start()

    def _join(self) -> bool:
        """Count one more thread in if one is missing; returns whether it has to be started."""
        is_missing = bool(self._tasks) and self._threads < self._most
        self._threads += is_missing
        return is_missing

    def _start(self) -> None:
        try:
            Thread(target=self._serve, name="crew", daemon=True).start()
        except RuntimeError as error:
            with self._lock:
                self._threads -= 1
            log.error("%d threads are at work, and %s", self._threads, error)  # noqa: TRY400

    def _serve(self) -> None:
        seat = _Seat()
        while (task := self._find_task(seat)) is not None:
            try:
                task.work()
            except Exception:
                log.exception("a request failed in a way that pynet does not expect")
            with self._lock:
                task.is_done = True
                if task.is_given_up:
                    return
            del task  # its request and answer, which nobody needs while this thread is idle

    def _find_task(self, seat: _Seat) -> Task | None:
        """Return what is to do next, once there is anything; None if the thread is not needed."""
        with self._lock:
            if self._tasks:
                return self._tasks.popleft()
            if len(self._idle) >= MOST_IDLE:
                self._threads -= 1
                return None
            self._idle.append(seat)
        return seat.wait()

    def shutdown(self, wait: bool = True) -> None:  # noqa: FBT001, FBT002 - gunicorn calls it
        """Do nothing: the threads end with the process, also those that hang."""


@dataclass(slots=True, eq=False)
class Caller:
    """Who asked, and how long their patience lasts; all times are of time.monotonic()."""

    arrived: float = field(default_factory=time.monotonic)
    answer_by: float = inf
    give_up: Callable[[], str | None] = lambda: None
    """Returns what to answer at `answer_by`, None if the request ends just now after all."""


@dataclass(slots=True, eq=False)
class _Attempt:
    request: Request
    answer_by: float
    thread: int = field(default_factory=get_ident)
    began: float = field(default_factory=time.monotonic)
    refusal: str | None = None
    ended: bool = False


class Deadlines:
    """Knows the requests that are overdue, and reports them to `health` until they end."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._lock = Lock()
        self._overdue: set[_Attempt] = set()

    @property
    def is_stuck(self) -> bool:
        """Tell whether a request is overdue."""
        return bool(self._overdue)

    def run(self, work: Callable[[], T], request: Request, caller: Caller, answer_by: float) -> T:
        """Return what `work` returns or raise what it raises, if that comes in time.

        At `answer_by` the caller may be given up, which the log and health tell. Then, once the
        work has ended, this raises Busy with the words that were the answer.
        """
        if len(self._overdue) >= MOST_OVERDUE:
            raise Busy(
                f"{MOST_OVERDUE} earlier requests have not ended: the kernel or a disk hangs; "
                "look into the driver's log"
            )
        attempt = _Attempt(request, answer_by)
        caller.give_up = partial(self._give_up, attempt)
        caller.answer_by = answer_by
        outcome = "ok"
        try:
            return work()
        except Exception as failure:
            outcome = str(failure)
            raise
        finally:
            self._end(attempt, outcome)

    def _give_up(self, attempt: _Attempt) -> str | None:
        seconds = time.monotonic() - attempt.began
        with self._lock:
            if attempt.ended:
                return None
            # What is being stored is about to end; where that hangs, it is answered as all else.
            is_too_late = time.monotonic() > attempt.answer_by + COMMIT_SECONDS
            if not attempt.request.give_up(also_stored=is_too_late):
                return None
            attempt.refusal = (
                f"no end after {seconds:.1f} s: the kernel or a disk does not answer; what has "
                "been begun is taken back or finished as soon as that is possible"
            )
            self._overdue.add(attempt)
            now = time.strftime("%H:%M:%S")
            problem = f"{attempt.request.words}: no end since {now}, answered with an error"
            self._health.report(_key(attempt), problem)
        log.error("%s; it hangs at\n%s", problem, _where(attempt.thread))
        return attempt.refusal

    def _end(self, attempt: _Attempt, outcome: str) -> None:
        """Note that the work has ended. Raises Busy if it was too late."""
        with self._lock:
            attempt.ended = True
            if attempt.refusal is None:
                return
            self._overdue.discard(attempt)
            self._health.clear(_key(attempt))
        seconds = time.monotonic() - attempt.began
        words = attempt.request.words
        log.warning(
            "%s, which was answered with an error, ended after %.1f s: %s", words, seconds, outcome
        )
        raise Busy(attempt.refusal)


def _key(attempt: _Attempt) -> str:
    return f"overdue {id(attempt)}"


def _where(thread: int) -> str:
    """Return where a thread is at the moment."""
    frame = sys._current_frames().get(thread)  # noqa: SLF001 - documented
    return "an unknown place" if frame is None else "".join(traceback.format_stack(frame)).rstrip()
