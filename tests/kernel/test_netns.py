"""Network namespaces: entered by threads, told from other files, never the host's own."""

from __future__ import annotations

import os
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from driver.errors import InvalidRequest, KernelError, NotFound
from driver.linux import netns
from tests.kernel.host import all_but, descriptors, mount_namespace

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.host import RealHost

T = TypeVar("T")

OWN = Path(netns.OWN_NAMESPACE)


def inode() -> int:
    """Return which namespace the calling thread is in."""
    return Path("/proc/thread-self/ns/net").stat().st_ino


def enter_and(namespace: int, work: Callable[[], T]) -> T:
    netns.enter(namespace)
    return work()


def test_the_hosts_own_namespace_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(OWN)
    for path in (OWN, Path("/proc/self/task") / str(os.getpid()) / "ns/net", link):
        with pytest.raises(InvalidRequest, match="host's own"), netns.open_namespace(str(path)):
            pytest.fail("the host was entered")


def test_what_is_no_namespace_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "none", tmp_path / "empty", tmp_path, tmp_path / "fifo"):
        assert not netns.is_namespace(str(path))
        with pytest.raises(NotFound), netns.open_namespace(str(path)):
            pytest.fail("it was entered")


@pytest.mark.parametrize("free", [0, 1])
def test_without_a_descriptor_it_is_not_known_whether_a_sandbox_exists(
    real: RealHost, free: int
) -> None:
    """It has not ended: its endpoints would be removed, or have no sysctls."""
    sandbox = real.add_sandbox(1)
    assert netns.is_namespace(sandbox)
    with all_but(free):
        with pytest.raises(KernelError, match="Too many open files"):
            netns.run_in_each([sandbox], lambda _: None)
        if not free:
            with pytest.raises(KernelError, match="Too many open files"):
                netns.is_namespace(sandbox)


def test_a_namespace_of_another_kind_is_refused() -> None:
    with (
        netns.open_namespace("/proc/self/ns/mnt") as mounts,
        pytest.raises(KernelError, match="Invalid argument"),
    ):
        netns.run_in(mounts, pytest.fail)


def test_a_sandbox_is_found_without_a_thread(
    real: RealHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = real.add_sandbox(1)
    monkeypatch.setattr("driver.linux.paths.Thread", pytest.fail)
    assert netns.is_namespace(sandbox)
    with netns.open_namespace(sandbox):
        pass


def test_work_runs_inside_and_the_caller_stays_outside(real: RealHost) -> None:
    sandbox, outside = real.add_sandbox(1), inode()
    with netns.open_namespace(sandbox) as namespace:
        assert netns.run_in(namespace, inode) == Path(sandbox).stat().st_ino != outside
    assert netns.run_in_new(inode) != outside
    assert inode() == outside


def test_a_namespace_that_is_held_is_looked_up_once(
    real: RealHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox, other = real.add_sandbox(1), real.add_sandbox(2)
    looked: list[str] = []
    opener = netns._opener
    open_all = opener.open_all

    def look(paths: list[str]) -> dict[str, int | Exception]:
        looked.extend(paths)
        return open_all(paths)

    monkeypatch.setattr(opener, "open_all", look)
    with netns.hold_namespace(sandbox) as is_there:
        assert is_there
        assert netns.is_namespace(sandbox)
        with netns.open_namespace(sandbox) as namespace:
            inside = netns.run_in(namespace, inode)
        found = netns.run_in_each([sandbox, other], lambda _: inode())
    assert (found[sandbox], found[other]) == (inside, Path(other).stat().st_ino)
    assert looked == [sandbox, other]
    assert netns.is_namespace(sandbox)
    assert looked[2:] == [sandbox], "it is held no longer"


def test_a_namespace_is_held_by_the_thread_alone(real: RealHost) -> None:
    """Another thread would go on with a descriptor that is closed by then, or is another's."""
    sandbox = real.add_sandbox(1)
    with netns.hold_namespace(sandbox), netns.open_namespace(sandbox) as held:
        opened: list[int] = []

        def look() -> None:
            with netns.open_namespace(sandbox) as own:
                opened.append(own)

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert opened != [held]


def test_what_is_not_there_yet_is_looked_for_again(real: RealHost) -> None:
    sandbox = real.expect_sandbox(1)
    before = descriptors()
    with netns.hold_namespace(sandbox) as is_there:
        assert not is_there
        mount_namespace(sandbox)
        assert netns.is_namespace(sandbox)
    with (
        pytest.raises(InvalidRequest, match="host's own"),
        netns.hold_namespace(str(OWN)),
    ):
        pytest.fail("the host was entered")
    assert descriptors() == before


def test_nobody_waits_for_what_comes_afterwards(real: RealHost) -> None:
    is_answered, seen = threading.Event(), threading.Event()

    def afterwards(result: int) -> None:
        if is_answered.wait(10) and result == inode():
            seen.set()

    with netns.open_namespace(real.add_sandbox(1)) as namespace:
        netns.run_apart(partial(enter_and, namespace, inode), afterwards)
    is_answered.set()
    assert seen.wait(10)


def test_nothing_comes_after_a_failure(real: RealHost) -> None:
    def fail() -> int:
        return 1 // 0

    seen: list[int] = []
    with (
        pytest.raises(ZeroDivisionError),
        netns.open_namespace(real.add_sandbox(1)) as namespace,
    ):
        netns.run_apart(partial(enter_and, namespace, fail), seen.append)
    assert seen == []


def test_exceptions_come_through_and_nothing_leaks(real: RealHost) -> None:
    sandbox = real.add_sandbox(1)
    threads, files = threading.active_count(), descriptors()
    for _ in range(20):
        with pytest.raises(ZeroDivisionError), netns.open_namespace(sandbox) as namespace:
            netns.run_in(namespace, lambda: 1 // 0)
    assert threading.active_count() == threads
    assert descriptors() == files
