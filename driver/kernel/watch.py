"""Tell when a sandbox comes into being; knows nothing of what is then to be done.

On engines 20.10 to 27 Join comes before the sandbox exists: runc's hook makes it, as an empty file
over which the namespace is mounted. A mount is what the kernel announces to whoever polls
/proc/self/mountinfo (mounts_poll() in fs/namespace.c), so the watch costs nothing at rest, needs no
folder to exist yet, and cannot see the file before the namespace.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from typing import TYPE_CHECKING

from driver.errors import KernelError
from driver.kernel import netns

if TYPE_CHECKING:
    from collections.abc import Callable

    from driver.model import SandboxKey

MOUNTS = "/proc/self/mountinfo"

log = logging.getLogger(__name__)


class SandboxWatch:
    """The sandboxes that are awaited, and the one thread that waits for all of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._awaited: dict[SandboxKey, Callable[[], None]] = {}
        self._thread: threading.Thread | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closing = False

    def add(self, sandbox: SandboxKey, then: Callable[[], None]) -> None:
        """Have `then` called, once, in a thread of its own, when the sandbox exists.

        A second watch of the same sandbox replaces the first.
        """
        with self._lock:
            self._awaited[sandbox] = then
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sandboxes", daemon=True)
                self._thread.start()
        os.eventfd_write(self._wake, 1)

    def remove(self, sandbox: SandboxKey) -> bool:
        """Forget the watch; returns whether the sandbox was still awaited."""
        with self._lock:
            return self._awaited.pop(sandbox, None) is not None

    def close(self) -> None:
        """End the thread and close its descriptors."""
        self._closing = True
        os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
        os.close(self._wake)

    def _run(self) -> None:
        mounts = os.open(MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
        poll = select.poll()
        poll.register(mounts, select.POLLPRI)
        poll.register(self._wake, select.POLLIN)
        try:
            while not self._closing:
                # Poll first, look afterwards: a mount between the two is seen by the next poll.
                for descriptor, _ in poll.poll():
                    if descriptor == self._wake:
                        os.eventfd_read(self._wake)
                self._look()
        finally:
            os.close(mounts)

    def _look(self) -> None:
        with self._lock:
            awaited = dict(self._awaited)
        # Without the lock: whoever adds a watch may hold the driver's.
        found = netns.are_namespaces(awaited)
        arrived = {key: then for key, then in awaited.items() if _is_there(found[key])}
        with self._lock:
            actions = {
                key: self._awaited.pop(key)
                for key, then in arrived.items()
                if self._awaited.get(key) is then
            }
        if actions.keys() != arrived.keys():
            os.eventfd_write(self._wake, 1)  # a watch was renewed meanwhile: look again
        for sandbox, action in actions.items():
            name = f"sandbox {sandbox.rpartition('/')[2]}"
            threading.Thread(target=_call, args=(sandbox, action), name=name, daemon=True).start()


def _is_there(answer: bool | KernelError) -> bool:  # noqa: FBT001 - private
    if isinstance(answer, KernelError):
        log.warning("%s", answer)
        return False
    return answer


def _call(sandbox: SandboxKey, action: Callable[[], None]) -> None:
    try:
        action()
    except Exception:
        log.exception("could not configure sandbox %s", sandbox)
