"""nft in memory: as much of it as pynet renders, all or nothing as the real one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_network
from typing import TYPE_CHECKING

from driver.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Table:
    """An nft table: its text, and its sets' and maps' elements with their values."""

    text: str = ""
    elements: dict[tuple[str, str], str] = field(default_factory=dict)

    def declarations(self) -> dict[str, str]:
        """Return what each set and map is declared as."""
        return _declarations(self.text)


Tables = dict[str, Table]


_TABLE = re.compile(r"table (\w+ pynet) \{(.*)\}", re.DOTALL)
_DELETE_TABLE = re.compile(r"delete table (\w+ pynet)")
_FLUSH = re.compile(r"flush set (\w+ pynet) (\w+)")
_ELEMENT = re.compile(
    r'(add|delete) element (\w+ pynet) (\w+) \{ (.*?)(?: comment "[^"]*")?(?: : (.*))? \}'
)


@cache
def _declarations(text: str) -> dict[str, str]:
    return dict(re.findall(r"\b(?:set|map) (\w+) \{([^}]*)\}", text))


def apply(text: str, tables: Tables) -> Tables:
    """Return what the tables are after the text; knows as much of nft as pynet renders."""
    tables = {name: Table(each.text, dict(each.elements)) for name, each in tables.items()}
    for statement in _statements(text):
        if match := _TABLE.fullmatch(statement):
            tables.setdefault(match[1], Table()).text += match[2]
        elif match := _DELETE_TABLE.fullmatch(statement):
            del tables[_known(match[1], tables)]
        elif match := _FLUSH.fullmatch(statement):
            table = tables[_known(match[1], tables)]
            table.elements = {
                key: value for key, value in table.elements.items() if key[0] != match[2]
            }
        elif match := _ELEMENT.fullmatch(statement):
            table = tables[_known(match[2], tables)]
            key, _, said = match[4].partition(" ct ")
            _apply_element(table, match[1], (match[3], key), match[5] or said)
        else:
            raise KernelError(f"change the firewall: syntax error\nin:\n{text}")
    return tables


def _known(name: str, tables: Tables) -> str:
    if name not in tables:
        raise KernelError(f"change the firewall: No such file or directory: {name}")
    return name


def _apply_element(table: Table, verb: str, element: tuple[str, str], value: str) -> None:
    declaration = table.declarations().get(element[0])
    if declaration is None:
        raise KernelError(f"change the firewall: no set {element[0]}")
    if verb == "delete":
        if element not in table.elements:
            raise KernelError(f"change the firewall: no element {element[1]}")
        del table.elements[element]
        return
    if table.elements.get(element, value) != value:
        raise KernelError(f"change the firewall: {element[1]}: File exists")
    if "flags interval" in declaration and any(
        _overlap(element[1], key) for name, key in table.elements if name == element[0]
    ):
        raise KernelError(f"change the firewall: {element[1]}: conflicting intervals")
    table.elements[element] = value


def _overlap(one: str, other: str) -> bool:
    """Tell whether two keys that begin with a subnet overlap without being the same."""
    (subnet, *rest), (subnet_too, *rest_too) = one.split(" . "), other.split(" . ")
    if one == other or rest != rest_too:
        return False
    first, second = ip_network(subnet), ip_network(subnet_too)
    return first.network_address in second or second.network_address in first


def _statements(text: str) -> Iterator[str]:
    lines: list[str] = []
    depth = 0
    for line in text.splitlines():
        if depth == 0 and (not line or line.startswith(("#", "redefine "))):
            continue
        lines.append(line)
        depth += line.count("{") - line.count("}")
        if depth == 0:
            yield "\n".join(lines)
            lines.clear()
    if lines:
        raise KernelError(f"change the firewall: unexpected end of file\nin:\n{text}")
