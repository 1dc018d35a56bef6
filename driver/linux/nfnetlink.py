"""Encode and decode nfnetlink messages for nftables and connection tracking.

Not by pyroute2: its nftables classes keep what they know of a rule and drop the rest. Here rules
are copied as they are (`driver.linux.tables`), and others' are read that newer releases wrote. A
socket belongs to the network namespace in which it was opened, whichever thread uses it then.
include/uapi/linux/netlink.h has the numbers.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from driver.linux.session import NetlinkError

if TYPE_CHECKING:
    from collections.abc import Iterator

NETFILTER = 12  # NETLINK_NETFILTER
REQUEST, ACK, CREATE = 0x1, 0x4, 0x400  # NLM_F_…
ERROR = 2  # NLMSG_ERROR
NESTED = 0x8000  # NLA_F_NESTED
BUFFER = 1 << 16
ANSWER_SECONDS = 5.0  # how long to wait for an answer: the kernel has it before `send` returns

_DUMP = 0x300  # NLM_F_DUMP
_DONE = 3  # NLMSG_DONE
_INTERRUPTED = 0x10  # NLM_F_DUMP_INTR
TYPE_MASK = 0x3FFF  # NLATYPE_MASK: without the bits for nesting and byte order
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_STATUS = struct.Struct("=i")


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

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER
        )
        self._socket.settimeout(ANSWER_SECONDS)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Return the bodies of everything there is of a kind, from one consistent listing."""
        while True:
            found = self._exchange(kind, _DUMP, body)
            if not any(answer.flags & _INTERRUPTED for answer in found):
                return [answer.body for answer in found]

    def change(self, kind: int, body: bytes) -> None:
        """Send a change, and wait until it is made."""
        self._exchange(kind, ACK, body)

    def _exchange(self, kind: int, flags: int, body: bytes) -> list[Message]:
        self._sequence += 1
        self._socket.send(encode_message(kind, REQUEST | flags, self._sequence, body))
        return list(self._answers())

    def _answers(self) -> Iterator[Message]:
        """Yield the messages that answer the last one, to the end of a listing."""
        while True:
            for answer in parse_messages(self._socket.recv(BUFFER)):
                if answer.sequence != self._sequence:
                    continue  # the rest of an answer that was given up
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


def parse_text(value: bytes) -> str:
    """Return a text without its NUL."""
    return value.rstrip(b"\0").decode(errors="replace")


def aligned(length: int) -> int:
    """Return the length with what fills it up to 4 bytes."""
    return (length + 3) & ~3
