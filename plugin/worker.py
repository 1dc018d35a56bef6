"""Be gunicorn's threaded worker, except that no connection ever keeps a thread waiting.

gunicorn's own reads a request in the thread that is to serve it, without an end to its patience:
as many connections that say half a sentence as there are threads, and nobody is served any more.
Here a thread serves what it has accepted, if that has come as a whole: to wake another for it would
cost a tenth of a call. The loop accepts while that one is at work, collects what comes in pieces,
and has a thread of a crew serve what is complete. None of them waits for who does not read its
answer. In the place of a thread that does not come to an end the loop answers.
"""

from __future__ import annotations

import errno
import logging
import selectors
import time
from functools import partial
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, cast

from gunicorn.workers.gthread import TConn, ThreadWorker

from plugin.answer import STATUS_LINES, Answer, encode_error
from plugin.crew import CALLER, Caller, Crew, Task
from plugin.entrance import Entrance
from plugin.heads import CLIENT, SERVER, Heads
from plugin.incoming import Incoming, Refused

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable
    from concurrent.futures import ThreadPoolExecutor

READ_SECONDS = 5.0  # from the connection to the last byte of the request
SEND_SECONDS = 5.0
ARRIVAL_SECONDS = 0.01  # from a connection to its request, which is sent a moment later
LOOK_SECONDS = 0.1  # how often the loop looks for who is overdue while anybody is served
IDLE_SECONDS = 0.25  # how often it looks whether anybody is: nobody wakes it for that
LAST_SECONDS = 0.5  # at our own end, for a request that is on its way on an open connection
MOST_UNFINISHED = 512  # connections that have yet to say what they want
MOST_BYTES = 64 * 1024 * 1024  # of unfinished requests, all together
PIECE = 256 * 1024
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
NOT_ARRIVED = frozenset({errno.EAGAIN, errno.ECONNABORTED, errno.EINTR})

log = logging.getLogger("pynet")


class Connection(TConn):
    """A connection, who made it, and what has come on it."""

    def __init__(self, cfg: Any, sock: socket.socket) -> None:
        super().__init__(cfg, sock, CLIENT, SERVER)
        self.caller = Caller()
        self.incoming = Incoming()
        self.answer = Answer()
        self.answered = 0.0
        self.polled = False  # the loop looks out for what it says
        self.turn = Lock()  # taken by whoever answers first: the thread that serves, or the loop

    def receive(self) -> bytes | None:
        """Return what has come, nothing if no more will, None if nothing has yet."""
        try:
            return self.sock.recv(PIECE)
        except (BlockingIOError, TimeoutError):
            return None
        except OSError:
            return b""

    def await_request(self, seconds: float) -> bool:
        """Take what comes within a moment; tell whether it is a whole request. Raises Refused."""
        until = time.monotonic() + seconds
        self.sock.settimeout(seconds)
        try:
            while piece := self.receive():
                if self.incoming.feed(piece):
                    return True
                if time.monotonic() > until:
                    break
        finally:
            self.sock.settimeout(0)
        return False

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
    """A loop that collects requests, threads that serve them, and one that does it at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._heads = Heads(self.cfg)
        self._crew = Crew(self.cfg.threads)
        self._accepting = False
        self._entrance: Entrance | None = None
        self._gate = Lock()  # so that nobody accepts any more when the loop says so
        self._arrived: dict[Connection, None] = {}  # accepted, and not looked into yet
        self._unfinished: dict[Connection, None] = {}
        self._bytes = 0
        # Until what follows the answer is done; no task if the thread that accepted it serves it.
        self._served: dict[Connection, Task | None] = {}
        self._unread: dict[Connection, None] = {}  # answered, and the answer not taken yet

    @property
    def nr_conns(self) -> int:
        """Return how many connections there are, which gunicorn counts otherwise."""
        return len(self._arrived) + len(self._unfinished) + len(self._served) + len(self._unread)

    @nr_conns.setter
    def nr_conns(self, _: int) -> None:
        pass

    def get_thread_pool(self) -> ThreadPoolExecutor:
        """Return what serves in place of gunicorn's threads."""
        return cast("ThreadPoolExecutor", self._crew)

    def notify(self) -> None:
        """Tell the arbiter nothing: with a timeout of 0 it does not ask."""

    def set_accept_enabled(self, enabled: bool | None) -> None:  # noqa: FBT001 - gunicorn's signature
        """Accept connections, or none any more once this returns."""
        if enabled == self._accepting:
            return
        if self._entrance is None:
            self._entrance = self._build_entrance()
        with self._gate:
            self._accepting = bool(enabled)
            if enabled:
                self._entrance.open()
            else:
                self._entrance.shut()

    def _build_entrance(self) -> Entrance:
        for listener in self.sockets:
            listener.settimeout(0)
        entrance = Entrance(self.sockets)
        self.poller.register(entrance, selectors.EVENT_READ, self._accept_all)
        Thread(target=self._serve_at_once, args=(entrance,), name="entrance", daemon=True).start()
        return entrance

    def _accept_all(self, entrance: Entrance) -> None:
        for listener in entrance.look():
            self.accept(listener)

    def accept(self, listener: socket.socket) -> None:
        """Take a connection, and what has come on it already, which is mostly all."""
        try:
            client, _ = listener.accept()
        except OSError as error:
            if error.errno in EXHAUSTED:
                self._make_room(error)
            elif error.errno not in NOT_ARRIVED:
                raise
            return
        conn = Connection(self.cfg, client)
        self._unfinished[conn] = None
        self._read(conn)
        if conn in self._unfinished:
            self._await_rest(conn)

    def _collect(self, conn: Connection, refusal: Refused | None) -> None:
        """Take over a connection from the thread that accepted it, and refuse or await the rest."""
        self._unfinished[conn] = None
        del self._arrived[conn]
        self._bytes += len(conn.incoming.data)
        if refusal is not None:
            self._refuse(conn, refusal.status, str(refusal))
        else:
            self._await_rest(conn)

    def _await_rest(self, conn: Connection) -> None:
        self._poll(conn, selectors.EVENT_READ, self._read)
        self._keep_limits(conn)

    def _keep_limits(self, conn: Connection) -> None:
        """Refuse a connection if requests that are yet to come are too many or too large."""
        if self._bytes > MOST_BYTES:
            self._refuse(conn, 503, "too many bytes of unfinished requests")
        elif len(self._unfinished) > MOST_UNFINISHED:
            self._refuse(self._oldest(), 503, "too many connections say nothing")

    def _serve_at_once(self, entrance: Entrance) -> None:
        """Serve what has come as a whole when it is accepted, in this thread; never returns."""
        while True:
            for listener in entrance.wait():
                conn = self._accept_complete(listener, entrance)
                if conn is not None:
                    self.handle(conn)

    def _accept_complete(self, listener: socket.socket, entrance: Entrance) -> Connection | None:
        """Accept a connection; return it if its request is complete, else the loop collects it."""
        with self._gate:
            if not self._accepting:
                return None
            try:
                client, _ = listener.accept()
            except OSError as error:
                if error.errno not in NOT_ARRIVED:
                    entrance.shut()  # or this thread would be woken again until the loop has
                    self.method_queue.defer(self._accept_and_open, listener, entrance)
                return None
            conn = Connection(self.cfg, client)
            self._arrived[conn] = None
        refusal = None
        try:
            is_complete = conn.await_request(ARRIVAL_SECONDS)
        except Refused as error:
            is_complete, refusal = False, error
        if not is_complete:
            self.method_queue.defer(self._collect, conn, refusal)
            return None
        self._served[conn] = None
        del self._arrived[conn]
        return conn

    def _make_room(self, error: OSError) -> None:
        """Do without the oldest connection that has said nothing yet, or wait for a descriptor."""
        log.error("cannot accept a connection: %s", error.strerror)
        if self._unfinished:
            self._refuse(self._oldest(), 503, error.strerror or str(error))
        else:
            time.sleep(0.05)

    def _oldest(self) -> Connection:
        return min(self._unfinished, key=lambda conn: conn.caller.arrived)

    def _accept_and_open(self, listener: socket.socket, entrance: Entrance) -> None:
        """Accept what could not be, and make room for it if that is what it takes."""
        self.accept(listener)
        with self._gate:
            if self._accepting:
                entrance.open()

    def _read(self, conn: Connection, _: object = None) -> None:
        """Take what has come; hand the request to a thread when it is complete."""
        piece = conn.receive()
        if piece is None:
            return
        if not piece:
            self._drop(conn)
            return
        self._bytes += len(piece)
        try:
            if conn.incoming.feed(piece):
                self._forget(conn)
                task = Task(partial(self.handle, conn))
                self._served[conn] = task
                self._crew.hand_over(task)
            else:
                self._keep_limits(conn)
        except Refused as refusal:
            self._refuse(conn, refusal.status, str(refusal))

    def _refuse(self, conn: Connection, status: int, reason: str) -> None:
        log.warning("a connection was closed: %s", reason)
        conn.answer = _encode_refusal(status, reason)
        conn.send()
        self._drop(conn)

    def _drop(self, conn: Connection) -> None:
        self._forget(conn)
        conn.close()

    def _forget(self, conn: Connection) -> None:
        self._poll_no_more(conn)
        del self._unfinished[conn]
        self._bytes -= len(conn.incoming.data)

    def murder_pending(self) -> None:
        """Close the connections that had their time; at our own end who says nothing gets less.

        Not none: a connection may have been accepted a moment before its request arrives, and
        when it breaks Docker repeats the request without its body.
        """
        now = time.monotonic()
        for conn in tuple(self._unfinished):
            if now - conn.caller.arrived > READ_SECONDS:
                self._refuse(conn, 408, f"no complete request within {READ_SECONDS:.0f} s")
            elif self._is_idle_at_the_end(conn, now):
                self._drop(conn)
        for conn, task in tuple(self._served.items()):
            if now > conn.caller.answer_by:
                self._answer_for_its_thread(conn, task)
        for conn in tuple(self._unread):
            if now - conn.answered > SEND_SECONDS:
                log.warning("a connection was closed: its answer was not read")
                self._end(conn)

    def _is_idle_at_the_end(self, conn: Connection, now: float) -> bool:
        return (
            not self.alive and not conn.incoming.data and now - conn.caller.arrived > LAST_SECONDS
        )

    def _answer_for_its_thread(self, conn: Connection, task: Task | None) -> None:
        reason = conn.caller.give_up()
        if reason is not None:
            if task is not None:
                self._crew.give_up(task)
            if self._answer(conn, encode_error(503, reason)):
                conn.close()
            self._served.pop(conn, None)

    def wait_for_and_dispatch_events(self, timeout: float | None) -> None:
        """Look for what comes, and often enough for who is overdue, or for our own end."""
        is_awaited = self._served or not self.alive
        most = LOOK_SECONDS if is_awaited else IDLE_SECONDS
        super().wait_for_and_dispatch_events(most if timeout is None else min(timeout, most))

    def handle(self, conn: Connection) -> None:  # type: ignore[override]  # `accept` makes them
        """Serve a complete request, in a thread, and send what the other side takes at once."""
        pieces: Any = ()
        answer = Answer()
        try:
            pieces = self._call(conn, answer)
            for piece in pieces:
                answer.data += piece
        except Refused as refusal:
            log.warning("a request was refused: %s", refusal)
            answer = _encode_refusal(refusal.status, str(refusal))
        except Exception:
            log.exception("a request failed in a way that pynet does not expect")
            answer = _encode_refusal(500, "pynet has a defect")
        is_taken = self._answer(conn, answer)
        _close(pieces)
        if is_taken:
            conn.close()
        self._served.pop(conn, None)  # not before: at our own end the loop waits for those

    def _call(self, conn: Connection, answer: Answer) -> Iterable[bytes]:
        environ = self._heads.build_environ(conn.incoming)
        conn.incoming = Incoming()  # it may have been 16 MB
        environ[CALLER] = conn.caller
        return self.wsgi(environ, answer.start)  # type: ignore[arg-type]

    def _answer(self, conn: Connection, answer: Answer) -> bool:
        """Send an answer, if it is the first for this connection; tell whether all of it is taken.

        Then the caller closes the connection; else whoever answered first does, or the loop, which
        sends the rest.
        """
        if not conn.turn.acquire(blocking=False):
            return False
        conn.answer = answer
        conn.send()
        if not answer.data:
            return True
        conn.answered = time.monotonic()
        self._unread[conn] = None
        self.method_queue.defer(self._await_reader, conn)
        return False

    def _await_reader(self, conn: Connection) -> None:
        if conn in self._unread:
            self._poll(conn, selectors.EVENT_WRITE, self._send)

    def _send(self, conn: Connection, _: object = None) -> None:
        conn.send()
        if not conn.answer.data:
            self._end(conn)

    def _end(self, conn: Connection) -> None:
        self._poll_no_more(conn)
        del self._unread[conn]
        conn.close()

    def _poll(self, conn: Connection, events: int, then: Callable[[Connection, Any], None]) -> None:
        self.poller.register(conn.sock, events, partial(then, conn))
        conn.polled = True

    def _poll_no_more(self, conn: Connection) -> None:
        if conn.polled:
            self.poller.unregister(conn.sock)
            conn.polled = False


def _close(pieces: Iterable[bytes]) -> None:
    """Have an application do what it does when its answer has been sent, PEP 3333."""
    close = getattr(pieces, "close", None)
    if close is None:
        return
    try:
        close()
    except Exception:
        log.exception("what follows an answer failed in a way that pynet does not expect")


def _encode_refusal(status: int, reason: str) -> Answer:
    return encode_error(status, f"{STATUS_LINES[status]}: {reason}")
