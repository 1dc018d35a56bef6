"""`pynet serve`: open the sockets, then run the server."""

from __future__ import annotations

import os

import click

from plugin.settings import parse_settings
from plugin.sockets import Names, check_free


@click.command
@click.option(
    "--check", is_flag=True, help="Serve nothing; fail if a driver answers on PYNET_SOCKET."
)
def serve(*, check: bool) -> None:
    """Serve the driver in the foreground.

    Settings come from the environment; docs/options.md lists them. Listens on the sockets that
    systemd hands over, else on PYNET_SOCKET.

    \b
    Examples:
      pynet serve
      PYNET_LOG_LEVEL=DEBUG PYNET_STATE_DIR=/srv/pynet pynet serve
    """
    settings = parse_settings(os.environ)
    if check:
        check_free(settings.socket)
        return
    names = Names()
    try:
        if not names.inherit():
            names.open(settings.socket)
        # Only now: what it imports takes longer than Docker should wait for a socket.
        from plugin.server import serve as run  # noqa: PLC0415

        run(settings, names)
    finally:
        names.remove()
