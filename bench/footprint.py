"""Measure what the driver holds of the machine, and how soon it is there."""

from __future__ import annotations

import time
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from bench.measure import Results, Row, Series
from bench.stage import private_engine, worker_on
from tests.engine.driver import DriverProcess
from tests.engine.unixhttp import accepts, request

if TYPE_CHECKING:
    from tests.engine.driver import Driver
    from tests.engine.engine import Engine

STARTS, RESTARTS = 15, 7
MANY = 1000
KIB = 1024


def measure() -> Results:
    """Return the rows for memory and for starting."""
    with private_engine() as engine, worker_on(engine) as worker:
        starts = Series(tuple(_start(engine, "/Plugin.Activate", "POST") for _ in range(STARTS)))
        worker.ask("set_up", kind="handover")
        worker.life("handover")
        idle = _memory(engine)
        for number in range(1, MANY + 1):
            worker.begin("handover", number)
        full = _memory(engine)
        assert engine.driver is not None
        for question in ("/networks", "/metrics"):  # what is loaded for people stays
            assert request(engine.driver.socket, "GET", question)[0] == 200
        asked = _memory(engine)
        restarts = Series(tuple(_start(engine, "/networks", "GET") for _ in range(RESTARTS)))
        version = engine.version
    of_all = "memory of the driver (PSS, all processes)"
    return Results(
        version,
        (
            Row(f"{of_all}, idle", "MB", Series((idle,)), limit=70),
            Row(f"{of_all}, 1,000 endpoints", "MB", Series((full,)), limit=80),
            Row(
                f"{of_all}, 1,000 endpoints, and asked for metrics",
                "MB",
                Series((asked,)),
                limit=80,
            ),
            Row("socket answering after start", "s", starts, limit=0.5),
            Row("restarted with 1,000 endpoints, all restored", "s", restarts, limit=2.5),
        ),
    )


def _start(engine: Engine, target: str, method: str) -> float:
    """End the driver, start it, and return the seconds until it answers."""
    assert isinstance(engine.driver, DriverProcess)
    engine.driver.terminate(60)
    began = time.perf_counter()
    engine.driver = DriverProcess(engine)
    while not _answers(engine.driver, target, method):
        time.sleep(0.002)
    return time.perf_counter() - began


def _answers(driver: Driver, target: str, method: str) -> bool:
    if not accepts(driver.socket):
        return False
    with suppress(OSError, HTTPException):
        return request(driver.socket, method, target)[0] == 200
    return False


def _memory(engine: Engine) -> float:
    """Return the proportional set size of the driver's processes, in megabytes."""
    assert engine.driver is not None
    return sum(map(_proportional, engine.driver.pids)) / KIB / KIB


def _proportional(pid: int) -> int:
    """Return a process's share of memory in bytes (Documentation/filesystems/proc.rst)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * KIB for line in lines if line.startswith("Pss:"))
