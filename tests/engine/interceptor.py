"""Stand between Docker and the driver, so that a test can act at every single call.

The driver gets another socket (`BEHIND`); Docker's calls come to the interceptor, which passes them
on. It changes nothing in them.
"""

from __future__ import annotations

from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingMixIn, UnixStreamServer
from threading import Thread
from typing import TYPE_CHECKING, Any

from tests.engine.driver import SOCKET
from tests.engine.unixhttp import request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.engine.engine import Engine

    Forward = Callable[[], tuple[int, bytes]]
    # Gets the call's name and what passes it on; returns the reply, or None for a lost one.
    Action = Callable[[str, Forward], tuple[int, bytes] | None]

BEHIND = "/run/docker/plugins/pynet-behind"  # a folder that the managed plugin reaches


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    act: Action
    engine: Engine


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def forward() -> tuple[int, bytes]:
            driver = self.server.engine.driver
            assert driver is not None
            return request(driver.socket, "POST", self.path, body)

        reply = self.server.act(self.path.rpartition(".")[2], forward)
        if reply is not None:
            status, answer = reply
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's word
        """Say nothing: the driver logs every call."""


@contextmanager
def intercepted(engine: Engine, act: Action) -> Iterator[None]:
    """Have `act` decide about every call of Docker's inside the block."""
    assert engine.driver is not None
    engine.driver.terminate()
    engine.start_driver(env={"PYNET_SOCKET": BEHIND})
    path = engine.outside / SOCKET.lstrip("/")
    with _Server(str(path), _Handler) as server:
        server.act, server.engine = act, engine
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            engine.driver.terminate()
            path.unlink()
            engine.start_driver()
