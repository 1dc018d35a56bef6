"""Make an engine's host one of another kind for a block, in what decides of a packet's fate."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.engine.driver import DriverProcess
from tests.engine.site import is_modern

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine

BRIDGED = [f"net.bridge.bridge-nf-call-ip{six}tables" for six in ("", "6")]


@contextmanager
def bridged_frames(engine: Engine, *, pass_iptables: bool) -> Iterator[None]:
    """Have br_netfilter on or off in the block; on a host with Docker it is on."""
    engine.run("sysctl", "-qw", *(f"{key}={int(pass_iptables)}" for key in BRIDGED))
    try:
        yield
    finally:
        engine.run("sysctl", "-qw", *(f"{key}=1" for key in BRIDGED))


@contextmanager
def rp_filter(engine: Engine, value: int) -> Iterator[None]:
    """Have the host look at IPv4 sources not at all (0), strictly (1) or loosely (2) in the block.

    Its interfaces get the value, and those made from then on; the kernel takes the larger of theirs
    and that of all.
    """
    shown = engine.run("sysctl", "-a", "-r", r"ipv4\.conf\..*\.rp_filter").stdout
    before = [line.replace(" ", "") for line in shown.splitlines()]
    changed = [f"{line.partition('=')[0]}={value}" for line in before]
    engine.run("sysctl", "-qw", *changed)
    try:
        yield
    finally:
        engine.run("sysctl", "-qw", *before)


def hosts(engine: Engine) -> Iterator[str]:
    """Make the engine's host one of each kind in turn, and yield what it is like.

    The strictness of rp_filter, where less is attacked than with none, on one engine only. What a
    host has tracked is forgotten in between.
    """
    every = is_modern(engine) and engine.drivers is DriverProcess
    for passing in (True, False):
        for value in (0, 1, 2) if every else (0,):
            with bridged_frames(engine, pass_iptables=passing), rp_filter(engine, value):
                engine.run("conntrack", "-F")
                yield f"br_netfilter {'on' if passing else 'off'}, rp_filter {value}"


@contextmanager
def routing(engine: Engine) -> Iterator[None]:
    """Have the host be a router for its neighbours in the block, whatever Docker's policy is."""
    rule = ("FORWARD", "-i", "uplink", "-o", "uplink", "-j", "ACCEPT")
    for tables in ("iptables", "ip6tables"):
        engine.run(tables, "-w", "-I", *rule)
    try:
        yield
    finally:
        for tables in ("iptables", "ip6tables"):
            engine.run(tables, "-w", "-D", *rule)


@contextmanager
def without_iptables(engine: Engine) -> Iterator[None]:
    """Have a dockerd that keeps nobody from anybody."""
    engine.start_driver()
    engine.start_dockerd("--iptables=false", "--ip6tables=false")
    assert "DOCKER" not in engine.run("nft", "list", "ruleset").stdout
    yield


@contextmanager
def with_legacy_iptables(engine: Engine) -> Iterator[None]:
    """Have dockerd and the driver use the older iptables, whose rules nft does not see."""
    ours = engine.folder / "legacy"
    ours.mkdir()
    commands = [f"{name}{suffix}" for name in ("iptables", "ip6tables") for suffix in ("", "-save")]
    for command in commands:
        legacy = command.replace("tables", "tables-legacy")
        (ours / command).symlink_to(f"/usr/sbin/{legacy}")
        engine.run(*engine.chroot("ln", "-s", f"/usr/sbin/{legacy}", f"/usr/local/sbin/{command}"))
    try:
        engine.start_driver(env={"PATH": f"{ours}:{os.environ['PATH']}"})
        engine.start_dockerd("--ip6tables=true", "--experimental")
        assert "-P FORWARD DROP" in engine.run("iptables-legacy", "-S").stdout
        yield
    finally:
        for command in commands:
            engine.run(*engine.chroot("rm", f"/usr/local/sbin/{command}"))
        shutil.rmtree(ours)
