"""Wake one of two for a connection: the thread that serves it at once, if it waits, or the loop.

Accepts nothing itself. Two that wait at one listening socket would both be woken, and hold the
interpreter's lock against each other.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

# The kernel wakes the first exclusive waiter that sleeps, in the order in which they came:
# ep_poll_callback() in fs/eventpoll.c, epoll_ctl(2).
ONE_OF_THEM = select.EPOLLIN | select.EPOLLEXCLUSIVE


class Entrance:
    """Listening sockets, and whom a connection on one of them wakes; shut at first."""

    def __init__(self, listeners: Iterable[socket.socket]) -> None:
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._is_open = False
        self._first = select.epoll()
        self._second = select.epoll()

    def open(self) -> None:
        """Have connections wake somebody from now on."""
        if self._is_open:
            return
        self._is_open = True
        for descriptor in self._listeners:
            self._first.register(descriptor, ONE_OF_THEM)
            self._second.register(descriptor, ONE_OF_THEM)

    def shut(self) -> None:
        """Have them wake nobody."""
        if not self._is_open:
            return
        self._is_open = False
        for descriptor in self._listeners:
            self._first.unregister(descriptor)
            self._second.unregister(descriptor)

    def wait(self) -> list[socket.socket]:
        """Return, once there are any, the sockets on which a connection waits."""
        return [self._listeners[descriptor] for descriptor, _ in self._first.poll()]

    def fileno(self) -> int:
        """Return what is readable, for the loop, when one comes while nobody is in `wait`."""
        return self._second.fileno()

    def look(self) -> list[socket.socket]:
        """Return the sockets on which a connection waits, for the loop."""
        return [self._listeners[descriptor] for descriptor, _ in self._second.poll(0)]
