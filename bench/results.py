"""Write down what was measured, as JSON and as a table, with the machine that it holds for."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.measure import render_table

if TYPE_CHECKING:
    from bench.measure import Results, Row, Series

FOLDER = Path(__file__).parent / "results"


def write_results(name: str, results: Results) -> Path:
    """Write one family's results; return the file."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    document: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "kernel": platform.release().partition("-")[0],
            "python": platform.python_version(),
            "load": round(os.getloadavg()[2], 2),
        },
        "versions": {"pynet": version("pynet"), "docker": results.engine},
        "rows": [_row(row) for row in results.rows],
        "curves": {
            title: [
                {
                    "of": curve.of,
                    "unit": curve.unit,
                    "points": {str(at): _series(series) for at, series in curve.points.items()},
                }
                for curve in curves
            ]
            for title, curves in results.curves.items()
        },
        "spans": {title: list(map(list, spans)) for title, spans in results.spans.items()},
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    if results.rows:
        (FOLDER / f"{name}.md").write_text(render_table(results.rows) + "\n")
    return path


def read_results(name: str) -> dict[str, Any]:
    """Return what was written last; raises FileNotFoundError if nothing was."""
    document: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return document


def _row(row: Row) -> dict[str, Any]:
    return {
        "what": row.what,
        "how": row.how,
        "unit": row.unit,
        "statistic": row.statistic.__name__,
        "target": row.target,
        "value": row.value,
        "reached": row.is_reached,
        "pynet": _series(row.own),
        "peer": row.peer,
        "peers": None if row.others is None else _series(row.others),
    }


def _series(series: Series) -> dict[str, Any]:
    return {
        "median": round(series.median, 6),
        "p99": round(series.p99, 6),
        "spread": series.spread,
        "values": [round(value, 6) for value in series.values],
    }
