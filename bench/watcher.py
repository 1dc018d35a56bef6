"""Measure how often a first process misses its network's parameters, on a machine that is busy.

On engines 20.10 to 27 the sandbox comes after Join, and the driver has until runc's hooks are done
to see it and write: here with many starts at once, and every core at work on something else.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.measure import Results, Row, Series
from tests.engine.engine import Engine
from tests.engine.steps import KEEPALIVE, create_network, proc_path, sysctl_options

if TYPE_CHECKING:
    from collections.abc import Iterator

SUITES = ("bookworm", "trixie")  # engines 20.10 and 26.1
STARTS = 1000
AT_ONCE = 50
SECONDS = 600  # a start that is one of so many takes its time
NETWORK = "bench-watcher"
WANTED = {KEEPALIVE: "600", "net.ipv4.conf.IFNAME.arp_notify": "1"}
FILES = (proc_path(KEEPALIVE), proc_path("net.ipv4.conf.eth0.arp_notify"))
RIGHT = "600\n1\n"
DOCKERS_OWN = 125  # the exit code of `docker run` when there was no container to have one
BUSY = "while True: pass"


def measure() -> Results:
    """Return a row for each of the old engines."""
    rows: list[Row] = []
    versions: list[str] = []
    for suite in SUITES:
        with Engine(suite) as engine:
            engine.start_driver()
            versions.append(engine.version)
            rows += count_misses(engine, STARTS)
    return Results(", ".join(versions), tuple(rows))


def count_misses(engine: Engine, starts: int) -> tuple[Row, ...]:
    """Return how many of so many starts missed a value, and how many failed, which is no miss.

    On an engine with the driver running.
    """
    create_network(engine, NETWORK, *sysctl_options(WANTED))
    with _busy_cores(), ThreadPoolExecutor(AT_ONCE) as pool:
        seen = list(pool.map(lambda _: _start(engine), range(starts)))
    failed = seen.count(None)
    missed = starts - failed - seen.count(RIGHT)
    how = (
        f"of {starts:,}, {AT_ONCE} at once and {os.cpu_count()} cores busy, "
        f"engine {engine.version.partition('+')[0]}"
    )
    return (
        Row(f"first processes that miss a parameter, {how}", "starts", _one(missed), limit=0),
        Row(f"starts that fail, {how}", "starts", _one(failed)),
    )


def _one(number: int) -> Series:
    return Series((float(number),))


def _start(engine: Engine) -> str | None:
    """Return what a container's first and only process reads, None if it was not started."""
    words = ("run", "--rm", "--network", NETWORK, "bb", "cat", *FILES)
    done = engine.docker(*words, timeout=SECONDS, check=False)
    return None if done.returncode == DOCKERS_OWN else done.stdout


@contextmanager
def _busy_cores() -> Iterator[None]:
    """Have a process for every core that does nothing else than be busy."""
    made = [
        subprocess.Popen([sys.executable, "-I", "-c", BUSY]) for _ in range(os.cpu_count() or 1)
    ]
    try:
        yield
    finally:
        for each in made:
            each.kill()
            each.wait()
