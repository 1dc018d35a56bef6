"""Delete connection tracking entries of published UDP ports.

A UDP flow has no end that the kernel could see: one that began before its port was published
bypasses the translation, and one that outlives its container keeps going to a dead address.
"""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

from pyroute2.netlink import NETLINK_NETFILTER, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_CTNETLINK
from pyroute2.netlink.nfnetlink.nfctsocket import (
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_GET,
    AsyncNFCTSocket,
    NFCTAttrTuple,
    nfct_msg,
)

from driver.errors import KernelError
from driver.linux.session import NetlinkError, Session
from driver.model import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from driver.model import PortBinding

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_FEW_PORTS = 8  # for each the kernel walks its table; to take a flow apart here is 0.1 ms


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
        with Session(AsyncNFCTSocket, NETLINK_NETFILTER) as tracking:
            for port in ports if len(ports) <= _FEW_PORTS else (None,):
                for flow in _list_udp(tracking, family, port):
                    if any(_is_published(flow, binding) for binding in bindings):
                        _delete(tracking, flow)
    except OSError as error:
        raise KernelError(f"forget UDP flows: {error.strerror or error}") from error


def _list_udp(tracking: Session, family: int, port: int | None) -> list[NFCTAttrTuple]:
    """Return the tracked UDP flows, of any port or to one, by their original direction.

    Kernels before 5.8 do not know such a filter and list all flows.
    """
    wanted = NFCTAttrTuple(family, proto=socket.IPPROTO_UDP, dport=port)
    message = _message(IPCTNL_MSG_CT_GET, wanted)
    message["header"]["flags"] |= NLM_F_DUMP
    by = {"attrs": [("CTA_FILTER_ORIG_FLAGS", wanted.flags)]}
    message["attrs"].append(("CTA_FILTER", by))
    found = tracking.request(message)
    return [NFCTAttrTuple.from_netlink(family, each.get_attr("CTA_TUPLE_ORIG")) for each in found]


def _is_published(flow: NFCTAttrTuple, binding: PortBinding) -> bool:
    host = binding.host
    if host is None or flow.proto != socket.IPPROTO_UDP or flow.dport != host.port:
        return False
    return host.ip.is_unspecified or ip_address(flow.daddr) == host.ip


def _delete(tracking: Session, flow: NFCTAttrTuple) -> None:
    try:
        tracking.request(_message(IPCTNL_MSG_CT_DELETE, flow))
    except NetlinkError as error:
        if error.errno != errno.ENOENT:  # it ended by itself meanwhile
            raise


def _message(command: int, flow: NFCTAttrTuple) -> nfct_msg:
    message = nfct_msg.create_from(tuple_orig=flow)
    message["nfgen_family"] = flow.family
    message["header"]["type"] = NFNL_SUBSYS_CTNETLINK << 8 | command
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK
    return message
