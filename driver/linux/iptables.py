"""Keep pynet's rule in the iptables chain FORWARD by the iptables command.

One rule a family, whatever the number of networks: accept what carries pynet's mark. It stands
behind the jump to `DOCKER-USER`, so that what operators write there is the last word, and nothing
of ours is where others flush and rewrite. Without such a jump it is the last rule of the chain,
behind whatever operators have in it.
"""

from __future__ import annotations

import shutil
import subprocess
from functools import partial
from typing import TYPE_CHECKING

from driver.errors import KernelError
from driver.linux import sysctl
from driver.linux.forward import FORWARD, OPERATORS, find_place, is_placed
from driver.undo import Rollback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

COMMANDS = ("iptables", "ip6tables")
_COMMAND = dict(zip((4, 6), COMMANDS, strict=True))
LOCK_SECONDS = 1  # how long to wait for the xtables lock, under that of the driver
_TIMEOUT_SECONDS = 4
# iptables(8): the rule or the chain is not there; the kernel has no such table. Any other code is
# an error: 2 of the command line, 4 of the kernel or of the lock, which another process has.
_ABSENT = (1, 3)


def is_installed() -> bool:
    """Return whether there is an iptables command; `driver.linux.forward` does without."""
    return shutil.which(COMMANDS[0]) is not None


def has_command(version: int) -> bool:
    """Return whether there is an iptables command for an address family that the kernel has."""
    return is_installed() and any(path.endswith(f"/{_COMMAND[version]}") for path in _usable())


def ensure_forward_accept(mark: int) -> None:
    """Put the rule where it belongs, once, for both families; for one, if the other refuses it."""
    _attempt_each([partial(_ensure_accept, command, mark) for command in _usable()])


def _ensure_accept(command: str, mark: int) -> None:
    with Rollback() as undo:
        rules = _list_rules(command, FORWARD)
        if not _is_in_place(rules, mark):
            _delete(command, FORWARD, mark)
            place = find_place(_jumps(_list_rules(command, FORWARD)))
            where = ("-A", FORWARD) if place is None else ("-I", FORWARD, str(place + 1))
            _run(command, *where, *_rule(mark))
            undo.push(_delete, command, FORWARD, mark)
        _delete(command, OPERATORS, mark)  # where pynet once had it


def has_forward_accept(mark: int) -> bool:
    """Return whether the rule is where it belongs, for both families."""
    return all(_is_in_place(_list_rules(command, FORWARD), mark) for command in _usable())


def delete_forward_accept(mark: int) -> None:
    """Delete the rule, however often it is there, from every chain that may hold it."""
    _attempt_each(
        [
            partial(_delete, command, chain, mark)
            for command in _usable()
            for chain in (FORWARD, OPERATORS)
        ]
    )


class _LockedError(KernelError):
    """Another process holds the lock that all these commands share."""


def _attempt_each(steps: Sequence[Callable[[], object]]) -> None:
    """Run every step, whatever becomes of the others, then raise the first failure.

    Not if another process holds the lock: each would wait for it, under the driver's.
    """
    failures: list[KernelError] = []
    for step in steps:
        try:
            step()
        except _LockedError:
            raise
        except KernelError as failure:
            failures.append(failure)
    if failures:
        raise failures[0]


def set_forward_policy(version: int, policy: str) -> None:
    """Set the policy of FORWARD for an address family, ACCEPT or DROP."""
    _run(_COMMAND[version], "-P", FORWARD, policy)


def _is_in_place(rules: Sequence[str], mark: int) -> bool:
    ours = [number for number, rule in enumerate(rules) if _is_ours(rule, mark)]
    return len(ours) == 1 and is_placed(_jumps(rules), ours[0])


def _is_ours(rule: str, mark: int) -> bool:
    """Return whether a rule, as `iptables -S` shows it, is the one that accepts the mark."""
    return f"--mark {mark:#x}/{mark:#x}" in rule and rule.endswith("-j ACCEPT")


def _jumps(rules: Iterable[str]) -> list[str]:
    """Return where each rule sends every packet, empty for one that looks at the packet first."""
    return [words[3] if (words := rule.split())[2:3] == ["-j"] else "" for rule in rules]


def _list_rules(command: str, chain: str) -> list[str]:
    """Return the rules of a chain, none if there is no such chain.

    Raises KernelError if it cannot be read.
    """
    return [line for line in _list(command, chain).splitlines() if line.startswith("-A ")]


def _list(command: str, chain: str) -> str:
    """Return a chain as `iptables -S` shows it, empty if there is no such chain or table."""
    result = _execute(command, "-S", chain)
    if result.returncode not in {0, *_ABSENT}:
        raise _failure(command, ("-S", chain), result)
    return result.stdout


def _delete(command: str, chain: str, mark: int) -> None:
    """Delete our rule from a chain, however often it is there."""
    for rule in _list_rules(command, chain):
        if _is_ours(rule, mark):
            _run(command, "-D", chain, *_rule(mark))


def _rule(mark: int) -> tuple[str, ...]:
    match = ("-m", "mark", "--mark", f"{mark:#x}/{mark:#x}")
    return (*match, "-m", "comment", "--comment", "pynet", "-j", "ACCEPT")


def _usable() -> Iterator[str]:
    """Yield the commands that are installed, ip6tables only where the kernel has IPv6."""
    for command in COMMANDS:
        path = shutil.which(command)
        if path is not None and (command != "ip6tables" or sysctl.has_ipv6()):
            yield path


def _run(command: str, *arguments: str) -> None:
    result = _execute(command, *arguments)
    if result.returncode != 0:
        raise _failure(command, arguments, result)


def _failure(
    command: str, arguments: tuple[str, ...], result: subprocess.CompletedProcess[str]
) -> KernelError:
    kind = _LockedError if "xtables lock" in result.stderr else KernelError
    return kind(f"run {command} {' '.join(arguments)}: {result.stderr.strip()}")


def _execute(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [command, "-w", str(LOCK_SECONDS), *arguments]
    try:
        return subprocess.run(
            line, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"run {' '.join(line)}: no answer in {_TIMEOUT_SECONDS} s") from error


def forward_policy(version: int) -> str | None:
    """Return the policy of FORWARD for an address family, ACCEPT or DROP; None if that is unknown.

    To look makes no table of nftables. Raises KernelError if the command fails for another reason.
    """
    if not has_command(version):
        return None
    words = _list(_COMMAND[version], FORWARD).split("\n", 1)[0].split()
    return words[2] if words[:2] == ["-P", FORWARD] else None
