"""Try a flow from a network namespace, as an application would; and whether large packets pass."""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from driver.diagnosis.facts import CONNECTED, REFUSED, SILENT
from driver.model import Protocol

if TYPE_CHECKING:
    from driver.model import IPAddress

# include/uapi/linux/in.h and in6.h; Python has no names for them.
_IP_MTU_DISCOVER, _IP_MTU, _IPV6_MTU_DISCOVER, _IPV6_MTU, _DO = 10, 14, 23, 24, 2
_QUESTION = b"\0"  # what a UDP port is asked with: whoever knows no such thing may still answer


def try_flow(ip: IPAddress, protocol: Protocol, port: int, seconds: float) -> tuple[str, float]:
    """Return what comes of one attempt, and after how many seconds.

    `connected`, `refused`, `silent`, or the words of the error. A UDP port that does not answer is
    silent, which is no proof that nobody is there. For a thread in the namespace.
    """
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6  # noqa: PLR2004
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    began = time.monotonic()
    with socket.socket(family, kind) as caller:
        caller.settimeout(seconds)
        try:
            caller.connect((str(ip), port))
            if protocol is not Protocol.TCP:
                caller.send(_QUESTION)
                caller.recv(1)
            outcome = CONNECTED
        except TimeoutError:
            outcome = SILENT
        except OSError as error:
            outcome = (
                REFUSED if error.errno == errno.ECONNREFUSED else os.strerror(error.errno or 0)
            )
            if error.errno in {errno.EHOSTUNREACH, errno.ETIMEDOUT}:
                outcome = SILENT  # nobody has answered ARP
    return outcome, time.monotonic() - began


def send_large(ip: IPAddress, port: int, mtu: int, seconds: float) -> bool:
    """Send a datagram as large as an interface takes; return whether somebody says it is too large.

    That is how a sender learns of a smaller link on the way (RFC 1191, RFC 8201). For a thread in
    the namespace.
    """
    is_ipv4 = ip.version == 4  # noqa: PLR2004
    level = socket.IPPROTO_IP if is_ipv4 else socket.IPPROTO_IPV6
    discover, known = (_IP_MTU_DISCOVER, _IP_MTU) if is_ipv4 else (_IPV6_MTU_DISCOVER, _IPV6_MTU)
    headers = (20 if is_ipv4 else 40) + 8
    with socket.socket(socket.AF_INET if is_ipv4 else socket.AF_INET6, socket.SOCK_DGRAM) as caller:
        caller.setsockopt(level, discover, _DO)
        caller.settimeout(seconds)
        try:
            caller.connect((str(ip), port))
            caller.send(bytes(mtu - headers))
            caller.recv(1)
        except OSError:  # silence, a refusal, or EMSGSIZE: what was learned says which
            return caller.getsockopt(level, known) < mtu
        return False


def count_too_large() -> int:
    """Return how many packets the thread's namespace has not passed on, for they were too large."""
    lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    head, values = (line.split() for line in lines[:2])
    of_ipv6 = Path("/proc/thread-self/net/snmp6")
    found = of_ipv6.read_text().split() if of_ipv6.exists() else []
    counts = dict(zip(found[::2], found[1::2], strict=True))
    return int(values[head.index("FragFails")]) + int(counts.get("Ip6InTooBigErrors", 0))
