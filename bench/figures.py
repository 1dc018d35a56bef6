"""Put what was measured last into README: what has a target, and both attachments in a row."""

from __future__ import annotations

from typing import Any

from bench.__main__ import FAMILIES
from bench.results import read_results

FIGURES = "<!-- figures: made by `python -m tests.render_docs` from bench/results -->"
END_OF_FIGURES = "<!-- end of figures -->"


def render_figures() -> str:
    """Return the table of all that was measured last and has a target, both attachments in a row.

    Raises FileNotFoundError if a family was never measured.
    """
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for family in FAMILIES:
        for row in read_results(family)["rows"]:
            if row["target"]:
                rows.setdefault(row["what"], {})[row["how"]] = row
    lines = ["| what | beside | handed over | `pynet.attach=direct` |", "|---|---|---|---|"]
    lines += (_figure_line(what, of_how) for what, of_how in rows.items())
    return "\n".join((FIGURES, "", *lines, "", END_OF_FIGURES))


def _figure_line(what: str, of_how: dict[str, dict[str, Any]]) -> str:
    both = next(iter(of_how.values()))
    cells = [_figure(of_how[how]) for how in ("handover", "direct") if how in of_how]
    cells = cells or [_figure(both), "the same"]
    return " | ".join((f"| {what}", both["peer"] or "–", *cells)) + " |"


def _figure(row: dict[str, Any]) -> str:
    unit = "×" if row["peer"] else row["unit"]
    value = f"{row['value']:.3g} {unit}"
    return f"{value if row['reached'] else f'**{value}**'} ({row['target']})"


def place_figures(text: str) -> str:
    """Return a README with the figures in their place; raises ValueError if it has none."""
    before, _, rest = text.partition(FIGURES)
    _, end, after = rest.partition(END_OF_FIGURES)
    if not end:
        raise ValueError(f"README has no place for figures: {FIGURES} … {END_OF_FIGURES}")
    return before + render_figures() + after
