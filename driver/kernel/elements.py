"""Put elements into sets and maps over nfnetlink, and take them out; makes no set and no rule.

A container's start or stop waits for one such change, and that is all it changes of the firewall.
libnftables asks the kernel first for every set of every table, whoever made it: 0.3 ms here, 1.2 ms
beside 400 sets of others, and it has crashed on a map that a newer release had written (1.0.6 reads
those of 1.1). This knows only what is to be changed. What it does not know, such as an interval or
a new set, and what is many, is for `driver.kernel.nft`.

include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h have the numbers.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import groupby
from threading import Lock
from typing import TYPE_CHECKING

from driver.errors import KernelError
from driver.kernel.netlink import (
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

if TYPE_CHECKING:
    from collections.abc import Sequence

_LINE = re.compile(
    r"(?P<verb>add|delete) element (?P<family>inet|bridge) (?P<table>\w+) (?P<set>\w+)"
    r' \{ (?P<key>[^{}]+?)(?: comment "(?P<comment>[^"]*)")?(?: : (?P<value>[^{}]+?))? \}'
)
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_INTERVALS = ("home", "subnets", "masquerade", "source")  # sets whose keys have an end, too

_FEW = 64  # elements; of more, libnftables reads the text faster than this

_NETFILTER_HEAD = struct.Struct(">BBH")  # nfgenmsg: family, version, resource
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_BEGIN, _END = 16, 17  # NFNL_MSG_BATCH_…
_VERBS = {"add": (_SUBSYSTEM << 8) | 12, "delete": (_SUBSYSTEM << 8) | 14}  # NFT_MSG_…SETELEM
_FAMILIES = {"inet": 1, "bridge": 7}  # NFPROTO_…
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_…
_LIST_ITEM = 1  # NFTA_LIST_ELEM
_KEY, _DATA, _USER_DATA, _VALUE = 1, 2, 6, 1  # NFTA_SET_ELEM_…, NFTA_DATA_VALUE
_VERDICT, _VERDICT_CODE, _VERDICT_CHAIN = 2, 1, 2  # NFTA_DATA_VERDICT, NFTA_VERDICT_…
# NF_DROP and NF_ACCEPT of netfilter.h, NFT_GOTO
_DROP, _ACCEPT, _GOTO = (number.to_bytes(4, "big", signed=True) for number in (0, 1, -4))
_COMMENT = 0  # NFTNL_UDATA_SET_ELEM_COMMENT, libnftnl/udata.h
_PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}
_IFNAME_BYTES = 16  # IFNAMSIZ


_Place = tuple[str, str, str, str]  # verb, family, table, set


@dataclass(frozen=True, slots=True)
class Change:
    """An element to be added to a set or map or deleted from it, as the kernel holds it.

    Changes of one place can go in one message.
    """

    place: _Place
    element: bytes


def parse_changes(text: str) -> tuple[Change, ...] | None:
    """Return the changes that nft text asks for; None if it asks for anything else, or for many."""
    lines = text.splitlines()
    if len(lines) > _FEW:
        return None
    changes = tuple(map(_parse_line, lines))
    known = tuple(change for change in changes if change is not None)
    return known if len(known) == len(changes) else None


def _parse_line(line: str) -> Change | None:
    match = _LINE.fullmatch(line)
    if match is None or match["set"].startswith(_INTERVALS):
        return None
    element = _encode_element(match["key"], match["value"], match["comment"])
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
        groups = [
            (place, b"".join(change.element for change in group))
            for place, group in groupby(changes, lambda change: change.place)
        ]
        if not groups:
            return
        with self._lock:
            first, self._sequence = self._sequence, self._sequence + len(groups) + 2
            try:
                self._socket.send(_encode_batch(groups, first))
                refused = self._await_answer(first, first + len(groups))
            except OSError as error:
                raise KernelError(f"change the firewall: {error}") from error
        if refused is not None:
            number, sequence = refused
            # The frame of a batch is refused for what concerns all of it.
            place = groups[max(sequence - first - 1, 0)][0]
            words = " ".join((place[0], "elements of", *place[1:]))
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


def _encode_batch(groups: Sequence[tuple[_Place, bytes]], first: int) -> bytes:
    """Return the messages, one a group, numbered from `first` on; the last is acknowledged."""
    frame = _NETFILTER_HEAD.pack(0, 0, _SUBSYSTEM)
    last = first + len(groups)
    messages = [encode_message(_BEGIN, REQUEST, first, frame)]
    for sequence, (place, elements) in enumerate(groups, start=first + 1):
        verb, family, table, name = place
        flags = REQUEST | (CREATE if verb == "add" else 0) | (ACK if sequence == last else 0)
        body = (
            _NETFILTER_HEAD.pack(_FAMILIES[family], 0, 0)
            + encode_text(_LIST_TABLE, table)
            + encode_text(_LIST_SET, name)
            + encode_attribute(_LIST_ELEMENTS | NESTED, elements)
        )
        messages.append(encode_message(_VERBS[verb], flags, sequence, body))
    messages.append(encode_message(_END, REQUEST, last + 1, frame))
    return b"".join(messages)


def _encode_element(key: str, value: str | None, comment: str | None) -> bytes | None:
    """Return the attribute that an element is; None if it holds what is not encoded here."""
    encoded = _encode_data(key)
    if encoded is None:
        return None
    body = encode_attribute(_KEY | NESTED, encode_attribute(_VALUE, encoded))
    if value is not None:
        data = _encode_value(value)
        if data is None:
            return None
        body += encode_attribute(_DATA | NESTED, data)
    if comment is not None:
        said = comment.encode() + b"\0"
        body += encode_attribute(_USER_DATA, bytes([_COMMENT, len(said)]) + said)
    return encode_attribute(_LIST_ITEM | NESTED, body)


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
