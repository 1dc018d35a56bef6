"""Connections that say half a sentence, none, or nonsense: they keep nobody else from an answer."""

from __future__ import annotations

import json
import resource
import socket
import time
from contextlib import ExitStack, suppress
from http.client import HTTPResponse
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

import pytest

from plugin.api import MAX_BODY
from plugin.server import THREADS
from plugin.worker import ANSWERED_SECONDS, READ_SECONDS
from tests.engine.wait import wait_until
from tests.kernel.server import HEAD, TICK, Server, endpoint, ids, join, network, receive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STANDARD = 3  # descriptors, which every process has: its input, output and errors
SLOW = 200
IDLE = 600
# Seconds: a call takes some milliseconds, and who waits for connections that say nothing, or half
# a sentence, waits READ_SECONDS and a second at most.
PROMPTLY = 0.8 * READ_SECONDS
PUT_OFF = 2 * READ_SECONDS
LONG = 30  # seconds, for what comes when its time has come
SMALL = MAX_BODY // 8
START = b"POST /NetworkDriver.Join HTTP/1.1\r\nHost: \r\n"
CHUNKED = START + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "server") as lent:
        assert lent.call("CreateNetwork", network(1)) == (200, {})
        yield lent


def live(server: Server, number: int = 1) -> float:
    """Have a container's life; return the longest that one of its calls took."""
    return max(
        server.timed(name, call)[0]
        for name, call in (
            ("CreateEndpoint", endpoint(number)),
            ("Join", join(number, "/run/none")),
            ("EndpointOperInfo", ids(number)),
            ("Leave", ids(number)),
            ("DeleteEndpoint", ids(number)),
        )
    )


def say(connection: socket.socket, what: bytes) -> None:
    """Send it all, to a server that may have heard enough."""
    try:
        connection.sendall(what)
    except OSError:
        return


def test_slow_connections_keep_nobody_waiting(server: Server) -> None:
    done = Event()
    with ExitStack() as stack:
        slow = [stack.enter_context(server.connect()) for _ in range(SLOW)]

        def drip() -> None:
            for turn in range(10**6):
                for connection in slow:
                    say(connection, START[turn % len(START) : turn % len(START) + 1])
                if done.wait(0.05):
                    return

        dripping = Thread(target=drip)
        dripping.start()
        try:
            slowest = max(live(server) for _ in range(3))
            print(f"\nslowest call beside {SLOW} slow connections: {slowest * 1000:.0f} ms")
            assert slowest < PUT_OFF
            began = time.monotonic()
            for connection in slow:
                wait_for_end(connection)
            assert time.monotonic() - began < PUT_OFF
        finally:
            done.set()
            dripping.join()
    assert server.call("DeleteEndpoint", ids(1)) == (200, {})


def test_who_does_not_hang_up_keeps_nobody_waiting(server: Server) -> None:
    with ExitStack() as stack:
        for _ in range(SLOW):
            silent = stack.enter_context(server.send("DeleteEndpoint", ids(9)))
            silent.shutdown(socket.SHUT_WR)
            stack.enter_context(server.send("DeleteEndpoint", ids(9)))
        assert live(server) < PROMPTLY  # behind 400 requests
        assert live(server) < PROMPTLY


def test_who_hangs_up_at_once_leaves_nothing(server: Server) -> None:
    wait_until(lambda: sockets(server) == 0, LONG, "no connection left")
    for _ in range(SLOW):
        server.connect().close()
        with server.connect() as half:
            half.sendall(START)
    wait_until(lambda: sockets(server) == 0, LONG, "no connection left")
    assert live(server) < PROMPTLY


def sockets(server: Server) -> int:
    """Count the connections that the server has open."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return sum(line.endswith(str(server.socket)) for line in lines) - 1  # less its own


def wait_for_end(connection: socket.socket) -> None:
    """Wait for the end of a connection, with an answer or without. Raises TimeoutError."""
    with suppress(ConnectionResetError):
        while connection.recv(65536):
            pass


def test_idle_connections_keep_nobody_waiting_for_long(server: Server) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(server.connect()) for _ in range(IDLE)]
        assert live(server) < PUT_OFF
        assert live(server) < PROMPTLY
        for connection in idle:
            wait_for_end(connection)


def test_a_request_that_comes_in_pieces_is_served_and_keeps_nobody_waiting(server: Server) -> None:
    body = b'{"Options": {}}'
    whole = HEAD % (b"GwAllocCheck", len(body)) + body
    for cut in (0, 1, len(whole) - 1):
        slow = server.connect()
        slow.sendall(whole[:cut])
        assert live(server) < PROMPTLY
        slow.sendall(whole[cut:])
        assert receive(slow)[0] == 200


def test_without_a_free_descriptor_it_goes_on_as_soon_as_there_is_one(server: Server) -> None:
    before = resource.prlimit(server.worker, resource.RLIMIT_NOFILE)
    worker = server.worker
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (STANDARD, before[1]))
    try:
        waiting = server.send("GwAllocCheck", {"Options": {}})
        wait_until(lambda: "accept connections: Too many" in server.log(), LONG, "its line")
    finally:
        resource.prlimit(worker, resource.RLIMIT_NOFILE, before)
    assert receive(waiting)[0] == 200
    assert live(server) < PROMPTLY
    assert server.workers == [worker]


NONSENSE = [
    (bytes(100) + b"\n", 400),
    (b"\r\n\r\n", 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n" * 20, 400),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    (b"GET / HTTP/9.9\r\n\r\n", 400),
    (b"GET  / HTTP/1.1\r\n\r\n", 400),
    (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", 414),
    (START + b"Content-Length: many\r\n\r\n", 400),
    (START + b"Content-Length: -1\r\n\r\n", 400),
    (START + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
    (START + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", 400),
    (START + b"Transfer-Encoding: gzip\r\n\r\n{}", 400),
    (START + b"no colon\r\n\r\n", 400),
    (START + b"a\x00b: c\r\n\r\n", 400),
    (START + b" folded: c\r\n\r\n", 400),
    (START + b"a: b\r\n" * 200 + b"\r\n", 431),
    (CHUNKED + b"zz\r\n", 400),
    (CHUNKED + b"2\r\n{}xx0\r\n\r\n", 400),
    (CHUNKED + b"3\r\n{}\r\n0\r\n\r\n", 400),
    (START + b"Content-Length: %d\r\n\r\n" % (MAX_BODY + 1), 413),
    (CHUNKED + b"2\r\n{}\r\n0\r\n\r\n", 400),  # good HTTP, and a bad Join
    (START + b"Content-Length: 0\r\n\r\n", 400),  # a repeat without its body
    (b"BREW /NetworkDriver.Join HTTP/1.1\r\n\r\n", 405),
    (b"GET /nowhere HTTP/1.1\r\n\r\n", 405),
    (b"POST /%ff%00 HTTP/1.1\r\n\r\n", 404),
    (b"POST / HTTP/1.1\r\n\r\n", 404),
]


def test_nonsense_gets_an_error_and_one_line_in_the_log(server: Server) -> None:
    for said, expected in NONSENSE:
        before = len(server.log().splitlines())
        connection = server.connect()
        say(connection, said)
        with connection:
            answer = HTTPResponse(connection)
            answer.begin()
            assert answer.status == expected, said
        lines = wait_until(lambda: server.log().splitlines()[before:], LONG, "its line")  # noqa: B023
        assert [line.split()[2] for line in lines] == ["WARNING"], lines
    assert live(server) < PROMPTLY


def test_a_call_of_a_later_engine_is_refused_when_it_has_been_heard_to_its_end(
    server: Server,
) -> None:
    """One that is cut off is taken for a driver that has broken down, and is made again."""
    refusal = {"Err": "no such method: NetworkDriver.Foresee"}
    assert server.call("Foresee", {"Options": "x" * SMALL}) == (404, refusal)
    assert live(server) < PROMPTLY


def test_what_never_ends_is_ended(server: Server) -> None:
    """Headers of any length, and a chunk that is larger than a body may be."""
    for said in (START + b"a: " + b"b" * 70_000, CHUNKED + b"%x\r\n" % (MAX_BODY + 1)):
        with server.connect() as connection:
            say(connection, said)
            began = time.monotonic()
            wait_for_end(connection)
            assert time.monotonic() - began < PUT_OFF
    assert live(server) < PROMPTLY


def test_a_body_in_chunks_is_read_to_its_end(server: Server) -> None:
    body = json.dumps(network(2)).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:9], body[9:]))
    connection = server.connect()
    say(connection, CHUNKED.replace(b"Join", b"CreateNetwork") + chunks + b"0\r\n\r\n")
    assert receive(connection) == (200, {})
    assert server.call("CreateEndpoint", endpoint(1, of=2))[0] == 200


def pieces(body: bytes) -> Iterator[bytes]:
    """Yield a request whose body comes in many chunks."""
    yield CHUNKED
    for start in range(0, len(body), 65536):
        piece = body[start : start + 65536]
        yield b"%x\r\n%s\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def whole(body: bytes) -> Iterator[bytes]:
    """Yield a request whose body comes in one."""
    yield START + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize("request_of", [pieces, whole])
def test_a_body_of_the_most_bytes_is_read_to_its_end(
    server: Server, request_of: Callable[[bytes], Iterator[bytes]]
) -> None:
    """In time that grows with it and no faster: its own, which nothing beside it makes longer."""
    spent: dict[int, float] = {}
    for size in (SMALL, SMALL, MAX_BODY):
        cpu = server.cpu_seconds()
        connection = server.connect()
        for part in request_of(b'{"NetworkID": "%s"}' % (b"f" * (size - 19))):
            say(connection, part)
        status, answer = receive(connection)
        assert status == 400, answer  # it is the last byte that makes a bad Join of it
        spent[size] = min(server.cpu_seconds() - cpu, spent.get(size, LONG))
    print(f"\n{MAX_BODY >> 20} MB: {spent[MAX_BODY]:.2f} s of the processor")
    assert spent[MAX_BODY] < 3 * (MAX_BODY / SMALL) * max(spent[SMALL], 2 * TICK)
    assert live(server) < PROMPTLY


def test_who_does_not_read_the_answer_is_given_up(server: Server) -> None:
    wide = network(2) | {"IPv4Data": [{"Pool": "10.99.0.0/16", "Gateway": "10.99.0.1/16"}]}
    assert server.call("CreateNetwork", wide)[0] == 200
    for number in range(2, 1200):
        address = {"Address": f"10.99.{number // 250}.{number % 250 + 2}/16"}
        call = {**ids(number, of=2), "Interface": address, "Options": {}}
        assert server.call("CreateEndpoint", call)[0] == 200
    _, answer = server.get("/networks")
    with ExitStack() as stack:
        deaf = [stack.enter_context(server.connect()) for _ in range(THREADS + 8)]
        assert len(answer) > deaf[0].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        for connection in deaf:
            connection.sendall(b"GET /networks HTTP/1.1\r\n\r\n")
        assert all(connection.recv(1, socket.MSG_PEEK) for connection in deaf[:THREADS])
        assert live(server) < 2 * ANSWERED_SECONDS
        wait_until(lambda: sockets(server) == 0, LONG, "no connection left")
    assert server.get("/networks") == (200, answer)


def test_http_as_the_first_engines_speak_it(server: Server) -> None:
    for version, host in ((b"1.1", b"Host: \r\n"), (b"1.0", b""), (b"1.1", b"Host: plugin\r\n")):
        with server.connect() as connection:
            connection.sendall(b"POST /Plugin.Activate HTTP/" + version + b"\r\n" + host + b"\r\n")
            answer = HTTPResponse(connection)
            answer.begin()
            assert answer.status == 200
            assert answer.getheader("Connection") == "close"
            assert answer.read() == b'{"Implements":["NetworkDriver"]}'
