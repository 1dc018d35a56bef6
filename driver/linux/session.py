"""A pyroute2 netlink socket of the calling thread's namespace, with a deadline.

pyroute2's own synchronous classes wait for an answer without limit, and who waits here holds the
driver's lock. So each session has an event loop of its own, with a deadline.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Self

from pyroute2.netlink.exceptions import NetlinkError as Refusal

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from pyroute2.netlink import nlmsg
    from pyroute2.netlink.nlsocket import AsyncNetlinkSocket

ANSWER_SECONDS = 5.0  # how long to wait for an answer: the kernel has it before `send` returns


class NetlinkError(OSError):
    """The kernel refused a message, for the reason that `errno` has.

    `done` is how many of those that were sent with it, before it, the kernel has carried out.
    """

    def __init__(self, number: int, done: int = 0) -> None:
        super().__init__(number, os.strerror(number))
        self.done = done


class Session:
    """A netlink socket of the calling thread's network namespace; to be used by one thread."""

    def __init__(self, kind: Callable[..., AsyncNetlinkSocket], **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        try:
            self._socket = kind(use_event_loop=self._loop, **options)
            self._loop.run_until_complete(self._socket.setup_endpoint())
        except BaseException:
            self._loop.close()
            raise

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        self._loop.run_until_complete(asyncio.sleep(0))  # asyncio closes in its next turn
        self._loop.close()

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

        No other request for the kernel's lock gets between them. The kernel goes on
        after one that it refuses; raises NetlinkError for the first of those, and TimeoutError.
        """
        answers: list[nlmsg] = []

        async def exchange() -> None:
            async with asyncio.timeout(ANSWER_SECONDS):
                async for answer in self._socket.nlm_request_batch(messages):
                    answers.append(answer)  # noqa: PERF401 - those before a refusal, too

        try:
            self._loop.run_until_complete(exchange())
        except Refusal as error:
            raise NetlinkError(error.code, len(answers)) from error
        except TimeoutError as error:
            raise TimeoutError("timed out") from error
        return answers
