"""Lend real engines to tests, and take them back clean."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engine.engine import Engine
from tests.engine.remains import await_nothing_left
from tests.engine.rootfs import SUITES

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

EVERY_SUITE = [pytest.param(suite.name, id=suite.engine) for suite in SUITES.values()]
PREDEFINED_NETWORKS = ("bridge", "host", "none")
LOG_LINES = 60


class Engines:
    """The engines of a test session, each started when it is first asked for."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._engines: dict[str, Engine] = {}

    def get(self, suite: str) -> Engine:
        """Return the engine of a suite."""
        if suite not in self._engines:
            self._engines[suite] = self._stack.enter_context(Engine(suite))
        return self._engines[suite]

    def lend(self, suite: str, *, driver: bool) -> Iterator[Engine]:
        """Lend an engine; what cannot be cleaned afterwards is not lent again.

        A spoilt engine stays until the session ends, for its logs belong to the test's report.
        """
        engine = self.get(suite)
        settle(engine, driver=driver)
        yield engine
        try:
            clean(engine, driver=driver)
        except BaseException:
            del self._engines[suite]
            raise


def settle(engine: Engine, *, driver: bool) -> None:
    """Have the engine, and the driver if the test wants it, run as if nobody had used them."""
    if engine.dockerd_running and engine.extra_args:
        engine.stop_dockerd()
    if engine.driver and engine.driver.running and (engine.driver.env or engine.driver.wrapper):
        engine.driver.terminate()
    start(engine, driver=driver)


def start(engine: Engine, *, driver: bool) -> None:
    """Start what does not run."""
    if driver and not (engine.driver and engine.driver.running):
        engine.start_driver()
    if not engine.dockerd_running:
        engine.start_dockerd()


def clean(engine: Engine, *, driver: bool) -> None:
    """Remove all containers and networks; nothing of the driver's may be left then."""
    start(engine, driver=driver)
    for container in engine.client.containers.list(all=True):
        container.remove(force=True, v=True)
    for network in engine.client.networks.list():
        if network.name not in PREDEFINED_NETWORKS:
            network.remove()
    if driver:
        await_nothing_left(engine)


@pytest.fixture(scope="session")
def engines() -> Iterator[Engines]:
    """Keep the engines of the session."""
    if os.geteuid() != 0:
        pytest.skip("engines need root")
    with ExitStack() as stack:
        yield Engines(stack)


@pytest.fixture(params=EVERY_SUITE)
def engine(request: pytest.FixtureRequest, engines: Engines) -> Iterator[Engine]:
    """Lend each suite's engine, with the driver running."""
    yield from engines.lend(request.param, driver=True)


@pytest.fixture(params=EVERY_SUITE)
def bare_engine(request: pytest.FixtureRequest, engines: Engines) -> Iterator[Engine]:
    """Lend each suite's engine, whether or not the driver runs."""
    yield from engines.lend(request.param, driver=False)


@pytest.fixture
def engine28(engines: Engines) -> Iterator[Engine]:
    """Lend the newest engine, with the driver running."""
    yield from engines.lend("forky", driver=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("engine")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to the report of a failure what the driver and dockerd wrote last."""
    report = yield
    if report.failed:
        for lent in getattr(item, "funcargs", {}).values():
            if isinstance(lent, Engine):
                report.sections.extend(log_tails(lent))
    return report


def log_tails(engine: Engine) -> Iterator[tuple[str, str]]:
    """Yield the end of each log, with a title."""
    for name in ("driver", "dockerd"):
        yield f"{name} log, {engine.suite}", "\n".join(engine.log(name).splitlines()[-LOG_LINES:])
