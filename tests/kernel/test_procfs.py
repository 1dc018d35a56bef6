"""Files of /proc/sys by a mount of our own: whose they are, and what is left of the mounts."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from driver.linux import netns, procfs, sysctl
from driver.linux.procfs import MOST_OPENED, Procfs
from tests.engine.wait import wait_until
from tests.kernel.host import run
from tests.samples import KEEPALIVE

TTL = "net.ipv4.ip_default_ttl"
FILE = "sys/net/ipv4/ip_default_ttl"


def content(own: Procfs) -> str:
    """Return what the file says in the thread's namespace."""
    descriptor = own.open(FILE, os.O_RDONLY)
    try:
        return os.read(descriptor, 100).decode()
    finally:
        os.close(descriptor)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_file_is_of_the_namespace_that_the_thread_is_in() -> None:
    own = Procfs()
    sysctl.write(TTL, "77")
    assert content(own) == "77\n"
    assert netns.run_in_new(lambda: content(own)) == "64\n"
    assert content(own) == "77\n"


def test_mounts_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    made = count()
    mount = procfs._mount_procfs

    def counted() -> int:
        next(made)
        return mount()

    monkeypatch.setattr(procfs, "_mount_procfs", counted)
    own = Procfs()
    before = descriptors()
    for _ in range(2 * MOST_OPENED + 1):
        content(own)
    assert next(made) == 3
    wait_until(lambda: descriptors() == before + 1, 5, "the old mounts are closed")
    assert Path("/proc/self/mountinfo").read_text().count(" proc ") == 1  # nobody sees them


def test_threads_may_use_it_while_the_mount_is_exchanged() -> None:
    own = Procfs()
    before = descriptors()
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda _: content(own), range(8 * MOST_OPENED)))
    assert set(said) == {"64\n"}
    wait_until(lambda: descriptors() == before + 1, 5, "the old mounts are closed")


def test_where_none_is_allowed_the_hosts_own_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(procfs, "_mount_procfs", refuse)
    own = Procfs()
    sysctl.write(TTL, "77")
    assert content(own) == "77\n"
    assert netns.run_in_new(lambda: content(own)) == "64\n"


def test_what_docker_mounts_read_only_for_a_plugin_is_no_hindrance() -> None:
    run("mount", "--bind", "/proc/sys", "/proc/sys")
    run("mount", "-o", "remount,bind,ro", "/proc/sys")
    with pytest.raises(OSError, match="Read-only"):
        Path("/proc/sys/net/ipv4/tcp_keepalive_time").write_text("600")
    sysctl.write(KEEPALIVE, "600")
    assert sysctl.read(KEEPALIVE) == "600"


def test_a_mount_is_not_closed_by_who_waits_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes its time for that, and on engines up to 27 a container does not wait."""
    closed_by = []
    monkeypatch.setattr(
        procfs._Mount, "__del__", lambda _: closed_by.append(threading.current_thread().name)
    )
    own = Procfs()
    for _ in range(2 * MOST_OPENED + 1):
        content(own)
    wait_until(lambda: len(closed_by) == 2, 5, "the old mounts are closed")
    assert set(closed_by) == {"procfs"}
