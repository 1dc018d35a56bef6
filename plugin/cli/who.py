"""Find what a person means by NETWORK or CONTAINER, for every command that takes one."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from driver.options import NETWORK_OPTIONS
from plugin.errors import AskError
from plugin.settings import parse_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from plugin.inventory import Inventory

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
        click.echo(f"ids instead of names: {inventory.docker_failure}", err=True)
    return inventory


def _take_inventory() -> Inventory:
    # Only here: every command finds the socket by this module, and the plugin has no docker.
    from plugin.inventory import take_inventory  # noqa: PLC0415

    return take_inventory(socket_path())


def complete_networks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of networks that begin so, for a shell."""
    del ctx, param
    return [name for name in _names(containers=False) if name.startswith(incomplete)]


def complete_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of networks and containers that begin so, for a shell."""
    del ctx, param
    return [name for name in _names(containers=True) if name.startswith(incomplete)]


def complete_parameters(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return what `pynet set` may give a value to, as `name=`, for a shell."""
    del ctx, param
    from plugin.ask import ask_driver  # noqa: PLC0415 - as above: an HTTP client is slow to come

    names = {f"{option.name}=" for option in NETWORK_OPTIONS if option.field}
    with suppress(AskError):
        names |= {f"{key}=" for key in ask_driver(socket_path(), "/sysctls")["pristine"]}
    return sorted(name for name in names if name.startswith(incomplete))


def _names(*, containers: bool) -> list[str]:
    try:
        inventory = _take_inventory()
    except AskError:
        return []  # a shell that completes has no place for an error
    names = {inventory.network_name(network) for network in inventory.networks}
    if containers:
        names |= {container.name for container in inventory.our_containers()}
    return sorted(names)
