"""Run the driver on an engine's host, and talk to it directly.

What tests may ask of a driver is `Driver`, whoever runs it. `DriverProcess` is started as a service
manager would; the managed plugin, which the engine runs, is in `managed.py`.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.engine.unixhttp import accepts, post_json, request
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.engine.engine import Engine

REPOSITORY = Path(__file__).parents[2]
SOCKET = "/run/docker/plugins/pynet.sock"


class Driver(ABC):
    """A driver at work on an engine's host, until it is told to end or killed.

    The environment is its settings; the wrapper is what runs it, as a service manager would.
    """

    def __init__(
        self, engine: Engine, env: Mapping[str, str] | None = None, wrapper: Sequence[str] = ()
    ) -> None:
        self.engine = engine
        self.env = dict(env or {})
        self.wrapper = tuple(wrapper)
        self.socket = engine.outside / self.env.get("PYNET_SOCKET", SOCKET).lstrip("/")

    @property
    @abstractmethod
    def running(self) -> bool:
        """Tell whether it is alive: false for ever once it has been told to end or killed."""

    @property
    @abstractmethod
    def pids(self) -> list[int]:
        """List all its processes, as the machine sees them."""

    @abstractmethod
    def wait(self) -> None:
        """Wait for the end of its first process, which has been seen to already."""

    @abstractmethod
    def terminate(self) -> None:
        """Ask it to end, as whoever runs it does first, and wait until it has."""

    @abstractmethod
    def kill(self) -> None:
        """Kill all its processes at once, as the kernel does when memory runs out."""

    @classmethod
    @abstractmethod
    def read_log(cls, engine: Engine) -> str:
        """Return all that drivers of this kind have written on an engine's host."""

    def log(self) -> str:
        """Return all that it and those before it have written."""
        return self.read_log(self.engine)

    def wait_ready(self, timeout: float = 20) -> None:
        """Wait until the socket accepts connections, then until everything is restored."""
        wait_until(self._ready, timeout, f"driver on {self.socket}")
        with suppress(OSError, HTTPException):  # a test may have it die meanwhile, and looks itself
            request(self.socket, "GET", "/networks")

    def _ready(self) -> bool:
        return accepts(self.socket)

    def call(self, method: str, payload: object = None, *, timeout: float = 30) -> dict[str, Any]:
        """Make one call, such as `NetworkDriver.CreateNetwork`, and return its answer.

        None goes as an empty body, as Docker sends with the calls that take no argument.
        """
        return post_json(self.socket, f"/{method}", payload, timeout=timeout)


class DriverProcess(Driver):
    """A driver process in an engine's namespaces, outside its chroot.

    It is of this repository, or of another one that has its `.venv`.
    """

    def __init__(
        self,
        engine: Engine,
        env: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
        *,
        repository: Path = REPOSITORY,
    ) -> None:
        super().__init__(engine, env, wrapper)
        own = repository == REPOSITORY
        python = sys.executable if own else repository / ".venv/bin/python"
        with self._log(engine).open("ab") as log:
            self._command = engine.popen(
                *wrapper,
                *("env", f"--chdir={repository}", str(python), "-m", "plugin.cli", "serve"),
                env={
                    "HOME": str(engine.folder),  # outside the chroot, home would be the machine's
                    "PYTHONPATH": str(repository),
                    "PYNET_STATE_DIR": str(engine.state),
                    **self.env,
                },
                stdout=log,
                stderr=log,
            )

    @property
    def running(self) -> bool:
        """Tell whether its first process is alive."""
        return self._command.poll() is None

    @property
    def pid(self) -> int:
        """Return its first process, the gunicorn master, as the machine sees it."""
        return self._command.main_pid

    @property
    def pids(self) -> list[int]:
        """List all its processes, as the machine sees them."""
        return self._command.pids

    def wait(self) -> None:
        """Wait for the end of its first process, which has been seen to already."""
        self._command.wait()

    def _ready(self) -> bool:
        if not self.running:
            raise ChildProcessError(f"start the driver: it ended at once:\n{self.log()}")
        return super()._ready()

    def terminate(self, timeout: float = 20) -> None:
        """Ask it to end, as a service manager does first, and wait until it has."""
        self._command.terminate()
        self._command.wait(timeout)

    def kill(self) -> None:
        """Kill all its processes at once, as the kernel does when memory runs out."""
        self._command.kill_group()

    @classmethod
    def read_log(cls, engine: Engine) -> str:
        """Return all that driver processes have written on an engine's host."""
        path = cls._log(engine)
        return path.read_text(errors="replace") if path.exists() else ""

    @staticmethod
    def _log(engine: Engine) -> Path:
        return engine.folder / "driver.log"
