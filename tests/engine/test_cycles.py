"""A driver that has served for long holds no more than one that has just begun."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.remains import Usage, links, rows
from tests.engine.soak import at_rest, make_all_threads, repetitions
from tests.engine.steps import (
    KEEPALIVE,
    create_network,
    kernel_value,
    revive_driver,
    stop,
    sysctl_options,
)
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from tests.engine.engine import Engine

pytestmark = pytest.mark.managed

WARM_UP = 2


def cycle(engine: Engine, times: int) -> None:
    """Start and stop the container."""
    for _ in range(times):
        engine.docker("start", "box")
        stop(engine, "box")


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_nothing_grows_with_the_number_of_starts(engine: Engine) -> None:
    driver = revive_driver(engine)
    make_all_threads(driver.socket, lambda: Usage.of(engine).threads, lambda: len(driver.pids))
    create_network(engine, "front", *sysctl_options({KEEPALIVE: "600"}))
    create_network(engine, "back", *sysctl_options({"net.ipv4.conf.IFNAME.arp_notify": "1"}))
    engine.docker("create", "--name", "box", "--network", "front", "bb", "sleep", "1000")
    engine.docker("network", "connect", "back", "box")
    at_first = (links(engine), rows(engine))
    cycle(engine, WARM_UP)
    wait_until(lambda: (links(engine), rows(engine)) == at_first, 10, "the links deleted")
    before = at_rest(lambda: Usage.of(engine))
    count = repetitions(200)
    cycle(engine, count)
    wait_until(lambda: (links(engine), rows(engine)) == at_first, 10, "the links deleted")
    after = at_rest(lambda: Usage.of(engine))
    print(f"\n{engine.version}: {count} starts and stops, from {before} to {after}")
    assert after == before
    engine.docker("start", "box")
    assert kernel_value(engine, "box", KEEPALIVE) == "600"
