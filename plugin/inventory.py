"""Put together what the driver has with the names that Docker gives it; for the command line.

The driver is asked on its socket, Docker through its API. Docker may be down: then ids stand in
for names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import docker
from docker.errors import DockerException
from requests.exceptions import RequestException

from driver.model import ID_LENGTH
from plugin.ask import TIMEOUT_SECONDS, AskError, ask_driver

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Inventory:
    """The driver's networks, and Docker's names for networks and endpoints' containers, by id."""

    networks: tuple[dict[str, Any], ...]
    network_names: Mapping[str, str]
    container_names: Mapping[str, str]
    docker_failure: str | None

    def network_name(self, network: Mapping[str, Any]) -> str:
        """Return Docker's name of the network, its short id if Docker cannot be asked."""
        identity = str(network["id"])
        return self.network_names.get(identity, identity[:ID_LENGTH])

    def container_name(self, endpoint: Mapping[str, Any]) -> str:
        """Return the name of the endpoint's container, the endpoint's short id otherwise."""
        identity = str(endpoint["id"])
        return self.container_names.get(identity, identity[:ID_LENGTH])

    def find_network(self, name: str) -> dict[str, Any] | None:
        """Return the network of this name or unambiguous id prefix, None if there is none."""
        exact = [each for each in self.networks if name in {self.network_name(each), each["id"]}]
        return _only(name, exact or [each for each in self.networks if each["id"].startswith(name)])

    def find_endpoints(self, container: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Return the endpoints, each behind its network, of a container by name or endpoint id."""
        return [
            (network, endpoint)
            for network in self.networks
            for endpoint in network["endpoints"]
            if self.container_name(endpoint) == container or endpoint["id"].startswith(container)
        ]


def take_inventory(path: Path) -> Inventory:
    """Ask the driver, then Docker. Raises AskError if the driver does not answer."""
    networks = tuple(ask_driver(path, "/networks")["networks"])
    try:
        network_names, container_names = _ask_docker()
    except (DockerException, RequestException) as error:
        return Inventory(networks, {}, {}, str(error))
    return Inventory(networks, network_names, container_names, None)


def _ask_docker() -> tuple[dict[str, str], dict[str, str]]:
    client = docker.from_env(timeout=int(TIMEOUT_SECONDS))
    try:
        networks = {each["Id"]: each["Name"] for each in client.api.networks()}
        containers = {
            settings["EndpointID"]: container["Names"][0].lstrip("/")
            for container in client.api.containers(all=True)
            for settings in container["NetworkSettings"]["Networks"].values()
            if settings["EndpointID"]
        }
    finally:
        client.close()
    return networks, containers


def _only(name: str, found: list[dict[str, Any]]) -> dict[str, Any] | None:
    if len(found) > 1:
        raise AskError(f"{name} is ambiguous: {len(found)} networks begin so")
    return found[0] if found else None
