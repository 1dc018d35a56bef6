"""Show tables in place on a terminal, anew at each turn, as many lines as it has."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.text import Text

from plugin.cli.output import make_console, make_table
from plugin.escape import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import RenderableType

    Table = tuple[Sequence[str], Sequence[Sequence[str]], Sequence[int]]


@contextmanager
def open_screen() -> Iterator[Callable[[str, Sequence[Table]], None]]:
    """Take the terminal over the block; lends what shows a line and tables below it.

    A table is its head, its rows, and which rows are marked. The terminal is as it was afterwards.
    """
    console = make_console()
    with Live(console=console, screen=True, auto_refresh=False) as live:

        def show(line: str, tables: Sequence[Table]) -> None:
            parts: list[RenderableType] = [Text(escape(line), no_wrap=True, overflow="ellipsis")]
            room = console.size.height - 1
            for number, (head, rows, marked) in enumerate(tables):
                # Half of what is left, and all of it for the last one.
                left = room if number == len(tables) - 1 else max(room // 2, room - _lines(tables))
                visible = max(0, min(len(rows), left - 3))
                parts += [Text(), make_table(head, rows[:visible], marked, range(len(head)))]
                if hidden := len(rows) - visible:
                    parts.append(Text(f"… {hidden} more"))
                room -= visible + 3
            live.update(Group(*parts), refresh=True)

        yield show


def _lines(tables: Sequence[Table]) -> int:
    """Return how many lines the tables behind the first one want."""
    return sum(len(rows) + 3 for _, rows, _ in tables[1:])
