"""Have the engine itself run the driver: the managed plugin, with the surface of any `Driver`.

The engine starts it with itself, ends it with itself and starts it again at once when it dies. But
one that dies before the engine has connected to it, half a second after its start, is given up and
disabled, 12 s later (moby's pluginPostStart). So it is ready when the engine has asked it what it
can.
"""

from __future__ import annotations

import json
import os
import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.engine import plugin_image
from tests.engine.driver import SOCKET, Driver
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.engine.engine import Engine

COMMAND = b"/usr/bin/pynet"
FROM_PLUGIN = re.compile(r" plugin=[0-9a-f]+$")


class ManagedPlugin(Driver):
    """The managed plugin, enabled, with these settings and the defaults of the others.

    On an engine that does not run it is whatever that engine starts with itself.
    """

    def __init__(
        self, engine: Engine, env: Mapping[str, str] | None = None, wrapper: Sequence[str] = ()
    ) -> None:
        super().__init__(engine, env, wrapper)
        if wrapper:
            raise ValueError(f"run {plugin_image.NAME}: the engine runs it, and nobody in between")
        self._ended = False
        before = engine.driver
        self._greetings: int = before._greetings if isinstance(before, ManagedPlugin) else 0
        if engine.dockerd_running:
            self._enable()

    def _enable(self) -> None:
        """Bring the engine's plugin to what is wanted, with no step that is not needed."""
        name = plugin_image.NAME
        if name not in self.engine.docker("plugin", "ls", "--format={{.Name}}").stdout.split():
            plugin_image.create(self.engine)
        plugin = inspect(self.engine)
        settable = (each for each in plugin["Config"]["Env"] if each["Settable"])
        defaults = {each["Name"]: each["Value"] for each in settable}
        wanted = [f"{key}={value}" for key, value in {**defaults, **_inside(self.env)}.items()]
        if not set(wanted) <= set(plugin["Settings"]["Env"]):
            if plugin["Enabled"]:
                self.engine.docker("plugin", "disable", "-f", name)
            self.engine.docker("plugin", "set", name, *wanted)
        if not inspect(self.engine)["Enabled"]:
            self._greetings = self._count_greetings()
            self.engine.docker("plugin", "enable", name)

    def _count_greetings(self) -> int:
        """Return how often the engine has asked a plugin what it can; it does after each start."""
        return self.log().count(" INFO GetCapabilities ")

    @property
    def running(self) -> bool:
        """Tell whether it is alive; another that the engine started on its own does not count."""
        return not self._ended and bool(self.pids)

    @property
    def pids(self) -> list[int]:
        """List all its processes, as the machine sees them."""
        return plugin_pids(self.engine)

    def wait(self) -> None:
        """Wait for nothing: the engine, which has ended, has seen to it."""

    def wait_ready(self, timeout: float = 20) -> None:
        """Wait as for any driver, unless there is nobody yet who would start it."""
        if self.engine.dockerd_running:
            super().wait_ready(timeout)

    def _ready(self) -> bool:
        return super()._ready() and self._count_greetings() > self._greetings

    def terminate(self) -> None:
        """Disable the plugin, whoever uses it."""
        self.engine.docker("plugin", "disable", "-f", plugin_image.NAME)
        self._ended = True

    def kill(self) -> None:
        """Kill its processes at once; the engine starts others."""
        killed = self.pids
        self._greetings = self._count_greetings()
        self._ended = True
        for pid in killed:
            with suppress(ProcessLookupError):  # the worker dies with its parent
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not {*killed} & {*self.pids}, 10, f"kill {killed}")

    @classmethod
    def read_log(cls, engine: Engine) -> str:
        """Return the lines of dockerd's log that plugins have written."""
        return "\n".join(filter(FROM_PLUGIN.search, engine.log("dockerd").splitlines()))


def inspect(engine: Engine, name: str = plugin_image.NAME) -> dict[str, Any]:
    """Return what the engine says of the plugin."""
    (answer,) = json.loads(engine.docker("plugin", "inspect", name).stdout)
    found: dict[str, Any] = answer
    return found


def plugin_pids(engine: Engine) -> list[int]:
    """List the processes of all pynet's plugins of an engine, as the machine sees them."""
    space = Path(f"/proc/{engine.init_pid}/ns/pid").readlink()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # gone, or not ours
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if COMMAND in words and (entry / "ns/pid").readlink() == space:
                found.append(int(entry.name))
    return found


def _inside(env: Mapping[str, str]) -> dict[str, str]:
    """Return the settings as the plugin has them: another name is for its second socket."""
    folder = str(Path(SOCKET).parent)
    return {
        "PYNET_SECOND_SOCKET" if name == "PYNET_SOCKET" else name: value.replace(
            folder, "/host/plugins"
        )
        for name, value in env.items()
    }
