"""Watch the mount table for sandboxes that are yet to come.

On engines 20.10 to 27 Join comes before the sandbox exists: runc's hook makes it, as an empty file
over which the namespace is mounted. A mount is what the kernel announces to a process that polls
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
from driver.linux import netns

if TYPE_CHECKING:
    from collections.abc import Callable

    from driver.health import Health
    from driver.model import SandboxKey

MOUNTS = "/proc/self/mountinfo"
LOOKING = "sandboxes"  # the key of that in what health tells
RETRY_MILLISECONDS = 20  # a container's process is held for a few tens of them

log = logging.getLogger(__name__)


class SandboxWatch:
    """The sandboxes that are awaited, and the one thread that waits for all of them."""

    def __init__(self, health: Health) -> None:
        """`health` is told while sandboxes cannot be looked for."""
        self._health = health
        self._lock = threading.Lock()
        self._awaited: dict[SandboxKey, Callable[[], None]] = {}
        self._thread: threading.Thread | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closing = False

    def add(self, sandbox: SandboxKey, then: Callable[[], None]) -> None:
        """Call `then` once, in a thread of its own, when the sandbox exists.

        A second watch of the same sandbox replaces the first. Raises KernelError if nothing can be
        watched.
        """
        with self._lock:
            if self._thread is None:
                self._thread = self._start()
            self._awaited[sandbox] = then
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

    def _start(self) -> threading.Thread:
        try:
            mounts = os.open(MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise KernelError(f"watch {MOUNTS}: {error.strerror}") from error
        thread = threading.Thread(target=self._run, args=(mounts,), name="sandboxes", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            os.close(mounts)
            raise KernelError(f"watch {MOUNTS}: {error}") from error
        return thread

    def _run(self, mounts: int) -> None:
        poll = select.poll()
        poll.register(mounts, select.POLLPRI)
        poll.register(self._wake, select.POLLIN)
        patience: int | None = None
        try:
            while not self._closing:
                # Poll first, look afterwards: a mount between the two is seen by the next poll.
                for descriptor, _ in poll.poll(patience):
                    if descriptor == self._wake:
                        os.eventfd_read(self._wake)
                patience = None if self._attempt(patience) else RETRY_MILLISECONDS
        finally:
            os.close(mounts)

    def _attempt(self, patience: int | None) -> bool:
        """Look once; False if that failed, in whatever way, and has to be repeated soon.

        Only the first failure in a row is logged: with patience this is a repetition.
        """
        try:
            self._look()
        except Exception as error:
            if patience is None:
                log.exception("could not look for sandboxes; looking again until that succeeds")
                self._health.report(
                    LOOKING,
                    "containers of Docker Engine up to 27 may start without their networks' "
                    f"parameters: looking for sandboxes fails ({error}) and is repeated",
                )
            return False
        if patience is not None:
            self._health.clear(LOOKING)
        return True

    def _look(self) -> None:
        with self._lock:
            awaited = dict(self._awaited)
        # Without the lock: a thread that adds a watch may hold the driver's.
        found = netns.are_namespaces(awaited)
        arrived = {key: then for key, then in awaited.items() if _is_there(found[key])}
        for sandbox, action in arrived.items():
            with self._lock:
                if self._awaited.get(sandbox) is action:
                    self._begin(sandbox, action)
                else:
                    os.eventfd_write(self._wake, 1)  # the watch was renewed meanwhile: look again

    def _begin(self, sandbox: SandboxKey, action: Callable[[], None]) -> None:
        """Start an action, whose sandbox stays awaited if it cannot be started."""
        name = f"sandbox {sandbox.rpartition('/')[2]}"
        thread = threading.Thread(target=_call, args=(sandbox, action), name=name, daemon=True)
        del self._awaited[sandbox]
        try:
            thread.start()
        except BaseException:
            self._awaited[sandbox] = action
            raise


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
