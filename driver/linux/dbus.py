"""Call one service on the host's system bus and receive its signals.

jeepney does the protocol: pure Python, without dependencies of its own, and with calls that block
until a time is over, which is all that a thread of its own needs. libdbus and sd-bus are libraries
that are not on every host, and the others of Python are made for an event loop.
"""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from jeepney import (
    DBusAddress,
    DBusErrorResponse,
    MatchRule,
    Message,
    MessageFlag,
    message_bus,
    new_method_call,
)
from jeepney.io.blocking import DBusConnection, prep_socket
from jeepney.wrappers import unwrap_msg

from driver.errors import KernelError
from driver.linux.waiting import wait_readable

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Any

CONNECT_SECONDS = 2.0
CALL_SECONDS = 5.0


class RefusedError(KernelError):
    """A service's answer that it does not do what it was asked; `code` is its word for why."""

    def __init__(self, attempt: str, error: DBusErrorResponse) -> None:
        text = str(error.data[0]) if error.data else error.name
        super().__init__(f"{attempt}: {text}")
        self.code = text.partition(":")[0]


class Service:
    """A connection to the bus, for one service; of one thread.

    Every method raises KernelError if the bus cannot be asked, RefusedError if the service refuses.
    """

    def __init__(self, socket: Path, name: str) -> None:
        self._name = name
        self._signals: deque[Message] = deque()
        self._filters = ExitStack()
        try:
            self._bus = DBusConnection(prep_socket(str(socket), timeout=CONNECT_SECONDS))
        except (OSError, ValueError) as error:
            raise KernelError(f"connect to the system bus on {socket}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._filters.close()
        self._bus.close()

    def watch(self, path: str, interface: str) -> None:
        """Subscribe `wait` to the service's signals there, and to its start and end."""
        ours = MatchRule(type="signal", path=path, interface=interface)
        owner = MatchRule(
            type="signal", interface="org.freedesktop.DBus", member="NameOwnerChanged"
        )
        owner.add_arg_condition(0, self._name)
        for rule, sender in ((ours, self._name), (owner, "org.freedesktop.DBus")):
            self._filters.enter_context(self._bus.filter(rule, queue=self._signals))
            self._call(message_bus.AddMatch(f"{rule.serialise()},sender='{sender}'"), "watch")

    def find_process(self) -> int | None:
        """Return the process of the service, None if it does not run. Does not have it started."""
        (has_owner,) = self._call(message_bus.NameHasOwner(self._name), "find")
        if not has_owner:
            return None
        return int(self._call(message_bus.GetConnectionUnixProcessID(self._name), "find")[0])

    def call(
        self,
        path: str,
        method: str,
        signature: str = "",
        *arguments: Any,
        seconds: float = CALL_SECONDS,
    ) -> tuple[Any, ...]:
        """Call a method, by its interface and name, and return what it answers."""
        interface, _, member = method.rpartition(".")
        address = DBusAddress(path, bus_name=self._name, interface=interface)
        message = new_method_call(address, member, signature or None, arguments)
        message.header.flags |= MessageFlag.no_auto_start
        return self._call(message, f"call {method}", seconds)

    def wait(self, wake: int, seconds: float | None) -> frozenset[str]:
        """Wait for a signal, for `wake` to be readable, or so long; return the signals' names."""
        if not self._signals:
            ready = wait_readable([self._bus.sock.fileno(), wake], seconds)
            if self._bus.sock.fileno() in ready:
                self._receive()
        names = frozenset(str(each.header.fields[3]) for each in self._signals)
        self._signals.clear()
        return names

    def _receive(self) -> None:
        """Take in all that has come."""
        try:
            while True:
                self._bus.recv_messages(timeout=0)
        except TimeoutError:
            return
        except OSError as error:
            raise KernelError(f"listen on the system bus: {error}") from error

    def _call(
        self, message: Message, attempt: str, seconds: float = CALL_SECONDS
    ) -> tuple[Any, ...]:
        attempt = f"{attempt} of {self._name}"
        try:
            answer: tuple[Any, ...] = unwrap_msg(
                self._bus.send_and_get_reply(message, timeout=seconds)
            )
        except TimeoutError as error:
            raise KernelError(f"{attempt}: no answer in {seconds:.0f} s") from error
        except OSError as error:
            raise KernelError(f"{attempt}: {error}") from error
        except DBusErrorResponse as error:
            raise RefusedError(attempt, error) from error
        return answer
