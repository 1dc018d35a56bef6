"""A private Docker Engine on a host of its own, made of namespaces.

`Engine` owns the host (through its warden), containerd, dockerd and the driver. What a host
consists of is in `host.sh`; how it ends, in `warden.py`.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING, Self

from docker import DockerClient

from tests.engine import warden
from tests.engine.command import Command
from tests.engine.driver import DriverProcess
from tests.engine.image import busybox_tar
from tests.engine.rootfs import cache_folder, ensure_root
from tests.engine.unixhttp import accepts, request
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import IO

    from tests.engine.driver import Driver

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
DOCKER_SOCKET = "/run/docker.sock"

# The machine's environment (proxies, say) must not change what an engine does.
CHROOT_ENV = ("env", "-i", "HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")


class Engine:
    """The engine of a Debian suite, from `with` to the end of the block.

    Nothing it does is seen outside, and nothing is left of it, also when our process is killed.
    Its drivers are of one kind, unless a test makes another by itself.
    """

    def __init__(
        self,
        suite: str,
        *,
        dockerd_args: Sequence[str] = (),
        drivers: type[Driver] = DriverProcess,
    ) -> None:
        self.suite = suite
        self.drivers = drivers
        self.dockerd_args = tuple(dockerd_args)
        self.extra_args: tuple[str, ...] = ()
        self.driver: Driver | None = None
        self._client: DockerClient | None = None
        self._containerd: Command | None = None
        self._dockerd: Command | None = None

    def __enter__(self) -> Self:
        self.lower = ensure_root(self.suite)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.suite}-", dir=cache_folder()))
        self.cgroup = f"pynet-{self.folder.name}"
        self._warden = subprocess.Popen(
            [sys.executable, "-I", warden.__file__, self.lower, self.folder, self.cgroup],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # what interrupts us must not interrupt the clean-up
        )
        try:
            self._boot()
            self.start_dockerd()
            self.import_image("bb", busybox_tar(self.lower))
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    # -- the host

    def _boot(self) -> None:
        """Have the warden make the host, anew if there is one."""
        assert self._warden.stdin is not None
        assert self._warden.stdout is not None
        self._warden.stdin.write("boot\n")
        self._warden.stdin.flush()
        answer = self._warden.stdout.readline()
        if not answer:
            raise ChildProcessError(f"boot a {self.suite} host: see what {warden.__file__} wrote")
        self.init_pid = int(answer)

    def _forget(self) -> None:
        """Let go of what ended with the host."""
        self._close_client()
        for command in (self._dockerd, self._containerd):
            if command:
                command.wait()
        if self.driver:
            self.driver.wait()
        self._dockerd = self._containerd = self.driver = None

    def _close(self) -> None:
        """Have the warden end and remove everything."""
        self._warden.communicate()
        self._forget()
        if self._warden.returncode:
            raise subprocess.CalledProcessError(self._warden.returncode, self._warden.args)

    def reboot(self) -> None:
        """Lose the power, and have the host boot again; start nothing on it.

        All processes, links, firewall rules, sysctls and `/run` are gone; what is on disk, the
        engine's data and the driver's state, is still there.
        """
        self._boot()
        self._forget()

    @property
    def outside(self) -> Path:
        """Return `/` outside the chroot but inside the namespaces, as the machine can reach it."""
        return Path(f"/proc/{self.init_pid}/root")

    @property
    def state(self) -> Path:
        """Return what is `/var/lib/pynet` in the chroot, under its name outside."""
        return self.folder / "lib/pynet"

    @property
    def busybox(self) -> str:
        """Return a busybox that runs anywhere, so that nobody depends on the machine's tools."""
        return str(self.lower / "usr/bin/busybox")

    # -- commands

    def popen(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> Command:
        """Start a command of the machine, outside the chroot, inside the host's namespaces."""
        return Command(self.init_pid, argv, env=env, stdin=stdin, stdout=stdout, stderr=stderr)

    def lan_popen(
        self,
        *argv: str,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> Command:
        """Start a command on the neighbour, 192.0.2.2 and 2001:db8:2::2."""
        net = Path(f"{self.outside}{self.folder}/lan")
        return Command(self.init_pid, argv, net=net, stdin=stdin, stdout=stdout, stderr=stderr)

    def run(
        self,
        *argv: str,
        check: bool = True,
        stdin: str | None = None,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as `popen` does, and wait for it."""
        command = self.popen(*argv, env=env, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        return command.result(check=check, stdin=stdin, timeout=timeout)

    def lan_run(
        self, *argv: str, check: bool = True, stdin: str | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the neighbour, and wait for it."""
        command = self.lan_popen(*argv, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        return command.result(check=check, stdin=stdin, timeout=timeout)

    def chroot(self, *argv: str) -> list[str]:
        """Return the words that run a command of the suite instead of one of the machine."""
        return ["nsenter", f"--mount={self.folder}/mnt", "--", *CHROOT_ENV, *argv]

    def docker(
        self, *args: str, check: bool = True, stdin: str | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run the suite's own command line client."""
        command = self.chroot("docker", *args)
        return self.run(*command, check=check, stdin=stdin, timeout=timeout)

    # -- the engine

    def start_dockerd(self, *args: str) -> None:
        """Start dockerd with these arguments besides the engine's, and wait until it answers."""
        if self.dockerd_running:
            raise RuntimeError("start dockerd: it runs already")
        if not self._containerd:
            # Apart from dockerd, as Debian's units have it: it and its shims outlive a dockerd
            # that is killed, which is what live-restore needs.
            self._containerd = self._daemon("containerd", f"--address={CONTAINERD_SOCKET}")
        self._dockerd = self._daemon(
            "dockerd",
            f"--host=unix://{DOCKER_SOCKET}",
            f"--containerd={CONTAINERD_SOCKET}",
            "--exec-opt=native.cgroupdriver=cgroupfs",
            f"--cgroup-parent=/{self.cgroup}",
            *self.dockerd_args,
            *args,
        )
        self.extra_args = args
        wait_until(self._answers, 30, "dockerd")

    def _daemon(self, *argv: str) -> Command:
        """Start a daemon of the suite that writes to a log of its own."""
        with self._log(argv[0]).open("ab") as log:
            return self.popen(*self.chroot(*argv), stdout=log, stderr=log)

    def _answers(self) -> bool:
        """Tell whether dockerd answers; raise if it never will."""
        if not self.dockerd_running:
            raise ChildProcessError(f"start dockerd: it ended at once:\n{self.log('dockerd')}")
        socket = self.outside / DOCKER_SOCKET.lstrip("/")
        return accepts(socket) and request(socket, "GET", "/_ping")[0] == 200

    @property
    def dockerd_running(self) -> bool:
        """Tell whether dockerd is alive."""
        return self._dockerd is not None and self._dockerd.poll() is None

    def stop_dockerd(self) -> None:
        """Ask dockerd to end, and wait until it has."""
        self._end_dockerd(signal.SIGTERM)

    def kill_dockerd(self) -> None:
        """Kill dockerd alone; containerd and the containers live on."""
        self._end_dockerd(signal.SIGKILL)

    def _end_dockerd(self, number: signal.Signals) -> None:
        if not self._dockerd:
            raise RuntimeError("end dockerd: it was not started")
        self._close_client()
        self._dockerd.send_signal(number)
        self._dockerd.wait(60)

    @property
    def version(self) -> str:
        """Return the engine's version, as the engine says it."""
        return str(self.client.version()["Version"])

    @property
    def client(self) -> DockerClient:
        """Return a client of Docker's SDK."""
        if not self._client:
            self._client = DockerClient(f"unix://{self.outside}{DOCKER_SOCKET}")
        return self._client

    def _close_client(self) -> None:
        """Close the client: its connections do not survive dockerd."""
        if self._client:
            self._client.close()
            self._client = None

    def import_image(self, name: str, tar: bytes, *changes: str) -> None:
        """Make an image out of a packed root file system; changes are lines of a Dockerfile."""
        api = self.client.api
        api.import_image_from_data(tar, repository=name, tag="latest", changes=list(changes))

    # -- the driver

    def start_driver(
        self, *, env: Mapping[str, str] | None = None, wrapper: Sequence[str] = ()
    ) -> Driver:
        """Start the driver and wait until it accepts connections. Its state stays over restarts.

        The wrapper is what runs it, as a service manager would.
        """
        if self.driver and self.driver.running:
            raise RuntimeError("start the driver: it runs already")
        self.driver = self.drivers(self, env, wrapper)
        self.driver.wait_ready()
        return self.driver

    # -- what was written

    def log(self, name: str) -> str:
        """Return the log of `dockerd`, `containerd` or `driver`, over all their lives."""
        if name == "driver":
            return self.drivers.read_log(self)
        path = self._log(name)
        return path.read_text(errors="replace") if path.exists() else ""

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"
