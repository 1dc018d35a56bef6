"""Measure what published ports add to a container's life, on pynet and on the built-in bridge.

A life is `docker run --rm`: start, a process that ends at once, removal.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from bench.measure import Row, Series, clock, interleave
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from tests.engine.engine import Engine

NETWORKS = {
    "bridge": ("-d", "bridge"),
    "pynet": ("-d", "pynet"),
    "direct": ("-d", "pynet", "-o", "pynet.attach=direct"),
}
OURS = {"pynet": "", "direct": ", `pynet.attach=direct`"}
FIRST_PORT = 20000
MEBI = 1024  # KiB
THOUSAND_LIMIT = 1.5  # seconds
MEMORY_LIMIT = 0.05  # MiB: a page or two of the heap, on the average of many ports


def measure_starts(engine: Engine) -> list[Row]:
    """Return a row for each number of ports and way to attach, and one for memory."""
    for name, words in NETWORKS.items():
        engine.docker("network", "create", *words, _network(name))
    try:
        return [
            *_added_time(engine, ports=1, runs=20, limit=0.5),
            *_added_time(engine, ports=32, runs=10, limit=0.1),
            _thousand_ports(engine),
            _memory(engine, ports=32),
        ]
    finally:
        for name in NETWORKS:
            engine.docker("network", "rm", _network(name))


def _added_time(engine: Engine, *, ports: int, runs: int, limit: float) -> list[Row]:
    lives = {name: partial(_live, engine, _network(name), ports) for name in NETWORKS}
    taken = interleave(runs, {"none": partial(_live, engine, "none", 0), **lives})
    floor = taken["none"].median
    peer = taken["bridge"].median - floor
    return [
        Row(
            what=f"life with {ports} published port{'s' * (ports > 1)}, over `--network none`{how}",
            unit="ms",
            peer=peer * 1000,
            pynet=(taken[name].median - floor) * 1000,
            limit=f"≤ {limit} ×",
            is_reached=taken[name].median - floor <= limit * peer,
            runs=runs,
            peer_runs=runs,
            spread=Series(tuple((value - floor) * 1000 for value in taken[name].values)).spread,
        )
        for name, how in OURS.items()
    ]


def _thousand_ports(engine: Engine) -> Row:
    runs = 10
    own = interleave(runs, {"pynet": partial(_live, engine, _network("pynet"), 1000)})["pynet"]
    return Row(
        what="life with 1,000 published ports, in all",
        unit="s",
        peer=_live(engine, _network("bridge"), 1000),
        pynet=own.median,
        limit=f"≤ {THOUSAND_LIMIT} s",
        is_reached=own.median <= THOUSAND_LIMIT,
        runs=runs,
        peer_runs=1,  # a run takes minutes
        spread=own.spread,
    )


def _memory(engine: Engine, *, ports: int) -> Row:
    """Return the resident memory that a port costs: proxies there, a socket here."""
    grown = {}
    for name in ("bridge", "pynet"):
        before = _resident_kib(engine)
        words = _run_words(_network(name), ports)
        engine.docker("run", "-d", "--name", "bench", *words, "sleep", "1000")
        grown[name] = (_resident_kib(engine) - before) / ports / MEBI
        engine.docker("rm", "-f", "bench")
        _settle(engine)
    return Row(
        what="resident memory per published port",
        unit="MiB",
        peer=grown["bridge"],
        pynet=max(grown["pynet"], 0.0),
        limit="0: a socket",
        is_reached=grown["pynet"] < MEMORY_LIMIT,
        runs=1,
        peer_runs=1,
        spread="-",
    )


def _live(engine: Engine, network: str, ports: int) -> float:
    """Return the seconds of a container's life."""
    words = ("run", "--rm", *_run_words(network, ports), "true")
    seconds = clock(lambda: engine.docker(*words, timeout=600))
    _settle(engine)
    return seconds


def _run_words(network: str, ports: int) -> list[str]:
    span = f"{FIRST_PORT}-{FIRST_PORT + ports - 1}"
    published = ["-p", f"{span}:{span}"] if ports else []
    return ["--network", network, *published, "bb"]


def _settle(engine: Engine) -> None:
    """Wait for what the driver still does in the background."""
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


def _network(name: str) -> str:
    return f"bench-{name}"
