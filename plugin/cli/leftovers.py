"""Compare the driver's networks and endpoints with Docker's, for `pynet gc`.

Docker ignores the errors of deletes, sends none to a driver that is down, and none for what died
while dockerd was down (a driver found by its socket is not told). So its own lists are compared
with the driver's, from outside any request: Docker holds locks while it waits for the driver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from docker.errors import NotFound

from plugin.cli.client import ask_driver, tell_driver
from plugin.cli.engine import DockerSilent, open_docker
from plugin.cli.errors import AskError

if TYPE_CHECKING:
    from pathlib import Path

    from docker import APIClient


@dataclass(frozen=True, slots=True)
class Garbage:
    """A network, or an endpoint of one, that only one side knows."""

    network_id: str
    endpoint_id: str | None
    text: str

    @property
    def kind(self) -> str:
        """What it is, for people."""
        return "network" if self.endpoint_id is None else "endpoint"

    @property
    def id(self) -> str:
        """The id of what it is."""
        return self.endpoint_id or self.network_id


@dataclass(frozen=True, slots=True)
class Comparison:
    """What only the driver has, the order being that of removal, and what only Docker has."""

    garbage: tuple[Garbage, ...]
    lost: tuple[Garbage, ...]


def compare_with_docker(path: Path) -> Comparison:
    """Ask the driver, then Docker. Raises AskError if either does not answer.

    The driver first: what is made meanwhile is unknown to the driver's list, and not to Docker's.
    And once more: a network that Docker has made meanwhile is known to it by then.
    """
    networks = ask_driver(path, "/networks")["networks"]
    try:
        with open_docker() as client:
            known, drivers = _ask_docker(client.api, [network["id"] for network in networks])
    except DockerSilent as error:
        raise AskError(f"ask Docker, without which nothing can be told: {error}") from error
    later = {network["id"] for network in ask_driver(path, "/networks")["networks"]}
    return _compare(networks, known, drivers, later)


def remove_if_left_over(path: Path, garbage: Garbage) -> bool:
    """Remove it unless Docker knows it by now; tell whether it was removed. Raises AskError."""
    left = {(each.network_id, each.endpoint_id) for each in compare_with_docker(path).garbage}
    if (garbage.network_id, garbage.endpoint_id) not in left:
        return False
    _remove(path, garbage)
    return True


def _remove(path: Path, garbage: Garbage) -> None:
    """Ask the driver to remove it, as Docker would."""
    body = {"NetworkID": garbage.network_id}
    if garbage.endpoint_id is None:
        tell_driver(path, "/NetworkDriver.DeleteNetwork", body)
    else:
        body["EndpointID"] = garbage.endpoint_id
        tell_driver(path, "/NetworkDriver.DeleteEndpoint", body)


def _ask_docker(api: APIClient, ours: list[str]) -> tuple[dict[str, set[str]], dict[str, str]]:
    """Return the endpoints of those of the networks that Docker knows, and all networks' drivers.

    A network's own list has endpoints of containers that are just being started; that of the
    containers those of containers that Docker restored after a restart.
    """
    drivers = {each["Id"]: each["Driver"] for each in api.networks()}
    known: dict[str, set[str]] = {}
    for identity in ours:
        if identity in drivers:
            known[identity] = _endpoints_of(api, identity)
    for container in api.containers(all=True):
        for place in container["NetworkSettings"]["Networks"].values():
            if place["NetworkID"] in known:
                known[place["NetworkID"]].add(place["EndpointID"])
    return known, drivers


def _endpoints_of(api: APIClient, network_id: str) -> set[str]:
    try:
        shown = api.inspect_network(network_id)
    except NotFound:  # removed since it was listed
        return set()
    return {each["EndpointID"] for each in (shown["Containers"] or {}).values()}


def _compare(
    networks: list[dict[str, Any]],
    known: dict[str, set[str]],
    drivers: dict[str, str],
    later: set[str],
) -> Comparison:
    garbage: list[Garbage] = []
    for network in networks:
        identity = network["id"]
        garbage += [
            Garbage(identity, endpoint["id"], _describe(endpoint))
            for endpoint in network["endpoints"]
            if endpoint["id"] not in known.get(identity, ())
        ]
        if identity not in known:
            pools = ", ".join(pool["subnet"] for pool in network["pools"])
            garbage.append(Garbage(identity, None, f"bridge {network['bridge']}, {pools}"))
    ours = later | {network["id"] for network in networks}
    lost = tuple(
        Garbage(identity, None, f"made with driver {driver}; docker network rm {identity[:12]}")
        for identity, driver in sorted(drivers.items())
        if identity not in ours and _is_pynet(driver)
    )
    return Comparison(tuple(garbage), lost)


def _is_pynet(driver: str) -> bool:
    """Return whether a network's driver is called as this one is, as service or as plugin."""
    return driver.rpartition("/")[2].partition(":")[0] == "pynet"


def _describe(endpoint: dict[str, Any]) -> str:
    addresses = [endpoint[family] for family in ("ipv4", "ipv6") if endpoint[family]]
    ports = {
        f"port {each['host_port']}/{each['protocol']}"
        for each in endpoint["ports"]
        if each["host_port"] is not None
    }
    return ", ".join([*addresses, *sorted(ports)])
