"""Print tables, lines and JSON: for people on a terminal, for programs through a pipe.

Knows no data. Nothing else in `plugin.cli` writes (ruff's TID251 sees to that): everything is
escaped here, and here it is decided whether there is colour.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import click

from plugin.escape import escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console
    from rich.table import Table

PIPE_WIDTH = 1_000_000_000  # no line is broken that a program reads

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_line(text: str = "", *, err: bool = False) -> None:
    """Print a line for people, on standard output or standard error."""
    click.echo(escape(text), err=err)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines for people."""
    for line in lines:
        print_line(line)


def print_title(text: str) -> None:
    """Print what the lines below it are about."""
    click.secho(escape(text), bold=_has_style(), color=_has_style())


def print_json(value: object, indent: int | None = 2) -> None:
    """Print a value for programs, as printable ASCII: json escapes the rest."""
    click.echo(json.dumps(value, indent=indent, ensure_ascii=True))


def print_table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    marked: Iterable[int] = (),
    whole: Iterable[int] = (),
) -> None:
    """Print columns as `docker ps` does, those rows that are `marked` by number in colour.

    On a terminal it is as wide as that is, cells are broken rather than cut, those of the columns
    in `whole` last, and there is colour unless NO_COLOR is set. Otherwise a row is a line.
    """
    console = make_console()
    table = make_table(head, rows, marked, whole)
    with console.capture() as captured:
        console.print(table)
    # rich fills the last column with spaces, which a line of a pipe has no use for.
    text = captured.get()
    click.echo("\n".join(line.rstrip() for line in text.splitlines()), color=_has_style())


def make_table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    marked: Iterable[int] = (),
    whole: Iterable[int] = (),
) -> Table:
    """Return the table that `print_table` prints; everything in it is escaped."""
    # Only here: the managed plugin does without, and every command prints.
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    unbroken = frozenset(whole)
    for number, name in enumerate(head):
        table.add_column(name, overflow="fold", no_wrap=number in unbroken)
    colour = frozenset(marked)
    for number, row in enumerate(rows):
        table.add_row(*map(escape, row), style="yellow" if number in colour else None)
    return table


def make_console() -> Console:
    """Return standard output as rich is to see it."""
    from rich.console import Console  # noqa: PLC0415

    return Console(
        width=None if sys.stdout.isatty() else PIPE_WIDTH,
        # Not what FORCE_COLOR, TTY_COMPATIBLE or a notebook make rich believe.
        force_terminal=_has_style(),
        force_jupyter=False,
        # [red] may be a name, and [::]:80 is an address: no markup.
        highlight=False,
        markup=False,
        emoji=False,
    )


def show_live(frames: Iterable[Iterable[str]]) -> None:
    """Show lines in place of those before them, on a terminal, until there are no more."""
    from rich.console import Console  # noqa: PLC0415 - as above
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(highlight=False, markup=False, emoji=False, force_jupyter=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for lines in frames:
            shown = Text("\n".join(map(escape, lines)), no_wrap=True, overflow="ellipsis")
            live.update(shown, refresh=True)


def _has_style() -> bool:
    """Return whether escape sequences are welcome: on a terminal, unless it or its user says no."""
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not is_plain
