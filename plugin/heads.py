"""Make of a request that has come the environment that WSGI describes, PEP 3333; serves nothing.

What is good HTTP gunicorn decides. It reads a head once however often it comes: Docker's calls of
a kind differ in their bodies, and what a head means is a sixth of a call that does nothing.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from gunicorn import http
from gunicorn.http import wsgi
from gunicorn.http.errors import NoMoreData, ParseException

from plugin.incoming import Refused

if TYPE_CHECKING:
    import socket
    from wsgiref.types import WSGIEnvironment

    from gunicorn.config import Config
    from gunicorn.http.body import Body
    from gunicorn.http.message import Request

    from plugin.incoming import Incoming

MOST_HEADS = 128  # ten calls, by the length of their bodies; a head has 64 KiB at most
PIECE = 65536  # bytes
CLIENT = ""  # who is at the other end of a unix socket has no name
SERVER = "localhost"


class Heads:
    """The heads that have come lately, and what they mean."""

    def __init__(self, settings: Config) -> None:
        self._settings = settings
        self._environ_of = lru_cache(MOST_HEADS)(self._build_environ)

    def build_environ(self, incoming: Incoming) -> WSGIEnvironment:
        """Return the environment of a whole request. Raises Refused where it is no good HTTP."""
        try:
            environ = self._environ_of(incoming.head).copy()
            if "HTTP_TRANSFER_ENCODING" in environ:
                body = cast("Body", self._parse(bytes(incoming.data)).body).read()
            else:
                body = incoming.cut_body(int(environ.get("CONTENT_LENGTH") or 0))
        except (NoMoreData, StopIteration, ParseException) as error:
            raise Refused(400, str(error)) from error
        environ["wsgi.input"] = io.BytesIO(body)
        return environ

    def _build_environ(self, head: bytes) -> WSGIEnvironment:
        """Return what is the same for every request with this head."""
        request = self._parse(head)
        sink = cast("socket.socket", _Sink())
        _, environ = wsgi.create(request, sink, CLIENT, SERVER, self._settings)
        # They would write to a socket, and hold on to the request.
        del environ["gunicorn.socket"], environ["wsgi.early_hints"], environ["wsgi.input"]
        environ["wsgi.multithread"] = True
        return cast("WSGIEnvironment", environ)

    def _parse(self, data: bytes) -> Request:
        # gunicorn copies, at each chunk of a body, all the rest of the piece that it is in.
        pieces = [data[start : start + PIECE] for start in range(0, len(data), PIECE)]
        parser: Any = http.get_parser(self._settings, pieces, CLIENT)
        return cast("Request", next(parser))


class _Sink:
    """Stands where gunicorn looks for a socket."""

    def send(self, interim: bytes) -> None:
        """Lose a `100 Continue`, for by now everything is here."""
