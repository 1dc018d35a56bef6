"""Speak HTTP over a unix socket, as Docker does with its plugins and its clients."""

from __future__ import annotations

import json
import os
import socket
from contextlib import contextmanager
from http.client import HTTPConnection, IncompleteRead
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class UnixConnection(HTTPConnection):
    """An HTTP connection to a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket file."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        with _address(self._path) as address:
            self.sock.connect(address)


def request(
    path: Path, method: str, target: str, body: bytes = b"", *, timeout: float = 30
) -> tuple[int, bytes]:
    """Make one request on a connection of its own; return the status and the body.

    If the answer says that the connection ends, returns when it has: what the other side does when
    it has answered is done by then.
    """
    connection = UnixConnection(path, timeout)
    try:
        connection.request(method, target, body)
        answer = connection.getresponse()
        if not answer.will_close or answer.length is None:
            return answer.status, answer.read()
        announced, received = answer.length, answer.fp.read()
        if len(received) != announced:
            raise IncompleteRead(received, announced - len(received))
        return answer.status, received
    finally:
        connection.close()


def accepts(path: Path) -> bool:
    """Tell whether somebody listens on the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)  # a full backlog blocks
        try:
            with _address(path) as address:
                return probe.connect_ex(address) == 0
        except (FileNotFoundError, ProcessLookupError):
            return False


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """Give a socket an address of at most 107 bytes, which a managed plugin's path exceeds."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def post_json(path: Path, target: str, payload: object, *, timeout: float = 30) -> dict[str, Any]:
    """Post a JSON document, or nothing for None; return the one that answers.

    A status other than 200 is an error.
    """
    document = b"" if payload is None else json.dumps(payload).encode()
    status, body = request(path, "POST", target, document, timeout=timeout)
    if status != 200:
        raise OSError(f"POST {target}: {status}: {body.decode()}")
    answer: dict[str, Any] = json.loads(body)
    return answer
