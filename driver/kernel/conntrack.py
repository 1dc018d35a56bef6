"""Remove connection tracking entries of published UDP ports; no others, ever.

A UDP flow has no end that the kernel could see: one that began before its port was published
bypasses the translation, and one that outlives its container keeps going to a dead address.
"""

from __future__ import annotations

import errno
import os
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

from driver.errors import KernelError
from driver.model import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from driver.model import PortBinding

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def forget_flows(bindings: Iterable[PortBinding]) -> None:
    """Remove the UDP flows whose original destination is one of the published host ports."""
    published = [each for each in bindings if each.protocol is Protocol.UDP and each.host]
    for version, family in _FAMILIES.items():
        of_family = [each for each in published if each.container_ip.version == version]
        if of_family:
            _forget(family, of_family)


def _forget(family: socket.AddressFamily, bindings: list[PortBinding]) -> None:
    try:
        with NFCTSocket(nfgen_family=family) as tracking:
            udp = NFCTAttrTuple(family=family, proto=socket.IPPROTO_UDP)
            flows = [
                NFCTAttrTuple.from_netlink(family, entry.get_attr("CTA_TUPLE_ORIG"))
                for entry in tracking.dump(tuple_orig=udp)
            ]
            for flow in flows:
                if any(_is_published(flow, binding) for binding in bindings):
                    _delete(tracking, flow)
    except NetlinkError as error:
        raise KernelError(f"forget UDP flows: {os.strerror(error.code)}") from error
    except OSError as error:
        raise KernelError(f"forget UDP flows: {error.strerror or error}") from error


def _is_published(flow: NFCTAttrTuple, binding: PortBinding) -> bool:
    host = binding.host
    if host is None or flow.proto != socket.IPPROTO_UDP or flow.dport != host.port:
        return False
    return host.ip.is_unspecified or ip_address(flow.daddr) == host.ip


def _delete(tracking: NFCTSocket, flow: NFCTAttrTuple) -> None:
    try:
        tracking.entry("del", tuple_orig=flow)
    except NetlinkError as error:
        if error.code != errno.ENOENT:  # it ended by itself meanwhile
            raise
