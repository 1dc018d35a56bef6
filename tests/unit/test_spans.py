"""What the benchmark measures inside the driver is there, under the names that it knows."""

from __future__ import annotations

from importlib import import_module
from operator import attrgetter

import pytest

from bench.spans import SPANS


@pytest.mark.parametrize(
    ("module", "path"), [(module, path) for module, paths in SPANS.items() for path in paths]
)
def test_what_is_measured_has_that_name(module: str, path: str) -> None:
    assert callable(attrgetter(path)(import_module(module)))
