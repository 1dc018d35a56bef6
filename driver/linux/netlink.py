"""Frame netlink messages and carry them to the kernel and back; knows no family of them.

A socket belongs to the network namespace in which it was opened, whichever thread uses it then.
include/uapi/linux/netlink.h has the numbers.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

ROUTE, NETFILTER = 0, 12  # NETLINK_…
REQUEST, ACK, DUMP, EXCLUSIVE, CREATE = 0x1, 0x4, 0x300, 0x200, 0x400  # NLM_F_…
ERROR = 2  # NLMSG_ERROR
NESTED = 0x8000  # NLA_F_NESTED
BUFFER = 1 << 16
ANSWER_SECONDS = 5.0  # how long to wait for an answer: the kernel has it before `send` returns

_SOL_NETLINK, _CAP_ACK, _GET_STRICT_CHK = 270, 10, 12
_DONE = 3  # NLMSG_DONE
_INTERRUPTED = 0x10  # NLM_F_DUMP_INTR
TYPE_MASK = 0x3FFF  # NLATYPE_MASK: without the bits for nesting and byte order
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_NUMBER = struct.Struct("=I")
_STATUS = struct.Struct("=i")


class NetlinkError(OSError):
    """The kernel refused a message, for the reason that `errno` has.

    `done` is how many of those that were sent with it, before it, the kernel has carried out.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number, os.strerror(number))
        self.done = 0


class Change(NamedTuple):
    """What the kernel is to do."""

    kind: int
    body: bytes
    flags: int = 0


class Message(NamedTuple):
    """A message as it comes from the kernel; `port` is that of the socket which caused it."""

    kind: int
    flags: int
    sequence: int
    port: int
    body: bytes

    @property
    def error(self) -> int:
        """The error number of an answer, 0 for an acknowledgement."""
        number: int = _STATUS.unpack_from(self.body)[0]
        return -number


class Connection:
    """A netlink socket of the calling thread's network namespace; for one thread at a time.

    Every method raises NetlinkError with the kernel's reason if it refuses.
    """

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        self._socket.settimeout(ANSWER_SECONDS)
        self._sequence = 0
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def change(self, kind: int, body: bytes, flags: int = 0) -> None:
        """Send what is to be done and wait until it is."""
        self.change_all(Change(kind, body, flags))

    def change_all(self, *changes: Change) -> None:
        """Send what is to be done one after the other and wait until it is.

        In one go: whoever waits for the kernel's lock has no time to get between. The kernel goes
        on after one that it refuses; the first of those is raised.
        """
        first = self._send(*(each._replace(flags=each.flags | ACK) for each in changes))
        refused: NetlinkError | None = None
        for done in range(len(changes)):
            try:
                for _ in self._answers(first + done):
                    pass
            except NetlinkError as error:
                error.done = done
                refused = refused or error
        if refused is not None:
            raise refused

    def ask(self, kind: int, body: bytes) -> bytes:
        """Send a question and return the body of the answer."""
        return next(self._answers(self._send(Change(kind, body)))).body

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Return the bodies of everything there is of a kind, from one consistent listing."""
        while True:
            found = list(self._answers(self._send(Change(kind, body, DUMP))))
            if not any(answer.flags & _INTERRUPTED for answer in found):
                return [answer.body for answer in found]

    def _send(self, *changes: Change) -> int:
        """Send messages as one datagram; return the number of the first."""
        first = self._sequence + 1
        self._sequence += len(changes)
        messages = (
            encode_message(each.kind, each.flags | REQUEST, sequence, each.body)
            for sequence, each in enumerate(changes, first)
        )
        self._socket.send(b"".join(messages))
        return first

    def _answers(self, sequence: int) -> Iterator[Message]:
        """Yield the messages that answer that one, to the acknowledgement or the last."""
        while True:
            for answer in parse_messages(self._socket.recv(BUFFER)):
                if answer.sequence != sequence:
                    continue  # the rest of an answer that nobody waited for
                if answer.kind in {ERROR, _DONE}:
                    if answer.error:
                        raise NetlinkError(answer.error)
                    return
                yield answer


def encode_message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """Return a message to the kernel."""
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def encode_attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute, filled up to 4 bytes; several in a row are what one may hold."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(aligned(length) - length)


def encode_number(kind: int, value: int) -> bytes:
    """Return an attribute of 32 bits in the machine's order."""
    return encode_attribute(kind, _NUMBER.pack(value))


def encode_text(kind: int, value: str) -> bytes:
    """Return an attribute of text, closed with a NUL."""
    return encode_attribute(kind, value.encode() + b"\0")


def parse_messages(datagram: bytes) -> Iterator[Message]:
    """Yield the messages of a datagram; an attribute of theirs may be cut off, they are not."""
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, flags, sequence, port = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size:
            return
        body = datagram[offset + _HEADER.size : offset + length]
        yield Message(kind, flags, sequence, port, body)
        offset += aligned(length)


def parse_attributes(body: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return the attributes that follow a fixed head of `offset` bytes, by type."""
    # 40 of them a link, and a listing may have thousands of links: nothing is looked up twice.
    found: dict[int, bytes] = {}
    unpack, size = _ATTRIBUTE.unpack_from, _ATTRIBUTE.size
    last = len(body) - size
    while offset <= last:
        length, kind = unpack(body, offset)
        if length < size:
            break
        found[kind & TYPE_MASK] = body[offset + size : offset + length]
        offset += (length + 3) & ~3
    return found


def parse_typed(body: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the attributes behind a head, one after the other, with the bits of their types."""
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind, body[offset + _ATTRIBUTE.size : offset + length]
        offset += aligned(length)


def parse_nested(body: bytes) -> Iterator[bytes]:
    """Yield the attributes of a list, one after the other, whatever their types."""
    for _, value in parse_typed(body):
        yield value


def parse_number(value: bytes | None) -> int:
    """Return a number of 32 bits in the machine's order, 0 for an attribute that is not there."""
    return 0 if value is None else int(_NUMBER.unpack_from(value)[0])


def parse_text(value: bytes) -> str:
    """Return a text without its NUL."""
    return value.rstrip(b"\0").decode(errors="replace")


def aligned(length: int) -> int:
    """Return the length with what fills it up to 4 bytes."""
    return (length + 3) & ~3
