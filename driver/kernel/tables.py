"""Read nftables tables as the kernel holds them, and make of that the messages that make them anew.

libnftables compiles pynet's text in a namespace without anything; what has come of it there is
carried over here. Asked to do it where others have tables, the library reads all of theirs first,
and its release 1.0.6 crashes on what newer ones write (a map in a rule with two keys, for one).

include/uapi/linux/netfilter/nf_tables.h has the numbers.
"""

from __future__ import annotations

import errno
import struct
import zlib
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from driver.errors import KernelError
from driver.kernel.netlink import (
    CREATE,
    NETFILTER,
    TYPE_MASK,
    Connection,
    NetlinkError,
    encode_attribute,
    encode_text,
    parse_attributes,
    parse_nested,
    parse_text,
    parse_typed,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FAMILIES = {"inet": 1, "bridge": 7}  # NFPROTO_…
NAME = "pynet"
HEAD = struct.Struct(">BBH")  # nfgenmsg: family, version, resource
_NFTABLES = 10 << 8  # NFNL_SUBSYS_NFTABLES
_APPEND = 0x800  # NLM_F_APPEND
_NUMBER = struct.Struct(">I")
_TABLE, _OF_SET = 1, 2  # NFTA_…_TABLE, NFTA_SET_ELEM_LIST_SET
_ELEMENTS, _SET_ID = 3, 10  # NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ID


class Kind(NamedTuple):
    """What a table holds: the messages of it, and what of them is the kernel's to say.

    `told` are the attributes that are of one object, such as its handle, or that change with what
    passes; `name` is the one that has its name.
    """

    word: str
    new: int
    get: int
    name: int
    told: frozenset[int]
    flags: int = CREATE


# NFT_MSG_…; then NFTA_…_USE, …_HANDLE, …_COUNTERS, …_POSITION and the like, by kind.
TABLE = Kind("table", _NFTABLES | 0, _NFTABLES | 1, 1, frozenset({3, 4, 5, 7}))
OBJECT = Kind("counter", _NFTABLES | 18, _NFTABLES | 19, 2, frozenset({5, 6, 7}))
CHAIN = Kind("chain", _NFTABLES | 3, _NFTABLES | 4, 3, frozenset({2, 6, 8, 9, 11}))
SET = Kind("set", _NFTABLES | 9, _NFTABLES | 10, 2, frozenset({10, 14, 16, 19, 20}))
RULE = Kind("rule", _NFTABLES | 6, _NFTABLES | 7, 2, frozenset({3, 6, 8, 9}), CREATE | _APPEND)
DELETE_TABLE, NEW_ELEMENTS, GET_ELEMENTS = _NFTABLES | 2, _NFTABLES | 12, _NFTABLES | 13
ORDER = (TABLE, OBJECT, CHAIN, SET)  # and then elements, which lead to chains, and rules


class Making(NamedTuple):
    """A message that makes something; `words` say what."""

    kind: int
    flags: int
    body: bytes
    words: str


class Looking:
    """A connection to look at tables by, in the namespace of the thread that made it.

    For one thread at a time, inside `with`. It stays open: to close one waits for the kernel's
    grace periods, 5 to 10 ms (nft_rcv_nl_event(), nf_tables_api.c).
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._netfilter = Connection(NETFILTER)

    @contextmanager
    def open(self) -> Iterator[Connection]:
        """Lend the connection; raises KernelError for whatever goes wrong inside."""
        with self._lock:
            try:
                yield self._netfilter
            except OSError as error:
                raise KernelError(f"look at nftables: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the connection; safe to call twice."""
        self._netfilter.close()


def unmake() -> Iterator[Making]:
    """Yield the messages that remove our tables, whether they are there or not."""
    for word, family in FAMILIES.items():
        body = HEAD.pack(family, 0, 0) + encode_text(_TABLE, NAME)
        yield Making(TABLE.new, CREATE, body, f"table {word} {NAME}")
        yield Making(DELETE_TABLE, 0, body, f"table {word} {NAME}")


def copy(source: Connection) -> Iterator[Making]:
    """Yield the messages that make our tables as they are in the namespace of a connection."""
    for word, family in FAMILIES.items():
        number = 0
        for kind in ORDER:
            for found in _list(source, kind, family):
                number += 1
                body = _made(kind, found, number)
                yield Making(kind.new, kind.flags, body, f"{kind.word} in {word} {NAME}")
        for name in _names(source, SET, family):
            for body in _list_elements(source, family, name):
                yield Making(NEW_ELEMENTS, CREATE, body, f"elements of {word} {NAME} {name}")
        for found in _list(source, RULE, family):
            body = _made(RULE, found, 0)
            yield Making(RULE.new, RULE.flags, body, f"rule in {word} {NAME}")


def outline(source: Connection) -> frozenset[str]:
    """Return what our tables hold but for elements, a line each; equal lines for equal things.

    Nothing of it is taken apart, so whoever has written it can do no harm.
    """
    return frozenset(
        line for word, family in FAMILIES.items() for line in _outline(source, word, family)
    )


def _outline(source: Connection, word: str, family: int) -> Iterator[str]:
    numbers: dict[str, int] = {}
    for kind in (*ORDER, RULE):
        for found in _list(source, kind, family):
            body = b"".join(_kept(kind, found))
            if kind is OBJECT:  # what it has counted is no part of it
                body = b""
            name = parse_text(parse_attributes(found, HEAD.size)[kind.name])
            where = f"{word} {NAME} {kind.word} {name}"
            if kind is RULE:
                numbers[name] = numbers.get(name, 0) + 1
                where = f"{word} {NAME} chain {name}, rule {numbers[name]}"
            yield f"{where} ({zlib.crc32(body):08x})"


def _list(source: Connection, kind: Kind, family: int) -> list[bytes]:
    """Return what there is of a kind in our table of a family; kernels do not all filter it."""
    only = HEAD.pack(family, 0, 0) + (b"" if kind is TABLE else encode_text(_TABLE, NAME))
    return [
        body
        for body in _dump(source, kind.get, only)
        if body[0] == family
        and parse_text(parse_attributes(body, HEAD.size).get(_TABLE, b"")) == NAME
    ]


def _dump(source: Connection, kind: int, only: bytes) -> list[bytes]:
    """Return what there is; nothing if what it would be in is not there."""
    try:
        return source.dump(kind, only)
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return []
        raise


def _names(source: Connection, kind: Kind, family: int) -> Iterator[str]:
    for body in _list(source, kind, family):
        yield parse_text(parse_attributes(body, HEAD.size)[kind.name])


def _list_elements(source: Connection, family: int, name: str) -> Iterator[bytes]:
    only = encode_text(_TABLE, NAME) + encode_text(_OF_SET, name)
    for body in _dump(source, GET_ELEMENTS, HEAD.pack(family, 0, 0) + only):
        if parse_attributes(body, HEAD.size).get(_ELEMENTS):
            yield body


def _made(kind: Kind, body: bytes, number: int) -> bytes:
    """Return the body of the message that makes what another describes."""
    made = body[: HEAD.size] + b"".join(_kept(kind, body))
    return made + encode_attribute(_SET_ID, _NUMBER.pack(number)) if kind is SET else made


def _kept(kind: Kind, body: bytes) -> Iterable[bytes]:
    for attribute, value in parse_typed(body, HEAD.size):
        if attribute & TYPE_MASK not in kind.told:
            yield encode_attribute(attribute, value)


def read_elements(source: Connection, family: str, name: str) -> Iterator[dict[int, bytes]]:
    """Yield the elements of a set of ours, each by its attributes; none if there is no such set."""
    for body in _list_elements(source, FAMILIES[family], name):
        for element in parse_nested(parse_attributes(body, HEAD.size)[_ELEMENTS]):
            yield parse_attributes(element)


def read_objects(source: Connection, family: str) -> Iterator[tuple[str, dict[int, bytes]]]:
    """Yield the named counters of a table of ours with their attributes."""
    for body in _list(source, OBJECT, FAMILIES[family]):
        found = parse_attributes(body, HEAD.size)
        yield parse_text(found[OBJECT.name]), parse_attributes(found[4])  # NFTA_OBJ_DATA
