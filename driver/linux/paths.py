"""Open paths from requests without hanging on a dead file system.

A sandbox is a path in a request. A dead NFS or FUSE mount below it lets no system call return, and
the caller may hold the driver's lock.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, TypeAlias

from driver.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Answer: TypeAlias = "int | Exception"  # a descriptor, or why there is none

SECONDS = 1.0  # in which a file system has to answer for one path
MOST_STUCK = 16  # threads that may hang; further paths that are not in the cache are refused
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_OPENAT2 = 437  # on every architecture, include/uapi/asm-generic/unistd.h
_AT_FDCWD = -100
_RESOLVE_CACHED = 0x20  # include/uapi/linux/openat2.h, since 5.12
_AT_EMPTY_PATH, _AT_STATX_DONT_SYNC = 0x1000, 0x4000  # include/uapi/linux/fcntl.h
_STATX = struct.Struct("=136xII112x")  # struct statx, of which the device

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    """struct open_how, include/uapi/linux/openat2.h."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_HOW = _OpenHow(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_CACHED)


def device_of(place: int) -> int:
    """Return the device of what a descriptor is of, as st_dev; never asks its file system.

    fstat(2) would: a server of NFS or FUSE, about the size. Raises KernelError.
    """
    answer = ctypes.create_string_buffer(_STATX.size)
    if _libc.statx(place, b"", _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, 0, answer) != 0:
        raise KernelError(f"look at a sandbox: {os.strerror(ctypes.get_errno())}")
    return os.makedev(*_STATX.unpack(answer.raw))


class PathOpener:
    """Opens paths as O_PATH does: a descriptor of the place, whatever is there. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._stuck: set[str] = set()

    def open(self, path: str) -> int:
        """Return a descriptor of the place, which the caller closes.

        Raises OSError if there is nothing, KernelError if the file system does not answer.
        """
        answer = self.open_all([path])[path]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def open_all(self, paths: Iterable[str]) -> dict[str, Answer]:
        """Return a descriptor of each place, which the caller closes, or what `open` would raise.

        What the kernel has in its cache, as it has every mounted namespace, costs 10 microseconds;
        the rest is looked up in a thread, one for all as long as none of them hangs.
        """
        answers: dict[str, Answer] = {}
        rest: list[str] = []
        for path in dict.fromkeys(paths):
            cached = _open_cached(path)
            if cached >= 0:
                answers[path] = cached
            else:
                rest.append(path)
        while rest:
            found = self._refuse(rest) or self._look_up(rest)
            answers |= found
            rest = [path for path in rest if path not in found]
        return answers

    def _refuse(self, paths: Iterable[str]) -> dict[str, Answer]:
        """Answer for paths that a thread hangs at, for all if too many threads hang."""
        with self._lock:
            stuck = paths if len(self._stuck) >= MOST_STUCK else self._stuck.intersection(paths)
        return {
            path: KernelError(f"look at {path}: a file system there does not answer")
            for path in stuck
        }

    def _look_up(self, paths: Sequence[str]) -> dict[str, Answer]:
        """Look up paths one after the other, up to the first whose file system does not answer."""
        answers: dict[str, Answer] = {}
        is_done = Event()
        is_given_up = False

        def look() -> None:
            for path in paths:
                answer = _open(path)
                with self._lock:
                    if is_given_up:
                        self._stuck.discard(path)
                        if isinstance(answer, int):
                            os.close(answer)
                        return
                    answers[path] = answer
            is_done.set()

        Thread(target=look, name="path", daemon=True).start()
        seen = -1
        while seen < len(answers) and not is_done.is_set():  # many may take longer than one may
            seen = len(answers)
            is_done.wait(SECONDS)
        with self._lock:
            is_given_up = True
            if len(answers) < len(paths):
                path = paths[len(answers)]
                self._stuck.add(path)
                answers[path] = KernelError(
                    f"look at {path}: a file system there has not answered for {SECONDS:.0f} s"
                )
        return answers


def _open_cached(path: str) -> int:
    """Return a descriptor if nothing has to be asked for it, otherwise -1."""
    descriptor: int = _libc.syscall(
        _OPENAT2, _AT_FDCWD, path.encode(), ctypes.byref(_HOW), ctypes.sizeof(_HOW)
    )
    return descriptor


def _open(path: str) -> Answer:
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    except ValueError as error:  # a null character
        return error
    except OSError as error:
        if error.errno in _EXHAUSTED:  # else a container that runs would be taken to have ended
            return KernelError(f"look at {path}: {error.strerror}")
        return error
