"""When a request has come as a whole, in whatever pieces it comes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.incoming import MAX_BODY, MOST_HEAD, Incoming, Refused

HEAD = b"POST /NetworkDriver.Join HTTP/1.1\r\nHost: \r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = [
    b"GET /networks HTTP/1.1\r\n\r\n",
    HEAD + b"Content-Length: 0\r\n\r\n",
    HEAD + b"content-length:7\r\n\r\n\r\n\r\n{}\n",
    CHUNKED + b"0\r\n\r\n",
    HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n",
    HEAD + b"Content-Length: 2\r\nContent-Length: 9\r\n\r\n",
    CHUNKED + b"2\r\n{}\r\n0\r\n\r\n",
    CHUNKED + b'A;why="x"\r\n0\r\n\r\n67890\r\n01\r\n!\r\n000\r\nTrailer: 1\r\nAnother: 2\r\n\r\n',
]


def verdict(pieces: list[bytes]) -> list[bool | int]:
    """Return what was said of each piece; a refusal by its status, and the last."""
    incoming = Incoming()
    said: list[bool | int] = []
    for piece in pieces:
        try:
            said.append(incoming.feed(piece))
        except Refused as refusal:
            return [*said, refusal.status]
    return said


@pytest.mark.parametrize("request_", WHOLE)
def test_a_request_is_whole_with_its_last_byte(request_: bytes) -> None:
    single = [bytes([byte]) for byte in request_]
    assert verdict(single) == [False] * (len(single) - 1) + [True]


@given(st.sampled_from(WHOLE), st.lists(st.integers(0, 120)))
def test_the_pieces_do_not_matter(request_: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(request_), *(cut for cut in cuts if cut < len(request_))})
    pieces = [request_[start:end] for start, end in pairwise(places)]
    assert verdict(pieces) == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (HEAD + b"Content-Length: %d\r\n\r\n" % (MAX_BODY + 1), 413),
        (HEAD + b"Content-Length: 99999999999999999\r\n\r\n", 413),
        (CHUNKED + b"%x\r\n" % (MAX_BODY + 1), 413),
        (CHUNKED + b"100000\r\n" + bytes(0x100000) + b"\r\n%x\r\n" % MAX_BODY, 413),
        (CHUNKED + b"0\r\n" + b"a: b\r\n" * MOST_HEAD, 431),
        (HEAD + b"a: " + b"b" * MOST_HEAD, 431),
        (b"x" * MOST_HEAD, 431),
        (b"hello\n", 400),
        (b"\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", 400),
        (b"PRI * HTTP/2.0\r\n", 400),
        (b"get / HTTP/1.1\r\n", 400),
        (CHUNKED + b"-1\r\n", 400),
        (CHUNKED + b"0x5\r\n", 400),
        (CHUNKED + b"\r\n", 400),
        (CHUNKED + b"f" * 300, 400),
    ],
)
def test_what_is_refused_before_it_is_whole(request_: bytes, status: int) -> None:
    assert verdict([request_])[-1] is not True
    assert verdict([request_])[-1] == status


@given(st.binary(max_size=300), st.sampled_from([b"", HEAD, CHUNKED, HEAD + b"Content-Length: "]))
def test_nothing_is_beyond_it(noise: bytes, before: bytes) -> None:
    said = verdict([before + noise])[0]
    assert isinstance(said, bool) or said in {400, 413, 431}
