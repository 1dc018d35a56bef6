"""Run what operators have beside Docker, the real thing: firewalld with its D-Bus, ufw.

They come from a root file system of their own (`rootfs.FIREWALLS`), so that an engine's is as small
as before, and work on the engine's host: in its network, with its `/run`.
"""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tests.engine.engine import CHROOT_ENV
from tests.engine.rootfs import FIREWALLS, ensure_root
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from subprocess import CompletedProcess

    from tests.engine.command import Command
    from tests.engine.engine import Engine

BUS = "/run/dbus/system_bus_socket"
# The mounts go with the host; taking down that of /run would take along what it shares with it.
MOUNT = """
rm -rf "$2" # of an earlier boot
mkdir -p "$2/upper" "$2/work" "$2/root"
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$2/root"
for each in dev proc sys run; do mount --rbind "/$each" "$2/root/$each"; done
mkdir -p /run/dbus
"""


class Operator:
    """Whoever runs the host, with the programs of the firewalls' root, until its next boot."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._folder = engine.folder / "firewalls"
        root = str(ensure_root(FIREWALLS.name))
        engine.run("sh", "-euc", MOUNT, "sh", root, str(self._folder))

    def words(self, *argv: str) -> list[str]:
        """Return the words that run a program of that root on the engine's host."""
        return ["chroot", f"{self._folder}/root", *CHROOT_ENV, *argv]

    def run(
        self, *argv: str, check: bool = True, stdin: str | None = None
    ) -> CompletedProcess[str]:
        """Run a program of that root, and wait for it."""
        return self._engine.run(*self.words(*argv), check=check, stdin=stdin)

    def daemon(self, *argv: str) -> Command:
        """Start a daemon of that root that stays in the foreground."""
        with (self._engine.folder / f"{argv[0]}.log").open("ab") as log:
            return self._engine.popen(*self.words(*argv), stdout=log, stderr=log)


class Firewalld:
    """firewalld, running on an engine's host."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._daemon: Command | None = None

    def command(self, *words: str) -> str:
        """Run `firewall-cmd`, and return what it wrote."""
        return self._operator.run("firewall-cmd", *words).stdout.strip()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._daemon = self._operator.daemon("firewalld", "--nofork", "--nopid")
        wait_until(self._answers, 30, "firewalld")

    def stop(self) -> None:
        """End it as a service manager does; its rules go with it."""
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(30)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Have it hang in the block."""
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            # nsenter, through which it was started, stops with its child, and wakes it up.
            os.kill(self._daemon.pid, signal.SIGCONT)

    def _answers(self) -> bool:
        assert self._daemon is not None
        if self._daemon.poll() is not None:
            raise ChildProcessError("start firewalld: it ended at once")
        return self._operator.run("firewall-cmd", "--state", check=False).returncode == 0


@contextmanager
def system_bus(operator: Operator) -> Iterator[None]:
    """Have D-Bus's system bus on the host in the block."""
    bus = operator.daemon("dbus-daemon", "--system", "--nofork", "--nopidfile")
    try:
        probe = ("dbus-send", "--system", "--print-reply", "--dest=org.freedesktop.DBus")
        wait_until(
            lambda: (
                operator.run(*probe, "/", "org.freedesktop.DBus.ListNames", check=False).returncode
                == 0
            ),
            10,
            "the system bus",
        )
        yield
    finally:
        bus.terminate()
        bus.wait(10)


@contextmanager
def firewalld(engine: Engine) -> Iterator[Firewalld]:
    """Have firewalld at work on the engine's host in the block."""
    operator = Operator(engine)
    with ExitStack() as stack:
        stack.enter_context(system_bus(operator))
        wall = Firewalld(operator)
        stack.callback(wall.stop)
        wall.start()
        yield wall


class Ufw:
    """ufw, enabled on an engine's host."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator

    def command(self, *words: str) -> str:
        """Run `ufw`, and return what it wrote."""
        return self._operator.run("ufw", *words).stdout

    def append(self, path: str, text: str) -> None:
        """Append to one of its files."""
        self._operator.run("tee", "-a", path, stdin=text)


@contextmanager
def ufw(engine: Engine) -> Iterator[Ufw]:
    """Have ufw enabled on the engine's host in the block, with its defaults."""
    wall = Ufw(Operator(engine))
    wall.command("--force", "enable")
    try:
        yield wall
    finally:
        wall.command("disable")
