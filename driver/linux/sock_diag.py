"""List the listening sockets of a network namespace, by sock_diag(7)."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from pyroute2.netlink import NETLINK_SOCK_DIAG, NLM_F_DUMP, NLM_F_REQUEST
from pyroute2.netlink.diag import (
    SOCK_DIAG_BY_FAMILY,
    SS_CLOSE,
    SS_LISTEN,
    inet_diag_msg,
    inet_diag_req,
)
from pyroute2.netlink.nlsocket import AsyncNetlinkSocket

from driver.linux.session import Session
from driver.model import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

_MEMORY = 7  # INET_DIAG_SKMEMINFO
_OF_RECEIVING = (0, 1, 8)  # SK_MEMINFO_RMEM_ALLOC, _RCVBUF, _DROPS; include/uapi/linux/sock_diag.h
_PROTOCOLS = {
    Protocol.TCP: (socket.IPPROTO_TCP, SS_LISTEN),
    Protocol.UDP: (socket.IPPROTO_UDP, SS_CLOSE),
}


class Bound(NamedTuple):
    """A socket that takes what comes to a port; `address` is as the kernel writes it.

    `waiting` connections are not accepted yet, of at most `backlog`; of UDP these are the bytes of
    datagrams that are not read yet and of those that there is room for. `lost` datagrams had none.
    """

    protocol: Protocol
    address: str
    port: int
    is_v6_only: bool
    inode: int
    waiting: int
    backlog: int
    lost: int = 0


class _Socket(AsyncNetlinkSocket):  # type: ignore[misc] # pyroute2 has no types
    """By message type, where pyroute2's own reads errors as sockets of AF_INET."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(family=NETLINK_SOCK_DIAG, **arguments)
        self.marshal.msg_map = {SOCK_DIAG_BY_FAMILY: inet_diag_msg}


class SockDiag(Session):
    """A socket that asks about sockets of the calling thread's namespace; for one thread."""

    def __init__(self) -> None:
        super().__init__(_Socket, NETLINK_SOCK_DIAG)

    def listeners(self) -> Iterator[Bound]:
        """Yield TCP sockets that listen and UDP sockets that are bound, of both families.

        Raises NetlinkError.
        """
        for protocol, (number, state) in _PROTOCOLS.items():
            for family in (socket.AF_INET, socket.AF_INET6):
                for answer in self.request(_question(family, number, state)):
                    if answer["header"]["type"] == SOCK_DIAG_BY_FAMILY:
                        yield _parse(protocol, answer)


def _question(family: int, protocol: int, state: int) -> inet_diag_req:
    message = inet_diag_req()
    message["header"]["type"] = SOCK_DIAG_BY_FAMILY
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_DUMP
    message["sdiag_family"], message["sdiag_protocol"] = family, protocol
    message["idiag_states"] = 1 << state
    message["idiag_ext"] = 1 << (_MEMORY - 1)
    return message


def _parse(protocol: Protocol, answer: inet_diag_msg) -> Bound:
    waiting, room, lost = answer["idiag_rqueue"], answer["idiag_wqueue"], 0
    memory = bytes.fromhex((answer.get_attr("INET_DIAG_SKMEMINFO") or "").replace(":", ""))
    if protocol is not Protocol.TCP:
        words = [each[0] for each in struct.iter_unpack("=I", memory)]
        waiting, room, lost = (words[n] if n < len(words) else 0 for n in _OF_RECEIVING)
    return Bound(
        protocol,
        answer["idiag_src"],
        answer["idiag_sport"],
        bool(answer.get_attr("INET_DIAG_SKV6ONLY")),
        answer["idiag_inode"],
        waiting,
        room,
        lost,
    )
