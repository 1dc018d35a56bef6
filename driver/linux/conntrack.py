"""Find and delete connection tracking entries of published UDP ports.

A UDP flow has no end that the kernel could see: one that began before its port was published
bypasses the translation, and one that outlives its container keeps going to a dead address.

What is asked is encoded by pyroute2. What comes back is not decoded by it: a name server has tens
of thousands of flows, and each takes 0.17 ms to be decoded and 0.3 to be deleted, where this takes
0.01 and 0.02. include/uapi/linux/netfilter/nfnetlink_conntrack.h has the numbers.
"""

from __future__ import annotations

import errno
import socket
from contextlib import closing
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_CTNETLINK
from pyroute2.netlink.nfnetlink.nfctsocket import (
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_GET,
    NFCTAttrTuple,
    nfct_msg,
)

from driver.errors import KernelError
from driver.linux.nfnetlink import NESTED, Connection, encode_attribute, parse_attributes
from driver.linux.session import NetlinkError
from driver.linux.tables import HEAD
from driver.model import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from driver.model import IPAddress, PortBinding

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_FEW_PORTS = 8  # for each the kernel walks its table
_HEADER_BYTES = 16  # struct nlmsghdr
_GET, _DELETE = (NFNL_SUBSYS_CTNETLINK << 8 | n for n in (IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE))
_ORIGINAL, _REPLY, _STATUS = 1, 2, 3  # CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_STATUS
_SEEN_REPLY = 2  # IPS_SEEN_REPLY
_ADDRESSES, _TRANSPORT = 1, 2  # CTA_TUPLE_IP, CTA_TUPLE_PROTO
_DESTINATIONS: dict[int, int] = {
    socket.AF_INET: 2,
    socket.AF_INET6: 4,
}  # CTA_IP_V4_DST, CTA_IP_V6_DST
_SOURCES: dict[int, int] = {socket.AF_INET: 1, socket.AF_INET6: 3}  # CTA_IP_V4_SRC, _V6_SRC
_PROTOCOL, _PORT = 1, 3  # CTA_PROTO_NUM, CTA_PROTO_DST_PORT


@dataclass(frozen=True, slots=True)
class Flow:
    """A tracked flow by its original direction; `tuple` is that as the kernel has it."""

    protocol: int
    destination: IPAddress
    port: int
    tuple: bytes


def forget_flows(bindings: Iterable[PortBinding]) -> None:
    """Remove the UDP flows whose original destination is one of the published host ports.

    Raises KernelError.
    """
    published = [each for each in bindings if each.protocol is Protocol.UDP and each.host]
    for version, family in _FAMILIES.items():
        of_family = [each for each in published if each.host and each.host.ip.version == version]
        if of_family:
            _forget(family, of_family)


def _forget(family: int, bindings: list[PortBinding]) -> None:
    ports = {each.host.port for each in bindings if each.host}
    try:
        with closing(Connection()) as tracking:
            for port in ports if len(ports) <= _FEW_PORTS else (None,):
                for body in tracking.dump(_GET, _encode_wanted(family, port)):
                    flow = _parse_flow(body, family)
                    if any(_is_published(flow, binding) for binding in bindings):
                        _delete(tracking, HEAD.pack(family, 0, 0) + flow.tuple)
    except OSError as error:
        raise KernelError(f"forget UDP flows: {error.strerror or error}") from error


def find_unanswered(ip: IPAddress, port: int) -> frozenset[IPAddress]:
    """Return who would answer those tracked UDP flows to an address and port that nobody has.

    An unspecified address stands for all. Raises KernelError.
    """
    family, found = _FAMILIES[ip.version], set()
    try:
        with closing(Connection()) as tracking:
            for body in tracking.dump(_GET, _encode_wanted(family, port)):
                flow, parts = _parse_flow(body, family), parse_attributes(body, HEAD.size)
                is_answered = int.from_bytes(parts[_STATUS], "big") & _SEEN_REPLY
                is_asked = flow.port == port and (ip.is_unspecified or flow.destination == ip)
                if flow.protocol == socket.IPPROTO_UDP and is_asked and not is_answered:
                    reply = parse_attributes(parse_attributes(parts[_REPLY])[_ADDRESSES])
                    found.add(ip_address(reply[_SOURCES[family]]))
    except OSError as error:
        raise KernelError(f"look at tracked flows: {error.strerror or error}") from error
    return frozenset(found)


def _encode_wanted(family: int, port: int | None) -> bytes:
    """Return what asks for the tracked UDP flows, of any port or to one, by their original one.

    Kernels before 5.8 do not know such a filter and list all flows.
    """
    wanted = NFCTAttrTuple(family, proto=socket.IPPROTO_UDP, dport=port)
    message = nfct_msg.create_from(tuple_orig=wanted)
    message["nfgen_family"] = family
    by = {"attrs": [("CTA_FILTER_ORIG_FLAGS", wanted.flags)]}
    message["attrs"].append(("CTA_FILTER", by))
    message.encode()
    return bytes(message.data[_HEADER_BYTES:])


def _parse_flow(body: bytes, family: int) -> Flow:
    original = parse_attributes(body, HEAD.size)[_ORIGINAL]
    parts = parse_attributes(original)
    transport = parse_attributes(parts[_TRANSPORT])
    return Flow(
        protocol=transport[_PROTOCOL][0],
        destination=ip_address(parse_attributes(parts[_ADDRESSES])[_DESTINATIONS[family]]),
        port=int.from_bytes(transport.get(_PORT, b"")[:2], "big"),  # ICMP has none
        tuple=encode_attribute(_ORIGINAL | NESTED, original),
    )


def _is_published(flow: Flow, binding: PortBinding) -> bool:
    host = binding.host
    if host is None or flow.protocol != socket.IPPROTO_UDP or flow.port != host.port:
        return False
    return host.ip.is_unspecified or flow.destination == host.ip


def _delete(tracking: Connection, body: bytes) -> None:
    try:
        tracking.change(_DELETE, body)
    except NetlinkError as error:
        if error.errno != errno.ENOENT:  # it ended by itself meanwhile
            raise
