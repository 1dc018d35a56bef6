"""Tell when a request has come as a whole, and cut it in two; reads nothing, and parses little.

Whether it is good HTTP is for the parser, which never waits for more: what is here is all there is.
"""

from __future__ import annotations

import re

MAX_BODY = 16 * 1024 * 1024  # bytes; a CreateEndpoint with 65,535 port bindings has 6 MB
MOST_HEAD = 64 * 1024  # bytes of request line and headers; an engine sends 300
MOST_SIZE_LINE = 256  # bytes of the line before a chunk
CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"
END_OF_HEAD = b"\r\n\r\n"

REQUEST_LINE = re.compile(rb"[A-Z]{1,20} \S+ HTTP/1\.[01]\r?\n")
LENGTH = re.compile(rb"(?im)^content-length:[ \t]*(\d{1,18})[ \t]*\r$")
CODING = re.compile(rb"(?im)^transfer-encoding:[ \t]*(.*?)[ \t]*\r$")
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")


class Refused(Exception):  # noqa: N818 - it is what happens to the request
    """The request is not served: an HTTP status, and the reason in words."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Incoming:
    """One request, as far as it has come."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._body: int | None = None  # where it begins
        self._needed: int | None = None  # bytes of the whole, where the head tells
        self._chunk = 0  # where the next chunk begins
        self._chunks = 0  # bytes in the chunks so far

    @property
    def head(self) -> bytes:
        """Return the request line and the headers, of a request that has come as a whole."""
        return bytes(self.data[: self._body])

    def cut_body(self, length: int) -> bytes:
        """Return the body, which has this many bytes by its head. Raises Refused if it has not."""
        start = self._body or 0
        body = bytes(self.data[start : start + length])
        if len(body) != length:
            raise Refused(400, f"the body has {len(body)} bytes, and {length} by the headers")
        return body

    def feed(self, piece: bytes) -> bool:
        """Add what has come; returns whether that is all. Raises Refused."""
        seen = len(self.data)
        self.data += piece
        if self._body is None and not self._find_head(seen):
            return False
        if self._needed is not None:
            return len(self.data) >= self._needed
        return self._has_all_chunks()

    def _find_head(self, seen: int) -> bool:
        end = self.data.find(END_OF_HEAD, max(seen - len(END_OF_HEAD), 0), MOST_HEAD)
        if end < 0:
            if len(self.data) >= MOST_HEAD:
                raise Refused(431, f"the headers have more than {MOST_HEAD} bytes")
            if b"\n" in self.data and not REQUEST_LINE.match(self.data):
                raise Refused(400, "this is no HTTP request")
            return False
        self._body = self._chunk = end + len(END_OF_HEAD)
        head = bytes(self.data[: self._body])
        codings, lengths = CODING.findall(head), LENGTH.findall(head)
        if [coding.lower() for coding in codings] != [b"chunked"] or lengths:
            # What contradicts itself is complete at once, for the parser to refuse it.
            length = int(lengths[0]) if len(lengths) == 1 and not codings else 0
            self._check_size(length)
            self._needed = self._body + length
        return True

    def _has_all_chunks(self) -> bool:
        """Tell whether the chunks have come to their end, RFC 9112 section 7.1."""
        while True:
            line = CHUNK_SIZE.match(self.data, self._chunk)
            if line is None:
                rest = self.data[self._chunk : self._chunk + MOST_SIZE_LINE]
                if b"\n" in rest or len(rest) == MOST_SIZE_LINE:
                    raise Refused(400, "the body is not in chunks as it claims to be")
                return False
            size = int(line[1], 16)
            if size == 0:
                # An empty line ends what follows the last chunk, or is all of it.
                trailer = line.end() - 2
                if len(self.data) - trailer > MOST_HEAD:
                    raise Refused(431, f"the trailers have more than {MOST_HEAD} bytes")
                return self.data.find(END_OF_HEAD, trailer) >= 0
            after = line.end() + size + 2
            self._check_size(self._chunks + size)
            if len(self.data) < after:
                return False
            self._chunk, self._chunks = after, self._chunks + size

    @staticmethod
    def _check_size(size: int) -> None:
        if size > MAX_BODY:
            raise Refused(413, f"the body has more than {MAX_BODY} bytes")
