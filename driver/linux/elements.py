"""Add elements to nftables sets and maps, delete them, and replace whole tables, over nfnetlink.

A container's start or stop waits for one such change. libnftables is not asked for it: it reads
first what everybody's tables hold, 0.3 ms here, 1.2 ms beside 400 sets of others, and its release
1.0.6 crashes on what 1.1 has written there. Nor are pyroute2's message classes, which take 0.08 ms
an element where this takes 0.01: a thousand ports are 2,000 elements or more. What tables look like
is compiled where there are none of others' (`driver.linux.preview`).

include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h have the numbers.
"""

from __future__ import annotations

import os
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import groupby
from threading import Lock
from typing import TYPE_CHECKING

from driver.errors import KernelError
from driver.firewall.elements import (
    TABLE_NAME,
    Bits,
    Element,
    Hardware,
    Interface,
    Verb,
    Verdict,
    Version,
)
from driver.linux.nfnetlink import (
    ACK,
    ANSWER_SECONDS,
    BUFFER,
    CREATE,
    ERROR,
    NESTED,
    NETFILTER,
    REQUEST,
    aligned,
    encode_attribute,
    encode_message,
    encode_text,
    parse_messages,
)
from driver.linux.tables import FAMILIES, HEAD, Making
from driver.model import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from driver.firewall.elements import Change, Part, SetName

    Place = tuple[Verb, SetName]

_MOST_BYTES = 60000  # of elements in a message, whose attribute has a length of 16 bits

_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_BEGIN, _END = 16, 17  # NFNL_MSG_BATCH_…
_NEW, _DELETE = (_SUBSYSTEM << 8) | 12, (_SUBSYSTEM << 8) | 14  # NFT_MSG_…SETELEM
_SEND_BUFFER = 32  # SO_SNDBUFFORCE
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_…
_LIST_ITEM = 1  # NFTA_LIST_ELEM
# NFTA_SET_ELEM_…, NFTA_DATA_VALUE
_KEY, _DATA, _FLAGS, _USER_DATA, _EXPRESSION, _KEY_END, _VALUE = 1, 2, 3, 6, 7, 10, 1
_INTERVAL_END = 1  # NFT_SET_ELEM_INTERVAL_END
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2  # NFTA_EXPR_…
_COUNT, _COUNT_FLAGS, _OVER = 1, 2, 1  # NFTA_CONNLIMIT_…, NFT_CONNLIMIT_F_INV
_VERDICT, _VERDICT_CODE, _VERDICT_CHAIN = 2, 1, 2  # NFTA_DATA_VERDICT, NFTA_VERDICT_…
_DROP, _GOTO = (number.to_bytes(4, "big", signed=True) for number in (0, -4))  # NF_DROP, NFT_GOTO
_COMMENT = 0  # NFTNL_UDATA_SET_ELEM_COMMENT, libnftnl/udata.h
_PROTOCOLS = {
    Protocol.TCP: socket.IPPROTO_TCP,
    Protocol.UDP: socket.IPPROTO_UDP,
    Protocol.SCTP: socket.IPPROTO_SCTP,
}
_VERSIONS = {4: 2, 6: 10}  # NFPROTO_…
_IFNAME_BYTES = 16  # IFNAMSIZ


class Elements:
    """A netfilter socket in the namespace of the thread that made it; calls are serialised.

    `port` is its netlink port, by which the kernel's events name the source of a change.

    It stays open: to close one waits for the kernel's grace periods, 5 to 10 ms
    (nft_rcv_nl_event(), nf_tables_api.c).
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._sequence = 0
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER
        )
        self._socket.settimeout(ANSWER_SECONDS)
        self._socket.bind((0, 0))
        self.port: int = self._socket.getsockname()[0]

    def close(self) -> None:
        """Close the socket; safe to call twice."""
        self._socket.close()

    def change(self, changes: Sequence[Change]) -> None:
        """Make all of the changes or none; raises KernelError with the kernel's reason."""
        self.make([_encode_group(*each) for each in _group(changes)])

    def make(self, messages: Sequence[Making]) -> None:
        """Carry out all of the messages or none, as one transaction.

        Raises KernelError with the kernel's reason.
        """
        if not messages:
            return
        with self._lock:
            first, self._sequence = self._sequence, self._sequence + len(messages) + 2
            batch = _encode_batch(messages, first)
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, _SEND_BUFFER, max(len(batch), BUFFER))
                self._socket.send(batch)
                refused = self._await_answer(first, first + len(messages))
            except OSError as error:
                raise KernelError(f"change the firewall: {error}") from error
        if refused is not None:
            number, sequence = refused
            # The frame of a batch is refused for what concerns all of it.
            words = messages[max(sequence - first - 1, 0)].words
            raise KernelError(f"change the firewall: {words}: {os.strerror(number)}")

    def _await_answer(self, first: int, last: int) -> tuple[int, int] | None:
        """Return the error of the first change refused and its number, None if all is well.

        The last change is acknowledged; a refusal of an earlier one comes before that.
        """
        while True:
            for answer in parse_messages(self._socket.recv(BUFFER)):
                if answer.kind != ERROR or answer.sequence < first:
                    continue  # the rest of a batch that was refused
                if answer.error:
                    return answer.error, answer.sequence
                if answer.sequence == last:
                    return None


def _group(changes: Sequence[Change]) -> Iterator[tuple[Place, bytes]]:
    """Yield the elements of changes that are of one set and follow each other, in messages."""
    for place, group in groupby(changes, lambda change: (change.verb, change.set)):
        elements = b""
        for change in group:
            encoded = _encode_element(change)
            if len(elements) + len(encoded) > _MOST_BYTES:
                yield place, elements
                elements = b""
            elements += encoded
        yield place, elements


def _encode_group(place: Place, elements: bytes) -> Making:
    verb, name = place
    body = (
        HEAD.pack(FAMILIES[name.family], 0, 0)
        + encode_text(_LIST_TABLE, TABLE_NAME)
        + encode_text(_LIST_SET, name.name)
        + (encode_attribute(_LIST_ELEMENTS | NESTED, elements) if elements else b"")
    )
    kind, flags = (_NEW, CREATE) if verb is Verb.ADD else (_DELETE, 0)
    return Making(kind, flags, body, f"{verb} elements of {name}")


def _encode_batch(messages: Sequence[Making], first: int) -> bytes:
    """Return the messages in their frame, numbered from `first` on; the last is acknowledged."""
    frame = HEAD.pack(0, 0, _SUBSYSTEM)
    last = first + len(messages)
    encoded = [encode_message(_BEGIN, REQUEST, first, frame)]
    for sequence, each in enumerate(messages, start=first + 1):
        flags = each.flags | REQUEST | (ACK if sequence == last else 0)
        encoded.append(encode_message(each.kind, flags, sequence, each.body))
    encoded.append(encode_message(_END, REQUEST, last + 1, frame))
    return b"".join(encoded)


def _encode_element(change: Change) -> bytes:
    """Return what the kernel calls an element: one item of a list, or two for an interval.

    A subnet alone is an interval, whose second item is the address behind its last. With other
    parts it is a range, in one item: the key and the key of its end.
    """
    element = change.element
    if element is None:
        return b""
    said = _encode_said(element, change.comment) if change.verb is Verb.ADD else b""
    match element.key:
        case ((IPv4Network() | IPv6Network()) as subnet,):
            item = _item(_encode_key(_KEY, [subnet.network_address]) + said)
            behind = int(subnet.broadcast_address) + 1
            if behind == 1 << subnet.max_prefixlen:
                return item
            value = encode_attribute(_VALUE, behind.to_bytes(subnet.max_prefixlen // 8, "big"))
            end = encode_attribute(_KEY | NESTED, value)
            return item + _item(end + encode_attribute(_FLAGS, _INTERVAL_END.to_bytes(4, "big")))
        case ((IPv4Network() | IPv6Network()) as subnet, *rest):
            first = _encode_key(_KEY, [subnet.network_address, *rest])
            return _item(first + _encode_key(_KEY_END, [subnet.broadcast_address, *rest]) + said)
    return _item(_encode_key(_KEY, element.key) + said)


def _item(body: bytes) -> bytes:
    return encode_attribute(_LIST_ITEM | NESTED, body)


def _encode_key(kind: int, parts: Sequence[Part]) -> bytes:
    return encode_attribute(kind | NESTED, encode_attribute(_VALUE, _encode_parts(parts)))


def _encode_said(element: Element, comment: str) -> bytes:
    """Return what an element has besides its key."""
    said = b""
    match element.value:
        case Verdict(None):
            verdict = encode_attribute(_VERDICT_CODE, _DROP)
            said = encode_attribute(_DATA | NESTED, encode_attribute(_VERDICT | NESTED, verdict))
        case Verdict(str() as chain):
            verdict = encode_attribute(_VERDICT_CODE, _GOTO) + encode_text(_VERDICT_CHAIN, chain)
            said = encode_attribute(_DATA | NESTED, encode_attribute(_VERDICT | NESTED, verdict))
        case tuple() as parts:
            said = _encode_key(_DATA, parts)
    if element.most is not None:
        count = encode_attribute(_COUNT, element.most.to_bytes(4, "big"))
        count += encode_attribute(_COUNT_FLAGS, _OVER.to_bytes(4, "big"))
        limit = encode_text(_EXPRESSION_NAME, "connlimit")
        limit += encode_attribute(_EXPRESSION_DATA | NESTED, count)
        said += encode_attribute(_EXPRESSION | NESTED, limit)
    text = comment.encode() + b"\0"
    return said + encode_attribute(_USER_DATA, bytes([_COMMENT, len(text)]) + text)


def _encode_parts(parts: Sequence[Part]) -> bytes:
    """Return a key or a value; the parts of a concatenation fill registers of 4 bytes each."""
    encoded = [_encode_part(part) for part in parts]
    if len(encoded) == 1:
        return encoded[0]
    return b"".join(each + bytes(aligned(len(each)) - len(each)) for each in encoded)


def _encode_part(part: Part) -> bytes:
    match part:
        case Interface(name):
            encoded = name.encode().ljust(_IFNAME_BYTES, b"\0")
        case Hardware(mac):
            encoded = bytes.fromhex(mac.replace(":", ""))
        case Version(number):
            encoded = bytes([_VERSIONS[number]])
        case Protocol():
            encoded = bytes([_PROTOCOLS[part]])
        case int():  # a port
            encoded = part.to_bytes(2, "big")
        case IPv4Address() | IPv6Address():
            encoded = part.packed
        case Bits(address):
            encoded = address.packed
        case _:  # a subnet is encoded by its ends
            raise TypeError(f"no part of a key: {part!r}")
    return encoded
