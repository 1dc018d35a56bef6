"""What the parts of a diagnosis say: a step a layer, and how a fault is told; no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from driver.diagnosis.causes import Found, found

if TYPE_CHECKING:
    from driver.diagnosis.facts import View

OK, FAULT, WARNING, UNKNOWN = "ok", "fault", "warn", "unknown"
RESOLVER = "127.0.0.11"  # Docker's own, in every container of a network with a name
IPV4, IPV6 = 4, 6


@dataclass(frozen=True, slots=True)
class Step:
    """What was found at a layer."""

    layer: str
    state: str
    text: str
    cause: Found | None = None
    evidence: dict[str, Any] = field(default_factory=dict)


def fault(layer: str, cause: str, text: str | None = None, /, **words: object) -> Step:
    """Return a step that says a cause, by its id and words; `text` if it says more than those."""
    told = found(cause, **words)
    return Step(layer, FAULT, text or told.text, told)


def source_check(view: View, interface: str) -> int:
    """Return the rp_filter in force: the stricter of two (ip-sysctl.rst)."""
    values = (
        view.sysctls.get(f"net.ipv4.conf.{each}.rp_filter", "0") for each in ("all", interface)
    )
    return max(map(int, values))
