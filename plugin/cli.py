"""Be the `pynet` command; the only module that may talk to the Docker API."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

import click

from driver.errors import DriverError
from plugin.settings import parse_settings


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Drive Docker networks that have their own kernel parameters."""


@main.command()
def serve() -> None:
    """Serve the driver in the foreground.

    Settings come from the environment: PYNET_SOCKET, PYNET_STATE_DIR, PYNET_LOG_LEVEL.
    """
    from plugin.server import serve as run  # noqa: PLC0415 - only this command needs gunicorn

    try:
        run(parse_settings(os.environ))
    except DriverError as error:
        raise click.ClickException(str(error)) from error


@main.command("version")
def show_version() -> None:
    """Print the version."""
    try:
        click.echo(version("pynet"))
    except PackageNotFoundError:
        click.echo("unknown: pynet is not installed as a package")


if __name__ == "__main__":
    main()
