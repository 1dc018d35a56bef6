"""gunicorn's threaded worker, with a limit on how long a client may take.

Only root may connect (the socket has mode 0600). So slow clients are no threat, but none of them
may keep a thread for good, or delay others by more than `READ_SECONDS` and the second between two
turns of gunicorn's loop, however many there are.
"""

from __future__ import annotations

import errno
import logging
import select
import socket
import time
from contextlib import suppress
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

CLIENT, SERVER = "", "localhost"  # who is at the other end of a unix socket has no name
READ_SECONDS = 4.0  # from the connection to the last byte of the request, and a second at most
ANSWERED_SECONDS = 15.0  # from the connection to the last byte of the answer
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
EXHAUSTED_SECONDS = 0.05  # between two attempts to accept
MILLI = 1000

log = logging.getLogger("pynet")


class Connection(TConn):
    """A connection that knows when it was accepted."""

    def __init__(self, cfg: Any, sock: socket.socket) -> None:
        super().__init__(cfg, sock, CLIENT, SERVER)
        self.accepted = time.monotonic()

    def wait_for_data(self, _: float | None) -> bool:
        """Wait for the first byte, for as long as the client may take; tell whether it has come.

        By poll(2): gunicorn's own takes a descriptor more, which there may not be.
        """
        left = max(self.accepted + READ_SECONDS - time.monotonic(), 0)
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        self.data_ready = bool(poll.poll(left * MILLI))
        return self.data_ready

    def shut(self, seconds: float) -> None:
        """End what takes too long after `seconds`.

        A thread that reads sees the end of the request, one that writes a broken pipe. What has
        arrived can still be read.
        """
        with suppress(OSError):  # the client may be gone
            if seconds > ANSWERED_SECONDS:
                self.sock.shutdown(socket.SHUT_RDWR)
            elif seconds > READ_SECONDS:
                self.sock.shutdown(socket.SHUT_RD)

    def close(self, graceful: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - gunicorn's
        """Close it at once: gunicorn's loop would wait for the client, up to 2 s each."""
        self.sock.close()


class Worker(ThreadWorker):
    """The worker; see gunicorn.workers.gthread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connections: list[Connection] = []  # that may be open
        self._is_exhausted = False  # since a line of the log said so

    def notify(self) -> None:
        """Tell the arbiter nothing: with a timeout of 0 it does not ask.

        gunicorn would touch a file every second, and the disk that it is on may hang.
        """

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection; without a descriptor or memory for it, wait a moment."""
        try:
            client, _ = listener.accept()
        except OSError as error:
            if error.errno in EXHAUSTED:
                if not self._is_exhausted:
                    log.error("accept connections: %s", error.strerror)  # noqa: TRY400 - in words
                self._is_exhausted = True
                time.sleep(EXHAUSTED_SECONDS)
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                raise
            return
        self._is_exhausted = False
        connection = Connection(self.cfg, client)
        self._connections.append(connection)
        self.nr_conns += 1
        self.enqueue_req(connection)

    def murder_pending(self) -> None:
        """End what takes too long; gunicorn's loop calls this every second."""
        super().murder_pending()
        now = time.monotonic()
        self._connections = [each for each in self._connections if each.sock.fileno() >= 0]
        for connection in self._connections:
            connection.shut(now - connection.accepted)
