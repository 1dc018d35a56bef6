"""Run every test of this folder in a process of its own, in namespaces of its own.

A process, because /proc/self and /proc/sys show the namespaces of the main thread, and because
the end of a process takes with it whatever a test left: namespaces, links, rules, threads.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from _pytest.runner import runtestprotocol

from driver.driver import BridgeDriver
from driver.linux.linux import LinuxKernel
from driver.state.store import Store
from tests.kernel.daemon import Daemon
from tests.kernel.host import COMMANDS, FakeHost, RealHost, die_with_parent, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.host import Host

HERE = Path(__file__).parent
SECONDS = 60
CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000  # include/uapi/linux/sched.h
MS_REC, MS_PRIVATE = 0x4000, 0x40000  # include/uapi/linux/mount.h


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("kernel")
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if not item.path.is_relative_to(HERE) or os.geteuid() != 0:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in run_apart(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def run_apart(item: pytest.Item) -> list[pytest.TestReport]:
    """Return the reports of a test that was run in a child process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        run_and_exit(item, writer)
    os.close(writer)
    namespace = b""
    try:
        with os.fdopen(reader, "rb") as pipe:
            namespace = pipe.readline()
            answer = pipe.read()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        end_all_in(Path(namespace.decode().strip()))
    return pickle.loads(answer) if answer else [died(item)]


def end_all_in(namespace: Path) -> None:
    """End what has outlived a test in its network namespace, as a relay does."""
    if namespace == Path("/proc/self/ns/net").readlink():
        return
    for folder in Path("/proc").glob("[0-9]*"):
        # It has just ended, or is none that we may look at.
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if (folder / "ns/net").readlink() == namespace:
                os.kill(int(folder.name), signal.SIGKILL)


def run_and_exit(item: pytest.Item, writer: int) -> None:
    """Run the test in new namespaces, write its reports and end the process."""
    try:
        die_with_parent()
        enter_new_namespaces()
        limit = item.get_closest_marker("timeout")
        seconds = limit.args[0] if limit else SECONDS
        signal.setitimer(signal.ITIMER_REAL, seconds)  # timers are not inherited
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(f"{Path('/proc/self/ns/net').readlink()}\n".encode())
            pipe.flush()
            pickle.dump(runtestprotocol(item, log=False), pipe)
    finally:
        os._exit(0)


def died(item: pytest.Item) -> pytest.TestReport:
    """Return the report of a test whose process ended without one."""
    text = "the test's process died"
    return pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")


def enter_new_namespaces() -> None:
    """Leave the machine's network and mounts: nothing that follows can touch them."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET | CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    if libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        raise OSError(ctypes.get_errno(), "make the mounts private")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


@pytest.fixture
def linux() -> Iterator[LinuxKernel]:
    """Lend the real kernel, seen from the test's own namespace."""
    kernel = LinuxKernel()
    yield kernel
    kernel.close()


@pytest.fixture
def real(linux: LinuxKernel, tmp_path: Path) -> Iterator[RealHost]:
    """Lend the test's own namespace as a host."""
    host = RealHost(linux, tmp_path)
    yield host
    host.release()


@pytest.fixture
def as_docker_leaves_it() -> None:
    """Have the host's own chains as an engine has them: FORWARD drops, bridges are filtered."""
    for command in COMMANDS.values():
        run(command, "-w", "-P", "FORWARD", "DROP")
        run(command, "-w", "-N", "DOCKER-USER")
        run(command, "-w", "-A", "FORWARD", "-j", "DOCKER-USER")
        Path(f"/proc/sys/net/bridge/bridge-nf-call-{command}").write_text("1")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Lend a server that is yet to be started, in the test's own namespaces."""
    lent = Daemon(tmp_path)
    yield lent
    if lent.pid and lent.running:
        lent.kill()


@pytest.fixture(params=["fake", "real"])
def host(request: pytest.FixtureRequest) -> Host:
    """Lend a host in memory, then a real one."""
    if request.param == "fake":
        return FakeHost()
    lent: RealHost = request.getfixturevalue("real")
    return lent


@pytest.fixture
def driver(linux: LinuxKernel, tmp_path: Path) -> Iterator[BridgeDriver]:
    """Lend a driver on the real kernel."""
    store = Store(tmp_path / "state")
    lent = BridgeDriver(store, linux)
    lent.restore()
    yield lent
    store.close()
