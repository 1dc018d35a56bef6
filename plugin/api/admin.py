"""Routes of the admin API: what `pynet` and monitoring ask, and `pynet set`.

Docker never calls these. Names are Docker's to know: here everything goes by its id.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
from flask import Blueprint, Response, request

from driver.errors import DriverError, InvalidRequest
from driver.model import parse_endpoint_id, parse_network_id, short
from driver.options import parse_change
from plugin.api import report
from plugin.api.deadline import ADMIN_SECONDS, DOCKER_SECONDS
from plugin.api.metrics import observe
from plugin.api.reply import describe_error, read_body, reply, status_of
from plugin.version import find_revision, find_version

if TYPE_CHECKING:
    from collections.abc import Callable

    from driver.driver import BridgeDriver
    from driver.health import Health
    from plugin.api.deadline import Deadline
    from plugin.api.metrics import Metrics

    Ask = Callable[[Callable[[BridgeDriver], dict[str, Any]]], Response]

log = logging.getLogger("pynet")


class ChangeBody(msgspec.Struct, forbid_unknown_fields=True):
    """What POST /networks/ID/options asks for."""

    set: dict[str, str] = {}
    unset: list[str] = []


def build_admin_api(deadline: Deadline, health: Health, metrics: Metrics) -> Blueprint:
    """Return the routes; `deadline` runs what needs the driver."""
    api = Blueprint("admin", __name__)

    def ask(work: Callable[[BridgeDriver], dict[str, Any]]) -> Response:
        words = f"{request.method} {request.path[:80]}"
        try:
            return reply(deadline.run(words, work, ADMIN_SECONDS))
        except DriverError as error:
            return reply({"Err": describe_error(error)}, status_of(error))

    @api.get("/version")
    def version() -> Response:
        return reply({"version": find_version(), "revision": find_revision()})

    @api.get("/health")
    def show_health() -> Response:
        # Without the driver, which may be what is wrong.
        problems = health.problems()
        status = "unhealthy" if problems else "ok"
        return reply({"status": status, "problems": problems}, 503 if problems else 200)

    @api.get("/metrics")
    def show_metrics() -> Response:
        observed = None
        try:
            observed = deadline.run("GET /metrics", observe, DOCKER_SECONDS)
        except DriverError as error:
            log.warning("metrics without networks: %s", error)
        text, content_type = metrics.render(observed)
        return Response(text, content_type=content_type)

    _add_networks(api, ask)
    _add_sysctls(api, ask)
    return api


def _add_networks(api: Blueprint, ask: Ask) -> None:
    @api.get("/networks")
    def networks() -> Response:
        return ask(lambda driver: report.report_networks(driver.describe()))

    @api.post("/networks/<identity>/options")
    def change_options(identity: str) -> Response:
        try:
            wanted = _parse_change(read_body())
        except InvalidRequest as error:
            return reply({"Err": describe_error(error)}, status_of(error))
        return ask(lambda driver: _change(driver, identity, wanted))

    @api.get("/endpoints/<identity>/interface")
    def interface(identity: str) -> Response:
        return ask(
            lambda driver: {"sandbox_end": driver.find_interface(parse_endpoint_id(identity))}
        )

    @api.get("/drops")
    def drops() -> Response:
        return ask(lambda driver: report.report_drops(driver.read_drops()))

    @api.get("/rules")
    def rules() -> Response:
        return ask(lambda driver: report.report_rules(driver.read_rules()))

    @api.get("/differences")
    def differences() -> Response:
        return ask(lambda driver: report.report_differences(driver.check()))

    @api.get("/warnings")
    def warnings() -> Response:
        return ask(lambda driver: report.report_advice(driver.advise()))

    @api.post("/repair")
    def repair() -> Response:
        return ask(lambda driver: report.report_differences(driver.repair_all()))


def _add_sysctls(api: Blueprint, ask: Ask) -> None:
    @api.get("/networks/<identities>/sysctls")
    def of_networks(identities: str) -> Response:
        everything = request.args.get("all") == "1"

        def look(driver: BridgeDriver) -> dict[str, Any]:
            ids = map(parse_network_id, identities.split(","))
            return report.report_rows(driver.sysctl_report.of_networks(*ids, everything=everything))

        return ask(look)

    @api.get("/endpoints/<identity>/sysctls")
    def of_endpoint(identity: str) -> Response:
        everything = request.args.get("all") == "1"
        return ask(
            lambda driver: report.report_rows(
                driver.sysctl_report.of_endpoint(parse_endpoint_id(identity), everything=everything)
            )
        )

    @api.get("/endpoints/<identity>/sysctls/actual")
    def actual(identity: str) -> Response:
        return ask(
            lambda driver: dict(driver.sysctl_report.read_endpoint(parse_endpoint_id(identity)))
        )

    @api.get("/sysctls")
    def of_host() -> Response:
        return ask(lambda driver: dict(msgspec.to_builtins(driver.sysctl_report.of_host())))


def _parse_change(body: bytes) -> ChangeBody:
    try:
        return msgspec.json.decode(body, type=ChangeBody)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"change a network: {error}") from error


def _change(driver: BridgeDriver, identity: str, wanted: ChangeBody) -> dict[str, Any]:
    network_id = parse_network_id(identity)
    outcome = driver.change_network(network_id, parse_change(wanted.set, wanted.unset))
    words = [*(f"{key}={value}" for key, value in wanted.set.items()), *wanted.unset]
    log.info("ChangeNetwork network=%s ok: %s", short(network_id), ascii(" ".join(words)[:400]))
    return report.report_change(outcome)
