"""Nobody waits for the driver without end: its lock, and the threads that work for requests."""

from __future__ import annotations

import json
import logging
import time
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import pytest

import plugin.app
from driver.bridge import BridgeDriver
from driver.errors import Busy, KernelError
from driver.health import Health
from driver.lock import STALLED_SECONDS, Lock, Request
from plugin.app import create_app
from plugin.crew import MOST_OVERDUE, Crew
from plugin.incoming import ARRIVED
from tests.engine.wait import wait_until
from tests.fakes import FakeKernel
from tests.unit.test_protocol import ENDPOINT, IDS, JOIN, NETWORK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from driver.model import Veth
    from driver.store import Store


def soon(words: str = "Join endpoint=1", seconds: float = 0.05) -> Request:
    return Request(words, time.monotonic() + seconds)


@contextmanager
def held(lock: Lock, request: Request | None = None) -> Iterator[None]:
    """Have another thread hold the lock inside the block."""
    holding, done = Event(), Event()

    def hold() -> None:
        with lock.serving(request or soon(seconds=5)), lock:
            holding.set()
            done.wait(10)

    thread = Thread(target=hold)
    thread.start()
    holding.wait(10)
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_who_waited_long_enough_hears_who_has_the_lock() -> None:
    lock = Lock()
    with (
        held(lock, soon("Join endpoint=1", 5)),
        lock.serving(soon()),
        pytest.raises(Busy, match=r"something else: Join endpoint=1, for \d\.\d s now"),
        lock,
    ):
        pytest.fail("two at once")
    with lock.serving(soon()), lock:
        pass


def test_who_comes_too_late_does_not_begin_even_if_the_lock_is_free() -> None:
    lock = Lock()
    with lock.serving(soon(seconds=-1)), pytest.raises(Busy, match="too much to do"), lock:
        pytest.fail("it began")
    with lock:
        pass


def test_nobody_waits_for_who_has_had_it_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Lock()
    with held(lock):
        now = time.monotonic() + STALLED_SECONDS + 1
        monkeypatch.setattr("driver.lock.time.monotonic", lambda: now)
        waiting = Request("Leave", now + 3600)
        with lock.serving(waiting), pytest.raises(Busy, match="something else"), lock:
            pytest.fail("two at once")


def test_who_has_the_lock_may_take_it_again_however_late_it_is() -> None:
    lock = Lock()
    request = soon()
    with lock.serving(request), lock:
        request.begin_by = 0
        with lock:
            pass


def test_what_is_no_request_waits_as_long_as_it_takes() -> None:
    lock = Lock()
    done = Event()

    def repair() -> None:
        with lock:
            done.set()

    with held(lock):
        thread = Thread(target=repair)
        thread.start()
        assert not done.wait(0.1)
    thread.join(10)
    assert done.is_set()


def test_the_crew_hands_back_what_came_of_it() -> None:
    crew = Crew(Health())

    def fail() -> int:
        raise KernelError("no")

    def time_out() -> int:
        raise TimeoutError("of its own")

    assert crew.run(lambda: 7, soon(), time.monotonic() + 5) == 7
    for work, kind in ((fail, KernelError), (time_out, TimeoutError)):
        with pytest.raises(kind):
            crew.run(work, soon(), time.monotonic() + 5)


def test_what_does_not_end_is_answered_reported_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    health, go_on = Health(), Event()
    crew = Crew(health)
    request = soon("Join endpoint=1")
    with caplog.at_level(logging.INFO), pytest.raises(Busy, match=r"no end after \d+\.\d s"):
        crew.run(lambda: go_on.wait(10), request, time.monotonic() + 0.1)
    assert request.overdue
    (problem,) = health.problems()
    assert problem.startswith("Join endpoint=1: no end since ")
    assert "go_on.wait(10)" in caplog.text
    assert crew.run(lambda: 7, soon(), time.monotonic() + 5) == 7  # others go on
    go_on.set()
    wait_until(lambda: not health.problems(), 5, "the problem cleared")
    wait_until(lambda: "ended after" in caplog.text, 5, "the end logged")


def test_not_everything_may_hang() -> None:
    health, go_on = Health(), Event()
    crew = Crew(health)
    for _ in range(MOST_OVERDUE):
        with pytest.raises(Busy, match="no end"):
            crew.run(lambda: go_on.wait(10), soon(), 0)
    with pytest.raises(Busy, match=f"{MOST_OVERDUE} earlier requests"):
        crew.run(lambda: 7, soon(), time.monotonic() + 5)
    go_on.set()
    wait_until(lambda: not crew.is_stuck, 5, "all of them ended")
    assert crew.run(lambda: 7, soon(), time.monotonic() + 5) == 7


def hanging(go_on: Event) -> FakeKernel:
    """Return a kernel in which making a veth hangs until it may go on."""

    class Hanging(FakeKernel):
        def create_veth(self, veth: Veth) -> None:
            go_on.wait(10)
            super().create_veth(veth)

    return Hanging()


def test_what_was_answered_with_an_error_does_not_happen(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plugin.app, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(plugin.app, "BEGIN_SECONDS", 0.1)
    monkeypatch.setattr(plugin.app, "MOMENT_SECONDS", 0.1)
    go_on, health = Event(), Health()
    kernel = hanging(go_on)
    driver = BridgeDriver(store, kernel, health=health)
    client = create_app(lambda: driver, health).test_client()

    def call(name: str, payload: Any) -> Any:
        answer = client.post(f"/NetworkDriver.{name}", data=json.dumps(payload).encode())
        return answer.status_code, answer.get_json(force=True)

    assert call("CreateNetwork", NETWORK)[0] == 200
    assert call("CreateEndpoint", ENDPOINT)[0] == 200
    before = kernel.state()
    status, answer = call("Join", JOIN)
    assert (status, "no end after" in answer["Err"]) == (503, True)
    status, answer = call("Leave", IDS)
    assert (status, "at work on something else: Join network=" in answer["Err"]) == (503, True)
    go_on.set()
    wait_until(lambda: "ended after" in caplog.text, 5, "the end logged")
    assert kernel.state() == before
    assert all(each.attachment is None for _, ends in driver.describe() for each in ends)
    assert call("Join", JOIN)[0] == 200


def test_what_waited_too_long_in_the_queue_is_not_begun(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    client = create_app(lambda: driver).test_client()
    long_ago = time.monotonic() - plugin.app.QUEUE_SECONDS - 1
    answer = client.post(
        "/NetworkDriver.CreateNetwork",
        data=json.dumps(NETWORK).encode(),
        environ_base={ARRIVED: long_ago},
    )
    assert answer.status_code == 503
    assert "too much to do" in answer.get_json(force=True)["Err"]
    assert kernel.links == {}
