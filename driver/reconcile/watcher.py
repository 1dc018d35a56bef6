"""Repair damage when the kernel reports it, backing off where another program undoes it.

What a failed step of the driver's own has left behind is mended in the same way.

Another program may break the same thing again and again, such as a script that rewrites a chain
every few seconds. What containers need is put back each time, at bounded cost, and health says what
is fought over. What only others can mend is told, once, and looked at now and then until they have.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from driver.reconcile.diff import MENDS_ITSELF, TOLD, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from driver.counts import Counts
    from driver.health import Health
    from driver.reconcile.diff import Drift

    # Takes all the damage there is, gives what is to be mended of it.
    Choice = Callable[[tuple[Drift, ...]], tuple[Drift, ...]]

REPAIRS, WINDOW_SECONDS = 3, 60.0  # so many repairs within it, and a thing is contested
INTERVAL_SECONDS = 1.0  # between repairs of a contested thing, at least …
SHARE = 2  # … and so many times as long as the last repair took
LONGEST_REST_SECONDS = 16.0  # of what cannot be repaired; with longer ones it seems calm
CALM_SHARE, LONGEST_CALM_SECONDS = 4, 1.0  # after a look that found nothing to mend, see Watcher
RECHECK_SECONDS = 30.0  # how often what only others can mend is looked at, while there is any
LOOKING = "looking for damage"

log = logging.getLogger(__name__)


class Repairable(Protocol):
    """What is kept whole: the driver."""

    def repair(self, choose: Choice) -> tuple[tuple[Drift, ...], bool]:
        """Repair what is chosen of the damage there is; return that, and whether all went well."""


class Backoff:
    """How often each thing was repaired lately, and what has to wait for its next repair.

    Pure but for its memory: the caller says what time it is.
    """

    def __init__(self) -> None:
        self._repairs: dict[str, deque[float]] = {}
        self._failures: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def is_contested(self, thing: str, now: float) -> bool:
        """Return whether a thing was repaired so often lately that another program breaks it."""
        times = self._repairs.get(thing, deque())
        return len(times) == REPAIRS and now - times[0] < WINDOW_SECONDS

    def allows(self, thing: str, now: float, interval: float = INTERVAL_SECONDS) -> bool:
        """Return whether the thing may be repaired, and count it as repaired if so.

        One that is contested may every `interval` seconds, and the seldomer the more repairs have
        failed.
        """
        times = self._repairs.setdefault(thing, deque(maxlen=REPAIRS))
        if self.is_contested(thing, now):
            rest = min(
                interval * 2 ** self._failures.get(thing, 0), max(interval, LONGEST_REST_SECONDS)
            )
            if now < times[-1] + rest:
                self._until[thing] = times[-1] + rest
                return False
        times.append(now)
        return True

    def note(self, things: Iterable[str], *, failed: bool) -> None:
        """Take note of how the repair of things went."""
        for thing in things:
            if failed:
                self._failures[thing] = self._failures.get(thing, 0) + 1
            else:
                self._failures.pop(thing, None)

    def calm_at(self, thing: str) -> float:
        """Return when a thing, if it stays whole, is contested no more."""
        times = self._repairs.get(thing)
        return times[-1] + WINDOW_SECONDS if times else 0.0

    def end_rests(self, now: float) -> bool:
        """Let what has waited long enough be repaired again; tell whether there is any."""
        ended = [thing for thing, until in self._until.items() if until <= now]
        for thing in ended:
            del self._until[thing]
        return bool(ended)

    def resting(self, now: float) -> dict[str, float]:
        """Return what has to wait, and for how many seconds yet."""
        return {thing: until - now for thing, until in self._until.items() if until > now}


class Watcher:
    """The thread that repairs damage when the kernel's events say that there may be some.

    Most of what other programs do to their own bridges and rules is told of as well, and is none:
    after a look that found nothing the next waits CALM_SHARE times as long as that one took, so
    that a fifth of a processor goes into looking, whatever others do; more beside so many endpoints
    that a look takes long, since damage is not to wait for more than LONGEST_CALM_SECONDS.
    """

    def __init__(
        self,
        repairable: Repairable,
        counts: Counts,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._repairable = repairable
        self._counts = counts
        self._health = health
        self._clock = clock
        self._backoff = Backoff()
        self._condition = threading.Condition()
        self._damaged = False
        self._closing = False
        self._interval = INTERVAL_SECONDS
        self._calm_until = clock()
        self._contested: set[str] = set()
        self._told: set[str] = set()  # what only others can mend
        self._failure = ""
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()

    def on_damage(self) -> None:
        """Request a look at everything soon; returns at once. Several calls may become one look."""
        with self._condition:
            self._damaged = True
            self._condition.notify()

    def on_deletion(self) -> None:
        """Look again soon if something was told that only others can mend: it may be so by now."""
        with self._condition:
            if self._told:
                self._damaged = True
                self._condition.notify()

    def resting(self) -> dict[str, float]:
        """Return what waits for its next repair, because it breaks again and again."""
        return self._backoff.resting(self._clock())

    def close(self) -> None:
        """End the thread; a repair that is under way is finished."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._await_damage():
            began = self._clock()
            try:
                mended, went_well = self._repairable.repair(self._choose)
            except Exception as error:  # noqa: BLE001 - logged, once
                self._say_failure(error)
                self._backoff.note([LOOKING], failed=True)
                if self._backoff.allows(LOOKING, self._clock()):
                    self.on_damage()
                continue
            self._failure = ""
            self._health.clear(LOOKING)
            self._backoff.note([LOOKING], failed=False)
            self._backoff.note({_thing(each) for each in mended}, failed=not went_well)
            for kind in {difference.kind: None for difference in mended}:
                self._counts.repairs.labels(kind).inc()
            taken = self._clock() - began
            if mended:
                self._interval = max(INTERVAL_SECONDS, SHARE * taken)
                self.on_damage()  # look once more: a remedy can fail
            else:
                self._calm_until = self._clock() + min(CALM_SHARE * taken, LONGEST_CALM_SECONDS)

    def _say_failure(self, error: Exception) -> None:
        """Log why nothing can be looked for, once, and have it known."""
        if self._failure != (failure := str(error)):
            self._failure = failure
            log.error("could not look for damage", exc_info=error)
        self._health.report(LOOKING, f"damage is not repaired: {error}")

    def _await_damage(self) -> bool:
        """Wait for damage, or for the end of a rest; False when it is time to go."""
        with self._condition:
            while not (self._closing or self._is_due(now := self._clock())):
                self._forgive_calm(now)
                calm = (self._backoff.calm_at(thing) - now for thing in self._contested)
                recheck = [RECHECK_SECONDS] if self._told else []
                due = [self._calm_until - now] if self._damaged else []
                is_told = self._condition.wait(
                    min((*self.resting().values(), *calm, *recheck, *due), default=None)
                )
                if recheck and not is_told:
                    break
            self._damaged = False
            return not self._closing

    def _is_due(self, now: float) -> bool:
        """Return whether it is time to look; ends the rests that are over."""
        return (self._damaged and self._calm_until <= now) or self._backoff.end_rests(now)

    def _choose(self, found: tuple[Drift, ...]) -> tuple[Drift, ...]:
        by_thing: dict[str, list[Drift]] = {}
        others = {_thing(each): each for each in found if each.blocked or each.kind in TOLD}
        for difference in found:
            if not (difference.blocked or difference.kind in TOLD | MENDS_ITSELF):
                by_thing.setdefault(_thing(difference), []).append(difference)
        for thing in self._told - others.keys():
            self._health.clear(thing)
        for thing in sorted(others.keys() - self._told):
            self._tell(thing, others[thing])
        self._told = set(others)
        chosen = (self._mark(thing, each) for thing, each in by_thing.items())
        return tuple(chain.from_iterable(chosen))

    def _mark(self, thing: str, found: list[Drift]) -> list[Drift]:
        """Return what of a thing is to be repaired now, marked if that is no news."""
        now = self._clock()
        if self._backoff.is_contested(thing, now) and thing not in self._contested:
            self._contest(thing, found[0])
        if not self._backoff.allows(thing, now, self._interval):
            return []
        return [replace(each, contested=thing in self._contested) for each in found]

    def _contest(self, thing: str, example: Drift) -> None:
        """Say that a thing is fought over."""
        problem = (
            f"{thing} was repaired {REPAIRS} times within {WINDOW_SECONDS:.0f} s and is broken "
            "again: another program keeps changing it, or a repair does not help; it is repaired "
            f"every {self._interval:.0f} s at most: {example}"
        )
        log.error("%s", problem)
        self._health.report(thing, problem)
        self._contested.add(thing)

    def _forgive_calm(self, now: float) -> None:
        """Clear the problems of what has been whole for long enough."""
        for thing in [each for each in self._contested if self._backoff.calm_at(each) <= now]:
            log.info("%s has been left alone for %.0f s", thing, WINDOW_SECONDS)
            self._health.clear(thing)
            self._contested.discard(thing)

    def _tell(self, thing: str, difference: Drift) -> None:
        """Say once what only others can mend; the end of another program's link is an event."""
        problem = str(difference)
        if difference.blocked:
            problem += "; it is mended as soon as that link has gone"
        log.error("%s", problem)
        self._health.report(thing, problem)


def _thing(difference: Drift) -> str:
    """Return what is repaired as a whole: the rules are one thing, a bridge is another."""
    subject = "" if difference.kind is Kind.RULES else difference.subject
    return f"{difference.kind} {subject}".strip()
