"""Measure new connections a second to one port while many others are published."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from bench.ends import LAN, echoing, measure_connections
from bench.measure import Results, Row, interleave
from bench.stage import private_engine
from bench.starts import BRIDGE, NETWORKS, OURS
from tests.engine import steps
from tests.engine.site import HOST_ADDRESS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.engine.engine import Engine

RUNS = 8
PORT = 80
FIRST_OTHER = 20000
SOME, MANY = 500, 5000
ADDRESS = HOST_ADDRESS[4]


def measure() -> Results:
    """Return the rows: beside the built-in bridge at 500, and beside itself at none and 5,000."""
    with ExitStack() as stack:
        alone, crowded, full, peer = (stack.enter_context(private_engine()) for _ in range(4))
        variants: dict[str, Callable[[], float]] = {}
        for name, engine, kinds, others in (
            ("alone", alone, OURS, 0),
            ("crowded", crowded, OURS, SOME),
            ("full", full, OURS, MANY),
            ("", peer, (BRIDGE,), SOME),
        ):
            for number, kind in enumerate(kinds):
                port = _start(engine, kind, number, others if number == 0 else 0)
                stack.enter_context(echoing(engine, f"web{number}", PORT))
                key = f"{name} {kind}".strip()
                variants[key] = partial(measure_connections, engine, LAN, ADDRESS, port)
        taken = interleave(RUNS, variants)
        version = alone.version
    what = "new connections to one published port"
    rows = []
    for how in OURS:
        crowd = f"{what}, {SOME} others published"
        own, others_there = taken[f"crowded {how}"], taken[BRIDGE]
        rows.append(Row(crowd, "/s", own, BRIDGE, others_there, how, 1.1, at_least=True))
        own, none_there = taken[f"full {how}"], taken[f"alone {how}"]
        at = f"{what}, {MANY:,} others over none"
        rows.append(Row(at, "/s", own, "itself with none", none_there, how, 0.97, at_least=True))
    return Results(version, tuple(rows))


def _start(engine: Engine, kind: str, number: int, others: int) -> int:
    """Have a container that publishes one port, after half of the others and before the rest.

    Where each packet is compared with one port after the other, the first is found at once and the
    last costs most; in the middle is what anybody's port costs.
    """
    network, port = f"net{number}", 8080 + number
    engine.docker("network", "create", *NETWORKS[kind], network)
    half = others // 2
    _publish(engine, network, range(FIRST_OTHER, FIRST_OTHER + half))
    steps.run(engine, f"web{number}", network, "-p", f"{port}:{PORT}")
    _publish(engine, network, range(FIRST_OTHER + half, FIRST_OTHER + others))
    # Connections that were reset are remembered for ten seconds, and fill the table.
    engine.run("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_close=1")
    return port


def _publish(engine: Engine, network: str, ports: range) -> None:
    """Have a container that publishes these ports, if any."""
    if ports:
        span = f"{ports[0]}-{ports[-1]}"
        words = ("-d", "--network", network, "-p", f"{span}:{span}")
        engine.docker("run", *words, "bb", "sleep", "1000", timeout=300)
