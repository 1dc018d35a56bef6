"""Nobody waits for the driver without end: its lock, and the threads that work for requests."""

from __future__ import annotations

import json
import logging
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from threading import Event, Thread, active_count, current_thread
from typing import TYPE_CHECKING, Any, TypeVar
from unittest.mock import Mock

import pytest
from werkzeug.test import Client

import plugin.calls
import plugin.desk
from driver.bridge import BridgeDriver
from driver.errors import Busy, KernelError
from driver.health import Health
from driver.lock import STALLED_SECONDS, Lock, Request
from driver.store import Store
from plugin.app import create_app
from plugin.crew import (
    CALLER,
    COMMIT_SECONDS,
    MOST_IDLE,
    MOST_OVERDUE,
    Caller,
    Crew,
    Deadlines,
    Task,
)
from tests.engine.wait import wait_until
from tests.fakes import Calls, FakeKernel, counted_store
from tests.samples import network, new_endpoint, new_join, sandbox_key
from tests.unit.test_protocol import ENDPOINT, IDS, JOIN, NETWORK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from driver.model import Veth

T = TypeVar("T")


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


def test_who_has_just_got_the_lock_is_not_taken_to_have_had_it_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its thread may lose its turn in the midst of noting whose the lock is, and since when."""
    lock, noting, refused = Lock(), Event(), Event()
    now = time.monotonic

    def preempted() -> float:
        if current_thread().name == "holder" and not noting.is_set():
            noting.set()
            refused.wait(0.2)
        return now()

    def hold() -> None:
        with lock:
            pass

    monkeypatch.setattr("driver.lock.time.monotonic", preempted)
    thread = Thread(target=hold, name="holder")
    thread.start()
    assert noting.wait(10)
    try:
        with lock.serving(Request("Leave", now() + 10)), lock:
            pass
    finally:
        refused.set()
        thread.join(10)


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


def run(work: Callable[[], T], request: Request | None = None, caller: Caller | None = None) -> T:
    """Have work done that may take 5 s."""
    deadlines = Deadlines(Health())
    return deadlines.run(work, request or soon(), caller or Caller(), time.monotonic() + 5)


def test_what_ends_in_time_has_its_outcome() -> None:
    def fail() -> int:
        raise KernelError("no")

    def time_out() -> int:
        raise TimeoutError("of its own")

    assert run(lambda: 7) == 7
    for work, kind in ((fail, KernelError), (time_out, TimeoutError)):
        with pytest.raises(kind):
            run(work)


def test_nobody_is_given_up_whose_work_has_ended() -> None:
    caller, request = Caller(), soon()
    assert caller.give_up() is None
    assert run(lambda: 7, request, caller) == 7
    assert caller.give_up() is None
    assert not request.overdue


@contextmanager
def hung(deadlines: Deadlines, request: Request, go_on: Event) -> Iterator[Caller]:
    """Have a thread do work that ends when it may go on, as it does at the latest afterwards."""
    caller, begun, failures = Caller(), Event(), []

    def hang() -> bool:
        begun.set()
        return go_on.wait(10)

    def serve() -> None:
        try:
            deadlines.run(hang, request, caller, time.monotonic())
        except Busy as error:
            failures.append(str(error))

    thread = Thread(target=serve)
    thread.start()
    begun.wait(10)
    try:
        yield caller
    finally:
        go_on.set()
        thread.join()
    assert [" ".join(words.split()[:3]) for words in failures] == ["no end after"]


def test_what_does_not_end_is_answered_reported_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    health = Health()
    deadlines = Deadlines(health)
    request = soon("Join endpoint=1")
    with caplog.at_level(logging.INFO), hung(deadlines, request, Event()) as caller:
        assert caller.answer_by <= time.monotonic()
        assert str(caller.give_up()).startswith("no end after 0.")
        assert request.overdue
        (problem,) = health.problems()
        assert problem.startswith("Join endpoint=1: no end since ")
        assert "go_on.wait(10)" in caplog.text
        assert deadlines.run(lambda: 7, soon(), Caller(), 0) == 7  # others go on
    assert health.problems() == ()
    assert "ended after" in caplog.text


def test_not_everything_may_hang() -> None:
    deadlines, go_on = Deadlines(Health()), Event()
    with ExitStack() as stack:
        for _ in range(MOST_OVERDUE):
            assert stack.enter_context(hung(deadlines, soon(), go_on)).give_up()
        assert deadlines.is_stuck
        with pytest.raises(Busy, match=f"{MOST_OVERDUE} earlier requests"):
            deadlines.run(lambda: 7, soon(), Caller(), 0)
    assert not deadlines.is_stuck
    assert deadlines.run(lambda: 7, soon(), Caller(), 0) == 7


def test_a_crew_is_as_many_as_have_work_and_a_few_more() -> None:
    crew, most = Crew(MOST_IDLE + 3), MOST_IDLE + 3
    before = active_count()
    for _ in range(3):
        go_on, done = Event(), SimpleQueue[int]()
        working: SimpleQueue[int] = SimpleQueue()
        for number in range(2 * most):
            crew.hand_over(Task(partial(_work, working, go_on, done, number)))
        first = {working.get(timeout=10) for _ in range(most)}
        assert first == set(range(most))  # those that came first
        assert working.empty()
        assert active_count() - before == most
        go_on.set()
        assert {done.get(timeout=10) for _ in range(2 * most)} == set(range(2 * most))
        wait_until(lambda: active_count() - before == MOST_IDLE, 5, "the others ended")


def _work(working: SimpleQueue[int], go_on: Event, done: SimpleQueue[int], number: int) -> None:
    working.put(number)
    go_on.wait(10)
    done.put(number)


def test_a_thread_that_was_given_up_has_a_substitute_and_does_not_come_back() -> None:
    crew, go_on = Crew(1), Event()
    done, working = SimpleQueue[int](), SimpleQueue[int]()
    before = active_count()
    hanging = Task(partial(_work, working, go_on, done, 1))
    crew.hand_over(hanging)
    crew.hand_over(other := Task(partial(done.put, 2)))
    assert working.get(timeout=10) == 1
    assert done.empty()
    crew.give_up(hanging)
    assert done.get(timeout=10) == 2
    assert active_count() - before == 2
    go_on.set()
    assert done.get(timeout=10) == 1
    wait_until(lambda: active_count() - before == 1, 5, "the one that hung ended")
    wait_until(lambda: other.is_done, 5, "the other task done")
    crew.give_up(other)  # too late: nobody has to come in its place
    for number in range(3):
        crew.hand_over(Task(partial(done.put, number)))
        assert done.get(timeout=10) == number
    assert active_count() - before == 1


def test_a_task_that_fails_is_logged_and_costs_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    crew, done = Crew(1), SimpleQueue[int]()

    def fail() -> None:
        raise KeyError("served")

    crew.hand_over(Task(fail))
    crew.hand_over(Task(partial(done.put, 1)))
    assert done.get(timeout=10) == 1
    assert "does not expect" in caplog.text


def test_a_crew_that_can_have_no_thread_goes_on_when_it_can(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    crew, done = Crew(2), SimpleQueue[int]()

    def fail(_: Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(Thread, "start", fail)
        crew.hand_over(Task(partial(done.put, 1)))
    assert "can't start new thread" in caplog.text
    crew.hand_over(Task(partial(done.put, 2)))
    assert [done.get(timeout=10), done.get(timeout=10)] == [1, 2]


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
    go_on, health = Event(), Health()
    kernel = hanging(go_on)
    driver = BridgeDriver(store, kernel, health=health)
    client = Client(create_app(lambda: driver, health))

    def call(name: str, payload: Any, caller: Caller | None = None) -> Any:
        answer = client.post(
            f"/NetworkDriver.{name}",
            data=json.dumps(payload).encode(),
            environ_base={CALLER: caller or Caller()},
        )
        return answer.status_code, answer.get_json(force=True)

    assert call("CreateNetwork", NETWORK)[0] == 200
    assert call("CreateEndpoint", ENDPOINT)[0] == 200
    before = kernel.state()
    caller = Caller()
    with ThreadPoolExecutor(1) as others, monkeypatch.context() as hurry:
        hurry.setattr(plugin.calls, "ANSWER_SECONDS", 0.2)
        hurry.setattr(plugin.desk, "BEGIN_SECONDS", 0.1)
        hurry.setattr(plugin.desk, "MOMENT_SECONDS", 0.1)
        join = others.submit(call, "Join", JOIN, caller)
        wait_until(lambda: time.monotonic() > caller.answer_by, 20, "the last moment")
        refusal = caller.give_up()
        status, answer = call("Leave", IDS)
        assert (status, "at work on something else: Join network=" in answer["Err"]) == (503, True)
        go_on.set()
        assert join.result() == (503, {"Err": refusal})
    assert "ended after" in caplog.text
    assert kernel.state() == before
    assert all(each.attachment is None for _, ends in driver.describe() for each in ends)
    assert call("Join", JOIN)[0] == 200


@pytest.mark.parametrize("moment", ["Store.COMMIT", "after"])
@pytest.mark.parametrize("operation", ["create_network", "create_endpoint", "join"])
def test_what_is_committed_was_not_answered_with_an_error(
    store: Store, kernel: FakeKernel, operation: str, moment: str
) -> None:
    """The last moment comes when everything has been checked, or when it has been stored."""
    kernel.add_sandbox(sandbox_key(1))
    work: dict[str, Callable[[BridgeDriver], object]] = {
        "create_network": lambda driver: driver.create_network(network(1)),
        "create_endpoint": lambda driver: driver.create_endpoint(new_endpoint()),
        "join": lambda driver: driver.join(new_join()),
    }
    for name, each in work.items():
        if name == operation:
            break
        each(BridgeDriver(store, kernel))
    before, kernel_before = BridgeDriver(store, kernel).describe(), deepcopy(kernel)
    with TemporaryDirectory() as folder:
        shutil.copytree(store._copy.parent, folder, dirs_exist_ok=True)
        recorded, other = Calls(), Store(Path(folder))
        work[operation](BridgeDriver(counted_store(other, recorded), kernel_before))
        other.close()
    at = max(index for index, made in enumerate(recorded.made) if made == "Store.COMMIT")
    caller, request, answers = Caller(), soon(seconds=5), []

    def give_up() -> None:
        answers.append(caller.give_up())

    calls = Calls(at if moment == "Store.COMMIT" else None, give_up)
    driver = BridgeDriver(counted_store(store, calls), kernel)

    def serve() -> None:
        with driver.serving(request):
            work[operation](driver)
        if moment == "after":
            give_up()

    with suppress(Busy):
        Deadlines(Health()).run(serve, request, caller, time.monotonic())
    is_stored = BridgeDriver(store, kernel).describe() != before
    assert is_stored == (answers == [None])


def test_a_commit_that_hangs_is_answered_nevertheless() -> None:
    caller, request, lock = Caller(), soon(seconds=5), Lock()

    def hang() -> None:
        with lock.serving(request):
            lock.check()
        assert caller.give_up() is not None

    with pytest.raises(Busy, match="no end after"):
        Deadlines(Health()).run(hang, request, caller, time.monotonic() - COMMIT_SECONDS)


def test_what_a_driver_takes_to_start_is_no_time_of_the_requests(
    driver: BridgeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may begin and end as late as one that came when the driver was there."""
    now = 1000.0
    monkeypatch.setattr(plugin.desk, "time", Mock(monotonic=lambda: now))

    def start() -> BridgeDriver:
        nonlocal now
        now += 60
        return driver

    caller = Caller(arrived=999.5)
    desk = plugin.desk.Desk(start, Deadlines(Health()))
    seen: list[Request | None] = []
    desk.run("CreateNetwork", lambda: seen.append(driver._lock._request()), caller, 4.5)
    (request,) = seen
    assert request is not None
    assert request.begin_by == 1059.5 + plugin.desk.BEGIN_SECONDS
    assert caller.answer_by == 1059.5 + 4.5


def test_what_waited_too_long_in_the_queue_is_not_begun(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    client = Client(create_app(lambda: driver))
    long_ago = Caller(time.monotonic() - plugin.desk.QUEUE_SECONDS - 1)
    answer = client.post(
        "/NetworkDriver.CreateNetwork",
        data=json.dumps(NETWORK).encode(),
        environ_base={CALLER: long_ago},
    )
    assert answer.status_code == 503
    assert "too much to do" in answer.get_json(force=True)["Err"]
    assert kernel.links == {}
