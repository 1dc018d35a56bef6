"""Measure how the cost of one more container grows with those that are there.

pynet at 1,000 endpoints and 1,000 published ports beside itself at one, and the peers as far as one
has the patience to fill them. The hosts are there at once: one with few containers, and for each
way to attach one with many on the same network.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from bench.measure import Curve, Results, Row, Series, interleave, interleave_some
from bench.stage import private_engine, worker_on

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.stage import Worker

OURS = ("handover", "direct")
PEERS = {"cni": "CNI chain", "netavark": "netavark"}
COUNTS = (1, 10, 30, 100, 300, 1000)
PEERS_UP_TO = 100  # a third of a second each, and each slower than the one before
LIVES, PEER_LIVES = 12, 5
COMPARED = 100  # lives on either host at the end
BEYOND = 1500
FULL = "that part at 1,000 endpoints and 1,000 ports over that at 1"
PAST = f"that part at {BEYOND:,} on one network, which has two bridges then, over that at 1"
LIMITS = {FULL: 1.25, PAST: 1.15}
MILLI = 1000


def measure() -> Results:
    """Return the rows at 1,000 and at 1,500 over 1, and the curves."""
    with ExitStack() as stack:
        engines = [stack.enter_context(private_engine()) for _ in ("few", *OURS)]
        few, *full = (stack.enter_context(worker_on(engine)) for engine in engines)
        for worker in (few, *full):
            for kind in (*OURS, *PEERS):
                worker.ask("set_up", kind=kind)
                worker.life(kind)
        many = dict(zip(OURS, full, strict=True)) | dict.fromkeys(PEERS, full[0])
        points = _fill(many)
        for kind in OURS:
            few.begin(kind, number=1)
        rows = [_compare(kind, few, many[kind], FULL) for kind in OURS]
        for kind in OURS:
            for number in range(COUNTS[-1] + 1, BEYOND + 1):
                many[kind].begin(kind, number=number)
        rows += [_compare(kind, few, many[kind], PAST) for kind in OURS]
        version = engines[0].version
    curves = tuple(
        Curve(PEERS.get(kind, f"pynet, {kind}"), "ms", at) for kind, at in points.items()
    )
    return Results(
        version, tuple(rows), {"One more container's network beside those there": curves}
    )


def _fill(workers: Mapping[str, Worker]) -> dict[str, dict[int, Series]]:
    """Add containers, and measure one more at each count; return all of it by kind."""
    points: dict[str, dict[int, Series]] = {kind: {} for kind in workers}
    there = dict.fromkeys(workers, 0)
    for count in COUNTS:
        kinds = (*OURS, *(PEERS if count <= PEERS_UP_TO else ()))
        for kind in kinds:
            while there[kind] < count:
                there[kind] += 1
                workers[kind].begin(kind, number=there[kind])
        runs = {kind: LIVES if kind in OURS else PEER_LIVES for kind in kinds}
        lives = {kind: partial(_life, workers[kind], kind) for kind in kinds}
        for kind, series in interleave_some(runs, lives).items():
            points[kind][count] = series
    return points


def _compare(kind: str, few: Worker, many: Worker, what: str) -> Row:
    """Return the row that compares a life on the full host with one beside a single other."""
    lives = {"few": partial(_life, few, kind), "many": partial(_life, many, kind)}
    taken = interleave(COMPARED, lives)
    return Row(what, "ms", taken["many"], "itself at 1", taken["few"], kind, LIMITS[what])


def _life(worker: Worker, kind: str) -> float:
    seconds = sum(seconds for _, seconds in worker.life(kind))
    return seconds * MILLI
