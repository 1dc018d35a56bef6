"""Elements of pynet's sets and maps as values, and as nft text; pure.

`base.nft` says what each set holds. A value stays one until the kernel needs it: addresses are
`ipaddress` objects, ports are integers, names of interfaces have passed `driver.options`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from driver.model import MacAddress, Protocol

    Changes: TypeAlias = "tuple[Change, ...]"


class Family(StrEnum):
    """A family of tables, which all have the same name."""

    INET = "inet"
    BRIDGE = "bridge"


TABLE_NAME = "pynet"


class SetName(NamedTuple):
    """A set or map of one of the tables."""

    family: Family
    name: str

    def __str__(self) -> str:
        return f"{self.family} {TABLE_NAME} {self.name}"


@dataclass(frozen=True, slots=True)
class Interface:
    """The name of an interface in a key."""

    name: str


@dataclass(frozen=True, slots=True)
class Hardware:
    """A MAC address in a key or a value."""

    mac: MacAddress


@dataclass(frozen=True, slots=True)
class Version:
    """An address family in a key, 4 or 6 (`meta nfproto`)."""

    number: int


@dataclass(frozen=True, slots=True)
class Bits:
    """An IPv6 address as a number: what the bridge family takes out of a neighbour solicitation."""

    address: IPv6Address


Part: TypeAlias = (
    "Interface | Hardware | Version | Bits | Protocol | int | IPv4Address | IPv6Address"
    " | IPv4Network | IPv6Network"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a map has for a key: to go on in a chain, or with none to drop."""

    chain: str | None

    def __str__(self) -> str:
        return "drop" if self.chain is None else f"goto {self.chain}"


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a set, or of a map if it has a value.

    `most` is how many connections it stands for until it matches (`ct count over`).
    """

    set: SetName
    key: tuple[Part, ...]
    value: Verdict | tuple[Part, ...] | None = None
    most: int | None = None


class Verb(StrEnum):
    """What is to be done with an element; a set is flushed of all of them."""

    ADD = "add"
    DELETE = "delete"
    FLUSH = "flush"


@dataclass(frozen=True, slots=True)
class Change:
    """An element to be added, with a comment that tells whose it is, or to be deleted.

    Without an element the set is flushed.
    """

    verb: Verb
    set: SetName
    element: Element | None = None
    comment: str = ""


def add(elements: Iterable[Element], comment: str) -> Changes:
    """Return what adds these elements."""
    return tuple(Change(Verb.ADD, each.set, each, comment) for each in elements)


def delete(elements: Iterable[Element]) -> Changes:
    """Return what deletes these elements."""
    return tuple(Change(Verb.DELETE, each.set, each) for each in elements)


def exchange(before: Iterable[Element], after: Iterable[Element], comment: str) -> Changes:
    """Return what touches the elements that differ and no others."""
    old, new = tuple(before), tuple(after)
    gone = delete(each for each in old if each not in new)
    return gone + add((each for each in new if each not in old), comment)


def render_changes(changes: Iterable[Change]) -> str:
    """Return the changes as nft text, a line each."""
    return "".join(map(_render_change, changes))


def _render_change(change: Change) -> str:
    element = change.element
    if element is None:
        return f"flush set {change.set}\n"
    said = " . ".join(map(_render_part, element.key))
    if change.verb is Verb.ADD:  # to delete one, its key is enough
        said += "" if element.most is None else f" ct count over {element.most}"
        said += f' comment "{change.comment}"'
        match element.value:
            case Verdict() as verdict:
                said += f" : {verdict}"
            case tuple() as parts:
                said += f" : {' . '.join(map(_render_part, parts))}"
    return f"{change.verb} element {change.set} {{ {said} }}\n"


def _render_part(part: Part) -> str:
    match part:
        case Interface(name):
            return f'"{name}"'
        case Hardware(mac):
            return mac
        case Version(number):
            return f"ipv{number}"
        case Bits(address):
            return f"{int(address):#034x}"
    return str(part)
