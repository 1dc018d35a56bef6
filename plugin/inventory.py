"""Put together what the driver has with the names that Docker gives it; for the command line.

The driver is asked on its socket, Docker through its API. Docker may be down: then ids stand in
for names.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any

import docker
import msgspec
from docker.errors import DockerException
from requests.exceptions import RequestException

from driver.model import ID_LENGTH

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TIMEOUT_SECONDS = 10.0


class InventoryError(Exception):
    """What was asked for cannot be told; the text says why."""


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
    """Ask the driver, then Docker. Raises InventoryError if the driver does not answer."""
    networks = tuple(ask_driver(path, "/networks")["networks"])
    try:
        network_names, container_names = _ask_docker()
    except (DockerException, RequestException) as error:
        return Inventory(networks, {}, {}, str(error))
    return Inventory(networks, network_names, container_names, None)


def ask_driver(path: Path, what: str) -> dict[str, Any]:
    """Return what the driver answers to a GET on its socket."""
    connection = _UnixConnection(path)
    try:
        connection.request("GET", what)
        response = connection.getresponse()
        answer = msgspec.json.decode(response.read(), type=dict[str, Any])
    except OSError as error:
        raise InventoryError(
            f"ask the driver on {path}: {error.strerror or error}; is it running?"
        ) from error
    except (HTTPException, msgspec.MsgspecError) as error:
        raise InventoryError(f"ask the driver on {path}: that is no pynet: {error}") from error
    finally:
        connection.close()
    if response.status != HTTPStatus.OK:
        reason = answer.get("Err", response.reason)
        raise InventoryError(f"ask the driver on {path}: {reason}")
    return answer


def find_interface(path: Path, endpoint: Mapping[str, Any]) -> str | None:
    """Return what an endpoint's interface is called in its container, None if it has none now."""
    answer = ask_driver(path, f"/endpoints/{endpoint['id']}/interface")
    name: str | None = answer.get("sandbox_end")
    return name


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("pynet", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


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
        raise InventoryError(f"{name} is ambiguous: {len(found)} networks begin so")
    return found[0] if found else None
