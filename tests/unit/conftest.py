"""Lend a driver on a kernel in memory and a state file in a folder of the test's own."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from driver.driver import BridgeDriver
from driver.state.store import Store
from tests.fakes import FakeKernel
from tests.unit.command import run, run_without_docker, serve, with_networks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["run", "run_without_docker", "serve", "with_networks"]  # fixtures

# Nothing is written into the tree, which may be another program's, and a busy machine may be slow.
settings.register_profile("pynet", database=None, deadline=None)
settings.load_profile("pynet")
pytest.register_assert_rewrite("tests.unit.faults", "tests.unit.strangers")


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


class Unexpected(logging.Handler):
    """Remember what was logged of failures that pynet does not expect."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "does not expect" in record.getMessage():
            self.records.append(self.format(record))


@pytest.fixture
def quiet() -> Iterator[Unexpected]:
    """Keep the log from being written a hundred thousand times; lend what it says of defects."""
    logs = {name: logging.getLogger(name) for name in ("pynet", "driver")}
    levels = {name: log.level for name, log in logs.items()}
    handler = Unexpected()
    logs["pynet"].addHandler(handler)
    logs["pynet"].setLevel(logging.ERROR)
    logs["driver"].setLevel(logging.CRITICAL)
    yield handler
    logs["pynet"].removeHandler(handler)
    for name, log in logs.items():
        log.setLevel(levels[name])
