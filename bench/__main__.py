"""Run every benchmark on a private engine, print the table, write the results."""

from __future__ import annotations

import sys
from importlib.metadata import version

from bench.measure import render_table, write_results
from bench.starts import measure_starts
from tests.engine.engine import Engine


def main() -> int:
    """Return 0 if every target is reached."""
    with Engine("forky") as engine:
        engine.start_driver()
        rows = measure_starts(engine)
        versions = {"pynet": version("pynet"), "docker": engine.version}
    print(render_table(rows))
    print(f"\nwritten to {write_results('starts', rows, versions).name}")
    return 0 if all(row.is_reached for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
