"""Run the real server in the test's own namespaces, and speak to it as Docker does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plugin.settings import Settings
from plugin.sockets import Names
from tests.engine.driver import REPOSITORY
from tests.engine.unixhttp import accepts, request
from tests.engine.wait import wait_until
from tests.kernel.host import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable

# As the unit and the plugin's config.json have it; tests/unit/test_settings.py compares them.
TUNABLES, TUNED = "GLIBC_TUNABLES", "glibc.malloc.tcache_count=0"
READY_SECONDS = 20
END_SECONDS = 20


class Daemon:
    """A server process; one that was killed may be started again, on the same state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.socket = folder / "pynet.sock"
        self._log = folder / "driver.log"
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process as a service manager does, and wait until all is restored."""
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(REPOSITORY),
            "PYNET_SOCKET": str(self.socket),
            "PYNET_STATE_DIR": str(self.state),
            TUNABLES: TUNED,
        }
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "plugin.cli", "serve"]
            self._process = subprocess.Popen(
                command,
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - no more than prctl
            )
        self.pid = self._process.pid
        self.wait_ready()

    def fork(self, prepare: Callable[[], object] = lambda: None) -> None:
        """Start the server as a child that need not import anything; `prepare` runs in it."""
        # The worker of one that was killed may be dying yet, and its socket be open.
        wait_until(lambda: not accepts(self.socket), END_SECONDS, "the end of the one before")
        self._process = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._serve(prepare)
            finally:
                os._exit(1)
        with suppress(ProcessLookupError, PermissionError):  # whichever of the two comes first
            os.setpgid(self.pid, self.pid)

    def _serve(self, prepare: Callable[[], object]) -> None:
        from plugin.server import serve  # noqa: PLC0415 - as `pynet serve` does it

        os.setpgid(0, 0)
        die_with_parent()
        with self._log.open("ab") as log:
            for descriptor in (1, 2):
                os.dup2(log.fileno(), descriptor)
        sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
        prepare()
        names = Names()
        names.open(self.socket)
        serve(Settings(socket=self.socket, state_dir=self.state), names)

    def wait_ready(self) -> None:
        """Wait until it listens, then until everything is restored."""
        wait_until(self._listens, READY_SECONDS, f"a driver on {self.socket}")
        with suppress(OSError, HTTPException):
            self.ask("GET", "/networks")

    def _listens(self) -> bool:
        return accepts(self.socket) or not self.running

    @property
    def running(self) -> bool:
        """Tell whether the first process is alive."""
        if self._process is not None:
            return self._process.poll() is None
        with suppress(ChildProcessError):
            ended, _ = os.waitpid(self.pid, os.WNOHANG)
            return not ended
        return False

    def wait(self) -> None:
        """Wait for the end of the first process, whatever it comes by."""
        wait_until(lambda: not self.running, END_SECONDS, "the end of the driver")

    def kill(self) -> None:
        """Kill all its processes at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def terminate(self) -> None:
        """Ask it to end, as a service manager does, and wait until it has."""
        os.kill(self.pid, signal.SIGTERM)
        self.wait()

    @property
    def pids(self) -> list[int]:
        """List its processes: the master and its worker."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]

    def ask(
        self, verb: str, target: str, value: object = None, *, timeout: float = 30
    ) -> tuple[int, Any]:
        """Make one request; return the status and the decoded answer."""
        body = b"" if value is None else json.dumps(value).encode()
        status, answer = request(self.socket, verb, target, body, timeout=timeout)
        return status, json.loads(answer)

    def call(self, method: str, value: object, *, timeout: float = 30) -> Any:
        """Make one call of the protocol, which must succeed; return its answer."""
        status, answer = self.ask("POST", f"/NetworkDriver.{method}", value, timeout=timeout)
        assert status == 200, f"{method}: {status}: {answer}"
        return answer

    def log(self) -> str:
        """Return all that it has written."""
        return self._log.read_text(errors="replace")

    def log_tail(self, lines: int = 40) -> str:
        """Return what it wrote last."""
        return "\n".join(self.log().splitlines()[-lines:])
