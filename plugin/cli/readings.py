"""Find whose each link on the host is, and read the counters; for pynet top.

Names and published ports are Docker's and the driver's to tell; of Docker's own bridges the host's
end of a container is found by looking into its sandbox, once.
"""

from __future__ import annotations

import time
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from docker.errors import NotFound

from driver.diagnosis.facts import place_of
from driver.errors import DriverError, KernelError
from driver.linux import netns
from driver.linux.flows import read_flows
from driver.linux.links import list_links
from driver.linux.traffic import read_traffic
from driver.model import ID_LENGTH, HostPort, PortBinding, Protocol
from plugin.cli.client import ask_driver
from plugin.cli.engine import DockerSilent, open_docker
from plugin.cli.errors import AskError
from plugin.cli.rates import End, Known, Published, Reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from driver.linux.flows import Flow

    Json = Mapping[str, Any]

LOOK_SECONDS = 10.0  # what does not show in the links, such as a new name, is seen by then
_ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 - how Docker says it


class Counters:
    """The counters of this host, and whose they are; follows containers that start and end."""

    def __init__(self, driver: Path) -> None:
        self._driver = driver
        self._listed: tuple[list[Json], list[Json]] | None = None  # Docker's last answer
        self._ends: dict[str, str | None] = {}  # the host's end by endpoint, None for none
        self._known: Known | None = None
        self._links: frozenset[str] = frozenset()
        self._looked = 0.0
        self._is_settled = False

    def read(self) -> Reading:
        """Read the counters. Raises KernelError for those of links."""
        not_seen: list[str] = []
        flows: tuple[Flow, ...] | None = None
        try:
            flows = tuple(read_flows())
        except KernelError as error:
            not_seen.append(f"connections ({error})")
        guarded: dict[str, int] = {}
        try:
            drops = ask_driver(self._driver, "/drops")["interfaces"]
            guarded = {end: sum(reasons.values()) for end, reasons in drops.items()}
        except AskError as error:
            not_seen.append(f"what guards drop ({error})")
        return Reading(time.monotonic(), read_traffic(), guarded, flows, tuple(not_seen))

    def know(self, reading: Reading) -> Known:
        """Return who is there, looking anew if links have come or gone.

        Ports are published after a link has come: so once more by the next reading. Raises AskError
        if neither Docker nor the driver has ever answered.
        """
        links = frozenset(reading.links)
        is_changed = links != self._links
        late = reading.moment - self._looked > LOOK_SECONDS
        if self._known is None or is_changed or late or not self._is_settled:
            self._known = self._look()
            self._looked = reading.moment
        self._links, self._is_settled = links, not is_changed
        return self._known

    def _look(self) -> Known:
        not_seen: list[str] = []
        ours: list[Json] = []
        try:
            ours = ask_driver(self._driver, "/networks")["networks"]
        except AskError as error:
            not_seen.append(f"what pynet's driver knows ({error})")
        own = {each["id"]: each["host_end"] for network in ours for each in network["endpoints"]}
        try:
            self._listed = self._ask_docker(own)
        except DockerSilent as error:
            if self._listed is None and not ours:
                raise AskError(f"ask Docker: {error}") from error
            not_seen.append(f"what Docker knows by now ({error})")
        networks, containers = self._listed or ([], [])
        networks_by_id = {each["Id"]: each["Name"] for each in networks}
        names = {each["Id"]: _name(each) for each in containers} | networks_by_id
        ends: list[End] = []
        by_endpoint: dict[str, str] = {}
        for name, network, place in _places(containers, networks_by_id, ours):
            identity = place["EndpointID"]
            by_endpoint[identity] = name
            end = own.get(identity) or self._ends.get(identity)
            if end is None:
                not_seen.append(f"{name} on {network} (it has no end on this host)")
            else:
                ends.append(End(name, network, end, tuple(_addresses(place))))
        ports = [*_dockers_ports(containers), *_own_ports(ours, by_endpoint, networks_by_id)]
        if not names:  # ids stand in
            names = {each["id"]: each["id"][:ID_LENGTH] for each in ours} | {
                identity: identity[:ID_LENGTH] for identity in own
            }
        return Known(tuple(ends), tuple(ports), names, tuple(not_seen))

    def _ask_docker(self, own: Mapping[str, str]) -> tuple[list[Json], list[Json]]:
        """Return its networks and the containers that run, with what is new looked into.

        `own` are pynet's endpoints, whose host ends are known.
        """
        with open_docker() as client:
            networks, containers = client.api.networks(), client.api.containers()
            for each in containers:
                endpoints = _endpoints(each)
                if not {end["EndpointID"] for end in endpoints} <= self._ends.keys() | own.keys():
                    with suppress(NotFound):  # it has ended meanwhile
                        inspected = client.api.inspect_container(each["Id"])
                        self._find_ends(endpoints, inspected["NetworkSettings"]["SandboxKey"])
        present = {end["EndpointID"] for each in containers for end in _endpoints(each)}
        self._ends = {each: end for each, end in self._ends.items() if each in present}
        return networks, containers

    def _find_ends(self, endpoints: Iterable[Json], sandbox: str) -> None:
        """Look into a sandbox for the host's ends of what Docker gave it."""
        try:
            with netns.open_namespace(sandbox) as namespace:
                inside = netns.run_in(namespace, list_links)
        except DriverError:  # it has ended meanwhile
            return
        host = {link.index: link for link in list_links()}
        for each in endpoints:
            for link in inside:
                if link.mac == each["MacAddress"]:
                    end = host.get(link.other_end)
                    is_pair = end is not None and end.other_end == link.index
                    self._ends[each["EndpointID"]] = end.name if end and is_pair else None


def _name(container: Json) -> str:
    return str(container["Names"][0].lstrip("/"))


def _endpoints(container: Json) -> list[Json]:
    """Return a container's places on networks that it has an interface on."""
    settings = container["NetworkSettings"]["Networks"].values()
    return [each for each in settings if each.get("EndpointID") and each.get("MacAddress")]


def _places(
    containers: Iterable[Json], names: Mapping[str, str], ours: Iterable[Json]
) -> Iterator[tuple[str, str, Json]]:
    """Yield each place on a network with its container's name and the network's.

    Of an endpoint that Docker does not tell of ids stand in for names.
    """
    told = set()
    for container in containers:
        for each in _endpoints(container):
            told.add(each["EndpointID"])
            network = names.get(each["NetworkID"], each["NetworkID"][:ID_LENGTH])
            yield _name(container), network, each
    for network in ours:
        for each in network["endpoints"]:
            if each["id"] not in told and each["sandbox"]:
                ips = {"IPAddress": each["ipv4"], "GlobalIPv6Address": each["ipv6"]}
                place = {"EndpointID": each["id"], **ips}
                name = names.get(network["id"], network["id"][:ID_LENGTH])
                yield each["id"][:ID_LENGTH], name, place


def _addresses(place: Json) -> Iterator[bytes]:
    for key in ("IPAddress", "GlobalIPv6Address"):
        if text := place.get(key):
            yield ip_address(text.partition("/")[0]).packed


def _dockers_ports(containers: Iterable[Json]) -> Iterator[Published]:
    """Yield what Docker has published; to which of a container's addresses it does not say."""
    for container in containers:
        settings = container["NetworkSettings"]["Networks"]
        own = [
            ip_address(text.partition("/")[0])
            for each in settings.values()
            for key in ("IPAddress", "GlobalIPv6Address")
            if (text := each.get(key))
        ]
        for each in container.get("Ports") or ():
            if "PublicPort" not in each:
                continue
            protocol, port = Protocol(each["Type"]), each["PrivatePort"]
            host = HostPort(
                protocol, ip_address(each.get("IP") or _ANYWHERE[0]), each["PublicPort"]
            )
            yield Published(
                _name(container),
                frozenset(settings),
                place_of(host.ip, host.port),
                f"{port}/{protocol}",
                tuple(PortBinding(protocol, ip, port, host) for ip in own),
            )


def _own_ports(
    ours: Iterable[Json], containers: Mapping[str, str], names: Mapping[str, str]
) -> Iterator[Published]:
    """Yield what pynet has published."""
    for network in ours:
        for endpoint in network["endpoints"]:
            for each in endpoint["ports"]:
                if each["host_ip"] is None:
                    continue
                protocol, port = Protocol(each["protocol"]), each["container_port"]
                host = HostPort(protocol, ip_address(each["host_ip"]), each["host_port"])
                yield Published(
                    containers.get(endpoint["id"], endpoint["id"][:ID_LENGTH]),
                    frozenset({names.get(network["id"], network["id"][:ID_LENGTH])}),
                    place_of(host.ip, host.port),
                    f"{port}/{protocol}",
                    (PortBinding(protocol, ip_address(each["container_ip"]), port, host),),
                )
