"""Measure the driver's own part of a container's life, beside the programs that others run for it.

Without an engine: `bench.worker` makes sandboxes and does what a runtime does. pynet's part is
every call of the protocol from the request to the answer; what libnetwork does in between is not.
What pynet does after its answer, deleting links, is over before the next life begins.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from bench.measure import Results, Row, Series, orders, p99
from bench.stage import private_engine, worker_on

if TYPE_CHECKING:
    from bench.stage import Worker

OURS = ("handover", "direct")
PEERS = {"cni": "CNI chain", "netavark": "netavark", "bare": "`ip -batch` and `nft -f`"}
ROUNDS = 60
OWN_LIVES = 3  # of pynet a round, since each is short: enough for the 99th percentile
HANDLER_CALLS = 500
MILLI = 1000


def measure() -> Results:
    """Return the rows for the driver's part and for a call that does nothing in the kernel."""
    with private_engine() as engine, worker_on(engine) as worker:
        for kind in (*OURS, *PEERS):
            worker.ask("set_up", kind=kind)
            worker.life(kind)
        taken = _interleave(worker)
        handler = _handler_time(worker)
        version = engine.version
    what = "driver's own part of a container's life"
    cni = taken["cni"]
    rows = [
        row
        for how in OURS
        for row in (
            Row(f"{what}, p50", "ms", taken[how], PEERS["cni"], cni, how, 0.06),
            Row(f"{what}, p99", "ms", taken[how], PEERS["cni"], cni, how, 0.3, statistic=p99),
            *(
                Row(f"{what}, p50", "ms", taken[how], PEERS[peer], taken[peer], how)
                for peer in ("netavark", "bare")
            ),
        )
    ]
    rows.append(
        Row("a call without kernel (HTTP, JSON, lock, store), p50", "ms", handler, limit=1.0)
    )
    return Results(version, tuple(rows))


def _interleave(worker: Worker) -> dict[str, Series]:
    """Return the milliseconds of each life."""
    taken: dict[str, list[float]] = {kind: [] for kind in (*OURS, *PEERS)}
    for order in islice(orders(taken), ROUNDS):
        for kind in order:
            for _ in range(OWN_LIVES if kind in OURS else 1):
                taken[kind].append(_total(worker.life(kind)))
    return {kind: Series(tuple(values)) for kind, values in taken.items()}


def _handler_time(worker: Worker) -> Series:
    """Return the milliseconds of calls about an endpoint that needs nothing more."""
    worker.begin("handover", number=1)
    values = [_total(worker.idle("handover", number=1)) for _ in range(HANDLER_CALLS)]
    worker.end("handover", number=1)
    return Series(tuple(values))


def _total(steps: list[tuple[str, float]]) -> float:
    return sum(seconds for _, seconds in steps) * MILLI
