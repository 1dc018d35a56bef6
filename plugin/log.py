"""Write the log in a thread of its own: a full pipe or a hung disk must not block a request."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from logging.handlers import QueueHandler, QueueListener
from queue import Full, Queue

from plugin.escape import escape_lines

LINES = 4096  # that wait to be written; further ones are lost, and counted
FLUSH_SECONDS = 1.0  # that the end of the process waits for them


class LineFormatter(logging.Formatter):
    """Escape what lines hold of others' words, so that no name can pass for a line of the log."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; further ones, as of a traceback, are indented."""
        return escape_lines(super().format(record))


class QueuedHandler(QueueHandler):
    """A queue handler that is bounded, and has its listener started with the first line.

    Each process has a thread of its own: one does not outlive fork(2).
    """

    queue: Queue[logging.LogRecord]

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lost = 0
        self._is_started = False
        super().__init__(Queue[logging.LogRecord](LINES))
        os.register_at_fork(after_in_child=self._renew)

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put the record into the queue, or count it as lost if too many wait."""
        try:
            self.queue.put_nowait(record)
        except Full:
            self._lost += 1
        if not self._is_started:  # under the handler's lock, which `handle` holds
            with suppress(RuntimeError):  # no thread is to be had: with the next line, perhaps
                QueueListener(self.queue, _Writer(self)).start()
                self._is_started = True

    def flush(self) -> None:
        """Wait until all lines are written, for a while."""
        lines = self.queue
        with lines.all_tasks_done:
            lines.all_tasks_done.wait_for(lambda: not lines.unfinished_tasks, FLUSH_SECONDS)

    def write(self, line: str) -> None:
        """Write a line, and how many were lost before it; called by the listener's thread."""
        lost, self._lost = self._lost, 0
        if lost:
            line += f"\n{lost} lines of the log were lost: they were not read in time"
        rest = f"{line}\n".encode(errors="backslashreplace")
        with suppress(OSError):  # where else could that be said
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]

    def _renew(self) -> None:
        """Begin with nothing; what another process has not written yet is that one's to write."""
        self._lost, self._is_started = 0, False
        self.queue = Queue(LINES)


class _Writer(logging.Handler):
    """The listener's handler: writes what the queue handler has formatted."""

    def __init__(self, queued: QueuedHandler) -> None:
        super().__init__()
        self._queued = queued

    def emit(self, record: logging.LogRecord) -> None:
        self._queued.write(record.getMessage())
