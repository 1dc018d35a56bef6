"""How often the long repetitions are repeated: in full for the soak, a tenth otherwise."""

from __future__ import annotations

import os

PART = 10


def is_in_full() -> bool:
    """Tell whether this is the full soak."""
    return os.environ.get("PYNET_SOAK") == "1"


def repetitions(full: int) -> int:
    """Return how often to repeat what a full run repeats so often."""
    return full if is_in_full() else full // PART
