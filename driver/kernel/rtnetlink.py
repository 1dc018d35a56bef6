"""Speak rtnetlink, as far as bridges, veth pairs and their addresses need it; decides nothing.

A container's start waits for these few messages. The kernel takes half a millisecond for a veth
pair; with pyroute2, which knows all of netlink, the same takes four. So they are encoded here, and
pyroute2 does what nobody waits for (`driver.kernel.loopback`, `driver.kernel.conntrack`).

A socket belongs to the network namespace in which it was opened, whichever thread uses it then.
include/uapi/linux/netlink.h, rtnetlink.h, if_link.h, if_addr.h and linux/veth.h have the numbers.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from driver.model import IPInterface, MacAddress

LINK_CHANGES = 1  # RTMGRP_LINK
IFF_UP = 1

_SOL_NETLINK, _CAP_ACK, _GET_STRICT_CHK = 270, 10, 12
_BUFFER = 1 << 16

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type
_LINK_HEAD = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS_HEAD = struct.Struct("=BBBBi")  # ifaddrmsg: family, prefix length, flags, scope, index
_NUMBER = struct.Struct("=I")
_STATUS = struct.Struct("=i")

_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_REQUEST, _ACK, _DUMP, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x300, 0x200, 0x400  # NLM_F_…
_INTERRUPTED = 0x10  # NLM_F_DUMP_INTR
_NEW_LINK, _DELETE_LINK, _GET_LINK = 16, 17, 18  # RTM_…LINK
_NEW_ADDRESS, _DELETE_ADDRESS, _GET_ADDRESS = 20, 21, 22  # RTM_…ADDR
_TYPE_MASK = 0x3FFF  # NLA_TYPE_MASK: without the bits for nesting and byte order

# IFLA_…
_MAC, _NAME, _MTU, _OTHER_END, _MASTER, _INFO = 1, 3, 4, 5, 10, 18
_ALIAS, _GROUP, _NAMESPACE, _EXT_MASK, _OTHER_NAMESPACE = 20, 27, 28, 29, 37
_KIND, _DATA, _SLAVE_KIND, _SLAVE_DATA = 1, 2, 4, 5  # IFLA_INFO_…
_VETH_PEER = 1  # VETH_INFO_PEER
_HAIRPIN = 4  # IFLA_BRPORT_MODE
_SKIP_STATISTICS = 1 << 3  # RTEXT_FILTER_SKIP_STATS

# IFA_…
_ADDRESS, _LOCAL, _BROADCAST, _ADDRESS_FLAGS = 1, 2, 4, 8
_NO_DAD = 0x02  # IFA_F_NODAD


class NetlinkError(OSError):
    """The kernel refused a message, for the reason that `errno` has."""

    def __init__(self, number: int) -> None:
        super().__init__(number, os.strerror(number))


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


class Rtnetlink:
    """A rtnetlink socket of the calling thread's network namespace; to be used by one thread.

    Every method raises NetlinkError with the kernel's reason if it refuses.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._sequence = 0
        self._is_torn = False
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    # -- links

    def create_bridge(self, name: str, mac: MacAddress, group: int) -> None:
        """Make a bridge, up, in a group of interfaces."""
        attributes = _text(_NAME, name) + _mac(mac) + _number(_GROUP, group)
        body = _up(0) + attributes + _attribute(_INFO, _text(_KIND, "bridge"))
        self._change(_NEW_LINK, body, _CREATE | _EXCLUSIVE)

    def create_veth(self, name: str, mtu: int, master: int, group: int, peer: VethPeer) -> None:
        """Make a veth pair, both ends of one MTU, this one up and on the bridge `master`."""
        other = _link(0) + _text(_NAME, peer.name) + _mac(peer.mac) + _number(_MTU, mtu)
        if peer.namespace is not None:
            other += _number(_NAMESPACE, peer.namespace)
        kind = _text(_KIND, "veth") + _attribute(_DATA, _attribute(_VETH_PEER, other))
        attributes = _text(_NAME, name) + _number(_MTU, mtu) + _number(_MASTER, master)
        body = _up(0) + attributes + _number(_GROUP, group) + _attribute(_INFO, kind)
        self._change(_NEW_LINK, body, _CREATE | _EXCLUSIVE)

    def finish_link(
        self, name: str, alias: str, group: int, *, mtu: int | None = None, hairpin: bool = False
    ) -> None:
        """Give a link its alias and group; `hairpin` is for one that is on a bridge."""
        body = _link(0) + _text(_NAME, name) + _text(_ALIAS, alias) + _number(_GROUP, group)
        body += b"" if mtu is None else _number(_MTU, mtu)
        self._change(_NEW_LINK, body + (_port(hairpin=True) if hairpin else b""))

    def set_hairpin(self, index: int) -> None:
        """Let frames go back by the bridge's port that they came from."""
        self._change(_NEW_LINK, _link(index) + _port(hairpin=True))

    def raise_link(self, index: int, master: int | None = None) -> None:
        """Bring a link up, and onto a bridge if one is given."""
        body = _up(index) + (b"" if master is None else _number(_MASTER, master))
        self._change(_NEW_LINK, body)

    def set_mac_and_mtu(self, index: int, mac: MacAddress, mtu: int) -> None:
        """Change a link's MAC address and MTU."""
        self._change(_NEW_LINK, _link(index) + _mac(mac) + _number(_MTU, mtu))

    def set_group(self, index: int, group: int) -> None:
        """Put a link into a group."""
        self._change(_NEW_LINK, _link(index) + _number(_GROUP, group))

    def delete_link(self, which: str | int) -> None:
        """Delete a link, and a veth's other end with it; waits for the kernel's grace periods."""
        self._change(_DELETE_LINK, _named(which))

    def delete_group(self, group: int) -> None:
        """Delete all links of a group, waiting for the grace periods once."""
        self._change(_DELETE_LINK, _link(0) + _number(_GROUP, group))

    def find_link(self, which: str | int) -> LinkInfo | None:
        """Return the link of a name or an index, None if there is none."""
        body = _named(which) + _number(_EXT_MASK, _SKIP_STATISTICS)
        try:
            answer = self._ask(_GET_LINK, body)
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return _parse_link(answer)

    def links(self) -> tuple[LinkInfo, ...]:
        """Return every link."""
        body = _link(0) + _number(_EXT_MASK, _SKIP_STATISTICS)
        return tuple(map(_parse_link, self._dump(_GET_LINK, body)))

    # -- addresses

    def add_address(self, index: int, address: IPInterface) -> None:
        """Give an interface an address, at once: IPv6 without looking for a duplicate."""
        self._change(_NEW_ADDRESS, _address(index, address, new=True), _CREATE | _EXCLUSIVE)

    def delete_address(self, index: int, address: IPInterface) -> None:
        """Take an address from an interface."""
        self._change(_DELETE_ADDRESS, _address(index, address, new=False))

    def addresses(self, index: int = 0) -> dict[int, frozenset[IPInterface]]:
        """Return the addresses of an interface, or of all, by index."""
        answers = self._dump(_GET_ADDRESS, _ADDRESS_HEAD.pack(0, 0, 0, 0, index))
        found: dict[int, set[IPInterface]] = {}
        for answer in answers:
            found.setdefault(_index_of(answer), set()).add(_parse_address(answer))
        return {index: frozenset(addresses) for index, addresses in found.items()}

    # -- messages

    def _change(self, kind: int, body: bytes, flags: int = 0) -> None:
        """Send what is to be done and wait until it is."""
        self._send(kind, flags | _ACK, body)
        for _ in self._answers():
            pass

    def _ask(self, kind: int, body: bytes) -> bytes:
        """Send a question and return the body of the answer."""
        self._send(kind, 0, body)
        return next(self._answers())

    def _dump(self, kind: int, body: bytes) -> list[bytes]:
        """Return the bodies of everything there is of a kind, from one consistent listing."""
        while True:
            self._send(kind, _DUMP, body)
            self._is_torn = False
            found = list(self._answers())
            if not self._is_torn:
                return found

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        length = _HEADER.size + len(body)
        head = _HEADER.pack(length, kind, flags | _REQUEST, self._sequence, 0)
        self._socket.send(head + body)

    def _answers(self) -> Iterator[bytes]:
        """Yield the bodies of the messages that answer, to the acknowledgement or the last."""
        while True:
            received = self._socket.recv(_BUFFER)
            offset = 0
            while offset < len(received):
                length, kind, flags, sequence, _ = _HEADER.unpack_from(received, offset)
                body = received[offset + _HEADER.size : offset + length]
                offset += _aligned(length)
                if sequence != self._sequence:
                    continue  # the rest of an answer that nobody waited for
                self._is_torn |= bool(flags & _INTERRUPTED)
                if kind in {_ERROR, _DONE}:
                    number = -_STATUS.unpack_from(body)[0]
                    if number:
                        raise NetlinkError(number)
                    return
                yield body


def _link(index: int) -> bytes:
    return _LINK_HEAD.pack(0, 0, index, 0, 0)


def _named(which: str | int) -> bytes:
    return _link(which) if isinstance(which, int) else _link(0) + _text(_NAME, which)


def _up(index: int) -> bytes:
    return _LINK_HEAD.pack(0, 0, index, IFF_UP, IFF_UP)


def _port(*, hairpin: bool) -> bytes:
    """Return what changes a bridge's port; with a link's other changes it is one message."""
    data = _attribute(_SLAVE_DATA, _attribute(_HAIRPIN, bytes([hairpin])))
    return _attribute(_INFO, _text(_SLAVE_KIND, "bridge") + data)


def _address(index: int, address: IPInterface, *, new: bool) -> bytes:
    is_ipv4 = address.version == 4  # noqa: PLR2004 - the number is the name
    family = socket.AF_INET if is_ipv4 else socket.AF_INET6
    head = _ADDRESS_HEAD.pack(family, address.network.prefixlen, 0, 0, index)
    packed = address.ip.packed
    body = head + _attribute(_LOCAL, packed) + _attribute(_ADDRESS, packed)
    if not new:
        return body
    if is_ipv4:
        return body + _attribute(_BROADCAST, address.network.broadcast_address.packed)
    return body + _number(_ADDRESS_FLAGS, _NO_DAD)


def _parse_link(body: bytes) -> LinkInfo:
    _, _, index, flags, _ = _LINK_HEAD.unpack_from(body)
    found = _attributes(body, _LINK_HEAD.size)
    info = _attributes(found.get(_INFO, b""))
    return LinkInfo(
        index=index,
        name=_text_of(found.get(_NAME, b"")),
        kind=_text_of(info[_KIND]) if _KIND in info else None,
        alias=_text_of(found.get(_ALIAS, b"")),
        mac=found.get(_MAC, b"").hex(":"),
        mtu=_number_of(found.get(_MTU)),
        flags=flags,
        group=_number_of(found.get(_GROUP)),
        master=_number_of(found.get(_MASTER)),
        other_end=_number_of(found.get(_OTHER_END)),
        other_end_moved=_OTHER_NAMESPACE in found,
    )


def _parse_address(body: bytes) -> IPInterface:
    _, prefixlen, _, _, _ = _ADDRESS_HEAD.unpack_from(body)
    found = _attributes(body, _ADDRESS_HEAD.size)
    # A point-to-point interface has the other side's address there; its own is the local one.
    return ip_interface((ip_address(found.get(_LOCAL, found[_ADDRESS])), prefixlen))


def _index_of(body: bytes) -> int:
    index: int = _ADDRESS_HEAD.unpack_from(body)[4]
    return index


def _attributes(body: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return the attributes of a message from the offset on, by type."""
    found: dict[int, bytes] = {}
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = body[offset + _ATTRIBUTE.size : offset + length]
        offset += _aligned(length)
    return found


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, _NUMBER.pack(value))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _mac(mac: MacAddress) -> bytes:
    return _attribute(_MAC, bytes.fromhex(mac.replace(":", "")))


def _number_of(value: bytes | None) -> int:
    return 0 if value is None else int(_NUMBER.unpack_from(value)[0])


def _text_of(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _aligned(length: int) -> int:
    return (length + 3) & ~3
