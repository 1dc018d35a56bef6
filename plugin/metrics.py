"""Say in Prometheus' words how the driver is doing; measures nothing but requests.

The client library is imported when somebody asks: neither the socket nor a driver that nobody
watches waits for it. What it would keep in globals is made anew for each answer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate
from threading import Lock
from typing import TYPE_CHECKING

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


class Calls:
    """How many calls there were, how they came out and how long they took. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._buckets: defaultdict[tuple[str, str], list[int]] = defaultdict(
            lambda: [0] * (len(BUCKETS) + 1)
        )
        self._seconds: defaultdict[tuple[str, str], float] = defaultdict(float)

    def add(self, method: str, status: int, seconds: float) -> None:
        """Count one call of a method that there is."""
        key = method, OUTCOMES.get(status, FAILED)
        with self._lock:
            self._buckets[key][bisect_left(BUCKETS, seconds)] += 1
            self._seconds[key] += seconds

    def histograms(self) -> Iterator[tuple[tuple[str, str], list[tuple[str, float]], float]]:
        """Yield method and outcome, how many took at most each bound, and the seconds of all."""
        with self._lock:
            buckets = {key: tuple(counts) for key, counts in self._buckets.items()}
            seconds = dict(self._seconds)
        bounds = (*map(str, BUCKETS), "+Inf")
        for key, counts in sorted(buckets.items()):
            yield key, list(zip(bounds, accumulate(counts), strict=True)), seconds[key]


@dataclass(frozen=True, slots=True)
class Signs:
    """What tells how the driver is doing."""

    calls: Calls
    counts: Counts
    health: Health


@dataclass(frozen=True, slots=True)
class Observed:
    """What the driver tells of its networks: they, their links' counters, drops by reason."""

    state: State
    traffic: Mapping[str, Traffic]
    drops: Mapping[str, int]


def render_metrics(
    calls: Calls,
    counts: Counts,
    problems: int,
    observed: Observed | None,
) -> tuple[bytes, str]:
    """Return Prometheus' text and its media type.

    `observed` is None when the driver does not tell: what there is of networks is then left out.
    """
    from prometheus_client import (  # noqa: PLC0415 - 20 ms and 1.2 MB
        CONTENT_TYPE_PLAIN_0_0_4,
        CollectorRegistry,
        ProcessCollector,
        generate_latest,
    )

    class Collected:
        def collect(self) -> Iterator[Metric]:
            yield from _tell_of_driver(calls, counts, problems)
            if observed is not None:
                yield from _tell_of_networks(observed.state, observed.traffic)
                yield _count("dropped_packets", "Packets dropped.", observed.drops, "reason")

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collected())
    # Node exporter, which may be given this text as a file, tells of itself as `process_…`.
    ProcessCollector(namespace="pynet", registry=registry)
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


def _tell_of_driver(calls: Calls, counts: Counts, problems: int) -> Iterator[Metric]:
    from prometheus_client.metrics_core import (  # noqa: PLC0415
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    info = GaugeMetricFamily(
        "pynet_build_info", "Which pynet this is.", labels=["version", "revision"]
    )
    info.add_metric([find_version(), find_revision()], 1)
    yield info
    yield GaugeMetricFamily(
        "pynet_problems", "What is wrong at the moment; GET /health says what.", value=problems
    )
    took = HistogramMetricFamily(
        "pynet_request_duration_seconds",
        "Calls of Docker's, by method and outcome.",
        labels=["method", "outcome"],
    )
    for labels, buckets, seconds in calls.histograms():
        took.add_metric(labels, buckets, seconds)
    yield took
    for name, help_text, label, numbers in (
        ("repairs", "What others had broken and was mended.", "kind", counts.repairs),
        ("evictions", "What Docker had forgotten and made way.", "kind", counts.evictions),
        ("leftovers", "What belonged to nothing and was removed.", "kind", counts.leftovers),
    ):
        yield _count(name, help_text, numbers, label)
    yield _count("sysctl_writes", "Parameters written into sandboxes.", {"": counts.sysctl_writes})
    yield _count(
        "watch_misses",
        "Sandboxes, or their interfaces, that were awaited and not seen in time.",
        {"": counts.watch_misses},
    )


def _count(name: str, help_text: str, numbers: Mapping[str, int], *labels: str) -> Metric:
    from prometheus_client.metrics_core import CounterMetricFamily  # noqa: PLC0415

    family = CounterMetricFamily(f"pynet_{name}", help_text, labels=labels)
    for kind, number in sorted(numbers.items()):
        family.add_metric([kind] if labels else [], number)
    return family


def _tell_of_networks(state: State, traffic: Mapping[str, Traffic]) -> Iterator[Metric]:
    from prometheus_client.metrics_core import (  # noqa: PLC0415
        CounterMetricFamily,
        GaugeMetricFamily,
    )

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
    for endpoint in endpoints:
        of_endpoint = traffic.get(host_end_name(endpoint.id))
        if of_endpoint is not None:
            names = [short(endpoint.network_id), short(endpoint.id)]
            for field, family in passed.items():
                family.add_metric(names, getattr(of_endpoint, field))
    yield from passed.values()
