"""Be gunicorn's threaded worker, except that no connection ever keeps a thread waiting.

gunicorn's own reads a request in the thread that is to serve it, without an end to its patience:
as many connections that say half a sentence as there are threads, and nobody is served any more.
Here the loop that accepts connections collects what comes, and a thread gets what is complete. Nor
does a thread wait for who does not read its answer.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import selectors
import time
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from gunicorn import http
from gunicorn.http import wsgi
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.workers.gthread import TConn, ThreadWorker

from plugin.incoming import ARRIVED, CONTENT_TYPE, Incoming, Refused

if TYPE_CHECKING:
    import socket

READ_SECONDS = 5.0  # from the connection to the last byte of the request
SEND_SECONDS = 5.0
LAST_SECONDS = 0.5  # at our own end, for a request that is on its way on an open connection
MOST_UNFINISHED = 512  # connections that have yet to say what they want
MOST_BYTES = 64 * 1024 * 1024  # of unfinished requests, all together
PIECE = 256 * 1024
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
NOT_ARRIVED = frozenset({errno.EAGAIN, errno.ECONNABORTED, errno.EINTR})

log = logging.getLogger("pynet")


class Connection(TConn):
    """A connection, when it came, and what has come on it."""

    def __init__(self, cfg: Any, sock: socket.socket, client: Any, server: Any) -> None:
        super().__init__(cfg, sock, client, server)
        self.arrived = time.monotonic()
        self.incoming = Incoming()
        self.answer = _Answer()
        self.answered = 0.0

    def send(self) -> None:
        """Send of the answer what the other side takes at once."""
        try:
            del self.answer.data[: self.sock.send(self.answer.data)]
        except BlockingIOError:
            return
        except OSError as error:
            log.debug("a connection broke: %s", error)
            self.answer.data.clear()

    def close(self, graceful: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - gunicorn's
        """Close it at once: gunicorn's loop would wait for the other side, up to 2 s each."""
        self.sock.close()


class Worker(ThreadWorker):
    """One thread that collects requests, and others that serve what is complete."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unfinished: dict[Connection, None] = {}  # the oldest first
        self._bytes = 0
        self._unread: dict[Connection, None] = {}  # answered, and the answer not taken yet

    def notify(self) -> None:
        """Tell the arbiter nothing: with a timeout of 0 it does not ask."""

    def accept(self, listener: socket.socket) -> None:
        """Take a connection, and what has come on it already, which is mostly all."""
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno in EXHAUSTED:
                self._make_room(error)
            elif error.errno not in NOT_ARRIVED:
                raise
            return
        self.nr_conns += 1
        conn = Connection(self.cfg, client, address, listener.getsockname())
        self._unfinished[conn] = None
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._read, conn))
        self._read(conn)
        if len(self._unfinished) > MOST_UNFINISHED:
            self._refuse(next(iter(self._unfinished)), 503, "too many connections say nothing")

    def _make_room(self, error: OSError) -> None:
        """Do without the oldest connection that has said nothing yet, or wait for a descriptor."""
        log.error("cannot accept a connection: %s", error.strerror)
        if self._unfinished:
            self._refuse(next(iter(self._unfinished)), 503, error.strerror or str(error))
        else:
            time.sleep(0.05)

    def _read(self, conn: Connection, _: object = None) -> None:
        """Take what has come; hand the request to a thread when it is complete."""
        try:
            piece = conn.sock.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self._drop(conn)
            return
        self._bytes += len(piece)
        try:
            if conn.incoming.feed(piece):
                self._forget(conn)
                self.enqueue_req(conn)
            elif self._bytes > MOST_BYTES:
                self._refuse(conn, 503, "too many bytes of unfinished requests")
        except Refused as refusal:
            self._refuse(conn, refusal.status, str(refusal))

    def _refuse(self, conn: Connection, status: int, reason: str) -> None:
        log.warning("a connection was closed: %s", reason)
        conn.answer = _Answer(_encode_error(status, reason))
        conn.send()
        self._drop(conn)

    def _drop(self, conn: Connection) -> None:
        self._forget(conn)
        self._close(conn)

    def _forget(self, conn: Connection) -> None:
        self.poller.unregister(conn.sock)
        del self._unfinished[conn]
        self._bytes -= len(conn.incoming.data)

    def murder_pending(self) -> None:
        """Close the connections that had their time; at our own end who says nothing gets less.

        Not none: a connection may have been accepted a moment before its request arrives, and
        when it breaks Docker repeats the request without its body.
        """
        now = time.monotonic()
        for conn in tuple(self._unfinished):
            if now - conn.arrived > READ_SECONDS:
                self._refuse(conn, 408, f"no complete request within {READ_SECONDS:.0f} s")
            elif self._is_idle_at_the_end(conn, now):
                self._drop(conn)
        for conn in tuple(self._unread):
            if now - conn.answered > SEND_SECONDS:
                log.warning("a connection was closed: its answer was not read")
                self._give_up(conn)

    def _is_idle_at_the_end(self, conn: Connection, now: float) -> bool:
        return not self.alive and not conn.incoming.data and now - conn.arrived > LAST_SECONDS

    def wait_for_and_dispatch_events(self, timeout: float | None) -> None:
        """Look for what comes; at our own end often enough to keep no connection for long."""
        super().wait_for_and_dispatch_events(timeout if self.alive else 0.1)

    def handle(self, conn: Connection) -> None:  # type: ignore[override]  # `accept` makes them
        """Serve a complete request, in a thread, and send what the other side takes at once."""
        try:
            parser = http.get_parser(self.cfg, [bytes(conn.incoming.data)], conn.client)
            req = next(parser)
            body = req.body.read() if req.body else b""
            conn.incoming = Incoming()  # it may have been 16 MB
            self._serve(req, body, conn)
        except (NoMoreData, StopIteration, ParseException) as error:
            log.warning("a request was refused: %s", error)
            conn.answer = _Answer(_encode_error(400, str(error)))
        except Exception:
            log.exception("a request failed in a way that pynet does not expect")
            conn.answer = _Answer(_encode_error(500, "pynet has a defect"))
        conn.send()

    def _serve(self, req: Any, body: bytes, conn: Connection) -> None:
        sink = cast("socket.socket", conn.answer)
        response, environ = wsgi.create(req, sink, conn.client, conn.server, self.cfg)
        environ["wsgi.multithread"] = True
        environ["wsgi.input"] = io.BytesIO(body)
        environ[ARRIVED] = conn.arrived
        response.force_close()
        answer: Any = self.wsgi(environ, response.start_response)  # type: ignore[arg-type]
        try:
            for item in answer:
                response.write(item)
            response.close()
        finally:
            answer.close()

    def finish_request(self, conn: Connection, _: object) -> None:  # type: ignore[override]
        """Close a connection that has its answer, or wait until the rest of it is taken."""
        if not conn.answer.data:
            self._close(conn)
            return
        conn.answered = time.monotonic()
        self._unread[conn] = None
        self.poller.register(conn.sock, selectors.EVENT_WRITE, partial(self._send, conn))

    def _send(self, conn: Connection, _: object = None) -> None:
        conn.send()
        if not conn.answer.data:
            self._give_up(conn)

    def _give_up(self, conn: Connection) -> None:
        self.poller.unregister(conn.sock)
        del self._unread[conn]
        self._close(conn)

    def _close(self, conn: Connection) -> None:
        self.nr_conns -= 1
        conn.close()


class _Answer:
    """Takes an answer from gunicorn in the place of a socket."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)

    def sendall(self, data: bytes) -> None:
        self.data += data

    def send(self, interim: bytes) -> None:
        """Lose a `100 Continue`, for by now everything is here."""


def _encode_error(status: int, reason: str) -> bytes:
    body = json.dumps({"Err": f"{status} {HTTPStatus(status).phrase}: {reason}"}).encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nConnection: close\r\n"
        f"Content-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
