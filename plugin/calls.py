"""Answer Docker's calls: one dispatcher, error replies, the request log.

A WSGI application of its own, since a start waits for each call and Flask takes a quarter of it.
Knows no keys of the wire (`plugin.protocol`) and no policy (`driver.bridge`).
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import msgspec

from driver.errors import DriverError, InvalidRequest
from driver.model import short
from plugin import protocol
from plugin.answer import STATUS_LINES
from plugin.crew import CALLER, Caller
from plugin.desk import ANSWER_SECONDS, status_of, words_of
from plugin.incoming import CONTENT_TYPE, MAX_BODY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from driver.bridge import BridgeDriver
    from driver.model import EndpointId, NetworkId
    from plugin.desk import Desk
    from plugin.metrics import Calls

    Operation = Callable[[bytes], dict[str, Any]]

BODILESS = frozenset({"Plugin.Activate", "NetworkDriver.GetCapabilities"})
DRIVERLESS = BODILESS | {
    "NetworkDriver.GwAllocCheck",
    "NetworkDriver.DiscoverNew",
    "NetworkDriver.DiscoverDelete",
}

MILLI = 1000

log = logging.getLogger("pynet")


class DockersCalls:
    """The WSGI application of the protocol; what is no call of Docker's goes to `others`."""

    def __init__(
        self,
        operations: Mapping[str, Operation],
        desk: Desk,
        calls: Calls,
        others: WSGIApplication,
    ) -> None:
        self._operations = operations
        self._desk = desk
        self._calls = calls
        self._others = others

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        method = environ["PATH_INFO"][1:]
        operation = self._operations.get(method)
        if operation is None or environ["REQUEST_METHOD"] != "POST":
            return self._others(environ, start_response)
        body = _read_body(environ)
        if len(body) > MAX_BODY:
            answer, status = {"Err": f"the body has more than {MAX_BODY} bytes"}, 413
            log.warning("%s refused: %s", method, answer["Err"])
            return (_begin(answer, status, start_response),)
        began = time.perf_counter()
        words = _name(method, body)
        caller = environ.get(CALLER) or Caller()
        answer, status = self._answer(method, words, operation, body, caller)
        seconds = time.perf_counter() - began
        self._calls.add(method.rpartition(".")[2], status, seconds)
        encoded = _begin(answer, status, start_response)
        failure = answer.get("Err")
        if failure is None:
            return _Logged(encoded, words, seconds)
        log.warning("%s failed: %s %.1f ms", words, " ".join(failure.split()), seconds * MILLI)
        return (encoded,)

    def _answer(
        self, method: str, words: str, operation: Operation, body: bytes, caller: Caller
    ) -> tuple[dict[str, Any], int]:
        """Return the answer and its status."""

        def work() -> dict[str, Any]:
            return operation(body)

        try:
            _check_body(method, body)
            answer = (
                work()
                if method in DRIVERLESS
                else self._desk.run(words, work, caller, ANSWER_SECONDS)
            )
            status = 200
        except DriverError as error:
            answer, status = {"Err": words_of(error)}, status_of(error)
        except Exception as error:
            log.exception("%s failed in a way that pynet does not expect", method)
            answer, status = {"Err": f"pynet has a defect: {error!r}"}, 500
        return answer, status


class _Logged:
    """The body of an answer, and the line of the log that nobody has to wait for."""

    def __init__(self, encoded: bytes, words: str, seconds: float) -> None:
        self._encoded = encoded
        self._words = words
        self._seconds = seconds

    def __iter__(self) -> Iterator[bytes]:
        yield self._encoded

    def close(self) -> None:
        """Write the line: the answer has been sent, PEP 3333."""
        log.info("%s ok %.1f ms", self._words, self._seconds * MILLI)


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
        new = protocol.decode_external_connectivity(body)
        driver().program_external_connectivity(
            new.network_id, new.endpoint_id, new.requests, only_ipv4=new.only_ipv4
        )
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


def _begin(answer: dict[str, Any], status: int, start_response: StartResponse) -> bytes:
    """Begin the answer; return its body."""
    encoded = msgspec.json.encode(answer)
    headers = [("Content-Type", CONTENT_TYPE), ("Content-Length", str(len(encoded)))]
    start_response(STATUS_LINES[status], headers)
    return encoded


def _read_body(environ: WSGIEnvironment) -> bytes:
    """Return a request's body, and no more of it than shows that it is too large."""
    limit = MAX_BODY + 1
    if not environ.get("wsgi.input_terminated"):  # this server's input has no end of its own
        limit = min(int(environ.get("CONTENT_LENGTH") or 0), limit)
    body: bytes = environ["wsgi.input"].read(limit)
    return body


def _check_body(method: str, body: bytes) -> None:
    if not body and method not in BODILESS:
        raise InvalidRequest(
            "the request has no body: a connection broke, and the engine repeated the call "
            "without it"
        )


def _name(method: str, body: bytes) -> str:
    """Return what the request is called in the log and in errors about it."""
    subject = protocol.decode_subject(body)
    words = [method.rpartition(".")[2]]
    if subject.network_id:
        words.append(f"network={_printable(subject.network_id)}")
    if subject.endpoint_id:
        words.append(f"endpoint={_printable(subject.endpoint_id)}")
    return " ".join(words)


def _printable(identity: str) -> str:
    """Return the short id as it can stand in a log line, whatever the request says."""
    return ascii(short(identity))[1:-1]
