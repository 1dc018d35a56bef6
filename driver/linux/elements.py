"""Put elements into sets and maps over nfnetlink, and take them out; make whole tables anew.

A container's start or stop waits for one such change. libnftables is not asked for it: it reads
first what everybody's tables hold, 0.3 ms here, 1.2 ms beside 400 sets of others, and its release
1.0.6 crashes on what 1.1 has written there. What pynet's elements look like is known here; what
tables look like is compiled where there are none of others' (`driver.linux.preview`).

include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h have the numbers.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from itertools import groupby
from threading import Lock
from typing import TYPE_CHECKING

from driver.errors import KernelError
from driver.linux.netlink import (
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
from driver.linux.tables import FAMILIES, Making

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LINE = re.compile(
    r"(?P<verb>add|delete) element (?P<family>inet|bridge) (?P<table>\w+) (?P<set>\w+)"
    r" \{ (?P<key>[^{}]+?)(?: ct count over (?P<limit>\d+))?"
    r'(?: comment "(?P<comment>[^"]*)")?(?: : (?P<value>[^{}]+?))? \}'
)
_FLUSH = re.compile(r"flush set (?P<family>inet|bridge) (?P<table>\w+) (?P<set>\w+)")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
# Sets whose keys have an end, too: with them in one element, or as an element behind them.
_RANGES, _INTERVALS = ("home",), ("subnets", "masquerade", "source")

_MOST_BYTES = 60000  # of elements in a message, whose attribute has a length of 16 bits

_NETFILTER_HEAD = struct.Struct(">BBH")  # nfgenmsg: family, version, resource
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_BEGIN, _END = 16, 17  # NFNL_MSG_BATCH_…
_NEW, _DELETE = (_SUBSYSTEM << 8) | 12, (_SUBSYSTEM << 8) | 14  # NFT_MSG_…SETELEM
_VERBS = {"add": _NEW, "delete": _DELETE, "flush": _DELETE}
_SEND_BUFFER = 32  # SO_SNDBUFFORCE
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_…
_LIST_ITEM = 1  # NFTA_LIST_ELEM
# NFTA_SET_ELEM_…, NFTA_DATA_VALUE
_KEY, _DATA, _FLAGS, _USER_DATA, _EXPRESSION, _KEY_END, _VALUE = 1, 2, 3, 6, 7, 10, 1
_INTERVAL_END = 1  # NFT_SET_ELEM_INTERVAL_END
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2  # NFTA_EXPR_…
_COUNT, _COUNT_FLAGS, _OVER = 1, 2, 1  # NFTA_CONNLIMIT_…, NFT_CONNLIMIT_F_INV
_VERDICT, _VERDICT_CODE, _VERDICT_CHAIN = 2, 1, 2  # NFTA_DATA_VERDICT, NFTA_VERDICT_…
# NF_DROP and NF_ACCEPT of netfilter.h, NFT_GOTO
_DROP, _ACCEPT, _GOTO = (number.to_bytes(4, "big", signed=True) for number in (0, 1, -4))
_COMMENT = 0  # NFTNL_UDATA_SET_ELEM_COMMENT, libnftnl/udata.h
_PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}
_PROTOCOLS |= {"ipv4": 2, "ipv6": 10}  # NFPROTO_…
_IFNAME_BYTES = 16  # IFNAMSIZ


_Place = tuple[str, str, str, str]  # verb, family, table, set


@dataclass(frozen=True, slots=True)
class Change:
    """An element to be added to a set or map or deleted from it, as the kernel holds it.

    Changes of one place can go in one message. Without an element the set is emptied.
    """

    place: _Place
    element: bytes


def parse_changes(text: str) -> tuple[Change, ...] | None:
    """Return the changes of elements that nft text asks for; None if it asks for anything else."""
    changes = tuple(map(_parse_line, text.splitlines()))
    known = tuple(change for change in changes if change is not None)
    return known if len(known) == len(changes) else None


def _parse_line(line: str) -> Change | None:
    if flush := _FLUSH.fullmatch(line):
        return Change(("flush", flush["family"], flush["table"], flush["set"]), b"")
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    element = _encode_interval(match) if match["set"].startswith(_INTERVALS) else _encode(match)
    if element is None:
        return None
    return Change((match["verb"], match["family"], match["table"], match["set"]), element)


class Elements:
    """A netfilter socket in the namespace of the thread that made it; calls are serialised.

    `port` is how the kernel calls it, whoever it tells of a change.

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
        """Have the kernel carry out all of the messages or none, as one transaction.

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


def _group(changes: Sequence[Change]) -> Iterator[tuple[_Place, bytes]]:
    """Yield the elements of changes that are of one place and follow each other, in messages."""
    for place, group in groupby(changes, lambda change: change.place):
        elements = b""
        for change in group:
            if len(elements) + len(change.element) > _MOST_BYTES:
                yield place, elements
                elements = b""
            elements += change.element
        yield place, elements


def _encode_group(place: _Place, elements: bytes) -> Making:
    verb, family, table, name = place
    body = (
        _NETFILTER_HEAD.pack(FAMILIES[family], 0, 0)
        + encode_text(_LIST_TABLE, table)
        + encode_text(_LIST_SET, name)
        + (encode_attribute(_LIST_ELEMENTS | NESTED, elements) if elements else b"")
    )
    words = " ".join((verb, "elements of", *place[1:]))
    return Making(_VERBS[verb], CREATE if verb == "add" else 0, body, words)


def _encode_batch(messages: Sequence[Making], first: int) -> bytes:
    """Return the messages in their frame, numbered from `first` on; the last is acknowledged."""
    frame = _NETFILTER_HEAD.pack(0, 0, _SUBSYSTEM)
    last = first + len(messages)
    encoded = [encode_message(_BEGIN, REQUEST, first, frame)]
    for sequence, each in enumerate(messages, start=first + 1):
        flags = each.flags | REQUEST | (ACK if sequence == last else 0)
        encoded.append(encode_message(each.kind, flags, sequence, each.body))
    encoded.append(encode_message(_END, REQUEST, last + 1, frame))
    return b"".join(encoded)


def _encode(match: re.Match[str]) -> bytes | None:
    """Return the attribute that an element is; None if it holds what is not encoded here."""
    key, value, limit = match["key"], match["value"], match["limit"]
    end = b""
    if match["set"].startswith(_RANGES):
        subnet, _, rest = key.partition(" . ")
        try:
            network = ip_network(subnet)
        except ValueError:
            return None
        key = f"{network.network_address} . {rest}"
        last = _encode_data(f"{network.broadcast_address} . {rest}")
        if last is None:
            return None
        end = encode_attribute(_KEY_END | NESTED, encode_attribute(_VALUE, last))
    encoded = _encode_data(key)
    if encoded is None:
        return None
    body = encode_attribute(_KEY | NESTED, encode_attribute(_VALUE, encoded)) + end
    if value is not None:
        data = _encode_value(value)
        if data is None:
            return None
        body += encode_attribute(_DATA | NESTED, data)
    if limit is not None:
        body += encode_attribute(_EXPRESSION | NESTED, _encode_limit(int(limit)))
    return encode_attribute(_LIST_ITEM | NESTED, body + _encode_comment(match["comment"]))


def _encode_interval(match: re.Match[str]) -> bytes | None:
    """Return the two attributes that an interval is: its first key, and the one behind its last."""
    try:
        network = ip_network(match["key"])
    except ValueError:
        return None
    first = encode_attribute(_VALUE, network.network_address.packed)
    body = encode_attribute(_KEY | NESTED, first)
    if match["value"] is not None:
        data = _encode_value(match["value"])
        if data is None:
            return None
        body += encode_attribute(_DATA | NESTED, data)
    body += _encode_comment(match["comment"])
    last = int(network.broadcast_address)
    if last + 1 == 1 << network.max_prefixlen:
        return encode_attribute(_LIST_ITEM | NESTED, body)
    behind = (last + 1).to_bytes(network.max_prefixlen // 8, "big")
    end = encode_attribute(_KEY | NESTED, encode_attribute(_VALUE, behind))
    end += encode_attribute(_FLAGS, _INTERVAL_END.to_bytes(4, "big"))
    return encode_attribute(_LIST_ITEM | NESTED, body) + encode_attribute(_LIST_ITEM | NESTED, end)


def _encode_comment(comment: str | None) -> bytes:
    if comment is None:
        return b""
    said = comment.encode() + b"\0"
    return encode_attribute(_USER_DATA, bytes([_COMMENT, len(said)]) + said)


def _encode_limit(count: int) -> bytes:
    """Return the expression that counts connections and goes on when they are more."""
    data = encode_attribute(_COUNT, count.to_bytes(4, "big"))
    data += encode_attribute(_COUNT_FLAGS, _OVER.to_bytes(4, "big"))
    name = encode_text(_EXPRESSION_NAME, "connlimit")
    return name + encode_attribute(_EXPRESSION_DATA | NESTED, data)


def _encode_value(text: str) -> bytes | None:
    """Return what a map has for a key: a verdict, or data."""
    verb, _, chain = text.partition(" ")
    if verb == "goto":
        code = encode_attribute(_VERDICT_CODE, _GOTO) + encode_text(_VERDICT_CHAIN, chain)
        return encode_attribute(_VERDICT | NESTED, code)
    if text in {"accept", "drop"}:
        code = encode_attribute(_VERDICT_CODE, _ACCEPT if text == "accept" else _DROP)
        return encode_attribute(_VERDICT | NESTED, code)
    data = _encode_data(text)
    return None if data is None else encode_attribute(_VALUE, data)


def _encode_data(text: str) -> bytes | None:
    """Return a key or a value; the parts of a concatenation fill registers of 4 bytes each."""
    parts = [_encode_part(part) for part in text.split(" . ")]
    if len(parts) == 1:
        return parts[0]
    known = [part + bytes(aligned(len(part)) - len(part)) for part in parts if part is not None]
    return b"".join(known) if len(known) == len(parts) else None


def _encode_part(text: str) -> bytes | None:
    """Return a name in quotes, a protocol, a port, an address or a number as the kernel has it."""
    if text.startswith('"'):
        return text.strip('"').encode().ljust(_IFNAME_BYTES, b"\0")
    if text in _PROTOCOLS:
        return bytes([_PROTOCOLS[text]])
    if text.isdecimal():
        return int(text).to_bytes(2, "big")
    if text.startswith("0x") or _MAC.fullmatch(text):
        return bytes.fromhex(text.removeprefix("0x").replace(":", ""))
    try:
        return ip_address(text).packed
    except ValueError:
        return None
