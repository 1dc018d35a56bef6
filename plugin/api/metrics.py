"""`GET /metrics`: Docker's calls, the driver's counters, networks and their traffic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

from driver.model import host_end_name, short
from plugin.version import find_revision, find_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from driver.counts import Counts
    from driver.health import Health
    from driver.model import Endpoint, Network, Traffic

    State = Iterable[tuple[Network, tuple[Endpoint, ...]]]

# Seconds. A call takes 1 to 25 ms; 3, 4.5 and 10 are what calls are bounded by.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
OUTCOMES = {200: "ok", 400: "invalid", 409: "conflict", 503: "busy"}
FAILED = "failed"


@dataclass(frozen=True, slots=True, eq=False)  # a collector has to be hashable
class Observed:
    """What the driver tells of its networks: they, their links' counters, drops by reason."""

    state: State
    traffic: Mapping[str, Traffic]
    drops: Mapping[str, int]

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, as a collector of prometheus_client's does."""
        yield from _networks(self.state)
        yield from _traffic(self.state, self.traffic)
        drops = CounterMetricFamily("pynet_dropped_packets", "Packets dropped.", labels=["reason"])
        for reason, number in sorted(self.drops.items()):
            drops.add_metric([reason], number)
        yield drops


class Metrics:
    """The metrics of a process. Thread-safe."""

    def __init__(self, counts: Counts, health: Health) -> None:
        # A series more for each, which is of no use.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = counts.registry
        self._calls = Histogram(
            "pynet_request_duration_seconds",
            "Calls of Docker's, by method and outcome.",
            ["method", "outcome"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        build = Gauge(
            "pynet_build_info",
            "Which pynet this is.",
            ["version", "revision"],
            registry=self._registry,
        )
        build.labels(find_version(), find_revision()).set(1)
        problems = Gauge(
            "pynet_problems",
            "What is wrong at the moment; GET /health says what.",
            registry=self._registry,
        )
        problems.set_function(lambda: len(health.problems()))
        # Node exporter, which may be given this text as a file, tells of itself as `process_…`.
        ProcessCollector(namespace="pynet", registry=self._registry)

    def observe_call(self, method: str, status: int, seconds: float) -> None:
        """Count one call of Docker's, and how long it took."""
        self._calls.labels(method, OUTCOMES.get(status, FAILED)).observe(seconds)

    def render(self, observed: Observed | None) -> tuple[bytes, str]:
        """Return Prometheus' text and its media type.

        `observed` is None when the driver does not tell: what there is of networks is then left
        out.
        """
        text = generate_latest(self._registry)
        if observed is not None:
            registry = CollectorRegistry(auto_describe=False)
            registry.register(observed)
            text += generate_latest(registry)
        return text, CONTENT_TYPE_PLAIN_0_0_4


def _networks(state: State) -> Iterator[Metric]:
    networks = tuple(state)
    endpoints = [endpoint for _, ends in networks for endpoint in ends]
    attached = sum(endpoint.attachment is not None for endpoint in endpoints)
    ports = sum(binding.host is not None for each in endpoints for binding in each.bindings)
    relayed = sum(binding.is_relayed for each in endpoints for binding in each.bindings)
    for name, help_text, number in (
        ("networks", "Networks.", len(networks)),
        ("endpoints", "Endpoints, of containers that run or are about to.", len(endpoints)),
        ("attached_endpoints", "Endpoints that have joined a sandbox.", attached),
        ("published_ports", "Host ports that lead to containers.", ports),
        ("relayed_ports", "Those of them that the relay serves, too.", relayed),
    ):
        yield GaugeMetricFamily(f"pynet_{name}", help_text, value=number)


def _traffic(state: State, traffic: Mapping[str, Traffic]) -> Iterator[Metric]:
    labels = ["network", "endpoint"]
    passed = {
        field: CounterMetricFamily(
            f"pynet_endpoint_{field}", f"{what}, as the container counts.", labels=labels
        )
        for field, what in (
            ("received_bytes", "Bytes received"),
            ("received_packets", "Packets received"),
            ("sent_bytes", "Bytes sent"),
            ("sent_packets", "Packets sent"),
        )
    }
    for endpoint in (endpoint for _, endpoints in state for endpoint in endpoints):
        of_endpoint = traffic.get(host_end_name(endpoint.id))
        if of_endpoint is not None:
            names = [short(endpoint.network_id), short(endpoint.id)]
            for field, family in passed.items():
                family.add_metric(names, getattr(of_endpoint, field))
    yield from passed.values()
