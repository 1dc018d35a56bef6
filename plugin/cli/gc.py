"""`pynet gc`: list what Docker no longer knows, and remove it when asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from plugin.cli import DIFFERS
from plugin.cli.leftovers import compare_with_docker, remove_if_left_over
from plugin.cli.output import json_option, print_json, print_line, print_table
from plugin.cli.resolve import socket_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from plugin.cli.leftovers import Garbage


@click.command
@click.option("--dry-run", is_flag=True, help="Remove nothing; this is what happens without --yes.")
@click.option("--yes", is_flag=True, help="Remove what is listed.")
@json_option
def collect_garbage(*, dry_run: bool, yes: bool, as_json: bool) -> None:
    """List networks and endpoints that Docker no longer knows, and remove them with --yes.

    They are left when Docker removes a network while the driver is down, or dies while a container
    runs. What Docker knows and the driver does not is listed, too; that is for Docker to remove.

    \b
    Examples:
      pynet gc
      pynet gc --yes

    Exits with 4 if anything was found and is still there.
    """
    if dry_run and yes:
        raise click.UsageError("--dry-run and --yes exclude each other")
    path = socket_path()
    found = compare_with_docker(path)
    # Asked for again right before each, since Docker may just have been making what was listed.
    removed = tuple(each for each in found.garbage if yes and remove_if_left_over(path, each))
    if as_json:
        print_json(
            {
                "removed": _json(removed),
                "garbage": _json(() if yes else found.garbage),
                "unknown_to_the_driver": _json(found.lost),
            }
        )
    elif (removed if yes else found.garbage) or found.lost:
        rows = [
            *_rows(removed, "removed"),
            *_rows(() if yes else found.garbage, "unknown to Docker"),
            *_rows(found.lost, "unknown to pynet"),
        ]
        print_table(("WHAT", "ID", "STATE", "DETAILS"), rows)
    else:
        print_line("nothing is left over")
    if found.lost or (found.garbage and not yes):
        raise click.exceptions.Exit(DIFFERS)


def _rows(garbage: Iterable[Garbage], state: str) -> list[tuple[str, str, str, str]]:
    return [(each.kind, each.id[:12], state, each.text) for each in garbage]


def _json(garbage: Iterable[Garbage]) -> list[dict[str, str | None]]:
    return [
        {"kind": each.kind, "id": each.id, "network": each.network_id, "details": each.text}
        for each in garbage
    ]
