"""Measure what published ports add to a container's start, on pynet and on the built-in bridge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.measure import Row, Series, clock, interleave
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from tests.engine.engine import Engine

NETWORKS = ("bridge", "pynet")
PAGE_KIB = 4
MEBI = 1024


def measure_starts(engine: Engine) -> list[Row]:
    """Return a row for each number of ports, and one for memory."""
    for driver in NETWORKS:
        engine.docker("network", "create", "-d", driver, _network(driver))
    try:
        return [
            _added_time(engine, ports=1, runs=10, limit=0.5),
            _added_time(engine, ports=32, runs=10, limit=0.1),
            _thousand_ports(engine),
            _memory(engine, ports=32),
        ]
    finally:
        for driver in NETWORKS:
            engine.docker("network", "rm", _network(driver))


def _added_time(engine: Engine, *, ports: int, runs: int, limit: float) -> Row:
    taken = interleave(
        runs,
        {
            "none": lambda: _start(engine, "none", 0),
            "bridge": lambda: _start(engine, _network("bridge"), ports),
            "pynet": lambda: _start(engine, _network("pynet"), ports),
        },
    )
    floor = taken["none"].median
    peer, own = taken["bridge"].median - floor, taken["pynet"].median - floor
    return Row(
        what=f"start with {ports} published port{'s' * (ports > 1)}, over `--network none`",
        unit="ms",
        peer=peer * 1000,
        pynet=own * 1000,
        limit=f"≤ {limit} ×",
        is_reached=own <= limit * peer,
        runs=runs,
        peer_runs=runs,
        spread=Series(tuple((value - floor) * 1000 for value in taken["pynet"].values)).spread,
    )


def _thousand_ports(engine: Engine) -> Row:
    limit, runs = 1.5, 10
    own = interleave(runs, {"pynet": lambda: _start(engine, _network("pynet"), 1000)})["pynet"]
    peer = _start(engine, _network("bridge"), 1000)
    return Row(
        what="start with 1,000 published ports, in all",
        unit="s",
        peer=peer,
        pynet=own.median,
        limit=f"≤ {limit} s",
        is_reached=own.median <= limit,
        runs=runs,
        peer_runs=1,  # a run takes minutes
        spread=own.spread,
    )


def _memory(engine: Engine, *, ports: int) -> Row:
    """Return the resident memory that a port costs: proxies there, a socket here."""
    grown = {}
    for driver in NETWORKS:
        before = _resident_kib(engine)
        engine.docker("run", "-d", "--name", "bench", *_run_words(_network(driver), ports))
        grown[driver] = (_resident_kib(engine) - before) / ports / MEBI
        _remove(engine)
    return Row(
        what="resident memory per published port",
        unit="MiB",
        peer=grown["bridge"],
        pynet=max(grown["pynet"], 0.0),
        limit="0: a socket",
        is_reached=grown["pynet"] < 0.05,  # noqa: PLR2004 - a page or two of the heap
        runs=1,
        peer_runs=1,
        spread="-",
    )


def _start(engine: Engine, network: str, ports: int) -> float:
    words = _run_words(network, ports)
    seconds = clock(lambda: engine.docker("run", "-d", "--name", "bench", *words, timeout=600))
    _remove(engine)
    return seconds


def _run_words(network: str, ports: int) -> list[str]:
    published = ["-p", f"20000-{19999 + ports}:20000-{19999 + ports}"] if ports else []
    return ["--network", network, *published, "bb", "sleep", "1000"]


def _remove(engine: Engine) -> None:
    """Remove the container, and wait for what the drivers still do in the background."""
    engine.docker("rm", "-f", "bench", timeout=600)
    wait_until(
        lambda: "pnh" not in engine.run("ip", "-br", "link").stdout, 10, "the link is deleted"
    )


def _resident_kib(engine: Engine) -> float:
    """Return the resident memory of the port proxies and of the driver."""
    listing = engine.run("ps", "-eo", "rss=,args=").stdout.splitlines()
    rows = [line.split(None, 1) for line in listing]
    return sum(
        float(rss) for rss, command in rows if "docker-proxy" in command or "plugin.cli" in command
    )


def _network(driver: str) -> str:
    return f"bench-{driver}"
