"""Evaluate others' filter chains for a packet of a container; no I/O.

A packet has to pass every base chain of its hook, so an operator's own table can stop what pynet's
lets pass. Rules are judged only as far as interfaces, the mark and the state of a connection go:
what else a rule looks at may be one way or the other, and then so may its verdict.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MOST_JUMPS = 16  # NFT_JUMP_STACK_SIZE
NEW = 8  # NF_CT_STATE_BIT(IP_CT_NEW)
TCP = b"\6"
FAMILIES = {4: b"\2", 6: b"\x0a"}  # NFPROTO_…
IFNAMSIZ = 16  # bytes


class Hook(Enum):
    """Where a chain sees packets, by the kernel's number."""

    INPUT = 1
    FORWARD = 2
    OUTPUT = 3


class Fact(StrEnum):
    """What a rule can look at that is known of a packet."""

    INPUT = "iifname"
    OUTPUT = "oifname"
    INPUT_INDEX = "iif"
    OUTPUT_INDEX = "oif"
    MARK = "mark"
    FAMILY = "nfproto"
    PROTOCOL = "l4proto"
    STATE = "ct state"


class Fate(Enum):
    """What a rule, or a chain, can do to a packet."""

    ACCEPT = auto()
    DROP = auto()
    CONTINUE = auto()  # with the next rule, or behind whatever jumped here
    RETURN = auto()  # to behind whatever jumped here


@dataclass(frozen=True, slots=True)
class Load:
    """Load a fact about the packet into a register; None for one that is not modelled here."""

    register: int
    fact: Fact | None


@dataclass(frozen=True, slots=True)
class Mask:
    """Store another register's bits in a register, `and` the one, `xor` the other."""

    register: int
    source: int
    mask: bytes
    xor: bytes


@dataclass(frozen=True, slots=True)
class Compare:
    """Go on with the rule if a register begins with these bytes, or if it does not."""

    register: int
    value: bytes
    equal: bool


@dataclass(frozen=True, slots=True)
class Lookup:
    """Go on if a set has a register's value, or has not; a verdict map's verdict is the rule's.

    `members` is None for a set that was not read.
    """

    register: int
    members: Mapping[bytes, Verdict | None] | None
    negated: bool = False
    is_map: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """End the rule: a fate, or on to a chain, from where a `goto` does not come back."""

    fate: Fate | None
    chain: str = ""
    comes_back: bool = True


@dataclass(frozen=True, slots=True)
class Doubt:
    """A condition that is not modelled here."""


Step = Load | Mask | Compare | Lookup | Verdict | Doubt
Rule = tuple[Step, ...]
Packet = dict[Fact, bytes]


@dataclass(frozen=True, slots=True)
class BaseChain:
    """Another program's base chain with policy drop; `chains` has the rules that can be reached.

    `family` and `table` are in nft's words; `rules` of a chain that was not read are None.
    """

    family: str
    table: str
    name: str
    hook: Hook
    priority: int
    chains: Mapping[str, Sequence[Rule] | None] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return it as nft names it."""
        return f"{self.family} {self.table} {self.name}"

    def sees(self, version: int) -> bool:
        """Return whether packets of an address family come by here."""
        return self.family in {"inet", f"ip{'' if version == 4 else 6}"}  # noqa: PLR2004

    def surely_drops(self, packet: Packet) -> bool:
        """Return whether a packet that begins a connection cannot pass."""
        fates = _run(self, self.name, packet, MOST_JUMPS)
        return not fates & {Fate.ACCEPT, None}


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of the host by its name and its number."""

    name: str
    index: int


def describe_packet(
    version: int, *, source: Interface | None = None, target: Interface | None = None, mark: int = 0
) -> Packet:
    """Return the first packet of a TCP connection: by which interfaces, if that is known."""
    packet = {
        Fact.MARK: _native(mark),
        Fact.STATE: _native(NEW),
        Fact.FAMILY: FAMILIES[version],
        Fact.PROTOCOL: TCP,
    }
    if source is not None:
        packet |= {Fact.INPUT: _padded(source.name), Fact.INPUT_INDEX: _native(source.index)}
    if target is not None:
        packet |= {Fact.OUTPUT: _padded(target.name), Fact.OUTPUT_INDEX: _native(target.index)}
    return packet


def _native(number: int) -> bytes:
    """Return a number of 32 bits as registers hold it, in the machine's order."""
    return number.to_bytes(4, sys.byteorder)


def _padded(name: str) -> bytes:
    return name.encode().ljust(IFNAMSIZ, b"\0")


def _run(chain: BaseChain, name: str, packet: Packet, depth: int) -> set[Fate | None]:
    """Return what can become of a packet; None for what cannot be told."""
    rules = chain.chains.get(name)
    if rules is None or not depth:
        return {None}
    found: set[Fate | None] = set()
    for rule in rules:
        fates, is_certain = _judge(chain, rule, packet, depth)
        found |= fates - {Fate.CONTINUE}
        if is_certain and Fate.CONTINUE not in fates:
            break
    else:
        found.add(Fate.CONTINUE)
    return found - {Fate.RETURN} | {Fate.CONTINUE} if Fate.RETURN in found else found


def _judge(
    chain: BaseChain, rule: Iterable[Step], packet: Packet, depth: int
) -> tuple[set[Fate | None], bool]:
    """Return what a rule can do, and whether it is certain to do one of that."""
    registers: dict[int, bytes | None] = {}
    is_certain = True
    for step in rule:
        holds, verdict = _take(step, registers, packet)
        if holds is False:
            return {Fate.CONTINUE}, True
        if verdict is not None:
            return _follow(chain, verdict, packet, depth), is_certain
        if holds is None and isinstance(step, Lookup) and step.is_map:
            return {None, Fate.CONTINUE}, False
        is_certain = is_certain and holds is not None
    return {Fate.CONTINUE}, is_certain


def _take(
    step: Step, registers: dict[int, bytes | None], packet: Packet
) -> tuple[bool | None, Verdict | None]:
    """Take a step; return whether the rule goes on, None for in doubt, and the verdict, if any."""
    match step:
        case Load():
            registers[step.register] = packet.get(step.fact) if step.fact else None
        case Mask():
            registers[step.register] = _masked(registers.get(step.source), step)
        case Compare():
            value = registers.get(step.register)
            return None if value is None else value.startswith(step.value) is step.equal, None
        case Lookup():
            return _look_up(step, registers.get(step.register))
        case Verdict():
            return True, step
        case Doubt():
            registers.clear()
            return None, None
    return True, None


def _look_up(step: Lookup, value: bytes | None) -> tuple[bool | None, Verdict | None]:
    if value is None or step.members is None:
        return None, None
    if any(len(member) != len(value) for member in step.members):
        return None, None  # of this value and of others behind it
    is_member = value in step.members
    return is_member is not step.negated, step.members.get(value)


def _follow(chain: BaseChain, verdict: Verdict, packet: Packet, depth: int) -> set[Fate | None]:
    if verdict.fate is not None:
        return {verdict.fate}
    fates = _run(chain, verdict.chain, packet, depth - 1)
    if verdict.comes_back or Fate.CONTINUE not in fates:
        return fates
    return fates - {Fate.CONTINUE} | {Fate.RETURN}


def _masked(value: bytes | None, step: Mask) -> bytes | None:
    if value is None or not len(value) == len(step.mask) == len(step.xor):
        return None
    return bytes((a & b) ^ c for a, b, c in zip(value, step.mask, step.xor, strict=True))
