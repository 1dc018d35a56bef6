"""Mend what others break, as soon as it breaks, without fighting them; knows no kernel.

What a failed step of the driver's own has left behind is mended in the same way.

Somebody who breaks the same thing again and again means it, or has a tool that does: after three
repairs within a minute it is left alone for a while, loudly.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from driver.check import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from driver.check import Difference
    from driver.counts import Counts
    from driver.health import Health

    # Takes all the damage there is, gives what is to be mended of it.
    Choice = Callable[[tuple[Difference, ...]], tuple[Difference, ...]]

REPAIRS, WINDOW_SECONDS = 3, 60.0
FIRST_REST_SECONDS, LONGEST_REST_SECONDS = 60.0, 960.0
LOOKING = "looking for damage"

log = logging.getLogger(__name__)


class Patient(Protocol):
    """What is kept whole: the driver."""

    def repair(self, choose: Choice) -> tuple[Difference, ...]:
        """Mend what is chosen of the damage there is; return what was chosen."""


class Backoff:
    """How often each thing was repaired lately, and what is left alone for now.

    Pure but for its memory: the caller says what time it is.
    """

    def __init__(self) -> None:
        self._repairs: dict[str, deque[float]] = {}
        self._rests: dict[str, float] = {}
        self._until: dict[str, float] = {}

    def allows(self, thing: str, now: float) -> bool:
        """Tell whether the thing may be repaired, and count it as repaired if so."""
        if now < self._until.get(thing, now):
            return False
        times = self._repairs.setdefault(thing, deque(maxlen=REPAIRS))
        if times and now - times[-1] > LONGEST_REST_SECONDS:
            self._rests.pop(thing, None)
        if len(times) == REPAIRS and now - times[0] < WINDOW_SECONDS:
            rest = min(self._rests.get(thing, FIRST_REST_SECONDS), LONGEST_REST_SECONDS)
            self._rests[thing], self._until[thing] = rest * 2, now + rest
            times.clear()
            return False
        times.append(now)
        return True

    def end_rests(self, now: float) -> bool:
        """Let what has rested long enough be repaired again; tell whether there is any."""
        ended = [thing for thing, until in self._until.items() if until <= now]
        for thing in ended:
            del self._until[thing]
        return bool(ended)

    def resting(self, now: float) -> dict[str, float]:
        """Return what is left alone, and for how many seconds yet."""
        return {thing: until - now for thing, until in self._until.items() if until > now}


class Healer:
    """The thread that has damage repaired when it is told that there may be some."""

    def __init__(
        self,
        patient: Patient,
        counts: Counts,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patient = patient
        self._counts = counts
        self._health = health
        self._clock = clock
        self._backoff = Backoff()
        self._condition = threading.Condition()
        self._damaged = False
        self._closing = False
        self._given_up: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="healer", daemon=True)
        self._thread.start()

    def damaged(self) -> None:
        """Have everything looked at soon; returns at once. Several calls may become one look."""
        with self._condition:
            self._damaged = True
            self._condition.notify()

    def resting(self) -> dict[str, float]:
        """Return what is not repaired for now, because it breaks again and again."""
        return self._backoff.resting(self._clock())

    def close(self) -> None:
        """End the thread; a repair that is under way is finished."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._await_damage():
            try:
                mended = self._patient.repair(self._choose)
            except Exception as error:
                log.exception("could not look for damage")
                self._health.report(LOOKING, f"damage is not repaired: {error}")
                if self._backoff.allows(LOOKING, self._clock()):
                    self.damaged()
                continue
            self._health.clear(LOOKING)
            for kind in {difference.kind: None for difference in mended}:
                self._counts.repaired(kind)
            if mended:
                self.damaged()  # look once more: a remedy can fail

    def _await_damage(self) -> bool:
        """Wait for damage, or for the end of a rest; False when it is time to go."""
        with self._condition:
            while not (self._damaged or self._closing or self._backoff.end_rests(self._clock())):
                self._condition.wait(min(self.resting().values(), default=None))
            self._damaged = False
            return not self._closing

    def _choose(self, found: tuple[Difference, ...]) -> tuple[Difference, ...]:
        by_thing: dict[str, list[Difference]] = {}
        blocked = {_thing(each): each for each in found if each.blocked}
        for difference in found:
            if difference.kind.heals and not difference.blocked:
                by_thing.setdefault(_thing(difference), []).append(difference)
        for thing in self._given_up - by_thing.keys() - blocked.keys():
            self._forgive(thing)
        for thing in blocked.keys() - self._given_up:
            self._wait_for(thing, blocked[thing])
        chosen = (each for thing, each in by_thing.items() if self._allows(thing, each[0]))
        return tuple(chain.from_iterable(chosen))

    def _allows(self, thing: str, example: Difference) -> bool:
        now = self._clock()
        was_resting = thing in self._backoff.resting(now)
        if self._backoff.allows(thing, now):
            self._forgive(thing)
            return True
        if not was_resting:
            seconds = self._backoff.resting(now)[thing]
            problem = (
                f"{thing} was repaired {REPAIRS} times within {WINDOW_SECONDS:.0f} s and is broken "
                f"again, so somebody keeps changing it; it is left alone for {seconds:.0f} s: "
                f"{example}"
            )
            log.error("%s", problem)
            self._health.report(thing, problem)
            self._given_up.add(thing)
        return False

    def _wait_for(self, thing: str, example: Difference) -> None:
        """Say that a thing is mended when somebody else's link has gone, which the kernel tells."""
        problem = f"{example}; it is mended as soon as that link has gone"
        log.error("%s", problem)
        self._health.report(thing, problem)
        self._given_up.add(thing)

    def _forgive(self, thing: str) -> None:
        self._health.clear(thing)
        self._given_up.discard(thing)


def _thing(difference: Difference) -> str:
    """Return what is repaired as a whole: the rules are one thing, a bridge is another."""
    subject = "" if difference.kind is Kind.RULES else difference.subject
    return f"{difference.kind} {subject}".strip()
