"""Watch netlink events for damage to our links and rules; repairs nothing.

Two netlink sockets that the kernel writes to, one thread that sleeps until it does: nothing is
polled. A message is looked at just far enough to tell whether it can be damage, since a start of a
container comes with a dozen that are not. What we did is told apart from what others did: rules by
the port of the netlink socket that changed them, links by their names.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import mmap
import os
import select
import socket
import struct
import threading
from typing import TYPE_CHECKING

from pyroute2.netlink import NETLINK_ADD_MEMBERSHIP, SOL_NETLINK, nlmsg
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_NEWLINK,
    RTM_NEWNETCONF,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV4_NETCONF,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV6_NETCONF,
    RTNLGRP_IPV6_ROUTE,
    RTNLGRP_LINK,
)
from pyroute2.netlink.rtnl.ifinfmsg import IFF_UP
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from driver.linux.nfnetlink import NETFILTER, parse_attributes, parse_messages, parse_text
from driver.linux.session import text_of
from driver.linux.waiting import wait_readable
from driver.observed import is_dockers_port

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from driver.health import Health

    Sockets = Mapping[socket.socket, Callable[[bytes], bool]]

OUR_ALIAS, ENDPOINT_ALIAS = "pynet ", b"pynet endpoint "
WATCHING = "monitor"  # the key of that in what health tells
# Attributes as they are in a message. IFLA_INFO_KIND is of a link itself, not of a bridge's port;
# the name is first in it (rtnl_fill_ifinfo(), br_fill_ifinfo()), but for a namespace's.
_BRIDGE_KIND = struct.pack("=HH", 11, 1) + b"bridge\0"
_VETH_KIND = struct.pack("=HH", 9, 1) + b"veth\0"
_NAME = struct.Struct("=2xH3s")  # the first attribute: its type, and how its text begins
_IFNAME = 3  # IFLA_IFNAME
_ENDS = frozenset({b"pnh", b"pnc"})  # of endpoints' veth pairs
_ROUTE_TYPE, _ADDRESS_SCOPE = 7, 3  # where struct rtmsg and struct ifaddrmsg have these
_SCOPE_LINK = 253  # RT_SCOPE_LINK
RETRY_SECONDS = 0.1  # after a failure
BUFFER_BYTES = 4 * 1024 * 1024  # a flushed ruleset of 5,000 elements is some 1 MB of messages

_GROUPS = (
    RTNLGRP_LINK,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV6_ROUTE,
    RTNLGRP_IPV4_NETCONF,
    RTNLGRP_IPV6_NETCONF,
)
_UNICAST, _LOCAL = 1, 2  # RTN_…
_ALL_INTERFACES = -1  # NETCONFA_IFINDEX_ALL
_AF_BRIDGE = 7  # a bridge's word about one of its ports
_NEWS = frozenset({RTM_NEWLINK, RTM_DELLINK, RTM_DELADDR, RTM_DELROUTE, RTM_NEWNETCONF})
_HEADER_BYTES = 16  # struct nlmsghdr
# include/uapi/linux/netfilter/nfnetlink.h, nf_tables.h, netfilter.h
_NFNLGRP_NFTABLES = 7
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
# NFT_MSG_*
_DELTABLE, _NEWCHAIN, _DELCHAIN, _NEWRULE, _DELRULE, _NEWGEN = 2, 3, 5, 6, 8, 15
_CHAIN_HOOK = 4  # NFTA_CHAIN_HOOK
_INET, _IPV4, _BRIDGE, _IPV6 = 1, 2, 7, 10  # NFPROTO_*
_CHAIN_ATTRIBUTE = {_DELCHAIN: 3, _NEWRULE: 2, _DELRULE: 2}  # NFTA_CHAIN_NAME, NFTA_RULE_CHAIN

_IFINFO = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change

log = logging.getLogger(__name__)


class Monitor:
    """The two sockets and the thread that waits on them."""

    def __init__(
        self,
        is_expected: Callable[[str], bool],
        own_ports: Callable[[], Collection[int | None]],
        health: Health,
    ) -> None:
        """`is_expected` tells whether a host end of that name is going because we want it to.

        `own_ports` returns the netlink ports by which we change rules. `health` is told while
        nothing can be watched.
        """
        self._health = health
        self._is_expected = is_expected
        self._own_ports = own_ports
        self._bridges = Bridges()
        self._news = _News(self._bridges)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None

    def start(self, then: Callable[[], None]) -> None:
        """Call `then`, in the monitor's thread, whenever something may have been damaged.

        Raises OSError. `then` must be quick: what the kernel tells meanwhile has to wait.
        """
        sockets = self._open()
        self._thread = threading.Thread(
            target=self._run, args=(sockets, then), name="monitor", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End the thread and close the sockets."""
        if self._thread is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
        os.close(self._wake)

    def _open(self) -> Sockets:
        route = _open_route()
        try:
            return {route: self._is_link_damage, _open_rules(): self._is_rule_damage}
        except BaseException:
            route.close()
            raise

    def _run(self, sockets: Sockets, then: Callable[[], None]) -> None:
        """Watch until the end, anew after a failure: what it has missed may be damage."""
        current: Sockets | None = sockets
        while True:
            try:
                if current is None:
                    current = self._open()
                    then()
                    self._health.clear(WATCHING)
                self._watch(current, then)
            except Exception as error:
                log.exception("could not watch links and rules; watching anew")
                self._health.report(
                    WATCHING,
                    f"what others do to links and rules is not noticed: watching fails ({error}) "
                    "and is begun anew; pynet check --repair finds and mends",
                )
            else:
                return
            finally:
                for each in current or ():
                    each.close()
                current = None
            if wait_readable([self._wake], RETRY_SECONDS):
                return

    def _watch(self, sockets: Sockets, then: Callable[[], None]) -> None:
        poll = select.poll()
        by_descriptor = {each.fileno(): each for each in sockets}
        for descriptor in (*by_descriptor, self._wake):
            poll.register(descriptor, select.POLLIN)
        space = mmap.mmap(-1, BUFFER_BYTES)  # taken once, and no more memory than is written to
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self._wake in ready:
                break
            found = [
                _drain(by_descriptor[each], space, sockets[by_descriptor[each]]) for each in ready
            ]
            if any(found):
                then()

    def _is_link_damage(self, datagram: bytes) -> bool:
        return any(
            is_link_damage(each, self._is_expected, self._bridges)
            for each in self._news.parse(datagram)
        )

    def _is_rule_damage(self, datagram: bytes) -> bool:
        own = self._own_ports()
        return any(
            is_rule_damage(each.kind, each.body)
            for each in parse_messages(datagram)
            if each.port not in own
        )


class Bridges:
    """The bridges of others that were told of since the start, by index."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._dockers: set[int] = set()

    def is_known(self, index: int) -> bool:
        """Return whether a bridge has been told of."""
        return index in self._known

    def is_new(self, index: int) -> bool:
        """Return whether a bridge is told of for the first time."""
        is_new = index not in self._known
        self._known.add(index)
        return is_new

    def is_dockers_first(self, index: int) -> bool:
        """Return whether an interface of Docker's is the first that is told to be on a bridge."""
        is_first = index not in self._dockers
        self._dockers.add(index)
        return is_first

    def forget(self, index: int) -> None:
        """Forget an interface that has gone."""
        self._known.discard(index)
        self._dockers.discard(index)


class _Netconf(nlmsg):  # type: ignore[misc] # pyroute2 has no types
    """struct netconfmsg with its attributes, linux/netconf.h."""

    fields = (("family", "B"), ("__pad", "3x"))
    nla_map = ((1, "NETCONFA_IFINDEX", "int32"), (2, "NETCONFA_FORWARDING", "int32"))


class _News(MarshalRtnl):  # type: ignore[misc]
    """Decodes what may be damage: most news of a container's start is not, and takes 0.1 ms."""

    msg_map = MarshalRtnl.msg_map | {RTM_NEWNETCONF: _Netconf}

    def __init__(self, bridges: Bridges) -> None:
        super().__init__()
        self._bridges = bridges

    def get_parser(
        self, key: int, flags: int, sequence_number: int
    ) -> Callable[[bytes, int, int], nlmsg | None]:
        parse = super().get_parser(key, flags, sequence_number)

        def parse_damage(data: bytes, offset: int, length: int) -> nlmsg | None:
            payload = data[offset + _HEADER_BYTES : offset + length]
            may_be = may_be_damage(key, payload, self._bridges)
            return parse(data, offset, length) if may_be else None

        return parse_damage


def may_be_damage(kind: int, payload: bytes, bridges: Bridges) -> bool:
    """Return whether a message has to be decoded to tell whether it is damage.

    Whatever `is_link_damage` is to take note of has to be.
    """
    if kind == RTM_DELROUTE:
        return payload[_ROUTE_TYPE] in {_UNICAST, _LOCAL}
    if kind == RTM_DELADDR:
        return not (payload[0] == socket.AF_INET6 and payload[_ADDRESS_SCOPE] == _SCOPE_LINK)
    if kind in {RTM_NEWLINK, RTM_DELLINK}:
        return _may_be_broken(payload, bridges, is_gone=kind == RTM_DELLINK)
    return kind in _NEWS


def _may_be_broken(payload: bytes, bridges: Bridges, *, is_gone: bool) -> bool:
    family, _, index, flags, _ = _IFINFO.unpack_from(payload)
    attribute, text = _NAME.unpack_from(payload, _IFINFO.size)
    begins = text if attribute == _IFNAME else b""
    if family == _AF_BRIDGE:
        return begins != b"pnh"
    is_bridge = _BRIDGE_KIND in payload
    if is_gone or not flags & IFF_UP:
        is_harmless = begins in _ENDS and (_VETH_KIND in payload if is_gone else not is_bridge)
    else:
        is_harmless = not is_bridge or bridges.is_known(index)
    return not is_harmless or ENDPOINT_ALIAS in payload


def is_link_damage(message: nlmsg, is_expected: Callable[[str], bool], bridges: Bridges) -> bool:
    """Return whether a message of rtnetlink says that something of ours may be broken.

    A bridge, whosever it is (a network may use another's): gone, down, without an address, or with
    another port, but for containers' beyond the first of a kind, for what may be reached by it
    changes with that (`driver.observed.find_uplinks`). A bridge of others that is new. A host end:
    gone, down or off its bridge. Any other link but a veth that goes: it may have had the name of a
    bridge. A route by one of our bridges that goes. Forwarding that is turned on or off, of all
    interfaces or of a bridge.
    """
    kind = message["header"]["type"]
    if kind == RTM_DELROUTE:
        return _is_lost_route(message)
    if kind == RTM_NEWNETCONF:
        return _is_forwarding(message)
    if kind == RTM_DELADDR:
        return _is_worth_keeping(message.get_attr("IFA_ADDRESS"))
    if kind == RTM_DELLINK:
        bridges.forget(message["index"])
    return _is_broken(message, is_expected, bridges, is_gone=kind == RTM_DELLINK)


def _is_broken(
    message: nlmsg, is_expected: Callable[[str], bool], bridges: Bridges, *, is_gone: bool
) -> bool:
    is_off = is_gone or not message["flags"] & IFF_UP
    if message["family"] == _AF_BRIDGE:
        return _is_new_port(message, bridges)
    name, alias = text_of(message, "IFLA_IFNAME"), text_of(message, "IFLA_IFALIAS")
    info = message.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info else None
    if kind == "bridge" and not is_off:  # told of whenever a port comes or goes
        return bridges.is_new(message["index"]) and not alias.startswith(OUR_ALIAS)
    if alias.startswith(ENDPOINT_ALIAS.decode()):
        is_off = is_off or message.get_attr("IFLA_MASTER") is None
        return is_off and not is_expected(name)
    if is_gone and kind != "veth":
        return True  # it may have had the name of one of our bridges, and kept that from coming
    return is_off and (kind == "bridge" or name.startswith(("pnu", "pnd", "pn-")))


def _is_new_port(message: nlmsg, bridges: Bridges) -> bool:
    """Return whether a bridge's word about a port may change what the bridge is taken for."""
    name = text_of(message, "IFLA_IFNAME")
    if is_dockers_port(name):
        return bridges.is_dockers_first(message.get_attr("IFLA_MASTER") or 0)
    return not name.startswith(("pnh", "veth"))


def _is_lost_route(message: nlmsg) -> bool:
    """Return whether a route that goes may have been by an interface of ours, containers' aside."""
    if message["type"] not in {_UNICAST, _LOCAL}:
        return False
    return _is_no_port(message.get_attr("RTA_OIF") or 0)


def _is_forwarding(message: nlmsg) -> bool:
    forwarding = message.get_attr("NETCONFA_FORWARDING")
    index = message.get_attr("NETCONFA_IFINDEX")
    if forwarding is None or index is None:
        return False
    return index == _ALL_INTERFACES or (index > 0 and not forwarding and _is_no_port(index))


def _is_no_port(index: int) -> bool:
    """Return whether an interface is one that containers' lives do not make and unmake."""
    try:
        name = socket.if_indextoname(index)
    except OSError:
        return False  # it has gone, which is told by itself
    return not name.startswith(("pnh", "pnc", "veth", "lo"))


def is_rule_damage(kind: int, payload: bytes) -> bool:
    """Return whether a message of nftables, caused by others, is about our tables or our rule.

    Or about a base chain of theirs, whose policy may stop what ours lets pass; of a chain that goes
    the kernel does not tell whether it was one, so only tables that go are looked at.
    """
    subsystem, verb = kind >> 8, kind & 0xFF
    if subsystem != _SUBSYSTEM or verb == _NEWGEN:
        return False
    family = payload[0]
    attributes = parse_attributes(payload, 4)
    table = parse_text(attributes.get(1, b""))  # NFTA_*_TABLE is 1 for whatever is in a table
    if family in {_INET, _BRIDGE} and table == "pynet":
        return True
    if verb == _DELTABLE or (verb == _NEWCHAIN and _CHAIN_HOOK in attributes):
        return family in {_INET, _IPV4, _IPV6}
    if family not in {_IPV4, _IPV6} or table != "filter":
        return False
    chain = parse_text(attributes.get(_CHAIN_ATTRIBUTE.get(verb, 0), b""))
    return chain == "FORWARD"


def _is_worth_keeping(address: str | None) -> bool:
    """Return whether an address is one that was given: every interface has its fe80::."""
    return address is not None and not ipaddress.ip_address(address).is_link_local


def _drain(source: socket.socket, space: mmap.mmap, is_damage: Callable[[bytes], bool]) -> bool:
    """Read all that is there; return whether any of it is damage, or too much to tell."""
    found = False
    while True:
        try:
            length = source.recv_into(space, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return found
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            log.warning("the kernel told more than could be read; looking at everything")
            found = True
            continue
        # Once it is damage the rest need not be looked at, only read.
        found = found or is_damage(space[:length])


def _open_route() -> socket.socket:
    route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    route.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    route.bind((0, sum(1 << (group - 1) for group in _GROUPS)))
    return route


def _open_rules() -> socket.socket:
    rules = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER)
    rules.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    rules.bind((0, 0))
    rules.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
    return rules
