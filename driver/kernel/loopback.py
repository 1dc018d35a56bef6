"""Make the way on which the host's own ::1 reaches published ports; one for all networks.

IPv4 has route_localnet for it, IPv6 nothing: the kernel takes a reply to ::1 only from an interface
that has ::1 as a local address (rt6_need_strict()), and never from a bridge behind br_netfilter,
which translates back before ip6_rcv_core() looks. So a connection to ::1 leaves by one end of a
veth pair, with a source address that can be routed, and comes in by the other as if from outside.
"""

from __future__ import annotations

import errno
import socket
from contextlib import contextmanager
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from driver.errors import Conflict, KernelError
from driver.kernel import sysctl
from driver.kernel.links import HALF_MADE, find_index, unless_gone
from driver.kernel.netlink import NetlinkError
from driver.kernel.rtnetlink import LOCAL_TABLE, LinkInfo, Rtnetlink, VethPeer
from driver.model import DEFAULT_MTU, MacAddress
from driver.undo import Rollback

if TYPE_CHECKING:
    from collections.abc import Iterator

    from driver.model import LoopbackPair

ALIAS = "pynet: from the host's ::1 to published ports"
RULE_PRIORITY = 7064
_METRIC = 4096  # behind the kernel's own route to ::1
_OUT_MAC, _IN_MAC = MacAddress("02:70:6e:6c:6f:00"), MacAddress("02:70:6e:6c:6f:01")
_LOOPBACK = IPv6Address("::1")
# Any link-local address: the neighbour entry says where it is.
_NEXT_HOP = IPv6Address("fe80::7064")


def ensure_loopback_pair(pair: LoopbackPair) -> bool:
    """Make the pair, its neighbours, its routes and its rule; False if they are there already.

    The alias comes last, so a pair that has it was complete. Others may have taken it down since,
    or removed a route or the rule (systemd-networkd does, with every rule that it does not know).
    A host without ::1 gets none, for nobody there could take that way.
    """
    attempt = f"create {pair.out_end} and {pair.in_end}"
    with _route(attempt) as route, Rollback() as undo:
        if not _has_loopback():
            return False
        link = route.find_link(pair.out_end)
        if link is not None and _is_complete(route, link, pair):
            _ensure_rule(route, pair)
            return False
        if link is not None and not _is_ours(link):
            raise Conflict(f"{attempt}: somebody else has an interface of that name")
        _delete_pair(route, pair)
        undo.push(_delete_pair, route, pair)
        _create(route, pair)
        return True


def has_loopback_pair(pair: LoopbackPair) -> bool:
    """Tell whether the pair is there, complete, up and with its rule, or the host has no ::1."""
    with _route(f"look at {pair.out_end}") as route:
        if not _has_loopback():
            return True
        link = route.find_link(pair.out_end)
        return link is not None and _is_complete(route, link, pair) and route.has_rule(pair)


def delete_loopback_pair(pair: LoopbackPair) -> None:
    """Remove the pair, with what is bound to it, and the rule; absence is success."""
    with _route(f"delete {pair.out_end}") as route:
        _delete_pair(route, pair)


@contextmanager
def _route(attempt: str) -> Iterator[Rtnetlink]:
    """Open rtnetlink; what fails inside becomes `attempt: reason`."""
    try:
        with Rtnetlink() as route:
            yield route
    except OSError as error:  # refused by the kernel, or no descriptor or buffer is left
        raise KernelError(f"{attempt}: {error.strerror or error}") from error


def _delete_pair(route: Rtnetlink, pair: LoopbackPair) -> None:
    link = route.find_link(pair.out_end)
    if link is not None and _is_ours(link):
        with unless_gone():
            route.delete_link(link.index)
    _delete_rule(route, pair)


def _has_loopback() -> bool:
    """Tell whether the host has ::1: the kernel has IPv6, and the operator lets `lo` have it."""
    return sysctl.read("net.ipv6.conf.IFNAME.disable_ipv6", sysctl.LOOPBACK) == "0"


def _is_complete(route: Rtnetlink, link: LinkInfo, pair: LoopbackPair) -> bool:
    """Tell whether the pair, by the look of one end, is as `_create` leaves it.

    An end whose other end is down has no carrier. Routes go with IPv6 on an end, and by others'
    hands.
    """
    if not link.has_carrier or link.alias != ALIAS:
        return False
    out_index, in_index = link.index, find_index(pair.in_end)
    return (
        route.has_route(out_index, _LOOPBACK, table=LOCAL_TABLE)
        and route.has_route(out_index, None, table=pair.table)
        and in_index is not None
        and route.has_route(in_index, pair.source)
    )


def _is_ours(link: LinkInfo) -> bool:
    return link.alias == ALIAS or link.group == HALF_MADE


def _create(route: Rtnetlink, pair: LoopbackPair) -> None:
    route.create_veth(pair.out_end, DEFAULT_MTU, HALF_MADE, VethPeer(pair.in_end, _IN_MAC))
    out_index, in_index = map(socket.if_nametoindex, (pair.out_end, pair.in_end))
    route.set_mac_and_mtu(out_index, _OUT_MAC, DEFAULT_MTU)
    for index in (out_index, in_index):
        route.raise_link(index)
    for end in (pair.out_end, pair.in_end):
        # The operator may have turned IPv6 off for whatever interface comes later.
        sysctl.ensure("net.ipv6.conf.IFNAME.disable_ipv6", "0", end)
        sysctl.write("net.ipv6.conf.IFNAME.accept_ra", "0", end)
    # Both ways the other end is the next hop; nobody answers for it, so it is written down.
    route.add_neighbour(out_index, _NEXT_HOP, _IN_MAC)
    route.add_neighbour(in_index, pair.source, _OUT_MAC)
    route.add_route(in_index, pair.source)
    route.add_route(out_index, None, gateway=_NEXT_HOP, table=pair.table)
    route.add_route(out_index, _LOOPBACK, table=LOCAL_TABLE, priority=_METRIC, is_local=True)
    _ensure_rule(route, pair)
    route.finish_link(pair.out_end, ALIAS)


def _ensure_rule(route: Rtnetlink, pair: LoopbackPair) -> None:
    try:
        route.add_rule(pair, RULE_PRIORITY)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise


def _delete_rule(route: Rtnetlink, pair: LoopbackPair) -> None:
    try:
        route.delete_rule(pair, RULE_PRIORITY)
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise
