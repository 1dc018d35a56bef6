"""Find out why a container does not run: what Docker says, and who has its ports of the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from docker.errors import NotFound

from driver.diagnosis.facts import Stopped
from driver.linux.view import read_view
from driver.model import Protocol
from plugin.cli.engine import DockerSilent, open_docker
from plugin.cli.errors import AskError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


def look_at_stopped(name: str) -> Stopped:
    """Return what keeps a container from running. Raises AskError if Docker cannot say."""
    try:
        with open_docker() as client:
            container: Mapping[str, Any] = client.api.inspect_container(name)
            running = client.api.containers()
    except NotFound as error:
        raise AskError(f"{name} has been removed meanwhile") from error
    except DockerSilent as error:
        raise AskError(f"ask Docker: {error}") from error
    wanted = dict(_wanted(container))
    return Stopped(container["State"]["Error"].strip(), tuple(_taken(wanted, running)))


def _wanted(container: Mapping[str, Any]) -> Iterator[tuple[tuple[int, Protocol], str]]:
    """Yield the host's ports that it is to be published on, by number, with their places."""
    for port, places in (container["HostConfig"]["PortBindings"] or {}).items():
        protocol = port.partition("/")[2]
        for each in places or ():
            number = each["HostPort"].partition("-")[0]  # the first of a range
            if number.isdigit() and protocol in {"tcp", "udp"}:
                place = f"{each['HostIp'] or '0.0.0.0'}:{each['HostPort']}/{protocol}"  # noqa: S104
                yield (int(number), Protocol(protocol)), place


def _taken(
    wanted: Mapping[tuple[int, Protocol], str], running: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    """Yield what others have of these ports: containers first, then processes."""
    told = set()
    for container in running:
        for port in container["Ports"]:
            key = port.get("PublicPort"), port["Type"]
            for (number, protocol), place in wanted.items():
                if key == (number, protocol.value) and place not in told:
                    told.add(place)
                    yield place, f"container {container['Names'][0].lstrip('/')}"
    for each in read_view({number for number, _ in wanted}).listeners:
        found = wanted.get((each.port, each.protocol))
        if found is not None and found not in told:
            told.add(found)
            yield found, each.owner
