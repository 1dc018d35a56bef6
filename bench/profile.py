"""Say where the time of a container's life goes, from the command to its end, step by step.

`docker run --rm` on an engine whose driver writes down its spans (`bench.spans`). Everybody's clock
is the same, so the driver's calls can be placed in the command's time, and what is between them is
the engine's: libnetwork's between Join and ProgramExternalConnectivity, and before DeleteEndpoint.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.measure import Results
from bench.stage import private_engine
from bench.starts import NETWORKS, OURS, settle
from tests.engine.driver import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from bench.measure import Span
    from tests.engine.engine import Engine

RUNS, WARM_UP = 25, 3
LIBNETWORK = {
    "ProgramExternalConnectivity": "libnetwork: resolver's rules, interface and routes",
    "DeleteEndpoint": "libnetwork: interface back to the host",
}
ENGINE = {
    "CreateEndpoint": "docker, dockerd, containerd, runc: until the network is needed",
    "RevokeExternalConnectivity": "the container's process, its end, and the engine's notice of it",
}
NANO_PER_MILLI = 1e6


@dataclass(frozen=True, slots=True)
class _Span:
    name: str
    thread: int
    begin: int
    end: int

    def holds(self, other: _Span) -> bool:
        """Tell whether the other span lies in this one."""
        return self.begin <= other.begin and other.end <= self.end


def measure() -> Results:
    """Return the waterfalls of both ways to attach, with one published port."""
    spans = {}
    with private_engine() as engine:
        assert engine.driver is not None
        engine.driver.terminate()
        path = engine.folder / "spans"
        instrumented = f"{REPOSITORY}/bench/instrument:{REPOSITORY}"
        engine.start_driver(env={"PYTHONPATH": instrumented, "PYNET_SPANS": str(path)})
        for how in OURS:
            engine.docker("network", "create", *NETWORKS[how], how)
            lives = [_live(engine, how, path) for _ in range(RUNS + WARM_UP)][WARM_UP:]
            spans[f"docker run --rm -p 8080:80 on pynet ({how})"] = tuple(_lay_out(lives))
        version = engine.version
    return Results(version, (), spans=spans)


def _live(engine: Engine, network: str, path: Path) -> list[tuple[str, float, dict[str, float]]]:
    """Return the steps of one life: name, milliseconds, and what is inside by name."""
    path.write_text("")
    began = time.monotonic_ns()
    engine.docker("run", "--rm", "-p", "8080:80", "--network", network, "bb", "true")
    ended = time.monotonic_ns()
    settle(engine)
    spans = [_Span(*json.loads(line)) for line in path.read_text().splitlines()]
    connections = sorted(
        (span for span in spans if span.name == "connection"), key=lambda span: span.begin
    )
    steps: list[tuple[str, float, dict[str, float]]] = []
    last = began
    for connection in connections:
        # Whatever thread did it: the operation has one, a sandbox is entered by one made for it.
        inside = [span for span in spans if connection.holds(span) and span.name != "connection"]
        call = next(span for span in inside if span.name.startswith("call "))
        inside = [span for span in inside if span == call or not span.name.startswith("call ")]
        name = call.name.split()[1]
        steps.append((f"before {name}", (connection.begin - last) / NANO_PER_MILLI, {}))
        steps.append((name, _milliseconds(connection), _parts(connection, call, inside)))
        last = connection.end
    steps.append(("end", (ended - last) / NANO_PER_MILLI, {}))
    return steps


def _parts(connection: _Span, call: _Span, inside: Iterable[_Span]) -> dict[str, float]:
    """Return the milliseconds by name of what a call consists of; what has no name is Python."""
    parts: dict[str, float] = {"HTTP": _milliseconds(connection) - _milliseconds(call)}
    # Inside a thread of its own the same time would be counted twice.
    threads = [span for span in inside if span.name.startswith("thread")]
    for span in sorted(inside, key=lambda span: span.begin):
        if span == call or any(each.holds(span) and each != span for each in threads):
            continue
        parts[span.name] = parts.get(span.name, 0.0) + _milliseconds(span)
    parts["the rest of the driver"] = _milliseconds(connection) - sum(parts.values())
    return parts


def _lay_out(lives: list[list[tuple[str, float, dict[str, float]]]]) -> Iterator[Span]:
    """Yield the medians of all lives, one after the other in time."""
    lengths: dict[tuple[int, str], list[float]] = defaultdict(list)
    parts: dict[tuple[int, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    usual = statistics.mode(tuple(name for name, _, _ in life) for life in lives)
    for life in lives:
        if tuple(name for name, _, _ in life) != usual:
            continue  # a call more or less: an EndpointOperInfo, now and then
        for number, (name, length, inside) in enumerate(life):
            lengths[number, name].append(length)
            for part, one in inside.items():
                parts[number, name][part].append(one)
    at = 0.0
    for key, values in lengths.items():
        length = statistics.median(values)
        yield _span(key[1], at, length)
        inner = at
        for part, taken in parts[key].items():
            middle = statistics.median(taken)
            if middle >= 0.05:
                yield part, inner, middle, 1, "inside"
            inner += middle
        at += length


def _span(name: str, at: float, length: float) -> Span:
    if name == "end":
        return "the engine's rest", at, length, 0, "engine"
    before = name.removeprefix("before ")
    if before == name:
        return name, at, length, 0, "pynet"
    if before in LIBNETWORK:
        return LIBNETWORK[before], at, length, 0, "libnetwork"
    return ENGINE.get(before, "the engine"), at, length, 0, "engine"


def _milliseconds(span: _Span) -> float:
    return (span.end - span.begin) / NANO_PER_MILLI
