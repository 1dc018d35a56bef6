"""What the engines promise to the tests that use them; the driver is not needed here."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from tests.engine.conftest import EVERY_SUITE
from tests.engine.driver import REPOSITORY
from tests.engine.engine import Engine
from tests.engine.rootfs import SUITES, ensure_root
from tests.engine.wait import wait_until
from tests.engine.warden import cgroup_mounts

if TYPE_CHECKING:
    from collections.abc import Iterator

KILLED_OWNER = """
import signal, sys
from tests.engine.engine import Engine

with Engine(sys.argv[1]) as engine:
    engine.docker("run", "-d", "bb", "sleep", "1000")
    print(engine.init_pid, engine.folder, engine.cgroup, flush=True)
    signal.pause()
"""


def test_each_suite_has_its_engine(bare_engine: Engine) -> None:
    assert bare_engine.version.startswith(SUITES[bare_engine.suite].engine)
    assert bare_engine.version in bare_engine.docker("version").stdout


def test_a_container_reaches_the_neighbour_through_the_built_in_bridge(bare_engine: Engine) -> None:
    done = bare_engine.docker("run", "--rm", "bb", "ping", "-c1", "-w5", "192.0.2.2")
    assert " 0% packet loss" in done.stdout


def test_the_image_knows_its_users(bare_engine: Engine) -> None:
    assert bare_engine.docker("run", "--rm", "-u", "nobody", "bb", "whoami").stdout == "nobody\n"


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8:2::1"])
def test_the_neighbour_reaches_the_host(bare_engine: Engine, address: str) -> None:
    bare_engine.lan_run(bare_engine.busybox, "ping", "-c1", "-w5", address)


@pytest.mark.parametrize("address", ["192.0.2.2", "2001:db8:2::2"])
def test_the_host_reaches_the_neighbour(bare_engine: Engine, address: str) -> None:
    bare_engine.run(bare_engine.busybox, "ping", "-c1", "-w5", address)


def test_the_first_dockerd_enables_forwarding_and_drops_the_rest(bare_engine: Engine) -> None:
    assert bare_engine.run("cat", "/proc/sys/net/ipv4/ip_forward").stdout == "1\n"
    chain = bare_engine.run("nft", "list", "chain", "ip", "filter", "FORWARD").stdout
    assert "policy drop" in chain


def test_a_command_outside_the_chroot_enters_a_containers_namespace(bare_engine: Engine) -> None:
    bare_engine.docker("run", "-d", "--name", "target", "bb", "sleep", "1000")
    key = bare_engine.client.containers.get("target").attrs["NetworkSettings"]["SandboxKey"]
    assert "eth0" in bare_engine.run("nsenter", f"--net={key}", "ip", "link").stdout


def test_a_command_that_takes_too_long_is_killed_with_its_children(bare_engine: Engine) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        bare_engine.run("sh", "-c", "sleep 1234.5; true", timeout=0.2)
    assert "1234.5" not in bare_engine.run("sh", "-c", "cat /proc/[0-9]*/cmdline").stdout


def test_a_failed_command_says_what_it_wrote(bare_engine: Engine) -> None:
    with pytest.raises(subprocess.CalledProcessError, match="No such container: nobody"):
        bare_engine.docker("inspect", "--type=container", "nobody")


def test_a_container_outlives_a_killed_dockerd_with_live_restore(bare_engine: Engine) -> None:
    bare_engine.stop_dockerd()
    bare_engine.start_dockerd("--live-restore")
    bare_engine.docker("run", "-d", "--name", "survivor", "bb", "sleep", "1000")
    before = bare_engine.client.containers.get("survivor").attrs["State"]
    bare_engine.kill_dockerd()
    bare_engine.start_dockerd("--live-restore")
    after = bare_engine.client.containers.get("survivor").attrs["State"]
    assert after["Running"]
    assert after["Pid"] == before["Pid"]


def test_a_reboot_keeps_what_is_on_disk_and_nothing_else(bare_engine: Engine) -> None:
    bare_engine.docker("run", "-d", "--name", "casualty", "bb", "sleep", "1000")
    marker = Path("/run/marker")
    bare_engine.run("touch", str(marker))
    bare_engine.reboot()
    assert bare_engine.run("test", "-e", str(marker), check=False).returncode == 1
    assert "docker0" not in bare_engine.run("ip", "link").stdout
    assert bare_engine.run("nft", "list", "ruleset").stdout == ""
    assert not list(Footprint.of(bare_engine).cgroups())
    bare_engine.start_dockerd()
    assert bare_engine.client.containers.get("casualty").status == "exited"


def test_engines_of_one_suite_do_not_disturb_each_other() -> None:
    with Engine("trixie") as one, Engine("trixie") as other:
        for engine in (one, other):
            engine.docker("run", "-d", "--name", "same", "-p", "80:80", "bb", "sleep", "1000")
        one.run(*one.chroot("touch", "/etc/marker"))
        assert other.run(*other.chroot("test", "-e", "/etc/marker"), check=False).returncode == 1
        assert not (ensure_root("trixie") / "etc/marker").exists()


@pytest.mark.parametrize("suite", EVERY_SUITE)
def test_nothing_is_left_when_the_block_ends(suite: str) -> None:
    links = socket.if_nameindex()
    with Engine(suite) as engine:
        engine.docker("run", "-d", "bb", "sleep", "1000")
        footprint = Footprint.of(engine)
        assert list(footprint.remains())
    wait_until(footprint.is_gone, 10, f"nothing left of {footprint}")
    assert socket.if_nameindex() == links


@pytest.mark.parametrize("suite", EVERY_SUITE)
def test_nothing_is_left_when_the_owner_is_killed(suite: str) -> None:
    command = [sys.executable, "-c", KILLED_OWNER, suite]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        init_pid, folder, cgroup = owner.stdout.readline().split()
        footprint = Footprint.record(int(init_pid), Path(folder), cgroup)
        assert list(footprint.remains())
        owner.send_signal(signal.SIGKILL)
    wait_until(footprint.is_gone, 10, f"nothing left of {footprint}")


@dataclass(frozen=True, slots=True)
class Footprint:
    """Where an engine can be seen from the machine."""

    folder: Path
    cgroup: str
    namespaces: frozenset[str]

    @classmethod
    def of(cls, engine: Engine) -> Self:
        return cls.record(engine.init_pid, engine.folder, engine.cgroup)

    @classmethod
    def record(cls, init_pid: int, folder: Path, cgroup: str) -> Self:
        links = (Path(f"/proc/{init_pid}/ns") / kind for kind in ("mnt", "net", "pid", "uts"))
        return cls(folder, cgroup, frozenset(str(link.readlink()) for link in links))

    def is_gone(self) -> bool:
        return not list(self.remains())

    def remains(self) -> Iterator[str]:
        """Yield whatever is there: the folder, cgroups, processes, and mounts in any of them."""
        if self.folder.exists():
            yield str(self.folder)
        yield from map(str, self.cgroups())
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and self._is_seen_in(process):
                yield str(process)

    def cgroups(self) -> Iterator[Path]:
        return (mount / self.cgroup for mount in cgroup_mounts() if (mount / self.cgroup).exists())

    def _is_seen_in(self, process: Path) -> bool:
        try:
            spaces = {str(link.readlink()) for link in (process / "ns").iterdir()}
            mounts = (process / "mountinfo").read_text()
        except OSError:
            return False  # it ended meanwhile, or is one that even root may not look into
        return bool(spaces & self.namespaces) or str(self.folder) in mounts
