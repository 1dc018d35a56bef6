"""Remove connection tracking entries of published UDP ports; no others, ever.

A UDP flow has no end that the kernel could see: one that began before its port was published
bypasses the translation, and one that outlives its container keeps going to a dead address.
include/uapi/linux/netfilter/nfnetlink_conntrack.h has the numbers.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from driver.errors import KernelError
from driver.linux.netlink import (
    NESTED,
    NETFILTER,
    Connection,
    NetlinkError,
    encode_attribute,
    encode_number,
    parse_attributes,
)
from driver.model import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from driver.model import IPAddress, PortBinding

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_HEAD = struct.Struct("=BBH")  # nfgenmsg: family, version, resource
_GET, _DELETE = (1 << 8) | 1, (1 << 8) | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_…
_ORIGINAL = 1  # CTA_TUPLE_ORIG
_ADDRESSES, _TRANSPORT = 1, 2  # CTA_TUPLE_IP, CTA_TUPLE_PROTO
_DESTINATIONS = {4: 2, 6: 4}  # CTA_IP_V4_DST, CTA_IP_V6_DST
_PROTOCOL, _PORT = 1, 3  # CTA_PROTO_NUM, CTA_PROTO_DST_PORT
# Kernels since 5.8 list UDP alone when asked so; older ones do not know the word and list all.
_FILTER, _ORIGINAL_FLAGS, _BY_PROTOCOL = 25, 1, 1 << 3  # CTA_FILTER…, CTA_FILTER_F_CTA_PROTO_NUM


@dataclass(frozen=True, slots=True)
class Flow:
    """A tracked flow by its original direction; `tuple` is that in the kernel's words."""

    protocol: int
    destination: IPAddress
    port: int
    tuple: bytes


def forget_flows(bindings: Iterable[PortBinding]) -> None:
    """Remove the UDP flows whose original destination is one of the published host ports."""
    published = [each for each in bindings if each.protocol is Protocol.UDP and each.host]
    for version in _FAMILIES:
        of_family = [each for each in published if each.host and each.host.ip.version == version]
        if of_family:
            _forget(version, of_family)


def _forget(version: int, bindings: list[PortBinding]) -> None:
    head = _HEAD.pack(_FAMILIES[version], 0, 0)
    try:
        with Connection(NETFILTER) as tracking:
            for body in tracking.dump(_GET, head + _only_udp()):
                flow = _parse_flow(body, version)
                if any(_is_published(flow, binding) for binding in bindings):
                    _delete(tracking, head + flow.tuple)
    except OSError as error:
        raise KernelError(f"forget UDP flows: {error.strerror or error}") from error


def _only_udp() -> bytes:
    transport = encode_attribute(_PROTOCOL, bytes([socket.IPPROTO_UDP]))
    wanted = encode_attribute(_TRANSPORT | NESTED, transport)
    by_protocol = encode_number(_ORIGINAL_FLAGS, _BY_PROTOCOL)
    return encode_attribute(_ORIGINAL | NESTED, wanted) + encode_attribute(
        _FILTER | NESTED, by_protocol
    )


def _parse_flow(body: bytes, version: int) -> Flow:
    original = parse_attributes(body, _HEAD.size)[_ORIGINAL]
    parts = parse_attributes(original)
    transport = parse_attributes(parts[_TRANSPORT])
    return Flow(
        protocol=transport[_PROTOCOL][0],
        destination=ip_address(parse_attributes(parts[_ADDRESSES])[_DESTINATIONS[version]]),
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
