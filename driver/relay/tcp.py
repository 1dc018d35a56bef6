"""Relay TCP connections by splice(2), without copying.

What one side does the other is shown: the end of what it sends, a reset, and that it does not read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from driver.relay.wire import Entry

MAX_CONNECTIONS = 1000  # of one port; more wait in the listening socket's queue
ACCEPTS = 32  # at a time, before others have their turn
ROUNDS = 16  # of pipes' contents, the same
PIPE_BYTES = 262144  # what is on its way in one direction at most
IDLE_PIPES = 8  # kept for the next
CONNECT_SECONDS = 30.0  # until a container has answered
KEEPALIVE_SECONDS = 15  # after which silence is asked whether anybody is there, as Go's net does
PAUSE_SECONDS = 1.0  # when descriptors or memory have run out
TICK_SECONDS = 1.0  # between two looks at what takes too long

READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
RESET = struct.pack("ii", 1, 0)  # struct linger: close(2) sends a RST
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Loop:
    """Calls whom a descriptor belongs to when something has happened to it."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.log = log
        self._epoll = select.epoll()
        self._owners: dict[int, Owner] = {}
        self._again: deque[tuple[Connection, Half]] = deque()
        self._closing: list[socket.socket] = []
        self._timed: set[Owner] = set()
        self._next_tick = 0.0

    def add(self, each: socket.socket, owner: Owner, events: int) -> None:
        """Register the owner for these events."""
        self._epoll.register(each, events)
        self._owners[each.fileno()] = owner

    def remove(self, each: socket.socket) -> None:
        """Unregister a socket; copies of it that others hold would go on to count."""
        if self._owners.pop(each.fileno(), None) is not None:
            self._epoll.unregister(each)

    def close(self, each: socket.socket) -> None:
        """Close a socket once all events of this turn are seen to: its number is not given anew."""
        self.remove(each)
        self._closing.append(each)

    def again(self, connection: Connection, half: Half) -> None:
        """Continue with the connection after the others."""
        self._again.append((connection, half))

    def time(self, owner: Owner) -> None:
        """Call the owner's `tick` from time to time, until it says that it need not be."""
        self._timed.add(owner)

    def turn(self) -> None:
        """Wait, then see to what has happened. An error concerns its owner only."""
        seconds = 0.0 if self._again else TICK_SECONDS if self._timed else -1
        events = self._epoll.poll(seconds)
        for number, mask in events:
            owner = self._owners.get(number)
            if owner is None:
                continue
            try:
                owner.handle(number, mask)
            except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
                self.log(f"{owner}: {error!r}")
                owner.fail()
        for _ in range(len(self._again)):
            connection, half = self._again.popleft()
            connection.move(half)
        self._tick(time.monotonic())
        for each in self._closing:
            each.close()
        self._closing.clear()

    def _tick(self, now: float) -> None:
        if now < self._next_tick:
            return
        self._next_tick = now + TICK_SECONDS
        self._timed = {each for each in self._timed if each.tick(now)}


class Owner:
    """The owner of a descriptor."""

    __slots__ = ()

    def handle(self, number: int, mask: int) -> None:
        """See to what has happened to a descriptor."""
        raise NotImplementedError

    def fail(self) -> None:
        """Do what is to be done after an unexpected error."""
        raise NotImplementedError

    def tick(self, now: float) -> bool:
        """End what takes too long; tell whether there is more to wait for."""
        raise NotImplementedError


class Pipes:
    """Empty pipes, for as long as bytes are on their way: a connection at rest needs none.

    Some are there from the beginning: with them the connections that there are go on when no
    descriptor is left for another one.
    """

    def __init__(self) -> None:
        self._idle = [self._make() for _ in range(IDLE_PIPES)]

    def take(self) -> tuple[int, int]:
        """Return an empty pipe's two ends. Raises OSError."""
        return self._idle.pop() if self._idle else self._make()

    def _make(self) -> tuple[int, int]:
        ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(PermissionError):  # beyond what a user may have in pipes: 64 KB do as well
            fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        return ends

    def give(self, ends: tuple[int, int]) -> None:
        """Take an empty pipe back."""
        if len(self._idle) < IDLE_PIPES:
            self._idle.append(ends)
        else:
            self.discard(ends)

    def discard(self, ends: tuple[int, int]) -> None:
        """Close a pipe that something is left in."""
        os.close(ends[0])
        os.close(ends[1])


class Half:
    """One direction of a connection."""

    __slots__ = ("is_done", "is_ended", "pending", "pipe", "sink", "source")

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.pipe: tuple[int, int] | None = None
        self.pending = 0  # bytes in the pipe
        self.is_ended = False  # the source sends no more
        self.is_done = False  # and the sink has been told

    def move(self, pipes: Pipes, *, is_broken: bool = False) -> bool:
        """Move what can be moved; tell whether there is more. Raises OSError of either side.

        Of a connection that is broken no end is passed on: it is to be reset.
        """
        source, sink = self.source.fileno(), self.sink.fileno()
        for _ in range(ROUNDS):
            if not self.pending:
                if self.is_done or self._is_at_end(pipes):
                    return False
                if self.pipe is None:
                    self.pipe = pipes.take()
                try:
                    self.pending = os.splice(source, self.pipe[1], PIPE_BYTES)
                except BlockingIOError:
                    self._give_back(pipes)
                    return False
                if not self.pending:
                    if is_broken:
                        return False
                    self.is_ended = True
                    continue
            assert self.pipe is not None  # noqa: S101 - there is something in it
            try:
                self.pending -= os.splice(self.pipe[0], sink, self.pending)
            except BlockingIOError:
                return False  # goes on when the sink can be written to
        return True

    def _is_at_end(self, pipes: Pipes) -> bool:
        """Tell the sink that there is no more, if so."""
        if self.is_ended:
            self._give_back(pipes)
            self.sink.shutdown(socket.SHUT_WR)
            self.is_done = True
        return self.is_ended

    def _give_back(self, pipes: Pipes) -> None:
        if self.pipe is not None:
            pipes.give(self.pipe)
            self.pipe = None

    def abandon(self, pipes: Pipes) -> None:
        """Let go of the pipe and what is in it."""
        if self.pipe is not None:
            pipes.discard(self.pipe)
            self.pipe = None
        self.pending = 0
        self.is_done = True


class Connection(Owner):
    """A client's connection and the one to the container."""

    __slots__ = (
        "_client",
        "_from_client",
        "_from_server",
        "_is_open",
        "_listener",
        "_server",
        "deadline",
    )

    def __init__(self, listener: TcpListener, client: socket.socket, server: socket.socket) -> None:
        self._listener = listener
        self._client = client
        self._server = server
        self._from_client = Half(client, server)
        self._from_server = Half(server, client)
        self._is_open = True
        self.deadline: float | None = time.monotonic() + CONNECT_SECONDS  # None once it is there

    def __str__(self) -> str:
        return f"a connection of {self._listener}"

    def begin(self) -> None:
        """Connect to the container. Raises OSError."""
        loop, entry = self._listener.loop, self._listener.entry
        with suppress(BlockingIOError):
            self._server.connect((entry.target_ip, entry.target_port))
        loop.add(self._client, self, EDGES)
        loop.add(self._server, self, EDGES)

    def handle(self, number: int, mask: int) -> None:
        """Move what can be moved by now."""
        is_client = number == self._client.fileno()
        if self.deadline is not None:
            if not is_client:  # it is there, or there is an error that `move` meets
                self._connected()
            return
        if mask & READABLE:
            self.move(self._from_client if is_client else self._from_server)
        if mask & select.EPOLLOUT:
            half = self._from_server if is_client else self._from_client
            if half.pending:
                self.move(half)

    def _connected(self) -> None:
        self.deadline = None
        self._listener.connected(self)
        self.move(self._from_server)
        if self._is_open and self._listener.entry.proxy_protocol:
            self._server.send(describe(self._client))
        self.move(self._from_client)

    def move(self, half: Half) -> None:
        """Move bytes in one direction; end with both directions, or with a reset."""
        if not self._is_open:
            return
        try:
            if half.move(self._listener.pipes):
                self._listener.loop.again(self, half)
        except (
            OSError
        ):  # the other side shall see what this one has seen, what came before included
            with suppress(OSError):
                self._opposite(half).move(self._listener.pipes, is_broken=True)
            self.fail()
            return
        if self._from_client.is_done and self._from_server.is_done:
            self._close()

    def _opposite(self, half: Half) -> Half:
        return self._from_server if half is self._from_client else self._from_client

    def fail(self) -> None:
        """Reset both sides."""
        if not self._is_open:
            return
        for each in (self._client, self._server):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._close()

    def _close(self) -> None:
        self._is_open = False
        for half in (self._from_client, self._from_server):
            half.abandon(self._listener.pipes)
        for each in (self._client, self._server):
            self._listener.loop.close(each)
        self._listener.ended(self)


class TcpListener(Owner):
    """A port on which connections are accepted; at most so many at a time."""

    def __init__(self, loop: Loop, pipes: Pipes, entry: Entry, bound: socket.socket) -> None:
        self.loop = loop
        self.pipes = pipes
        self.entry = entry
        self.socket = bound
        self.connections: set[Connection] = set()
        self._connecting: dict[Connection, None] = {}  # the oldest first
        self._paused_until: float | None = None
        bound.settimeout(0.0)
        loop.add(bound, self, select.EPOLLIN)

    def __str__(self) -> str:
        return f"[{self.entry.ip}]:{self.entry.port}/tcp"

    def handle(self, number: int, mask: int) -> None:
        """Accept who has come."""
        del number, mask
        for _ in range(ACCEPTS):
            if len(self.connections) >= MAX_CONNECTIONS:
                self._pause(float("inf"))
                return
            try:
                client, _ = self.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in EXHAUSTED:
                    self.loop.log(f"{self}: cannot accept: {error.strerror}")
                    self._pause(time.monotonic() + PAUSE_SECONDS)
                    return
                continue  # that of a client that has gone meanwhile
            self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        """Connect a client with the container, or reset it if that cannot be."""
        server = None
        try:
            family = socket.AF_INET6 if ":" in self.entry.target_ip else socket.AF_INET
            server = socket.socket(family, socket.SOCK_STREAM)
            for each in (client, server):
                each.settimeout(0.0)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                each.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS)
            connection = Connection(self, client, server)
            connection.begin()
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            for every in (client, server):
                if every is not None:
                    self.loop.close(every)
            return
        self.connections.add(connection)
        self._connecting[connection] = None
        self.loop.time(self)

    def connected(self, connection: Connection) -> None:
        """Stop watching a connection: the container has answered."""
        self._connecting.pop(connection, None)

    def ended(self, connection: Connection) -> None:
        """Forget a connection; there is room for another."""
        self.connections.discard(connection)
        self._connecting.pop(connection, None)
        if self._paused_until == float("inf"):
            self._resume()

    def tick(self, now: float) -> bool:
        """End what has not been answered; accept again after a rest."""
        if self._paused_until is not None and self._paused_until <= now:
            self._resume()
        for connection in tuple(self._connecting):
            if connection.deadline is not None and connection.deadline > now:
                break
            connection.fail()
        return bool(self._connecting) or self._paused_until is not None

    def fail(self) -> None:
        """Rest for a moment."""
        self._pause(time.monotonic() + PAUSE_SECONDS)

    def _pause(self, until: float) -> None:
        if self._paused_until is None:
            self.loop.remove(self.socket)
            self.loop.time(self)
        self._paused_until = until

    def _resume(self) -> None:
        if self._paused_until is not None:
            self._paused_until = None
            self.loop.add(self.socket, self, select.EPOLLIN)

    def stop_listening(self) -> None:
        """Let go of the socket; connections go on."""
        self._paused_until = None
        self.loop.remove(self.socket)
        self.socket.close()

    def close(self) -> None:
        """Let go of the socket and of all connections."""
        for connection in tuple(self.connections):
            connection.fail()
        self.stop_listening()


def describe(client: socket.socket) -> bytes:
    """Return who has connected to which address, as the PROXY protocol says it (version 1).

    https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, section 2.1.
    """
    source, destination = client.getpeername(), client.getsockname()
    family = "TCP6" if ":" in source[0] else "TCP4"
    line = f"PROXY {family} {source[0]} {destination[0]} {source[1]} {destination[1]}\r\n"
    return line.encode()
