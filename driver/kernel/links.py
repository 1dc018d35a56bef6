"""Make and unmake bridges and veth pairs over rtnetlink; knows no network and no endpoint.

Every call opens its own socket: one that is made in one thread and used from another acts on the
wrong namespace, silently (pyroute2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_interface
from itertools import count
from typing import TYPE_CHECKING, Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from driver.errors import Conflict, KernelError, NotFound
from driver.kernel import netns, sysctl
from driver.model import is_our_alias
from driver.reality import Link

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from driver.model import Bridge, DirectInterface, IPInterface, Veth

_IFF_UP = 1  # include/uapi/linux/if.h
_IFA_F_NODAD = 0x02  # include/uapi/linux/if_addr.h
_RTMGRP_LINK = 1  # include/uapi/linux/rtnetlink.h
_SIOCGIFFLAGS = 0x8913  # include/uapi/linux/sockios.h
_IFREQ = struct.Struct("=16sH22x")  # struct ifreq: the name, then the flags

# The kernel takes an alias only from RTM_SETLINK (do_setlink(), rtnetlink.c), so a link has a
# moment without one, and we may be killed in it. It takes a group with RTM_NEWLINK: this one,
# "pnet", tells what we had begun to make. It goes when the alias comes.
HALF_MADE = 0x706E6574
_DOOMED = 0x706E6478  # what is about to be deleted, all of it at once
NO_GROUP = 0


@contextmanager
def _route(attempt: str) -> Iterator[IPRoute]:
    """Open rtnetlink; what the kernel refuses inside becomes `attempt: reason`."""
    try:
        with IPRoute(groups=0) as route:
            yield route
    except NetlinkError as error:
        if error.code == errno.EEXIST:
            raise Conflict(f"{attempt}: the name is taken") from error
        raise KernelError(f"{attempt}: {os.strerror(error.code)}") from error


def ensure_bridge(bridge: Bridge) -> tuple[IPInterface, ...]:
    """Make the bridge or use the one there is; return the addresses that it did not have."""
    with _route(f"create bridge {bridge.name}") as route:
        link = _find(route, bridge.name)
        if link is not None and is_half_made(link):
            _delete(route, link["index"])
            link = None
        if link is None:
            _create_bridge(route, bridge)
            return bridge.addresses
        _check_usable(link, bridge)
        return _complete_bridge(route, link, bridge)


def delete_bridge(bridge: Bridge, added: Sequence[IPInterface]) -> None:
    """Delete our own bridge; from a foreign one take what we added, addresses and loopback."""
    with _route(f"delete bridge {bridge.name}") as route:
        link = _find(route, bridge.name)
        if link is None:
            return
        if _is_bridge_of(link, bridge):
            _delete(route, link["index"])
            return
        if bridge.routes_loopback and _kind_of(link) == "bridge" and not _is_ours(link):
            _route_loopback(bridge, on=False)
        present = _addresses(route, link["index"])
        for address in (address for address in added if address in present):
            _change_address(route, "del", link["index"], address)


def create_veth(veth: Veth) -> None:
    """Make the pair in one message: MTU, MAC of the sandbox end, host end on the bridge and up."""
    peer = {"ifname": veth.sandbox_end, "address": veth.mac, "mtu": veth.mtu}
    with _route(f"create {veth.host_end} on bridge {veth.bridge}") as route:
        _create_pair(route, veth, peer)
        try:
            _finish_host_end(route, veth)
        except NetlinkError:
            route.link("del", ifname=veth.host_end)
            raise


def create_veth_in(veth: Veth, namespace: int, interface: DirectInterface) -> None:
    """Make the pair with its sandbox end in the namespace, named, addressed and up."""
    name = interface.name or netns.run_in(namespace, partial(_next_name, interface.prefix))
    peer = {"ifname": name, "address": veth.mac, "mtu": veth.mtu, "net_ns_fd": namespace}
    with _route(f"create {veth.host_end} on {veth.bridge}, its other end {name}") as route:
        _create_pair(route, veth, peer)
        try:
            _finish_host_end(route, veth)
            netns.run_in(namespace, partial(_configure, name, interface.addresses))
        except (NetlinkError, KernelError):
            route.link("del", ifname=veth.host_end)
            raise


def _create_pair(route: IPRoute, veth: Veth, peer: dict[str, Any]) -> None:
    bridge = _find_index(veth.bridge)
    if bridge is None:
        raise KernelError(f"create {veth.host_end}: bridge {veth.bridge} is gone")
    route.link(
        "add",
        ifname=veth.host_end,
        kind="veth",
        mtu=veth.mtu,
        master=bridge,
        state="up",
        group=HALF_MADE,
        peer=peer,
    )


def _finish_host_end(route: IPRoute, veth: Veth) -> None:
    route.link("set", ifname=veth.host_end, ifalias=veth.alias, group=NO_GROUP)
    _set_hairpin(route, veth)


def _set_hairpin(route: IPRoute, veth: Veth) -> None:
    if veth.hairpin:
        route.brport("set", index=_index(veth.host_end), mode=1)


def _next_name(prefix: str) -> str:
    """Return the first free interface name of the thread's namespace with this prefix."""
    taken = {name for _, name in socket.if_nameindex()}
    return next(name for name in map(f"{prefix}{{}}".format, count()) if name not in taken)


def _configure(name: str, addresses: Sequence[IPInterface]) -> None:
    """Give the interface its addresses and bring it up, in the thread's namespace.

    Its neighbours hear of it: arp_notify and ndisc_notify announce an address when the link
    comes up (Documentation/networking/ip-sysctl.rst).
    """
    _switch_ipv6(name, on=_has_ipv6(addresses))
    sysctl.write("net.ipv4.conf.IFNAME.arp_notify", "1", name)
    if _has_ipv6(addresses):
        sysctl.write("net.ipv6.conf.IFNAME.ndisc_notify", "1", name)
    with _route(f"configure {name} in the sandbox") as route:
        index = _index(name)
        for address in addresses:
            _change_address(route, "add", index, address)
        route.link("set", index=index, state="up")


def ensure_port(veth: Veth) -> bool:
    """Put an existing host end on its bridge and up; return False if there is no such link."""
    with _route(f"put {veth.host_end} on bridge {veth.bridge}") as route:
        link = _find(route, veth.host_end)
        bridge = _find(route, veth.bridge)
        if link is None or bridge is None:
            return False
        if link.get_attr("IFLA_MASTER") != bridge["index"] or not link["flags"] & _IFF_UP:
            route.link("set", index=link["index"], master=bridge["index"], state="up")
        _set_hairpin(route, veth)
        return True


def delete_links(names: Iterable[str]) -> None:
    """Delete the named links that are ours; absence is success.

    Several go in one request, by a group made for it: the kernel then waits for its grace periods
    once (rtnl_group_dellink(), rtnetlink.c) instead of 15 to 30 ms for each.
    """
    names = tuple(name for name in names if _find_index(name) is not None)
    if not names:
        return
    with _route(f"delete {', '.join(names)}") as route:
        links = [link for name in names if (link := _find(route, name)) and _is_ours(link)]
        if len(links) == 1:
            _delete(route, links[0]["index"])
            return
        doomed = [link for link in links if _doom(route, link["index"])]
        if doomed:
            route.link("del", group=_DOOMED)


def _doom(route: IPRoute, index: int) -> bool:
    """Put a link into the group that is deleted next; False if it has gone meanwhile."""
    try:
        route.link("set", index=index, group=_DOOMED)
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise
        return False
    return True


def observe_links() -> dict[str, Link]:
    """Return every interface of the host, by name, in two dumps."""
    with _route("list the interfaces") as route:
        found = route.get_links()
        addresses = route.get_addr()
    names = {link["index"]: str(link.get_attr("IFLA_IFNAME")) for link in found}
    of_link: dict[int, set[IPInterface]] = {}
    for entry in addresses:
        of_link.setdefault(entry["index"], set()).add(_address_of(entry))
    return {
        names[link["index"]]: Link(
            kind=_kind_of(link),
            alias=link.get_attr("IFLA_IFALIAS") or "",
            mac=link.get_attr("IFLA_ADDRESS") or "",
            mtu=link.get_attr("IFLA_MTU"),
            up=bool(link["flags"] & _IFF_UP),
            bridge=names.get(link.get_attr("IFLA_MASTER")),
            addresses=frozenset(of_link.get(link["index"], ())),
            half_made=is_half_made(link),
        )
        for link in found
    }


def _kind_of(link: Any) -> str | None:
    kind: str | None = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND")
    return kind


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
        link = _find(route, host_end)
    if link is None or not link.get_attr("IFLA_LINK"):
        raise NotFound(f"look at {host_end}: there is no such link, or it has no other end")
    return Peer(link.get_attr("IFLA_LINK"), link.get_attr("IFLA_LINK_NETNSID") is not None)


def name_of(index: int) -> str | None:
    """Return the name of the interface with this index in the thread's namespace."""
    link = _look_up(index)
    return None if link is None else str(link.get_attr("IFLA_IFNAME"))


def await_up(index: int, timeout: float) -> str | None:
    """Wait until the interface with this index is up in the thread's namespace; return its name.

    None if that has not happened after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as changes:
        changes.bind((0, _RTMGRP_LINK))
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
    return name if _IFREQ.unpack(answer)[1] & _IFF_UP else None


def _create_bridge(route: IPRoute, bridge: Bridge) -> None:
    # An explicit MAC stays; otherwise a bridge takes the lowest of its ports' and changes it.
    route.link(
        "add",
        ifname=bridge.name,
        kind="bridge",
        address=bridge.mac,
        mtu=bridge.mtu,
        state="up",
        group=HALF_MADE,
    )
    try:
        index = _index(bridge.name)
        route.link("set", index=index, ifalias=bridge.alias, group=NO_GROUP)
        _write_parameters(bridge)
        for address in bridge.addresses:
            _change_address(route, "add", index, address)
    except (NetlinkError, KernelError):
        route.link("del", ifname=bridge.name)
        raise


def _write_parameters(bridge: Bridge) -> None:
    """Write the parameters of a bridge that is ours."""
    has_ipv6 = _has_ipv6(bridge.addresses)
    # Without an address of its own not even a link-local one, by which containers would reach
    # the host.
    _switch_ipv6(bridge.name, on=has_ipv6)
    if has_ipv6:
        # A router advertisement from a container must not configure the host.
        sysctl.write("net.ipv6.conf.IFNAME.accept_ra", "0", bridge.name)
    _route_loopback(bridge, on=bridge.routes_loopback)


def _switch_ipv6(ifname: str, *, on: bool) -> None:
    """Have IPv6 on an interface or not; a kernel started without IPv6 has nothing to turn off."""
    key, wanted = "net.ipv6.conf.IFNAME.disable_ipv6", "0" if on else "1"
    if sysctl.read(key, ifname) not in {None, wanted}:
        sysctl.write(key, wanted, ifname)


def _route_loopback(bridge: Bridge, *, on: bool) -> None:
    """Let 127.0.0.1 be translated to a container, or no more.

    pynet's chain `guard` drops what comes from the bridge to 127.0.0.0/8, which this lets in.
    """
    sysctl.write("net.ipv4.conf.IFNAME.route_localnet", "1" if on else "0", bridge.name)


def _has_ipv6(addresses: Iterable[IPInterface]) -> bool:
    return any(address.version == 6 for address in addresses)  # noqa: PLR2004


def _complete_bridge(route: IPRoute, link: Any, bridge: Bridge) -> tuple[IPInterface, ...]:
    if _is_bridge_of(link, bridge):
        _write_parameters(bridge)
    elif bridge.routes_loopback:
        _route_loopback(bridge, on=True)
    present = _addresses(route, link["index"])
    missing = tuple(address for address in bridge.addresses if address not in present)
    done: list[IPInterface] = []
    try:
        for address in missing:
            _change_address(route, "add", link["index"], address)
            done.append(address)
        wrong = {} if link["flags"] & _IFF_UP else {"state": "up"}
        if _is_bridge_of(link, bridge):
            wrong |= _changed(link, bridge)
        if wrong:
            route.link("set", index=link["index"], **wrong)
    except (NetlinkError, KernelError):
        for address in done:
            _change_address(route, "del", link["index"], address)
        raise
    return missing


def _changed(link: Any, bridge: Bridge) -> dict[str, Any]:
    """Return what others have changed of a bridge that is ours, as it should be."""
    wanted = {"mtu": ("IFLA_MTU", bridge.mtu), "address": ("IFLA_ADDRESS", bridge.mac)}
    return {name: value for name, (key, value) in wanted.items() if link.get_attr(key) != value}


def _check_usable(link: Any, bridge: Bridge) -> None:
    if _is_bridge_of(link, bridge):
        return
    alias = link.get_attr("IFLA_IFALIAS") or ""
    if _kind_of(link) != "bridge":
        raise Conflict(f"use {bridge.name} as bridge: it is an interface of another kind")
    if bridge.must_be_ours:
        raise Conflict(f"create bridge {bridge.name}: somebody else has a bridge of that name")
    if is_our_alias(alias):
        raise Conflict(f"use bridge {bridge.name}: it belongs to {alias.removeprefix('pynet ')}")


def _is_bridge_of(link: Any, bridge: Bridge) -> bool:
    return bool(link.get_attr("IFLA_IFALIAS") == bridge.alias)


def _is_ours(link: Any) -> bool:
    alias = link.get_attr("IFLA_IFALIAS") or ""
    return is_our_alias(alias) or is_half_made(link)


def is_half_made(link: Any) -> bool:
    """Tell whether the link is one that this driver had only begun to make."""
    return bool(link.get_attr("IFLA_GROUP") == HALF_MADE)


def _find(route: IPRoute, name: str) -> Any | None:
    """Return the link of this name; one message, not a dump of all links."""
    return _get(route, ifname=name)


def _get(route: IPRoute, **which: Any) -> Any | None:
    try:
        return route.link("get", **which)[0]
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise


def _look_up(index: int) -> Any | None:
    with _route(f"look at interface {index}") as route:
        return _get(route, index=index)


def _find_index(name: str) -> int | None:
    """Return an interface's index in the thread's namespace; an ioctl, and so next to nothing.

    A netlink socket and a question cost 3 ms together, in a join that has 7.
    """
    try:
        return socket.if_nametoindex(name)
    except OSError:  # without an errno, by what Python makes of it
        return None


def _index(name: str) -> int:
    index = _find_index(name)
    if index is None:
        raise NetlinkError(errno.ENODEV)
    return index


def _delete(route: IPRoute, index: int) -> None:
    try:
        route.link("del", index=index)
    except NetlinkError as error:
        if error.code != errno.ENODEV:  # gone in between, with its sandbox
            raise


def _addresses(route: IPRoute, index: int) -> frozenset[IPInterface]:
    return frozenset(map(_address_of, route.get_addr(index=index)))


def _address_of(entry: Any) -> IPInterface:
    return ip_interface(f"{entry.get_attr('IFA_ADDRESS')}/{entry['prefixlen']}")


def _change_address(route: IPRoute, verb: str, index: int, address: IPInterface) -> None:
    """Add or take away an address, without duplicate address detection.

    A bridge without a port has no carrier and would keep an IPv6 address tentative.
    """
    options: dict[str, Any] = {"address": str(address.ip), "prefixlen": address.network.prefixlen}
    if address.version == 6:  # noqa: PLR2004 - the number is the name
        options["flags"] = _IFA_F_NODAD
    elif verb == "add":
        options["broadcast"] = str(address.network.broadcast_address)
    try:
        route.addr(verb, index=index, **options)
    except NetlinkError as error:
        raise KernelError(
            f"{verb} address {address} of a bridge: {os.strerror(error.code)}"
        ) from error
