"""Keep pynet's rule in the chain FORWARD where there is no iptables command, by nft; nothing else.

Where it belongs is said here for both ways (`driver.kernel.iptables`). For the managed plugin,
whose image holds no programs. The tables `ip filter` and `ip6 filter` are those that Docker and the
iptables command of nftables work on; iptables shows the rule as its own. Rules of the older
iptables, which nftables does not see, are out of reach.
"""

from __future__ import annotations

import logging
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from driver.kernel import sysctl
from driver.undo import Rollback, attempt_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from driver.kernel.nft import Nft

OLD_TABLES = Path("/proc/net/ip_tables_names")  # of the older iptables, in this network namespace
FORWARD, OPERATORS = "FORWARD", "DOCKER-USER"
DOCKERS = "DOCKER"  # what Docker's own chains begin with; it puts its jumps at the head
log = logging.getLogger(__name__)

_TABLE = {4: "ip filter", 6: "ip6 filter"}
_HANDLE = re.compile(r"# handle (\d+)$")
_JUMP = re.compile(r"(?:counter packets \d+ bytes \d+ )?jump (\S+) # handle \d+")
_POLICY = re.compile(r"hook forward .*policy (\w+);")


def find_place(jumps: Sequence[str]) -> int | None:
    """Return how many rules of FORWARD come before ours, given where each of them jumps.

    None for behind all of them: there is no jump to the operators' chain.
    """
    return jumps.index(OPERATORS) + 1 if OPERATORS in jumps else None


def is_placed(jumps: Sequence[str], ours: int) -> bool:
    """Tell whether our rule, by its number, is behind the operators' chain and before others'.

    Only chains of Docker's own may be in between.
    """
    place = find_place(jumps)
    if place is None:
        return ours == len(jumps) - 1
    return place <= ours and all(each.startswith(DOCKERS) for each in jumps[place:ours])


def ensure_forward_accept(nft: Nft, mark: int) -> None:
    """Put the rule where it belongs, once, for both families; for one, if the other refuses it.

    A host that boots may have no such chain yet: it is made as iptables makes it.
    """
    if _has_old_filter():
        log.warning(
            "this host has rules of the older iptables (iptables-legacy -S): if Docker's are among "
            "them, containers do not reach each other, and pynet has to run as a service instead"
        )
    attempt_all([partial(_ensure_accept, nft, table, mark) for table in _tables()])


def _ensure_accept(nft: Nft, table: str, mark: int) -> None:
    with Rollback() as undo:
        if not _is_in_place(nft, table, mark):
            if nft.list_chain(table, FORWARD) is None:
                hook = "type filter hook forward priority 0; policy accept;"
                nft.run(f"add table {table}\nadd chain {table} {FORWARD} {{ {hook} }}\n")
            _delete_from(nft, table, FORWARD, mark)
            rules = _rules(nft, table, FORWARD)
            place = find_place(_jumps(rules))
            behind = "" if place is None else f"position {_handle(rules[place - 1])} "
            rule = f'meta mark & {mark:#x} == {mark:#x} counter accept comment "pynet"'
            nft.run(f"add rule {table} {FORWARD} {behind}{rule}\n")
            undo.push(_delete_from, nft, table, FORWARD, mark)
        _delete_from(nft, table, OPERATORS, mark)  # where pynet once had it


def has_forward_accept(nft: Nft, mark: int) -> bool:
    """Tell whether the rule is where it belongs, for both families."""
    return all(_is_in_place(nft, table, mark) for table in _tables())


def delete_forward_accept(nft: Nft, mark: int) -> None:
    """Delete the rule, however often it is there, from every chain that may hold it."""
    attempt_all(
        [
            partial(_delete_from, nft, table, chain, mark)
            for table in _tables()
            for chain in (FORWARD, OPERATORS)
        ]
    )


def set_forward_policy(nft: Nft, version: int, policy: str) -> None:
    """Set the policy of FORWARD for an address family, ACCEPT or DROP.

    The chain is made if there is none, as the iptables command makes it.
    """
    table = _TABLE[version]
    hook = f"type filter hook forward priority 0; policy {policy.lower()};"
    nft.run(f"add table {table}\nadd chain {table} {FORWARD} {{ {hook} }}\n")


def _delete_from(nft: Nft, table: str, chain: str, mark: int) -> None:
    for rule in _rules(nft, table, chain):
        if _is_ours(rule, mark):
            nft.run(f"delete rule {table} {chain} handle {_handle(rule)}\n")


def delete_bare_tables(nft: Nft) -> None:
    """Delete Docker's tables if they hold what the rule needed to stand in, and nothing else.

    An empty FORWARD chain that accepts is as good as none, to the kernel and to the iptables
    command, which makes it when it needs it. It is left by either way of adding the rule.
    """
    for table in _tables():
        if _is_bare(nft.show_table(table)):
            nft.run(f"delete table {table}\n")


def _is_bare(shown: bytes | None) -> bool:
    """Tell whether a table holds one chain, FORWARD, without a rule and with the policy accept."""
    if shown is None:
        return False
    _, *entries = msgspec.json.decode(shown)["nftables"]  # the first says which nft this is
    if [kind for entry in entries for kind in entry] != ["table", "chain"]:
        return False
    chain = entries[1]["chain"]
    return bool(chain["name"] == FORWARD and chain.get("policy") == "accept")


def _has_old_filter() -> bool:
    """Tell whether the older iptables has the table that Docker's rules would be in."""
    return OLD_TABLES.is_file() and "filter" in OLD_TABLES.read_text().split()


def _tables() -> Iterator[str]:
    yield _TABLE[4]
    if sysctl.has_ipv6():
        yield _TABLE[6]


def _is_in_place(nft: Nft, table: str, mark: int) -> bool:
    rules = _rules(nft, table, FORWARD)
    ours = [number for number, rule in enumerate(rules) if _is_ours(rule, mark)]
    return len(ours) == 1 and is_placed(_jumps(rules), ours[0])


def _rules(nft: Nft, table: str, chain: str) -> list[str]:
    """Return the rules of a chain as nft shows them, none if there is no such chain."""
    lines = (line.strip() for line in (nft.list_chain(table, chain) or "").splitlines())
    return [line for line in lines if _HANDLE.search(line) and not line.startswith("chain ")]


def _is_ours(rule: str, mark: int) -> bool:
    """Tell whether a rule is the one that accepts the mark."""
    return f"{mark:#x}" in rule and " accept" in rule


def _handle(rule: str) -> str:
    found = _HANDLE.search(rule)
    return found[1] if found else ""


def _jumps(rules: Iterable[str]) -> list[str]:
    """Return where each rule sends every packet, empty for one that looks at the packet first."""
    return [found[1] if (found := _JUMP.fullmatch(rule)) else "" for rule in rules]


def forward_policy(nft: Nft, version: int) -> str | None:
    """Return the policy of FORWARD for an address family, ACCEPT or DROP; None if nobody can tell.

    Without the chain nothing is dropped here, but the older iptables may have one.
    """
    policy = _POLICY.search(nft.list_chain(_TABLE[version], FORWARD) or "")
    return policy[1].upper() if policy else None
