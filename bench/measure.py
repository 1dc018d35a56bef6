"""Repeat measurements interleaved, summarise them, and write them down; measures nothing itself."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Series:
    """Repeated measurements of one thing, in one unit."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def spread(self) -> str:
        """The smallest and the largest value."""
        return f"{min(self.values):.3g}–{max(self.values):.3g}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a peer, pynet, their ratio and what it is to be at most."""

    what: str
    unit: str
    peer: float
    pynet: float
    limit: str
    is_reached: bool
    runs: int
    peer_runs: int
    spread: str

    @property
    def ratio(self) -> float:
        """What pynet takes for each unit that the peer takes."""
        return self.pynet / self.peer if self.peer else 0.0


def interleave(runs: int, variants: Mapping[str, Callable[[], float]]) -> dict[str, Series]:
    """Run every variant once a round, so that a noisy minute hits all of them alike."""
    values: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(runs):
        for name, measure in variants.items():
            values[name].append(measure())
    return {name: Series(tuple(taken)) for name, taken in values.items()}


def clock(action: Callable[[], object]) -> float:
    """Return the seconds that an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def render_table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    head = "| what | unit | built-in bridge | pynet | ratio | target | | runs | pynet's spread |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    lines += [
        f"| {row.what} | {row.unit} | {row.peer:.4g} | {row.pynet:.4g} | {row.ratio:.3f} "
        f"| {row.limit} | {'reached' if row.is_reached else 'NOT REACHED'} "
        f"| {row.peer_runs} and {row.runs} "
        f"| {row.spread} |"
        for row in rows
    ]
    return "\n".join(lines)


def write_results(name: str, rows: list[Row], versions: Mapping[str, str]) -> Path:
    """Write the rows with the machine and the versions that they hold for."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    document: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "kernel": platform.release().partition("-")[0],
            "python": platform.python_version(),
        },
        "versions": dict(versions),
        "rows": [asdict(row) | {"ratio": row.ratio} for row in rows],
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path
