"""Be the HTTP side of the protocol: routes, one dispatcher, error replies, the request log.

Knows no keys of the wire (`plugin.protocol`) and no policy (`driver.bridge`).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from driver.counts import Counts
from driver.errors import Busy, Conflict, DriverError, InvalidRequest, NotFound
from driver.health import Health
from driver.lock import Request
from driver.model import parse_endpoint_id, short
from plugin import protocol
from plugin.crew import CALLER, Caller, Deadlines
from plugin.incoming import CONTENT_TYPE, MAX_BODY
from plugin.metrics import Calls, render_metrics
from plugin.parameters import answer_parameter_questions
from plugin.report import report_differences, report_interface, report_networks
from plugin.version import find_revision, find_version

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from driver.bridge import BridgeDriver
    from driver.model import EndpointId, NetworkId, Traffic
    from plugin.metrics import State

    Operation = Callable[[bytes], dict[str, Any]]

T = TypeVar("T")

BODILESS = frozenset({"Plugin.Activate", "NetworkDriver.GetCapabilities"})
DRIVERLESS = BODILESS | {
    "NetworkDriver.GwAllocCheck",
    "NetworkDriver.DiscoverNew",
    "NetworkDriver.DiscoverDelete",
}

# Docker holds the container's lock while it waits, and waits for ever: every request is answered.
# One that cannot begin in time never does, so that nothing happens behind Docker's back.
BEGIN_SECONDS = 3.0
ANSWER_SECONDS = 4.5
# A flood is worked off for longer, unless something hangs; what has waited gets a moment, still.
QUEUE_SECONDS = 8.0
PERSON_SECONDS = 9.0  # nobody holds a lock of Docker's for a person; `pynet` waits 10 s
MOMENT_SECONDS = 1.0  # to begin, and half as much to end

# 404 is not among them: to the engine it means "the driver does not have this method", and it
# then goes on as if nothing had happened.
STATUS = (
    (InvalidRequest, 400),
    (NotFound, 400),
    (Conflict, 409),
    (Busy, 503),
    (DriverError, 500),
)

log = logging.getLogger("pynet")


def create_app(
    driver: Callable[[], BridgeDriver],
    health: Health | None = None,
    counts: Counts | None = None,
) -> Flask:
    """Return the WSGI application that serves the driver, which `driver` waits for.

    Activate and GetCapabilities are answered while it is still starting.
    """
    app = Flask("pynet", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    operations = build_operations(driver)
    health, counts, calls = health or Health(), counts or Counts(), Calls()
    desk = Desk(driver, Deadlines(health))

    @app.post("/<method>")
    def call(method: str) -> Response:
        return _answer(operations, desk, calls, method)

    _add_questions(app, desk, driver)
    answer_parameter_questions(app, partial(_tell, desk), driver)
    _add_signs(app, desk, driver, Signs(calls, counts, health))

    @app.errorhandler(HTTPException)
    def refuse(error: HTTPException) -> Response:
        log.warning("%s %s refused: %s", request.method, request.path[:80], error.name)
        return _reply({"Err": f"{error.code} {error.name}"}, error.code or 500)

    return app


@dataclass(frozen=True, slots=True)
class Signs:
    """What tells how the driver is doing."""

    calls: Calls
    counts: Counts
    health: Health


def _add_questions(app: Flask, desk: Desk, driver: Callable[[], BridgeDriver]) -> None:
    """Add what the command line asks."""

    @app.get("/version")
    def show_version() -> Response:
        return _reply({"version": find_version(), "revision": find_revision()}, 200)

    @app.get("/networks")
    def networks() -> Response:
        return _tell(desk, lambda: report_networks(driver().describe()))

    @app.get("/endpoints/<identity>/interface")
    def interface(identity: str) -> Response:
        def look() -> dict[str, Any]:
            return report_interface(driver().find_interface(parse_endpoint_id(identity)))

        return _tell(desk, look)

    @app.get("/differences")
    def differences() -> Response:
        return _tell(desk, lambda: report_differences(driver().check()))

    @app.post("/repair")
    def repair() -> Response:
        return _tell(desk, lambda: report_differences(driver().repair_all()))


def _add_signs(app: Flask, desk: Desk, driver: Callable[[], BridgeDriver], signs: Signs) -> None:
    """Add what monitoring asks."""

    @app.get("/health")
    def show_health() -> Response:
        # Without the driver, which may be what is wrong.
        problems = signs.health.problems()
        status = "unhealthy" if problems else "ok"
        return _reply({"status": status, "problems": problems}, 503 if problems else 200)

    @app.get("/metrics")
    def show_metrics() -> Response:
        def look() -> tuple[State, Mapping[str, Traffic]]:
            return driver().describe(), driver().read_traffic()

        try:
            state, traffic = desk.run("GET /metrics", look, _caller(), ANSWER_SECONDS)
        except DriverError as error:
            log.warning("metrics without networks: %s", error)
            state, traffic = None, {}
        text, kind = render_metrics(
            signs.calls, signs.counts, len(signs.health.problems()), state, traffic
        )
        return Response(text, content_type=kind)


class Desk:
    """Has a request's work done by the driver, in the time that Docker may be kept waiting.

    All time counts from the arrival of the request, also what it spent in a queue, except for what
    it waits for a driver that is starting.
    """

    def __init__(self, driver: Callable[[], BridgeDriver], deadlines: Deadlines) -> None:
        self._driver = driver
        self._deadlines = deadlines

    def run(
        self,
        words: str,
        work: Callable[[], T],
        caller: Caller,
        answer_seconds: float,
    ) -> T:
        """Return what `work` returns; raises Busy if it cannot begin or end in time."""
        arrived, now = caller.arrived, time.monotonic()
        if now - arrived > (BEGIN_SECONDS if self._deadlines.is_stuck else QUEUE_SECONDS):
            raise Busy("the driver has too much to do at once; try again")
        ready = self._driver()
        arrived += time.monotonic() - now
        moment = time.monotonic() + MOMENT_SECONDS
        serving = Request(words, begin_by=max(arrived + BEGIN_SECONDS, moment))
        answer_by = max(arrived + answer_seconds, moment + MOMENT_SECONDS / 2)

        def serve() -> T:
            with ready.serving(serving):
                return work()

        return self._deadlines.run(serve, serving, caller, answer_by)


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


def _answer(operations: Mapping[str, Operation], desk: Desk, calls: Calls, method: str) -> Response:
    operation = operations.get(method)
    if operation is None:
        log.warning("%s is not a method of this driver", method[:80])
        return _reply({"Err": f"no such method: {method[:80]}"}, 404)
    began = time.perf_counter()
    body = request.get_data()
    words = _name(method, body)

    def work() -> dict[str, Any]:
        return operation(body)

    try:
        _check_body(method, body)
        answer = (
            work() if method in DRIVERLESS else desk.run(words, work, _caller(), ANSWER_SECONDS)
        )
        status = 200
    except DriverError as error:
        answer, status = {"Err": _words(error)}, _status_of(error)
    except Exception as error:
        log.exception("%s failed in a way that pynet does not expect", method)
        answer, status = {"Err": f"pynet has a defect: {error!r}"}, 500
    seconds = time.perf_counter() - began
    calls.add(method.rpartition(".")[2], status, seconds)
    _log(words, answer.get("Err"), seconds)
    return _reply(answer, status)


def _tell(desk: Desk, work: Callable[[], dict[str, Any]]) -> Response:
    """Answer a question of people's."""
    try:
        words = f"{request.method} {request.path[:80]}"
        return _reply(desk.run(words, work, _caller(), PERSON_SECONDS), 200)
    except DriverError as error:
        return _reply({"Err": _words(error)}, _status_of(error))


def _caller() -> Caller:
    """Return who made the request, which the server knows."""
    caller: Caller = request.environ.get(CALLER) or Caller()
    return caller


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


def _name(method: str, body: bytes) -> str:
    """Return what the request is called in the log and in errors about it."""
    subject = protocol.decode_subject(body)
    words = [method.rpartition(".")[2]]
    if subject.network_id:
        words.append(f"network={_printable(subject.network_id)}")
    if subject.endpoint_id:
        words.append(f"endpoint={_printable(subject.endpoint_id)}")
    return " ".join(words)


def _log(words: str, failure: str | None, seconds: float) -> None:
    outcome = "ok" if failure is None else f"failed: {' '.join(failure.split())}"
    level = logging.INFO if failure is None else logging.WARNING
    log.log(level, "%s %s %.1f ms", words, outcome, seconds * 1000)


def _printable(identity: str) -> str:
    """Return the short id as it can stand in a log line, whatever the request says."""
    return ascii(short(identity))[1:-1]


def _reply(answer: dict[str, Any], status: int) -> Response:
    return Response(msgspec.json.encode(answer), status, content_type=CONTENT_TYPE)
