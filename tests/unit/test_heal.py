"""Damage is repaired once it is told of, and what breaks again and again, at bounded cost."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from driver.counts import Counts
from driver.errors import KernelError
from driver.health import Health
from driver.reconcile.diff import Drift, Kind
from driver.reconcile.watcher import (
    CALM_SHARE,
    INTERVAL_SECONDS,
    LONGEST_CALM_SECONDS,
    LONGEST_REST_SECONDS,
    REPAIRS,
    SHARE,
    WINDOW_SECONDS,
    Backoff,
    Watcher,
)
from tests.engine.wait import wait_until
from tests.samples import counted

if TYPE_CHECKING:
    from driver.reconcile.watcher import Choice

BRIDGE = Drift(Kind.BRIDGE, "pn-1", "is down")
RULES = tuple(Drift(Kind.RULES, f"line {number}", "is missing") for number in range(9))
SEVERED = Drift(Kind.SEVERED, "pnh1", "is gone")
RELAY = Drift(Kind.RELAY, "[::]:8080/tcp", "is not served")


def contest(backoff: Backoff, thing: str, now: float) -> None:
    for _ in range(REPAIRS):
        assert backoff.allows(thing, now)
    assert backoff.is_contested(thing, now)


def test_the_fourth_repair_in_a_minute_waits_for_a_second() -> None:
    backoff = Backoff()
    contest(backoff, "a bridge", 100)
    assert not backoff.allows("a bridge", 100)
    assert backoff.resting(100) == {"a bridge": INTERVAL_SECONDS}
    assert backoff.allows("another", 100)
    assert backoff.allows("a bridge", 100 + INTERVAL_SECONDS)


def test_what_is_broken_every_few_seconds_is_repaired_each_time_and_at_once() -> None:
    backoff = Backoff()
    for number in range(999):
        assert backoff.allows("a chain", number * 2 * INTERVAL_SECONDS), number


@pytest.mark.parametrize("interval", [4.0, 2.5 * LONGEST_REST_SECONDS])
@pytest.mark.parametrize("failed", [False, True])
def test_repairs_that_take_long_are_the_further_between(interval: float, *, failed: bool) -> None:
    """However long: else nothing else were done on a host where a repair takes half a minute."""
    backoff = Backoff()
    contest(backoff, "a bridge", 0)
    backoff.note(["a bridge"], failed=failed)
    rest = interval if interval > LONGEST_REST_SECONDS or not failed else 2 * interval
    assert not backoff.allows("a bridge", rest - 0.1, interval)
    assert backoff.allows("a bridge", rest, interval)


def test_repairs_that_are_far_between_are_no_contest() -> None:
    backoff = Backoff()
    for number in range(99):
        now = number * WINDOW_SECONDS / 2
        assert not backoff.is_contested("a bridge", now)
        assert backoff.allows("a bridge", now)


def test_what_cannot_be_repaired_is_tried_the_seldomer_up_to_a_limit() -> None:
    backoff, now, rests = Backoff(), 0.0, []
    for _ in range(REPAIRS + 8):
        backoff.note(["a bridge"], failed=True)
        if not backoff.allows("a bridge", now):
            (rest,) = backoff.resting(now).values()
            rests.append(rest)
            now += rest
            assert backoff.end_rests(now)
            assert backoff.allows("a bridge", now)
    assert INTERVAL_SECONDS < rests[0] <= rests[1] <= rests[-1] == LONGEST_REST_SECONDS
    backoff.note(["a bridge"], failed=False)
    assert not backoff.allows("a bridge", now)
    assert backoff.resting(now) == {"a bridge": INTERVAL_SECONDS}
    assert 3 * LONGEST_REST_SECONDS < WINDOW_SECONDS, "else it is taken for calm, and tried at once"


def test_long_quiet_is_forgiven() -> None:
    backoff = Backoff()
    contest(backoff, "a bridge", 0)
    assert backoff.calm_at("a bridge") == WINDOW_SECONDS
    contest(backoff, "a bridge", WINDOW_SECONDS)


class Repairable:
    """Something that has damage, and mends what it is told to unless it cannot."""

    def __init__(self, *damage: Drift, stubborn: bool = False, broken: bool = False) -> None:
        self.damage = damage
        self.stubborn = stubborn
        self.broken = broken
        self.looks = 0
        self.mended: list[Drift] = []
        self.counts = Counts()

    def repair(self, choose: Choice) -> tuple[tuple[Drift, ...], bool]:
        self.looks += 1
        if self.broken:
            raise KernelError("list the interfaces: no buffer space")
        chosen = choose(self.damage)
        self.mended += chosen
        if not self.stubborn:
            self.damage = tuple(each for each in self.damage if each not in chosen)
        return chosen, not (self.stubborn and chosen)


def heal(repairable: Repairable) -> list[Drift]:
    """Tell a watcher of damage and let it come to rest; return what it was to mend."""
    watcher = Watcher(repairable, repairable.counts, Health(), lambda: 0.0)
    watcher.on_damage()
    wait_until(lambda: repairable.looks and not watcher._damaged, 5, "it has looked")
    watcher.close()
    return repairable.mended


def test_all_that_is_damaged_is_mended_and_looked_at_once_more() -> None:
    repairable = Repairable(BRIDGE, *RULES)
    assert heal(repairable) == [BRIDGE, *RULES]
    assert repairable.looks == 2
    assert counted(repairable.counts.repairs) == {Kind.BRIDGE: 1, Kind.RULES: 1}


def test_what_only_others_can_mend_is_told_and_not_tried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    repairable, health = Repairable(SEVERED), Health()
    watcher = Watcher(repairable, Counts(), health, lambda: 0.0)
    for looks in (1, 2):
        watcher.on_damage()
        wait_until(lambda: repairable.looks == looks and not watcher._damaged, 5, "it has looked")  # noqa: B023
    assert health.problems() == (str(SEVERED),)
    assert caplog.messages == [str(SEVERED)]
    assert not repairable.mended
    repairable.damage = ()
    watcher.on_deletion()
    wait_until(lambda: not health.problems(), 5, "it is gone")
    watcher.on_deletion()
    watcher.close()
    assert repairable.looks == 3, "nothing was told any more"


def test_what_only_others_can_mend_is_looked_at_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("driver.reconcile.watcher.RECHECK_SECONDS", 0.01)
    repairable, health = Repairable(SEVERED), Health()
    watcher = Watcher(repairable, Counts(), health)
    watcher.on_damage()
    wait_until(health.problems, 5, "it is told")
    repairable.damage = ()
    wait_until(lambda: not health.problems(), 5, "it is seen that it is gone")
    watcher.close()


def test_what_mends_itself_is_not_tried() -> None:
    repairable = Repairable(RELAY)
    assert heal(repairable) == []
    assert repairable.looks == 1


def test_a_remedy_that_does_not_help_is_tried_a_few_times(
    caplog: pytest.LogCaptureFixture,
) -> None:
    repairable = Repairable(*RULES, stubborn=True)
    assert len(heal(repairable)) == REPAIRS * len(RULES), "the rules are one thing"
    assert "rules was repaired 3 times" in caplog.text


def wake(watcher: Watcher) -> None:
    """Have the watcher look at its clock, for it waits by another than the test's."""
    with watcher._condition:
        watcher._condition.notify()


def test_a_look_that_fails_does_not_end_the_healing(caplog: pytest.LogCaptureFixture) -> None:
    repairable = Repairable(BRIDGE, broken=True)
    health = Health()
    now = 0.0
    watcher = Watcher(repairable, Counts(), health, lambda: now)
    watcher.on_damage()
    wait_until(watcher.resting, 5, "it is not looked for over and over")
    assert repairable.looks == REPAIRS + 1
    assert caplog.text.count("could not look for damage") == 1
    assert "no buffer space" in caplog.text
    assert health.problems() == ("damage is not repaired: list the interfaces: no buffer space",)
    repairable.broken = False
    now = LONGEST_REST_SECONDS
    wake(watcher)
    wait_until(lambda: not repairable.damage, 5, "it is mended")
    watcher.close()
    assert not health.problems()
    assert not [thread for thread in threading.enumerate() if thread.name == "watcher"]


def test_the_end_of_a_rest_is_a_reason_to_look() -> None:
    now = 0.0
    repairable = Repairable(BRIDGE, stubborn=True)
    health = Health()
    watcher = Watcher(repairable, Counts(), health, lambda: now)
    watcher.on_damage()
    wait_until(watcher.resting, 5, "it rests")
    (problem,) = health.problems()
    assert problem.startswith("bridge pn-1 was repaired 3 times within 60 s and is broken again")
    repairable.stubborn = False
    now = LONGEST_REST_SECONDS
    wake(watcher)
    wait_until(lambda: not repairable.damage, 5, "it is mended")
    watcher.close()


def test_a_fight_is_told_of_once_until_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    repairable = Repairable()
    health = Health()
    watcher = Watcher(repairable, Counts(), health, lambda: now)
    for number in range(20):
        now = number * 5.0
        repairable.damage = (BRIDGE,)
        watcher.on_damage()
        wait_until(lambda: not repairable.damage, 5, "it is mended, each time")
    wait_until(health.problems, 5, "it is known")
    assert caplog.text.count("another program keeps changing it") == 1
    assert [each.contested for each in repairable.mended] == [False] * REPAIRS + [True] * (
        20 - REPAIRS
    )
    now += WINDOW_SECONDS
    wake(watcher)
    wait_until(lambda: not health.problems(), 5, "it is over")
    watcher.close()


def test_the_end_of_a_fight_is_noticed_though_nothing_happens_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("driver.reconcile.watcher.WINDOW_SECONDS", 0.3)
    monkeypatch.setattr("driver.reconcile.watcher.INTERVAL_SECONDS", 0.01)
    repairable, health = Repairable(BRIDGE, stubborn=True), Health()
    watcher = Watcher(repairable, Counts(), health)
    watcher.on_damage()
    wait_until(health.problems, 5, "it is told")
    repairable.damage = ()
    wait_until(lambda: not health.problems(), 5, "it is over")
    watcher.close()


def test_a_look_that_fails_is_told_of_again_after_one_that_did_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    repairable = Repairable(broken=True)
    watcher = Watcher(repairable, Counts(), Health(), lambda: 0.0)
    for broken, times in ((True, 1), (False, 1), (True, 2)):
        repairable.broken, looks = broken, repairable.looks
        watcher.on_damage()
        wait_until(
            lambda: repairable.looks > looks and watcher._condition._waiters,  # type: ignore[attr-defined]  # noqa: B023
            5,
            "it has looked",
        )
        assert caplog.text.count("could not look for damage") == times
    watcher.close()


class Slow(Repairable):
    """Something at which a look takes so many seconds, by its own clock."""

    def __init__(self, *damage: Drift, seconds: float) -> None:
        super().__init__(*damage)
        self.seconds = seconds
        self.now = 0.0

    def repair(self, choose: Choice) -> tuple[tuple[Drift, ...], bool]:
        self.now += self.seconds
        return super().repair(choose)

    def watcher(self) -> Watcher:
        """Return one that was told of damage."""
        watcher = Watcher(self, Counts(), Health(), lambda: self.now)
        watcher.on_damage()
        return watcher


def test_no_more_than_a_share_of_a_processor_goes_into_a_fight() -> None:
    watcher = Slow(BRIDGE, seconds=2.0).watcher()
    wait_until(lambda: watcher._interval == SHARE * 2.0, 5, "the next has to wait the longer")
    watcher.close()


def test_harmless_news_without_end_takes_no_more_than_a_share_of_a_processor() -> None:
    slow = Slow(seconds=0.1)
    watcher = slow.watcher()
    wait_until(lambda: watcher._calm_until > 0.1, 5, "the first look is over")
    assert watcher._calm_until == pytest.approx(0.1 * (1 + CALM_SHARE))
    slow.damage = (BRIDGE,)
    watcher.on_damage()
    wait_until(lambda: watcher._condition._waiters, 5, "it waits")  # type: ignore[attr-defined]
    assert slow.looks == 1, "it is not looked again at once"
    slow.now = watcher._calm_until
    wake(watcher)
    wait_until(lambda: not slow.damage, 5, "nor is it forgotten")
    watcher.close()


def test_a_long_look_is_not_followed_by_a_long_rest() -> None:
    watcher = Slow(seconds=9.0).watcher()
    wait_until(lambda: watcher._calm_until > 0, 5, "the look is over")
    assert watcher._calm_until == 9.0 + LONGEST_CALM_SECONDS
    watcher.close()
