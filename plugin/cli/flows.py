"""Understand FROM and TO:PORT on the command line, and look at what stands for them."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import click

from driver.diagnosis.facts import HOST, OUTSIDE, Flow, Party, bridge_of, host_end_of
from driver.errors import NotFound
from driver.linux import netns
from driver.linux.view import find_way, read_view
from driver.model import Protocol
from plugin.cli.errors import AskError
from plugin.cli.resolve import socket_path
from plugin.cli.sandboxes import (
    NotRunning,
    UnknownName,
    find_by_address,
    find_sandboxes,
    inspect,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    from driver.diagnosis.facts import Interface, Lookup, View, Way
    from driver.model import IPAddress, IPInterface
    from plugin.capture.places import Sandbox

    T = TypeVar("T")

_TARGET = re.compile(r"(?P<name>\[[^]]+\]|[^/]+?)(?::(?P<port>\d+))?(?:/(?P<protocol>tcp|udp))?")
_MOST_PORT = 65535
_IS_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_OTHER = {4: 6, 6: 4}


@dataclass(frozen=True, slots=True)
class Target:
    """What the second word asks for: a name or address, and a port."""

    name: str
    port: int | None
    protocol: Protocol


def parse_target(text: str) -> Target:
    """Return what `NAME`, `NAME:PORT` or `[IPV6]:PORT/udp` asks for; raises UsageError."""
    with suppress(ValueError):  # an IPv6 address without a port has colons of its own
        return Target(str(ip_address(text)), None, Protocol.TCP)
    match = _TARGET.fullmatch(text)
    if match is None:
        raise click.UsageError(f"{text!r} is no NAME, NAME:PORT or NAME:PORT/udp")
    port = None if match["port"] is None else int(match["port"])
    if port is not None and not 0 < port <= _MOST_PORT:
        raise click.UsageError(f"{port} is no port")
    return Target(match["name"].strip("[]"), port, Protocol(match["protocol"] or "tcp"))


@dataclass(frozen=True, slots=True)
class Known:
    """What a name stands for: a sandbox, the host, something outside, or an address."""

    name: str
    sandbox: Sandbox | None = None
    address: IPAddress | None = None

    @property
    def path(self) -> str | None:
        """The sandbox's path, None if it has none."""
        return self.sandbox.path if self.sandbox else None


def _find(name: str) -> Known:
    if name in {HOST, OUTSIDE}:
        return Known(name)
    with suppress(ValueError):
        return _at(ip_address(name), name)
    found = find_sandboxes(name, socket_path())
    if found.is_network:
        raise AskError(f"{name} is a network: name a container of it")
    if not found.sandboxes:
        raise NotRunning(name)
    return Known(found.sandboxes[0].name, found.sandboxes[0])


def _at(ip: IPAddress, name: str) -> Known:
    """Return who has an address: a container, or somebody who is known by nothing else."""
    sandbox = None if ip.is_loopback else find_by_address(ip)
    return Known(sandbox.name if sandbox else name, sandbox, ip)


def _find_target(name: str, sender: Known, *, is_ipv6: bool) -> tuple[Known, Lookup | None]:
    """Return whom a name stands for: for Docker, or for the name servers that the sender has."""
    try:
        return _find(name), None
    except UnknownName:
        # Without a dot it is a container's, or an alias: where nobody knows it, it is misspelt.
        if not _IS_NAME.fullmatch(name) or (sender.sandbox is None and sender.name != HOST):
            raise
        lookup = _look_up(name, sender, is_ipv6=is_ipv6)
        if lookup.error is not None and "." not in name:
            raise
        if lookup.address is None:
            return Known(name), lookup
        return _at(lookup.address, name), lookup


def _look_up(name: str, sender: Known, *, is_ipv6: bool) -> Lookup:
    # 40 ms, which only those who ask for a name need to wait for.
    from plugin.cli.lookup import OF_HOST, look_up  # noqa: PLC0415

    settings = OF_HOST
    if sender.sandbox is not None:
        container = inspect(sender.name)
        if container is not None and container["State"]["Pid"]:
            # As the container has it, whatever was mounted there.
            settings = Path(f"/proc/{container['State']['Pid']}/root/etc/resolv.conf")
    if sender.sandbox is None:
        return look_up(name, settings, lambda work: work(), is_ipv6=is_ipv6)
    return look_up(name, settings, lambda work: run_inside(sender, work), is_ipv6=is_ipv6)


def run_inside(known: Known, work: Callable[[], T]) -> T:
    """Return what `work` returns in the sandbox; raises AskError if that has gone meanwhile."""
    assert known.sandbox is not None  # noqa: S101 - asked of sandboxes only
    try:
        with netns.open_namespace(known.sandbox.path) as namespace:
            return netns.run_in(namespace, work)
    except NotFound as error:
        raise AskError(f"{known.name} has ended meanwhile: {error}") from error


def _choose(
    receiver: Known, other: View | None, sandbox: View | None, host: View, version: int
) -> IPAddress | None:
    """Return the address that the flow goes to: on a common network if there is one."""
    if receiver.address is not None:
        return receiver.address
    if other is not None:
        own = _addresses(other, version)
        if near := [ip for ip in own if _is_near(other, ip, sandbox, host)]:
            return near[0]
        # On a common network by the other family, before by this one on some other network.
        is_near_otherwise = any(
            _is_near(other, ip, sandbox, host) for ip in _addresses(other, _OTHER[version])
        )
        return None if is_near_otherwise else next(iter(own), None)
    if receiver.name == HOST and sandbox is not None:
        bridges = [_bridge(link, host) for link in sandbox.interfaces.values()]
        for name in filter(None, bridges):
            for ip in _of_version(host.interfaces[name].addresses, version):
                return ip
    return None


def _is_near(other: View, ip: IPAddress, sandbox: View | None, host: View) -> bool:
    """Return whether a sandbox is on the bridge behind which another has an address."""
    bridge = bridge_of(other, ip, host)
    links = () if sandbox is None or bridge is None else sandbox.interfaces.values()
    return any(_bridge(link, host) == bridge for link in links)


def _bridge(link: Interface, host: View) -> str | None:
    end = host_end_of(link, host)
    return end.master if end is not None else None


def _addresses(view: View, version: int) -> list[IPAddress]:
    found = (each.addresses for each in view.interfaces.values() if each.kind == "veth")
    return [ip for addresses in found for ip in _of_version(addresses, version)]


def _versions(*, is_ipv6: bool) -> tuple[int, ...]:
    return (6, 4) if is_ipv6 else (4, 6)


def _of_version(addresses: Iterable[IPInterface], version: int) -> list[IPAddress]:
    usable = (each.ip for each in addresses if not each.is_link_local and not each.is_loopback)
    return sorted(ip for ip in usable if ip.version == version)


def _own_address(
    sender: Known, sandbox: View | None, leaving: Way | None, version: int
) -> IPAddress | None:
    if sender.address is not None or sandbox is None or leaving is None:
        return sender.address
    link = sandbox.interfaces.get(leaving.interface or "")
    return next(iter(_of_version(link.addresses, version)), None) if link is not None else None


@dataclass(frozen=True, slots=True)
class Ends:
    """The two ends of a flow and what they show; the views are None where there is no sandbox."""

    flow: Flow
    sender: Known
    receiver: Known
    host: View
    sandbox: View | None
    other: View | None
    leaving: Way | None
    lookup: Lookup | None = None

    @property
    def bridges(self) -> tuple[str | None, str | None]:
        """The bridges behind which the ends are."""
        here = bridge_of(self.sandbox, self.flow.source.address, self.host)
        return here, bridge_of(self.other, self.flow.destination.address, self.host)


def find_ends(source: str, target: Target, *, is_ipv6: bool) -> Ends:
    """Look at both ends, and choose the addresses. Raises AskError for a name without a sandbox."""
    ports = () if target.port is None else (target.port,)
    host = read_view(ports)
    sender = _find(source)
    receiver, lookup = _find_target(target.name, sender, is_ipv6=is_ipv6)
    sandbox = run_inside(sender, lambda: read_view(ports)) if sender.sandbox else None
    other = run_inside(receiver, lambda: read_view(None)) if receiver.sandbox else None
    # The other family where there is nothing of the one: a network may have IPv6 alone.
    chosen = (_choose(receiver, other, sandbox, host, each) for each in _versions(is_ipv6=is_ipv6))
    address = next((each for each in chosen if each is not None), None)
    version = address.version if address is not None else 4
    leaving: Way | None = None
    if sandbox is not None and address is not None:
        leaving = run_inside(sender, lambda: find_way(address))
    own = _own_address(sender, sandbox, leaving, version)
    flow = Flow(
        Party(sender.name, sender.path, own),
        Party(receiver.name, receiver.path, address),
        target.protocol,
        target.port,
    )
    return Ends(flow, sender, receiver, host, sandbox, other, leaving, lookup)
