"""Read `base.nft`, the constant part of the tables."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_TABLE = re.compile(r"^table (\w+) pynet \{$(.*?)^\}$", re.MULTILINE | re.DOTALL)
_CHAIN = re.compile(r"^\tchain (\w+) \{$(.*?)^\t\}$", re.MULTILINE | re.DOTALL)


class Chain(NamedTuple):
    """A chain of the file, and its rules, one a line."""

    family: str
    name: str
    rules: tuple[str, ...]


@cache
def read_base() -> str:
    """Return the file's text, as nft reads it."""
    return Path(__file__).with_name("base.nft").read_text()


@cache
def list_chains() -> tuple[Chain, ...]:
    """Return the chains with their rules, in the order of the file."""
    return tuple(
        Chain(family, name, tuple(_rules(body)))
        for family, table in _TABLE.findall(read_base())
        for name, body in _CHAIN.findall(table)
    )


def _rules(body: str) -> Iterator[str]:
    for line in body.split("\n"):
        if line and not line.startswith("\t\ttype "):
            yield line.strip()
