"""Measure what `pynet.guard` costs: of packets, bridged and by way of the host, and of a start."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from bench.ends import LAN, echoing, measure_round_trip, measure_throughput, sinking
from bench.measure import Results, Row, interleave
from bench.stage import private_engine
from bench.starts import measure_calls
from driver.model import Guard
from tests.engine import steps
from tests.engine.site import LAN_ADDRESS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.engine.engine import Engine

SINK, ECHO = 5201, 7007
RUNS, STARTS = 21, 40
# How much of its throughput, and of its round trips, a guard may take, and of a start.
LIMITS = {Guard.NETWORK: 0.03, Guard.ADDRESS: 0.07}
START_MILLISECONDS = 0.5
UNGUARDED = "`pynet.guard=off`"


def measure() -> Results:
    """Return the rows for each guard beside none."""
    with private_engine() as engine, ExitStack() as stack:
        for guard in Guard:
            words = ("-d", "pynet", "-o", f"pynet.guard={guard}", guard)
            engine.docker("network", "create", *words)
        rows = _starts(engine)  # while no other container is there
        for guard in Guard:
            for end in ("server", "client"):
                steps.run(engine, f"{guard}-{end}", guard)
            stack.enter_context(sinking(engine, f"{guard}-server", SINK))
            stack.enter_context(echoing(engine, f"{guard}-server", ECHO))
        stack.enter_context(sinking(engine, LAN, SINK))
        stack.enter_context(echoing(engine, LAN, ECHO))
        servers = {
            guard: str(steps.endpoint(engine, f"{guard}-server", guard)["IPAddress"])
            for guard in Guard
        }
        for way, addresses in (
            ("container to container", servers),
            ("container to another host", dict.fromkeys(Guard, LAN_ADDRESS[4])),
        ):
            rows += _compare(engine, way, addresses)
        version = engine.version
    return Results(version, tuple(rows))


def _compare(engine: Engine, way: str, addresses: dict[Guard, str]) -> list[Row]:
    """Return the rows of throughput and round trip for each guard beside none."""
    rows = []
    for what, unit, port, how in (
        ("TCP throughput", "Gbit/s", SINK, measure_throughput),
        ("TCP round trip", "µs", ECHO, measure_round_trip),
    ):
        taken = interleave(RUNS, _variants(engine, addresses, port, how))
        for guard, limit in LIMITS.items():
            is_more_better = how is measure_throughput
            rows.append(
                Row(
                    f"{what}, {way}, `pynet.guard={guard}`",
                    unit,
                    taken[guard],
                    UNGUARDED,
                    taken[Guard.OFF],
                    "handover",
                    1 - limit if is_more_better else 1 + limit,
                    at_least=is_more_better,
                )
            )
    return rows


def _variants(
    engine: Engine,
    addresses: dict[Guard, str],
    port: int,
    how: Callable[[Engine, str, str, int], float],
) -> dict[Guard, Callable[[], float]]:
    return {
        guard: partial(how, engine, f"{guard}-client", addresses[guard], port) for guard in Guard
    }


def _starts(engine: Engine) -> list[Row]:
    """Return what the driver's calls of a life take more with a guard than without."""
    taken = interleave(
        STARTS, {guard: partial(measure_calls, engine, str(guard)) for guard in Guard}
    )
    return [
        Row(
            f"the driver's calls of a container's life, `pynet.guard={guard}`, over {UNGUARDED}",
            "ms",
            taken[guard].above(taken[Guard.OFF].median),
            how="handover",
            limit=START_MILLISECONDS,
        )
        for guard in LIMITS
    ]
