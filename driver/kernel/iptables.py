"""Keep pynet's few rules in the iptables chains that Docker leaves to others; nothing else.

One rule a family, whatever the number of networks: accept what carries pynet's mark. It stands in
`DOCKER-USER`, which Docker never flushes, or in `FORWARD` while there is no such chain.
"""

from __future__ import annotations

import re
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
_POLICY = re.compile(r"-P FORWARD (\w+)")
CHAINS = ("DOCKER-USER", "FORWARD")
LOCK_SECONDS = 2  # how long to wait for the xtables lock; every request is answered in 5 s
_TIMEOUT_SECONDS = 4


def is_installed() -> bool:
    """Tell whether there is an iptables command; `driver.kernel.forward` does without."""
    return shutil.which(COMMANDS[0]) is not None


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


def set_forward_policy(version: int, policy: str) -> str | None:
    """Set the policy of FORWARD in an address family, ACCEPT or DROP; return what it was.

    None if there is no command for the family: then nothing is done.
    """
    path = shutil.which(_COMMAND[version])
    if path is None:
        return None
    before = _POLICY.match(_run(path, "-S", "FORWARD"))
    _run(path, "-P", "FORWARD", policy)
    return before[1] if before else "ACCEPT"


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
    return _execute(command, *arguments).returncode == 0


def _run(command: str, *arguments: str) -> str:
    result = _execute(command, *arguments)
    if result.returncode != 0:
        raise KernelError(f"run {command} {' '.join(arguments)}: {result.stderr.strip()}")
    return result.stdout


def _execute(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [command, "-w", str(LOCK_SECONDS), *arguments]
    try:
        return subprocess.run(
            line, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"run {' '.join(line)}: no answer in {_TIMEOUT_SECONDS} s") from error
