"""Put an answer into bytes, RFC 9112; each ends its connection. Sends none, decides no status."""

from __future__ import annotations

import json
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING

from plugin.incoming import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

STATUS_LINES = {each.value: f"{each.value} {each.phrase}" for each in HTTPStatus}


class Answer:
    """What is left to send of an answer."""

    def __init__(self) -> None:
        self.data = bytearray()

    def start(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: tuple[type[BaseException], BaseException, TracebackType] | None = None,  # noqa: ARG002
    ) -> Callable[[bytes], object]:
        """Begin the answer, or begin it anew; this is the `start_response` of PEP 3333."""
        fields = "".join([f"{name}: {value}\r\n" for name, value in headers])
        head = (
            f"HTTP/1.1 {status}\r\nDate: {formatdate(usegmt=True)}\r\n"
            f"Connection: close\r\n{fields}\r\n"
        )
        self.data[:] = head.encode("latin-1")
        return self.data.extend


def encode_error(status: int, error: str) -> Answer:
    """Return the answer that says in Docker's way why there is no other."""
    body = json.dumps({"Err": error}).encode()
    answer = Answer()
    headers = [("Content-Type", CONTENT_TYPE), ("Content-Length", str(len(body)))]
    answer.start(STATUS_LINES[status], headers)
    answer.data += body
    return answer
