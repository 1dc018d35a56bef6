"""Encode and decode the messages between driver and relay: datagrams of lines.

The first line is a verb and what belongs to it, every other one an entry; of each entry that is
added, or told of, its socket goes along (SCM_RIGHTS). Over a Unix socket of type SOCK_SEQPACKET.

| verb | from | meaning |
|---|---|---|
| `hello PROTOCOL CODE` | relay | the first word to a driver that has come |
| `have` | relay | the entries that it serves, with their sockets |
| `ready` | relay | it has told all of them |
| `add NUMBER` | driver | serve these entries |
| `drop NUMBER` | driver | serve these no longer: let go of sockets and connections |
| `done NUMBER` | relay | that is done |
| `log` | relay | what the driver is to write to its log |
| `retire` | driver | end, but for the connections there are; another relay takes over |
| `end` | driver | end if nothing is served |
"""

from __future__ import annotations

import socket
import sys
import zlib
from os.path import dirname, join

PROTOCOL = 1  # to be raised when a driver could not speak to a relay of before, or it to one
MESSAGE_BYTES = 65536
ENTRIES = 64  # a message; the kernel passes 253 descriptors at once (SCM_MAX_FD)
FILES = ("__init__.py", "__main__.py", "relay.py", "tcp.py", "udp.py", "wire.py")


class Entry:
    """A port that is relayed: where it listens, and where to. `line` is all of it."""

    __slots__ = ("ip", "line", "port", "protocol", "proxy_protocol", "target_ip", "target_port")

    def __init__(self, line: str) -> None:
        """Parse a line; raises ValueError if it is none."""
        protocol, ip, port, target_ip, target_port, proxy_protocol = line.split(" ")
        self.line = line
        self.protocol = protocol
        self.ip = ip
        self.port = int(port)
        self.target_ip = target_ip
        self.target_port = int(target_port)
        self.proxy_protocol = proxy_protocol == "1"


def encode_entry(
    protocol: str, place: tuple[str, int], target: tuple[str, int], *, proxy_protocol: bool
) -> str:
    """Return the line of an entry."""
    return f"{protocol} {place[0]} {place[1]} {target[0]} {target[1]} {int(proxy_protocol)}"


def send(
    connection: socket.socket,
    verb: str,
    lines: list[str] | None = None,
    fds: list[int] | None = None,
) -> None:
    """Send a message; raises OSError."""
    message = "\n".join([verb, *(lines or ())]).encode()
    socket.send_fds(connection, [message], fds or [])


def receive(connection: socket.socket) -> tuple[list[str], list[str], list[int]]:
    """Return a message: the words of its first line, the other lines, descriptors.

    Raises OSError, and ConnectionError when the other side has gone.
    """
    message, fds, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, ENTRIES)
    if not message:
        raise ConnectionError("the other side has gone")
    first, *lines = message.decode(errors="replace").split("\n")
    return first.split(" "), lines, fds


def read_code_version() -> str:
    """Return a number for the relay's code as it is on the disk now."""
    number = zlib.crc32(sys.version.encode())
    for name in FILES:
        with open(join(dirname(__file__), name), "rb") as file:  # noqa: PTH118, PTH120, PTH123
            number = zlib.crc32(file.read(), number)
    return f"{number:08x}"
