"""Paths that others chose: many looked up by one thread, and one that hangs keeps nobody."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest

from driver.errors import KernelError
from driver.linux import paths
from driver.linux.paths import PathOpener
from tests.engine.wait import wait_until
from tests.kernel.host import descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from driver.linux.paths import Answer


@pytest.fixture
def opener(monkeypatch: pytest.MonkeyPatch) -> PathOpener:
    """Lend an opener that soon takes a file system not to answer."""
    monkeypatch.setattr(paths, "SECONDS", 0.5)
    return PathOpener()


@contextmanager
def hanging(monkeypatch: pytest.MonkeyPatch, *places: Path) -> Iterator[None]:
    """Have look-ups of these places not return before the block ends."""
    original, over = paths._open, threading.Event()

    def open_some(path: str) -> Answer:
        if path in map(str, places):
            over.wait()
        return original(path)

    monkeypatch.setattr(paths, "_open", open_some)
    try:
        yield
    finally:
        over.set()


def test_many_that_are_not_there_are_looked_up_by_one_thread(
    opener: PathOpener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Mock(wraps=threading.Thread.start)
    monkeypatch.setattr(threading.Thread, "start", lambda thread: start(thread))  # noqa: PLW0108 - bound
    there = tmp_path / "there"
    there.touch()
    absent = [str(tmp_path / str(number)) for number in range(50)]
    answers = opener.open_all([*absent, str(there), *absent])
    assert list(map(type, map(answers.get, absent))) == [FileNotFoundError] * 50
    place = answers[str(there)]
    assert isinstance(place, int)
    assert os.fstat(place).st_ino == there.stat().st_ino
    os.close(place)
    assert start.call_count == 1


def test_one_that_hangs_is_refused_and_keeps_no_other(
    opener: PathOpener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, stuck, last = (tmp_path / name for name in ("first", "stuck", "last"))
    with hanging(monkeypatch, stuck):
        answers = opener.open_all(map(str, (first, stuck, last)))
        assert [type(answers[str(each)]) for each in (first, stuck, last)] == [
            FileNotFoundError,
            KernelError,
            FileNotFoundError,
        ]
        assert "has not answered" in str(answers[str(stuck)])
        with pytest.raises(KernelError, match="does not answer"):
            opener.open(str(stuck))
        with pytest.raises(FileNotFoundError):
            opener.open(str(first))


def test_many_may_take_longer_together_than_one_may(
    opener: PathOpener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = paths._open

    def open_slowly(path: str) -> Answer:
        threading.Event().wait(paths.SECONDS / 10)
        return original(path)

    monkeypatch.setattr(paths, "_open", open_slowly)
    answers = opener.open_all(str(tmp_path / str(number)) for number in range(20))
    assert list(map(type, answers.values())) == [FileNotFoundError] * 20


def test_what_comes_too_late_is_closed_and_the_path_looked_up_again(
    opener: PathOpener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = tmp_path / "stuck"
    before = descriptors()
    with hanging(monkeypatch, stuck):
        with pytest.raises(KernelError):
            opener.open(str(stuck))
        stuck.touch()
    wait_until(lambda: not opener._stuck, 20, "the path is free again")
    wait_until(lambda: descriptors() == before, 20, "the late descriptor is closed")
    os.close(opener.open(str(stuck)))


def test_only_so_many_threads_hang(
    opener: PathOpener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "MOST_STUCK", 2)
    places = [tmp_path / str(number) for number in range(4)]
    with hanging(monkeypatch, *places):
        answers = opener.open_all(map(str, places))
        assert all(isinstance(answer, KernelError) for answer in answers.values())
        assert len(answers) == 4
        assert len(opener._stuck) == 2
