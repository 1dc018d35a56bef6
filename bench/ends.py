"""Have both ends of a connection somewhere: in a container, on the host, or on the neighbour."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from functools import partial
from subprocess import DEVNULL, PIPE
from typing import TYPE_CHECKING, Any

from tests.engine import steps
from tests.engine.driver import REPOSITORY
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine

TALK = (sys.executable, "-I", str(REPOSITORY / "bench/talk.py"))
LIBRARIES = "LD_LIBRARY_PATH=/run/peers/usr/lib/x86_64-linux-gnu"
HOST, LAN = "host", "lan"
SECONDS = 2
# A window of one size: what TCP makes of it by itself differs from run to run, by a twentieth.
TRANSFER = ("-t", "1", "-w", "512K")
# Left alone, the scheduler puts the two ends on one processor or on two, and a round trip is 26 or
# 66 µs, a transfer 9 or 16 Gbit/s, for that alone. On two most of it is waking the other up; on
# one it is the way that counts. A proxy is a third process and takes part only where there are two.
SERVER = ("taskset", "--cpu-list", str((os.cpu_count() or 1) - 1))
TOGETHER = SERVER
APART = ("taskset", "--cpu-list", "0")


def enter(engine: Engine, place: str) -> tuple[str, ...]:
    """Return the words that run a command of the machine in a container's network."""
    if place in {HOST, LAN}:
        return ()
    return ("nsenter", f"--net={steps.settings(engine, place)['SandboxKey']}")


@contextmanager
def serving(engine: Engine, place: str, *argv: str, says: str = "") -> Iterator[None]:
    """Run a server in a place for as long as the block lasts, from when it says it is ready."""
    out = PIPE if says else DEVNULL
    start = engine.lan_popen if place == LAN else engine.popen
    server = start(*enter(engine, place), *SERVER, *argv, stdout=out, stderr=DEVNULL)
    try:
        if server.stdout is not None:
            assert server.stdout.readline().strip() == says
        yield
    finally:
        server.kill_group()
        if server.stdout is not None:
            server.stdout.close()


@contextmanager
def echoing(engine: Engine, place: str, port: int) -> Iterator[None]:
    """Answer every connection and every byte on a port of a container."""
    with serving(engine, place, *TALK, "echo", str(port), says="ready"):
        yield


@contextmanager
def sinking(engine: Engine, place: str, port: int) -> Iterator[None]:
    """Take as much as anybody sends, on a port of a container."""
    with serving(engine, place, *_iperf(engine, "-s", "-p", str(port))):
        listening = partial(_run, engine, place, "ss", "-Hltn")
        wait_until(lambda: f":{port} " in listening(), 10, "iperf3 listens")
        yield


def measure_throughput(engine: Engine, place: str, host: str, port: int) -> float:
    """Return the gigabits a second that one processor brings over from a place."""
    return _transfer(engine, place, TOGETHER, host, port)


def measure_throughput_of_two(engine: Engine, place: str, host: str, port: int) -> float:
    """Return the same for a processor at either end."""
    return _transfer(engine, place, APART, host, port)


def _transfer(engine: Engine, place: str, where: tuple[str, ...], host: str, port: int) -> float:
    words = _iperf(engine, "-c", host, "-p", str(port), *TRANSFER, "-J")
    answer = json.loads(_run(engine, place, *where, *words))
    return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e9


def measure_round_trip(engine: Engine, place: str, host: str, port: int) -> float:
    """Return the microseconds of the median of 2,000 round trips of a byte."""
    taken = _ask(engine, place, TOGETHER, "pings", host, str(port), "2000")
    return float(sorted(taken)[len(taken) // 2])


def measure_connections(engine: Engine, place: str, host: str, port: int) -> float:
    """Return the new connections a second."""
    return float(_ask(engine, place, APART, "connects", host, str(port), str(SECONDS)))


def _ask(engine: Engine, place: str, where: tuple[str, ...], *words: str) -> Any:
    """Run `bench.talk` in a place, on a processor; return what it says."""
    return json.loads(_run(engine, place, *where, *TALK, *words))


def _run(engine: Engine, place: str, *argv: str) -> str:
    if place == LAN:
        return engine.lan_run(*argv).stdout
    return engine.run(*enter(engine, place), *argv).stdout


def _iperf(engine: Engine, *words: str) -> list[str]:
    return engine.chroot("env", LIBRARIES, "/run/peers/usr/bin/iperf3", *words)
