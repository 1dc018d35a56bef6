"""The HTTP API on the driver's socket: a Flask application of Docker's and the admin's calls."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from driver.counts import Counts
from driver.health import Health
from plugin.api.admin import build_admin_api
from plugin.api.deadline import Deadline
from plugin.api.docker import build_docker_api
from plugin.api.metrics import Metrics
from plugin.api.reply import reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from driver.driver import BridgeDriver

MAX_BODY = 16 * 1024 * 1024  # bytes; a CreateEndpoint with 65,535 port bindings has 6 MB

log = logging.getLogger("pynet")


def create_app(
    driver: Callable[[], BridgeDriver],
    health: Health | None = None,
    counts: Counts | None = None,
) -> Flask:
    """Return the application that serves the driver.

    `driver` returns it, and waits while it is starting. What needs none of its state (Activate,
    GetCapabilities, /health) is answered meanwhile.
    """
    health = health or Health()
    deadline = Deadline(driver, health)
    metrics = Metrics(counts or Counts(), health)
    app = Flask("pynet", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    app.register_blueprint(build_docker_api(deadline, metrics))
    app.register_blueprint(build_admin_api(deadline, health, metrics))

    @app.post("/<method>")
    def refuse_method(method: str) -> Response:
        log.warning("%s is not a method of this driver", method[:80])
        return reply({"Err": f"no such method: {method[:80]}"}, 404)

    @app.errorhandler(HTTPException)
    def refuse(error: HTTPException) -> Response:
        log.warning("%s %s refused: %s", request.method, request.path[:80], error.name)
        return reply({"Err": f"{error.code} {error.name}"}, error.code or 500)

    return app
