"""Create and delete bridges and veth pairs over rtnetlink.

Every call opens a socket of its own, in the namespace that its thread is in: that takes as long as
asking for a lock, and nothing has to be known of who used it before.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import socket
import struct
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from pyroute2.netlink.rtnl import RTMGRP_LINK
from pyroute2.netlink.rtnl.ifinfmsg import IFF_UP

from driver.errors import Conflict, KernelError, NotFound
from driver.linux import netns, sysctl
from driver.linux.rtnetlink import BridgePort, LinkInfo, Rtnetlink, VethPeer
from driver.linux.session import NetlinkError
from driver.model import BridgeFull, is_our_alias
from driver.observed import Link, is_dockers_port
from driver.undo import Rollback

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from driver.model import Bridge, DirectInterface, IPAddress, IPInterface, Veth

_SIOCGIFFLAGS = 0x8913  # include/uapi/linux/sockios.h
_SIOCGIFHWADDR = 0x8927
_IFREQ = struct.Struct("=16sH22x")  # struct ifreq: the name, then the flags

# The kernel takes an alias only from RTM_SETLINK (do_setlink(), rtnetlink.c), so a link has a
# moment without one, and we may be killed in it. It takes a group with RTM_NEWLINK: this one,
# "pnet", tells what we had begun to make. It goes when the alias comes.
HALF_MADE = 0x706E6574
_DOOMED = 0x706E6478  # what is about to be deleted, all of it at once
_ROUTE_LOOPBACK = "net.ipv4.conf.IFNAME.route_localnet"
# What is for them goes where the default route leads: RFC 5737, RFC 3849.
_NOBODYS = ip_address("203.0.113.1"), ip_address("2001:db8:ffff:ffff::1")
_IPV6_MTU = 1280  # an interface with less has no IPv6, RFC 8200

log = logging.getLogger(__name__)


@contextmanager
def _route(attempt: str) -> Iterator[Rtnetlink]:
    """Open rtnetlink; what the kernel refuses inside becomes `attempt: reason`."""
    with _attempting(attempt), Rtnetlink() as route:
        yield route


@contextmanager
def _attempting(attempt: str) -> Iterator[None]:
    """Turn what the kernel refuses inside into `attempt: reason`."""
    try:
        yield
    except NetlinkError as error:
        if error.errno == errno.EEXIST:
            raise Conflict(f"{attempt}: the name is taken") from error
        raise KernelError(f"{attempt}: {error.strerror}") from error
    except OSError as error:  # no descriptor is left, or no buffer
        raise KernelError(f"{attempt}: {error.strerror or error}") from error


@contextmanager
def unless_gone() -> Iterator[None]:
    """Let the kernel refuse what concerns a link, or an address of one, that is not there.

    A veth goes with its sandbox, at any moment, and what is to be deleted need then not be.
    """
    try:
        yield
    except NetlinkError as error:
        if error.errno not in {errno.ENODEV, errno.EADDRNOTAVAIL}:
            raise


def ensure_bridge(bridge: Bridge) -> tuple[IPInterface, ...]:
    """Create the bridge or use the one there is; return the addresses that it did not have."""
    with _route(f"create bridge {bridge.name}") as route:
        link = route.find_link(bridge.name)
        if link is not None and link.group == HALF_MADE:
            _delete(route, link.index)
            link = None
        if link is None:
            _create_bridge(route, bridge)
            return bridge.addresses
        _check_usable(link, bridge)
        return _complete_bridge(route, link, bridge)


def delete_bridge(bridge: Bridge, added: Sequence[IPInterface]) -> None:
    """Delete our own bridge; from a foreign one take what we added, addresses and loopback."""
    with _route(f"delete bridge {bridge.name}") as route:
        link = route.find_link(bridge.name)
        if link is None:
            return
        if link.alias == bridge.alias:
            _delete(route, link.index)
            return
        if bridge.routes_loopback and link.kind == "bridge" and not _is_ours(link):
            sysctl.ensure(_ROUTE_LOOPBACK, "0", bridge.name)
        present = route.addresses(link.index).get(link.index, frozenset())
        for address in (address for address in added if address in present):
            with _changing("del", address), unless_gone():
                route.delete_address(link.index, address)


def create_veth(veth: Veth, known: int | None = None) -> None:
    """Create the pair, its sandbox end with its MAC, its host end complete, on the bridge and up.

    `known` is the index that the bridge had when it was seen to be the right one.
    """
    with _route(f"create {veth.host_end} on bridge {veth.bridge}") as route:
        _create_pair(route, veth, _bridge_index(veth, known), VethPeer(veth.sandbox_end, veth.mac))


def create_veth_in(
    veth: Veth, namespace: int, interface: DirectInterface, known: int | None = None
) -> None:
    """Create the pair with its sandbox end in the namespace, named, addressed and up.

    All of it in one thread that enters the namespace: a socket opened before stays the host's. That
    thread announces the addresses, if it is to, when the caller has got its answer.
    """
    bridge = _bridge_index(veth, known)
    with _attempting(f"create {veth.host_end} on {veth.bridge}"):
        create = partial(_create_inside, veth, bridge, namespace, interface)
        netns.run_apart(create, partial(_finish_inside, veth, interface))


@dataclass(frozen=True, slots=True)
class _Inside:
    """An interface in a sandbox, with sockets of the host's namespace and of that one."""

    host: Rtnetlink
    route: Rtnetlink
    index: int


def _create_inside(veth: Veth, bridge: int, namespace: int, interface: DirectInterface) -> _Inside:
    """Create the pair from inside the sandbox, by a socket of the host's."""
    with Rollback() as undo:
        host = Rtnetlink()
        undo.push(host.close)
        netns.enter(namespace)
        name = interface.name or _next_name(interface.prefix)
        _create_pair_into(host, veth, bridge, VethPeer(name, veth.mac, namespace))
        undo.push(host.delete_link, veth.host_end)
        inside = Rtnetlink()
        undo.push(inside.close)
        return _Inside(host, inside, _configure(inside, name, interface))


def _create_pair_into(host: Rtnetlink, veth: Veth, bridge: int, peer: VethPeer) -> None:
    try:
        _create_pair(host, veth, bridge, peer)
    except NetlinkError as error:
        if error.errno == errno.EEXIST:
            raise Conflict(
                f"create {veth.host_end} on {veth.bridge}, its other end {peer.name}: the name is "
                "taken"
            ) from error
        raise


def _finish_inside(veth: Veth, interface: DirectInterface, inside: _Inside) -> None:
    """Announce the interface's addresses if they are to be, and close the sockets."""
    try:
        with inside.host, inside.route:
            if interface.announced:
                _announce(veth, inside)
    except OSError as error:
        if error.errno != errno.ENODEV:  # it has gone since
            log.warning("announce the addresses behind %s: %s", veth.host_end, error)


def _announce(veth: Veth, inside: _Inside) -> None:
    """Make the kernel announce the interface's addresses to its neighbours.

    It does so when a link comes up, too, and the bridge passes nothing on then: it opens the port
    when the kernel has noticed the carrier. Asking for the link has it noticed (rtnl_getlink(),
    from Linux 6.8 on), and setting the MAC address is a reason to tell, though it be the same
    (NETDEV_CHANGEADDR in inetdev_event() and ndisc_netdev_event()).
    """
    if inside.host.find_link(veth.host_end) is not None:
        inside.route.set_mac_and_mtu(inside.index, veth.mac, veth.mtu)


def _bridge_index(veth: Veth, known: int | None) -> int:
    """Return the index of the host end's bridge, if that is there and the name is free.

    Another index than is known is another link, made anew since: ours, or one of others. Whose it
    is costs a question that waits for the kernel's lock, so only such a one is looked at.
    """
    index = find_index(veth.bridge)
    if index is None:
        raise KernelError(f"create {veth.host_end}: bridge {veth.bridge} is gone")
    if index != known:
        with _route(f"create {veth.host_end} on bridge {veth.bridge}") as route:
            _check_bridge(route, veth)
    if find_index(veth.host_end) is not None:
        raise Conflict(f"create {veth.host_end} on bridge {veth.bridge}: the name is taken")
    return index


def _check_bridge(route: Rtnetlink, veth: Veth) -> int | None:
    """Return the index of a veth's bridge, None if it is gone; raises Conflict if it is another's.

    A network on a bridge that its operator named, and that was there before, takes any such.
    """
    link = route.find_link(veth.bridge)
    if link is None:
        return None
    if veth.bridge_alias is not None and link.alias != veth.bridge_alias:
        raise Conflict(
            f"put {veth.host_end} on bridge {veth.bridge}: another program has an interface of "
            "that name, which has to go first"
        )
    return link.index


def _create_pair(route: Rtnetlink, veth: Veth, bridge: int, peer: VethPeer) -> None:
    """Create the pair, its host end complete, on the bridge of that index and up."""
    # The host end only passes frames on. Else it gets an address, with routes and neighbours,
    # and whenever a link comes or goes the kernel walks through those of all
    # (fib6_clean_all(), neigh_carrier_down()).
    has_ipv6 = veth.mtu >= _IPV6_MTU and sysctl.has_ipv6()
    port = BridgePort(veth.host_end, veth.alias, veth.mtu, bridge, veth.hairpin, has_ipv6)
    with Rollback() as undo:
        try:
            route.create_port(port, HALF_MADE, peer)
        except NetlinkError as error:
            if error.done:
                undo.push(route.delete_link, veth.host_end)
            elif error.errno == errno.EXFULL:
                raise BridgeFull(f"create {veth.host_end}: bridge {veth.bridge} is full") from error
            raise


def _next_name(prefix: str) -> str:
    """Return the first free interface name of the thread's namespace with this prefix."""
    taken = {name for _, name in socket.if_nameindex()}
    return next(name for name in map(f"{prefix}{{}}".format, count()) if name not in taken)


def _configure(route: Rtnetlink, name: str, interface: DirectInterface) -> int:
    """Give the thread's namespace's interface its addresses and bring it up; return its index."""
    has_ipv6 = _has_ipv6(interface.addresses)
    _switch_ipv6(name, on=has_ipv6)
    if interface.announced:  # see `_announce`, and Documentation/networking/ip-sysctl.rst
        sysctl.write("net.ipv4.conf.IFNAME.arp_notify", "1", name)
        if has_ipv6:
            sysctl.write("net.ipv6.conf.IFNAME.ndisc_notify", "1", name)
    index = _index(name)
    try:
        route.raise_with(index, interface.addresses)
    except NetlinkError as error:
        what = (*interface.addresses, "up")[error.done]
        raise KernelError(f"configure {name} in the sandbox, {what}: {error.strerror}") from error
    return index


def ensure_port(veth: Veth) -> bool:
    """Put an existing host end on its bridge and up; return False if there is no such link.

    One with a smaller MTU gets the network's: it would drop what the bridge lets in
    (is_skb_forwardable(), net/core/dev.c). A greater one does no harm.
    """
    with _route(f"put {veth.host_end} on bridge {veth.bridge}") as route, unless_gone():
        link = route.find_link(veth.host_end)
        bridge = _check_bridge(route, veth)
        if link is None or bridge is None:
            return False
        if link.master != bridge or not link.is_up:
            route.raise_link(link.index, bridge)
        if link.mtu < veth.mtu:
            route.set_mtu(link.index, veth.mtu)
        if veth.hairpin:
            route.set_hairpin(link.index)
        return True
    return False


def delete_links(which: Iterable[str | int]) -> None:
    """Delete the links that are ours, given by name or by index; absence is success.

    Several go in one request, by a group made for it: the kernel then waits for its grace periods
    once (rtnl_group_dellink(), rtnetlink.c) instead of 15 to 30 ms for each.
    """
    present = tuple(each for each in dict.fromkeys(which) if _is_present(each))
    if not present:
        return
    with _route(f"delete {', '.join(map(str, present))}") as route:
        links = [link for each in present if (link := route.find_link(each)) and _is_ours(link)]
        if len(links) == 1:
            _delete(route, links[0].index)
            return
        doomed = [link for link in links if _doom(route, link.index)]
        if doomed:
            with unless_gone():
                route.delete_group(_DOOMED)


def _is_present(which: str | int) -> bool:
    return (name_of(which) if isinstance(which, int) else find_index(which)) is not None


def _doom(route: Rtnetlink, index: int) -> bool:
    """Put a link into the group that is deleted next; False if it has gone meanwhile."""
    try:
        route.set_group(index, _DOOMED)
    except NetlinkError as error:
        if error.errno != errno.ENODEV:
            raise
        return False
    return True


def observe_links() -> dict[str, Link]:
    """Return every interface of the host, by name, in two dumps; addresses of bridges alone."""
    with _route("list the interfaces") as route:
        found = route.links()
        addresses = route.addresses(*(link.index for link in found if link.kind == "bridge"))
        out = {route.find_way(address) for address in _NOBODYS}
    dockers = {link.master for link in found if is_dockers_port(link.name)}
    names = {link.index: link.name for link in found}
    return {
        link.name: Link(
            kind=link.kind,
            alias=link.alias,
            mac=link.mac,
            mtu=link.mtu,
            up=link.is_up,
            bridge=names.get(link.master),
            addresses=addresses.get(link.index, frozenset()),
            half_made=link.group == HALF_MADE,
            hairpin=link.hairpin,
            leads_out=link.index in out,
            dockers=link.index in dockers,
        )
        for link in found
    }


def list_links() -> tuple[LinkInfo, ...]:
    """Return every interface of the thread's namespace, in one dump."""
    with _route("list the interfaces") as route:
        return route.links()


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a veth: its interface index there, and whether it has left this namespace.

    The kernel keeps both true through every move (veth_get_iflink()), so a container that renames
    its interfaces cannot mislead us.
    """

    index: int
    moved: bool


def find_peer(host_end: str) -> Peer:
    """Return the other end of a veth; raises NotFound if there is no such veth."""
    with _route(f"look at {host_end}") as route:
        link = route.find_link(host_end)
    if link is None or not link.other_end:
        raise NotFound(f"look at {host_end}: there is no such link, or it has no other end")
    return Peer(link.other_end, link.other_end_moved)


def find_index(name: str) -> int | None:
    """Return a link's index in the thread's namespace; an ioctl, which takes no rtnl lock."""
    try:
        return socket.if_nametoindex(name)
    except OSError:  # without an errno, by what Python makes of it
        return None


def name_of(index: int) -> str | None:
    """Return the name of the interface with this index in the thread's namespace."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return None


def mac_of(index: int) -> str | None:
    """Return the MAC address of the interface with this index in the thread's namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            name = socket.if_indextoname(index)
            answer = fcntl.ioctl(probe, _SIOCGIFHWADDR, _IFREQ.pack(name.encode(), 0))
        except OSError:
            return None  # not there, or renamed between the two
    return answer[18:24].hex(":")  # behind the name and the address's family


def default_route_interfaces() -> frozenset[str]:
    """Return by which interfaces the thread's namespace has IPv4 default routes."""
    lines = Path("/proc/thread-self/net/route").read_text().splitlines()[1:]
    routes = (line.split() for line in lines)  # Iface Destination Gateway Flags … Mask …
    return frozenset(each[0] for each in routes if each[1] == each[7] == "00000000")


def find_ways(addresses: Iterable[IPAddress]) -> dict[IPAddress, str | None]:
    """Return by which interface the host sends to each address, None for where it cannot."""
    with _route("look up routes") as route:
        indexes = {address: route.find_way(address) for address in addresses}
    return {address: name_of(index) if index else None for address, index in indexes.items()}


def await_up(index: int, timeout: float) -> str | None:
    """Wait until the interface with this index is up in the thread's namespace; return its name.

    None if that has not happened after `timeout` seconds. By a socket of its own, which says that
    something has changed and is not asked what: the container's first process may be waiting.
    """
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as changes:
        changes.bind((0, RTMGRP_LINK))
        while (name := _name_if_up(index)) is None:
            changes.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                changes.recv(65536)
            except TimeoutError:
                return None
        return name


def _name_if_up(index: int) -> str | None:
    """Return the name of the interface with this index if it is there and up.

    By ioctl, which takes no rtnl lock as netlink does: while another namespace is being destroyed
    that is held for longer than a container's first process lets us wait on 20.10 to 27.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            name = socket.if_indextoname(index)
            answer = fcntl.ioctl(probe, _SIOCGIFFLAGS, _IFREQ.pack(name.encode(), 0))
        except OSError:
            return None  # not there yet, or renamed between the two
    return name if _IFREQ.unpack(answer)[1] & IFF_UP else None


def _create_bridge(route: Rtnetlink, bridge: Bridge) -> None:
    # An explicit MAC stays; otherwise a bridge takes the lowest of its ports' and changes it.
    route.create_bridge(bridge.name, bridge.mac, HALF_MADE)
    with Rollback() as undo:
        undo.push(route.delete_link, bridge.name)
        # An MTU that comes with the bridge follows its ports', and is 1500 when the last has gone;
        # only one that is changed afterwards stays (br_change_mtu(), net/bridge/br_device.c).
        route.finish_link(bridge.name, bridge.alias, bridge.mtu)
        _write_parameters(bridge)
        index = _index(bridge.name)
        for address in bridge.addresses:
            _add_address(route, index, address)
        _add_link_local(route, index, bridge)


def _write_parameters(bridge: Bridge) -> None:
    """Write the parameters of a bridge that is ours."""
    has_ipv6 = _has_ipv6(bridge.addresses)
    # Without an address of its own not even a link-local one, by which containers would reach
    # the host.
    _switch_ipv6(bridge.name, on=has_ipv6)
    if has_ipv6:
        # A router advertisement from a container must not configure the host.
        sysctl.write("net.ipv6.conf.IFNAME.accept_ra", "0", bridge.name)
        # Until its link-local address is known to be unique the host asks no neighbour on the
        # bridge for their MAC address on behalf of others (ndisc_solicit(), net/ipv6/ndisc.c): for
        # 1 to 3 s after the bridge came up, packets from outside would be answered "unreachable".
        sysctl.write("net.ipv6.conf.IFNAME.accept_dad", "0", bridge.name)
    _route_loopback(bridge, on=bridge.routes_loopback)


def _switch_ipv6(ifname: str, *, on: bool) -> None:
    """Turn IPv6 of an interface on or off; a kernel started without IPv6 has none."""
    sysctl.ensure("net.ipv6.conf.IFNAME.disable_ipv6", "0" if on else "1", ifname)


def _route_loopback(bridge: Bridge, *, on: bool) -> None:
    """Let 127.0.0.1 be translated to a container, or no more.

    pynet's chain `from_port` drops what comes from the bridge to 127.0.0.0/8 or in its name, which
    this lets in.
    """
    sysctl.write(_ROUTE_LOOPBACK, "1" if on else "0", bridge.name)


def _routes_loopback(bridge: Bridge) -> bool:
    return sysctl.read(_ROUTE_LOOPBACK, bridge.name) == "1"


def _has_ipv6(addresses: Iterable[IPInterface]) -> bool:
    return any(address.version == 6 for address in addresses)  # noqa: PLR2004


def _complete_bridge(route: Rtnetlink, link: LinkInfo, bridge: Bridge) -> tuple[IPInterface, ...]:
    with Rollback() as undo:
        if link.alias == bridge.alias:
            route.limit_learning(link.index)
            _write_parameters(bridge)
        elif bridge.routes_loopback and not _routes_loopback(bridge):
            _route_loopback(bridge, on=True)
            undo.push(_route_loopback, bridge, on=False)
        present = route.addresses(link.index).get(link.index, frozenset())
        missing = tuple(address for address in bridge.addresses if address not in present)
        for address in missing:
            _add_address(route, link.index, address)
            undo.push(route.delete_address, link.index, address)
        if link.alias == bridge.alias:
            _add_link_local(route, link.index, bridge)
        if not link.is_up:
            route.raise_link(link.index)
        if link.alias == bridge.alias and (link.mac, link.mtu) != (bridge.mac, bridge.mtu):
            route.set_mac_and_mtu(link.index, bridge.mac, bridge.mtu)
    return missing


def _check_usable(link: LinkInfo, bridge: Bridge) -> None:
    if link.alias == bridge.alias:
        return
    if link.kind != "bridge":
        raise Conflict(f"use {bridge.name} as bridge: it is an interface of another kind")
    if bridge.must_be_ours:
        raise Conflict(f"create bridge {bridge.name}: another program has a bridge of that name")
    if is_our_alias(link.alias):
        owner = link.alias.removeprefix("pynet ")
        raise Conflict(f"use bridge {bridge.name}: it belongs to {owner}")


def _is_ours(link: LinkInfo) -> bool:
    """Return whether this driver made the link, or had only begun to."""
    return is_our_alias(link.alias) or link.group == HALF_MADE


def _index(name: str) -> int:
    index = find_index(name)
    if index is None:
        raise NetlinkError(errno.ENODEV)
    return index


def _delete(route: Rtnetlink, index: int) -> None:
    with unless_gone():
        route.delete_link(index)


def _add_address(route: Rtnetlink, index: int, address: IPInterface) -> None:
    """Add an address, without duplicate address detection.

    A bridge without a port has no carrier and would keep an IPv6 address tentative.
    """
    with _changing("add", address):
        route.add_address(index, address)


def _add_link_local(route: Rtnetlink, index: int, bridge: Bridge) -> None:
    """Give a bridge with IPv6 its link-local address; the kernel does so when it has a carrier.

    Until then the host asks no neighbour on the bridge for its MAC address on behalf of others
    (ndisc_send_ns(), net/ipv6/ndisc.c), and packets from outside are lost: for as long as others
    keep the kernel's own work waiting for the rtnl lock.
    """
    if bridge.link_local is None:
        return
    try:
        route.add_address(index, bridge.link_local)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:  # the kernel was first
            raise KernelError(
                f"add address {bridge.link_local} of {bridge.name}: {error.strerror}"
            ) from error


@contextmanager
def _changing(verb: str, address: IPInterface) -> Iterator[None]:
    """Say which address it was that the kernel refused."""
    try:
        yield
    except NetlinkError as error:
        raise KernelError(f"{verb} address {address} of a bridge: {error.strerror}") from error
