"""Try a flow from a network namespace, as an application would."""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import TYPE_CHECKING

from driver.model import Protocol

if TYPE_CHECKING:
    from driver.model import IPAddress

CONNECTED, REFUSED, SILENT = "connected", "refused", "silent"
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
