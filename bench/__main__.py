"""Run the benchmarks that were asked for, print the table, write results and pictures.

    python -m bench [FAMILY …]

A family is a module with a function `measure` that returns its `Results`; to add one is to name it
here.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module

from bench.measure import Row, render_table
from bench.pictures import draw_pictures
from bench.results import write_results

FAMILIES = (
    "starts",
    "profile",
    "lives",
    "growth",
    "traffic",
    "guard",
    "connections",
    "footprint",
    "watcher",
    "diagnosis",
)


def main(asked: list[str]) -> int:
    """Return 0 if every target is reached, 2 for a family that there is not."""
    if unknown := set(asked) - set(FAMILIES):
        print(f"no such family: {', '.join(sorted(unknown))}; there are {', '.join(FAMILIES)}")
        return 2
    rows: list[Row] = []
    for name in asked or FAMILIES:
        began = time.monotonic()
        results = import_module(f"bench.{name}").measure()
        path = write_results(name, results)
        rows += results.rows
        print(f"{name}: {time.monotonic() - began:.0f} s, {path.name}", file=sys.stderr)
    print(render_table(rows))
    for picture in draw_pictures():
        print(f"\ndrawn: {picture}", file=sys.stderr)
    short = [row.what for row in rows if not row.is_reached]
    print(f"\n{len(short)} of {len(rows)} fall short{': ' if short else ''}{'; '.join(short)}")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
