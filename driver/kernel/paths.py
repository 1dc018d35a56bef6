"""Open a path that somebody else chose, without ever being kept by it; reads nothing from it.

A sandbox is a path in a request. A dead NFS or FUSE mount below it lets no system call return, and
the caller may hold the driver's lock.
"""

from __future__ import annotations

import ctypes
import os
import struct
from concurrent.futures import Future
from threading import Lock, Thread

from driver.errors import KernelError

SECONDS = 1.0
MOST_STUCK = 16  # threads that may hang; further paths that are not in the cache are refused
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

        What the kernel has in its cache, as it has every mounted namespace, costs 10 microseconds;
        the rest is looked up in a thread. Raises OSError if there is nothing, KernelError if the
        file system does not answer.
        """
        descriptor: int = _libc.syscall(
            _OPENAT2, _AT_FDCWD, path.encode(), ctypes.byref(_HOW), ctypes.sizeof(_HOW)
        )
        return descriptor if descriptor >= 0 else self._look_up(path)

    def _look_up(self, path: str) -> int:
        with self._lock:
            if path in self._stuck or len(self._stuck) >= MOST_STUCK:
                raise KernelError(f"look at {path}: a file system there does not answer")
        found: Future[int] = Future()

        def look() -> None:
            try:
                found.set_result(os.open(path, os.O_PATH | os.O_CLOEXEC))
            except BaseException as failure:  # noqa: BLE001 - raised again in the calling thread
                found.set_exception(failure)

        Thread(target=look, name="path", daemon=True).start()
        try:
            return found.result(SECONDS)
        except TimeoutError:
            if found.done():
                return found.result()
        with self._lock:
            self._stuck.add(path)
        found.add_done_callback(lambda late: self._forget(path, late))
        raise KernelError(
            f"look at {path}: a file system there has not answered for {SECONDS:.0f} s"
        )

    def _forget(self, path: str, late: Future[int]) -> None:
        with self._lock:
            self._stuck.discard(path)
        if late.exception() is None:
            os.close(late.result())
