"""Be the HTTP side of the protocol: routes, one dispatcher, error replies, the request log.

Knows no keys of the wire (`plugin.protocol`) and no policy (`driver.bridge`).
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import msgspec
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from driver.errors import Conflict, DriverError, InvalidRequest, NotFound
from driver.model import parse_endpoint_id, short
from plugin import protocol
from plugin.report import report_differences, report_interface, report_networks
from plugin.version import find_revision, find_version

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from driver.bridge import BridgeDriver
    from driver.model import EndpointId, NetworkId

    Operation = Callable[[bytes], dict[str, Any]]

MAX_BODY = 16 * 1024 * 1024  # bytes; a CreateEndpoint with 65,535 port bindings has 6 MB
CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"
BODILESS = frozenset({"Plugin.Activate", "NetworkDriver.GetCapabilities"})

# 404 is not among them: to the engine it means "the driver does not have this method", and it
# then goes on as if nothing had happened.
STATUS = ((InvalidRequest, 400), (NotFound, 400), (Conflict, 409), (DriverError, 500))

log = logging.getLogger("pynet")


def create_app(driver: Callable[[], BridgeDriver]) -> Flask:
    """Return the WSGI application that serves the driver, which `driver` waits for.

    Activate and GetCapabilities are answered while it is still starting.
    """
    app = Flask("pynet", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    operations = build_operations(driver)

    @app.post("/<method>")
    def call(method: str) -> Response:
        return _answer(operations, method)

    @app.get("/version")
    def show_version() -> Response:
        return _reply({"version": find_version(), "revision": find_revision()}, 200)

    @app.get("/networks")
    def networks() -> Response:
        return _tell(lambda: report_networks(driver().describe()))

    @app.get("/endpoints/<identity>/interface")
    def interface(identity: str) -> Response:
        return _tell(lambda: report_interface(driver().find_interface(parse_endpoint_id(identity))))

    @app.get("/differences")
    def differences() -> Response:
        return _tell(lambda: report_differences(driver().check()))

    @app.post("/repair")
    def repair() -> Response:
        return _tell(lambda: report_differences(driver().repair_all()))

    @app.errorhandler(HTTPException)
    def refuse(error: HTTPException) -> Response:
        log.warning("%s %s refused: %s", request.method, request.path[:80], error.name)
        return _reply({"Err": f"{error.code} {error.name}"}, error.code or 500)

    return app


def _tell(look: Callable[[], dict[str, Any]]) -> Response:
    """Answer a person's question, which is none of the protocol's."""
    try:
        return _reply(look(), 200)
    except DriverError as error:
        return _reply({"Err": _words(error)}, _status_of(error))


def build_operations(driver: Callable[[], BridgeDriver]) -> Mapping[str, Operation]:
    """Return every method of the protocol and what serves it."""

    def create_network(body: bytes) -> dict[str, Any]:
        driver().create_network(protocol.decode_create_network(body))
        return {}

    def delete_network(body: bytes) -> dict[str, Any]:
        driver().delete_network(protocol.decode_network_call(body))
        return {}

    def create_endpoint(body: bytes) -> dict[str, Any]:
        new = protocol.decode_create_endpoint(body)
        return protocol.encode_create_endpoint(new, driver().create_endpoint(new))

    def join(body: bytes) -> dict[str, Any]:
        return protocol.encode_join(driver().join(protocol.decode_join(body)))

    def program_external_connectivity(body: bytes) -> dict[str, Any]:
        driver().program_external_connectivity(*protocol.decode_external_connectivity(body))
        return {}

    def endpoint_info(body: bytes) -> dict[str, Any]:
        driver().endpoint_info(*protocol.decode_endpoint_call(body))
        return {"Value": {}}

    def on_endpoint(
        choose: Callable[[BridgeDriver], Callable[[NetworkId, EndpointId], None]],
    ) -> Operation:
        def serve(body: bytes) -> dict[str, Any]:
            choose(driver())(*protocol.decode_endpoint_call(body))
            return {}

        return serve

    def discover(body: bytes) -> dict[str, Any]:
        protocol.decode_discovery(body)
        return {}

    return {
        "Plugin.Activate": lambda _: {"Implements": ["NetworkDriver"]},
        "NetworkDriver.GetCapabilities": lambda _: {
            "Scope": "local",
            "ConnectivityScope": "local",
            "GwAllocChecker": True,
        },
        "NetworkDriver.GwAllocCheck": lambda body: protocol.encode_gw_alloc_check(
            protocol.decode_gw_alloc_check(body)
        ),
        "NetworkDriver.CreateNetwork": create_network,
        "NetworkDriver.DeleteNetwork": delete_network,
        "NetworkDriver.CreateEndpoint": create_endpoint,
        "NetworkDriver.DeleteEndpoint": on_endpoint(lambda ready: ready.delete_endpoint),
        "NetworkDriver.EndpointOperInfo": endpoint_info,
        "NetworkDriver.Join": join,
        "NetworkDriver.Leave": on_endpoint(lambda ready: ready.leave),
        "NetworkDriver.ProgramExternalConnectivity": program_external_connectivity,
        "NetworkDriver.RevokeExternalConnectivity": on_endpoint(
            lambda ready: ready.revoke_external_connectivity
        ),
        "NetworkDriver.DiscoverNew": discover,
        "NetworkDriver.DiscoverDelete": discover,
    }


def _answer(operations: Mapping[str, Operation], method: str) -> Response:
    operation = operations.get(method)
    if operation is None:
        log.warning("%s is not a method of this driver", method[:80])
        return _reply({"Err": f"no such method: {method[:80]}"}, 404)
    began = time.perf_counter()
    body = request.get_data()
    try:
        _check_body(method, body)
        answer, status = operation(body), 200
    except DriverError as error:
        answer, status = {"Err": _words(error)}, _status_of(error)
    except Exception as error:
        log.exception("%s failed in a way that pynet does not expect", method)
        answer, status = {"Err": f"pynet has a defect: {error!r}"}, 500
    _log(method, body, answer.get("Err"), time.perf_counter() - began)
    return _reply(answer, status)


def _check_body(method: str, body: bytes) -> None:
    if not body and method not in BODILESS:
        raise InvalidRequest(
            "the request has no body: a connection broke, and the engine repeated the call "
            "without it"
        )


def _words(error: DriverError) -> str:
    return "; ".join([str(error), *getattr(error, "__notes__", ())])


def _status_of(error: DriverError) -> int:
    return next(status for kind, status in STATUS if isinstance(error, kind))


def _log(method: str, body: bytes, failure: str | None, seconds: float) -> None:
    subject = protocol.decode_subject(body)
    words = [method.rpartition(".")[2]]
    if subject.network_id:
        words.append(f"network={_printable(subject.network_id)}")
    if subject.endpoint_id:
        words.append(f"endpoint={_printable(subject.endpoint_id)}")
    outcome = "ok" if failure is None else f"failed: {' '.join(failure.split())}"
    level = logging.INFO if failure is None else logging.WARNING
    log.log(level, "%s %s %.1f ms", " ".join(words), outcome, seconds * 1000)


def _printable(identity: str) -> str:
    """Return the short id as it can stand in a log line, whatever the request says."""
    return ascii(short(identity))[1:-1]


def _reply(answer: dict[str, Any], status: int) -> Response:
    return Response(msgspec.json.encode(answer), status, content_type=CONTENT_TYPE)
