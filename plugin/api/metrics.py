"""`GET /metrics`: Docker's calls, the driver's counters, networks and their traffic."""

from __future__ import annotations

import logging
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

from driver.errors import KernelError
from driver.model import host_end_name, short
from plugin.version import find_revision, find_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from driver.counts import Counts
    from driver.driver import BridgeDriver
    from driver.health import Health
    from driver.model import Drops, Endpoint, HostPort, Network, PortBinding, Traffic, Usage

    State = Iterable[tuple[Network, tuple[Endpoint, ...]]]

# Seconds. A call takes 1 to 25 ms; 3, 4.5 and 10 are what calls are bounded by.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
MOST_CONNECTIONS = 10_000  # translated ones of the whole host: 0.01 ms each, at every scrape
OUTCOMES = {200: "ok", 400: "invalid", 409: "conflict", 503: "busy"}
FAILED = "failed"
_PASSED = {  # a field of Traffic: the metric, and its help
    "received_bytes": ("receive_bytes", "Bytes that have come into the container."),
    "received_packets": ("receive_packets", "Packets that have come into the container."),
    "received_dropped": (
        "receive_dropped_packets",
        "Packets to the container that its interface did not take.",
    ),
    "sent_bytes": ("transmit_bytes", "Bytes that have left the container."),
    "sent_packets": ("transmit_packets", "Packets that have left the container."),
    "sent_dropped": (
        "transmit_dropped_packets",
        "Packets from the container that its end on the host did not take.",
    ),
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)  # a collector has to be hashable
class Observed:
    """What the driver tells of its networks: they, their links' counters, drops, connections.

    `begun` are the connections that published ports have had, `open` those that there are, None if
    the host has too many to look through.
    """

    state: State
    traffic: Mapping[str, Traffic]
    drops: Drops
    begun: Mapping[HostPort, int]
    open: Mapping[PortBinding, Usage] | None

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, as a collector of prometheus_client's does."""
        yield from _networks(self.state)
        yield from _endpoints(self.state, self.traffic, self.drops.by_interface)
        yield from _ports(self.state, self.begun, self.open)
        drops = CounterMetricFamily("pynet_dropped_packets", "Packets dropped.", labels=["reason"])
        for reason, number in sorted(self.drops.totals.items()):
            drops.add_metric([reason], number)
        yield drops


def observe(driver: BridgeDriver) -> Observed:
    """Ask the driver for what is told of its networks; it holds its lock for the first part only.

    Connections are looked through one by one, so they are left out where they cannot be listed and
    where there are too many.
    """
    state = driver.describe()
    bindings = [binding for _, ends in state for end in ends for binding in end.bindings]
    try:
        connections = driver.count_connections(bindings, MOST_CONNECTIONS) if bindings else {}
    except KernelError as error:
        log.warning("metrics without open connections: %s", error)
        connections = None
    return Observed(
        state, driver.read_traffic(), driver.read_drops(), driver.read_published(), connections
    )


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


def _endpoints(
    state: State, traffic: Mapping[str, Traffic], drops: Mapping[str, Mapping[str, int]]
) -> Iterator[Metric]:
    """Yield what passes each endpoint; nothing of one whose host end is not there."""
    labels = ["network", "endpoint"]
    info = GaugeMetricFamily(
        "pynet_endpoint_info",
        "An endpoint: its addresses and its end on the host.",
        labels=[*labels, "ipv4", "ipv6", "host_end"],
    )
    passed = {
        field: CounterMetricFamily(f"pynet_endpoint_{name}", help_text, labels=labels)
        for field, (name, help_text) in _PASSED.items()
    }
    guarded = CounterMetricFamily(
        "pynet_endpoint_guard_dropped_packets",
        "Packets that its guard has dropped, of the last day's reasons.",
        labels=[*labels, "reason"],
    )
    for endpoint in (endpoint for _, endpoints in state for endpoint in endpoints):
        end = host_end_name(endpoint.id)
        names = [short(endpoint.network_id), short(endpoint.id)]
        ips = ["" if each is None else str(each.ip) for each in (endpoint.ipv4, endpoint.ipv6)]
        info.add_metric([*names, *ips, end], 1)
        if (of_endpoint := traffic.get(end)) is not None:
            for field, family in passed.items():
                family.add_metric(names, getattr(of_endpoint, field))
        for reason, number in drops.get(end, {}).items():
            guarded.add_metric([*names, reason], number)
    yield from (info, *passed.values(), guarded)


def _ports(
    state: State,
    begun: Mapping[HostPort, int],
    connections: Mapping[PortBinding, Usage] | None,
) -> Iterator[Metric]:
    """Yield the connections of each published port that the kernel translates."""
    labels = ["network", "endpoint", "protocol", "host_ip", "host_port", "container_port"]
    opened = CounterMetricFamily(
        "pynet_published_port_new_connections",
        "Connections that were led to the container.",
        labels=labels,
    )
    now = GaugeMetricFamily(
        "pynet_published_port_connections", "Connections that are open.", labels=labels
    )
    for endpoint in (endpoint for _, endpoints in state for endpoint in endpoints):
        for binding in endpoint.bindings:
            host = binding.host
            if host is None or not binding.is_translated:
                continue
            words = [
                short(endpoint.network_id),
                short(endpoint.id),
                str(host.protocol),
                str(host.ip),
                str(host.port),
                str(binding.container_port),
            ]
            if host in begun:
                opened.add_metric(words, begun[host])
            if connections is not None and binding in connections:
                now.add_metric(words, connections[binding].connections)
    yield from (opened, now)
