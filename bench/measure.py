"""Repeat measurements interleaved, summarise them, and say what was reached; measures nothing."""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

Name = TypeVar("Name")

PERCENT = 100


@dataclass(frozen=True, slots=True)
class Series:
    """Repeated measurements of one thing, in one unit."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def p99(self) -> float:
        """The value that 99 of 100 do not exceed; the largest of fewer."""
        ordered = sorted(self.values)
        return ordered[min(len(ordered) * 99 // PERCENT, len(ordered) - 1)]

    @property
    def spread(self) -> str:
        """The values that a tenth is below and above: what a busy machine makes of it."""
        ordered = sorted(self.values)
        low, high = len(ordered) // 10, len(ordered) - 1 - len(ordered) // 10
        return f"{ordered[low]:.3g}–{ordered[high]:.3g}"

    def above(self, floor: float) -> Series:
        """Return what each value is over a floor."""
        return Series(tuple(value - floor for value in self.values))


def median(series: Series) -> float:
    """Return the middle value."""
    return series.median


def p99(series: Series) -> float:
    """Return the value that 99 of 100 do not exceed."""
    return series.p99


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what pynet was measured at, beside what, and what it is to reach.

    With a peer the limit is for the ratio of the two, without one for pynet's own value. No limit
    makes a row that only informs.
    """

    what: str
    unit: str
    own: Series
    peer: str = ""
    others: Series | None = None
    how: str = ""
    limit: float | None = None
    at_least: bool = False
    statistic: Callable[[Series], float] = field(default=median, compare=False)

    @property
    def value(self) -> float:
        """What is held to the limit."""
        own = self.statistic(self.own)
        return own if self.others is None else own / self.statistic(self.others)

    @property
    def is_reached(self) -> bool:
        """Whether it is as it should be."""
        if self.limit is None:
            return True
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def target(self) -> str:
        """The limit in words."""
        if self.limit is None:
            return ""
        unit = self.unit if self.others is None else "×"
        return f"{'≥' if self.at_least else '≤'} {self.limit:g} {unit}"


@dataclass(frozen=True, slots=True)
class Curve:
    """How the cost of something grows: its value at each number, for one way to do it."""

    of: str
    unit: str
    points: Mapping[int, Series]


# What, when it begins and how long it lasts in milliseconds, how deep it is in others, and whose.
Span = tuple[str, float, float, int, str]


@dataclass(frozen=True, slots=True)
class Results:
    """All that a family of measurements has to say, and on which engine that was."""

    engine: str
    rows: tuple[Row, ...]
    curves: Mapping[str, tuple[Curve, ...]] = field(default_factory=dict)
    spans: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)


def interleave(runs: int, variants: Mapping[Name, Callable[[], float]]) -> dict[Name, Series]:
    """Run every variant once a round, so that a noisy minute hits all of them alike."""
    return interleave_some(dict.fromkeys(variants, runs), variants)


def interleave_some(
    runs: Mapping[Name, int], variants: Mapping[Name, Callable[[], float]]
) -> dict[Name, Series]:
    """Do the same with fewer runs of what takes long, spread over the rounds of the others."""
    values: dict[Name, list[float]] = {name: [] for name in variants}
    rounds = max(runs.values())
    for number, order in zip(range(rounds), orders(variants), strict=False):
        for name in order:
            if len(values[name]) * rounds <= number * runs[name]:
                values[name].append(variants[name]())
    return {name: Series(tuple(taken)) for name, taken in values.items()}


def orders(names: Iterable[Name]) -> Iterator[list[Name]]:
    """Yield, without end, the order of one round after the other: each comes behind each alike.

    What a run leaves to do, such as namespaces that the kernel has yet to destroy, the next one
    pays for. In a fixed order that would always be the same two. The orders are balanced after as
    many rounds as there are names, after twice as many if those are odd (E. J. Williams,
    Experimental designs balanced for the estimation of residual effects of treatments, 1949).
    """
    every = tuple(names)
    zigzag = [step // -2 if step % 2 else step // 2 for step in range(len(every))]
    for number in itertools.count():
        order = [every[(step + number) % len(every)] for step in zigzag]
        yield order[::-1] if number // len(every) % 2 else order


def clock(action: Callable[[], object]) -> float:
    """Return the seconds that an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def render_table(rows: Iterable[Row]) -> str:
    """Return the rows as a Markdown table; what falls short is marked."""
    lines = [
        "| what | pynet's attach | target | measured | | pynet | peer | runs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mark = "" if row.limit is None else "reached" if row.is_reached else "**NOT REACHED**"
        own = f"{row.statistic(row.own):.4g} {row.unit} ({row.own.spread})"
        peer, runs = "–", f"{len(row.own.values)}"
        if row.others is not None:
            peer = f"{row.peer}: {row.statistic(row.others):.4g} {row.unit} ({row.others.spread})"
            runs += f" and {len(row.others.values)}"
        measured = f"{row.value:.3g}{' ×' if row.others is not None else f' {row.unit}'}"
        how = row.how or "–"
        lines.append(
            f"| {row.what} | {how} | {row.target} | {measured} | {mark} | {own} | {peer} | {runs} |"
        )
    return "\n".join(lines)
