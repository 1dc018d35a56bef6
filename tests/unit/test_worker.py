"""When a connection counts as served: the end of the driver waits for those that do not."""

from __future__ import annotations

import selectors
import socket
from typing import TYPE_CHECKING, Any, cast

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger

import plugin.worker
from plugin.worker import Connection, Worker
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from wsgiref.types import StartResponse, WSGIEnvironment

REQUEST = b"GET / HTTP/1.1\r\n\r\n"


def serve(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    return (b"a", b"b")


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    config = Config()
    config.set("worker_tmp_dir", str(tmp_path))
    made = Worker(0, 0, [], None, 0, config, Logger(config))
    made.poller = selectors.DefaultSelector()
    made.wsgi = cast("Any", serve)
    with made.poller:
        yield made
    made.tmp.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
        made.listen()
        yield made


def ask(worker: Worker, listener: socket.socket) -> bytes:
    """Return all that comes for a request."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(listener.getsockname())
        client.sendall(REQUEST)
        worker.accept(listener)
        return b"".join(iter(lambda: client.recv(4096), b""))


def test_a_connection_is_served_until_its_answer_is_sent(
    worker: Worker, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Watched(Connection):
        def send(self) -> None:
            seen.append(worker.nr_conns)
            super().send()

        def close(self, *_: Any) -> None:
            seen.append(worker.nr_conns)
            super().close()

    monkeypatch.setattr(plugin.worker, "Connection", Watched)
    assert ask(worker, listener).endswith(b"\r\n\r\nab")
    wait_until(lambda: worker.nr_conns == 0, 5, "the connection to be no more")
    assert seen == [1, 1]


def test_what_an_application_has_begun_is_closed_even_if_it_fails(
    worker: Worker, listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    closed: list[bool] = []

    class Pieces:
        def __iter__(self) -> Iterator[bytes]:
            yield b"half"
            raise KeyError("the rest")

        def close(self) -> None:
            closed.append(True)

    def fail(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return Pieces()

    worker.wsgi = cast("Any", fail)
    answer = ask(worker, listener)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"half" not in answer
    assert closed == [True]
    assert "does not expect" in caplog.text


def test_nobody_accepts_any_more_once_that_is_said(worker: Worker, listener: socket.socket) -> None:
    worker.sockets = [listener]
    worker.set_accept_enabled(True)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(listener.getsockname())
        client.sendall(REQUEST)
        assert b"".join(iter(lambda: client.recv(4096), b"")).endswith(b"\r\n\r\nab")
    worker.set_accept_enabled(False)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.getsockname())
        client.sendall(REQUEST)
        accepted, _ = listener.accept()  # so it has been left to whoever comes next
        with accepted:
            assert accepted.recv(4096) == REQUEST


def test_what_fails_after_the_answer_is_logged(
    worker: Worker, listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    class Pieces(list[bytes]):
        def close(self) -> None:
            raise KeyError("the rest")

    def succeed(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return Pieces([b"all"])

    worker.wsgi = cast("Any", succeed)
    assert ask(worker, listener).endswith(b"\r\n\r\nall")
    assert "what follows an answer failed" in caplog.text
    wait_until(lambda: worker.nr_conns == 0, 5, "the connection to be no more")


def test_what_the_accepting_thread_has_read_counts_as_unfinished(
    worker: Worker, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin.worker, "MOST_BYTES", 1000)
    queue = worker.method_queue
    queue.init()
    worker.poller.register(cast("int", queue.fileno()), selectors.EVENT_READ, queue.run_callbacks)
    worker.sockets = [listener]
    worker.set_accept_enabled(True)
    begun = b"POST / HTTP/1.1\r\nContent-Length: 9000\r\n\r\n" + bytes(600)
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        for client in (first, second):
            client.settimeout(10)
            client.connect(listener.getsockname())
            client.sendall(begun)
        wait_until(lambda: look(worker, first, second), 5, "one to be refused")
    queue.close()


def look(worker: Worker, *clients: socket.socket) -> bool:
    """Have the loop look once; tell whether a client has an answer then."""
    worker.wait_for_and_dispatch_events(0.01)
    with selectors.DefaultSelector() as answers:
        for client in clients:
            answers.register(client, selectors.EVENT_READ)
        return bool(answers.select(0))
