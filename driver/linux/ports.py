"""Reserve host ports by bound sockets.

A bound socket keeps the port from everybody else, Docker's own bridge included, for as long as
this process lives. Nothing is received on it but what the firewall does not translate, and that is
the relay's: see `driver.linux.relay`.
"""

from __future__ import annotations

import errno
import logging
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

from driver.errors import KernelError
from driver.linux import sysctl
from driver.model import PortInUse, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from driver.model import HostPort, IPAddress

PORT_RANGE = "net.ipv4.ip_local_port_range"
BACKLOG = 4096  # connections that wait for the relay; the kernel caps it at net.core.somaxconn

_TYPES = {
    Protocol.TCP: (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    Protocol.UDP: (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    Protocol.SCTP: (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}

log = logging.getLogger(__name__)


def ephemeral_ports() -> range:
    """Return the ports from which the kernel, and so Docker, takes those that are not requested.

    Raises KernelError if it does not say.
    """
    said = sysctl.read(PORT_RANGE)
    if said is None:
        raise KernelError(f"read {PORT_RANGE}: there is none")
    first, last = map(int, said.split())
    return range(first, last + 1)


class Reservations:
    """The host ports that this process holds."""

    def __init__(self) -> None:
        self._sockets: dict[HostPort, socket.socket | None] = {}

    def reserve(self, places: Sequence[HostPort]) -> None:
        """Reserve all of the places or none; raises PortInUse for the first that is taken."""
        done: list[HostPort] = []
        try:
            for place in places:
                self._take(place)
                done.append(place)
        except BaseException:
            self.release(done)
            raise

    def adopt(self, sockets: Mapping[HostPort, socket.socket]) -> None:
        """Hold these sockets, which another process has bound."""
        self._sockets |= sockets

    def listen(self, place: HostPort) -> socket.socket | None:
        """Listen on a reserved port, so that clients queue; return its socket.

        None if the kernel has none for it. Raises KernelError if the place is not reserved.
        """
        if place not in self._sockets:
            raise KernelError(f"relay {place}: it is not reserved")
        bound = self._sockets[place]
        if bound is not None and place.protocol is Protocol.TCP:
            # What is accepted is to have that, too: it must not keep the port from the next.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.listen(BACKLOG)
        return bound

    def places(self) -> frozenset[HostPort]:
        """Return the places that are reserved."""
        return frozenset(self._sockets)

    def _take(self, place: HostPort) -> None:
        if place in self._sockets:
            raise PortInUse(f"publish {place}: port is in use", place)
        self._sockets[place] = _bind(place)

    def release(self, places: Iterable[HostPort]) -> None:
        """Let go of the places; absence is success."""
        for place in places:
            bound = self._sockets.pop(place, None)
            if bound is not None:
                bound.close()

    def close(self) -> None:
        """Let go of everything."""
        self.release(list(self._sockets))


def find_owner(place: HostPort) -> str:
    """Return the process that has the port, in words; for an error message, so it may be slow."""
    import psutil  # noqa: PLC0415 - needed on this path only

    kind = socket.SOCK_DGRAM if place.protocol is Protocol.UDP else socket.SOCK_STREAM
    for connection in psutil.net_connections("all"):
        if connection.pid is None or not connection.laddr or connection.raddr:
            continue
        if connection.type != kind or getattr(connection.laddr, "port", 0) != place.port:
            continue
        if _keeps_out(ip_address(connection.laddr.ip), place.ip):
            try:
                name = psutil.Process(connection.pid).name()
            except psutil.NoSuchProcess:
                continue
            return f"{name} (pid {connection.pid})"
    return "another process"


def _keeps_out(held: IPAddress, asked: IPAddress) -> bool:
    """Return whether a socket at one address keeps another from being bound at the same port."""
    mapped = getattr(held, "ipv4_mapped", None)
    if mapped is not None:
        held = mapped
    if held.version != asked.version:  # it may be of both families, which is not shown
        return held.version > asked.version and held.is_unspecified
    return held == asked or held.is_unspecified or asked.is_unspecified


def _bind(place: HostPort) -> socket.socket | None:
    kind, protocol = _TYPES[place.protocol]
    family = socket.AF_INET if place.ip.version == 4 else socket.AF_INET6  # noqa: PLR2004
    try:
        bound = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    except OSError as error:
        if place.protocol is Protocol.SCTP and error.errno == errno.EPROTONOSUPPORT:
            # No process of this host can take the port either.
            log.info("publishing %s without a reservation: this kernel has no SCTP", place)
            return None
        if family == socket.AF_INET6 and error.errno == errno.EAFNOSUPPORT:
            return None  # this kernel has no IPv6: the port cannot be bound
        raise KernelError(f"reserve {place}: {error.strerror}") from error
    try:
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _bind_to(bound, place)
    except BaseException:
        bound.close()
        raise
    return bound


def _bind_to(bound: socket.socket, place: HostPort) -> None:
    address = (str(place.ip), place.port)
    try:
        bound.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise KernelError(f"publish {place}: this host has no such address") from error
        if error.errno != errno.EADDRINUSE:
            raise KernelError(f"publish {place}: {error.strerror}") from error
        if place.protocol is not Protocol.TCP or not _outlives_time_wait(bound, address):
            raise PortInUse(f"publish {place}: port is in use", place) from error


def _outlives_time_wait(bound: socket.socket, address: tuple[str, int]) -> bool:
    """Take a port that only closed connections of a former server still hold.

    They linger for a minute (TIME_WAIT) and keep a plain bind(2) out. With SO_REUSEADDR the bind
    passes whenever no socket listens, and listening then keeps every other bind out.
    """
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        bound.listen(1)
    except OSError:
        return False
    return True
