"""`pynet version`: versions of the command and of the running driver."""

from __future__ import annotations

import click

from plugin.cli.client import ask_driver
from plugin.cli.errors import AskError
from plugin.cli.output import json_option, print_json, print_line
from plugin.cli.resolve import socket_path
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
        driver = ask_driver(socket_path(), "/version")
    except AskError as error:
        driver, silence = None, str(error)
    if as_json:
        print_json({"program": own, "driver": driver})
        return
    print_line(f"program: pynet {own['version']}, revision {own['revision']}")
    print_line(
        f"driver:  {silence}"
        if driver is None
        else f"driver:  pynet {driver['version']}, revision {driver['revision']}"
    )
