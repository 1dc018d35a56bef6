"""What Prometheus is told, read back by its own parser, and what health says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import Client

from driver.counts import Counts
from driver.driver import BridgeDriver
from driver.errors import Busy, KernelError
from driver.health import Health
from driver.model import Drops, Traffic, Usage, host_end_name
from driver.options import GATEWAY_MODE_IPV4
from plugin.api import create_app
from plugin.api.metrics import BUCKETS
from plugin.api.protocol import GENERIC
from plugin.version import find_revision, find_version
from tests.fakes import FakeKernel
from tests.samples import binding, endpoint_id, sandbox_key
from tests.unit.test_protocol import ENDPOINT, JOIN, NETWORK, WEB, with_ports

if TYPE_CHECKING:
    from driver.model import PortBinding
    from driver.state.store import Store

LABELS = {"network": "010101010101", "endpoint": "e1e1e1e1e1e1"}


class Busily(FakeKernel):
    """A kernel whose links have been used."""

    def read_traffic(self) -> dict[str, Traffic]:
        return {
            host_end_name(endpoint_id(1)): Traffic(1, 2, 3, 4, 5, 6),
            "pnhsomebody": Traffic(5, 6, 7, 8, 9, 10),
        }


@pytest.fixture
def kernel() -> FakeKernel:
    return Busily()


@pytest.fixture
def signs() -> tuple[Health, Counts]:
    return Health(), Counts()


@pytest.fixture
def client(store: Store, kernel: FakeKernel, signs: tuple[Health, Counts]) -> Client:
    driver = BridgeDriver(store, kernel, health=signs[0], counts=signs[1])
    return Client(create_app(lambda: driver, *signs))


def send(client: Client, name: str, payload: Any) -> int:
    response = client.post(f"/NetworkDriver.{name}", data=json.dumps(payload).encode())
    return response.status_code


def scrape(client: Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return every sample by its name and labels."""
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.content_type == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(client: Client, metric: str, **labels: str) -> float | None:
    return scrape(client).get((f"pynet_{metric}", frozenset(labels.items())))


def test_calls_are_counted_by_method_and_outcome(client: Client) -> None:
    assert send(client, "CreateNetwork", NETWORK) == 200
    assert send(client, "CreateNetwork", NETWORK) == 200
    assert send(client, "CreateNetwork", {}) == 400
    assert send(client, "Nonsense", {}) == 404
    seen = scrape(client)
    name = "pynet_request_duration_seconds"
    outcomes = {
        tuple(sorted(dict(labels).values())): number
        for (metric, labels), number in seen.items()
        if metric == f"{name}_count"
    }
    assert outcomes == {("CreateNetwork", "ok"): 2, ("CreateNetwork", "invalid"): 1}
    ok = {"method": "CreateNetwork", "outcome": "ok"}
    buckets = [
        seen[f"{name}_bucket", frozenset({**ok, "le": bound}.items())]
        for bound in (*map(str, BUCKETS), "+Inf")
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 2
    assert seen[f"{name}_sum", frozenset(ok.items())] > 0


def test_what_there_is_and_what_has_passed(client: Client, kernel: FakeKernel) -> None:
    kernel.add_sandbox(sandbox_key(1))
    for metric in (
        "networks",
        "endpoints",
        "attached_endpoints",
        "published_ports",
        "relayed_ports",
    ):
        assert value(client, metric) == 0
    assert value(client, "endpoint_receive_bytes_total", **LABELS) is None
    assert send(client, "CreateNetwork", NETWORK | {"Options": {}}) == 200
    assert send(client, "CreateEndpoint", ENDPOINT) == 200
    assert value(client, "endpoints") == 1
    assert value(client, "attached_endpoints") == 0
    assert send(client, "Join", JOIN) == 200
    assert send(client, "ProgramExternalConnectivity", with_ports(WEB)) == 200
    for metric in ("networks", "endpoints", "attached_endpoints", "relayed_ports"):
        assert value(client, metric) == 1
    assert value(client, "published_ports") == 2
    passed = (
        "receive_bytes",
        "receive_packets",
        "transmit_bytes",
        "transmit_packets",
        "receive_dropped_packets",
        "transmit_dropped_packets",
    )
    for number, metric in enumerate(passed, start=1):
        assert value(client, f"endpoint_{metric}_total", **LABELS) == number
    addresses = {"ipv4": "10.91.0.129", "ipv6": "", "host_end": "pnhe1e1e1e1e1e1"}
    assert value(client, "endpoint_info", **LABELS, **addresses) == 1


def publish(client: Client) -> PortBinding:
    """Have an endpoint publish a port, everywhere; return what the kernel translates of it."""
    calls = {
        "CreateNetwork": NETWORK | {"Options": {}},
        "CreateEndpoint": ENDPOINT,
        "Join": JOIN,
        "ProgramExternalConnectivity": with_ports(WEB),
    }
    assert {send(client, name, call) for name, call in calls.items()} == {200}
    return binding("0.0.0.0:8080", "10.91.0.129:80")


def test_connections_of_a_published_port(client: Client, kernel: FakeKernel) -> None:
    port = publish(client)
    assert port.host is not None
    kernel.published = {port.host: 12}
    kernel.open = {port: Usage(3)}
    place = {"protocol": "tcp", "host_ip": "0.0.0.0", "host_port": "8080", "container_port": "80"}
    assert value(client, "published_port_new_connections_total", **LABELS, **place) == 12
    assert value(client, "published_port_connections", **LABELS, **place) == 3
    seen = [
        dict(labels)["host_ip"] for metric, labels in scrape(client) if "host_ip" in dict(labels)
    ]
    assert seen == 2 * ["0.0.0.0"], "what the relay serves is counted by nobody"


@pytest.mark.parametrize("refused", [False, True])
def test_connections_that_nobody_counts_are_left_out(
    client: Client, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, *, refused: bool
) -> None:
    """Of a host with too many, or one whose kernel does not list them; the rest is told."""
    port = publish(client)
    assert port.host is not None
    kernel.published = {port.host: 12}

    def count(bindings: object, most: int) -> None:
        if refused:
            raise KernelError("list tracked connections: Operation not permitted")

    monkeypatch.setattr(kernel, "count_connections", count)
    metrics = {metric for metric, _ in scrape(client)}
    assert "pynet_published_port_connections" not in metrics
    assert "pynet_published_port_new_connections_total" in metrics
    assert "pynet_endpoint_receive_bytes_total" in metrics


def test_the_kernel_is_read_without_the_drivers_lock(store: Store, kernel: FakeKernel) -> None:
    driver = BridgeDriver(store, kernel)
    client = Client(create_app(lambda: driver))
    publish(client)
    held: list[bool] = []

    def look(*_: object) -> dict[Any, Any]:
        held.append(driver._lock._held is not None)
        return {}

    for verb in ("read_traffic", "read_published", "count_connections"):
        setattr(kernel, verb, look)
    scrape(client)
    assert held == [False] * 3


def test_what_is_open_on_a_containers_own_address_is_no_port_of_the_hosts(client: Client) -> None:
    routed = {GENERIC: {GATEWAY_MODE_IPV4: "routed"}}
    for name, call in (
        ("CreateNetwork", NETWORK | {"Options": routed}),
        ("CreateEndpoint", ENDPOINT),
        ("Join", JOIN),
        ("ProgramExternalConnectivity", with_ports(WEB)),
    ):
        assert send(client, name, call) == 200
    assert [value(client, metric) for metric in ("published_ports", "relayed_ports")] == [0, 0]


def test_what_an_endpoints_guard_has_dropped(client: Client, kernel: FakeKernel) -> None:
    publish(client)
    ends = {host_end_name(endpoint_id(1)): {"source": 4}, "pnhsomebody": {"source": 5}}
    kernel.dropped = Drops({"source": 9}, ends)
    name = "endpoint_guard_dropped_packets_total"
    assert value(client, name, reason="source", **LABELS) == 4
    assert sum(metric == f"pynet_{name}" for metric, _ in scrape(client)) == 1


def test_what_was_dropped(client: Client, kernel: FakeKernel) -> None:
    assert value(client, "dropped_packets_total", reason="source") is None
    kernel.dropped = Drops({"source": 3, "router": 0}, {})
    assert value(client, "dropped_packets_total", reason="source") == 3
    assert value(client, "dropped_packets_total", reason="router") == 0


def test_what_the_driver_did_of_its_own_accord(
    client: Client, signs: tuple[Health, Counts]
) -> None:
    health, counts = signs
    assert value(client, "sysctl_writes_total") == 0
    assert value(client, "watch_misses_total") == 0
    assert value(client, "problems") == 0
    counts.repairs.labels("bridge").inc()
    counts.evictions.labels("network").inc()
    counts.leftovers.labels("link").inc(2)
    counts.sysctl_writes.inc(3)
    counts.watch_misses.inc()
    health.report("a", "b")
    assert value(client, "repairs_total", kind="bridge") == 1
    assert value(client, "evictions_total", kind="network") == 1
    assert value(client, "leftovers_total", kind="link") == 2
    assert value(client, "sysctl_writes_total") == 3
    assert value(client, "watch_misses_total") == 1
    assert value(client, "problems") == 1


def test_no_name_is_one_that_node_exporter_has_itself(client: Client) -> None:
    """It may be given the text as a file, and refuses a scrape that has a name twice."""
    text = client.get("/metrics").get_data(as_text=True)
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {name.partition("_")[0] for name in names} == {"pynet"}
    assert "pynet_process_open_fds" in names


def test_the_driver_counts_what_it_evicts(client: Client) -> None:
    assert send(client, "CreateNetwork", NETWORK) == 200
    assert send(client, "CreateEndpoint", ENDPOINT) == 200
    other = ENDPOINT | {"EndpointID": endpoint_id(2)}
    assert send(client, "CreateEndpoint", other) == 200
    assert value(client, "evictions_total", kind="endpoint") == 1


def test_without_a_driver_that_tells_the_rest_is_told() -> None:
    def starting() -> BridgeDriver:
        raise Busy("the driver is starting")

    client = Client(create_app(starting))
    assert value(client, "networks") is None
    assert value(client, "problems") == 0
    known = {"version": find_version(), "revision": find_revision()}
    assert value(client, "build_info", **known) == 1


def test_health_is_a_status_and_the_reasons(client: Client, signs: tuple[Health, Counts]) -> None:
    health, _ = signs
    answer = client.get("/health")
    assert (answer.status_code, answer.get_json(force=True)) == (
        200,
        {"status": "ok", "problems": []},
    )
    health.report("state", "the state file was damaged")
    answer = client.get("/health")
    assert (answer.status_code, answer.get_json(force=True)) == (
        503,
        {"status": "unhealthy", "problems": ["the state file was damaged"]},
    )
    health.clear("state")
    assert client.get("/health").status_code == 200
