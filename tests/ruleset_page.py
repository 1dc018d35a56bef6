"""Put docs/ruleset.md together: the prose of a template, and what a real kernel shows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from driver.firewall.base import read_base
from driver.model import short
from tests.typical import TYPICAL

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "ruleset.md"
TEMPLATE = DOCS / "ruleset.md.in"
COMMAND = "PYNET_DOCS=write python -m pytest tests/kernel/test_ruleset_page.py"

_BASE_TABLE = re.compile(r"^table (\w+ pynet) \{$(.*?)^\}$", re.MULTILINE | re.DOTALL)
_COUNTER = re.compile(r'^\tcounter (\w+) \{\n\t\tcomment "([^"]*)"$', re.MULTILINE)
_TABLE = re.compile(r"^table (\w+) pynet \{$(.*?)^\}$", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^\t(set|map|chain) (\w+) \{$(.*?)^\t\}$", re.MULTILINE | re.DOTALL)
_ELEMENTS = re.compile(r"elements = \{(.*?)\}", re.DOTALL)
_DROP = re.compile(r" drop_")
DROP_SHOWN = "inet drop_source"  # all of them are alike
_PLACE = re.compile(r"^\{\{(.*)\}\}$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A chain, set or map of a listing."""

    family: str
    kind: str
    name: str
    text: str

    @property
    def comment(self) -> str:
        """What the set or map says of itself."""
        found = re.search(r'^\t\tcomment "(.*)"$', self.text, re.MULTILINE)
        return found[1] if found else ""

    def elements_of(self, owners: set[str]) -> Iterator[str]:
        """Yield the elements, without their comment, that name one of the owners."""
        found = _ELEMENTS.search(self.text)
        for element in re.split(r",\s+", found[1].strip()) if found else ():
            match = re.fullmatch(r'(.*?) comment "(.*?)"(.*)', element)
            assert match, f"{self.name} has an element without a comment: {element}"
            if match[2] in owners:
                yield match[1] + match[3]


def render_page(listing: str, accepting: str) -> str:
    """Return the page for a listing of `nft list ruleset` and the rule that accepts the mark."""
    # nft 1.1 knows the name of this priority in the output hook, too; the page has the number.
    blocks = list(
        _blocks(listing.replace("hook output priority dstnat - 5", "hook output priority -105"))
    )

    def fill(place: re.Match[str]) -> str:
        match place[1].split():
            case ["chain", family, name]:
                return _fence(_chain(blocks, family, name))
            case ["elements", name]:
                return _fence("\n".join(_elements(blocks, name)))
            case ["sets"]:
                return _sets(blocks)
            case ["drops"]:
                return _drops()
            case ["iptables"]:
                return _fence(accepting)
        raise ValueError(place[0])

    _check_complete(blocks)
    return _PLACE.sub(fill, TEMPLATE.read_text())


def _check_complete(blocks: list[Block]) -> None:
    """Have a paragraph for every chain, whichever comes to be."""
    described = set(re.findall(r"\{\{chain (\w+ \w+)\}\}", TEMPLATE.read_text()))
    chains = {f"{each.family} {each.name}" for each in blocks if each.kind == "chain"}
    assert described == {each for each in chains if not _DROP.search(each)} | {DROP_SHOWN}
    told = {f"{table.split()[0]} drop_{reason}" for table, reason, _ in _reasons()}
    assert told == set(filter(_DROP.search, chains))


def _blocks(listing: str) -> Iterator[Block]:
    for table in _TABLE.finditer(listing):
        for block in _BLOCK.finditer(table[2]):
            yield Block(table[1], block[1], block[2], block[0])


def _chain(blocks: list[Block], family: str, name: str) -> str:
    (chain,) = (
        each for each in blocks if (each.kind, each.family, each.name) == ("chain", family, name)
    )
    return chain.text.replace("\n\t", "\n").strip().expandtabs(4)


def _elements(blocks: list[Block], name: str) -> Iterator[str]:
    each = TYPICAL[name]
    owners = {f"network {short(each.network.id)}", f"endpoint {short(each.endpoint.id)}"}
    for block in blocks:
        for element in sorted(block.elements_of(owners)) if block.kind != "chain" else ():
            yield f"{block.name:<13} {element}"


def _reasons() -> Iterator[tuple[str, str, str]]:
    """Yield each reason to drop: the table, the counter's name, and what it says."""
    for table, body in _BASE_TABLE.findall(read_base()):
        for reason, text in _COUNTER.findall(body):
            yield table, reason, text


def _drops() -> str:
    rows = [f"| `{reason}` | `{table}` | {text} |" for table, reason, text in _reasons()]
    return "\n".join(["| reason | table | what is dropped |", "| --- | --- | --- |", *rows])


def _sets(blocks: list[Block]) -> str:
    rows = [f"| `{each.name}` | {each.comment} |" for each in blocks if _is_told(each)]
    return "\n".join(["| name | what is in it |", "| --- | --- |", *rows])


def _is_told(block: Block) -> bool:
    return block.kind != "chain" and not block.name.startswith("dropped_")


def _fence(text: str) -> str:
    return f"```\n{text}\n```"
