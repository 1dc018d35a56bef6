"""dockerd ends, gracefully or not, and is started again; so is the whole machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.engine import Engine
from tests.engine.remains import await_nothing_left
from tests.engine.site import transferring
from tests.engine.steps import (
    IPV4,
    KEEPALIVE,
    address,
    create_network,
    kernel_value,
    ping,
    revive_driver,
    run,
    settings,
    stop,
    sysctl_options,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.managed

LIVE_RESTORE = "--live-restore"
STATIC, STATIC_TOO = "10.77.0.50", "10.77.0.60"
# The containers' process has no handler that SIGTERM could reach, and dockerd would wait for it.
DIES_AT_ONCE = ("--stop-signal", "KILL")

ends = pytest.mark.parametrize(
    "end", [Engine.stop_dockerd, Engine.kill_dockerd], ids=["stopped", "killed"]
)


def start_containers(engine: Engine) -> None:
    """Have two containers, one with an address of its own and one that Docker starts again."""
    create_network(engine, "back", "--subnet", IPV4, *sysctl_options({KEEPALIVE: "600"}))
    run(engine, "fixed", "back", "--ip", STATIC, *DIES_AT_ONCE)
    run(engine, "lasting", "back", "--ip", STATIC_TOO, "--restart", "always", *DIES_AT_ONCE)
    works(engine)


def works(engine: Engine) -> None:
    """Have the two reach each other, with their parameters."""
    ping(engine, "fixed", "lasting")
    ping(engine, "lasting", STATIC)
    for name in ("fixed", "lasting"):
        assert kernel_value(engine, name, KEEPALIVE) == "600"


def everything_goes_on(engine: Engine) -> None:
    """Use the network and the address again, then remove all; nothing may be left."""
    stop(engine, "fixed")
    engine.docker("start", "fixed")
    works(engine)
    engine.docker("rm", "-f", "fixed")
    run(engine, "fixed", "back", "--ip", STATIC)
    assert address(engine, "fixed", "back") == STATIC
    works(engine)
    create_network(engine, "side")
    engine.docker("network", "connect", "side", "fixed")
    engine.docker("network", "disconnect", "side", "fixed")
    engine.docker("rm", "-f", "fixed", "lasting")
    engine.docker("network", "rm", "back", "side")
    await_nothing_left(engine)


@ends
def test_with_live_restore(engine: Engine, end: Callable[[Engine], None]) -> None:
    engine.stop_dockerd()
    engine.start_dockerd(LIVE_RESTORE)
    start_containers(engine)
    sandbox = settings(engine, "lasting")["SandboxKey"]
    with transferring(engine, "fixed", "lasting"):
        end(engine)
        from_lasting = ("nsenter", f"--net={sandbox}", engine.busybox, "ping", "-c1", "-w10")
        engine.run(*from_lasting, STATIC)
        revive_driver(engine)  # both are gone at once
        engine.run(*from_lasting, STATIC)
        engine.start_dockerd(LIVE_RESTORE)
    works(engine)
    everything_goes_on(engine)


@pytest.mark.managed("always")
@ends
def test_without_live_restore(engine: Engine, end: Callable[[Engine], None]) -> None:
    start_containers(engine)
    end(engine)
    revive_driver(engine)  # both are gone at once
    engine.start_dockerd()
    assert engine.client.containers.get("lasting").status == "running"
    assert engine.client.containers.get("fixed").status == "exited"
    engine.docker("start", "fixed")
    works(engine)
    everything_goes_on(engine)


@pytest.mark.managed("always")
def test_after_a_reboot(engine: Engine) -> None:
    start_containers(engine)
    engine.reboot()
    engine.start_driver()
    engine.start_dockerd()
    assert engine.client.containers.get("lasting").status == "running"
    assert address(engine, "lasting", "back") == STATIC_TOO
    engine.docker("start", "fixed")
    works(engine)
    everything_goes_on(engine)
