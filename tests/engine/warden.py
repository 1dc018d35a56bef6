"""Keep an engine's host for as long as its owner lives, and leave nothing when the owner goes.

Run as a program of its own, outside the host's namespaces: what survives those (the folder on
disk, the cgroups) must go even when the owner was killed. The owner holds the other end of
standard input. Each line it writes boots the host, anew if it runs; the answer is a line with the
pid of its init. The end of input, which comes even if the owner is killed, ends everything.

Imports only the standard library, so that it starts at once.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

UNSHARE = ("unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--propagation", "private")
SCRIPT = Path(__file__).with_name("host.sh")


def main(lower: str, folder: str, cgroup: str, script: str = str(SCRIPT)) -> None:
    """Serve the owner until it goes; the script is what makes the host."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # What stops the owner must not stop its clean-up. A handler rather than SIG_IGN, which
        # the host's processes would inherit.
        signal.signal(number, lambda *_: None)
    host = None
    try:
        for _ in sys.stdin:
            if host:
                halt(host, cgroup)
            host = boot(lower, folder, script)
    finally:
        if host:
            halt(host, cgroup)
        shutil.rmtree(folder)


def boot(lower: str, folder: str, script: str) -> subprocess.Popen[str]:
    """Start a host and tell the owner the pid of its init."""
    host = subprocess.Popen(
        [*UNSHARE, "sh", script, lower, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert host.stdout is not None
    ready = host.stdout.readline()
    if not ready:
        raise subprocess.CalledProcessError(host.wait(), host.args)
    print(ready, end="", flush=True)
    return host


def halt(host: subprocess.Popen[str], cgroup: str) -> None:
    """End the host at once, as when its power fails."""
    host.communicate()  # closes standard input, then waits; init is gone only when all others are
    for mount in cgroup_mounts():
        remove_cgroup(mount / cgroup)
    if host.returncode:
        raise subprocess.CalledProcessError(host.returncode, host.args)


def cgroup_mounts() -> list[Path]:
    """List where the hierarchies are: one in version 2, several in version 1."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(where) for _, where, kind, *_ in mounts if kind in ("cgroup", "cgroup2")]


def remove_cgroup(group: Path) -> None:
    """Remove a group and those below it. Its files are no files: only rmdir works."""
    if group.is_dir():
        for child in group.iterdir():
            if child.is_dir():
                remove_cgroup(child)
        group.rmdir()


if __name__ == "__main__":
    main(*sys.argv[1:])
