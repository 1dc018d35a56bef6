"""Serve requests with threads that accept for themselves; knows nothing of what is served.

gunicorn's own threads are handed their connections by the main thread, so that every call waits for
one thread more to wake up: a fifth of the time of a call that has nothing to do. Here one thread
leads: it waits for a connection, lets the next one lead, and serves. What a connection is and how
it is served stays gunicorn's.
"""

from __future__ import annotations

import os
import select
import threading
import time
from typing import TYPE_CHECKING, Any

from gunicorn.workers.gthread import TConn, ThreadWorker

if TYPE_CHECKING:
    from types import FrameType

NOTIFY_SECONDS = 1.0
REFUSED_SECONDS = 0.1  # between two attempts to accept, when there are no descriptors left


class LeadingWorker(ThreadWorker):
    """gunicorn's threaded worker with leading threads in place of an accepting one."""

    def init_process(self) -> None:
        """Prepare what the threads share, before gunicorn runs the loop."""
        self._leading = threading.Lock()
        self._counting = threading.Condition()
        self._free = self._started = 0  # threads that wait to serve, and all
        self._end = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        super().init_process()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a handler's
        """Accept no more; what is being served is finished."""
        self.alive = False
        os.eventfd_write(self._end, 1)

    def run(self) -> None:
        """Serve until told to end, or until the parent has gone."""
        self._poll = select.poll()
        self._listeners = {listener.fileno(): listener for listener in self.sockets}
        for listener in self.sockets:
            listener.settimeout(0)
            self._poll.register(listener, select.POLLIN)
        self._poll.register(self._end, select.POLLIN)
        self._add_thread()
        while self.alive:
            self.notify()
            select.select([self._end], [], [], NOTIFY_SECONDS)
            if not self.is_parent_alive():
                self.handle_exit(0, None)
        self._finish()

    def _finish(self) -> None:
        """Wait for the requests that are being served, for as long as gunicorn grants."""
        with self._counting:
            self._counting.wait_for(lambda: not self._started, self.cfg.graceful_timeout)

    def _add_thread(self) -> None:
        with self._counting:
            self._started += 1
            self._free += 1
        threading.Thread(target=self._follow, name="request", daemon=True).start()

    def _follow(self) -> None:
        """Lead when it is this thread's turn, then serve, over and over."""
        try:
            while (connection := self._take()) is not None:
                self._serve(connection)
        finally:
            with self._counting:
                self._started -= 1
                self._counting.notify_all()

    def _take(self) -> TConn | None:
        """Return the next connection; None when there will be none."""
        with self._leading:
            connection = self._accept()
        with self._counting:
            self._free -= 1
            is_last = self._free == 0 and self._started < self.cfg.threads
        if connection is not None and is_last:
            self._add_thread()  # nobody is left to lead
        return connection

    def _accept(self) -> TConn | None:
        while self.alive:
            for descriptor, _ in self._poll.poll():
                listener = self._listeners.get(descriptor)
                if listener is None:
                    return None
                if connection := self._accept_from(listener):
                    return connection
        return None

    def _accept_from(self, listener: Any) -> TConn | None:
        """Return the connection that waits there; None if it does no more, or cannot be had now."""
        try:
            client, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        except OSError as error:
            self.log.error("a connection has to wait: %s", error)  # noqa: TRY400 - the words say it
            time.sleep(REFUSED_SECONDS)
            return None
        return TConn(self.cfg, client, address, listener.getsockname())

    def _serve(self, connection: TConn) -> None:
        try:
            self.handle(connection)
        finally:
            connection.close(graceful=True)
            with self._counting:
                self._free += 1
