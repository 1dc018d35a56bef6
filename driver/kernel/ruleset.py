"""Read nftables tables as lines that can be compared; changes nothing.

Two rulesets are compared in the kernel's own words: one is what is there, the other what an
empty namespace shows after the text was given to it. So nobody here needs to know how nft
writes what it was told, in whatever version.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

import msgspec

from driver.kernel import netns
from driver.kernel.nft import Nft

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


def list_rules(nft: Nft, tables: Iterable[str]) -> frozenset[str]:
    """Return what the tables hold; no table is no lines."""
    return frozenset(line for table in tables for line in _lines(nft.show_table(table)))


class Preview:
    """A network namespace without anything, in which to see what nft text comes to.

    Made once: see `Nft` for why not whenever it is needed. One look at a time, whoever looks.
    """

    def __init__(self) -> None:
        self._nft = netns.run_in_new(Nft)
        self._lock = Lock()

    def list_rules(self, text: str, tables: Sequence[str]) -> frozenset[str]:
        """Return what the tables would hold if nothing but this text had been given to them."""
        with self._lock:
            self._nft.run(text)
            try:
                return list_rules(self._nft, tables)
            finally:
                self._nft.run("flush ruleset\n")

    def close(self) -> None:
        """Free the context, and the namespace with it."""
        self._nft.close()


def _lines(shown: bytes | None) -> Iterator[str]:
    """Yield a line for everything in a table, of what nft shows as JSON (libnftables-json(5))."""
    if shown is None:
        return
    rules: dict[str, int] = {}
    for entry in msgspec.json.decode(shown)["nftables"]:
        ((kind, thing),) = entry.items()
        if kind == "metainfo":
            continue
        thing.pop("handle", None)
        if kind == "counter":
            thing.pop("packets")
            thing.pop("bytes")
        where = f"{thing['family']} {thing.get('table', thing.get('name'))}"
        if kind == "rule":
            chain = thing["chain"]
            rules[chain] = rules.get(chain, 0) + 1
            yield f"{where} chain {chain}, rule {rules[chain]}: {_text(thing['expr'])}"
            continue
        elements = thing.pop("elem", ())
        if "timeout" in thing.get("flags", ()):
            elements = ()  # what passing packets have left
        name = f"{where} {kind} {thing['name']}"
        yield f"{name}: {_text(thing)}"
        for element in elements:
            yield f"{name}, element {_text(element)}"


def _text(value: Any) -> str:
    return msgspec.json.encode(value, order="sorted").decode()
