"""Put together what is on this host: bridges, pairs, containers, ports, as values for a map.

State from the kernel first; names, networks and published ports from Docker and the driver.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from driver.diagnosis.causes import found
from driver.diagnosis.facts import Published, host_end_of, place_of
from driver.diagnosis.steps import FAULT, OK, WARNING, Step
from driver.errors import DriverError
from driver.linux import netns
from driver.linux.links import default_route_interfaces
from driver.linux.view import find_all_owners, read_ends
from driver.model import ID_LENGTH, Protocol
from plugin.cli.client import ask_driver
from plugin.cli.engine import DockerSilent, inspect_running, open_docker
from plugin.cli.errors import AskError, DriverDown
from plugin.cli.resolve import socket_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from driver.diagnosis.facts import Drift, Interface, Listener, View

_RESOLVER = "127.0.0.11"  # Docker's own, in every container
_BRIDGE_NAME = "com.docker.network.bridge.name"


@dataclass(frozen=True, slots=True)
class Port:
    """A port that a container listens on or that is published; `host` is where, None for nowhere.

    `listener` is the process, None if nothing listens; `address` where it does.
    """

    number: int
    protocol: str
    host: str | None
    listener: str | None
    address: str | None

    def __str__(self) -> str:
        """Return it in a line: `0.0.0.0:8080->80/tcp  nginx (pid 7)`."""
        place = f"{self.host}->" if self.host else ""
        listener = self.listener or "nothing listens"
        everywhere = self.address is None or self.address.startswith(("0.0.0.0:", "[::]:"))
        where = "" if everywhere else f" on {self.address}"
        told = "" if self.host else "  (not published)"
        return f"{place}{self.number}/{self.protocol}  {listener}{where}{told}"


@dataclass(frozen=True, slots=True)
class Pair:
    """An interface of a container with the host's end, None if that is not on this host."""

    container: str
    interface: str
    end: str | None
    is_up: bool
    addresses: tuple[str, ...]
    mac: str = ""


@dataclass(frozen=True, slots=True)
class Container:
    """A container that runs, and what is open on it; `sandbox` is the path of its namespace."""

    name: str
    ports: tuple[Port, ...]
    sandbox: str = ""


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge with its network; `network` is None for one that no network of Docker's has."""

    name: str
    network: str | None
    driver: str | None
    subnets: tuple[str, ...]
    is_up: bool
    is_internal: bool
    sysctls: tuple[str, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Uplink:
    """An interface of the host that is no bridge and no pair."""

    name: str
    addresses: tuple[str, ...]
    mtu: int
    is_up: bool
    leads_out: bool


@dataclass(frozen=True, slots=True)
class Topology:
    """All of it; `not_seen` says what could not be looked at."""

    uplinks: tuple[Uplink, ...]
    bridges: tuple[Bridge, ...]
    containers: Mapping[str, Container]
    loose: tuple[Pair, ...]
    not_seen: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """What Docker and the driver tell."""

    containers: tuple[dict[str, Any], ...]
    networks: tuple[dict[str, Any], ...]
    ours: tuple[dict[str, Any], ...]
    not_seen: tuple[str, ...]


def read_topology(known: Known | None = None) -> Topology:
    """Look at this host, and at every sandbox that Docker knows. Raises KernelError.

    Docker and the driver are asked, unless what they know is given.
    """
    known = known or ask()
    owners = find_all_owners()
    host = read_ends(owners)
    sandboxes = {each["Id"]: view for each in known.containers if (view := _look(each, owners))}
    names = {each["Id"]: each["Name"].lstrip("/") for each in known.containers}
    pairs = [
        pair
        for each in known.containers
        if each["Id"] in sandboxes
        for pair in _pairs(names[each["Id"]], each, sandboxes[each["Id"]], host)
    ]
    containers = {
        names[each["Id"]]: Container(
            names[each["Id"]],
            tuple(_ports(each, sandboxes[each["Id"]], known.ours)),
            each["NetworkSettings"]["SandboxKey"],
        )
        for each in known.containers
        if each["Id"] in sandboxes
    }
    bridges = tuple(_bridges(host, known, pairs))
    placed = {pair for bridge in bridges for pair in bridge.pairs}
    loose = tuple(pair for pair in pairs if pair not in placed)
    return Topology(tuple(_uplinks(host)), bridges, containers, loose, known.not_seen)


def examine(topology: Topology, drift: Iterable[Drift]) -> list[Step]:
    """Return what is wrong with the host and its networks, a step each, and what is not.

    `drift` is what pynet's driver says differs.
    """
    steps = [
        Step("host", FAULT, f"{each.name} is down", found("uplink-down", interface=each.name))
        if not each.is_up
        else Step("host", OK, f"{each.name} is up, {' '.join(each.addresses)}")
        for each in topology.uplinks
        if each.leads_out
    ]
    for bridge in topology.bridges:
        if bridge.network is not None and bridge.pairs:
            steps += _examine_bridge(topology, bridge)
    for pair in topology.loose:
        steps.append(_examine_loose(pair))
    for each in drift:
        cause = found("drift", kind=each.kind, subject=each.subject, text=each.text)
        steps.append(Step("drift", FAULT, f"{each.kind} {each.subject}: {each.text}", cause))
    return steps


def _examine_bridge(topology: Topology, bridge: Bridge) -> Iterator[Step]:
    label = f"{bridge.network} ({bridge.name})"
    if bridge.is_up:
        yield Step("network", OK, f"{label} is up, {len(bridge.pairs)} on it")
    else:
        command = f"ip link set {bridge.name} up, and find who set it down"
        cause = found("interface-down", interface=bridge.name, command=command)
        yield Step("network", FAULT, f"{label} is down", cause)
    yield from _examine_twice(bridge)
    for pair in bridge.pairs:
        if not pair.is_up:
            command = f"pynet exec {pair.container} -- ip link set {pair.interface} up"
            where = f"{pair.interface} in {pair.container}"
            cause = found("interface-down", interface=where, command=command)
            yield Step("sandbox", FAULT, cause.text, cause)
        for port in topology.containers[pair.container].ports:
            if port.host is not None and port.listener is None:
                yield Step("socket", WARNING, f"{pair.container}: {port}")


def _examine_twice(bridge: Bridge) -> Iterator[Step]:
    """Yield what two interfaces of one network have that only one may."""
    owners: dict[tuple[str, str], str] = {}
    for pair in bridge.pairs:
        own = [("address-twice", each.partition("/")[0]) for each in pair.addresses]
        for kind, what in [*own, ("mac-twice", pair.mac)] if pair.mac else own:
            first = owners.setdefault((kind, what), pair.container)
            if first != pair.container:
                words = {"network": bridge.network, "what": what}
                cause = found(kind, first=first, second=pair.container, **words)
                yield Step("network", FAULT, cause.text, cause)


def _examine_loose(pair: Pair) -> Step:
    if pair.end is None:
        cause = found("severed", interface=pair.interface, name=pair.container)
    else:
        manager = "NetworkManager or networkd"
        words = {"interface": pair.end, "name": pair.container, "why": "", "manager": manager}
        cause = found("off-bridge", **words)
    return Step("pair", FAULT, cause.text, cause)


def ask() -> Known:
    """Ask Docker and the driver. Raises AskError if both are silent."""
    not_seen: list[str] = []
    ours: tuple[dict[str, Any], ...] = ()
    try:
        ours = tuple(ask_driver(socket_path(), "/networks")["networks"])
    except DriverDown as error:
        not_seen.append(f"what pynet's driver knows ({error})")
    try:
        with open_docker() as client:
            networks = client.api.networks()
            containers = tuple(inspect_running(client))
    except DockerSilent as error:
        if not ours:
            raise AskError(f"ask Docker: {error}") from error
        return Known((), (), ours, (*not_seen, f"names and containers ({error})"))
    return Known(containers, tuple(networks), ours, tuple(not_seen))


def _look(container: Mapping[str, Any], owners: Mapping[int, str]) -> View | None:
    """Return what a container's own sandbox shows, None if it has none."""
    path = container["NetworkSettings"]["SandboxKey"]
    if not path:
        return None
    # One on the host's own network has the host's namespace, which is refused.
    with suppress(DriverError), netns.open_namespace(path) as namespace:
        return netns.run_in(namespace, lambda: read_ends(owners))
    return None


def _pairs(name: str, container: Mapping[str, Any], view: View, host: View) -> Iterator[Pair]:
    """Yield the interfaces that lead to the host, or that Docker gave it and that led there.

    Others are the container's own affair: it may have namespaces of its own, as another Docker.
    """
    dockers = {each["MacAddress"] for each in container["NetworkSettings"]["Networks"].values()}
    for link in view.interfaces.values():
        end = host_end_of(link, host) if link.kind == "veth" else None
        if end is not None or (link.kind == "veth" and link.mac in dockers):
            yield Pair(
                name,
                link.name,
                end.name if end else None,
                link.is_up,
                _addresses(link),
                link.mac,
            )


def _addresses(link: Interface) -> tuple[str, ...]:
    return tuple(sorted(str(each) for each in link.addresses if not each.is_link_local))


def _bridges(host: View, known: Known, pairs: Iterable[Pair]) -> Iterator[Bridge]:
    networks = {bridge_of_network(each, known.ours): each for each in known.networks}
    sysctls = {each["id"]: each["sysctls"] for each in known.ours}
    by_end = {pair.end: pair for pair in pairs if pair.end}
    for link in host.interfaces.values():
        if link.kind != "bridge":
            continue
        network = networks.get(link.name)
        ports = [each for each in host.interfaces.values() if each.master == link.name]
        asked = sysctls.get(network["Id"], {}) if network else {}
        yield Bridge(
            name=link.name,
            network=network["Name"] if network else None,
            driver=network["Driver"] if network else None,
            subnets=tuple(_subnets(network)) if network else _addresses(link),
            is_up=link.is_up,
            is_internal=bool(network and network["Internal"]),
            sysctls=tuple(f"{key}={value}" for key, value in _items(asked)),
            pairs=tuple(by_end[each.name] for each in ports if each.name in by_end),
        )


def _items(sysctls: Mapping[str, str] | Iterable[str]) -> Iterable[tuple[str, str]]:
    if isinstance(sysctls, Mapping):
        return sorted(sysctls.items())
    return sorted((key, value) for key, _, value in (each.partition("=") for each in sysctls))


def bridge_of_network(network: Mapping[str, Any], ours: Iterable[Mapping[str, Any]]) -> str:
    """Return a network's bridge: what pynet says, or the name that its driver gives by default."""
    for each in ours:
        if each["id"] == network["Id"]:
            return str(each["bridge"])
    options: Mapping[str, str] = network["Options"] or {}
    prefix = "br" if network["Driver"] == "bridge" else "pn"
    return options.get(_BRIDGE_NAME, f"{prefix}-{network['Id'][:ID_LENGTH]}")


def _subnets(network: Mapping[str, Any]) -> Iterator[str]:
    for each in network["IPAM"]["Config"] or ():
        yield str(each["Subnet"])


def _uplinks(host: View) -> Iterator[Uplink]:
    leading = default_route_interfaces()
    for link in host.interfaces.values():
        is_alone = link.kind != "bridge" and link.master is None and link.name != "lo"
        leads = link.name in leading
        # A host end that somebody took off its bridge has no addresses, as a rule.
        if is_alone and (_addresses(link) or leads):
            yield Uplink(link.name, _addresses(link), link.mtu, link.has_carrier, leads)


def _ports(
    container: Mapping[str, Any], view: View, ours: Iterable[Mapping[str, Any]]
) -> Iterator[Port]:
    """Yield published ports with their listeners, then what else listens."""
    listeners = [each for each in view.listeners if str(each.ip) != _RESOLVER]
    told: set[tuple[int, str]] = set()
    for each in dict.fromkeys(find_published_of(container, ours)):
        key = each.container_port, each.protocol.value
        told.add(key)
        place = place_of(each.host_ip, each.host_port)
        listener = _listener(listeners, *key)
        yield Port(
            *key, place, listener.owner if listener else None, listener.place if listener else None
        )
    for listener in listeners:
        key = listener.port, listener.protocol.value
        if key not in told and listener.protocol is Protocol.TCP:
            told.add(key)
            yield Port(*key, None, listener.owner, listener.place)


def _listener(listeners: Iterable[Listener], port: int, protocol: str) -> Listener | None:
    return next(
        (each for each in listeners if (each.port, each.protocol.value) == (port, protocol)), None
    )


def find_published_of(
    container: Mapping[str, Any], ours: Iterable[Mapping[str, Any]]
) -> Iterator[Published]:
    """Yield a container's published ports: as Docker lists them, then as pynet does."""
    settings = container["NetworkSettings"]
    networks = settings["Networks"].values()
    addresses = (each["IPAddress"] or each["GlobalIPv6Address"] for each in networks)
    own = next(filter(None, addresses), None)
    for port, places in (settings["Ports"] or {}).items():
        number, _, protocol = port.partition("/")
        for place in places or ():
            ip = ip_address(place["HostIp"] or "0.0.0.0")  # noqa: S104 - how Docker says it
            if own is not None:
                words = int(place["HostPort"]), ip_address(own), int(number), Protocol(protocol)
                yield Published(ip, *words)
    endpoints = {each["EndpointID"] for each in networks}
    for network in ours:
        for endpoint in network["endpoints"]:
            if endpoint["id"] in endpoints:
                for each in endpoint["ports"]:
                    if each["host_ip"]:
                        yield Published(
                            ip_address(each["host_ip"]),
                            each["host_port"],
                            ip_address(each["container_ip"]),
                            each["container_port"],
                            Protocol(each["protocol"]),
                        )
