"""Nobody waits for the driver without end: its lock, and the threads that work for requests."""

from __future__ import annotations

import json
import logging
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread, current_thread
from typing import TYPE_CHECKING, Any, TypeVar
from unittest.mock import Mock

import pytest
from werkzeug.test import Client

import plugin.api.deadline
import plugin.api.docker
from driver.driver import BridgeDriver
from driver.errors import Busy, KernelError
from driver.health import Health
from driver.lock import STALLED_SECONDS, Lock, Request
from driver.state.store import Store
from plugin.api import create_app
from plugin.api.deadline import MOST_OVERDUE, Deadline
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


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def deadline(driver: BridgeDriver, health: Health) -> Deadline:
    return Deadline(lambda: driver, health)


def test_what_ends_in_time_has_its_outcome(deadline: Deadline) -> None:
    def fail(_: object) -> int:
        raise KernelError("no")

    def time_out(_: object) -> int:
        raise TimeoutError("of its own")

    assert deadline.run("Join", lambda _: 7, 5) == 7
    for work, kind in ((fail, KernelError), (time_out, TimeoutError)):
        with pytest.raises(kind):
            deadline.run("Join", work, 5)


@contextmanager
def hung(deadline: Deadline, go_on: Event) -> Iterator[None]:
    """Have an operation answered as overdue that ends when it may go on, at the latest then."""
    with pytest.raises(Busy, match=r"^no end after 0\.\d s: the kernel or a disk"):
        deadline.run("Join endpoint=1", lambda _: go_on.wait(10), 0.01)
    try:
        yield
    finally:
        go_on.set()


def test_what_does_not_end_is_answered_reported_and_logged(
    deadline: Deadline, health: Health, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), hung(deadline, Event()):
        (problem,) = health.problems()
        assert problem.startswith("Join endpoint=1: no end since ")
        assert "go_on.wait(10)" in caplog.text
        assert deadline.run("Leave", lambda _: 7, 5) == 7  # others go on
    wait_until(lambda: health.problems() == (), 10, "all is well")
    wait_until(lambda: "ended after" in caplog.text, 10, "the log says so")


def test_not_everything_may_hang(deadline: Deadline) -> None:
    go_on = Event()
    with ExitStack() as stack:
        for _ in range(MOST_OVERDUE):
            stack.enter_context(hung(deadline, go_on))
        with pytest.raises(Busy, match=f"{MOST_OVERDUE} earlier requests"):
            deadline.run("Leave", lambda _: 7, 5)
    wait_until(lambda: not deadline._overdue, 10, "their end")
    assert deadline.run("Leave", lambda _: 7, 5) == 7


def test_what_waited_too_long_for_a_thread_is_not_begun(
    driver: BridgeDriver, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin.api.deadline, "THREADS", 1)
    deadline, begun, go_on = Deadline(lambda: driver, health), Event(), Event()
    with (
        hung(deadline, go_on),
        pytest.raises(Busy, match="too much to do"),
    ):
        deadline.run("Leave", lambda _: begun.set(), 0.01)
    assert deadline.run("Leave", lambda _: 7, 5) == 7
    assert not begun.is_set()


def hanging(begun: Event, go_on: Event) -> FakeKernel:
    """Return a kernel in which making a veth hangs until it may go on."""

    class Hanging(FakeKernel):
        def create_veth(self, veth: Veth) -> None:
            begun.set()
            go_on.wait(10)
            super().create_veth(veth)

    return Hanging()


def test_what_was_answered_with_an_error_does_not_happen(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun, go_on, health = Event(), Event(), Health()
    kernel = hanging(begun, go_on)
    driver = BridgeDriver(store, kernel, health=health)
    client = Client(create_app(lambda: driver, health))

    def call(name: str, payload: Any) -> Any:
        answer = client.post(f"/NetworkDriver.{name}", data=json.dumps(payload).encode())
        return answer.status_code, answer.get_json(force=True)

    assert call("CreateNetwork", NETWORK)[0] == 200
    assert call("CreateEndpoint", ENDPOINT)[0] == 200
    before = kernel.state()
    with ThreadPoolExecutor(1) as others, monkeypatch.context() as hurry:
        hurry.setattr(plugin.api.docker, "DOCKER_SECONDS", 0.5)
        hurry.setattr(plugin.api.deadline, "BEGIN_SECONDS", 0.1)
        join = others.submit(call, "Join", JOIN)
        assert begun.wait(20)
        status, answer = call("Leave", IDS)
        assert (status, "at work on something else: Join network=" in answer["Err"]) == (503, True)
        status, answer = join.result()
        assert (status, "no end after 0.5 s" in answer["Err"]) == (503, True)
        go_on.set()
    wait_until(lambda: "ended after" in caplog.text, 10, "its end")
    assert "ended after" in caplog.text
    assert kernel.state() == before
    assert all(each.attachment is None for _, ends in driver.describe() for each in ends)
    assert call("Join", JOIN)[0] == 200


@pytest.mark.parametrize("moment", ["Store.COMMIT", "after"])
@pytest.mark.parametrize("operation", ["create_network", "create_endpoint", "join"])
def test_what_is_committed_was_not_answered_with_an_error(
    store: Store,
    kernel: FakeKernel,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    moment: str,
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
    refused = Event()

    def give_up(self: Request, *, also_stored: bool) -> bool:
        outcome = original(self, also_stored=also_stored)
        refused.set()
        return outcome

    original = Request.give_up
    monkeypatch.setattr(Request, "give_up", give_up)

    def wait() -> None:
        refused.wait(10)

    calls = Calls(at if moment == "Store.COMMIT" else None, wait)
    driver = BridgeDriver(counted_store(store, calls), kernel)

    def serve(ready: BridgeDriver) -> None:
        work[operation](ready)
        wait()

    outcome = "answered"
    try:
        Deadline(lambda: driver, Health()).run(operation, serve, 0.2)
    except Busy:
        outcome = "refused"
    assert refused.is_set()
    is_stored = BridgeDriver(store, kernel).describe() != before
    assert is_stored == (outcome == "answered")


def test_a_commit_that_hangs_is_answered_nevertheless(deadline: Deadline) -> None:
    go_on = Event()

    def hang(driver: BridgeDriver) -> None:
        driver._lock.check()
        go_on.wait(10)

    with pytest.raises(Busy, match="no end after"):
        deadline.run("Join", hang, 0.01)
    go_on.set()


def test_what_a_driver_takes_to_start_is_no_time_of_the_requests(
    driver: BridgeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may begin as late as one that came when the driver was there."""
    now = 1000.0
    monkeypatch.setattr(plugin.api.deadline, "time", Mock(monotonic=lambda: now))

    def start() -> BridgeDriver:
        nonlocal now
        now += 60
        return driver

    seen: list[Request | None] = []
    deadline = Deadline(start, Health())
    deadline.run("CreateNetwork", lambda ready: seen.append(ready._lock._request()), 4.5)
    (request,) = seen
    assert request is not None
    assert request.begin_by == 1060 + plugin.api.deadline.BEGIN_SECONDS
