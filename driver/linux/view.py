"""Look at the calling thread's network namespace, and nothing else: whoever asks has entered it."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from driver.diagnosis.facts import (
    NO_ROOM,
    NO_TRANSLATION,
    WRONG_SUM,
    Interface,
    Listener,
    Routed,
    View,
    Way,
)
from driver.errors import KernelError
from driver.linux import sysctl
from driver.linux.rtnetlink import Rtnetlink
from driver.linux.sock_diag import SockDiag

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from driver.linux.rtnetlink import LinkInfo, ListedRoute
    from driver.linux.sock_diag import Bound
    from driver.model import IPAddress

_SOCKET = "socket:["  # how /proc/PID/fd says that a descriptor is one, then its inode

_OF_ALL = (
    "net.ipv4.ip_forward",
    "net.ipv6.conf.all.forwarding",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.conf.all.arp_ignore",
    "net.bridge.bridge-nf-call-iptables",
    "net.bridge.bridge-nf-call-ip6tables",
    "net.netfilter.nf_conntrack_count",
    "net.netfilter.nf_conntrack_max",
    "net.ipv4.neigh.default.gc_thresh3",
    "net.ipv4.ip_default_ttl",
)
_OF_INTERFACE = (
    "net.ipv4.conf.IFNAME.forwarding",
    "net.ipv4.conf.IFNAME.rp_filter",
    "net.ipv4.conf.IFNAME.arp_ignore",
    "net.ipv6.conf.IFNAME.disable_ipv6",
    "net.ipv6.conf.IFNAME.accept_ra",
)


def read_view(ports: Collection[int] | None = None) -> View:
    """Return what the namespace shows.

    Of the listeners only those of some ports have their process looked up, all without: it takes
    30 ms. Raises KernelError.
    """
    with _looking():
        with Rtnetlink() as route:
            links, interfaces = _read_interfaces(route)
            neighbours = route.neighbours()
            learned = route.forwarding()
            routes = route.routes()
        with SockDiag() as sockets:
            bound = tuple(sockets.listeners())
    names = {link.index: link.name for link in links}
    wanted = [each for each in bound if ports is None or each.port in ports]
    return View(
        interfaces=interfaces,
        listeners=list_listeners(bound, find_owners({each.inode for each in wanted})),
        sysctls=_read_sysctls(names.values()),
        silent=frozenset(each.ip for each in neighbours if each.has_failed),
        macs={each.ip: each.mac for each in neighbours if each.mac and not each.has_failed},
        ports_of=_ports_of(learned, names),
        routes=tuple(_routed(routes, names)),
        neighbour_entries=_count_neighbours(),
    )


def read_ends(owners: Mapping[int, str]) -> View:
    """Return the interfaces and listeners alone, for who looks at many namespaces.

    `owners` are the processes of all sockets. Raises KernelError.
    """
    with _looking():
        with Rtnetlink() as route:
            _, interfaces = _read_interfaces(route)
        with SockDiag() as sockets:
            return View(interfaces, list_listeners(sockets.listeners(), owners))


@contextmanager
def _looking() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise KernelError(f"look at a network namespace: {error.strerror or error}") from error


def _read_interfaces(route: Rtnetlink) -> tuple[tuple[LinkInfo, ...], dict[str, Interface]]:
    links = route.links()
    addresses = route.addresses(*(link.index for link in links))
    names = {link.index: link.name for link in links}
    return links, {
        link.name: Interface(
            index=link.index,
            name=link.name,
            kind=link.kind,
            mac=link.mac,
            mtu=link.mtu,
            is_up=link.is_up,
            has_carrier=link.has_carrier,
            master=names.get(link.master),
            other_end=link.other_end,
            moved=link.other_end_moved,
            alias=link.alias,
            addresses=addresses.get(link.index, frozenset()),
        )
        for link in links
    }


def _ports_of(
    learned: Iterable[tuple[str, int]], names: Mapping[int, str]
) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for mac, port in learned:
        if port in names:
            found.setdefault(mac, set()).add(names[port])
    return {mac: frozenset(ports) for mac, ports in found.items()}


def find_way(
    destination: IPAddress, source: IPAddress | None = None, arriving: str | None = None
) -> Way:
    """Return where the namespace sends a packet: its own, or one that arrives by an interface."""
    try:
        with Rtnetlink() as route:
            link = route.find_link(arriving) if arriving else None
            found = route.find_route(destination, source, link.index if link else 0)
            out = route.find_link(found.interface) if found.interface else None
    except OSError as error:
        raise KernelError(f"look up the route to {destination}: {error.strerror}") from error
    return Way(out.name if out else None, found.gateway, found.is_local, found.error)


def find_owners(inodes: Collection[int]) -> dict[int, str]:
    """Return the processes that have these sockets, as `node (pid 4711)`; slow, for a person."""
    return _find_owners(inodes) if inodes else {}


def find_all_owners() -> dict[int, str]:
    """Return the processes of all sockets, of whatever namespace: an inode is of one socket."""
    return _find_owners(None)


def _find_owners(inodes: Collection[int] | None) -> dict[int, str]:
    found: dict[int, str] = {}
    wanted = None if inodes is None else frozenset(inodes)
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError):  # it has ended meanwhile, or is the kernel's
            name = (process / "comm").read_text().strip()
            for descriptor in os.scandir(process / "fd"):
                with suppress(OSError):
                    target = os.readlink(descriptor.path)  # noqa: PTH115 - thousands
                    if target.startswith(_SOCKET):
                        inode = int(target[len(_SOCKET) : -1])
                        if wanted is None or inode in wanted:
                            found.setdefault(inode, f"{name} (pid {process.name})")
    return found


def _count_neighbours() -> int:
    """Return how many neighbours the kernel keeps for IPv4: all namespaces share a table.

    Only the machine's first namespace can say; 0 elsewhere (neigh_table_init(), neighbour.c).
    """
    with suppress(FileNotFoundError):
        lines = Path("/proc/thread-self/net/stat/arp_cache").read_text().splitlines()
        return int(lines[1].split()[0], 16)
    return 0


def read_counts(name: str | None, interfaces: Collection[str]) -> dict[str, int]:
    """Return counters of what the namespace drops, which may tell why a probe is not answered.

    `name` is the container's; None for the host. Queues are those of some interfaces. Raises
    KernelError.
    """
    if name is None:
        counts = {NO_TRANSLATION: _count_failed_insertions()}
    else:
        counts = {f"{WRONG_SUM} at {name}": _count_wrong_sums()}
    try:
        with Rtnetlink() as route:
            drops = route.queue_drops()
            links = {link.index: link.name for link in route.links()}
    except OSError as error:
        raise KernelError(f"look at the queues: {error.strerror or error}") from error
    where = "" if name is None else f" of {name}"
    return counts | {
        f"{NO_ROOM} at {links[index]}{where}": number
        for index, number in drops.items()
        if links.get(index) in interfaces
    }


def _count_failed_insertions() -> int:
    """Return how many flows found no place among those that are tracked: two had the same tuple."""
    with suppress(FileNotFoundError):  # nothing is tracked
        head, *lines = Path("/proc/thread-self/net/stat/nf_conntrack").read_text().splitlines()
        column = head.split().index("insert_failed")
        return sum(int(line.split()[column], 16) for line in lines)
    return 0


def _count_wrong_sums() -> int:
    lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    pairs = zip(lines[::2], lines[1::2], strict=True)
    found = (zip(head.split(), values.split(), strict=True) for head, values in pairs)
    return sum(int(value) for each in found for key, value in each if key == "InCsumErrors")


def _unmapped(text: str) -> IPAddress:
    """Return the IPv4 address where a socket of IPv6 is bound to one, as Java's are."""
    ip = ip_address(text)
    return ip.ipv4_mapped or ip if isinstance(ip, IPv6Address) else ip


def _routed(routes: Iterable[ListedRoute], names: Mapping[int, str]) -> Iterator[Routed]:
    for each in routes:
        for _, index in each.hops if each.kind == "unicast" else ():
            if index is not None and index in names and each.destination != "default":
                yield Routed(ip_network(each.destination), names[index])


def list_listeners(bound: Iterable[Bound], owners: Mapping[int, str]) -> tuple[Listener, ...]:
    """Return sockets with the processes that have them, as far as those are known."""
    return tuple(_listener(each, owners) for each in bound)


def _listener(bound: Bound, owners: Mapping[int, str]) -> Listener:
    return Listener(
        bound.protocol,
        _unmapped(bound.address),
        bound.port,
        owners.get(bound.inode, "a process"),
        bound.is_v6_only,
        bound.waiting,
        bound.backlog,
        bound.lost,
    )


def _read_sysctls(interfaces: Iterable[str]) -> dict[str, str]:
    found = {key: sysctl.read(key) for key in _OF_ALL}
    for name in interfaces:
        for key in _OF_INTERFACE:
            found[key.replace("IFNAME", name)] = sysctl.read(key, name)
    return {key: value for key, value in found.items() if value is not None}
