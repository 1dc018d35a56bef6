"""Be the `pynet` command: its words, its tables, its exit codes; asks `plugin.inventory`."""

from __future__ import annotations

import json
import os
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import click

from driver.errors import DriverError
from plugin.settings import parse_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from plugin.inventory import Inventory

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Drive Docker networks that have their own kernel parameters."""


@main.command()
def serve() -> None:
    """Serve the driver in the foreground.

    Settings come from the environment; docs/options.md lists them. Listens on the sockets that
    systemd hands over, else on PYNET_SOCKET.
    """
    from plugin.listen import Names  # noqa: PLC0415 - only this command needs it

    names = Names()
    try:
        settings = parse_settings(os.environ)
        if not names.inherit():
            names.open(settings.socket)
        # Only now: what it imports takes longer than Docker should wait for a socket.
        from plugin.server import serve as run  # noqa: PLC0415

        run(settings, names)
    except DriverError as error:
        raise click.ClickException(str(error)) from error
    finally:
        names.remove()


@main.command("version")
@as_json_option
def show_version(*, as_json: bool) -> None:
    """Print the version of this program and of the driver that answers.

    Example: pynet version --json
    """
    from plugin.ask import AskError, ask_driver  # noqa: PLC0415
    from plugin.version import find_revision, find_version  # noqa: PLC0415

    own = {"version": find_version(), "revision": find_revision()}
    try:
        driver = ask_driver(parse_settings(os.environ).socket, "/version")
    except AskError as error:
        driver, silence = None, str(error)
    if as_json:
        _print_json({"program": own, "driver": driver})
        return
    click.echo(f"program: pynet {own['version']}, revision {own['revision']}")
    click.echo(
        f"driver:  {silence}"
        if driver is None
        else f"driver:  pynet {driver['version']}, revision {driver['revision']}"
    )


@main.command("ls")
@as_json_option
def list_networks(*, as_json: bool) -> None:
    """List the networks.

    Example: pynet ls
    """
    inventory = _take_inventory()
    if as_json:
        _print_json([_named_network(inventory, network) for network in inventory.networks])
        return
    rows = [
        (
            inventory.network_name(network),
            network["id"][:12],
            network["bridge"],
            " ".join(pool["subnet"] for pool in network["pools"]),
            str(len(network["endpoints"])),
            str(len(network["sysctls"])),
        )
        for network in inventory.networks
    ]
    _print_table(("NETWORK", "ID", "BRIDGE", "POOLS", "ENDPOINTS", "SYSCTLS"), rows)


@main.command("ports")
@as_json_option
def list_ports(*, as_json: bool) -> None:
    """List the published ports, which `docker ps` cannot show for a remote driver.

    Example: pynet ports --json
    """
    inventory = _take_inventory()
    ports = [
        {
            "network": inventory.network_name(network),
            "container": inventory.container_name(endpoint),
            **port,
        }
        for network in inventory.networks
        for endpoint in network["endpoints"]
        for port in endpoint["ports"]
    ]
    if as_json:
        _print_json(ports)
        return
    rows = [
        (
            port["network"],
            port["container"],
            _place(port["host_ip"], port["host_port"]) if port["host_ip"] else "-",
            _place(port["container_ip"], port["container_port"]),
            port["protocol"],
        )
        for port in ports
    ]
    _print_table(("NETWORK", "CONTAINER", "HOST", "CONTAINER PORT", "PROTOCOL"), rows)


@main.command("inspect")
@click.argument("name", metavar="NETWORK|CONTAINER")
def inspect(name: str) -> None:
    """Print all that the driver knows of a network or of a container's endpoints, as JSON.

    Example: pynet inspect back
    """
    from plugin.ask import AskError  # noqa: PLC0415

    inventory = _take_inventory()
    try:
        found = _find(inventory, name)
    except AskError as error:
        raise click.ClickException(str(error)) from error
    if not found:
        raise click.ClickException(f"no network and no container of pynet's is called {name}")
    _print_json(found)


def _find(inventory: Inventory, name: str) -> dict[str, Any] | list[dict[str, Any]]:
    from plugin.ask import find_interface  # noqa: PLC0415

    network = inventory.find_network(name)
    if network is not None:
        return _named_network(inventory, network)
    driver = parse_settings(os.environ).socket
    return [
        {
            "container": inventory.container_name(endpoint),
            "network": inventory.network_name(network),
            "bridge": network["bridge"],
            "sandbox_end": find_interface(driver, endpoint),
            **endpoint,
        }
        for network, endpoint in inventory.find_endpoints(name)
    ]


def _take_inventory() -> Inventory:
    from plugin.ask import AskError  # noqa: PLC0415
    from plugin.inventory import take_inventory  # noqa: PLC0415

    try:
        inventory = take_inventory(parse_settings(os.environ).socket)
    except (AskError, DriverError) as error:
        raise click.ClickException(str(error)) from error
    if inventory.docker_failure is not None:
        click.echo(f"ids instead of names: {inventory.docker_failure}", err=True)
    return inventory


def _named_network(inventory: Inventory, network: dict[str, Any]) -> dict[str, Any]:
    endpoints = [
        {"container": inventory.container_name(endpoint), **endpoint}
        for endpoint in network["endpoints"]
    ]
    return {"name": inventory.network_name(network), **network, "endpoints": endpoints}


def _place(ip: str, port: int) -> str:
    return f"{ip}:{port}" if ip_address(ip).version == 4 else f"[{ip}]:{port}"  # noqa: PLR2004


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def _print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns as `docker ps` does; on a terminal as wide as that is, else as they come."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(*head, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 10_000
    # [::]:80 is an address and no markup.
    Console(width=width, highlight=False, markup=False, emoji=False).print(table)


if __name__ == "__main__":
    main()
