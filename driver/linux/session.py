"""A pyroute2 netlink socket of the calling thread's namespace, with a deadline.

pyroute2's own synchronous classes wait for an answer without limit, and who waits here holds the
driver's lock. So each session has an event loop of its own, with a deadline.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
import struct
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING, Self

from pyroute2.netlink import NETLINK_GET_STRICT_CHK, NLM_F_DUMP_INTR, NLMSG_DONE, SOL_NETLINK
from pyroute2.netlink.exceptions import NetlinkError as Refusal
from pyroute2.netlink.marshal import Marshal
from pyroute2.netlink.nlsocket import NetlinkRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from pyroute2.netlink import nlmsg
    from pyroute2.netlink.nlsocket import AsyncNetlinkSocket

ANSWER_SECONDS = 5.0  # how long to wait for an answer: the kernel has it before `send` returns

_HEADER_BYTES = 16  # struct nlmsghdr
_STATUS = struct.Struct("=i")


class NetlinkError(OSError):
    """The kernel refused a message, for the reason that `errno` has.

    `done` is how many of those that were sent with it, before it, the kernel has carried out.
    """

    def __init__(self, number: int, done: int = 0) -> None:
        super().__init__(number, os.strerror(number))
        self.done = done


class Session:
    """A netlink socket of the calling thread's network namespace; to be used by one thread."""

    def __init__(self, kind: Callable[..., AsyncNetlinkSocket], protocol: int) -> None:
        """`protocol` is that of the sockets of this kind, NETLINK_…."""
        self._limit: asyncio.Timeout | None = None  # of the answers that are waited for
        self._error: OSError | None = None  # why there will be none
        # Descriptors are opened here: without one for the next, pyroute2 and asyncio leave those
        # that they have open to the garbage collector.
        with ExitStack() as opened:
            kind_of_socket = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
            own = opened.enter_context(socket.socket(socket.AF_NETLINK, kind_of_socket, protocol))
            own.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
            selector = opened.enter_context(selectors.DefaultSelector())
            self._loop = opened.enter_context(closing(asyncio.SelectorEventLoop(selector)))
            self._socket = kind(use_event_loop=self._loop, use_socket=own)
            self._marshal = _Marshal(self._socket.marshal.msg_map)
            self._socket.set_marshal(self._marshal)
            self._loop.run_until_complete(self._socket.setup_endpoint())
            self._socket.protocol.error_received = self._give_up
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        self._loop.run_until_complete(asyncio.sleep(0))  # asyncio closes in its next turn
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def request(self, *messages: nlmsg) -> list[nlmsg]:
        """Send messages in one datagram; return what the kernel answers, acknowledgements too.

        No other request for the kernel's lock gets between them. The kernel goes on after one that
        it refuses; raises NetlinkError for the first of those, and TimeoutError.
        """
        answers: list[nlmsg] = []
        self._error = None

        async def exchange() -> None:
            requests = [NetlinkRequest(self._socket, message) for message in messages]
            for request in requests:
                await request.prepare()
            # The kernel may wait for its own lock before this returns, for as long as it takes.
            self._socket.send(b"".join(request.msg.data for request in requests))
            async with asyncio.timeout(ANSWER_SECONDS) as self._limit:
                for request in requests:
                    async for answer in request.response():
                        answers.append(answer)
                        # A listing may be longer than can be decoded in that time.
                        self._limit.reschedule(self._loop.time() + ANSWER_SECONDS)

        try:
            self._loop.run_until_complete(exchange())
        except Refusal as error:
            raise NetlinkError(error.code, len(answers)) from error
        except TimeoutError as error:
            raise (self._error or TimeoutError("timed out")) from error
        return answers

    def _give_up(self, error: OSError) -> None:
        """End the wait for an answer that has been lost: there was no room for it, or no memory.

        pyroute2 would tell those who wait for no answer in particular.
        """
        self._error = error
        if self._limit is not None:
            with suppress(RuntimeError):  # it is over just now
                self._limit.reschedule(self._loop.time())


class _Marshal(Marshal):  # type: ignore[misc] # pyroute2 has no types
    """Reads in answers what pyroute2 passes over.

    That a listing was torn: something came or went, so others may be missing. That it was given up:
    the last message has the reason, and pyroute2 hands out neither. And ENOBUFS is a refusal as
    others are.
    """

    def __init__(self, kinds: Mapping[int, type[nlmsg]]) -> None:
        super().__init__()
        self.msg_map = kinds
        self.is_torn = False

    def fix_message(self, msg: nlmsg) -> None:
        header = msg["header"]
        self.is_torn |= bool(header["flags"] & NLM_F_DUMP_INTR)
        if header["type"] == NLMSG_DONE and header["length"] > _HEADER_BYTES:
            (status,) = _STATUS.unpack_from(msg.data, msg.offset + _HEADER_BYTES)
            header["error"] = Refusal(-status) if status < 0 else None
        elif isinstance(header["error"], OSError):
            header["error"] = Refusal(header["error"].errno)


def text_of(message: nlmsg, attribute: str) -> str:
    """Return an attribute's text, "" if it is not there.

    Interfaces' names and aliases are any bytes, and pyroute2 returns those that are no UTF-8.
    """
    value: str | bytes = message.get_attr(attribute) or ""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
