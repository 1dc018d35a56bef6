"""What the managed plugin outlives, and what outlives it: crashes, upgrades, moves, restarts.

Under each of them connections carry data all the time: one from another host, through a published
port, and one between two containers. None may break, nor lose a byte.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.engine.connections import NUMBERS, SHORT_NAME, connections, starts_work
from tests.engine.driver import DriverProcess
from tests.engine.plugin_image import NAME
from tests.engine.site import Site
from tests.engine.soak import at_rest, processes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine


@pytest.fixture
def site(managed_engine: Engine) -> Iterator[Site]:
    with Site(managed_engine) as site:
        yield site


@pytest.mark.managed("everywhere")
def test_a_killed_plugin_breaks_no_connection(site: Site) -> None:
    engine = site.engine
    with connections(site, SHORT_NAME, NAME):
        assert engine.driver is not None
        engine.driver.kill()
        engine.start_driver()


def test_settings_are_changed_and_no_connection_breaks(site: Site) -> None:
    engine = site.engine
    with connections(site, SHORT_NAME, NAME):
        assert engine.driver is not None
        engine.driver.terminate()
        engine.start_driver(env={"PYNET_LOG_LEVEL": "DEBUG"})


def test_dockerd_restarts_with_live_restore_and_no_connection_breaks(site: Site) -> None:
    engine = site.engine
    engine.stop_dockerd()
    engine.start_dockerd("--live-restore")
    with connections(site, SHORT_NAME, NAME):
        before = at_rest(lambda: processes(engine))
        engine.stop_dockerd()
        assert processes(engine) >= before  # it lives on, as the containers do
        engine.start_dockerd("--live-restore")
        assert processes(engine) >= before


def test_from_the_service_to_the_plugin_and_back(site: Site) -> None:
    """The first start of a plugin on a host where a service has kept state; and the reverse."""
    engine = site.engine
    assert engine.driver is not None
    engine.driver.terminate()
    shutil.rmtree(engine.state)
    engine.driver = serve(engine)
    with connections(site, SHORT_NAME):
        engine.driver.terminate()
        engine.start_driver()
        starts_work(site, f"net{NUMBERS[SHORT_NAME]}")
        engine.driver.terminate()
        engine.driver = serve(engine)
    engine.driver.terminate()
    engine.start_driver()


def serve(engine: Engine) -> DriverProcess:
    """Run the driver as a service does."""
    driver = DriverProcess(engine)
    driver.wait_ready()
    return driver
