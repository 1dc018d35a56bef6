"""Many containers are started at once: all of them work, on addresses of their own."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.engine.remains import await_nothing_left
from tests.engine.steps import address, create_network, ping

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.engine.engine import Engine

IS_FULL = os.environ.get("PYNET_SOAK") == "1"
CONTAINERS, TIMES = (100, 3) if IS_FULL else (30, 1)
AT_ONCE = 16  # questions; the starts have no bound


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_many_started_at_once(
    engine28: Engine, record_property: Callable[[str, object], None]
) -> None:
    api = engine28.client.api
    create_network(engine28, "back", "--subnet", "10.77.0.0/16")
    names = [f"box{number}" for number in range(CONTAINERS)]
    for name in names:
        engine28.docker("create", "--name", name, "--network=back", "bb", "sleep", "9999")
    for _ in range(TIMES):
        with ThreadPoolExecutor(CONTAINERS) as starters:
            list(starters.map(api.start, names))
        addresses = {address(engine28, name, "back") for name in names}
        assert len(addresses) == CONTAINERS
        with ThreadPoolExecutor(AT_ONCE) as askers:
            list(askers.map(lambda name: ping(engine28, name, names[0]), names))
        with ThreadPoolExecutor(CONTAINERS) as stoppers:
            list(stoppers.map(lambda name: api.stop(name, timeout=0), names))
    record_property("containers started at once", f"{CONTAINERS}, {TIMES} times")
    with ThreadPoolExecutor(CONTAINERS) as removers:
        list(removers.map(lambda name: api.remove_container(name, force=True), names))
    engine28.docker("network", "rm", "back")
    await_nothing_left(engine28)
    assert "does not expect" not in engine28.log("driver")
