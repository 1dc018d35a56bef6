"""Have a request's work done by the driver, in the time that Docker may be kept waiting.

Knows what an error is called in HTTP, and no request by its name.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from driver.errors import Busy, Conflict, DriverError, InvalidRequest, NotFound
from driver.lock import Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from driver.bridge import BridgeDriver
    from plugin.crew import Caller, Deadlines

T = TypeVar("T")

# Docker holds the container's lock while it waits, and waits for ever: every request is answered.
# One that cannot begin in time never does, so that nothing happens behind Docker's back.
BEGIN_SECONDS = 3.0
ANSWER_SECONDS = 4.5
# A flood is worked off for longer, unless something hangs; what has waited gets a moment, still.
QUEUE_SECONDS = 8.0
PERSON_SECONDS = 9.0  # nobody holds a lock of Docker's for a person; `pynet` waits 10 s
MOMENT_SECONDS = 1.0  # to begin, and half as much to end

# 404 is not among them: to the engine it means "the driver does not have this method", and it
# then goes on as if nothing had happened.
STATUS = (
    (InvalidRequest, 400),
    (NotFound, 400),
    (Conflict, 409),
    (Busy, 503),
    (DriverError, 500),
)


class Desk:
    """Serves one request after the other, and several at a time.

    All time counts from the arrival of the request, also what it spent in a queue, except for what
    it waits for a driver that is starting.
    """

    def __init__(self, driver: Callable[[], BridgeDriver], deadlines: Deadlines) -> None:
        self._driver = driver
        self._deadlines = deadlines

    def run(
        self,
        words: str,
        work: Callable[[], T],
        caller: Caller,
        answer_seconds: float,
    ) -> T:
        """Return what `work` returns; raises Busy if it cannot begin or end in time."""
        arrived, now = caller.arrived, time.monotonic()
        if now - arrived > (BEGIN_SECONDS if self._deadlines.is_stuck else QUEUE_SECONDS):
            raise Busy("the driver has too much to do at once; try again")
        ready = self._driver()
        arrived += time.monotonic() - now
        moment = time.monotonic() + MOMENT_SECONDS
        serving = Request(words, begin_by=max(arrived + BEGIN_SECONDS, moment))
        answer_by = max(arrived + answer_seconds, moment + MOMENT_SECONDS / 2)

        def serve() -> T:
            with ready.serving(serving):
                return work()

        return self._deadlines.run(serve, serving, caller, answer_by)


def words_of(error: DriverError) -> str:
    """Return an error as it is answered: with what was noted on its way."""
    return "; ".join([str(error), *getattr(error, "__notes__", ())])


def status_of(error: DriverError) -> int:
    """Return the status of an answer with an error."""
    return next(status for kind, status in STATUS if isinstance(error, kind))
