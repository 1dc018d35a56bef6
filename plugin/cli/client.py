"""Call the admin API on the driver's socket."""

from __future__ import annotations

import socket
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any

import msgspec

from driver.diagnosis.facts import Drift
from plugin.cli.errors import AskError, DriverDown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TIMEOUT_SECONDS = 10.0


def ask_driver(path: Path, what: str) -> dict[str, Any]:
    """Return what the driver answers to a GET on its socket.

    Raises DriverDown if there is no answer, AskError if the driver says why it cannot tell.
    """
    return _request(path, "GET", what, None)


def tell_driver(path: Path, what: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the driver answers to a POST on its socket; raises the same."""
    return _request(path, "POST", what, body)


def _request(path: Path, verb: str, what: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
    connection = _UnixConnection(path)
    try:
        connection.request(verb, what, None if body is None else msgspec.json.encode(body))
        response = connection.getresponse()
        answer = msgspec.json.decode(response.read(), type=dict[str, Any])
    except OSError as error:
        raise DriverDown(
            f"ask the driver on {path}: {error.strerror or error}; is it running?"
        ) from error
    except (HTTPException, msgspec.MsgspecError) as error:
        raise DriverDown(f"ask the driver on {path}: that is no pynet: {error}") from error
    finally:
        connection.close()
    if response.status != HTTPStatus.OK:
        raise AskError(str(answer.get("Err", response.reason)))
    return answer


def ask_drift(path: Path) -> tuple[tuple[Drift, ...], tuple[str, ...]]:
    """Return what the driver says differs, and what was not seen if it cannot tell."""
    try:
        found = ask_driver(path, "/differences")["differences"]
    except AskError as error:
        return (), (f"what differs ({error})",)
    return tuple(Drift(each["kind"], each["subject"], each["text"]) for each in found), ()


def find_interface(path: Path, endpoint: Mapping[str, Any]) -> str | None:
    """Return what an endpoint's interface is called in its container, None if it has none now."""
    answer = ask_driver(path, f"/endpoints/{endpoint['id']}/interface")
    name: str | None = answer.get("sandbox_end")
    return name


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("pynet", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
