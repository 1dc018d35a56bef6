"""The HTTP side: every request has an answer in JSON, and 404 means one thing only."""

from __future__ import annotations

import json
import logging
import re
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import Client

from driver.errors import Conflict, InvalidRequest, KernelError, NotFound, StoreError
from plugin.api import MAX_BODY, create_app
from plugin.api.docker import BODILESS, OPERATIONS, STATELESS
from plugin.api.reply import CONTENT_TYPE
from tests.unit.test_protocol import DISCOVERY, ENDPOINT, IDS, JOIN, NETWORK

if TYPE_CHECKING:
    from werkzeug.test import TestResponse

    from driver.driver import BridgeDriver
    from tests.fakes import FakeKernel

CALLS: dict[str, object] = {
    "GwAllocCheck": {"Options": NETWORK["Options"]},
    "CreateNetwork": NETWORK,
    "CreateEndpoint": ENDPOINT,
    "Join": JOIN,
    "EndpointOperInfo": IDS,
    "ProgramExternalConnectivity": IDS,
    "RevokeExternalConnectivity": IDS,
    "Leave": IDS,
    "DeleteEndpoint": IDS,
    "DeleteNetwork": IDS,
    "DiscoverNew": DISCOVERY,
    "DiscoverDelete": DISCOVERY,
}
METHODS = [*BODILESS, *(f"NetworkDriver.{name}" for name in CALLS)]
WITH_BODY = [method for method in METHODS if method not in BODILESS]


@pytest.fixture
def client(driver: BridgeDriver) -> Client:
    return Client(create_app(lambda: driver))


def send(client: Client, name: str, call: object) -> dict[str, Any]:
    """Return the answer to a call that succeeds."""
    response = post(client, f"NetworkDriver.{name}", json.dumps(call).encode())
    assert response.status_code == 200, response.text
    return response.get_json(force=True)  # type: ignore[no-any-return]


def post(client: Client, method: str, body: bytes = b"") -> TestResponse:
    """Send a request as the engine does: without a content type, with an empty Host."""
    return client.post(f"/{method}", data=body, headers={"Host": ""}, buffered=True)


def refused(response: TestResponse, status: int) -> str:
    """Return the words of a refusal."""
    assert response.status_code == status, response.text
    assert response.content_type == CONTENT_TYPE
    return str(response.get_json(force=True)["Err"])


def test_every_method_is_here() -> None:
    assert {*BODILESS, *STATELESS, *OPERATIONS} == set(METHODS)


def test_activation_does_not_wait_for_the_driver(driver: BridgeDriver) -> None:
    starting: Future[BridgeDriver] = Future()
    client = Client(create_app(starting.result))
    for method in BODILESS:
        assert post(client, method).status_code == 200
    with ThreadPoolExecutor(max_workers=1) as caller:
        body = json.dumps(IDS).encode()
        waiting = caller.submit(post, client, "NetworkDriver.DeleteEndpoint", body)
        assert not waiting.done()
        starting.set_result(driver)
        assert waiting.result(timeout=5).status_code == 200


def test_a_containers_life(client: Client, kernel: FakeKernel) -> None:
    activated = post(client, "Plugin.Activate").get_json(force=True)
    assert activated == {"Implements": ["NetworkDriver"]}
    scope = post(client, "NetworkDriver.GetCapabilities").get_json(force=True)
    assert scope == {"Scope": "local", "ConnectivityScope": "local", "GwAllocChecker": True}
    answers = {name: send(client, name, call) for name, call in CALLS.items()}
    assert answers["CreateEndpoint"] == {"Interface": {"MacAddress": "02:42:0a:5b:00:81"}}
    assert answers["Join"]["InterfaceName"]["DstPrefix"] == "eth"
    assert "DstName" not in answers["Join"]["InterfaceName"]
    assert answers["EndpointOperInfo"] == {"Value": {}}
    assert kernel.links == {}


@pytest.mark.parametrize("name", ["CreateNetwork", "CreateEndpoint", "Join"])
def test_a_repeat_gets_the_same_answer(client: Client, name: str) -> None:
    for each in ("CreateNetwork", "CreateEndpoint", "Join"):
        first = send(client, each, CALLS[each])
        if each == name:
            assert send(client, each, CALLS[each]) == first


@pytest.mark.parametrize(
    "name",
    ["Leave", "DeleteEndpoint", "DeleteNetwork", "RevokeExternalConnectivity", "EndpointOperInfo"],
)
def test_what_is_not_known_is_gone_already(client: Client, name: str) -> None:
    send(client, name, IDS)


@pytest.mark.parametrize("name", ["CreateEndpoint", "Join", "ProgramExternalConnectivity"])
def test_what_needs_a_network_says_so(client: Client, name: str) -> None:
    body = json.dumps(CALLS[name]).encode()
    assert "is not" in refused(post(client, f"NetworkDriver.{name}", body), 400)


def test_a_contradicting_repeat_is_a_conflict(client: Client) -> None:
    send(client, "CreateNetwork", NETWORK)
    other = NETWORK | {"IPv4Data": [{"Pool": "10.92.0.0/24"}]}
    words = refused(post(client, "NetworkDriver.CreateNetwork", json.dumps(other).encode()), 409)
    assert "defined otherwise" in words


@pytest.mark.parametrize(
    "method", ["NetworkDriver.AllocateNetwork", "NetworkDriver.FreeNetwork", "x" * 5000, "é"]
)
def test_an_unknown_method_is_not_found(client: Client, method: str) -> None:
    assert method[:50] in refused(post(client, method, b"{}"), 404)


@pytest.mark.parametrize("path", ["/", "/a/b", "/NetworkDriver.Join/"])
def test_an_unknown_path_is_not_found(client: Client, path: str) -> None:
    refused(client.post(path), 405 if path == "" else 404)


@pytest.mark.parametrize("verb", ["GET", "PUT", "DELETE", "PATCH"])
def test_only_post_is_served(client: Client, verb: str) -> None:
    refused(client.open("/NetworkDriver.Join", method=verb), 405)


@pytest.mark.parametrize("method", WITH_BODY)
def test_an_empty_body_is_refused(client: Client, method: str) -> None:
    assert "has no body" in refused(post(client, method), 400)


@pytest.mark.parametrize("method", sorted(BODILESS))
def test_an_empty_body_is_the_rule(client: Client, method: str) -> None:
    assert post(client, method).status_code == 200


MALFORMED = (
    b"{", b"nonsense", b"\xff\xfe\x00", b"[]", b"null", b"7", b'"text"', b"{} {}",
    b"[" * 100_000, b'{"NetworkID":' * 50_000, b'{"NetworkID":"\\ud800"}', b" " * 100_000,
)  # fmt: skip


@pytest.mark.parametrize("method", WITH_BODY)
def test_a_malformed_body_is_refused(client: Client, method: str) -> None:
    for body in MALFORMED:
        words = refused(post(client, method, body), 400)
        assert "malformed" in words
        assert "Traceback" not in words


@pytest.mark.parametrize("method", [name for name in WITH_BODY if "GwAllocCheck" not in name])
def test_a_body_without_what_it_needs_is_refused(client: Client, method: str) -> None:
    assert "malformed" in refused(post(client, method, b"{}"), 400)


def test_a_body_that_is_too_large_is_refused(client: Client) -> None:
    refused(post(client, "NetworkDriver.Join", b" " * (MAX_BODY + 1)), 413)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidRequest("said"), 400),
        (NotFound("said"), 400),
        (Conflict("said"), 409),
        (KernelError("said"), 500),
        (StoreError("said"), 500),
        (RuntimeError("said"), 500),
        (KeyError("said"), 500),
    ],
)
def test_a_failure_has_a_status_and_words(
    client: Client,
    kernel: FakeKernel,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
) -> None:
    def fail(_: object) -> None:
        raise error

    error.add_note("and more")
    monkeypatch.setattr(kernel, "ensure_bridge", fail)
    response = post(client, "NetworkDriver.CreateNetwork", json.dumps(NETWORK).encode())
    assert "said" in refused(response, status)
    assert kernel.links == {}


def test_notes_are_said_too(
    client: Client, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        error = KernelError("first")
        error.add_note("and: second")
        raise error

    monkeypatch.setattr(kernel, "ensure_bridge", fail)
    response = post(client, "NetworkDriver.CreateNetwork", json.dumps(NETWORK).encode())
    assert refused(response, 500) == "first; and: second"


LINE = re.compile(
    r"\w+( network=[\w\\]{1,12})?( endpoint=[\w\\]{1,12})? (ok|failed: .+) \d+\.\d ms"
)


@pytest.mark.parametrize(
    ("method", "call", "start"),
    [
        ("Plugin.Activate", None, "Activate ok"),
        ("NetworkDriver.Leave", IDS, "Leave network=010101010101 endpoint=e1e1e1e1e1e1 ok"),
        ("NetworkDriver.Leave", {"NetworkID": "a\nb", "EndpointID": "c"}, "Leave network="),
        ("NetworkDriver.Join", JOIN, "Join network=010101010101 endpoint=e1e1e1e1e1e1 failed: "),
    ],
)
def test_a_request_is_one_line_in_the_log(
    client: Client, caplog: pytest.LogCaptureFixture, method: str, call: object, start: str
) -> None:
    caplog.set_level(logging.INFO)
    post(client, method, b"" if call is None else json.dumps(call).encode())
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(start)
    assert LINE.fullmatch(line.replace("\\n", "n")), line


def test_words_of_several_lines_are_one_line_in_the_log(
    client: Client,
    kernel: FakeKernel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: str) -> None:
        raise KernelError("change the firewall: Error\nin:\nadd nonsense\n")

    monkeypatch.setattr(kernel, "run_nft", fail)
    post(client, "NetworkDriver.CreateNetwork", json.dumps(NETWORK).encode())
    lines = [record.getMessage() for record in caplog.records if record.name == "pynet"]
    assert len(lines) == 1
    assert "\n" not in lines[0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)


def damaged(call: object) -> st.SearchStrategy[object]:
    """Return calls of which one field, at any depth, is anything at all."""
    if not isinstance(call, dict):
        return JSON
    keys = st.sampled_from(sorted(call))
    return JSON | keys.flatmap(
        lambda key: damaged(call[key]).map(lambda value: call | {key: value})
    )


BODIES = {f"NetworkDriver.{name}": damaged(call) for name, call in CALLS.items()}
BODIES |= dict.fromkeys(BODILESS, JSON)


@settings(
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), method=st.sampled_from(sorted(BODIES)))
def test_any_body_has_an_answer_and_a_refused_one_leaves_nothing(
    client: Client, kernel: FakeKernel, data: st.DataObject, method: str
) -> None:
    before = kernel.state()
    response = post(client, method, json.dumps(data.draw(BODIES[method])).encode())
    assert response.status_code in {200, 400, 409}
    answer = response.get_json(force=True)
    if response.status_code != 200:
        assert answer["Err"]
        assert kernel.state() == before
    else:
        assert "Err" not in answer
    post(client, "NetworkDriver.DeleteNetwork", json.dumps(IDS).encode())
    assert kernel.links == {}
