"""Damage is repaired once it is told of, and what breaks again and again is left alone."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from driver.check import Difference, Kind
from driver.counts import Counts
from driver.errors import KernelError
from driver.heal import (
    FIRST_REST_SECONDS,
    LONGEST_REST_SECONDS,
    REPAIRS,
    WINDOW_SECONDS,
    Backoff,
    Healer,
)
from driver.health import Health
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from driver.heal import Choice

BRIDGE = Difference(Kind.BRIDGE, "pn-1", "is down")
RULES = tuple(Difference(Kind.RULES, f"line {number}", "is missing") for number in range(9))
SEVERED = Difference(Kind.SEVERED, "pnh1", "is gone")
RELAY = Difference(Kind.RELAY, "[::]:8080/tcp", "is not served")


def spend(backoff: Backoff, thing: str, now: float) -> None:
    for _ in range(REPAIRS):
        assert backoff.allows(thing, now)
    assert not backoff.allows(thing, now)


def test_the_fourth_repair_in_a_minute_is_not_made() -> None:
    backoff = Backoff()
    spend(backoff, "a bridge", 100)
    assert backoff.resting(100) == {"a bridge": FIRST_REST_SECONDS}
    assert backoff.allows("another", 100)


def test_repairs_that_are_far_between_go_on_for_ever() -> None:
    backoff = Backoff()
    assert all(backoff.allows("a bridge", number * WINDOW_SECONDS / 2) for number in range(99))


def test_a_rest_ends_and_the_next_one_is_longer_up_to_a_limit() -> None:
    backoff, now, rests = Backoff(), 0.0, []
    for _ in range(8):
        spend(backoff, "a bridge", now)
        (rest,) = backoff.resting(now).values()
        rests.append(rest)
        assert not backoff.allows("a bridge", now + rest - 1)
        now += rest
    assert rests[:3] == [FIRST_REST_SECONDS, FIRST_REST_SECONDS * 2, FIRST_REST_SECONDS * 4]
    assert rests[-1] == LONGEST_REST_SECONDS


def test_long_quiet_is_forgiven() -> None:
    backoff = Backoff()
    spend(backoff, "a bridge", 0)
    assert backoff.allows("a bridge", FIRST_REST_SECONDS)
    later = FIRST_REST_SECONDS + LONGEST_REST_SECONDS + 1
    spend(backoff, "a bridge", later)
    assert backoff.resting(later) == {"a bridge": FIRST_REST_SECONDS}


class Patient:
    """Something that has damage, and mends what it is told to unless it cannot."""

    def __init__(self, *damage: Difference, stubborn: bool = False, broken: bool = False) -> None:
        self.damage = damage
        self.stubborn = stubborn
        self.broken = broken
        self.looks = 0
        self.mended: list[Difference] = []
        self.counts = Counts()

    def repair(self, choose: Choice) -> tuple[Difference, ...]:
        self.looks += 1
        if self.broken:
            raise KernelError("list the interfaces: no buffer space")
        chosen = choose(self.damage)
        self.mended += chosen
        if not self.stubborn:
            self.damage = tuple(each for each in self.damage if each not in chosen)
        return chosen


def heal(patient: Patient) -> list[Difference]:
    """Tell a healer of damage and let it come to rest; return what it was to mend."""
    healer = Healer(patient, patient.counts, Health(), lambda: 0.0)
    healer.damaged()
    wait_until(lambda: patient.looks and not healer._damaged, 5, "it has looked")
    healer.close()
    return patient.mended


def test_all_that_is_damaged_is_mended_and_looked_at_once_more() -> None:
    patient = Patient(BRIDGE, *RULES)
    assert heal(patient) == [BRIDGE, *RULES]
    assert patient.looks == 2
    assert patient.counts.repairs == {Kind.BRIDGE: 1, Kind.RULES: 1}


@pytest.mark.parametrize("difference", [SEVERED, RELAY], ids=str)
def test_what_nobody_can_mend_or_mends_itself_is_not_tried(difference: Difference) -> None:
    patient = Patient(difference)
    assert heal(patient) == []
    assert patient.looks == 1


def test_a_remedy_that_does_not_help_is_tried_a_few_times(
    caplog: pytest.LogCaptureFixture,
) -> None:
    patient = Patient(*RULES, stubborn=True)
    assert len(heal(patient)) == REPAIRS * len(RULES), "the rules are one thing"
    assert "rules was repaired 3 times" in caplog.text


def test_a_look_that_fails_does_not_end_the_healing(caplog: pytest.LogCaptureFixture) -> None:
    patient = Patient(BRIDGE, broken=True)
    health = Health()
    now = 0.0
    healer = Healer(patient, Counts(), health, lambda: now)
    healer.damaged()
    wait_until(healer.resting, 5, "it is not looked for over and over")
    assert patient.looks == REPAIRS + 1
    assert "no buffer space" in caplog.text
    assert health.problems() == ("damage is not repaired: list the interfaces: no buffer space",)
    patient.broken = False
    now = FIRST_REST_SECONDS
    with healer._condition:  # the thread waits by another clock than the test's
        healer._condition.notify()
    wait_until(lambda: not patient.damage, 5, "it is mended")
    healer.close()
    assert not health.problems()
    assert not [thread for thread in threading.enumerate() if thread.name == "healer"]


def test_the_end_of_a_rest_is_a_reason_to_look() -> None:
    now = 0.0
    patient = Patient(BRIDGE, stubborn=True)
    health = Health()
    healer = Healer(patient, Counts(), health, lambda: now)
    healer.damaged()
    wait_until(healer.resting, 5, "it rests")
    (problem,) = health.problems()
    assert problem.startswith("bridge pn-1 was repaired 3 times within 60 s and is broken again")
    patient.stubborn = False
    now = FIRST_REST_SECONDS
    with healer._condition:  # the thread waits by another clock than the test's
        healer._condition.notify()
    wait_until(lambda: not patient.damage, 5, "it is mended")
    healer.close()


def test_what_somebody_mended_meanwhile_is_no_problem_any_more() -> None:
    patient = Patient(BRIDGE, stubborn=True)
    health = Health()
    healer = Healer(patient, Counts(), health, lambda: 0.0)
    healer.damaged()
    wait_until(health.problems, 5, "it is given up")
    patient.damage = ()
    healer.damaged()
    wait_until(lambda: not health.problems(), 5, "it is forgiven")
    healer.close()
