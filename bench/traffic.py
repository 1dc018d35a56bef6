"""Measure what passes: between containers, from another host, and from the host by 127.0.0.1."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from bench.ends import HOST, LAN, echoing, measure_round_trip, measure_throughput, sinking
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
RUNS, LATENCY_RUNS = 7, 15
LOOPBACK = "127.0.0.1"


def measure() -> Results:
    """Return the rows for each way and each attachment."""
    with private_engine() as engine, ExitStack() as stack:
        for number, kind in enumerate(KINDS):
            _start(engine, kind, number)
            server = f"server{number}"
            stack.enter_context(sinking(engine, server, SINK))
            stack.enter_context(echoing(engine, server, ECHO))
        throughput, latency = _measure_all(engine)
        version = engine.version
    rows = []
    for how in OURS:
        for way, of_kind in throughput.items():
            limit = 2.0 if way.endswith(LOOPBACK) else 0.98
            what = f"TCP throughput, {way}"
            own, others = of_kind[how], of_kind[BRIDGE]
            rows.append(Row(what, "Gbit/s", own, BRIDGE, others, how, limit, at_least=True))
        for way, of_kind in latency.items():
            what = f"TCP round trip, {way}"
            rows.append(Row(what, "µs", of_kind[how], BRIDGE, of_kind[BRIDGE], how, 1.02))
    return Results(version, tuple(rows))


def _start(engine: Engine, kind: str, number: int) -> None:
    """Have two containers on a network, one of which publishes both its ports."""
    network = f"net{number}"
    engine.docker("network", "create", *NETWORKS[kind], network)
    published = [f"{port + number}:{port}" for port in (SINK, ECHO)]
    steps.run(engine, f"server{number}", network, "-p", published[0], "-p", published[1])
    steps.run(engine, f"client{number}", network)


def _measure_all(
    engine: Engine,
) -> tuple[dict[str, dict[str, Series]], dict[str, dict[str, Series]]]:
    """Return throughput and round trips by way and kind."""
    inside: dict[str, Callable[[int], tuple[str, str]]] = {
        "container to container": lambda number: (
            f"client{number}",
            str(steps.endpoint(engine, f"server{number}", f"net{number}")["IPAddress"]),
        ),
    }
    outside = {
        "published port from another host": (LAN, HOST_ADDRESS[4]),
        f"published port from the host by {LOOPBACK}": (HOST, LOOPBACK),
    }
    throughput, latency = {}, {}
    for way, where in inside.items():
        places = {kind: where(number) for number, kind in enumerate(KINDS)}
        throughput[way] = interleave(
            RUNS,
            {k: partial(measure_throughput, engine, *places[k], SINK) for k in KINDS},
        )
        latency[way] = interleave(
            LATENCY_RUNS,
            {k: partial(measure_round_trip, engine, *places[k], ECHO) for k in KINDS},
        )
    for way, place in outside.items():
        ports = {kind: number for number, kind in enumerate(KINDS)}
        throughput[way] = interleave(
            RUNS,
            {k: partial(measure_throughput, engine, *place, SINK + ports[k]) for k in KINDS},
        )
        if not way.endswith(LOOPBACK):
            latency[way] = interleave(
                LATENCY_RUNS,
                {k: partial(measure_round_trip, engine, *place, ECHO + ports[k]) for k in KINDS},
            )
    return throughput, latency
