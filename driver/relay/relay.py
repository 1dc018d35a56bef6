"""Serve the ports that the driver hands over."""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
import time

from driver.relay import wire
from driver.relay.tcp import Loop, Owner, Pipes, TcpListener
from driver.relay.udp import UdpListener

LINGER_SECONDS = 10.0  # with nothing to serve: a container may just be restarting
TELL_SECONDS = 2.0  # how long the driver may take to read what it is told
UCRED = struct.Struct("3i")  # struct ucred: process, user, group


class Relay(Owner):
    """All that one process serves, and its conversation with the driver."""

    def __init__(self, control: socket.socket, users: set[int]) -> None:
        """Listen on the control socket; only these users may give orders."""
        self._control = control
        self._users = users
        self._driver: socket.socket | None = None
        self._code = wire.read_code_version()
        self._loop = Loop(self._log)
        self._pipes = Pipes()
        self._listeners: dict[str, TcpListener | UdpListener] = {}
        self._retired: list[TcpListener] = []
        self._idle_since = time.monotonic()
        self._is_ending = False
        self._done: list[str] = []
        control.settimeout(0.0)
        self._loop.add(control, self, select.EPOLLIN)
        self._loop.time(self)

    def __str__(self) -> str:
        return "the relay's control socket"

    def run(self) -> None:
        """Serve until there is nothing to serve."""
        while not self._is_ending:
            self._loop.turn()
            self._tell_done()

    def handle(self, number: int, mask: int) -> None:
        """See to what a driver says, or to one that comes; another takes the place of the first."""
        del mask
        if self._driver is not None and number == self._driver.fileno():
            self._obey(self._driver)
            return
        driver, _ = self._control.accept()
        _, user, _ = UCRED.unpack(
            driver.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
        )
        if user not in self._users:
            driver.close()
            return
        self._forget_driver()
        self._driver = driver
        driver.settimeout(TELL_SECONDS)
        self._loop.add(driver, self, select.EPOLLIN)
        self._greet(driver)

    def fail(self) -> None:
        """Part with the driver: it comes again."""
        self._forget_driver()

    def _greet(self, driver: socket.socket) -> None:
        """Tell all that is served."""
        wire.send(driver, f"hello {wire.PROTOCOL} {self._code}")
        lines = list(self._listeners)
        for start in range(0, len(lines), wire.ENTRIES):
            some = lines[start : start + wire.ENTRIES]
            wire.send(
                driver, "have", some, [self._listeners[line].socket.fileno() for line in some]
            )
        wire.send(driver, "ready")

    def _obey(self, driver: socket.socket) -> None:
        """Do what the driver says."""
        try:
            words, lines, fds = wire.receive(driver)
        except (ConnectionError, TimeoutError):
            self._forget_driver()
            self._is_ending = not self._listeners
            return
        match words:
            case ["add", number]:
                for line, fd in zip(lines, fds, strict=True):
                    self._add(line, socket.socket(fileno=fd))
                self._done.append(number)
            case ["drop", number]:
                for line in lines:
                    self._drop(line)
                self._done.append(number)
            case ["retire"]:
                self._retire()
            case ["end"]:
                self._is_ending = not self._listeners
            case _:
                self._log(f"the relay does not know what {words[0][:40]!r} means")

    def _add(self, line: str, bound: socket.socket) -> None:
        self._drop(line)
        entry = wire.Entry(line)
        if entry.protocol == "tcp":
            self._listeners[line] = TcpListener(self._loop, self._pipes, entry, bound)
        else:
            self._listeners[line] = UdpListener(self._loop, entry, bound)

    def _drop(self, line: str) -> None:
        listener = self._listeners.pop(line, None)
        if listener is not None:
            listener.close()
        if not self._listeners:
            self._idle_since = time.monotonic()
            self._loop.time(self)

    def _tell_done(self) -> None:
        """Tell what is done, once all is closed that is to be closed: the driver waits for it."""
        done, self._done = self._done, []
        try:
            for number in done:
                if self._driver is not None:
                    wire.send(self._driver, f"done {number}")
        except OSError:
            self._forget_driver()

    def _retire(self) -> None:
        """Leave everything to another relay, but for the connections there are.

        Those go on in a child: for who started this process, it has ended.
        """
        if os.fork():
            os._exit(0)
        self._forget_driver()
        self._loop.close(self._control)
        for line, listener in tuple(self._listeners.items()):
            if isinstance(listener, TcpListener):
                del self._listeners[line]
                listener.stop_listening()
                self._retired.append(listener)
            else:
                self._drop(line)
        self._loop.time(self)

    def tick(self, now: float) -> bool:
        """End if nothing has been served for a while."""
        if self._retired:
            self._is_ending = not any(each.connections for each in self._retired)
        elif not self._listeners:
            self._is_ending = now - self._idle_since > LINGER_SECONDS
        return not self._listeners

    def _forget_driver(self) -> None:
        if self._driver is not None:
            self._loop.close(self._driver)
            self._driver = None

    def _log(self, text: str) -> None:
        """Tell the driver, which has a log, and write to standard error."""
        sys.stderr.write(f"{text}\n")
        if self._driver is not None:
            try:
                wire.send(self._driver, "log", [text.replace("\n", " ")])
            except OSError:
                self._forget_driver()
