"""Read nftables tables from the kernel, and build the messages that create them again.

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
from driver.linux.nfnetlink import (
    CREATE,
    TYPE_MASK,
    Connection,
    encode_attribute,
    encode_text,
    parse_attributes,
    parse_nested,
    parse_text,
    parse_typed,
)
from driver.linux.session import NetlinkError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FAMILIES = {"inet": 1, "bridge": 7}  # NFPROTO_…
_WORDS = {number: word for word, number in FAMILIES.items()}
_ANY_FAMILY = 0  # NFPROTO_UNSPEC
NAME = "pynet"
HEAD = struct.Struct(">BBH")  # nfgenmsg: family, version, resource
_NFTABLES = 10 << 8  # NFNL_SUBSYS_NFTABLES
_APPEND = 0x800  # NLM_F_APPEND
_NUMBER = struct.Struct(">I")
_TABLE, _OF_SET = 1, 2  # NFTA_…_TABLE, NFTA_SET_ELEM_LIST_SET
_ELEMENTS, _SET_ID = 3, 10  # NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ID
_EXPRESSIONS = 4  # NFTA_RULE_EXPRESSIONS
_COUNTER = encode_text(1, "counter")  # NFTA_EXPR_NAME: comes first, nf_tables_fill_expr_info()
_SET_FLAGS, _EVALUATED, _OBJECT_DATA = 3, 0x20, 4  # NFTA_SET_FLAGS, NFT_SET_EVAL, NFTA_OBJ_DATA


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
    lists_all: bool = True  # of every family at once, if it is asked so


# NFT_MSG_…; then NFTA_…_USE, …_HANDLE, …_COUNTERS, …_POSITION and the like, by kind.
TABLE = Kind("table", _NFTABLES | 0, _NFTABLES | 1, 1, frozenset({3, 4, 5, 7}))
OBJECT = Kind("counter", _NFTABLES | 18, _NFTABLES | 19, 2, frozenset({5, 6, 7}))
CHAIN = Kind("chain", _NFTABLES | 3, _NFTABLES | 4, 3, frozenset({2, 6, 8, 9, 11}))
SET = Kind(
    "set", _NFTABLES | 9, _NFTABLES | 10, 2, frozenset({10, 14, 16, 19, 20}), lists_all=False
)
RULE = Kind(
    "rule",
    _NFTABLES | 6,
    _NFTABLES | 7,
    2,
    frozenset({3, 6, 8, 9}),
    CREATE | _APPEND,
    lists_all=False,
)
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
        self._netfilter = Connection()

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


class Held(NamedTuple):
    """A thing that a table of ours holds, as the kernel describes it."""

    kind: Kind
    family: str
    body: bytes

    @property
    def name(self) -> str:
        """Its name; of a rule, its chain's."""
        return parse_text(parse_attributes(self.body, HEAD.size)[self.kind.name])


def read(source: Connection) -> tuple[Held, ...]:
    """Return all that our tables hold but elements, in the order in which it can be made."""
    return tuple(held for kind in (*ORDER, RULE) for held in _list(source, kind))


def _list(source: Connection, kind: Kind) -> Iterator[Held]:
    """Yield what our tables hold of a kind, in the kernel's order."""
    for family in (_ANY_FAMILY,) if kind.lists_all else FAMILIES.values():
        only = b"" if kind is TABLE else encode_text(_TABLE, NAME)
        for body in _dump(source, kind.get, HEAD.pack(family, 0, 0) + only):
            word = _WORDS.get(body[0])
            table = parse_attributes(body, HEAD.size).get(_TABLE, b"")
            if word is not None and parse_text(table) == NAME and family in {_ANY_FAMILY, body[0]}:
                yield Held(kind, word, body)


def copy(source: Connection, things: Iterable[Held]) -> Iterator[Making]:
    """Yield the messages that make our tables, of which this is all but elements, with those."""
    rules: list[Making] = []
    sets: list[Held] = []
    for number, each in enumerate(things):
        kind = each.kind
        words = f"{kind.word} in {each.family} {NAME}"
        making = Making(kind.new, kind.flags, _made(kind, each.body, number), words)
        if kind is RULE:
            rules.append(making)
            continue
        yield making
        if kind is SET and not _is_dynamic(each.body):
            sets.append(each)
    for each in sets:  # what leads to chains comes behind them, and rules behind what they use
        for body in _list_elements(source, FAMILIES[each.family], each.name):
            words = f"elements of {each.family} {NAME} {each.name}"
            yield Making(NEW_ELEMENTS, CREATE, body, words)
    yield from rules


def outline(things: Iterable[Held]) -> frozenset[str]:
    """Return what our tables hold but for elements, a line each; equal lines for equal things.

    Nothing of it is decoded, so tables that others wrote can do no harm.
    """
    return frozenset(_outline(things))


def _outline(things: Iterable[Held]) -> Iterator[str]:
    numbers: dict[tuple[str, str], int] = {}
    for each in things:
        kind, name, mark = each.kind, "", 0
        for attribute, value in parse_typed(each.body, HEAD.size):
            number = attribute & TYPE_MASK
            if number == kind.name:
                name = parse_text(value)
            # What a counter has counted is no part of it.
            if number not in kind.told and kind is not OBJECT:
                is_rules = kind is RULE and number == _EXPRESSIONS
                mark = zlib.crc32(_without_counts(value) if is_rules else value, mark)
        where = f"{each.family} {NAME} {kind.word} {name}"
        if kind is RULE:
            place = each.family, name
            numbers[place] = numbers.get(place, 0) + 1
            where = f"{each.family} {NAME} chain {name}, rule {numbers[place]}"
        yield f"{where} ({mark:08x})"


def _without_counts(expressions: bytes) -> bytes:
    """Return a rule's expressions but for what its counters have counted."""
    found = parse_nested(expressions)
    return b"".join(_COUNTER if each.startswith(_COUNTER) else each for each in found)


def _is_dynamic(body: bytes) -> bool:
    """Return whether a set is filled by packets that pass."""
    flags = parse_attributes(body, HEAD.size).get(_SET_FLAGS, b"")
    return bool(int.from_bytes(flags, "big") & _EVALUATED)


def _dump(source: Connection, kind: int, only: bytes) -> list[bytes]:
    """Return what there is; nothing if what it would be in is not there."""
    try:
        return source.dump(kind, only)
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return []
        raise


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


def read_rules(source: Connection) -> Iterator[tuple[str, str, list[dict[int, bytes]]]]:
    """Yield the rules of our tables in order: the family, the chain, each expression's attributes.

    Unlike `read`, for what they have counted.
    """
    for each in _list(source, RULE):
        expressions = parse_attributes(each.body, HEAD.size).get(_EXPRESSIONS, b"")
        yield each.family, each.name, [parse_attributes(one) for one in parse_nested(expressions)]


def read_counters(source: Connection) -> Iterator[tuple[str, str, dict[int, bytes]]]:
    """Yield the named counters of our tables: the family, the name, and the attributes."""
    for body in _dump(source, OBJECT.get, HEAD.pack(_ANY_FAMILY, 0, 0) + encode_text(_TABLE, NAME)):
        found = parse_attributes(body, HEAD.size)
        if body[0] in _WORDS and parse_text(found[_TABLE]) == NAME:
            counted = parse_attributes(found[_OBJECT_DATA])
            yield _WORDS[body[0]], parse_text(found[OBJECT.name]), counted
