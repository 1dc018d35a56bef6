"""`pynet ls`, `pynet ports` and `pynet inspect`."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import click

from driver.diagnosis.facts import place_of
from plugin.cli.client import ask_driver, find_interface
from plugin.cli.output import json_option, print_json, print_line, print_table
from plugin.cli.resolve import complete_names, look_around, socket_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from plugin.cli.names import Inventory


@click.command
@json_option
def list_networks(*, as_json: bool) -> None:
    """List the networks.

    \b
    Examples:
      pynet ls
      pynet ls --json
    """
    inventory = look_around()
    if as_json:
        print_json([_named_network(inventory, network) for network in inventory.networks])
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
    print_table(("NETWORK", "ID", "BRIDGE", "POOLS", "ENDPOINTS", "SYSCTLS"), rows)


@click.command
@json_option
def list_ports(*, as_json: bool) -> None:
    """List the published ports, which `docker ps` cannot show for a remote driver.

    A container whose ports are not published, since its networks are internal, is told of on
    standard error.

    \b
    Examples:
      pynet ports
      pynet ports --json
    """
    inventory = look_around()
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
        print_json(ports)
        return
    rows = [
        (
            port["network"],
            port["container"],
            place_of(ip_address(port["host_ip"]), port["host_port"]) if port["host_ip"] else "-",
            place_of(ip_address(port["container_ip"]), port["container_port"]),
            port["protocol"],
        )
        for port in ports
    ]
    print_table(("NETWORK", "CONTAINER", "HOST", "CONTAINER PORT", "PROTOCOL"), rows)
    _tell_unpublished(inventory)


@click.command
@click.argument("name", metavar="NETWORK|CONTAINER", shell_complete=complete_names)
def inspect(name: str) -> None:
    """Print all that the driver knows of a network or of a container's endpoints, as JSON.

    \b
    Examples:
      pynet inspect back
      pynet inspect 7b1bea1d16bc
    """
    inventory = look_around()
    found = inventory.find(name)
    driver = socket_path()
    drops = ask_driver(driver, "/drops")["interfaces"]
    if isinstance(found, dict):
        ends = (endpoint["host_end"] for endpoint in found["endpoints"])
        links = (found["bridge"], *found["further_bridges"], *ends)
        print_json(_named_network(inventory, found) | {"dropped": _sum_drops(drops, links)})
        return
    print_json(
        [
            {
                "container": inventory.container_name(endpoint),
                "network": inventory.network_name(network),
                "sandbox_end": find_interface(driver, endpoint),
                **endpoint,
                "dropped": _sum_drops(drops, [endpoint["host_end"]]),
            }
            for network, endpoint in inventory.endpoints_of(found)
        ]
    )


def _tell_unpublished(inventory: Inventory) -> None:
    """Say which containers ask for ports that no network of theirs publishes."""
    pairs = [
        (network, endpoint) for network in inventory.networks for endpoint in network["endpoints"]
    ]
    served = {endpoint["sandbox"] for _, endpoint in pairs if endpoint["ports"]}
    for network, endpoint in pairs:
        if endpoint.get("unpublished") and endpoint["sandbox"] not in served:
            print_line(
                f"the ports of {inventory.container_name(endpoint)} are not published: network "
                f"{inventory.network_name(network)} is internal",
                err=True,
            )


def _named_network(inventory: Inventory, network: dict[str, Any]) -> dict[str, Any]:
    endpoints = [
        {"container": inventory.container_name(endpoint), **endpoint}
        for endpoint in network["endpoints"]
    ]
    return {"name": inventory.network_name(network), **network, "endpoints": endpoints}


def _sum_drops(drops: Mapping[str, Mapping[str, int]], interfaces: Iterable[str]) -> dict[str, int]:
    """Return by reason how many packets that came by these interfaces were dropped."""
    found: Counter[str] = Counter()
    for interface in interfaces:
        found.update(drops.get(interface, {}))
    return dict(found)
