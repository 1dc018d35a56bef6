"""Lend real engines to tests, and take them back clean.

A test that asks for `engine` runs on every suite's, with the driver as a process; one that is
marked `managed` runs with the managed plugin as well (see `pytest_generate_tests`).
"""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from driver.reconcile.watcher import REPAIRS
from tests.engine import plugin_image
from tests.engine.driver import DriverProcess
from tests.engine.engine import Engine
from tests.engine.managed import ManagedPlugin
from tests.engine.remains import await_nothing_left
from tests.engine.rootfs import SUITES
from tests.engine.soak import is_in_full
from tests.engine.steps import revive_driver
from tests.engine.unixhttp import request

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from _pytest.mark.structures import ParameterSet

    from tests.engine.driver import Driver

EVERY_SUITE = [pytest.param(suite.name, id=suite.engine) for suite in SUITES.values()]
NEWEST = "forky"
# For a test that needs an engine of its own: the newest, and in a full soak every one.
THRIFTY = [
    pytest.param(suite.name, id=suite.engine, marks=pytest.mark.soak if is_in_full() else ())
    for suite in SUITES.values()
    if suite.name == NEWEST or is_in_full()
]
PREDEFINED_NETWORKS = ("bridge", "host", "none")
LOG_LINES = 60


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine to run a test on: whose, and with which kind of driver."""

    suite: str
    drivers: type[Driver] = DriverProcess

    @property
    def name(self) -> str:
        """Return what stands for it in a test's name."""
        version = SUITES[self.suite].engine
        return f"{version}-plugin" if self.drivers is ManagedPlugin else version


class Engines:
    """The engines of a test session, each started when it is first asked for."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._engines: dict[Choice, Engine] = {}

    def get(self, choice: Choice) -> Engine:
        """Return the engine."""
        if choice not in self._engines:
            engine = Engine(choice.suite, drivers=choice.drivers)
            self._engines[choice] = self._stack.enter_context(engine)
        return self._engines[choice]

    def lend(self, choice: Choice, *, driver: bool) -> Iterator[Engine]:
        """Lend an engine; what cannot be cleaned afterwards is not lent again.

        A spoilt engine stays until the session ends, for its logs belong to the test's report.
        """
        engine = self.get(choice)
        settle(engine, driver=driver)
        yield engine
        try:
            clean(engine, driver=driver)
        except BaseException:
            del self._engines[choice]
            raise


def settle(engine: Engine, *, driver: bool) -> None:
    """Have the engine, and the driver if the test wants it, run as if nobody had used them."""
    if engine.dockerd_running and engine.extra_args:
        engine.stop_dockerd()
    if engine.driver and engine.driver.running and (engine.driver.env or engine.driver.wrapper):
        engine.driver.terminate()
    start(engine, driver=driver)
    if driver and has_repaired(engine):
        revive_driver(engine)


def start(engine: Engine, *, driver: bool) -> None:
    """Start what does not run; the engine first if it is the engine that runs the driver."""
    if engine.drivers is ManagedPlugin and not engine.dockerd_running:
        engine.start_dockerd()
    if driver and not (engine.driver and engine.driver.running):
        engine.start_driver()
    if not engine.dockerd_running:
        engine.start_dockerd()


def has_repaired(engine: Engine) -> bool:
    """Tell whether the driver has put so much back that the next repair may be a contested one.

    It remembers that for a minute, and health tells it, which the next test would find.
    """
    assert engine.driver is not None
    metrics = request(engine.driver.socket, "GET", "/metrics")[1].decode()
    counts = re.findall(r"^pynet_repairs_total\{.*\} (\d+)", metrics, re.MULTILINE)
    return sum(map(int, counts)) >= REPAIRS


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


@pytest.fixture(scope="session")
def builder() -> Iterator[Engine]:
    """Lend the engine that plugins are built on, which is not cleaned in between."""
    with Engine(plugin_image.BUILDER) as engine:
        yield engine


@pytest.fixture
def engine(request: pytest.FixtureRequest, engines: Engines) -> Iterator[Engine]:
    """Lend each suite's engine, with the driver running."""
    yield from engines.lend(request.param, driver=True)


@pytest.fixture
def engine28(request: pytest.FixtureRequest, engines: Engines) -> Iterator[Engine]:
    """Lend the newest engine, with the driver running."""
    yield from engines.lend(request.param, driver=True)


@pytest.fixture
def newest_engine(request: pytest.FixtureRequest, engines: Engines) -> Iterator[Engine]:
    """Lend the newest engine, in a full soak every one, with the driver running."""
    yield from engines.lend(request.param, driver=True)


@pytest.fixture
def managed_engine(request: pytest.FixtureRequest, engines: Engines) -> Iterator[Engine]:
    """Lend each suite's engine, with the managed plugin running."""
    yield from engines.lend(request.param, driver=True)


@pytest.fixture(params=EVERY_SUITE)
def bare_engine(request: pytest.FixtureRequest, engines: Engines) -> Iterator[Engine]:
    """Lend each suite's engine, whether or not the driver runs."""
    yield from engines.lend(Choice(request.param), driver=False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the engines of a test, and when it runs with the managed plugin.

    Marked `managed`, it does so in a full soak, on the newest engine; `managed("always")`, in every
    run, and on the older engines in a full soak; `managed("everywhere")`, in every run on all. One
    that is of the plugin alone is of the second kind unless it says otherwise.
    """
    every, newest = tuple(SUITES), (NEWEST,)
    mark = metafunc.definition.get_closest_marker("managed")
    when = "never" if mark is None else mark.args[0] if mark.args else "soak"
    for fixture, suites in (("engine", every), ("engine28", newest), ("newest_engine", every)):
        if fixture in metafunc.fixturenames:
            is_thrifty = fixture == "newest_engine"
            marks = pytest.mark.soak if is_thrifty and is_in_full() else ()
            lent = suites if is_in_full() or not is_thrifty else newest
            choices = [pytest.param(each, id=each.name, marks=marks) for each in map(Choice, lent)]
            choices += choose_managed(suites, when)
            metafunc.parametrize(fixture, choices, indirect=True)
    if "managed_engine" in metafunc.fixturenames:
        choices = [*choose_managed(every, when if mark else "always")]
        metafunc.parametrize("managed_engine", choices, indirect=True)


def choose_managed(suites: Sequence[str], when: str) -> Iterator[ParameterSet]:
    """Yield the engines that run the managed plugin for a test."""
    for suite in suites:
        choice = Choice(suite, ManagedPlugin)
        if when == "everywhere" or (when == "always" and suite == NEWEST):
            yield pytest.param(choice, id=choice.name)
        elif is_in_full() and (when == "always" or (when == "soak" and suite == NEWEST)):
            yield pytest.param(choice, id=choice.name, marks=pytest.mark.soak)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder, and leave out what would be the same twice."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("engine")
    items[:] = [item for item in items if not is_without_our_driver(item)]


def is_without_our_driver(item: pytest.Item) -> bool:
    """Tell whether a test of Docker's own bridge is to run beside another kind of ours."""
    callspec = getattr(item, "callspec", None)
    values = callspec.params if callspec else {}
    choices = (values.get("engine"), values.get("engine28"))
    managed = any(choice and choice.drivers is ManagedPlugin for choice in choices)
    return managed and values.get("driver") == "bridge"


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
