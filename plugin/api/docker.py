"""Routes of Docker's remote network driver protocol.

Knows no keys of the wire (`plugin.api.protocol`) and no policy (`driver.driver`).
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response
from werkzeug.exceptions import HTTPException

from driver.errors import DriverError, InvalidRequest
from plugin.api import protocol
from plugin.api.deadline import DOCKER_SECONDS
from plugin.api.reply import describe_error, read_body, reply, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from driver.driver import BridgeDriver
    from plugin.api.deadline import Deadline
    from plugin.api.metrics import Metrics
    from plugin.api.protocol import Payload

    Answer = dict[str, Any]

MILLI = 1000

log = logging.getLogger("pynet")


def _create_network(driver: BridgeDriver, call: Payload) -> Answer:
    driver.create_network(protocol.decode_create_network(call))
    return {}


def _delete_network(driver: BridgeDriver, call: Payload) -> Answer:
    driver.delete_network(protocol.decode_network_call(call))
    return {}


def _create_endpoint(driver: BridgeDriver, call: Payload) -> Answer:
    new = protocol.decode_create_endpoint(call)
    return protocol.encode_create_endpoint(new, driver.create_endpoint(new))


def _delete_endpoint(driver: BridgeDriver, call: Payload) -> Answer:
    driver.delete_endpoint(*protocol.decode_endpoint_call(call))
    return {}


def _endpoint_info(driver: BridgeDriver, call: Payload) -> Answer:
    driver.endpoint_info(*protocol.decode_endpoint_call(call))
    return {"Value": {}}


def _join(driver: BridgeDriver, call: Payload) -> Answer:
    return protocol.encode_join(driver.join(protocol.decode_join(call)))


def _leave(driver: BridgeDriver, call: Payload) -> Answer:
    driver.leave(*protocol.decode_endpoint_call(call))
    return {}


def _program_external_connectivity(driver: BridgeDriver, call: Payload) -> Answer:
    new = protocol.decode_external_connectivity(call)
    driver.program_external_connectivity(
        new.network_id, new.endpoint_id, new.requests, only_ipv4=new.only_ipv4
    )
    return {}


def _revoke_external_connectivity(driver: BridgeDriver, call: Payload) -> Answer:
    driver.revoke_external_connectivity(*protocol.decode_endpoint_call(call))
    return {}


def _check_gateways(call: Payload) -> Answer:
    return protocol.encode_gw_alloc_check(protocol.decode_gw_alloc_check(call))


def _discover(call: Payload) -> Answer:
    protocol.decode_discovery(call)
    return {}


# Sent without a body; a call of another kind without one is the repeat of a broken connection.
BODILESS: Mapping[str, Answer] = {
    "Plugin.Activate": {"Implements": ["NetworkDriver"]},
    "NetworkDriver.GetCapabilities": {
        "Scope": "local",
        "ConnectivityScope": "local",
        "GwAllocChecker": True,
    },
}
STATELESS: Mapping[str, Callable[[Payload], Answer]] = {
    "NetworkDriver.GwAllocCheck": _check_gateways,
    "NetworkDriver.DiscoverNew": _discover,
    "NetworkDriver.DiscoverDelete": _discover,
}
OPERATIONS: Mapping[str, Callable[[BridgeDriver, Payload], Answer]] = {
    "NetworkDriver.CreateNetwork": _create_network,
    "NetworkDriver.DeleteNetwork": _delete_network,
    "NetworkDriver.CreateEndpoint": _create_endpoint,
    "NetworkDriver.DeleteEndpoint": _delete_endpoint,
    "NetworkDriver.EndpointOperInfo": _endpoint_info,
    "NetworkDriver.Join": _join,
    "NetworkDriver.Leave": _leave,
    "NetworkDriver.ProgramExternalConnectivity": _program_external_connectivity,
    "NetworkDriver.RevokeExternalConnectivity": _revoke_external_connectivity,
}


def build_docker_api(deadline: Deadline, metrics: Metrics) -> Blueprint:
    """Return the route for all calls; `deadline` runs those that need the driver."""
    api = Blueprint("docker", __name__)

    def run(method: str, words: str, call: Payload) -> Answer:
        if method in STATELESS:
            return STATELESS[method](call)
        operation = OPERATIONS[method]
        return deadline.run(words, lambda driver: operation(driver, call), DOCKER_SECONDS)

    @api.post("/<method>")
    def answer_call(method: str) -> Response:
        if not any(method in each for each in (BODILESS, STATELESS, OPERATIONS)):
            # Unread bytes would reset the connection when it is closed (unix_release_sock()).
            with suppress(InvalidRequest):
                read_body()
            log.warning("%s is not a method of this driver", method[:80])
            return reply({"Err": f"no such method: {method[:80]}"}, 404)
        began = time.perf_counter()
        words = method.rpartition(".")[2]
        try:
            body = read_body()
            if method in BODILESS:
                answer, status = BODILESS[method], 200
            else:
                call = protocol.parse_body(body)
                words += protocol.describe_subject(call)
                answer, status = run(method, words, call), 200
        except HTTPException:
            raise
        except DriverError as error:
            answer, status = {"Err": describe_error(error)}, status_of(error)
        except Exception as error:
            log.exception("%s failed in a way that pynet does not expect", method)
            answer, status = {"Err": f"pynet has a defect: {error!r}"}, 500
        seconds = time.perf_counter() - began
        metrics.observe_call(method.rpartition(".")[2], status, seconds)
        _log_call(words, answer, seconds)
        return reply(answer, status)

    return api


def _log_call(words: str, answer: Mapping[str, Any], seconds: float) -> None:
    failure = answer.get("Err")
    if failure is None:
        log.info("%s ok %.1f ms", words, seconds * MILLI)
    else:
        log.warning("%s failed: %s %.1f ms", words, " ".join(failure.split()), seconds * MILLI)
