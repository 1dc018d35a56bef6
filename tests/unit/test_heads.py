"""What a request becomes: a head is read once, and no request has anything of another."""

from __future__ import annotations

import pytest
from gunicorn.config import Config
from gunicorn.http.message import Request

from plugin.answer import Answer, encode_error
from plugin.heads import MOST_HEADS, Heads
from plugin.incoming import Incoming, Refused

HEAD = b"POST /NetworkDriver.Join?a=b HTTP/1.1\r\nHost: \r\nX-One: 1\r\n"
SIX = HEAD + b"Content-Length: 6\r\n\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def heads() -> Heads:
    return Heads(Config())


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Return what gunicorn has parsed until now."""
    seen: list[Request] = []
    original = Request.set_body_reader

    def note(self: Request) -> None:
        seen.append(self)
        original(self)

    monkeypatch.setattr(Request, "set_body_reader", note)
    return seen


def whole(data: bytes) -> Incoming:
    incoming = Incoming()
    assert incoming.feed(data)
    return incoming


def test_a_head_that_came_before_is_not_read_again_and_each_has_its_own_body(
    heads: Heads, parsed: list[Request]
) -> None:
    first = heads.build_environ(whole(SIX + b'{"a":1'))
    second = heads.build_environ(whole(SIX + b'{"b":2'))
    assert len(parsed) == 1
    assert (first["wsgi.input"].read(), second["wsgi.input"].read()) == (b'{"a":1', b'{"b":2')
    assert second["PATH_INFO"] == "/NetworkDriver.Join"
    assert (second["QUERY_STRING"], second["HTTP_X_ONE"]) == ("a=b", "1")


def test_what_one_request_leaves_in_its_environment_no_other_finds(heads: Heads) -> None:
    first = heads.build_environ(whole(SIX + b"123456"))
    first["secret"] = first["HTTP_X_ONE"] = "mine"
    second = heads.build_environ(whole(SIX + b"123456"))
    assert "secret" not in second
    assert second["HTTP_X_ONE"] == "1"


def test_heads_that_differ_in_a_byte_are_two(heads: Heads, parsed: list[Request]) -> None:
    for head in (SIX, SIX.replace(b"X-One: 1", b"X-One: 2"), SIX.replace(b"Join", b"join")):
        heads.build_environ(whole(head + b"123456"))
    assert len(parsed) == 3


def test_no_more_heads_are_kept_than_there_is_room_for(heads: Heads, parsed: list[Request]) -> None:
    for number in (0, *range(MOST_HEADS), 0):
        heads.build_environ(whole(b"GET /%d HTTP/1.1\r\n\r\n" % number))
    assert len(parsed) == MOST_HEADS
    heads.build_environ(whole(b"GET /more HTTP/1.1\r\n\r\n"))
    heads.build_environ(whole(b"GET /1 HTTP/1.1\r\n\r\n"))
    assert len(parsed) == MOST_HEADS + 2


def test_what_comes_behind_the_body_is_not_of_it(heads: Heads) -> None:
    environ = heads.build_environ(whole(SIX + b"123456POST /second HTTP/1.1\r\n\r\n"))
    assert environ["wsgi.input"].read() == b"123456"
    environ = heads.build_environ(whole(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n"))
    assert environ["wsgi.input"].read() == b""


def test_chunks_become_the_body_they_are_pieces_of(heads: Heads) -> None:
    for body in (b"12", b"34"):
        incoming = whole(CHUNKED + b"1\r\n%c\r\n1\r\n%c\r\n0\r\n\r\n" % (body[0], body[1]))
        assert heads.build_environ(incoming)["wsgi.input"].read() == body


@pytest.mark.parametrize(
    "request_",
    [
        HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 0000000000000000002\r\n\r\n",  # more digits than are read
        HEAD + b"Transfer-Encoding: gzip\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        HEAD.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"no colon\r\n\r\n",
        b"\r\n\r\n",
    ],
)
def test_a_head_that_is_not_clear_is_refused_each_time(heads: Heads, request_: bytes) -> None:
    for _ in range(2):
        with pytest.raises(Refused) as refusal:
            heads.build_environ(whole(request_))
        assert refusal.value.status == 400


def test_an_answer_that_is_begun_anew_has_nothing_of_the_first() -> None:
    answer = Answer()
    answer.start("200 OK", [("X-First", "1")])(b"half")
    answer.start("500 Internal Server Error", [("X-Second", "2")])(b"whole")
    head, _, body = bytes(answer.data).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert (lines[0], body) == (b"HTTP/1.1 500 Internal Server Error", b"whole")
    assert b"Connection: close" in lines
    assert b"X-Second: 2" in lines
    assert b"X-First: 1" not in lines


def test_an_error_is_in_dockers_way_and_tells_its_length() -> None:
    head, _, body = bytes(encode_error(503, "no").data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nContent-Length: 13" in head
    assert body == b'{"Err": "no"}'
