"""The watch: called once, as soon as a namespace is mounted over a file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest

from driver.errors import KernelError
from driver.health import Health
from driver.linux import netns
from driver.linux.watch import SandboxWatch
from driver.model import SandboxKey
from tests.engine.wait import wait_until
from tests.kernel.host import mount_namespace, run, unmount_namespace

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.kernel.host import RealHost

SECONDS = 20
MANY = 50


def test_a_sandbox_is_told_of_when_it_is_mounted(real: RealHost) -> None:
    arrived = Event()
    sandbox = real.expect_sandbox(1)
    real.kernel.watch_sandbox(sandbox, arrived.set)
    mount_namespace(sandbox)
    assert arrived.wait(SECONDS)


def test_an_empty_file_and_other_mounts_are_no_sandbox(real: RealHost, tmp_path: Path) -> None:
    calls: SimpleQueue[str] = SimpleQueue()
    false, true = SandboxKey(str(tmp_path / "false")), real.expect_sandbox(1)
    real.kernel.watch_sandbox(false, partial(calls.put, "false"))
    real.kernel.watch_sandbox(true, partial(calls.put, "true"))
    Path(false).touch()
    run("mount", "--bind", "/etc/hostname", false)
    mount_namespace(true)
    assert calls.get(timeout=SECONDS) == "true"
    assert calls.empty()


def test_many_at_once_are_each_told_of_once(real: RealHost) -> None:
    calls: SimpleQueue[int] = SimpleQueue()
    sandboxes = [real.expect_sandbox(number) for number in range(MANY)]
    for number, sandbox in enumerate(sandboxes):
        real.kernel.watch_sandbox(sandbox, partial(calls.put, number))
    run(
        "sh",
        "-c",
        "for path; do unshare --net mount --bind /proc/self/ns/net $path & done; wait",
        "sh",
        *sandboxes,
    )
    assert sorted(calls.get(timeout=SECONDS) for _ in sandboxes) == list(range(MANY))
    unmount_namespace(sandboxes[0])
    mount_namespace(sandboxes[0])
    later = real.expect_sandbox(MANY)
    real.kernel.watch_sandbox(later, partial(calls.put, MANY))
    mount_namespace(later)
    assert calls.get(timeout=SECONDS) == MANY, "a sandbox was told of twice"


def test_many_that_are_awaited_are_looked_up_by_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Mock(wraps=Thread)
    monkeypatch.setattr("driver.linux.paths.Thread", start)
    watch = SandboxWatch(Health())
    watch._awaited = {SandboxKey(str(tmp_path / str(each))): print for each in range(MANY)}
    watch._look()
    watch.close()
    assert start.call_count == 1
    assert len(watch._awaited) == MANY


def test_a_sandbox_that_is_there_already_is_told_of_at_once(real: RealHost) -> None:
    arrived = Event()
    real.kernel.watch_sandbox(real.add_sandbox(1), arrived.set)
    assert arrived.wait(SECONDS)


def test_a_later_watch_replaces_and_a_forgotten_one_is_silent(real: RealHost) -> None:
    calls: SimpleQueue[str] = SimpleQueue()
    first, second = real.expect_sandbox(1), real.expect_sandbox(2)
    real.kernel.watch_sandbox(first, partial(calls.put, "forgotten"))
    real.kernel.unwatch_sandbox(first)
    real.kernel.watch_sandbox(second, partial(calls.put, "replaced"))
    real.kernel.watch_sandbox(second, partial(calls.put, "later"))
    mount_namespace(first)
    mount_namespace(second)
    assert calls.get(timeout=SECONDS) == "later"
    assert calls.empty()


def test_one_that_fails_does_not_end_the_watch(
    real: RealHost, caplog: pytest.LogCaptureFixture
) -> None:
    arrived = Event()
    first, second = real.expect_sandbox(1), real.expect_sandbox(2)
    real.kernel.watch_sandbox(first, lambda: 1 // 0)  # type: ignore[arg-type]
    mount_namespace(first)
    real.kernel.watch_sandbox(second, arrived.set)
    mount_namespace(second)
    assert arrived.wait(SECONDS)
    said = f"could not configure sandbox {first}"  # by a thread of its own
    wait_until(lambda: said in caplog.text, SECONDS, "the failure is told of")


def test_a_thread_that_cannot_be_started_costs_no_sandbox_its_parameters(
    real: RealHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: SimpleQueue[int] = SimpleQueue()
    failures = [RuntimeError("can't start new thread")]
    original = Thread.start

    def start(thread: Thread) -> None:
        if thread.name.startswith("sandbox ") and failures:
            raise failures.pop()
        original(thread)

    monkeypatch.setattr(Thread, "start", start)
    for number in range(2):
        sandbox = real.expect_sandbox(number)
        real.kernel.watch_sandbox(sandbox, partial(calls.put, number))
        mount_namespace(sandbox)
        assert calls.get(timeout=SECONDS) == number
    assert "can't start new thread" in caplog.text


def test_a_look_that_fails_is_not_the_last(real: RealHost, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived, can_look, health = Event(), Event(), Health()
    original = netns.are_namespaces

    def look(paths: Iterable[str]) -> Mapping[str, bool | KernelError]:
        if not can_look.is_set():
            raise MemoryError("no room")
        return original(paths)

    monkeypatch.setattr(netns, "are_namespaces", look)
    sandbox = real.expect_sandbox(1)
    mount_namespace(sandbox)
    watch = SandboxWatch(health)
    try:
        watch.add(sandbox, arrived.set)
        wait_until(lambda: "no room" in str(health.problems()), SECONDS, "it is told")
        can_look.set()
        assert arrived.wait(SECONDS)
        wait_until(lambda: not health.problems(), SECONDS, "that it works again is told")
    finally:
        watch.close()


def test_a_watch_that_could_not_begin_can_begin_later(
    real: RealHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = Event()
    sandbox = real.expect_sandbox(1)
    with monkeypatch.context() as patch:
        patch.setattr(Thread, "start", Mock(side_effect=RuntimeError("can't start new thread")))
        with pytest.raises(KernelError, match="can't start new thread"):
            real.kernel.watch_sandbox(sandbox, arrived.set)
    real.kernel.watch_sandbox(sandbox, arrived.set)
    mount_namespace(sandbox)
    assert arrived.wait(SECONDS)
