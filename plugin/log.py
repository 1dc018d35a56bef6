"""Write the log in a thread of its own, so that nobody waits for who reads it.

A full pipe or a disk that hangs would otherwise hold whoever logs, Docker's requests included.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from queue import Full, Queue
from threading import Lock, Thread

LINES = 4096  # that wait to be written; further ones are lost, and counted
FLUSH_SECONDS = 1.0


class QueuedHandler(logging.Handler):
    """A handler that writes whole lines to a descriptor, in order, and never blocks who logs.

    Each process has a thread for it, which is started with its first line.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._renew()
        os.register_at_fork(after_in_child=self._renew)

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the line over, or count it as lost if too many wait."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as logging's own handlers
            self.handleError(record)
            return
        try:
            self._lines.put_nowait(line)
        except Full:
            self._lost += 1
        if self._thread is None:
            self._start()

    def flush(self) -> None:
        """Wait until all lines are written, for a while."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(
                lambda: not self._lines.unfinished_tasks, FLUSH_SECONDS
            )

    def _renew(self) -> None:
        """Begin with nothing; what another process has not written yet is that one's to write."""
        self._lines: Queue[str] = Queue(LINES)
        self._lost = 0
        self._starting = Lock()
        self._thread: Thread | None = None

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                thread = Thread(target=self._run, name="log", daemon=True)
                with suppress(RuntimeError):  # no thread is to be had: with the next line, perhaps
                    thread.start()
                    self._thread = thread

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            with suppress(OSError):  # there is nobody to tell
                self._write(line)
                if self._lost:
                    lost, self._lost = self._lost, 0
                    self._write(f"{lost} lines of the log were lost: they were not read in time")
            self._lines.task_done()

    def _write(self, line: str) -> None:
        rest = f"{line}\n".encode(errors="backslashreplace")
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
