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
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from driver.errors import Conflict, KernelError, NotFound
from driver.kernel import sysctl
from driver.model import is_our_alias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from driver.model import Bridge, IPInterface, Veth

_IFF_UP = 1  # include/uapi/linux/if.h
_IFA_F_NODAD = 0x02  # include/uapi/linux/if_addr.h
_RTMGRP_LINK = 1  # include/uapi/linux/rtnetlink.h
_SIOCGIFFLAGS = 0x8913  # include/uapi/linux/sockios.h
_IFREQ = struct.Struct("=16sH22x")  # struct ifreq: the name, then the flags

# The kernel takes an alias only from RTM_SETLINK (do_setlink(), rtnetlink.c), so a link has a
# moment without one, and we may be killed in it. It takes a group with RTM_NEWLINK: this one,
# "pnet", tells what we had begun to make. It goes when the alias comes.
_HALF_MADE = 0x706E6574
_NO_GROUP = 0


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
        if link is not None and _is_half_made(link):
            _delete(route, link["index"])
            link = None
        if link is None:
            _create_bridge(route, bridge)
            return bridge.addresses
        _check_usable(link, bridge)
        return _complete_bridge(route, link, bridge)


def delete_bridge(bridge: Bridge, added: Sequence[IPInterface]) -> None:
    """Delete our own bridge; from a foreign one take the addresses that we added."""
    with _route(f"delete bridge {bridge.name}") as route:
        link = _find(route, bridge.name)
        if link is None:
            return
        if link.get_attr("IFLA_IFALIAS") == bridge.alias:
            _delete(route, link["index"])
            return
        present = _addresses(route, link["index"])
        for address in (address for address in added if address in present):
            _change_address(route, "del", link["index"], address)


def create_veth(veth: Veth) -> None:
    """Make the pair in one message: MTU, MAC of the sandbox end, host end on the bridge and up."""
    with _route(f"create {veth.host_end} on bridge {veth.bridge}") as route:
        bridge = _find(route, veth.bridge)
        if bridge is None:
            raise KernelError(f"create {veth.host_end}: bridge {veth.bridge} is gone")
        route.link(
            "add",
            ifname=veth.host_end,
            kind="veth",
            mtu=veth.mtu,
            master=bridge["index"],
            state="up",
            group=_HALF_MADE,
            peer={"ifname": veth.sandbox_end, "address": veth.mac, "mtu": veth.mtu},
        )
        try:
            route.link("set", ifname=veth.host_end, ifalias=veth.alias, group=_NO_GROUP)
        except NetlinkError:
            route.link("del", ifname=veth.host_end)
            raise


def ensure_port(veth: Veth) -> bool:
    """Put an existing host end on its bridge and up; return False if there is no such link."""
    with _route(f"put {veth.host_end} on bridge {veth.bridge}") as route:
        link = _find(route, veth.host_end)
        bridge = _find(route, veth.bridge)
        if link is None or bridge is None:
            return False
        if link.get_attr("IFLA_MASTER") != bridge["index"] or not link["flags"] & _IFF_UP:
            route.link("set", index=link["index"], master=bridge["index"], state="up")
        return True


def delete_links(names: Iterable[str]) -> None:
    """Delete the named links that are ours; absence is success."""
    for name in names:
        with _route(f"delete {name}") as route:
            link = _find(route, name)
            if link is not None and _is_ours(link):
                _delete(route, link["index"])


def list_links() -> dict[str, str]:
    """Return name and alias of every link of ours; one that was only begun has no alias."""
    with _route("list the interfaces") as route:
        return {
            link.get_attr("IFLA_IFNAME"): link.get_attr("IFLA_IFALIAS") or ""
            for link in route.get_links()
            if _is_ours(link)
        }


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
        group=_HALF_MADE,
    )
    try:
        index = _index(route, bridge.name)
        route.link("set", index=index, ifalias=bridge.alias, group=_NO_GROUP)
        # A router advertisement from a container must not configure the host.
        sysctl.write("net.ipv6.conf.IFNAME.accept_ra", "0", bridge.name)
        for address in bridge.addresses:
            _change_address(route, "add", index, address)
    except (NetlinkError, KernelError):
        route.link("del", ifname=bridge.name)
        raise


def _complete_bridge(route: IPRoute, link: Any, bridge: Bridge) -> tuple[IPInterface, ...]:
    present = _addresses(route, link["index"])
    missing = tuple(address for address in bridge.addresses if address not in present)
    done: list[IPInterface] = []
    try:
        for address in missing:
            _change_address(route, "add", link["index"], address)
            done.append(address)
        if not link["flags"] & _IFF_UP:
            route.link("set", index=link["index"], state="up")
    except (NetlinkError, KernelError):
        for address in done:
            _change_address(route, "del", link["index"], address)
        raise
    return missing


def _check_usable(link: Any, bridge: Bridge) -> None:
    alias = link.get_attr("IFLA_IFALIAS") or ""
    if alias == bridge.alias:
        return
    kind = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND")
    if kind != "bridge":
        raise Conflict(f"use {bridge.name} as bridge: it is an interface of another kind")
    if bridge.must_be_ours:
        raise Conflict(f"create bridge {bridge.name}: somebody else has a bridge of that name")
    if is_our_alias(alias):
        raise Conflict(f"use bridge {bridge.name}: it belongs to {alias.removeprefix('pynet ')}")


def _is_ours(link: Any) -> bool:
    alias = link.get_attr("IFLA_IFALIAS") or ""
    return is_our_alias(alias) or _is_half_made(link)


def _is_half_made(link: Any) -> bool:
    return bool(link.get_attr("IFLA_GROUP") == _HALF_MADE)


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


def _index(route: IPRoute, name: str) -> int:
    return int(route.link("get", ifname=name)[0]["index"])


def _delete(route: IPRoute, index: int) -> None:
    try:
        route.link("del", index=index)
    except NetlinkError as error:
        if error.code != errno.ENODEV:  # gone in between, with its sandbox
            raise


def _addresses(route: IPRoute, index: int) -> frozenset[IPInterface]:
    return frozenset(
        ip_interface(f"{entry.get_attr('IFA_ADDRESS')}/{entry['prefixlen']}")
        for entry in route.get_addr(index=index)
    )


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
