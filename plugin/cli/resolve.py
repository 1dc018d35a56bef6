"""Resolve a NETWORK or CONTAINER argument to one object."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from typing import TYPE_CHECKING

from driver.options import NETWORK_OPTIONS
from plugin.cli.errors import AskError
from plugin.cli.output import print_line
from plugin.settings import parse_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import click

    from plugin.cli.names import Inventory

    Completion = Callable[[click.Context, click.Parameter, str], list[str]]


def socket_path() -> Path:
    """Return where the driver is to be asked; raises InvalidRequest for a wrong setting."""
    return parse_settings(os.environ).socket


def look_around() -> Inventory:
    """Ask driver and Docker; says on standard error when ids have to stand in for names.

    Raises AskError if the driver does not answer.
    """
    inventory = _take_inventory()
    if inventory.docker_failure is not None:
        print_line(f"ids instead of names: {inventory.docker_failure}", err=True)
    return inventory


def _take_inventory() -> Inventory:
    # Only here: every command finds the socket by this module, and the plugin has no docker.
    from plugin.cli.names import take_inventory  # noqa: PLC0415

    return take_inventory(socket_path())


def complete_networks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of networks that begin so, for a shell."""
    del ctx, param
    return _complete(_names(containers=False), incomplete)


def complete_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of networks and containers that begin so, for a shell."""
    del ctx, param
    return _complete(_names(containers=True), incomplete)


def complete_parameters(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return what `pynet set` may give a value to, as `name=`, for a shell."""
    del ctx, param
    from plugin.cli.client import ask_driver  # noqa: PLC0415 - as above: an HTTP client is slow to come

    names = {f"{option.name}=" for option in NETWORK_OPTIONS if option.field}
    with suppress(AskError):
        names |= {f"{key}=" for key in ask_driver(socket_path(), "/sysctls")["pristine"]}
    return _complete(names, incomplete)


def _complete(names: Iterable[str], incomplete: str) -> list[str]:
    """Return those that begin so, but for what a shell would take for more than a word.

    Shells put a name on the command line as it is, which may be what was meant.
    """
    return sorted(
        name for name in names if name.startswith(incomplete) and shlex.quote(name) == name
    )


def _names(*, containers: bool) -> set[str]:
    try:
        inventory = _take_inventory()
    except AskError:
        return set()  # a shell that completes has no place for an error
    names = {inventory.network_name(network) for network in inventory.networks}
    if containers:
        names |= {container.name for container in inventory.our_containers()}
    return names
