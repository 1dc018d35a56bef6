"""Find the network namespaces that a name on the command line means, of any driver's containers.

Docker knows containers of all networks; `ip netns` and process numbers are understood besides, and
while Docker is down the ids of pynet's endpoints.
"""

from __future__ import annotations

import difflib
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docker.errors import NotFound

from driver.model import ID_LENGTH
from plugin.capture.places import Sandbox
from plugin.cli.client import ask_driver
from plugin.cli.engine import DockerSilent, open_docker
from plugin.cli.errors import AskError, DriverDown
from plugin.cli.resolve import socket_path
from plugin.cli.topology import bridge_of_network, find_published_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import docker

    from driver.diagnosis.facts import Published
    from driver.model import IPAddress

NAMED_NAMESPACES = Path("/run/netns")  # ip-netns(8)
_PROCESS = re.compile(r"pid:(\d+)")
_SHARED = re.compile(r"container:(.+)")


class NotRunning(AskError):  # noqa: N818 - the field calls it by what happened
    """A container that has no sandbox, for it does not run; `name` is what Docker calls it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} does not run: it has no network namespace")
        self.name = name


class UnknownName(AskError):  # noqa: N818 - the field calls it by what happened
    """Docker knows nothing of that name, and nothing else has it."""


@dataclass(frozen=True, slots=True)
class Found:
    """The sandboxes that a name stands for; if it is a network's, with the name of its bridge.

    A network of a driver without bridges has an empty one.
    """

    sandboxes: tuple[Sandbox, ...]
    bridge: str | None = None

    @property
    def is_network(self) -> bool:
        """Whether the name is a network's."""
        return self.bridge is not None


def find_sandboxes(name: str, driver: Path) -> Found:
    """Return what a container, a network, a named namespace or `pid:N` stands for.

    A container that does not run has no sandbox. Raises AskError if there is nothing of that name,
    naming the nearest known one.
    """
    if match := _PROCESS.fullmatch(name):
        return Found((Sandbox(name, f"/proc/{match[1]}/ns/net"),))
    why = None
    try:
        found = _ask_docker(name, driver)
    except DockerSilent as error:
        found, why = None, str(error)
    if found is None and (NAMED_NAMESPACES / name).is_file() and "/" not in name:
        found = Found((Sandbox(name, str(NAMED_NAMESPACES / name)),))
    if found is None and why is not None and name:
        found = _ask_driver(name, driver)
    if found is not None:
        return found
    silence = f"; Docker could not be asked: {why}" if why else ""
    text = f"no container, network or namespace is called {name}{_nearest(name)}{silence}"
    raise AskError(text) if why else UnknownName(text)


def find_published(name: str) -> list[Published]:
    """Return the published ports of a container, or of the one whose network it shares.

    Raises AskError while Docker cannot be asked.
    """
    container = inspect(name)
    if container is None:
        return []
    return list(find_published_of(container, _ask_networks(socket_path())))


def inspect(name: str) -> dict[str, Any] | None:
    """Return what Docker says of the container that has the network of this one; None if unknown.

    Raises AskError while Docker cannot be asked.
    """
    try:
        with open_docker() as client:
            return _owner(client, client.api.inspect_container(name))
    except NotFound:
        return None
    except DockerSilent as error:
        raise AskError(f"ask Docker for {name}: {error}") from error


def find_by_address(ip: IPAddress) -> Sandbox | None:
    """Return the sandbox of the container that has an address, None for none that Docker knows."""
    with suppress(DockerSilent), open_docker() as client:
        for each in client.api.containers():
            networks = each["NetworkSettings"]["Networks"].values()
            own = {each["IPAddress"] for each in networks}
            own |= {each["GlobalIPv6Address"] for each in networks}
            if str(ip) in own:
                return next(_member(client, each["Id"]), None)
    return None


def _ask_docker(name: str, driver: Path) -> Found | None:
    with open_docker() as client:
        with suppress(NotFound):
            return Found(tuple(_sandbox(client, client.api.inspect_container(name))))
        with suppress(NotFound):
            network = client.api.inspect_network(name)
            found = [sandbox for each in network["Containers"] for sandbox in _member(client, each)]
            return Found(tuple(found), bridge_of_network(network, _ask_networks(driver)))
    return None


def _member(client: docker.DockerClient, identity: str) -> Iterator[Sandbox]:
    """Yield the sandbox of a member of a network, which may be none of a container's."""
    with suppress(NotFound):  # it has gone, or is Docker's own, as a swarm's load balancer
        yield from _sandbox(client, client.api.inspect_container(identity))


def _sandbox(client: docker.DockerClient, container: dict[str, Any]) -> Iterator[Sandbox]:
    """Yield a container's sandbox, or that of the container whose network it shares."""
    name = container["Name"].lstrip("/")
    if not container["State"]["Running"]:
        return
    container = _owner(client, container)
    if container["HostConfig"]["NetworkMode"] == "host":
        raise AskError(f"{name} is in the host's own namespace: use `host`")
    if container["State"]["Running"] and (path := container["NetworkSettings"]["SandboxKey"]):
        yield Sandbox(name, path)


def _owner(client: docker.DockerClient, container: dict[str, Any]) -> dict[str, Any]:
    """Return the container whose network one has: that of another, or its own."""
    if match := _SHARED.fullmatch(container["HostConfig"]["NetworkMode"]):
        owner: dict[str, Any] = client.api.inspect_container(match[1])
        return owner
    return container


def _ask_driver(name: str, driver: Path) -> Found | None:
    for network in _ask_networks(driver):
        if network["id"].startswith(name):
            return Found(tuple(_of_endpoints(network["endpoints"])), network["bridge"])
        if ends := [each for each in network["endpoints"] if each["id"].startswith(name)]:
            return Found(tuple(_of_endpoints(ends)))
    return None


def _ask_networks(driver: Path) -> list[dict[str, Any]]:
    """Return the driver's networks, none if it is silent."""
    with suppress(DriverDown):
        networks: list[dict[str, Any]] = ask_driver(driver, "/networks")["networks"]
        return networks
    return []


def _of_endpoints(endpoints: Iterable[Mapping[str, Any]]) -> Iterator[Sandbox]:
    for each in endpoints:
        if each["sandbox"]:
            yield Sandbox(each["id"][:ID_LENGTH], each["sandbox"])


def _nearest(name: str) -> str:
    """Return a clause that names what is called nearly so, if anything is."""
    known: set[str] = set()
    with suppress(DockerSilent), open_docker() as client:
        known |= {each["Name"] for each in client.api.networks()}
        known |= {each["Names"][0].lstrip("/") for each in client.api.containers(all=True)}
    with suppress(OSError):
        known |= {each.name for each in NAMED_NAMESPACES.iterdir()}
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
