"""The driver is killed at any moment and started again: nobody notices, and nothing is orphaned."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.engine.interceptor import intercepted
from tests.engine.remains import await_nothing_left, rows
from tests.engine.site import transferring
from tests.engine.steps import (
    DUAL_STACK,
    KEEPALIVE,
    create_network,
    kernel_value,
    ping,
    revive_driver,
    run,
    stop,
    sysctl_options,
)
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine
    from tests.engine.interceptor import Forward

pytestmark = pytest.mark.managed

WANTED = sysctl_options({KEEPALIVE: "600", "net.ipv4.conf.IFNAME.arp_notify": "1"})
ARP_NOTIFY = "net.ipv4.conf.eth0.arp_notify"
FOREVER = ("bb", "sleep", "1000")
AT_ONCE = 6
RESTARTS = 2  # of either kind


def has_parameters(engine: Engine, container: str) -> bool:
    """Tell whether a container has its parameters; a driver that has just started gives them."""
    values = (kernel_value(engine, container, key) for key in (KEEPALIVE, ARP_NOTIFY))
    return list(values) == ["600", "1"]


def works(engine: Engine) -> None:
    """Have `box` and `peer` reach each other, `box` with its parameters."""
    ping(engine, "box", "peer")
    ping(engine, "peer", "10.77.0.50")
    wait_until(lambda: has_parameters(engine, "box"), 10, "the parameters of box")


def life(engine: Engine) -> Iterator[None]:
    """Go through a container's life, from its networks' creation to their removal."""
    create_network(engine, "back", *DUAL_STACK, *WANTED)
    create_network(engine, "side")
    yield
    run(engine, "peer", "back")
    yield
    run(engine, "box", "back", "--ip", "10.77.0.50")
    yield
    works(engine)
    yield
    engine.docker("network", "connect", "side", "box")
    yield
    works(engine)
    engine.docker("network", "disconnect", "side", "box")
    yield
    works(engine)
    stop(engine, "box")
    yield
    engine.docker("start", "box")
    yield
    works(engine)
    engine.docker("restart", "-t", "0", "box")
    yield
    works(engine)
    engine.docker("rm", "-f", "box")
    yield
    engine.docker("rm", "-f", "peer")
    yield
    engine.docker("network", "rm", "back", "side")


def test_killed_between_steps_and_before_every_call_of_docker(engine: Engine) -> None:
    calls = [""]

    def kill_first(call: str, forward: Forward) -> tuple[int, bytes]:
        if call != calls[-1]:  # Docker asks for an endpoint's state three times in a row
            revive_driver(engine)
        calls.append(call)
        return forward()

    with intercepted(engine, kill_first):
        for _ in life(engine):
            revive_driver(engine)
        await_nothing_left(engine)
    assert {"CreateNetwork", "CreateEndpoint", "Join", "Leave", "DeleteEndpoint"} <= set(calls)


class Cutter:
    """Pass calls on, but kill the driver within the next one of a kind: Docker gets no reply."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._call: str | None = None
        self._handled = False

    def arm(self, call: str, *, handled: bool) -> None:
        """Cut the next such call, when the driver has handled it or before."""
        self._call, self._handled = call, handled

    @property
    def armed(self) -> bool:
        """Tell whether the call is still to come."""
        return self._call is not None

    def __call__(self, call: str, forward: Forward) -> tuple[int, bytes] | None:
        if call != self._call:
            return forward()
        if self._handled:
            forward()
        revive_driver(self._engine)
        self._call = None
        return None


STARTING = ("start", "box")
STOPPING = ("stop", "-t", "0", "box")
CUTS = (
    (STARTING, "CreateEndpoint", True),
    (STARTING, "Join", True),
    (STARTING, "Join", False),
    (STARTING, "EndpointOperInfo", True),
    (STOPPING, "Leave", False),
    (STOPPING, "DeleteEndpoint", False),
)


def test_killed_within_a_call_of_docker(engine: Engine) -> None:
    """Docker repeats the call with an empty body, is refused, and fails; the next start works."""
    create_network(engine, "back", *DUAL_STACK, *WANTED)
    run(engine, "peer", "back")
    engine.docker("create", "--name=box", "--network=back", "--ip=10.77.0.50", *FOREVER)
    cutter = Cutter(engine)
    with intercepted(engine, cutter):
        for step, call, handled in CUTS:
            if step == STOPPING:
                engine.docker("start", "box")
            cutter.arm(call, handled=handled)
            engine.docker(*step, check=False)
            wait_until(lambda: not cutter.armed, 10, "the call to be cut")
            engine.docker("start", "box")
            works(engine)
            stop(engine, "box")
        engine.docker("rm", "-f", "box", "peer")
        engine.docker("network", "rm", "back")
        await_nothing_left(engine)


def test_killed_while_docker_creates_a_network(engine: Engine) -> None:
    """Docker has no network then; the driver's goes when its addresses are given out again."""
    creation = ("network", "create", "-d", "pynet", *DUAL_STACK, *WANTED, "back")
    cutter = Cutter(engine)
    with intercepted(engine, cutter):
        cutter.arm("CreateNetwork", handled=True)
        assert engine.docker(*creation, check=False).returncode != 0
        engine.docker(*creation)
        assert rows(engine)["network"] == 1
        engine.docker("network", "rm", "back")
        await_nothing_left(engine)


def test_no_byte_is_lost_over_restarts(engine: Engine) -> None:
    create_network(engine, "back", *DUAL_STACK)
    for name in ("source", "target"):
        run(engine, name, "back")
    with transferring(engine, "source", "target") as transfer:
        for _ in range(RESTARTS):
            assert engine.driver is not None
            engine.driver.terminate()
            engine.start_driver()
            revive_driver(engine)
        assert transfer.poll() is None
    engine.docker("rm", "-f", "source", "target")
    engine.docker("network", "rm", "back")
    await_nothing_left(engine)


def test_killed_while_containers_are_starting(engine: Engine) -> None:
    create_network(engine, "back", *DUAL_STACK, *WANTED)
    names = [f"box{number}" for number in range(AT_ONCE)]
    for name in names:
        engine.docker("create", "--name", name, "--network", "back", *FOREVER)
    joins = engine.log("driver").count(" INFO Join ")

    def start(name: str) -> bool:
        return engine.docker("start", name, check=False).returncode == 0

    with ThreadPoolExecutor(AT_ONCE) as pool:
        starts = pool.map(start, names)
        wait_until(lambda: engine.log("driver").count(" INFO Join ") > joins, 20, "a join")
        revive_driver(engine)
        started = sum(starts)
    print(f"\n{engine.version}: {started} of {AT_ONCE} starts survived the driver's death")
    engine.docker("start", *names)
    for name in names:
        ping(engine, name, names[0])
        wait_until(partial(has_parameters, engine, name), 10, f"the parameters of {name}")
    engine.docker("rm", "-f", *names)
    engine.docker("network", "rm", "back")
    await_nothing_left(engine)
