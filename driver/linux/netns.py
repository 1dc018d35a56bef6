"""Enter network namespaces, each in a thread made for it.

setns(2) moves the calling thread only. A thread that has moved must do nothing else afterwards,
so each one does its work and ends.
"""

from __future__ import annotations

import ctypes
import os
import threading
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from driver.errors import InvalidRequest, KernelError, NotFound
from driver.linux.paths import PathOpener, device_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")
P = TypeVar("P", bound=str)

CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
OWN_NAMESPACE = Path("/proc/self/ns/net")
AFTERWARDS = "netns-afterwards"  # the name of a thread that no caller waits for any more

_libc = ctypes.CDLL(None, use_errno=True)
_opener = PathOpener()


class _Held(threading.local):
    """The namespace that the thread holds open, see `hold_namespace`."""

    path: str | None = None
    descriptor = -1


_held = _Held()


def is_namespace(path: str) -> bool:
    """Return whether a network namespace is mounted at the path.

    Docker creates an empty file first and mounts the namespace over it a moment later. Raises
    KernelError if the path lies where a file system does not answer.
    """
    if path == _held.path:
        return True
    answer = are_namespaces([path])[path]
    if isinstance(answer, KernelError):
        raise answer
    return answer


def are_namespaces(paths: Iterable[str]) -> dict[str, bool | KernelError]:
    """Do the same for many paths at once; return what `is_namespace` would return or raise."""
    return {path: _look_at(place) for path, place in _opener.open_all(paths).items()}


def _look_at(place: int | Exception) -> bool | KernelError:
    """Return whether a place is a namespace, and close it."""
    if isinstance(place, KernelError):
        return place
    if isinstance(place, Exception):
        return False
    try:
        return _is_namespace(place)
    except KernelError as error:
        return error
    finally:
        os.close(place)


@contextmanager
def open_namespace(path: str) -> Iterator[int]:
    """Open the namespace mounted at the path; yields a descriptor that keeps it alive.

    Raises NotFound if there is none, InvalidRequest if it is the host's own: whatever the
    request says, the host is never treated as a container.
    """
    if path == _held.path:
        yield _held.descriptor
        return
    try:
        place = _opener.open(path)
    except OSError as error:
        raise NotFound(f"enter sandbox {path}: {error.strerror}") from error
    try:
        descriptor = _open_place(path, place)
    finally:
        os.close(place)
    try:
        if os.fstat(descriptor).st_ino == OWN_NAMESPACE.stat().st_ino:
            raise InvalidRequest(f"enter sandbox {path}: that is the host's own namespace")
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def hold_namespace(path: str) -> Iterator[bool]:
    """Look a path up once for all that this thread does there inside the block.

    Yields whether there is a namespace; where there is none yet, later looks are made anew. So
    whatever a Join does is done in one sandbox, and its path is walked once. Raises what
    `open_namespace` does but for NotFound.
    """
    with ExitStack() as stack:
        descriptor = None
        with suppress(NotFound):
            descriptor = stack.enter_context(open_namespace(path))
        if descriptor is not None:
            _held.path, _held.descriptor = path, descriptor
            stack.callback(setattr, _held, "path", None)
        yield descriptor is not None


def _open_place(path: str, place: int) -> int:
    """Open what has been looked up: the path may lead somewhere else by now."""
    if not _is_namespace(place):
        raise NotFound(f"enter sandbox {path}: there is no network namespace")
    try:
        return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(f"enter sandbox {path}: {error.strerror}") from error


def _is_namespace(place: int) -> bool:
    """Return whether a descriptor is of a namespace: all are files of one device, nsfs."""
    return device_of(place) == _device_of_namespaces()


@cache
def _device_of_namespaces() -> int:
    """Return nsfs's: one while the kernel runs, and asked for at every look at a sandbox."""
    return OWN_NAMESPACE.stat().st_dev


def run_in(descriptor: int, work: Callable[[], T]) -> T:
    """Return what `work` returns when run inside the namespace; its exceptions come through."""
    return _run_in_thread(lambda: enter(descriptor), work)


def run_apart(work: Callable[[], T], afterwards: Callable[[T], object]) -> T:
    """Return what `work` returns when run in a thread of its own, which may `enter` a namespace.

    `afterwards` is given the same when it has been returned, so that no caller waits for it; it may
    not raise.
    """
    return _run_in_thread(lambda: None, work, afterwards)


def run_in_each(paths: Iterable[P], work: Callable[[P], T]) -> dict[P, T]:
    """Run `work` in one namespace after the other, by one thread; return what it returned in each.

    Those that are gone are left out. The first failure ends it.
    """
    results: dict[P, T] = {}
    held = _held.path, _held.descriptor  # by the caller, who waits

    def run() -> None:
        _held.path, _held.descriptor = held
        for path in paths:
            with suppress(NotFound), open_namespace(path) as namespace:
                enter(namespace)
                results[path] = work(path)

    _run_in_thread(lambda: None, run)
    return results


def run_in_new(work: Callable[[], T]) -> T:
    """Run `work` in a network namespace made for it, which ends with it."""
    return _run_in_thread(_unshare, work)


def _run_in_thread(
    enter: Callable[[], None],
    work: Callable[[], T],
    afterwards: Callable[[T], object] | None = None,
) -> T:
    results: list[T] = []
    failures: list[BaseException] = []
    is_done = threading.Event()

    def run() -> None:
        try:
            enter()
            results.append(work())
        except BaseException as failure:  # noqa: BLE001 - raised again in the calling thread
            failures.append(failure)
        if afterwards is not None:
            threading.current_thread().name = AFTERWARDS
            is_done.set()
            for result in results:
                afterwards(result)

    thread = threading.Thread(target=run, name="netns", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # Python's word for EAGAIN: too many threads, too little memory
        raise KernelError(f"enter a network namespace: {error}") from error
    if afterwards is None:
        thread.join()
    else:
        is_done.wait()
    if failures:
        raise failures[0]
    return results[0]


def enter(descriptor: int) -> None:
    """Move the calling thread, made for it, into the namespace. Raises KernelError."""
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise _error("enter the sandbox's network namespace")


def _unshare() -> None:
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise _error("make a throw-away network namespace")


def _error(attempt: str) -> KernelError:
    return KernelError(f"{attempt}: {os.strerror(ctypes.get_errno())}")
