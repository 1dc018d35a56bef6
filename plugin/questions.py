"""Be the HTTP side of what people and their monitoring ask, and of what is no request of anybody's.

Imported when the first of them comes (`plugin.app`): Flask is 7 MB, and 40 ms of a start. Knows
no policy (`driver.bridge`).
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from driver.errors import DriverError
from driver.model import parse_endpoint_id
from plugin.crew import CALLER, Caller
from plugin.desk import ANSWER_SECONDS, PERSON_SECONDS, status_of, words_of
from plugin.incoming import CONTENT_TYPE, MAX_BODY
from plugin.metrics import Observed, render_metrics
from plugin.parameters import answer_parameter_questions
from plugin.report import (
    report_advice,
    report_differences,
    report_drops,
    report_interface,
    report_networks,
)
from plugin.version import find_revision, find_version

if TYPE_CHECKING:
    from collections.abc import Callable

    from driver.bridge import BridgeDriver
    from plugin.desk import Desk
    from plugin.metrics import Signs

log = logging.getLogger("pynet")


def create_questions(desk: Desk, driver: Callable[[], BridgeDriver], signs: Signs) -> Flask:
    """Return the WSGI application for everything but Docker's calls."""
    app = Flask("pynet", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    _add_questions(app, desk, driver)
    answer_parameter_questions(app, partial(_tell, desk), driver)
    _add_signs(app, desk, driver, signs)

    @app.post("/<method>")
    def refuse_call(method: str) -> Response:
        log.warning("%s is not a method of this driver", method[:80])
        return _reply({"Err": f"no such method: {method[:80]}"}, 404)

    @app.errorhandler(HTTPException)
    def refuse(error: HTTPException) -> Response:
        log.warning("%s %s refused: %s", request.method, request.path[:80], error.name)
        return _reply({"Err": f"{error.code} {error.name}"}, error.code or 500)

    return app


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

    @app.get("/drops")
    def drops() -> Response:
        return _tell(desk, lambda: report_drops(driver().read_drops()))

    @app.get("/differences")
    def differences() -> Response:
        return _tell(desk, lambda: report_differences(driver().check()))

    @app.get("/warnings")
    def warnings() -> Response:
        return _tell(desk, lambda: report_advice(driver().advise()))

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
        def look() -> Observed:
            known = driver()
            return Observed(known.describe(), known.read_traffic(), known.read_drops().totals)

        try:
            observed = desk.run("GET /metrics", look, _caller(), ANSWER_SECONDS)
        except DriverError as error:
            log.warning("metrics without networks: %s", error)
            observed = None
        text, kind = render_metrics(
            signs.calls, signs.counts, len(signs.health.problems()), observed
        )
        return Response(text, content_type=kind)


def _tell(desk: Desk, work: Callable[[], dict[str, Any]]) -> Response:
    """Answer a question of people's."""
    try:
        words = f"{request.method} {request.path[:80]}"
        return _reply(desk.run(words, work, _caller(), PERSON_SECONDS), 200)
    except DriverError as error:
        return _reply({"Err": words_of(error)}, status_of(error))


def _caller() -> Caller:
    """Return who made the request, which the server knows."""
    caller: Caller = request.environ.get(CALLER) or Caller()
    return caller


def _reply(answer: dict[str, Any], status: int) -> Response:
    return Response(msgspec.json.encode(answer), status, content_type=CONTENT_TYPE)
