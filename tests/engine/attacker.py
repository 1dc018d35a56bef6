"""Send any frame and hear every frame, in whatever network namespace it runs in.

Reads commands, one JSON object a line, and answers each with a line:

    {"do": "listen", "interfaces": [NAME…]}      hear what comes in there from now on, for anybody
    {"do": "serve", "address": A, "port": P}     answer datagrams and connections there
    {"do": "send", "frames": [[NAME, HEX]…]}     send frames as they are, in this order
    {"do": "say", "address": A, "port": P, "data": HEX}    send a datagram by the kernel's own way
    {"do": "hear", "until": [HEX…], "timeout": SECONDS}    tell what was heard until these were

What was heard is a list of pairs: where, the interface's name or `udp ADDRESS`, `tcp ADDRESS`, and
the frame or what it carried in hexadecimal. A frame is as it was on the wire: the kernel takes the
outer VLAN tag off before anybody hears it, and here it is put back.

What the kernel hands over it has put in order of arrival for one socket, and not for several: so
when all that is waited for has been heard, whatever has arrived by then is told, too. Runs on one
CPU, so that what it sends arrives in the order in which it was sent. Uses nothing but the standard
library, for it starts often and needs no package in the namespace.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import sys
import time
from typing import Any

ETH_P_ALL = 0x0003
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
OUTGOING = 4  # PACKET_OUTGOING, linux/if_packet.h
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_AUXDATA, PACKET_MR_PROMISC = 263, 1, 8, 1
# struct tpacket_auxdata: status, len, snaplen, mac, net, the tag and its EtherType.
AUXDATA = struct.Struct("=IIIHHHH")
VLAN_VALID, VLAN_TPID_VALID = 0x10, 0x40
BUFFER = 32 << 20
LONGEST = 65536
ANSWER = b"answer to "

Heard = tuple[str, bytes]


class Attacker:
    """What one process holds: sockets to send by, sockets that hear, and what was heard."""

    def __init__(self) -> None:
        self._senders: dict[str, socket.socket] = {}
        self._sources = selectors.DefaultSelector()
        self._heard: list[Heard] = []

    def listen(self, interfaces: list[str]) -> None:
        """Hear what comes in by the interfaces from now on, whoever it is for."""
        for name in interfaces:
            hearing = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            hearing.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
            hearing.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            member = struct.pack("iHH8s", socket.if_nametoindex(name), PACKET_MR_PROMISC, 0, b"")
            hearing.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, member)
            hearing.bind((name, ETH_P_ALL))
            self._add(hearing, name, "frame")

    def serve(self, address: str, port: int) -> None:
        """Answer datagrams and connections, and take note of what they carry."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for kind, name in ((socket.SOCK_DGRAM, "udp"), (socket.SOCK_STREAM, "tcp")):
            serving = socket.socket(family, kind)
            serving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            serving.bind((address, port))
            if name == "tcp":
                serving.listen(64)
            self._add(serving, f"{name} {address}", name)

    def send(self, frames: list[tuple[str, str]]) -> None:
        """Send frames as they are, in this order."""
        for name, frame in frames:
            if name not in self._senders:
                sending = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                sending.bind((name, 0))
                self._senders[name] = sending
            self._senders[name].send(bytes.fromhex(frame))

    def say(self, address: str, port: int, data: str) -> None:
        """Send a datagram by the kernel's own way."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as saying:
            saying.sendto(bytes.fromhex(data), (address, port))

    def hear(self, until: list[str], timeout: float) -> list[tuple[str, str]]:
        """Tell what was heard since the last time, when all of these are part of it."""
        wanted = {bytes.fromhex(word) for word in until}
        deadline = time.monotonic() + timeout
        seen = 0
        while True:
            for _, what in self._heard[seen:]:
                wanted = {word for word in wanted if word not in what}
            seen = len(self._heard)
            left = deadline - time.monotonic()
            if not wanted or left <= 0:
                break
            self._take(left)
        while self._take(0):
            pass
        heard, self._heard = self._heard, []
        if wanted:
            raise TimeoutError(f"not heard: {sorted(each.hex() for each in wanted)}")
        return [(where, what.hex()) for where, what in heard]

    def _add(self, sock: socket.socket, where: str, kind: str) -> None:
        sock.settimeout(0)
        self._sources.register(sock, selectors.EVENT_READ, (where, kind))

    def _take(self, timeout: float) -> bool:
        """Take in what has arrived, waiting for it if need be; tell whether there was any."""
        before = len(self._heard)
        for key, _ in self._sources.select(timeout):
            where, kind = key.data
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            try:
                while True:
                    self._take_from(sock, where, kind)
            except BlockingIOError:
                pass
        return len(self._heard) > before

    def _take_from(self, sock: socket.socket, where: str, kind: str) -> None:
        if kind == "frame":
            data, controls, _, sender = sock.recvmsg(LONGEST, 256)
            if sender[2] != OUTGOING:
                self._heard.append((where, _with_tag(data, controls)))
        elif kind == "udp":
            data, peer = sock.recvfrom(LONGEST)
            self._heard.append((where, data))
            sock.sendto(ANSWER + data, peer)
        elif kind == "tcp":
            connection, _ = sock.accept()
            self._add(connection, where, "connection")
            self._heard.append((where, b"connected"))
        else:
            data = self._read(sock)
            if data:
                self._heard.append((where, data))

    def _read(self, connection: socket.socket) -> bytes:
        """Read from a connection and answer; when it ends, forget it."""
        try:
            data = connection.recv(LONGEST)
            if data:
                connection.send(ANSWER + data)
                return data
        except ConnectionError:
            pass
        self._sources.unregister(connection)
        connection.close()
        raise BlockingIOError


def _with_tag(data: bytes, controls: list[tuple[int, int, bytes]]) -> bytes:
    """Put the VLAN tag back that the kernel took off, if it did."""
    for level, kind, value in controls:
        if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
            status, *_, tag, ethertype = AUXDATA.unpack(value[: AUXDATA.size])
            if status & VLAN_VALID:
                ethertype = ethertype if status & VLAN_TPID_VALID else 0x8100
                return data[:12] + struct.pack("!HH", ethertype, tag) + data[12:]
    return data


def main() -> None:
    """Do what standard input says, until it ends."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    attacker = Attacker()
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        try:
            answer = {"answer": getattr(attacker, command.pop("do"))(**command)}
        except (OSError, TimeoutError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
