"""Make the way on which the host's own ::1 reaches published ports; one for all networks.

IPv4 has route_localnet for it, IPv6 nothing: the kernel takes a reply to ::1 only from an interface
that has ::1 as a local address (rt6_need_strict()), and never from a bridge behind br_netfilter,
which translates back before ip6_rcv_core() looks. So a connection to ::1 leaves by one end of a
veth pair, with a source address that can be routed, and comes in by the other as if from outside.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from driver.errors import Conflict, KernelError
from driver.kernel import sysctl
from driver.kernel.links import HALF_MADE, NO_GROUP
from driver.undo import Rollback

if TYPE_CHECKING:
    from collections.abc import Iterator

    from driver.model import LoopbackPair

ALIAS = "pynet: from the host's ::1 to published ports"
RULE_PRIORITY = 7064
_METRIC = 4096  # behind the kernel's own route to ::1
_OUT_MAC, _IN_MAC = "02:70:6e:6c:6f:00", "02:70:6e:6c:6f:01"
_NUD_PERMANENT = 0x80  # include/uapi/linux/neighbour.h
_IFF_UP, _IFF_LOWER_UP = 1, 1 << 16  # include/uapi/linux/if.h
_RTN_LOCAL = 2  # include/uapi/linux/rtnetlink.h
_LOCAL_TABLE = 255
_NEXT_HOP = "fe80::7064"  # any link-local address: the neighbour entry says where it is


def ensure_loopback_pair(pair: LoopbackPair) -> bool:
    """Make the pair, its neighbours, its routes and its rule; False if they are there already.

    The alias comes last, so a pair that has it was complete. Others may have taken it down since,
    or removed the rule (systemd-networkd does, with every rule that it does not know).
    """
    attempt = f"create {pair.out_end} and {pair.in_end}"
    with _route(attempt) as route, Rollback() as undo:
        link = _find(route, pair.out_end)
        if link is not None and _is_complete(link):
            _ensure_rule(route, pair)
            return False
        if link is not None and not _is_ours(link):
            raise Conflict(f"{attempt}: somebody else has an interface of that name")
        _delete_pair(route, pair)
        undo.push(_delete_pair, route, pair)
        _create(route, pair)
        return True


def has_loopback_pair(pair: LoopbackPair) -> bool:
    """Tell whether the pair is there, complete, up and with its rule."""
    with _route(f"look at {pair.out_end}") as route:
        link = _find(route, pair.out_end)
        if link is None or not _is_complete(link):
            return False
        rules = route.get_rules(family=socket.AF_INET6, table=pair.table)
        return any(rule.get_attr("FRA_FWMARK") == pair.mark for rule in rules)


def delete_loopback_pair(pair: LoopbackPair) -> None:
    """Remove the pair, with what is bound to it, and the rule; absence is success."""
    with _route(f"delete {pair.out_end}") as route:
        _delete_pair(route, pair)


@contextmanager
def _route(attempt: str) -> Iterator[IPRoute]:
    """Open rtnetlink; what fails inside becomes `attempt: reason`."""
    try:
        with IPRoute(groups=0) as route:
            yield route
    except NetlinkError as error:
        raise KernelError(f"{attempt}: {os.strerror(error.code)}") from error
    except OSError as error:  # no descriptor is left, or no buffer
        raise KernelError(f"{attempt}: {error.strerror or error}") from error


def _delete_pair(route: IPRoute, pair: LoopbackPair) -> None:
    link = _find(route, pair.out_end)
    if link is not None and _is_ours(link):
        route.link("del", index=link["index"])
    _delete_rule(route, pair)


def _is_complete(link: Any) -> bool:
    """Tell whether the pair, by the look of one end, is as `_create` leaves it.

    An end that was down has lost its routes, and one whose other end is down has no carrier.
    """
    is_up = link["flags"] & _IFF_UP and link["flags"] & _IFF_LOWER_UP
    return bool(is_up and link.get_attr("IFLA_IFALIAS") == ALIAS)


def _is_ours(link: Any) -> bool:
    is_half_made = link.get_attr("IFLA_GROUP") == HALF_MADE
    return bool(is_half_made or link.get_attr("IFLA_IFALIAS") == ALIAS)


def _create(route: IPRoute, pair: LoopbackPair) -> None:
    route.link(
        "add",
        ifname=pair.out_end,
        kind="veth",
        address=_OUT_MAC,
        state="up",
        group=HALF_MADE,
        peer={"ifname": pair.in_end, "address": _IN_MAC},
    )
    out_index, in_index = (
        int(route.link("get", ifname=end)[0]["index"]) for end in (pair.out_end, pair.in_end)
    )
    route.link("set", index=in_index, state="up")
    for end in (pair.out_end, pair.in_end):
        sysctl.write("net.ipv6.conf.IFNAME.accept_ra", "0", end)
    source = str(pair.source)
    # Both ways the other end is the next hop; nobody answers for it, so it is written down.
    _add_neighbour(route, out_index, _NEXT_HOP, _IN_MAC)
    _add_neighbour(route, in_index, source, _OUT_MAC)
    _add_route(route, dst=f"{source}/128", oif=in_index)
    _add_route(route, dst="default", oif=out_index, gateway=_NEXT_HOP, table=pair.table)
    _add_route(
        route,
        dst="::1/128",
        oif=out_index,
        table=_LOCAL_TABLE,
        type=_RTN_LOCAL,
        priority=_METRIC,
    )
    _ensure_rule(route, pair)
    route.link("set", index=out_index, ifalias=ALIAS, group=NO_GROUP)


def _add_neighbour(route: IPRoute, index: int, address: str, mac: str) -> None:
    route.neigh("add", dst=address, lladdr=mac, ifindex=index, state=_NUD_PERMANENT)


def _add_route(route: IPRoute, **what: Any) -> None:
    route.route("add", family=socket.AF_INET6, **what)


def _rule(pair: LoopbackPair) -> dict[str, Any]:
    return {
        "family": socket.AF_INET6,
        "fwmark": pair.mark,
        "fwmask": pair.mark,
        "table": pair.table,
        "priority": RULE_PRIORITY,
    }


def _ensure_rule(route: IPRoute, pair: LoopbackPair) -> None:
    try:
        route.rule("add", **_rule(pair))
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise


def _delete_rule(route: IPRoute, pair: LoopbackPair) -> None:
    try:
        route.rule("del", **_rule(pair))
    except NetlinkError as error:
        if error.code != errno.ENOENT:
            raise


def _find(route: IPRoute, name: str) -> Any | None:
    try:
        return route.link("get", ifname=name)[0]
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise
