"""Keep pynet's rule in the iptables chain FORWARD by nfnetlink, where there is no iptables command.

Where it belongs is said here for both ways (`driver.linux.iptables`). For the managed plugin,
whose image holds no programs. The tables `ip filter` and `ip6 filter` are those that Docker and the
iptables command of nftables work on; iptables shows the rule as its own. They are others', so
libnftables is not asked to read them. Rules of the older iptables, which nftables does not see, are
out of reach.

include/uapi/linux/netfilter/nf_tables.h has the numbers.
"""

from __future__ import annotations

import errno
import logging
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from driver.firewall.filters import Fate, Mask, Verdict
from driver.linux import sysctl
from driver.linux.filters import Reader
from driver.linux.nfnetlink import (
    NESTED,
    encode_attribute,
    encode_text,
    parse_attributes,
    parse_text,
)
from driver.linux.session import NetlinkError
from driver.linux.tables import CHAIN, DELETE_TABLE, HEAD, RULE, TABLE, Making
from driver.undo import Rollback, attempt_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from driver.firewall.filters import Rule
    from driver.linux.elements import Elements
    from driver.linux.tables import Looking

OLD_TABLES = Path("/proc/net/ip_tables_names")  # of the older iptables, in this network namespace
FORWARD, OPERATORS = "FORWARD", "DOCKER-USER"
DOCKERS = "DOCKER"  # what Docker's own chains begin with; it puts its jumps at the head
COMMENT = "pynet"
log = logging.getLogger(__name__)

_NAME = "filter"
_FAMILIES = {4: 2, 6: 10}  # NFPROTO_…
_POLICIES = ("DROP", "ACCEPT")  # by NF_DROP and NF_ACCEPT
_DELETE_RULE = (10 << 8) | 8  # NFNL_SUBSYS_NFTABLES, NFT_MSG_DELRULE
_TABLE, _TABLE_USE = 1, 3  # NFTA_…_TABLE, NFTA_TABLE_USE
# NFTA_CHAIN_…, NFTA_HOOK_…, NF_INET_FORWARD
_CHAIN_NAME, _HOOK, _POLICY, _CHAIN_USE, _TYPE = 3, 4, 5, 6, 7
_HOOK_NUMBER, _PRIORITY, _FORWARD_HOOK = 1, 2, 2
_RULE_CHAIN, _HANDLE, _EXPRESSIONS, _POSITION, _USER_DATA = 2, 3, 4, 6, 7  # NFTA_RULE_…
_ITEM, _EXPRESSION, _DATA, _VALUE = 1, 1, 2, 1  # NFTA_LIST_ELEM, NFTA_EXPR_…, NFTA_DATA_VALUE
_VERDICT, _CODE = 2, 1  # NFTA_DATA_VERDICT, NFTA_VERDICT_CODE
_REGISTER, _MARK = 1, 3  # NFT_REG_1, NFT_META_MARK


@dataclass(frozen=True, slots=True)
class Netfilter:
    """What looks at tables, and what changes them."""

    looking: Looking
    elements: Elements


def find_place(jumps: Sequence[str]) -> int | None:
    """Return how many rules of FORWARD come before ours, given where each of them jumps.

    None for behind all of them: there is no jump to the operators' chain.
    """
    return jumps.index(OPERATORS) + 1 if OPERATORS in jumps else None


def is_placed(jumps: Sequence[str], ours: int) -> bool:
    """Return whether our rule, by its number, is behind the operators' chain and before others'.

    Only chains of Docker's own may be in between.
    """
    place = find_place(jumps)
    if place is None:
        return ours == len(jumps) - 1
    return place <= ours and all(each.startswith(DOCKERS) for each in jumps[place:ours])


def ensure_forward_accept(netfilter: Netfilter, mark: int) -> None:
    """Put the rule where it belongs, once, for both families; for one, if the other refuses it.

    A host that boots may have no such chain yet: it is made as iptables makes it.
    """
    if _has_old_filter():
        log.warning(
            "this host has rules of the older iptables (iptables-legacy -S): if Docker's are among "
            "them, containers do not reach each other, and pynet has to run as a service instead"
        )
    attempt_all([partial(_ensure_accept, netfilter, family, mark) for family in _families()])


def _ensure_accept(netfilter: Netfilter, family: int, mark: int) -> None:
    with Rollback() as undo:
        if not _is_in_place(netfilter, family, mark):
            if _find_chain(netfilter, family) is None:
                netfilter.elements.make([*_make_chain(family, "ACCEPT")])
            _delete_from(netfilter, family, FORWARD, mark)
            rules = _rules(netfilter, family, FORWARD)
            place = find_place(_jumps(rules.values()))
            behind = None if place is None else tuple(rules)[place - 1]
            netfilter.elements.make([_make_rule(family, mark, behind)])
            undo.push(_delete_from, netfilter, family, FORWARD, mark)
        _delete_from(netfilter, family, OPERATORS, mark)  # where pynet once had it


def has_forward_accept(netfilter: Netfilter, mark: int) -> bool:
    """Return whether the rule is where it belongs, for both families."""
    return all(_is_in_place(netfilter, family, mark) for family in _families())


def delete_forward_accept(netfilter: Netfilter, mark: int) -> None:
    """Delete the rule, however often it is there, from every chain that may hold it."""
    attempt_all(
        [
            partial(_delete_from, netfilter, family, chain, mark)
            for family in _families()
            for chain in (FORWARD, OPERATORS)
        ]
    )


def set_forward_policy(netfilter: Netfilter, version: int, policy: str) -> None:
    """Set the policy of FORWARD for an address family, ACCEPT or DROP.

    The chain is made if there is none, as the iptables command makes it.
    """
    netfilter.elements.make([*_make_chain(_FAMILIES[version], policy)])


def forward_policy(netfilter: Netfilter, version: int) -> str | None:
    """Return the policy of FORWARD for an address family, ACCEPT or DROP; None if that is unknown.

    Without the chain nothing is dropped here, but the older iptables may have one.
    """
    chain = _find_chain(netfilter, _FAMILIES[version])
    return None if chain is None or _POLICY not in chain else _POLICIES[_number(chain[_POLICY])]


def delete_bare_tables(netfilter: Netfilter) -> None:
    """Delete Docker's tables if they hold what the rule needed to stand in, and nothing else.

    An empty FORWARD chain that accepts is as good as none, to the kernel and to the iptables
    command, which makes it when it needs it. It is left by either way of adding the rule.
    """
    for family in _families():
        if _is_bare(netfilter, family):
            body = HEAD.pack(family, 0, 0) + encode_text(_TABLE, _NAME)
            netfilter.elements.make([Making(DELETE_TABLE, 0, body, f"delete table {_NAME}")])


def _is_bare(netfilter: Netfilter, family: int) -> bool:
    """Return whether a table holds the chain FORWARD alone, without rules, with policy accept."""
    chain = _find_chain(netfilter, family)
    if chain is None or _number(chain.get(_CHAIN_USE)) or _number(chain.get(_POLICY)) == 0:
        return False
    with netfilter.looking.open() as connection:
        for body in connection.dump(TABLE.get, HEAD.pack(family, 0, 0)):
            table = parse_attributes(body, HEAD.size)
            if body[0] == family and parse_text(table[_TABLE]) == _NAME:
                return _number(table.get(_TABLE_USE)) == 1
    return False


def _has_old_filter() -> bool:
    """Return whether the older iptables has the table that Docker's rules would be in."""
    return OLD_TABLES.is_file() and "filter" in OLD_TABLES.read_text().split()


def _families() -> Iterator[int]:
    yield _FAMILIES[4]
    if sysctl.has_ipv6():
        yield _FAMILIES[6]


def _find_chain(netfilter: Netfilter, family: int) -> dict[int, bytes] | None:
    """Return what the kernel says of FORWARD, None if there is none."""
    with netfilter.looking.open() as connection:
        for body in connection.dump(CHAIN.get, HEAD.pack(family, 0, 0)):
            found = parse_attributes(body, HEAD.size)
            is_there = parse_text(found[_TABLE]), parse_text(found[_CHAIN_NAME])
            if body[0] == family and is_there == (_NAME, FORWARD):
                return found
    return None


def _is_in_place(netfilter: Netfilter, family: int, mark: int) -> bool:
    rules = tuple(_rules(netfilter, family, FORWARD).values())
    ours = [number for number, rule in enumerate(rules) if _is_ours(rule, mark)]
    return len(ours) == 1 and is_placed(_jumps(rules), ours[0])


def _rules(netfilter: Netfilter, family: int, chain: str) -> dict[int, Rule]:
    """Return the rules of a chain by their handles, none if there is no such chain."""
    with netfilter.looking.open() as connection:
        try:
            return Reader(connection).read_rules(family, _NAME, chain)
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return {}
            raise


def _delete_from(netfilter: Netfilter, family: int, chain: str, mark: int) -> None:
    for handle, rule in _rules(netfilter, family, chain).items():
        if _is_ours(rule, mark):
            body = _in_chain(family, chain) + encode_attribute(_HANDLE, handle.to_bytes(8, "big"))
            netfilter.elements.make([Making(_DELETE_RULE, 0, body, f"delete rule of {chain}")])


def _is_ours(rule: Rule, mark: int) -> bool:
    """Return whether a rule is the one that accepts the mark."""
    bits = mark.to_bytes(4, sys.byteorder)
    looks = any(isinstance(step, Mask) and step.mask == bits for step in rule)
    return looks and rule[-1] == Verdict(Fate.ACCEPT)


def _jumps(rules: Iterable[Rule]) -> list[str]:
    """Return where each rule sends every packet, empty for one that looks at the packet first."""
    return [
        rule[0].chain if len(rule) == 1 and isinstance(rule[0], Verdict) else "" for rule in rules
    ]


def _make_chain(family: int, policy: str) -> Iterator[Making]:
    """Yield the messages that make FORWARD with a policy, or give it that."""
    table = HEAD.pack(family, 0, 0) + encode_text(_TABLE, _NAME)
    yield Making(TABLE.new, TABLE.flags, table, f"add table {_NAME}")
    hook = encode_attribute(_HOOK_NUMBER, _big(_FORWARD_HOOK))
    hook += encode_attribute(_PRIORITY, bytes(4))
    body = table + encode_text(_CHAIN_NAME, FORWARD) + encode_attribute(_HOOK | NESTED, hook)
    body += encode_attribute(_POLICY, _big(_POLICIES.index(policy)))
    body += encode_text(_TYPE, "filter")
    yield Making(CHAIN.new, CHAIN.flags, body, f"add chain {_NAME} {FORWARD}")


def _make_rule(family: int, mark: int, behind: int | None) -> Making:
    """Return the message that adds the rule, behind the one with a handle or behind all.

    In nft's words, meta mark & MARK == MARK counter accept.
    """
    bits, none = (_value(each.to_bytes(4, sys.byteorder)) for each in (mark, 0))
    register, zero = _big(_REGISTER), _big(0)
    accept = encode_attribute(_VERDICT | NESTED, encode_attribute(_CODE, _big(1)))
    expressions = (
        _expression("meta", {1: register, 2: _big(_MARK)}),  # NFTA_META_DREG, _KEY
        _expression(  # NFTA_BITWISE_SREG, _DREG, _LEN, _MASK, _XOR
            "bitwise", {1: register, 2: register, 3: _big(4), NESTED | 4: bits, NESTED | 5: none}
        ),
        _expression("cmp", {1: register, 2: zero, NESTED | 3: bits}),  # NFTA_CMP_SREG, _OP, _DATA
        _expression("counter", {}),
        _expression("immediate", {1: zero, NESTED | 2: accept}),  # NFTA_IMMEDIATE_DREG, _DATA
    )
    listed = b"".join(encode_attribute(_ITEM | NESTED, each) for each in expressions)
    body = _in_chain(family, FORWARD) + encode_attribute(_EXPRESSIONS | NESTED, listed)
    if behind is not None:
        body += encode_attribute(_POSITION, behind.to_bytes(8, "big"))
    said = COMMENT.encode() + b"\0"
    body += encode_attribute(_USER_DATA, bytes([0, len(said)]) + said)
    return Making(RULE.new, RULE.flags, body, f"add rule to {_NAME} {FORWARD}")


def _expression(name: str, attributes: Mapping[int, bytes]) -> bytes:
    data = b"".join(encode_attribute(kind, value) for kind, value in attributes.items())
    return encode_text(_EXPRESSION, name) + encode_attribute(_DATA | NESTED, data)


def _value(value: bytes) -> bytes:
    return encode_attribute(_VALUE, value)


def _in_chain(family: int, chain: str) -> bytes:
    where = encode_text(_TABLE, _NAME) + encode_text(_RULE_CHAIN, chain)
    return HEAD.pack(family, 0, 0) + where


def _big(number: int) -> bytes:
    return number.to_bytes(4, "big")


def _number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "big")
