"""Read bodies, encode answers, map the driver's errors to HTTP status codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from flask import Response, request
from gunicorn.http.errors import ParseException

from driver.errors import Busy, Conflict, DriverError, InvalidRequest, NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"

# 404 is not among them: to the engine it means "the driver does not have this method", and it
# then goes on as if nothing had happened.
STATUS = (
    (InvalidRequest, 400),
    (NotFound, 400),
    (Conflict, 409),
    (Busy, 503),
    (DriverError, 500),
)


def read_body() -> bytes:
    """Return the request's body. Raises InvalidRequest where it is not what its head announces."""
    try:
        return request.get_data()
    except (OSError, ParseException) as error:  # bad chunks
        raise InvalidRequest(f"the request's body cannot be read: {error}") from error


def reply(answer: Mapping[str, Any], status: int = 200) -> Response:
    """Return an answer in JSON."""
    return Response(msgspec.json.encode(answer), status, content_type=CONTENT_TYPE)


def status_of(error: DriverError) -> int:
    """Return the HTTP status code for an error."""
    return next(status for kind, status in STATUS if isinstance(error, kind))


def describe_error(error: DriverError) -> str:
    """Return the sentence for an error: its own, and the notes added on its way."""
    return "; ".join([str(error), *getattr(error, "__notes__", ())])
