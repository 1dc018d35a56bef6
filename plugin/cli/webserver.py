"""Serve the map to the browser of who started it, and to nobody else.

On a loopback address only. The URL holds a secret, for whoever is on the machine can connect; it
becomes a cookie, for a page elsewhere can make a browser ask but not bring that along. A name that
leads to the loopback address does not help it either: the Host header must be one of ours.
"""

from __future__ import annotations

import secrets
import socket
import threading
from contextlib import closing, contextmanager
from hmac import compare_digest
from typing import TYPE_CHECKING, Any

import msgspec
from flask import Flask, Response, abort, request
from werkzeug.exceptions import MethodNotAllowed
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from plugin.cli import Failure
from plugin.cli.live import LiveMap
from plugin.cli.output import print_line
from plugin.cli.signals import ending
from plugin.cli.webpage import KINDS, PAGE, make_visible, read_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from driver.linux.inside import Inside
    from plugin.cli.live import Choose


HOSTS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
METHODS = ("GET", "HEAD")
ENTRANCE = "enter"
MOST_CONNECTIONS = 16
SLOW_SECONDS = 10.0  # for a request to come, and for an answer to be taken
HTTP_PORT = 80  # which a browser leaves out
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; object-src 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """Decides who is answered: by the host that was asked for, the method, and the secret."""

    def __init__(self, port: int, secret: str) -> None:
        self.secret = secret
        # Cookies are not kept apart by port: two maps must not take each other's.
        self.cookie = f"pynet-map-{port}"
        self._hosts = {f"{name}:{port}" for name in NAMES}
        if port == HTTP_PORT:
            self._hosts |= NAMES

    def check(self) -> None:
        """Abort a request that is not to be answered; Flask calls it in front of each."""
        if request.headers.get("Host", "").lower() not in self._hosts:
            abort(403, "this is not for another host")
        if request.method not in METHODS:
            raise MethodNotAllowed(METHODS)
        if request.endpoint != ENTRANCE:
            self.check_secret(request.cookies.get(self.cookie, ""))

    def check_secret(self, given: str) -> None:
        """Abort unless it is the secret."""
        if not compare_digest(given.encode(errors="replace"), self.secret.encode()):
            abort(403, "open the URL that pynet map has printed")

    def enter(self, given: str) -> Response:
        """Exchange the secret in the URL for a cookie, so that the page has a URL without."""
        self.check_secret(given)
        response = Response(status=303, headers={"Location": "/"})
        response.set_cookie(self.cookie, self.secret, httponly=True, samesite="Strict")
        return response


def create_app(
    answer: Callable[[str], bytes], look_into: Callable[[str], Inside | None], guard: Guard
) -> Flask:
    """Return the page's application.

    `answer` gives the map in JSON to who has some version of it, `look_into` what is in a
    container's namespace.
    """
    app = Flask(__name__, static_folder=None)
    page = {name: read_file(name) for name in KINDS}
    app.before_request(guard.check)
    app.add_url_rule("/open/<given>", ENTRANCE, guard.enter)

    @app.get("/map.json")
    def current() -> Response:
        return Response(answer(request.args.get("have", "")), mimetype="application/json")

    @app.get("/container.json")
    def container() -> Response:
        inside = make_visible(msgspec.to_builtins(look_into(request.args.get("name", ""))))
        return Response(msgspec.json.encode({"inside": inside}), mimetype="application/json")

    @app.get("/", defaults={"name": PAGE})
    @app.get("/<name>")
    def file(name: str) -> Response:
        if name not in page:
            abort(404)
        return Response(page[name], mimetype=KINDS[name])

    @app.after_request
    def protect(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response

    return app


def serve_map(choose: Choose, port: int, *, is_ipv6: bool) -> None:
    """Serve the page until a signal comes; 0 is a port that the kernel chooses."""
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    with closing(listen(family, port)) as own, LiveMap(choose) as live:
        host, number = HOSTS[family], own.getsockname()[1]
        secret = secrets.token_urlsafe(32)
        app = create_app(live.answer, live.look_into, Guard(number, secret))
        with serving(own, app), ending() as ended:
            place = f"[{host}]:{number}" if is_ipv6 else f"{host}:{number}"
            print_line(f"http://{place}/open/{secret}")
            print_line(
                f"for a browser on this machine, or after: ssh -L {number}:{place} "
                f"{socket.gethostname()}; Ctrl-C ends it",
                err=True,
            )
            ended.wait()


def listen(family: socket.AddressFamily, port: int) -> socket.socket:
    """Return a socket that listens on the loopback address, and nowhere else."""
    own = socket.socket(family, socket.SOCK_STREAM)
    try:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind((HOSTS[family], port))
        own.listen(MOST_CONNECTIONS)
    except OSError as error:
        own.close()
        raise Failure(f"listen on {HOSTS[family]} port {port}: {error.strerror}") from error
    return own


@contextmanager
def serving(own: socket.socket, app: Flask) -> Iterator[None]:
    """Answer on a socket that listens, over the block."""
    host, port = own.getsockname()[:2]
    server = _Server(host, port, app, _Handler, fd=own.fileno())
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="page")
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadedWSGIServer):
    """A server with a bounded number of connections; who comes when they are used up is let go."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(*args, **kwargs)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, unless there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and let another in."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


class _Handler(WSGIRequestHandler):
    """A connection that is not waited for without end, and whose URLs are not logged: one tells."""

    timeout = SLOW_SECONDS

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Write nothing."""

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - the parent's name
        """Write nothing: a client that is slow or confused is no news."""

    def version_string(self) -> str:
        """Return no versions of anything."""
        return "pynet"
