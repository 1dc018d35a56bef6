"""Lend a driver on a kernel in memory and a state file in a folder of the test's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from driver.bridge import BridgeDriver
from driver.store import Store
from tests.fakes import FakeKernel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Nothing is written into the tree, which may be somebody else's, and a busy machine may be slow.
settings.register_profile("pynet", database=None, deadline=None)
settings.load_profile("pynet")
pytest.register_assert_rewrite("tests.unit.faults")


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "state")
    yield opened
    opened.close()


@pytest.fixture
def driver(store: Store, kernel: FakeKernel) -> BridgeDriver:
    return BridgeDriver(store, kernel)
