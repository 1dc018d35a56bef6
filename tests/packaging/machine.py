"""A private machine that systemd runs, to install pynet on; made of namespaces, without Docker."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.engine import warden
from tests.engine.command import Command
from tests.engine.rootfs import SERVICE, cache_folder, ensure_root
from tests.engine.unixhttp import accepts, request
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

SOCKET = "run/docker/plugins/pynet.sock"
SCRIPT = Path(__file__).with_name("machine.sh")
ENV = ("env", "-i", "HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")


class Machine:
    """A machine, from `with` to the end of the block; nothing of it is left then."""

    def __enter__(self) -> Self:
        lower = ensure_root(SERVICE.name)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{SERVICE.name}-", dir=cache_folder()))
        cgroup = f"pynet-{self.folder.name}"
        self._warden = subprocess.Popen(
            [sys.executable, "-I", warden.__file__, lower, self.folder, cgroup, SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # what interrupts us must not interrupt the clean-up
        )
        try:
            self.boot()
        except BaseException:
            self._warden.communicate()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._warden.communicate()
        if self._warden.returncode:
            raise subprocess.CalledProcessError(self._warden.returncode, self._warden.args)

    def boot(self) -> None:
        """Boot, anew if it runs, as after a loss of power; returns when systemd has started all."""
        assert self._warden.stdin is not None
        assert self._warden.stdout is not None
        self._warden.stdin.write("boot\n")
        self._warden.stdin.flush()
        answer = self._warden.stdout.readline()
        if not answer:
            raise ChildProcessError(f"boot a machine: see what {warden.__file__} wrote")
        self._init = int(answer)
        wait_until(self._is_up, 60, "a machine that systemd has started")

    def _is_up(self) -> bool:
        """Tell whether systemd has done what it does at boot.

        Before, its init may still be the shell that makes the machine, without a root of its own.
        """
        if Path(f"/proc/{self._init}/comm").read_text() != "systemd\n":
            return False
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    @property
    def root(self) -> Path:
        """Return the machine's file system, as its first process sees it."""
        return Path(f"/proc/{self._init}/root")

    def popen(self, *argv: str) -> Command:
        """Start a command on the machine."""
        return Command(
            self._init,
            [*ENV, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(
        self, *argv: str, check: bool = True, stdin: str | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine."""
        return self.popen(*argv).result(check=check, stdin=stdin, timeout=timeout)

    def files(self) -> set[str]:
        """List what is on the disk, without what systemd and dpkg write by themselves."""
        found = self.run("find", "/", "-xdev", "-path", "/tmp", "-prune", "-o", "-print").stdout
        return {line for line in found.splitlines() if not line.startswith("/var/log/")}

    @contextmanager
    def other_driver(self, *program: str) -> Iterator[None]:
        """Have a driver at work that systemd knows nothing of, as the managed plugin is."""
        driver = self.popen(*program, "serve")
        try:
            wait_until(lambda: accepts(self.root / SOCKET), 20, "another driver")
            assert request(self.root / SOCKET, "GET", "/networks")[0] == 200  # it has the state
            yield
        finally:
            driver.terminate()
            driver.result(check=False)
