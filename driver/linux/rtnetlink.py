"""Speak rtnetlink, as far as links, their addresses and the loopback pair need it; decides nothing.

A container's start waits for these few messages. The kernel takes half a millisecond for a veth
pair; pyroute2, which knows all of netlink, took four for the same, and 10 MB of memory.
include/uapi/linux/rtnetlink.h, if_link.h, if_addr.h, neighbour.h and fib_rules.h have the numbers.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import TYPE_CHECKING

from driver.linux.netlink import (
    CREATE,
    EXCLUSIVE,
    ROUTE,
    Change,
    Connection,
    NetlinkError,
    encode_attribute,
    encode_number,
    encode_text,
    parse_attributes,
    parse_number,
    parse_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from driver.model import IPAddress, IPInterface, MacAddress

LINK_CHANGES = 1  # RTMGRP_LINK
IFF_UP, IFF_NOARP, IFF_LOWER_UP = 1, 1 << 7, 1 << 16

# What a bridge may learn: ten times a thousand endpoints (driver.model.PARTS), and room for others'
# interfaces. One container that makes addresses up has the table full in a second otherwise.
MAX_LEARNED = 16384

_LINK_HEAD = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS_HEAD = struct.Struct("=BBBBi")  # ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE_HEAD = struct.Struct("=8BI")  # rtmsg: family, lengths, tos, table, protocol, scope, type
_RULE_HEAD = struct.Struct("=8BI")  # fib_rule_hdr: family, lengths, tos, table, 0, 0, action

_NEW_LINK, _DELETE_LINK, _GET_LINK = 16, 17, 18  # RTM_…LINK
_NEW_ADDRESS, _DELETE_ADDRESS, _GET_ADDRESS = 20, 21, 22  # RTM_…ADDR
_GET_ROUTE, _DELETE_RULE = 26, 33  # RTM_…

# IFLA_…
_MAC, _NAME, _MTU, _OTHER_END, _MASTER, _INFO = 1, 3, 4, 5, 10, 18
_OPERSTATE, _ALIAS, _OF_FAMILY, _GROUP, _NAMESPACE = 16, 20, 26, 27, 28
_EXT_MASK, _OTHER_NAMESPACE = 29, 37
_NO_GROUP = 0
_DORMANT = b"\5"  # IF_OPER_DORMANT
_ADDRESS_MODE, _NO_ADDRESS = 8, b"\1"  # IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE
_BRIDGE_MAX_LEARNED = 49  # IFLA_BR_FDB_MAX_LEARNED
_KIND, _DATA, _SLAVE_KIND, _SLAVE_DATA = 1, 2, 4, 5  # IFLA_INFO_…
_VETH_PEER = 1  # VETH_INFO_PEER
_HAIRPIN = 4  # IFLA_BRPORT_MODE
_SKIP_STATISTICS = 1 << 3  # RTEXT_FILTER_SKIP_STATS

# IFA_…
_ADDRESS, _LOCAL, _BROADCAST, _ADDRESS_FLAGS = 1, 2, 4, 8
_NO_DAD = 0x02  # IFA_F_NODAD
_LAST_WITH_BROADCAST = 30  # the longest prefix whose network has a broadcast address

# RTA_…, FRA_…
_DESTINATION, _OUT_INDEX = 1, 4
_RULE_PRIORITY, _RULE_MARK, _RULE_TABLE, _RULE_MASK = 6, 10, 15, 16
# Without a route, or with one that says so (prohibit, blackhole, unreachable).
_NO_WAY = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL})
_TO_TABLE = 1  # FR_ACT_TO_TBL


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


class Rtnetlink(Connection):
    """A rtnetlink socket of the calling thread's network namespace; to be used by one thread.

    Every method raises NetlinkError with the kernel's reason if it refuses.
    """

    def __init__(self) -> None:
        super().__init__(ROUTE)

    # -- links

    def create_bridge(self, name: str, mac: MacAddress, group: int) -> None:
        """Make a bridge, up, in a group of interfaces."""
        body = _named(name, up=True) + _mac(mac) + encode_number(_GROUP, group)
        self.change(_NEW_LINK, body + _limited_bridge(), CREATE | EXCLUSIVE)

    def limit_learning(self, index: int) -> None:
        """Bound how many MAC addresses a bridge learns; kernels before 6.7 ignore it.

        Frames to an address that it has not learned go to all ports, as without a table.
        """
        self.change(_NEW_LINK, _link(index) + _limited_bridge())

    def create_veth(self, name: str, mtu: int, group: int, peer: VethPeer) -> None:
        """Make a veth pair, both ends down and of one MTU."""
        self.change_all(_veth(name, mtu, group, peer))

    def create_port(self, port: BridgePort, group: int, peer: VethPeer) -> None:
        """Make a veth pair, one end a bridge's port, complete and up, in one go.

        In `group` until it has its alias. The name must be free: what is refused as taken would be
        changed. Up last: whenever a link that is up and has no carrier changes, the kernel walks
        through all routes of IPv6 (rt6_sync_down_dev() in addrconf_notify()).
        """
        self.change_all(
            _veth(port.name, port.mtu, group, peer, port.bridge),
            _finished(
                port.name,
                port.alias,
                hairpin=port.hairpin,
                without_link_local=port.without_link_local,
            ),
            Change(_NEW_LINK, _named(port.name, up=True, is_port=True)),
        )

    def finish_link(self, name: str, alias: str, *, mtu: int | None = None) -> None:
        """Give a link its alias and MTU, and take it out of its group."""
        self.change_all(_finished(name, alias, mtu=mtu))

    def set_hairpin(self, index: int) -> None:
        """Let frames go back by the bridge's port that they came from."""
        self.change(_NEW_LINK, _link(index) + _port(hairpin=True))

    def raise_link(self, which: str | int, master: int | None = None) -> None:
        """Bring a link up, and onto a bridge if one is given."""
        body = _named(which, up=True, is_port=master is not None) + (
            b"" if master is None else encode_number(_MASTER, master)
        )
        self.change(_NEW_LINK, body)

    def set_mac_and_mtu(self, index: int, mac: MacAddress, mtu: int) -> None:
        """Change a link's MAC address and MTU."""
        self.change(_NEW_LINK, _link(index) + _mac(mac) + encode_number(_MTU, mtu))

    def set_mtu(self, index: int, mtu: int) -> None:
        """Change a link's MTU."""
        self.change(_NEW_LINK, _link(index) + encode_number(_MTU, mtu))

    def set_group(self, index: int, group: int) -> None:
        """Put a link into a group."""
        self.change(_NEW_LINK, _link(index) + encode_number(_GROUP, group))

    def delete_link(self, which: str | int) -> None:
        """Delete a link, and a veth's other end with it; waits for the kernel's grace periods."""
        self.change(_DELETE_LINK, _named(which))

    def delete_group(self, group: int) -> None:
        """Delete all links of a group, waiting for the grace periods once."""
        self.change(_DELETE_LINK, _link(0) + encode_number(_GROUP, group))

    def find_link(self, which: str | int) -> LinkInfo | None:
        """Return the link of a name or an index, None if there is none."""
        body = _named(which) + encode_number(_EXT_MASK, _SKIP_STATISTICS)
        try:
            answer = self.ask(_GET_LINK, body)
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return _parse_link(answer)

    def links(self) -> tuple[LinkInfo, ...]:
        """Return every link."""
        body = _link(0) + encode_number(_EXT_MASK, _SKIP_STATISTICS)
        return tuple(map(_parse_link, self.dump(_GET_LINK, body)))

    # -- addresses

    def add_address(self, index: int, address: IPInterface) -> None:
        """Give an interface an address, at once: IPv6 without looking for a duplicate."""
        self.change_all(_new_address(index, address))

    def raise_with(self, index: int, addresses: Iterable[IPInterface]) -> None:
        """Give an interface its addresses, then bring it up, in one go."""
        self.change_all(
            *(_new_address(index, address) for address in addresses),
            Change(_NEW_LINK, _link(index, up=True)),
        )

    def delete_address(self, index: int, address: IPInterface) -> None:
        """Take an address from an interface."""
        self.change(_DELETE_ADDRESS, _address(index, address, new=False))

    def addresses(self, *indexes: int) -> dict[int, frozenset[IPInterface]]:
        """Return the addresses of some interfaces, by index; of one it takes a short listing.

        An interface that is gone has none.
        """
        index = indexes[0] if len(indexes) == 1 else 0
        try:
            answers = self.dump(_GET_ADDRESS, _ADDRESS_HEAD.pack(0, 0, 0, 0, index))
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
            return {}
        found: dict[int, set[IPInterface]] = {}
        wanted = frozenset(indexes)
        for answer in answers:
            index = _index_of(answer)
            if index in wanted:
                found.setdefault(index, set()).add(_parse_address(answer))
        return {index: frozenset(addresses) for index, addresses in found.items()}

    def find_way(self, address: IPAddress) -> int | None:
        """Return the index of the interface by which the host sends to an address, None for none.

        By the rules and tables in force, as a packet of the host's own would be sent.
        """
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004
        head = _ROUTE_HEAD.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
        try:
            answer = self.ask(_GET_ROUTE, head + encode_attribute(_DESTINATION, address.packed))
        except NetlinkError as error:
            if error.errno in _NO_WAY:
                return None
            raise
        found = parse_attributes(answer, _ROUTE_HEAD.size)
        return parse_number(found.get(_OUT_INDEX)) or None

    def delete_mark_rule(self, priority: int, mark: int, table: int) -> None:
        """Delete the rule for IPv6 by which what carries a mark looks into a table."""
        head = _RULE_HEAD.pack(socket.AF_INET6, 0, 0, 0, 0, 0, 0, _TO_TABLE, 0)
        of_pair = {
            _RULE_PRIORITY: priority,
            _RULE_MARK: mark,
            _RULE_MASK: mark,
            _RULE_TABLE: table,
        }
        body = b"".join(encode_number(kind, value) for kind, value in of_pair.items())
        self.change(_DELETE_RULE, head + body)


def _link(index: int, *, up: bool = False, is_port: bool = False) -> bytes:
    """Return the head of a message about a link.

    A bridge's port has no use for ARP of its own. The kernel hands it frames to 01:80:c2:00:00:0e
    past the bridge and its rules (br_handle_frame(), net/bridge/br_input.c).
    """
    flags = (IFF_UP if up else 0) | (IFF_NOARP if is_port else 0)
    return _LINK_HEAD.pack(0, 0, index, flags, flags)


def _named(which: str | int, *, up: bool = False, is_port: bool = False) -> bytes:
    if isinstance(which, int):
        return _link(which, up=up, is_port=is_port)
    return _link(0, up=up, is_port=is_port) + encode_text(_NAME, which)


def _veth(name: str, mtu: int, group: int, peer: VethPeer, master: int | None = None) -> Change:
    """Return what makes a veth pair, both ends down, the first on the bridge `master`.

    A bridge opens a port whose carrier nobody knows of yet (netif_oper_up()), closes it when the
    kernel has looked and opens it again when the other end is up; each time it walks through all
    its ports (br_port_state_selection()). One that is dormant it opens once.
    """
    other = _link(0) + encode_text(_NAME, peer.name) + _mac(peer.mac)
    other += encode_number(_MTU, mtu)
    if peer.namespace is not None:
        other += encode_number(_NAMESPACE, peer.namespace)
    data = encode_attribute(_DATA, encode_attribute(_VETH_PEER, other))
    body = _named(name) + encode_number(_MTU, mtu) + encode_number(_GROUP, group)
    if master is not None:
        body += encode_number(_MASTER, master) + encode_attribute(_OPERSTATE, _DORMANT)
    body += encode_attribute(_INFO, encode_text(_KIND, "veth") + data)
    return Change(_NEW_LINK, body, CREATE | EXCLUSIVE)


def _finished(
    name: str,
    alias: str,
    *,
    mtu: int | None = None,
    hairpin: bool = False,
    without_link_local: bool = False,
) -> Change:
    """Return what gives a link its alias and what else no new link can be given."""
    body = _named(name) + encode_text(_ALIAS, alias) + encode_number(_GROUP, _NO_GROUP)
    body += b"" if mtu is None else encode_number(_MTU, mtu)
    if without_link_local:
        mode = encode_attribute(_ADDRESS_MODE, _NO_ADDRESS)
        body += encode_attribute(_OF_FAMILY, encode_attribute(socket.AF_INET6, mode))
    return Change(_NEW_LINK, body + (_port(hairpin=True) if hairpin else b""))


def _limited_bridge() -> bytes:
    """Return what makes a bridge learn no more than MAX_LEARNED addresses."""
    limit = encode_number(_BRIDGE_MAX_LEARNED, MAX_LEARNED)
    return encode_attribute(_INFO, encode_text(_KIND, "bridge") + encode_attribute(_DATA, limit))


def _port(*, hairpin: bool) -> bytes:
    """Return what changes a bridge's port; with a link's other changes it is one message."""
    data = encode_attribute(_SLAVE_DATA, encode_attribute(_HAIRPIN, bytes([hairpin])))
    return encode_attribute(_INFO, encode_text(_SLAVE_KIND, "bridge") + data)


def _new_address(index: int, address: IPInterface) -> Change:
    return Change(_NEW_ADDRESS, _address(index, address, new=True), CREATE | EXCLUSIVE)


def _address(index: int, address: IPInterface, *, new: bool) -> bytes:
    is_ipv4 = address.version == 4  # noqa: PLR2004 - the number is the name
    family = socket.AF_INET if is_ipv4 else socket.AF_INET6
    head = _ADDRESS_HEAD.pack(family, address.network.prefixlen, 0, 0, index)
    packed = address.ip.packed
    body = head + encode_attribute(_LOCAL, packed) + encode_attribute(_ADDRESS, packed)
    if not new:
        return body
    if is_ipv4 and address.network.prefixlen > _LAST_WITH_BROADCAST:
        return body  # RFC 3021: both addresses of a /31 are hosts'
    if is_ipv4:
        return body + encode_attribute(_BROADCAST, address.network.broadcast_address.packed)
    return body + encode_number(_ADDRESS_FLAGS, _NO_DAD)


def _parse_link(body: bytes) -> LinkInfo:
    _, _, index, flags, _ = _LINK_HEAD.unpack_from(body)
    found = parse_attributes(body, _LINK_HEAD.size)
    info = parse_attributes(found.get(_INFO, b""))
    return LinkInfo(
        index=index,
        name=parse_text(found.get(_NAME, b"")),
        kind=parse_text(info[_KIND]) if _KIND in info else None,
        alias=parse_text(found.get(_ALIAS, b"")),
        mac=found.get(_MAC, b"").hex(":"),
        mtu=parse_number(found.get(_MTU)),
        flags=flags,
        group=parse_number(found.get(_GROUP)),
        master=parse_number(found.get(_MASTER)),
        other_end=parse_number(found.get(_OTHER_END)),
        other_end_moved=_OTHER_NAMESPACE in found,
        hairpin=parse_attributes(info.get(_SLAVE_DATA, b"")).get(_HAIRPIN) == b"\1",
    )


def _parse_address(body: bytes) -> IPInterface:
    _, prefixlen, _, _, _ = _ADDRESS_HEAD.unpack_from(body)
    found = parse_attributes(body, _ADDRESS_HEAD.size)
    # A point-to-point interface has the other side's address there; its own is the local one.
    return ip_interface((ip_address(found.get(_LOCAL, found[_ADDRESS])), prefixlen))


def _index_of(body: bytes) -> int:
    index: int = _ADDRESS_HEAD.unpack_from(body)[4]
    return index


def _mac(mac: MacAddress) -> bytes:
    return encode_attribute(_MAC, _packed(mac))


def _packed(mac: MacAddress) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
