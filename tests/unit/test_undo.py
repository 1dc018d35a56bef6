"""Taking back: newest first, always all of it, never in place of the error."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from driver.errors import KernelError
from driver.undo import Rollback, attempt_all, attempt_each

if TYPE_CHECKING:
    from collections.abc import Callable


def fail(words: str) -> None:
    raise OSError(words)


def fail_after(error: BaseException, *undos: Callable[[], object]) -> None:
    """Do what can be undone, then fail."""
    with Rollback() as undo:
        for each in undos:
            undo.push(each)
        raise error


def test_what_was_done_is_taken_back_newest_first() -> None:
    undone: list[int] = []
    undos = [partial(undone.append, number) for number in range(3)]
    with pytest.raises(ValueError, match="cause"):
        fail_after(ValueError("cause"), *undos)
    assert undone == [2, 1, 0]


def test_leaving_normally_takes_nothing_back() -> None:
    with Rollback() as undo:
        undo.push(fail, "never")


def test_a_failing_undo_is_a_note_and_the_rest_goes_on() -> None:
    undone: list[int] = []
    undos = [partial(undone.append, 0), partial(fail, "stuck"), partial(undone.append, 2)]
    with pytest.raises(ValueError, match="cause") as raised:
        fail_after(ValueError("cause"), *undos)
    assert undone == [2, 0]
    assert raised.value.__notes__ == ["and taking back a step failed: stuck"]


def test_an_interrupt_takes_back_too() -> None:
    undone: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        fail_after(KeyboardInterrupt(), partial(undone.append, 1))
    assert undone == [1]


def test_every_step_is_attempted_and_the_first_failure_raised() -> None:
    done: list[int] = []
    steps = [partial(fail, "first"), partial(done.append, 1), partial(fail, "second")]
    with pytest.raises(OSError, match="first") as raised:
        attempt_all([*steps, partial(done.append, 2)])
    assert done == [1, 2]
    assert raised.value.__notes__ == ["and: second"]


def test_no_failure_raises_nothing() -> None:
    attempt_all([])
    attempt_all([list])


def test_a_failed_undo_is_told_of() -> None:
    told: list[str] = []
    with (  # noqa: PT012 - as in fail_after
        pytest.raises(OSError, match="first"),
        Rollback(lambda: told.append("look")) as undo,
    ):
        undo.push(fail, "stuck")
        undo.push(told.append, "undone")
        raise OSError("first")
    assert told == ["undone", "look"]


def test_each_step_is_tried_and_a_failure_told() -> None:
    done: list[int] = []

    def refuse() -> None:
        raise KernelError("stuck")

    assert not attempt_each([refuse, partial(done.append, 1)])
    assert attempt_each([partial(done.append, 2)])
    assert done == [1, 2]
