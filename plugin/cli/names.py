"""Join the driver's networks and endpoints with Docker's names for them.

The driver is asked on its socket, Docker through its API. Docker may be down: then ids stand in
for names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from docker.errors import NotFound

from driver.model import ID_LENGTH
from plugin.cli.client import ask_driver
from plugin.cli.engine import DockerSilent, open_docker
from plugin.cli.errors import AskError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

AMBIGUOUS = 4  # meanings that an error names


@dataclass(frozen=True, slots=True)
class Container:
    """A container: its endpoints' ids, none while it does not run, and its networks' ids."""

    id: str
    name: str
    endpoints: frozenset[str]
    networks: frozenset[str]

    @property
    def label(self) -> str:
        """What tells it apart, for people."""
        return f"container {self.name} ({self.id[:ID_LENGTH]})"


@dataclass(frozen=True, slots=True)
class Inventory:
    """The driver's networks, and what Docker calls them and their containers."""

    networks: tuple[dict[str, Any], ...]
    network_names: Mapping[str, str]
    containers: tuple[Container, ...]
    docker_failure: str | None

    def network_name(self, network: Mapping[str, Any]) -> str:
        """Return Docker's name of the network, its short id if Docker cannot be asked."""
        identity = str(network["id"])
        return self.network_names.get(identity, identity[:ID_LENGTH])

    def container_name(self, endpoint: Mapping[str, Any]) -> str:
        """Return the name of the endpoint's container, the endpoint's short id otherwise."""
        identity = str(endpoint["id"])
        names = (each.name for each in self.containers if identity in each.endpoints)
        return next(names, identity[:ID_LENGTH])

    def our_containers(self) -> list[Container]:
        """Return the containers that are on networks of the driver's, running or not."""
        ours = {network["id"] for network in self.networks}
        return [each for each in self.containers if each.networks & ours]

    def endpoints_of(self, container: Container) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Return a container's endpoints, each behind its network."""
        return [
            (network, endpoint)
            for network in self.networks
            for endpoint in network["endpoints"]
            if endpoint["id"] in container.endpoints
        ]

    def find(self, name: str) -> dict[str, Any] | Container:
        """Return the network or container of this name or unambiguous beginning of an id.

        An endpoint's id stands for its container. Raises AskError for none and for several.
        """
        found: dict[str, Any] | Container = _only(
            name, [*self._networks(), *self._containers()], "no network and no container"
        )
        return found

    def find_network(self, name: str) -> dict[str, Any]:
        """Return the network of this name or unambiguous beginning of an id, as `find` does."""
        found: dict[str, Any] = _only(name, list(self._networks()), "no network")
        return found

    def _networks(self) -> Iterator[_Candidate]:
        for network in self.networks:
            name, identity = self.network_name(network), network["id"]
            yield _Candidate(f"network {name} ({identity[:ID_LENGTH]})", name, identity, network)

    def _containers(self) -> Iterator[_Candidate]:
        for container in self.our_containers():
            yield _Candidate(container.label, container.name, container.id, container)
        for network in self.networks:
            for endpoint in network["endpoints"]:
                owner = self._owner(network, endpoint)
                yield _Candidate(owner.label, endpoint["id"], endpoint["id"], owner)

    def _owner(self, network: Mapping[str, Any], endpoint: Mapping[str, Any]) -> Container:
        """Return an endpoint's container: one that consists of it alone, if Docker is silent."""
        identity = str(endpoint["id"])
        owners = (each for each in self.containers if identity in each.endpoints)
        alone = Container(
            identity, identity[:ID_LENGTH], frozenset({identity}), frozenset({network["id"]})
        )
        return next(owners, alone)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """What a word on the command line may mean."""

    label: str
    name: str
    id: str
    meaning: dict[str, Any] | Container


def take_inventory(path: Path) -> Inventory:
    """Ask the driver, then Docker. Raises AskError if the driver does not answer."""
    networks = tuple(ask_driver(path, "/networks")["networks"])
    try:
        network_names, containers = _ask_docker()
    except DockerSilent as error:
        return Inventory(networks, {}, (), str(error))
    return Inventory(networks, network_names, containers, None)


def ask_own_sysctls(container: Container) -> dict[str, str] | None:
    """Return what a container's own `--sysctl` says, None if Docker cannot be asked."""
    try:
        with open_docker() as client:
            found = client.api.inspect_container(container.id)["HostConfig"].get("Sysctls")
    except (DockerSilent, NotFound):
        return None
    return dict(found or {})


def _ask_docker() -> tuple[dict[str, str], tuple[Container, ...]]:
    with open_docker() as client:
        networks = {each["Id"]: each["Name"] for each in client.api.networks()}
        listed = client.api.containers(all=True)
    identities = {name: identity for identity, name in networks.items()}
    return networks, tuple(_container(each, identities) for each in listed)


def _container(listed: Mapping[str, Any], identities: Mapping[str, str]) -> Container:
    places = listed["NetworkSettings"]["Networks"]
    return Container(
        id=listed["Id"],
        name=listed["Names"][0].lstrip("/"),
        endpoints=frozenset(each["EndpointID"] for each in places.values() if each["EndpointID"]),
        # A container that has never been started has no ids yet.
        networks=frozenset(
            place["NetworkID"] or identities.get(name, "") for name, place in places.items()
        ),
    )


def _only(name: str, candidates: list[_Candidate], none: str) -> Any:
    """Return what the word means; as in Docker, names and whole ids are tried first."""
    exact = {each.label: each for each in candidates if name in {each.name, each.id}}
    found = exact or {each.label: each for each in candidates if each.id.startswith(name)}
    if not found:
        raise AskError(f"{none} of pynet's is called {name}")
    if len(found) > 1:
        labels = sorted(found)
        more = ", …" if len(labels) > AMBIGUOUS else ""
        raise AskError(f"{name} is ambiguous: {', '.join(labels[:AMBIGUOUS])}{more}")
    return next(iter(found.values())).meaning
