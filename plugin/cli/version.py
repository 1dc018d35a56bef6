"""Be `pynet version`: which pynet this is, and which one answers."""

from __future__ import annotations

import os

import click

from plugin.ask import AskError, ask_driver
from plugin.cli.terminal import json_option, print_json
from plugin.settings import parse_settings
from plugin.version import find_revision, find_version


@click.command
@json_option
def show_version(*, as_json: bool) -> None:
    """Print the version of this program and of the driver that answers.

    \b
    Examples:
      pynet version
      pynet version --json
    """
    own = {"version": find_version(), "revision": find_revision()}
    try:
        driver = ask_driver(parse_settings(os.environ).socket, "/version")
    except AskError as error:
        driver, silence = None, str(error)
    if as_json:
        print_json({"program": own, "driver": driver})
        return
    click.echo(f"program: pynet {own['version']}, revision {own['revision']}")
    click.echo(
        f"driver:  {silence}"
        if driver is None
        else f"driver:  pynet {driver['version']}, revision {driver['revision']}"
    )
