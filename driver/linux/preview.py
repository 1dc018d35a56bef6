"""Compile nft text in an empty network namespace, to compare or to copy the result.

Two rulesets are compared in the kernel's own words: one is what is there, the other what an
empty namespace shows after the text was given to it. So nobody here needs to know how nft
writes what it was told, in whatever version. What is not an element is compared as the kernel has
it; elements are read by libnftables, if all else is as pynet writes it.
"""

from __future__ import annotations

from contextlib import contextmanager
from hashlib import sha256
from threading import Lock
from typing import TYPE_CHECKING, Any

import msgspec

from driver.linux import netns
from driver.linux.nft import Nft
from driver.linux.tables import Looking, copy, outline, read, unmake

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from driver.linux.nfnetlink import Connection
    from driver.linux.tables import Held, Making


def list_elements(nft: Nft, tables: Iterable[str]) -> frozenset[str]:
    """Return the elements of the tables' sets and maps; no table is no lines."""
    return frozenset(line for table in tables for line in _lines(nft.show_table(table)))


class Preview:
    """A network namespace without anything, in which to see what nft text comes to.

    Made once: see `Nft` for why not whenever it is needed. One look at a time.
    """

    def __init__(self) -> None:
        self._nft, self._looking = netns.run_in_new(lambda: (Nft(), Looking()))
        self._lock = Lock()
        self._outlines: frozenset[str] = frozenset()
        self._last: tuple[bytes, frozenset[str]] = b"", frozenset()

    def list_rules(self, text: str, tables: Sequence[str]) -> frozenset[str]:
        """Return what the tables would hold if nothing but this text had been given to them.

        Mostly it is asked for the same as before, several times in a row.
        """
        asked = sha256(text.encode()).digest()
        last, found = self._last
        if asked != last:
            with self._showing(text) as (_, _, lines):
                found = list_elements(self._nft, tables) | lines
            self._last = asked, found
        return found

    def compile(self, text: str) -> tuple[Making, ...]:
        """Return the messages by which our tables become what this text makes of them."""
        with self._showing(text) as (shown, things, _):
            return (*unmake(), *copy(shown, things))

    def knows(self, lines: frozenset[str]) -> bool:
        """Return whether tables are no others, but for their elements, than what was shown here.

        Then they are ours, and libnftables can read them without harm.
        """
        return lines <= self._outlines

    @contextmanager
    def _showing(self, text: str) -> Iterator[tuple[Connection, tuple[Held, ...], frozenset[str]]]:
        """Load the tables that a text makes for the block, and no others.

        Lends what shows them, and what they hold but for elements, also as lines.
        """
        with self._lock, self._looking.open() as shown:
            self._nft.run(text)
            try:
                things = read(shown)
                lines = outline(things)
                self._outlines |= lines
                yield shown, things, lines
            finally:
                self._nft.run("flush ruleset\n")

    def close(self) -> None:
        """Free the context, and the namespace with it."""
        self._nft.close()
        self._looking.close()


def _lines(shown: bytes | None) -> Iterator[str]:
    """Yield a line for every element of a table that nft shows as JSON (libnftables-json(5))."""
    if shown is None:
        return
    for entry in msgspec.json.decode(shown)["nftables"]:
        ((kind, thing),) = entry.items()
        if kind not in {"set", "map"} or "timeout" in thing.get("flags", ()):
            continue  # what has a timeout is what passing packets have left
        name = f"{thing['family']} {thing['table']} {kind} {thing['name']}"
        for element in thing.get("elem", ()):
            yield f"{name}, element {_text(_without_count(element))}"


def _without_count(element: Any) -> Any:
    """Return an element, of a map with its value, but for what its counter has counted."""
    if isinstance(element, list):
        return [_without_count(element[0]), *element[1:]]
    if isinstance(element, dict) and "elem" in element:
        said = element["elem"]
        return {"elem": {name: said[name] for name in said if name != "counter"}}
    return element


def _text(value: Any) -> str:
    return msgspec.json.encode(value, order="sorted").decode()
