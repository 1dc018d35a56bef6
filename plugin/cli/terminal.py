"""Print tables and JSON: for people on a terminal, for programs through a pipe. Knows no data."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PIPE_WIDTH = 10_000  # no line is broken that a program reads

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: object) -> None:
    """Print a value for programs."""
    click.echo(json.dumps(value, indent=2))


def print_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], marked: Iterable[int] = ()
) -> None:
    """Print columns as `docker ps` does, those rows that are `marked` by number in colour.

    On a terminal it is as wide as that is, cells are broken rather than cut, and there is colour
    unless NO_COLOR is set. Otherwise a row is a line.
    """
    from rich.console import Console  # noqa: PLC0415 - the managed plugin is without, and prints none
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in head:
        table.add_column(name, overflow="fold")
    colour = frozenset(marked)
    for number, row in enumerate(rows):
        table.add_row(*row, style="yellow" if number in colour else None)
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    # [::]:80 is an address and no markup.
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(table)
    # rich fills the last column with spaces, which a line of a pipe has no use for.
    text = captured.get()
    click.echo("\n".join(line.rstrip() for line in text.splitlines()), color=True)
