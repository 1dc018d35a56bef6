"""Measure what passes: between containers, from another host, from the host by its loopback."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from bench.ends import (
    HOST,
    LAN,
    echoing,
    measure_round_trip,
    measure_throughput,
    measure_throughput_of_two,
    sinking,
)
from bench.measure import Results, Row, Series, interleave
from bench.stage import private_engine
from bench.starts import BRIDGE, NETWORKS, OURS
from tests.engine import steps
from tests.engine.site import HOST_ADDRESS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.engine.engine import Engine

KINDS = (BRIDGE, *OURS)
SINK, ECHO = 5201, 7007
RUNS, LATENCY_RUNS = 13, 13
LOOPBACK = "127.0.0.1"
BY_LOOPBACK = f"published port from the host by {LOOPBACK}"
BY_RELAY = "published port of a container without IPv6 from the host by ::1"
# Where Docker's proxy is in the way, a processor at either end.
LIMITS = {BY_LOOPBACK: 2.0, BY_RELAY: 1.0}
UNTRANSLATED = "from the host to a container's own address: the most there is"


class Path(NamedTuple):
    """From a place to an address; the servers' ports are published so much higher."""

    engine: Engine
    place: str
    address: str
    offset: int


def measure() -> Results:
    """Return the rows for each way and each attachment."""
    with private_engine() as engine, ExitStack() as stack:
        for number, kind in enumerate(KINDS):
            _start(engine, kind, number)
            server = f"server{number}"
            stack.enter_context(sinking(engine, server, SINK))
            stack.enter_context(echoing(engine, server, ECHO))
        ways = _find_ways(engine)
        throughput = {
            way: _measure(
                measure_throughput_of_two if way in LIMITS else measure_throughput,
                SINK,
                RUNS,
                paths,
            )
            for way, paths in ways.items()
        }
        latency = {
            way: _measure(measure_round_trip, ECHO, LATENCY_RUNS, ways[way])
            for way in ways
            if way != BY_LOOPBACK
        }
        version = engine.version
    rows = []
    for how in OURS:
        for way, of_kind in throughput.items():
            limit = LIMITS.get(way, 0.98)
            what = f"TCP throughput, {way}"
            own, others = of_kind[how], of_kind[BRIDGE]
            rows.append(Row(what, "Gbit/s", own, BRIDGE, others, how, limit, at_least=True))
        for way, of_kind in latency.items():
            what = f"TCP round trip, {way}"
            rows.append(Row(what, "µs", of_kind[how], BRIDGE, of_kind[BRIDGE], how, 1.02))
    by_loopback = throughput[BY_LOOPBACK]
    most, proxied = by_loopback[UNTRANSLATED], by_loopback[BRIDGE]
    rows.append(
        Row(f"TCP throughput, {UNTRANSLATED}", "Gbit/s", most, f"{BRIDGE}'s proxy", proxied)
    )
    return Results(version, tuple(rows))


def _start(engine: Engine, kind: str, number: int) -> None:
    """Have two containers on a network, one of which publishes both its ports."""
    network = f"net{number}"
    engine.docker("network", "create", *NETWORKS[kind], network)
    published = [f"{port + number}:{port}" for port in (SINK, ECHO)]
    steps.run(engine, f"server{number}", network, "-p", published[0], "-p", published[1])
    steps.run(engine, f"client{number}", network)


def _find_ways(engine: Engine) -> dict[str, dict[str, Path]]:
    """Return from where to where it goes, by way and kind."""
    numbers = {kind: number for number, kind in enumerate(KINDS)}
    address = {
        kind: str(steps.endpoint(engine, f"server{number}", f"net{number}")["IPAddress"])
        for kind, number in numbers.items()
    }
    most = {UNTRANSLATED: Path(engine, HOST, address[OURS[0]], 0)}
    return {
        "container to container": {
            kind: Path(engine, f"client{number}", address[kind], 0)
            for kind, number in numbers.items()
        },
        "published port from another host": {
            kind: Path(engine, LAN, HOST_ADDRESS[4], number) for kind, number in numbers.items()
        },
        BY_RELAY: {kind: Path(engine, HOST, "::1", number) for kind, number in numbers.items()},
        BY_LOOPBACK: most
        | {kind: Path(engine, HOST, LOOPBACK, number) for kind, number in numbers.items()},
    }


def _measure(
    how: Callable[[Engine, str, str, int], float], port: int, runs: int, paths: dict[str, Path]
) -> dict[str, Series]:
    """Measure all of a way's kinds, in turn."""
    return interleave(
        runs,
        {
            kind: partial(how, path.engine, path.place, path.address, port + path.offset)
            for kind, path in paths.items()
        },
    )
