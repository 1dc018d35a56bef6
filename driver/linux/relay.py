"""Hand ports to the relay, the process that serves what the kernel cannot translate.

There is one relay for all ports, and it outlives the driver: the next one finds it on its socket,
and gets back the sockets that it holds. No request waits for it to start: a socket that listens
queues who comes meanwhile. A thread brings the relay to what is wanted whenever either changes.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from driver.errors import KernelError
from driver.linux.waiting import wait_readable
from driver.model import HostPort, Protocol, Relay
from driver.relay import __main__ as program
from driver.relay import wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from driver.health import Health

T = TypeVar("T")

HEALTH = "relay"  # the key of its problem
ANSWER_SECONDS = 3.0  # until the relay has done what it was told, or counts as hung
DROP_SECONDS = 1.0  # how long a request waits for the relay to let go of ports
END_SECONDS = 1.0  # how long the driver's end waits for that of a relay without ports
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.05, 10.0  # between two attempts
STEADY_SECONDS = 60.0  # a relay that has lived as long is started anew without much delay
BACKLOG = 16  # of the control socket

log = logging.getLogger(__name__)


class NoRelay:
    """No relay: what the kernel cannot translate is not served."""

    def __init__(self) -> None:
        self._asked: dict[HostPort, Relay] = {}

    def add(self, ports: Mapping[Relay, socket.socket | None]) -> None:
        """See `RelayClient`."""
        self._asked |= {each.place: each for each in ports}

    def drop(self, places: Iterable[HostPort]) -> None:
        """See `RelayClient`."""
        for place in places:
            self._asked.pop(place, None)

    def served(self) -> frozenset[Relay]:
        """See `RelayClient`."""
        return frozenset(self._asked.values())

    def close(self) -> None:
        """See `RelayClient`."""


class RelayClient:
    """What the relay is to serve, and the thread that sees to it.

    `path` is its socket. If `starts` is false a service manager holds that and starts the relay.
    """

    def __init__(self, path: Path, health: Health, *, starts: bool) -> None:
        self._path = path
        self._health = health
        self._starts = starts
        self._condition = threading.Condition()
        self._wanted: dict[HostPort, tuple[Relay, socket.socket]] = {}
        self._needless: dict[HostPort, Relay] = {}  # unreachable: see `add`
        self._served: dict[HostPort, Relay] = {}
        self._connection: socket.socket | None = None
        self._process: int | None = None
        self._problem: str | None = None
        self._failures = 0
        self._connected_at = 0.0
        self._number = 0
        self._closing = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None

    def adopt(self) -> dict[HostPort, socket.socket]:
        """Find a relay that runs, and return what it holds; nothing if there is none.

        One of other code, from before an upgrade, is told to retire. To be called before all else.
        """
        try:
            connection = self._connect()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
                log.warning("look for a relay on %s: %s", self._path, error.strerror)
            return {}
        sockets: dict[HostPort, socket.socket] = {}
        try:
            code, held = _greet(connection)
            for line, bound in held.items():
                relay = parse_relay(line)
                sockets[relay.place] = bound
                self._served[relay.place] = relay
            if not held:
                wire.send(connection, "end")
                connection.close()
            elif code != wire.read_code_version():
                log.info("the relay is of another version: another one takes over its ports")
                wire.send(connection, "retire")
                with suppress(ConnectionError):
                    while True:
                        wire.receive(connection)
                self._served.clear()
                connection.close()
            else:
                self._connection = connection
                self._connected_at = time.monotonic()
        except (OSError, ValueError, KernelError) as error:
            log.warning("the relay that runs is of no use: %s", error)
            self._served.clear()
            connection.close()
        return sockets

    def add(self, ports: Mapping[Relay, socket.socket | None]) -> None:
        """Request that these ports are served, each by its socket; None if the kernel has none."""
        with self._condition:
            for relay, bound in ports.items():
                if bound is None:
                    self._needless[relay.place] = relay
                else:
                    self._wanted[relay.place] = (relay, bound)
        self._notify()

    def drop(self, places: Iterable[HostPort]) -> None:
        """Serve these no longer. Once that returns the relay has let go of their sockets."""
        with self._condition:
            gone = []
            for place in places:
                self._needless.pop(place, None)
                if self._wanted.pop(place, None) is not None or place in self._served:
                    gone.append(place)
            if not gone:
                return
            self._notify()
            if not self._condition.wait_for(
                lambda: self._served.keys().isdisjoint(gone), DROP_SECONDS
            ):
                log.warning("the relay keeps %s", ", ".join(map(str, gone)))

    def served(self) -> frozenset[Relay]:
        """Return what is served, or just about to be; what is unreachable counts as served."""
        with self._condition:
            on_the_way = (
                {} if self._problem else {key: each[0] for key, each in self._wanted.items()}
            )
            return frozenset({**self._served, **on_the_way, **self._needless}.values())

    def close(self) -> None:
        """Part with the relay; it goes on with what it serves, or ends if that is nothing."""
        with self._condition:
            self._closing = True
        if self._thread is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
        if self._connection is not None:
            with suppress(OSError):
                wire.send(self._connection, "end")
                self._connection.settimeout(END_SECONDS)
                while not self._served:
                    wire.receive(self._connection)
            self._connection.close()
        os.close(self._wake)

    def _notify(self) -> None:
        """Wake the thread; it is started when there is something to do for it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
            self._thread.start()
        os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        while True:
            with self._condition:
                if self._closing:
                    return
            try:
                self._bring_up_to_date()
                delay = None
            except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
                delay = self._lose(error)
            self._wait(delay)

    def _wait(self, delay: float | None) -> None:
        """Wait until there is something to do: a change, the relay's end, or the end of a delay."""
        connection = [] if self._connection is None else [self._connection.fileno()]
        if self._wake in wait_readable([self._wake, *connection], delay):
            os.eventfd_read(self._wake)

    def _bring_up_to_date(self) -> None:
        """Bring the relay to what is wanted. Raises OSError or KernelError."""
        self._hear()
        with self._condition:
            wanted = dict(self._wanted)
        if self._connection is None:
            if not wanted:
                return
            self._begin()
        self._drop_served(wanted)
        new = [each for place, each in wanted.items() if place not in self._served]
        for some in _in_messages(new):
            self._add_wanted(some)
        if self._problem is not None:
            log.warning("the relay is back: %d ports are served", len(self._served))
            self._problem = None
            self._health.clear(HEALTH)

    def _drop_served(self, wanted: Mapping[HostPort, tuple[Relay, socket.socket]]) -> None:
        """Withdraw from the relay what is not wanted, or not like that."""
        gone = [
            relay
            for place, relay in self._served.items()
            if place not in wanted or wanted[place][0] != relay
        ]
        for some in _in_messages(gone):
            self._tell("drop", some, [])
            with self._condition:
                for each in some:
                    self._served.pop(each.place, None)
                self._condition.notify_all()

    def _add_wanted(self, ports: Sequence[tuple[Relay, socket.socket]]) -> None:
        """Hand ports to the relay, as far as they are still wanted."""
        with self._condition:  # from here on to withdraw one waits for the relay
            still = [each for each in ports if self._wanted.get(each[0].place) == each]
            self._served |= {relay.place: relay for relay, _ in still}
            fds = [bound.fileno() for _, bound in still]
        if still:
            self._tell("add", [relay for relay, _ in still], fds)

    def _tell(self, verb: str, relays: list[Relay], fds: list[int]) -> None:
        """Tell the relay, and wait until it is done."""
        assert self._connection is not None  # noqa: S101 - `_begin` has seen to it
        self._number += 1
        with self._socket_errors("hand ports to the relay"):
            lines = [format_relay(each) for each in relays]
            wire.send(self._connection, f"{verb} {self._number}", lines, fds)
            while (answer := wire.receive(self._connection))[0] != ["done", str(self._number)]:
                _log_answer(answer)

    def _hear(self) -> None:
        """Hear what the relay says of its own accord. Raises OSError if it has ended."""
        while self._connection is not None and wait_readable([self._connection.fileno()], 0):
            try:
                _log_answer(wire.receive(self._connection))
            except OSError as error:
                if not self._served:  # it had nothing to do any more
                    self._part()
                    return
                raise KernelError("the relay has ended, for an unknown reason") from error

    def _begin(self) -> None:
        """Find the relay, or start it. Raises OSError or KernelError."""
        try:
            connection = self._connect()
        except OSError as error:
            if not self._starts or error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
                raise KernelError(f"reach the relay on {self._path}: {error.strerror}") from error
            self._start()
            connection = self._connect()
        with self._socket_errors("begin with the relay"):
            _, held = _greet(connection)
        for bound in held.values():
            bound.close()
        with self._condition:
            self._served = {each.place: each for each in map(parse_relay, held)}
        self._connection = connection
        self._connected_at = time.monotonic()

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(ANSWER_SECONDS)
        try:
            with _short_name(self._path) as name:
                connection.connect(name)
        except BaseException:
            connection.close()
            raise
        return connection

    def _start(self) -> None:
        """Start a relay of our own. It outlives us: a session of its own, nothing of our output."""
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control,
            _short_name(self._path) as name,
        ):
            Path(name).unlink(missing_ok=True)
            control.bind(name)
            Path(name).chmod(0o600)
            control.listen(BACKLOG)
            self._process = os.posix_spawn(
                sys.executable,
                [sys.executable, "-S", "-E", program.__file__],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, control.fileno(), 0),
                    *((os.POSIX_SPAWN_OPEN, each, os.devnull, os.O_WRONLY, 0) for each in (1, 2)),
                ],
                setsid=True,
            )
        log.info("started the relay, process %d", self._process)

    def _lose(self, error: Exception) -> float:
        """Part with a relay that has failed; return in how many seconds to try again."""
        if isinstance(error, (OSError, KernelError)):
            log.warning("%s; it is tried again", error)
        else:
            log.error("the relay's thread has failed", exc_info=error)
        if time.monotonic() - self._connected_at > STEADY_SECONDS:
            self._failures = 0
        self._part()
        with self._condition:
            self._problem = (
                f"{error}: published ports do not answer where the kernel cannot translate, as by "
                "IPv6 on networks without it"
            )
        self._health.report(HEALTH, self._problem)
        self._failures += 1
        return min(FIRST_DELAY_SECONDS * 2.0**self._failures, LONGEST_DELAY_SECONDS)

    def _part(self) -> None:
        """Let go of a relay that has ended, or hangs; end what is left of one of our own."""
        with self._condition:
            self._served.clear()
            self._condition.notify_all()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)
            self._process = None

    @contextmanager
    def _socket_errors(self, attempt: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KernelError(f"{attempt}: {error.strerror or error}") from error


def _in_messages(each: list[T]) -> Iterator[list[T]]:
    """Yield parts of a list that are not too many for a message."""
    for start in range(0, len(each), wire.ENTRIES):
        yield each[start : start + wire.ENTRIES]


@contextmanager
def _short_name(path: Path) -> Iterator[str]:
    """Give a name to a socket whose path may be longer than the 107 bytes of a socket's address."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _greet(connection: socket.socket) -> tuple[str, dict[str, socket.socket]]:
    """Return which code the relay runs, and its entries with their sockets."""
    held: dict[str, socket.socket] = {}
    code = ""
    try:
        while True:
            words, lines, fds = wire.receive(connection)
            match words:
                case ["hello", protocol, code]:
                    _check_protocol(protocol)
                case ["have"]:
                    for line, fd in zip(lines, fds, strict=True):
                        held[line] = socket.socket(fileno=fd)
                case ["ready"]:
                    return code, held
                case ["log"]:
                    _log_answer((words, lines, fds))
    except BaseException:
        for bound in held.values():
            bound.close()
        raise


def _check_protocol(protocol: str) -> None:
    if protocol != str(wire.PROTOCOL):
        raise KernelError(
            f"the relay that runs speaks version {protocol} of its protocol, this pynet "
            f"{wire.PROTOCOL}: end that process"
        )


def _log_answer(answer: tuple[list[str], list[str], list[int]]) -> None:
    for line in answer[1]:
        log.warning("relay: %s", line)


def format_relay(relay: Relay) -> str:
    """Return a relayed port as the relay is told of it."""
    return wire.encode_entry(
        str(relay.place.protocol),
        (str(relay.place.ip), relay.place.port),
        (str(relay.ip), relay.port),
        proxy_protocol=relay.proxy_protocol,
    )


def parse_relay(line: str) -> Relay:
    """Return what a relay says that it serves. Raises ValueError."""
    entry = wire.Entry(line)
    place = HostPort(Protocol(entry.protocol), ip_address(entry.ip), entry.port)
    return Relay(
        place, ip_address(entry.target_ip), entry.target_port, proxy_protocol=entry.proxy_protocol
    )
