"""Notice when somebody else damages our links or rules, as the kernel tells it; mends nothing.

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
import sys
import threading
from typing import TYPE_CHECKING

from driver.linux.netlink import parse_attributes, parse_messages, parse_number, parse_text
from driver.linux.waiting import wait_readable
from driver.observed import is_dockers_port

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from driver.health import Health

    Sockets = Mapping[socket.socket, Callable[[bytes], bool]]

OUR_ALIAS, ENDPOINT_ALIAS = b"pynet ", b"pynet endpoint "
WATCHING = "monitor"  # the key of that in what health tells
# IFLA_INFO_KIND "bridge" as it is in a message: of a bridge, and not of a bridge's port.
_BRIDGE_KIND = struct.pack("=HH", 11, 1) + b"bridge\0"
RETRY_SECONDS = 0.1  # after a failure
BUFFER_BYTES = 4 * 1024 * 1024  # a flushed ruleset of 5,000 elements is some 1 MB of messages

# include/uapi/linux/rtnetlink.h, if_link.h, if_addr.h
_RTM_NEWLINK, _RTM_DELLINK, _RTM_DELADDR, _RTM_DELROUTE = 16, 17, 21, 25
_RTM_NEWNETCONF = 80
# RTNLGRP_LINK, …_IPV4_IFADDR, …_IPV4_ROUTE, …_IPV6_IFADDR, …_IPV6_ROUTE, …_NETCONF
_GROUPS = (1, 5, 7, 9, 11, 24, 25)
_IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_IFALIAS = 3, 10, 18, 20
_IFLA_INFO_KIND = 1
_IFA_ADDRESS = 1
_RTA_OIF, _UNICAST, _LOCAL, _ROUTE_HEAD, _ROUTE_TYPE = 4, 1, 2, 12, 7  # RTN_…, struct rtmsg
_NETCONFA_IFINDEX, _NETCONFA_FORWARDING, _ALL_INTERFACES = 1, 2, -1  # linux/netconf.h
_IFF_UP = 1
_AF_BRIDGE = 7  # a bridge's word about one of its ports
# include/uapi/linux/netfilter/nfnetlink.h, nf_tables.h, netfilter.h
_NETLINK_NETFILTER = 12
_NFNLGRP_NFTABLES = 7
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
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
            is_link_damage(each.kind, each.body, self._is_expected, self._bridges)
            for each in parse_messages(datagram)
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

    def is_new(self, index: int) -> bool:
        """Tell whether a bridge is told of for the first time."""
        is_new = index not in self._known
        self._known.add(index)
        return is_new

    def is_dockers_first(self, index: int) -> bool:
        """Tell whether an interface of Docker's is the first that is told to be on a bridge."""
        is_first = index not in self._dockers
        self._dockers.add(index)
        return is_first

    def forget(self, index: int) -> None:
        """Forget an interface that has gone."""
        self._known.discard(index)
        self._dockers.discard(index)


def is_link_damage(
    kind: int,
    payload: bytes,
    is_expected: Callable[[str], bool],
    bridges: Bridges,
) -> bool:
    """Tell whether a message of rtnetlink says that something of ours may be broken.

    A bridge, of whomever (a network may use somebody's): gone, down, without an address, or with
    another port, but for containers' beyond the first of a kind, for what may be reached by it
    changes with that (`driver.observed.find_uplinks`). A bridge of others that is new. A host end:
    gone, down or off its bridge. Any other link but a veth that goes: it may have had the name of a
    bridge. A route by one of our bridges that goes. Forwarding that is turned on or off, of all
    interfaces or of a bridge.
    """
    if kind == _RTM_DELROUTE:
        return _is_lost_route(payload)
    if kind == _RTM_NEWNETCONF:
        return _is_forwarding(payload)
    if kind == _RTM_DELADDR:
        return _is_worth_keeping(parse_attributes(payload, 8).get(_IFA_ADDRESS, b""))
    if kind == _RTM_DELLINK:
        bridges.forget(_IFINFO.unpack_from(payload)[2])
        return _is_broken(payload, is_expected, bridges, is_gone=True)
    return kind == _RTM_NEWLINK and _is_broken(payload, is_expected, bridges, is_gone=False)


def _is_broken(
    payload: bytes, is_expected: Callable[[str], bool], bridges: Bridges, *, is_gone: bool
) -> bool:
    family, _, index, flags, _ = _IFINFO.unpack_from(payload)
    is_off = is_gone or not flags & _IFF_UP
    if family == _AF_BRIDGE:
        return _is_new_port(payload, bridges)
    if _BRIDGE_KIND in payload and not is_off:  # told of whenever a port comes or goes
        return bridges.is_new(index) and OUR_ALIAS not in payload
    if not is_off and ENDPOINT_ALIAS not in payload:
        return False  # most of what comes with a container: 40 attributes, not to be taken apart
    attributes = parse_attributes(payload, _IFINFO.size)
    name = parse_text(attributes.get(_IFLA_IFNAME, b""))
    if attributes.get(_IFLA_IFALIAS, b"").startswith(ENDPOINT_ALIAS):
        return (is_off or _IFLA_MASTER not in attributes) and not is_expected(name)
    info = parse_attributes(attributes.get(_IFLA_LINKINFO, b""))
    kind = parse_text(info.get(_IFLA_INFO_KIND, b""))
    if is_gone and kind != "veth":
        return True  # it may have had the name of one of our bridges, and kept that from coming
    return is_off and (kind == "bridge" or name.startswith(("pnu", "pnd", "pn-")))


def _is_new_port(payload: bytes, bridges: Bridges) -> bool:
    """Tell whether a bridge's word about a port may change what the bridge is taken for."""
    attributes = parse_attributes(payload, _IFINFO.size)
    name = parse_text(attributes.get(_IFLA_IFNAME, b""))
    if is_dockers_port(name):
        return bridges.is_dockers_first(parse_number(attributes.get(_IFLA_MASTER)))
    return not name.startswith(("pnh", "veth"))


def _is_lost_route(payload: bytes) -> bool:
    """Tell whether a route that goes may have been by an interface of ours, containers' aside."""
    if payload[_ROUTE_TYPE] not in {_UNICAST, _LOCAL}:
        return False
    index = parse_number(parse_attributes(payload, _ROUTE_HEAD).get(_RTA_OIF))
    return _is_no_port(index)


def _is_forwarding(payload: bytes) -> bool:
    attributes = parse_attributes(payload, 4)  # struct netconfmsg: the family
    forwarding = attributes.get(_NETCONFA_FORWARDING)
    index = attributes.get(_NETCONFA_IFINDEX)
    if forwarding is None or index is None:
        return False
    number = int.from_bytes(index, sys.byteorder, signed=True)
    return number == _ALL_INTERFACES or (number > 0 and not any(forwarding) and _is_no_port(number))


def _is_no_port(index: int) -> bool:
    """Tell whether an interface is one that containers' lives do not make and unmake."""
    try:
        name = socket.if_indextoname(index)
    except OSError:
        return False  # it has gone, which is told by itself
    return not name.startswith(("pnh", "pnc", "veth", "lo"))


def is_rule_damage(kind: int, payload: bytes) -> bool:
    """Tell whether a message of nftables, caused by others, is about our tables or our rule.

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


def _is_worth_keeping(address: bytes) -> bool:
    """Tell whether an address is one that somebody gave: every interface has its fe80::."""
    return len(address) in {4, 16} and not ipaddress.ip_address(address).is_link_local


def _drain(source: socket.socket, space: mmap.mmap, is_damage: Callable[[bytes], bool]) -> bool:
    """Read all that is there; tell whether any of it is damage, or too much to tell."""
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
    rules = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
    )
    rules.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    rules.bind((0, 0))
    rules.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
    return rules
