"""Be the HTTP side of what people ask about kernel parameters, and of changing a network's options.

For `pynet sysctl` and `pynet set`; Docker never asks. Knows no policy.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
from flask import request

from driver.errors import InvalidRequest
from driver.model import parse_endpoint_id, parse_network_id, short
from driver.options import parse_change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from flask import Flask, Response

    from driver.bridge import BridgeDriver
    from driver.sandbox import Followed
    from driver.survey import Row

    Work = Callable[[], dict[str, Any]]

log = logging.getLogger("pynet")


class ChangeBody(msgspec.Struct, forbid_unknown_fields=True):
    """What POST /networks/ID/options asks for."""

    set: dict[str, str] = {}
    unset: list[str] = []


def answer_parameter_questions(
    app: Flask, tell: Callable[[Work], Response], driver: Callable[[], BridgeDriver]
) -> None:
    """Add the routes; `tell` has the driver do the work, and answers with what came of it."""

    @app.post("/networks/<identity>/options")
    def change_options(identity: str) -> Response:
        body = request.get_data()
        return tell(lambda: _change(driver(), identity, body))

    @app.get("/networks/<identities>/sysctls")
    def network_sysctls(identities: str) -> Response:
        everything = _asks_for_all()

        def look() -> dict[str, Any]:
            ids = map(parse_network_id, identities.split(","))
            return _report_rows(driver().survey.of_networks(*ids, everything=everything))

        return tell(look)

    @app.get("/endpoints/<identity>/sysctls")
    def endpoint_sysctls(identity: str) -> Response:
        everything = _asks_for_all()

        def look() -> dict[str, Any]:
            survey = driver().survey
            found = survey.of_endpoint(parse_endpoint_id(identity), everything=everything)
            return _report_rows(found)

        return tell(look)

    @app.get("/endpoints/<identity>/sysctls/actual")
    def actual_sysctls(identity: str) -> Response:
        return tell(lambda: dict(driver().survey.read_endpoint(parse_endpoint_id(identity))))

    @app.get("/sysctls")
    def host_sysctls() -> Response:
        return tell(lambda: dict(msgspec.to_builtins(driver().survey.of_host())))


def _asks_for_all() -> bool:
    return request.args.get("all") == "1"


def _change(driver: BridgeDriver, identity: str, body: bytes) -> dict[str, Any]:
    network_id = parse_network_id(identity)
    try:
        wanted = msgspec.json.decode(body, type=ChangeBody)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"change a network: {error}") from error
    outcome = driver.change_network(network_id, parse_change(wanted.set, wanted.unset))
    words = [*(f"{key}={value}" for key, value in wanted.set.items()), *wanted.unset]
    log.info("ChangeNetwork network=%s ok: %s", short(network_id), ascii(" ".join(words)[:400]))
    return _report_change(outcome)


def _report_rows(rows: Iterable[Row]) -> dict[str, Any]:
    return {"rows": msgspec.to_builtins(tuple(rows))}


def _report_change(outcome: Followed) -> dict[str, Any]:
    return {
        "changed": len(outcome.changed),
        "awaited": len(outcome.awaited),
        "kept": dict(outcome.kept),
        "overruled": {
            sandbox: [
                {
                    "parameter": wish.sysctl.key,
                    "value": wish.sysctl.value,
                    "by": wish.source,
                    "network": wish.network,
                }
                for wish in wishes
            ]
            for sandbox, wishes in outcome.overruled.items()
        },
    }
