"""Run commands inside an engine's namespaces; knows namespaces and nothing of Docker."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import IO


class CommandError(subprocess.CalledProcessError):
    """A command that failed, with what it said."""

    def __str__(self) -> str:
        return "\n".join((super().__str__(), *filter(None, (self.stdout, self.stderr))))


class Command(subprocess.Popen[str]):
    """A command in the namespaces of a host.

    What we start is nsenter, which forks to enter a PID namespace and waits. So signals are sent
    to its child, the command itself, and nsenter then ends with the same status. They are a process
    group of their own, with everything that the command starts unless that leaves it.
    """

    def __init__(
        self,
        init_pid: int,
        argv: Sequence[str],
        *,
        net: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> None:
        self.argv = list(argv)
        self._pid_space = Path(f"/proc/{init_pid}/ns/pid").readlink()
        net = net or Path(f"/proc/{init_pid}/ns/net")
        # --root matters when we are in a chroot: the namespace's own root is another one then.
        spaces = [f"--target={init_pid}", "--mount", "--root", "--uts", "--pid", f"--net={net}"]
        super().__init__(
            ["nsenter", *spaces, "--", *argv],
            env={**os.environ, **(env or {})},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )

    @property
    def main_pid(self) -> int:
        """Return the pid of the command itself, as the machine sees it."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return int(wait_until(children.read_text, 5, f"start {self.argv}").split()[0])

    @property
    def pids(self) -> list[int]:
        """List the command and all it started that is alive."""
        return [pid for pid in _processes() if self._started(pid)]

    def _started(self, pid: int) -> bool:
        """Tell whether a process is of our group, and of our host lest its number was reused."""
        try:
            return (
                os.getpgid(pid) == self.pid
                and Path(f"/proc/{pid}/ns/pid").readlink() == self._pid_space
            )
        except (FileNotFoundError, ProcessLookupError):
            return False  # it ended meanwhile

    def send_signal(self, sig: int) -> None:
        """Send a signal to the command alone."""
        if self.poll() is None:
            os.kill(self.main_pid, sig)

    def kill_group(self) -> None:
        """Kill the command and all it started, and wait until they are gone."""
        wait_until(self._none_left, 10, f"kill {self.argv}")
        self.wait()

    def _none_left(self) -> bool:
        """Kill who is left, and tell whether nobody was."""
        left = self.pids
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    def result(
        self, *, check: bool = True, stdin: str | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Wait for the end and return what came out; leave nothing running if that fails."""
        try:
            out, err = self.communicate(stdin, timeout)
        except BaseException:
            self.kill_group()
            self.communicate()
            raise
        if check and self.returncode:
            raise CommandError(self.returncode, self.argv, out, err)
        return subprocess.CompletedProcess(self.argv, self.returncode, out, err)


def _processes() -> Iterator[int]:
    """Yield the pids of all processes of the machine."""
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
