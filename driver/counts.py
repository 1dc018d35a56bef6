"""The driver's Prometheus counters: repairs, evictions, misses, written parameters."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class Counts:
    """The counters, in a registry of their own. Each begins anew with the process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.repairs = self._counter("repairs", "What others had broken and was mended.", "kind")
        self.evictions = self._counter(
            "evictions", "What Docker had forgotten and made way.", "kind"
        )
        self.leftovers = self._counter(
            "leftovers", "What belonged to nothing and was removed.", "kind"
        )
        self.sysctl_writes = self._counter("sysctl_writes", "Parameters written into sandboxes.")
        self.watch_misses = self._counter(
            "watch_misses",
            "Sandboxes, or their interfaces, that were awaited and not seen in time.",
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"pynet_{name}", text, labels, registry=self.registry)
