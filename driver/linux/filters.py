"""Read others' base chains with policy drop, over nfnetlink.

libnftables is not asked: it reads a table as a whole, with every set, and a release of it has
crashed on what a newer one had written. Here a chain is a few numbers, what is not known is a
doubt, and only sets that are looked up by what is known of a packet are read.

include/uapi/linux/netfilter/nf_tables.h has the numbers.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from driver.firewall.filters import (
    BaseChain,
    Compare,
    Doubt,
    Fact,
    Fate,
    Hook,
    Load,
    Lookup,
    Mask,
    Verdict,
)
from driver.linux.nfnetlink import encode_text, parse_attributes, parse_nested, parse_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from driver.firewall.filters import Rule, Step
    from driver.linux.nfnetlink import Connection

MOST_CHAINS, MOST_RULES = 64, 4096  # read of one table; what is beyond is a doubt
_OURS, _IPTABLES = "pynet", "filter"  # FORWARD of the latter has a rule of ours

_HEAD = struct.Struct(">BBH")  # nfgenmsg: family, version, resource
_NUMBER = struct.Struct(">I")
_SIGNED = struct.Struct(">i")
_NFTABLES = 10 << 8  # NFNL_SUBSYS_NFTABLES
_GET_CHAIN, _GET_RULE, _GET_ELEMENTS = _NFTABLES | 4, _NFTABLES | 7, _NFTABLES | 13  # NFT_MSG_…
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}  # NFPROTO_…
_ANY = 0  # NFPROTO_UNSPEC
_TABLE, _CHAIN_NAME, _HOOK, _POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7  # NFTA_CHAIN_…
_HOOK_NUMBER, _PRIORITY = 1, 2  # NFTA_HOOK_…
_DROP_POLICY = 0  # NF_DROP
_RULE_CHAIN, _RULE_HANDLE, _EXPRESSIONS = 2, 3, 4  # NFTA_RULE_…
_NAME, _DATA = 1, 2  # NFTA_EXPR_…
_VALUE, _VERDICT = 1, 2  # NFTA_DATA_…
_CODE, _TARGET = 1, 2  # NFTA_VERDICT_…
_SET, _LIST = 2, 3  # NFTA_SET_ELEM_LIST_…
_KEY, _MAPPED, _ELEMENT_FLAGS, _KEY_END = 1, 2, 3, 10  # NFTA_SET_ELEM_…
_LOADED = 1  # NFTA_META_DREG, NFTA_CT_DREG, NFTA_PAYLOAD_DREG, …
_META_KEY, _CT_KEY, _IMMEDIATE = 2, 2, 2  # NFTA_META_KEY, NFTA_CT_KEY, NFTA_IMMEDIATE_DATA
_SOURCE, _MASKED, _MASK, _XOR = 1, 2, 4, 5  # NFTA_BITWISE_…; NFTA_CMP_SREG is 1, too
_OPERATOR, _COMPARED, _EQUAL, _NOT_EQUAL = 2, 3, 0, 1  # NFTA_CMP_…, NFT_CMP_…
_LOOKED_UP_IN, _LOOKED_UP, _FOUND, _LOOKUP_FLAGS = 1, 2, 3, 5  # NFTA_LOOKUP_…
_FATES = {0: Fate.DROP, 1: Fate.ACCEPT, 2**32 - 1: Fate.CONTINUE, 2**32 - 5: Fate.RETURN}
_JUMP, _GOTO = 2**32 - 3, 2**32 - 4  # NFT_JUMP, NFT_GOTO
_FACTS = {  # NFT_META_…
    3: Fact.MARK,
    4: Fact.INPUT_INDEX,
    5: Fact.OUTPUT_INDEX,
    6: Fact.INPUT,
    7: Fact.OUTPUT,
    15: Fact.FAMILY,
    16: Fact.PROTOCOL,
}
_STATE = 0  # NFT_CT_STATE
_HARMLESS = frozenset({"counter", "log", "notrack", "last"})  # go on whatever they see
_LOADING = frozenset({"payload", "exthdr", "rt", "fib", "numgen", "osf"})  # NFTA_…_DREG is 1


def read_filters(netfilter: Connection) -> tuple[BaseChain, ...]:
    """Return the base chains of others that filter packets for this host or through it, and drop.

    But for FORWARD of iptables, in which pynet has a rule. Raises NetlinkError.
    """
    return tuple(Reader(netfilter).base_chains())


def has_filters(netfilter: Connection) -> bool:
    """Return whether there is any chain that filters packets; raises NetlinkError."""
    for body in netfilter.dump(_GET_CHAIN, _HEAD.pack(_ANY, 0, 0)):
        found = parse_attributes(body, _HEAD.size)
        if _HOOK in found and parse_text(found.get(_CHAIN_TYPE, b"")) == "filter":
            return True
    return False


class Reader:
    """Reads others' chains and rules by a connection."""

    def __init__(self, netfilter: Connection) -> None:
        self._netfilter = netfilter
        self._rules = 0

    def base_chains(self) -> Iterable[BaseChain]:
        """Yield the base chains that `read_filters` returns."""
        for body in self._netfilter.dump(_GET_CHAIN, _HEAD.pack(_ANY, 0, 0)):
            found = parse_attributes(body, _HEAD.size)
            family, table = _FAMILIES.get(body[0]), parse_text(found.get(_TABLE, b""))
            hook = parse_attributes(found.get(_HOOK, b""))
            number = _number(hook.get(_HOOK_NUMBER))
            if family is None or number not in {each.value for each in Hook}:
                continue
            name = parse_text(found[_CHAIN_NAME])
            is_ours = (family, table) == ("inet", _OURS)
            is_iptables = family != "inet" and (table, name) == (_IPTABLES, "FORWARD")
            is_filter = parse_text(found.get(_CHAIN_TYPE, b"")) == "filter"
            if _number(found.get(_POLICY)) != _DROP_POLICY or not is_filter:
                continue
            if not is_ours and not is_iptables:
                priority: int = _SIGNED.unpack(hook[_PRIORITY])[0]
                chains = self._read_chains(body[0], table, name)
                yield BaseChain(family, table, name, Hook(number), priority, chains)

    def _read_chains(
        self, family: int, table: str, base: str
    ) -> Mapping[str, Sequence[Rule] | None]:
        """Return the rules of a chain and of those that it leads to."""
        chains: dict[str, Sequence[Rule] | None] = {}
        waiting = [base]
        while waiting:
            name = waiting.pop()
            if name in chains:
                continue
            if len(chains) >= MOST_CHAINS or self._rules >= MOST_RULES:
                chains[name] = None
                continue
            rules = self._read_rules(family, table, name)
            chains[name] = rules
            waiting += [target for rule in rules for target in _targets(rule)]
        return chains

    def _read_rules(self, family: int, table: str, chain: str) -> tuple[Rule, ...]:
        rules = tuple(self.read_rules(family, table, chain).values())
        self._rules += len(rules)
        return rules

    def read_rules(self, family: int, table: str, chain: str) -> dict[int, Rule]:
        """Return the rules of a chain in their order, by their handles."""
        only = encode_text(_TABLE, table) + encode_text(_RULE_CHAIN, chain)
        bodies = self._netfilter.dump(_GET_RULE, _HEAD.pack(family, 0, 0) + only)
        found = (parse_attributes(body, _HEAD.size) for body in bodies)
        return {
            int.from_bytes(each[_RULE_HANDLE], "big"): self._parse_rule(
                family, table, each.get(_EXPRESSIONS, b"")
            )
            for each in found
        }

    def _parse_rule(self, family: int, table: str, expressions: bytes) -> Rule:
        known: set[int] = set()  # the registers that hold a fact, or bits of one
        steps: list[Step] = []
        for expression in parse_nested(expressions):
            found = parse_attributes(expression)
            name, data = parse_text(found[_NAME]), parse_attributes(found.get(_DATA, b""))
            if name == "lookup":
                steps.append(self._parse_lookup(family, table, data, known))
            elif name not in _HARMLESS:
                steps.append(_parse_step(name, data))
            if steps:
                _remember(steps[-1], known)
        return tuple(steps)

    def _parse_lookup(
        self, family: int, table: str, data: Mapping[int, bytes], known: set[int]
    ) -> Lookup:
        register = _number(data.get(_LOOKED_UP))
        members = None
        if register in known:
            members = self._read_members(family, table, parse_text(data[_LOOKED_UP_IN]))
        is_negated = bool(_number(data.get(_LOOKUP_FLAGS)))
        return Lookup(register, members, negated=is_negated, is_map=_FOUND in data)

    def _read_members(
        self, family: int, table: str, name: str
    ) -> Mapping[bytes, Verdict | None] | None:
        """Return the elements of a set and the verdicts that they map to; None for intervals."""
        members: dict[bytes, Verdict | None] = {}
        only = encode_text(_TABLE, table) + encode_text(_SET, name)
        for body in self._netfilter.dump(_GET_ELEMENTS, _HEAD.pack(family, 0, 0) + only):
            for element in parse_nested(parse_attributes(body, _HEAD.size).get(_LIST, b"")):
                found = parse_attributes(element)
                if _KEY not in found or _number(found.get(_ELEMENT_FLAGS)) or _KEY_END in found:
                    return None  # an interval, or what holds for all others
                key = parse_attributes(found[_KEY])[_VALUE]
                members[key] = _parse_verdict(found[_MAPPED]) if _MAPPED in found else None
        return members


def _parse_step(name: str, data: Mapping[int, bytes]) -> Step:
    """Return what an expression does, as far as it is known here."""
    step: Step = Doubt()
    match name:
        case "meta" if _LOADED in data:
            step = Load(_number(data[_LOADED]), _FACTS.get(_number(data.get(_META_KEY))))
        case "ct" if _LOADED in data:
            is_state = _number(data.get(_CT_KEY)) == _STATE
            step = Load(_number(data[_LOADED]), Fact.STATE if is_state else None)
        case "bitwise" if _MASK in data and _XOR in data:
            mask, xor = (parse_attributes(data[each])[_VALUE] for each in (_MASK, _XOR))
            step = Mask(_number(data[_MASKED]), _number(data[_SOURCE]), mask, xor)
        case "cmp" if _number(data.get(_OPERATOR)) in {_EQUAL, _NOT_EQUAL}:
            value = parse_attributes(data[_COMPARED])[_VALUE]
            is_equal = _number(data[_OPERATOR]) == _EQUAL
            step = Compare(_number(data[_SOURCE]), value, equal=is_equal)
        case "immediate":
            step = _parse_verdict(data[_IMMEDIATE]) or Load(_number(data.get(_LOADED)), None)
        case "reject":
            step = Verdict(Fate.DROP)
        case _ if name in _LOADING and _LOADED in data:
            step = Load(_number(data[_LOADED]), None)
    return step


def _parse_verdict(data: bytes) -> Verdict | None:
    """Return the verdict that data holds, None if it holds something else."""
    found = parse_attributes(data)
    if _VERDICT not in found:
        return None
    verdict = parse_attributes(found[_VERDICT])
    code = _number(verdict.get(_CODE))
    if code in {_JUMP, _GOTO}:
        return Verdict(None, parse_text(verdict[_TARGET]), comes_back=code == _JUMP)
    return Verdict(_FATES.get(code))


def _targets(rule: Rule) -> Iterable[str]:
    """Yield the chains that a rule leads to."""
    for step in rule:
        members = step.members if isinstance(step, Lookup) else None
        for verdict in (step, *(members or {}).values()):
            if isinstance(verdict, Verdict) and verdict.chain:
                yield verdict.chain


def _remember(step: Step, known: set[int]) -> None:
    """Note which register holds something known after a step."""
    match step:
        case Load():
            known.discard(step.register)
            if step.fact is not None:
                known.add(step.register)
        case Mask():
            if step.source in known:
                known.add(step.register)


def _number(value: bytes | None) -> int:
    return 0 if value is None else int(_NUMBER.unpack(value)[0])
