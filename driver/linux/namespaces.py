"""Find the network namespaces of this machine: of processes, of mounts, of nobody."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOUNTED = re.compile(r"net:\[(\d+)\]")
_ESCAPED = re.compile(r"\\(\d{3})")  # a blank and the like in mountinfo, proc_pid_mountinfo(5)


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace: its inode, where it is mounted, and the processes that are in it.

    `path` is one by which it can be entered. One that only a descriptor or a bind mount elsewhere
    keeps alive is not found.
    """

    inode: int
    path: str
    mounts: tuple[str, ...]
    processes: tuple[int, ...]


def find_namespaces() -> list[Namespace]:
    """Return the network namespaces that a process is in or that are mounted, by inode."""
    processes: dict[int, list[int]] = {}
    for inode, pid in _of_processes():
        processes.setdefault(inode, []).append(pid)
    mounts: dict[int, list[str]] = {}
    for inode, path in _of_mounts():
        mounts.setdefault(inode, []).append(path)
    found = []
    for inode in sorted(processes.keys() | mounts.keys()):
        places, pids = mounts.get(inode, []), sorted(processes.get(inode, []))
        path = places[0] if places else f"/proc/{pids[0]}/ns/net"
        found.append(Namespace(inode, path, tuple(places), tuple(pids)))
    return found


def name_of(pid: int) -> str:
    """Return what a process is called, "" if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _of_processes() -> Iterator[tuple[int, int]]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended meanwhile
                match = _MOUNTED.fullmatch(os.readlink(f"{entry.path}/ns/net"))  # noqa: PTH115
                if match:
                    yield int(match[1]), int(entry.name)


def _of_mounts() -> Iterator[tuple[int, str]]:
    """Yield what is mounted of nsfs, once each: the fourth word of a line is the namespace."""
    seen = set()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        match = _MOUNTED.fullmatch(words[3])
        if match and words[4] not in seen:
            seen.add(words[4])
            path = _ESCAPED.sub(lambda each: chr(int(each[1], 8)), words[4])
            yield int(match[1]), path
