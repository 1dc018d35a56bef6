"""Relay UDP: a socket towards the container for each client."""

from __future__ import annotations

import errno
import select
import socket
import struct
import time

from driver.relay.tcp import Loop, Owner
from driver.relay.wire import Entry

FLOW_SECONDS = 90.0  # without a datagram, as docker-proxy's UDPConnTrackTimeout
MAX_FLOWS = 1000  # of one port; the one that has been silent for longest makes way
DATAGRAMS = 64  # at a time, before others have their turn
DATAGRAM_BYTES = 65535
CONTROL_BYTES = 64

IP_PKTINFO = 8  # include/uapi/linux/in.h
IPV6_RECVPKTINFO, IPV6_PKTINFO = 49, 50  # include/uapi/linux/in6.h
IN_PKTINFO = struct.Struct("=i4s4s")  # interface, address to answer from, destination
IN6_PKTINFO = struct.Struct("=16si")

# (client's address, what the answer is to say of its source)
Key = tuple[tuple[object, ...], bytes]


class Flow(Owner):
    """The datagrams of one client, and those that come back for it."""

    __slots__ = ("key", "last", "listener", "socket")

    def __init__(self, listener: UdpListener, key: Key) -> None:
        """Open a socket to the container. Raises OSError."""
        entry = listener.entry
        family = socket.AF_INET6 if ":" in entry.target_ip else socket.AF_INET
        self.listener = listener
        self.key = key
        self.last = 0.0
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.settimeout(0.0)
        try:
            self.socket.connect((entry.target_ip, entry.target_port))
        except OSError:
            self.socket.close()
            raise
        listener.loop.add(self.socket, self, select.EPOLLIN)

    def __str__(self) -> str:
        return f"a flow of {self.listener}"

    def handle(self, number: int, mask: int) -> None:
        """Hand the container's answers to the client."""
        del number, mask
        for _ in range(DATAGRAMS):
            try:
                datagram = self.socket.recv(DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError:  # no socket listens in the container, yet or any more
                return
            self.listener.answer(self, datagram)

    def fail(self) -> None:
        """End."""
        self.listener.end(self)


class UdpListener(Owner):
    """A port at which datagrams arrive; broadcast and multicast ones, too."""

    def __init__(self, loop: Loop, entry: Entry, bound: socket.socket) -> None:
        self.loop = loop
        self.entry = entry
        self.socket = bound
        self._flows: dict[Key, Flow] = {}  # the longest silent first
        if ":" in entry.ip:
            self._level, self._kind = socket.IPPROTO_IPV6, IPV6_PKTINFO
            bound.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
        else:
            self._level, self._kind = socket.IPPROTO_IP, IP_PKTINFO
            bound.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        bound.settimeout(0.0)
        loop.add(bound, self, select.EPOLLIN)

    def __str__(self) -> str:
        return f"[{self.entry.ip}]:{self.entry.port}/udp"

    def handle(self, number: int, mask: int) -> None:
        """Hand clients' datagrams to the container."""
        del number, mask
        for _ in range(DATAGRAMS):
            try:
                datagram, control, _, client = self.socket.recvmsg(DATAGRAM_BYTES, CONTROL_BYTES)
            except BlockingIOError:
                return
            except OSError:  # what came back for an answer, such as "port unreachable"
                continue
            key = (client, self._source(control))
            try:
                flow = self._flows.pop(key, None) or self._begin(key)
                flow.last = time.monotonic()
                self._flows[key] = flow
                flow.socket.send(datagram)
            except OSError as error:  # lost, as on any way
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self.loop.log(f"{self}: a datagram is lost: {error.strerror}")

    def _begin(self, key: Key) -> Flow:
        if len(self._flows) >= MAX_FLOWS:
            self.end(next(iter(self._flows.values())))
        self.loop.time(self)
        return Flow(self, key)

    def _source(self, control: list[tuple[int, int, bytes]]) -> bytes:
        """Return what an answer is to say of its source: the address that the client has asked.

        Of a broadcast or multicast the kernel chooses one.
        """
        for level, kind, data in control:
            if (level, kind) != (self._level, self._kind):
                continue
            if kind == IP_PKTINFO:
                return IN_PKTINFO.pack(0, IN_PKTINFO.unpack(data)[1], bytes(4))
            address, interface = IN6_PKTINFO.unpack(data)
            if address[0] == 0xFF:  # noqa: PLR2004 - multicast
                return IN6_PKTINFO.pack(bytes(16), interface)
            is_link_local = address[0] == 0xFE and address[1] & 0xC0 == 0x80  # noqa: PLR2004
            return IN6_PKTINFO.pack(address, interface if is_link_local else 0)
        return b""

    def answer(self, flow: Flow, datagram: bytes) -> None:
        """Send a datagram to a flow's client."""
        client, source = flow.key
        flow.last = time.monotonic()
        self._flows[flow.key] = self._flows.pop(flow.key)
        control = [(self._level, self._kind, source)] if source else []
        try:
            self.socket.sendmsg([datagram], control, 0, client)
        except OSError:  # lost, as on any way
            return

    def end(self, flow: Flow) -> None:
        """Forget a flow."""
        if self._flows.pop(flow.key, None) is not None:
            self.loop.close(flow.socket)

    def tick(self, now: float) -> bool:
        """End what has been silent for long."""
        for flow in tuple(self._flows.values()):
            if flow.last + FLOW_SECONDS > now:
                break
            self.end(flow)
        return bool(self._flows)

    def fail(self) -> None:
        """Go on: whatever was wrong was wrong with one datagram."""

    def close(self) -> None:
        """Let go of the socket and of all flows."""
        for flow in tuple(self._flows.values()):
            self.end(flow)
        self.loop.remove(self.socket)
        self.socket.close()
