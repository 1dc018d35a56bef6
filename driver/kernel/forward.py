"""Keep pynet's rule in Docker's chain where there is no iptables command, by nft; nothing else.

For the managed plugin, whose image holds no programs. The tables `ip filter` and `ip6 filter` are
those that Docker and the iptables command of nftables work on; iptables shows the rule as its own.
Rules of the older iptables, which nftables does not see, are out of reach.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from driver.kernel import sysctl
from driver.undo import Rollback

if TYPE_CHECKING:
    from collections.abc import Iterator

    from driver.kernel.nft import Nft

OLD_TABLES = Path("/proc/net/ip_tables_names")  # of the older iptables, in this network namespace
CHAINS = ("DOCKER-USER", "FORWARD")
log = logging.getLogger(__name__)

_TABLE = {4: "ip filter", 6: "ip6 filter"}
_HANDLE = re.compile(r"# handle (\d+)$")
_POLICY = re.compile(r"hook forward .*policy (\w+);")


def ensure_forward_accept(nft: Nft, mark: int) -> None:
    """Insert the rule at the head of Docker's chain, for both families, unless it is there.

    A host that boots has no such chain yet: then into FORWARD, made as iptables makes it.
    """
    if _has_old_filter():
        log.warning(
            "this host has rules of the older iptables (iptables-legacy -S): if Docker's are among "
            "them, containers do not reach each other, and pynet has to run as a service instead"
        )
    with Rollback() as undo:
        for table in _tables():
            chain = next((each for each in CHAINS if nft.list_chain(table, each) is not None), None)
            if chain is None:
                chain = CHAINS[-1]
                hook = "type filter hook forward priority 0; policy accept;"
                nft.run(f"add table {table}\nadd chain {table} {chain} {{ {hook} }}\n")
            if not list(_handles(nft, table, chain, mark)):
                rule = f'meta mark & {mark:#x} == {mark:#x} counter accept comment "pynet"'
                nft.run(f"insert rule {table} {chain} {rule}\n")
                undo.push(_delete_from, nft, table, chain, mark)


def has_forward_accept(nft: Nft, mark: int) -> bool:
    """Tell whether the rule is in one of the chains, for both families."""
    return all(
        any(True for chain in CHAINS for _ in _handles(nft, table, chain, mark))
        for table in _tables()
    )


def delete_forward_accept(nft: Nft, mark: int) -> None:
    """Delete the rule, however often it is there, from every chain that may hold it."""
    for table in _tables():
        for chain in CHAINS:
            _delete_from(nft, table, chain, mark)


def set_forward_policy(nft: Nft, version: int, policy: str) -> None:
    """Set the policy of FORWARD for an address family, ACCEPT or DROP.

    The chain is made if there is none, as the iptables command makes it.
    """
    table = _TABLE[version]
    hook = f"type filter hook forward priority 0; policy {policy.lower()};"
    nft.run(f"add table {table}\nadd chain {table} {CHAINS[1]} {{ {hook} }}\n")


def _delete_from(nft: Nft, table: str, chain: str, mark: int) -> None:
    for handle in _handles(nft, table, chain, mark):
        nft.run(f"delete rule {table} {chain} handle {handle}\n")


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
    return bool(chain["name"] == CHAINS[-1] and chain.get("policy") == "accept")


def _has_old_filter() -> bool:
    """Tell whether the older iptables has the table that Docker's rules would be in."""
    return OLD_TABLES.is_file() and "filter" in OLD_TABLES.read_text().split()


def _tables() -> Iterator[str]:
    yield _TABLE[4]
    if sysctl.has_ipv6():
        yield _TABLE[6]


def _handles(nft: Nft, table: str, chain: str, mark: int) -> Iterator[str]:
    """Yield the handles of the rules that accept the mark."""
    for line in (nft.list_chain(table, chain) or "").splitlines():
        handle = _HANDLE.search(line)
        if handle and f"{mark:#x}" in line and " accept" in line:
            yield handle[1]


def forward_policy(nft: Nft, version: int) -> str | None:
    """Return the policy of FORWARD for an address family, ACCEPT or DROP; None if nobody can tell.

    Without the chain nothing is dropped here, but the older iptables may have one.
    """
    policy = _POLICY.search(nft.list_chain(_TABLE[version], CHAINS[1]) or "")
    return policy[1].upper() if policy else None
