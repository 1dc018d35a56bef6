"""Keep pynet's few rules in the iptables chains that Docker leaves to others; nothing else.

One rule a family, whatever the number of networks: accept what carries pynet's mark. It stands in
`DOCKER-USER`, which Docker never flushes, or in `FORWARD` while there is no such chain.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from driver.errors import KernelError
from driver.kernel import sysctl
from driver.undo import Rollback

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS = ("iptables", "ip6tables")
_COMMAND = dict(zip((4, 6), COMMANDS, strict=True))
CHAINS = ("DOCKER-USER", "FORWARD")
LOCK_SECONDS = 1  # how long to wait for the xtables lock, under that of the driver
_TIMEOUT_SECONDS = 4
# iptables(8): the rule or the chain is not there; the kernel has no such table. Any other code is
# an error: 2 of the command line, 4 of the kernel or of the lock, which somebody else has.
_ABSENT = (1, 3)


def is_installed() -> bool:
    """Tell whether there is an iptables command; `driver.kernel.forward` does without."""
    return shutil.which(COMMANDS[0]) is not None


def has_command(version: int) -> bool:
    """Tell whether there is an iptables command for an address family that the kernel has."""
    return is_installed() and any(path.endswith(f"/{_COMMAND[version]}") for path in _usable())


def ensure_forward_accept(mark: int) -> None:
    """Insert the rule at the head of Docker's chain, for both families, unless it is there."""
    with Rollback() as undo:
        for command in _usable():
            chain = CHAINS[0] if _succeeds(command, "-S", CHAINS[0]) else CHAINS[1]
            if not _succeeds(command, "-C", chain, *_rule(mark)):
                _run(command, "-I", chain, *_rule(mark))
                undo.push(_run, command, "-D", chain, *_rule(mark))


def has_forward_accept(mark: int) -> bool:
    """Tell whether the rule is in one of the chains, for both families."""
    return all(
        any(_succeeds(command, "-C", chain, *_rule(mark)) for chain in CHAINS)
        for command in _usable()
    )


def delete_forward_accept(mark: int) -> None:
    """Delete the rule, however often it is there, from every chain that may hold it."""
    for command in _usable():
        for chain in CHAINS:
            while _succeeds(command, "-C", chain, *_rule(mark)):
                _run(command, "-D", chain, *_rule(mark))


def set_forward_policy(version: int, policy: str) -> None:
    """Set the policy of FORWARD for an address family, ACCEPT or DROP."""
    _run(_COMMAND[version], "-P", CHAINS[1], policy)


def _rule(mark: int) -> tuple[str, ...]:
    match = ("-m", "mark", "--mark", f"{mark:#x}/{mark:#x}")
    return (*match, "-m", "comment", "--comment", "pynet", "-j", "ACCEPT")


def _usable() -> Iterator[str]:
    """Yield the commands that are installed, ip6tables only where the kernel has IPv6."""
    for command in COMMANDS:
        path = shutil.which(command)
        if path is not None and (command != "ip6tables" or sysctl.has_ipv6()):
            yield path


def _succeeds(command: str, *arguments: str) -> bool:
    """Tell whether what the command looks for is there; raises KernelError if it cannot tell."""
    result = _execute(command, *arguments)
    if result.returncode not in {0, *_ABSENT}:
        raise _failure(command, arguments, result)
    return result.returncode == 0


def _run(command: str, *arguments: str) -> None:
    result = _execute(command, *arguments)
    if result.returncode != 0:
        raise _failure(command, arguments, result)


def _failure(
    command: str, arguments: tuple[str, ...], result: subprocess.CompletedProcess[str]
) -> KernelError:
    return KernelError(f"run {command} {' '.join(arguments)}: {result.stderr.strip()}")


def _execute(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [command, "-w", str(LOCK_SECONDS), *arguments]
    try:
        return subprocess.run(
            line, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"run {' '.join(line)}: no answer in {_TIMEOUT_SECONDS} s") from error


def forward_policy(version: int) -> str | None:
    """Return the policy of FORWARD for an address family, ACCEPT or DROP; None if nobody can tell.

    To look makes no table of nftables. Raises KernelError if the command fails for another reason.
    """
    if not has_command(version):
        return None
    arguments = ("-S", CHAINS[1])
    result = _execute(_COMMAND[version], *arguments)
    if result.returncode not in {0, *_ABSENT}:
        raise _failure(_COMMAND[version], arguments, result)
    words = result.stdout.split("\n", 1)[0].split()
    return words[2] if result.returncode == 0 and words[:2] == ["-P", CHAINS[1]] else None
