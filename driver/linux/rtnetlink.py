"""Links, bridge ports, addresses, routes and rules over rtnetlink, by pyroute2.

include/uapi/linux/rtnetlink.h, if_link.h, if_addr.h and neighbour.h say what the attributes mean.
"""

from __future__ import annotations

import errno
import gc
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import TYPE_CHECKING, Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink import (
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    nla,
    nlmsg,
)
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELRULE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_GETQDISC,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
)
from pyroute2.netlink.rtnl.fibmsg import FR_ACT_NAMES, fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_NODAD, ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import IFF_LOWER_UP, IFF_NOARP, IFF_UP, ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from driver.linux.session import NetlinkError, Session, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from driver.model import IPAddress, IPInterface, MacAddress

# What a bridge may learn: ten times a thousand endpoints (driver.model.PARTS), and room for others'
# interfaces. One container that makes addresses up has the table full in a second otherwise.
MAX_LEARNED = 16384

_REQUEST = NLM_F_REQUEST | NLM_F_ACK
_NEW = NLM_F_CREATE | NLM_F_EXCL
_NO_GROUP = 0
_NUD_PERMANENT = 0x80
_LOCAL = 2  # RTN_LOCAL
_TABLE_OF_LOCAL = 255
_CLONED = 0x200  # RTM_F_CLONED: what a route was looked up to, and no route
_ROUTE_KINDS = {1: "unicast", 6: "blackhole", 7: "unreachable", 8: "prohibit", 9: "throw"}
_NUD_FAILED = 0x20
_NO_ADDRESS = 1  # IN6_ADDR_GEN_MODE_NONE
_SKIP_STATISTICS = 1 << 3  # RTEXT_FILTER_SKIP_STATS
_LAST_WITH_BROADCAST = 30  # the longest prefix whose network has a broadcast address
# Without a route, or with one that says so (prohibit, blackhole, unreachable).
_NO_WAY = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL})


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """An interface as the kernel describes it.

    `kind` is None for a network card. `master` is the index of the bridge that it is on,
    `other_end` that of a veth's other end; 0 if there is none. `other_end_moved` tells whether that
    is in another network namespace.
    """

    index: int
    name: str
    kind: str | None = None
    alias: str = ""
    mac: str = ""
    mtu: int = 0
    flags: int = 0
    group: int = 0
    master: int = 0
    other_end: int = 0
    other_end_moved: bool = False
    hairpin: bool = False

    @property
    def has_carrier(self) -> bool:
        """Whether it is up and so is what it is connected to."""
        return self.is_up and bool(self.flags & IFF_LOWER_UP)

    @property
    def is_up(self) -> bool:
        """Whether it is meant to be up, with a carrier or without."""
        return bool(self.flags & IFF_UP)


@dataclass(frozen=True, slots=True)
class VethPeer:
    """The other end of a veth pair to be made: in the namespace of a descriptor, or in this one."""

    name: str
    mac: MacAddress
    namespace: int | None = None


@dataclass(frozen=True, slots=True)
class BridgePort:
    """The end of a veth pair that is to be a bridge's port; `bridge` is that one's index.

    `hairpin` lets frames go back where they came from. `without_link_local` is for one that has
    IPv6 and is to get no address by itself; the kernel refuses it to others.
    """

    name: str
    alias: str
    mtu: int
    bridge: int
    hairpin: bool
    without_link_local: bool


@dataclass(frozen=True, slots=True)
class Route:
    """The kernel's answer to where a packet goes: an interface, or the number of an error.

    `is_local` tells that it is for this namespace itself.
    """

    interface: int = 0
    gateway: IPAddress | None = None
    is_local: bool = False
    error: int = 0


@dataclass(frozen=True, slots=True)
class ListedRoute:
    """A route of a namespace's tables, `destination` a network or `default`.

    `kind` is "unicast" or what becomes of a packet instead; `hops` are gateways, each with the
    index of the interface to it, either of which may be missing.
    """

    destination: str
    kind: str
    hops: tuple[tuple[str | None, int | None], ...]
    source: str | None = None
    metric: int = 0
    table: int = 254


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of the table of neighbours; `mac` is None while nobody has answered."""

    interface: int
    ip: IPAddress
    mac: str | None
    state: int

    @property
    def has_failed(self) -> bool:
        """Whether it was asked for, and nobody answered."""
        return bool(self.state & _NUD_FAILED)


class Rtnetlink(Session):
    """A rtnetlink socket of the calling thread's network namespace; to be used by one thread.

    Every method raises NetlinkError with the kernel's reason if it refuses.
    """

    def __init__(self) -> None:
        ifinfmsg.ifinfo.register_link_kind(module={"bridge": _BridgeData})
        super().__init__(AsyncIPRoute, NETLINK_ROUTE)

    # -- links

    def create_bridge(self, name: str, mac: MacAddress, group: int) -> None:
        """Create a bridge, up, in a group of interfaces."""
        attributes = ("IFLA_ADDRESS", mac), ("IFLA_GROUP", group), _limited_bridge()
        self.request(_new_link(name, *attributes, flags=IFF_UP))

    def limit_learning(self, index: int) -> None:
        """Bound how many MAC addresses a bridge learns; kernels before 6.7 ignore it.

        Frames to an address that it has not learned go to all ports, as without a table.
        """
        self.request(_change_link(index, _limited_bridge()))

    def create_veth(self, name: str, mtu: int, group: int, peer: VethPeer) -> None:
        """Create a veth pair, both ends down and of one MTU."""
        self.request(_new_veth(name, mtu, group, peer))

    def create_port(self, port: BridgePort, group: int, peer: VethPeer) -> None:
        """Create a veth pair, one end a bridge's port, complete and up, in one go.

        In `group` until it has its alias. The name must be free: what is refused as taken would be
        changed. Up last: whenever a link that is up and has no carrier changes, the kernel walks
        through all routes of IPv6 (rt6_sync_down_dev() in addrconf_notify()).

        A bridge opens a port whose carrier is not known yet (netif_oper_up()), closes it when
        the kernel has looked and opens it again when the other end is up; each time it walks
        through all its ports (br_port_state_selection()). One that is dormant it opens once.

        A bridge's port has no use for ARP of its own. The kernel hands it frames to
        01:80:c2:00:00:0e past the bridge and its rules (br_handle_frame(), net/bridge/br_input.c).
        """
        on_bridge = ("IFLA_MASTER", port.bridge), ("IFLA_OPERSTATE", "DORMANT")
        finished = [("IFLA_IFALIAS", port.alias), ("IFLA_GROUP", _NO_GROUP)]
        if port.without_link_local:
            without = ("AF_INET6", _nested(("IFLA_INET6_ADDR_GEN_MODE", _NO_ADDRESS)))
            finished.append(("IFLA_AF_SPEC", _nested(without)))
        if port.hairpin:
            finished.append(_hairpin())
        self.request(
            _new_veth(port.name, port.mtu, group, peer, *on_bridge),
            _change_link(port.name, *finished),
            _change_link(port.name, flags=IFF_UP | IFF_NOARP),
        )

    def finish_link(self, name: str, alias: str, mtu: int) -> None:
        """Give a link its alias and MTU, and take it out of its group."""
        attributes = ("IFLA_IFALIAS", alias), ("IFLA_GROUP", _NO_GROUP), ("IFLA_MTU", mtu)
        self.request(_change_link(name, *attributes))

    def set_hairpin(self, index: int) -> None:
        """Let frames go back by the bridge's port that they came from."""
        self.request(_change_link(index, _hairpin()))

    def raise_link(self, which: str | int, master: int | None = None) -> None:
        """Bring a link up, and onto a bridge if one is given."""
        if master is None:
            self.request(_change_link(which, flags=IFF_UP))
        else:
            self.request(_change_link(which, ("IFLA_MASTER", master), flags=IFF_UP | IFF_NOARP))

    def set_mac_and_mtu(self, index: int, mac: MacAddress, mtu: int) -> None:
        """Change a link's MAC address and MTU."""
        self.request(_change_link(index, ("IFLA_ADDRESS", mac), ("IFLA_MTU", mtu)))

    def set_mtu(self, index: int, mtu: int) -> None:
        """Change a link's MTU."""
        self.request(_change_link(index, ("IFLA_MTU", mtu)))

    def set_group(self, index: int, group: int) -> None:
        """Put a link into a group."""
        self.request(_change_link(index, ("IFLA_GROUP", group)))

    def delete_link(self, which: str | int) -> None:
        """Delete a link, and a veth's other end with it; waits for the kernel's grace periods."""
        self.request(_link(RTM_DELLINK, which))

    def delete_group(self, group: int) -> None:
        """Delete all links of a group, waiting for the grace periods once."""
        self.request(_link(RTM_DELLINK, 0, ("IFLA_GROUP", group)))

    def find_link(self, which: str | int) -> LinkInfo | None:
        """Return the link of a name or an index, None if there is none."""
        try:
            answer, *_ = self.request(_link(RTM_GETLINK, which, _without_statistics()))
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return _parse_link(answer)

    def links(self) -> tuple[LinkInfo, ...]:
        """Return every link."""
        with _without_collections():
            found = self._dump(lambda: _link(RTM_GETLINK, 0, _without_statistics()))
            return tuple(map(_parse_link, found))

    # -- addresses

    def add_address(self, index: int, address: IPInterface) -> None:
        """Give an interface an address, at once: IPv6 without looking for a duplicate."""
        self.request(_new_address(index, address))

    def raise_with(self, index: int, addresses: Iterable[IPInterface]) -> None:
        """Give an interface its addresses, then bring it up, in one go."""
        new = (_new_address(index, address) for address in addresses)
        self.request(*new, _change_link(index, flags=IFF_UP))

    def delete_address(self, index: int, address: IPInterface) -> None:
        """Take an address from an interface."""
        self.request(_address(RTM_DELADDR, index, address))

    def addresses(self, *indexes: int) -> dict[int, frozenset[IPInterface]]:
        """Return the addresses of some interfaces, by index; of one it takes a short listing.

        An interface that is gone has none.
        """

        def question() -> ifaddrmsg:
            message = _message(ifaddrmsg, RTM_GETADDR, _REQUEST)
            message["index"] = indexes[0] if len(indexes) == 1 else 0
            return message

        try:
            answers = self._dump(question)
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
            return {}
        found: dict[int, set[IPInterface]] = {}
        wanted = frozenset(indexes)
        for answer in answers:
            index = answer["index"]
            if index in wanted:
                found.setdefault(index, set()).add(_parse_address(answer))
        return {index: frozenset(addresses) for index, addresses in found.items()}

    # -- routes and rules

    def find_way(self, address: IPAddress) -> int | None:
        """Return the index of the interface by which the host sends to an address, None for none.

        By the rules and tables in force, as a packet of the host's own would be sent.
        """
        route = self.find_route(address)
        if route.error and route.error not in _NO_WAY:
            raise NetlinkError(route.error)
        return route.interface or None

    def find_route(
        self, destination: IPAddress, source: IPAddress | None = None, arriving: int = 0
    ) -> Route:
        """Return what becomes of a packet: of this namespace's own, or one that arrives.

        `arriving` is the index of the interface that it arrives by; then it needs a source. No
        packet is sent: forwarding, the reverse path filter and the rules answer by their error.
        """
        attributes = [("RTA_DST", str(destination))]
        if source is not None:
            attributes.append(("RTA_SRC", str(source)))
        if arriving:
            attributes.append(("RTA_IIF", arriving))  # type: ignore[arg-type]
        message = _message(rtmsg, RTM_GETROUTE, _REQUEST, *attributes)
        message["family"], message["dst_len"] = _family(destination), destination.max_prefixlen
        if source is not None:
            message["src_len"] = source.max_prefixlen
        try:
            answer, *_ = self.request(message)
        except NetlinkError as error:
            return Route(error=error.errno or errno.EIO)
        gateway = answer.get_attr("RTA_GATEWAY")
        return Route(
            interface=answer.get_attr("RTA_OIF") or 0,
            gateway=ip_address(gateway) if gateway else None,
            is_local=answer["type"] == _LOCAL,
        )

    def routes(self) -> tuple[ListedRoute, ...]:
        """Return the routes of all tables but the kernel's own, of what is local."""

        def question() -> rtmsg:
            message = _message(rtmsg, RTM_GETROUTE, _REQUEST)
            message["family"] = socket.AF_UNSPEC  # or pyroute2 asks for those of IPv4
            return message

        found = self._dump(question)
        listed = (each for each in found if not each["flags"] & _CLONED)
        routes = (_parse_route(each) for each in listed if each["type"] in _ROUTE_KINDS)
        return tuple(each for each in routes if each.table != _TABLE_OF_LOCAL)

    def neighbours(self) -> tuple[Neighbour, ...]:
        """Return what the namespace knows of the MAC addresses of others."""
        found = self._dump(lambda: _message(ndmsg, RTM_GETNEIGH, _REQUEST))
        return tuple(
            Neighbour(each["ifindex"], ip_address(ip), each.get_attr("NDA_LLADDR"), each["state"])
            for each in found
            if (ip := each.get_attr("NDA_DST")) is not None
        )

    def forwarding(self) -> tuple[tuple[str, int], ...]:
        """Return what the bridges have learned: a MAC address, and the index of the port it is at.

        What is a bridge's or a port's own is left out.
        """

        def question() -> ndmsg:
            message = _message(ndmsg, RTM_GETNEIGH, _REQUEST)
            message["family"] = socket.AF_BRIDGE
            return message

        return tuple(
            (each.get_attr("NDA_LLADDR"), each["ifindex"])
            for each in self._dump(question)
            if not each["state"] & _NUD_PERMANENT
        )

    def queue_drops(self) -> dict[int, int]:
        """Return how many packets the queues of each interface have dropped, by its index."""
        drops: dict[int, int] = {}
        for each in self._dump(lambda: _message(tcmsg, RTM_GETQDISC, _REQUEST)):
            counts = each.get_attr("TCA_STATS")
            if counts is not None:
                drops[each["index"]] = drops.get(each["index"], 0) + counts["drop"]
        return drops

    def delete_mark_rule(self, priority: int, mark: int, table: int) -> None:
        """Delete the rule for IPv6 by which what carries a mark looks into a table."""
        of_pair = {"PRIORITY": priority, "FWMARK": mark, "FWMASK": mark, "TABLE": table}
        attributes = ((f"FRA_{name}", value) for name, value in of_pair.items())
        message = _message(fibmsg, RTM_DELRULE, _REQUEST, *attributes)
        message["family"], message["action"] = socket.AF_INET6, FR_ACT_NAMES["FR_ACT_TO_TBL"]
        self.request(message)

    def _dump(self, question: Callable[[], nlmsg]) -> list[nlmsg]:
        """Return everything there is of a kind, from one listing that nothing has torn."""
        while True:
            message = question()
            message["header"]["flags"] |= NLM_F_DUMP
            self._marshal.is_torn = False
            answers = self.request(message)
            if not self._marshal.is_torn:
                return answers


class _BridgeData(nla):  # type: ignore[misc] # pyroute2 has no types
    """What of a bridge's own attributes is set here; pyroute2 0.9 does not know this one."""

    nla_map = ((49, "IFLA_BR_FDB_MAX_LEARNED", "uint32"),)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Keep the garbage collector from walking through a listing again and again while it grows.

    Each attribute that pyroute2 decodes holds a cycle, and a thousand links have 40,000 of them:
    0.16 s, of which the collector made 0.44. It is never left off, whichever thread ends first.
    """
    is_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_on:
            gc.enable()


def _message(kind: type[nlmsg], command: int, flags: int, *attributes: tuple[str, Any]) -> nlmsg:
    """Return a message; pyroute2 encodes its attributes in place, so none may be used twice."""
    message = kind()
    message["header"]["type"], message["header"]["flags"] = command, flags
    message["attrs"] = list(attributes)
    return message


def _nested(*attributes: tuple[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    """Return attributes as the value of one that holds them."""
    return {"attrs": list(attributes)}


def _link(command: int, which: str | int, *attributes: tuple[str, Any]) -> ifinfmsg:
    """Return a message about the link of a name or an index."""
    if isinstance(which, str):
        attributes = ("IFLA_IFNAME", which), *attributes
    message = _message(ifinfmsg, command, _REQUEST, *attributes)
    message["index"] = which if isinstance(which, int) else 0
    return message


def _change_link(which: str | int, *attributes: tuple[str, Any], flags: int = 0) -> ifinfmsg:
    """Return what changes a link; `flags` are those to be set."""
    message = _link(RTM_NEWLINK, which, *attributes)
    message["flags"] = message["change"] = flags
    return message


def _new_link(name: str, *attributes: tuple[str, Any], flags: int = 0) -> ifinfmsg:
    """Return what makes a link, of which there may be none yet."""
    message = _change_link(name, *attributes, flags=flags)
    message["header"]["flags"] |= _NEW
    return message


def _new_veth(
    name: str, mtu: int, group: int, peer: VethPeer, *attributes: tuple[str, Any]
) -> ifinfmsg:
    """Return what makes a veth pair, both ends down."""
    other = [("IFLA_IFNAME", peer.name), ("IFLA_ADDRESS", peer.mac), ("IFLA_MTU", mtu)]
    if peer.namespace is not None:
        other.append(("IFLA_NET_NS_FD", peer.namespace))
    data = "IFLA_INFO_DATA", _nested(("VETH_INFO_PEER", _nested(*other)))
    info = "IFLA_LINKINFO", _nested(("IFLA_INFO_KIND", "veth"), data)
    return _new_link(name, ("IFLA_MTU", mtu), ("IFLA_GROUP", group), *attributes, info)


def _limited_bridge() -> tuple[str, Any]:
    """Return what makes a bridge learn no more than MAX_LEARNED addresses."""
    data = "IFLA_INFO_DATA", _nested(("IFLA_BR_FDB_MAX_LEARNED", MAX_LEARNED))
    return "IFLA_LINKINFO", _nested(("IFLA_INFO_KIND", "bridge"), data)


def _hairpin() -> tuple[str, Any]:
    """Return what lets frames go back by the bridge's port that they came from."""
    data = "IFLA_INFO_SLAVE_DATA", _nested(("IFLA_BRPORT_MODE", 1))
    return "IFLA_LINKINFO", _nested(("IFLA_INFO_SLAVE_KIND", "bridge"), data)


def _without_statistics() -> tuple[str, Any]:
    return "IFLA_EXT_MASK", _SKIP_STATISTICS


def _new_address(index: int, address: IPInterface) -> ifaddrmsg:
    message = _address(RTM_NEWADDR, index, address)
    message["header"]["flags"] |= _NEW
    if address.version == 6:  # noqa: PLR2004 - the number is the name
        message["attrs"].append(("IFA_FLAGS", IFA_F_NODAD))
    elif address.network.prefixlen <= _LAST_WITH_BROADCAST:  # RFC 3021: a /31 has hosts only
        message["attrs"].append(("IFA_BROADCAST", str(address.network.broadcast_address)))
    return message


def _address(command: int, index: int, address: IPInterface) -> ifaddrmsg:
    """Return a message about an address of the interface with an index."""
    own = str(address.ip)
    message = _message(ifaddrmsg, command, _REQUEST, ("IFA_LOCAL", own), ("IFA_ADDRESS", own))
    message["family"], message["index"] = _family(address), index
    message["prefixlen"] = address.network.prefixlen
    return message


def _family(address: IPAddress | IPInterface) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004


def _parse_link(message: ifinfmsg) -> LinkInfo:
    info = message.get_attr("IFLA_LINKINFO") or nla()
    port = info.get_attr("IFLA_INFO_SLAVE_DATA")
    is_bridges = info.get_attr("IFLA_INFO_SLAVE_KIND") == "bridge"
    return LinkInfo(
        index=message["index"],
        name=text_of(message, "IFLA_IFNAME"),
        kind=info.get_attr("IFLA_INFO_KIND"),
        alias=text_of(message, "IFLA_IFALIAS"),
        mac=message.get_attr("IFLA_ADDRESS") or "",
        mtu=message.get_attr("IFLA_MTU") or 0,
        flags=message["flags"],
        group=message.get_attr("IFLA_GROUP") or 0,
        master=message.get_attr("IFLA_MASTER") or 0,
        other_end=message.get_attr("IFLA_LINK") or 0,
        other_end_moved=message.get_attr("IFLA_LINK_NETNSID") is not None,
        hairpin=is_bridges and bool(port.get_attr("IFLA_BRPORT_MODE")),
    )


def _parse_route(message: rtmsg) -> ListedRoute:
    to = message.get_attr("RTA_DST")
    several = message.get_attr("RTA_MULTIPATH") or ()
    one = (_gateway(message), message.get_attr("RTA_OIF"))
    return ListedRoute(
        destination=f"{to}/{message['dst_len']}" if to else "default",
        kind=_ROUTE_KINDS[message["type"]],
        hops=tuple((_gateway(each), each["oif"]) for each in several) or (one,),
        source=message.get_attr("RTA_PREFSRC"),
        metric=message.get_attr("RTA_PRIORITY") or 0,
        table=message.get_attr("RTA_TABLE") or message["table"],
    )


def _gateway(route: nlmsg) -> str | None:
    """Return the next hop's address; of the other family, in RTA_VIA, too."""
    via = route.get_attr("RTA_VIA")
    return route.get_attr("RTA_GATEWAY") or (via["addr"] if via else None)


def _parse_address(message: ifaddrmsg) -> IPInterface:
    # A point-to-point interface has the other side's address there; its own is the local one.
    own = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    return ip_interface((ip_address(own), message["prefixlen"]))
