"""What containers do with their networks over their life."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.engine.steps import (
    DUAL_STACK,
    address,
    create_network,
    endpoint,
    execute,
    global_addresses,
    interfaces,
    ping,
    run,
    stop,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine

pytestmark = pytest.mark.managed

FORWARD_POLICIES = (("iptables", "10.77.0.3"), ("ip6tables", "fd77::3"))


@contextmanager
def forward_policy(engine: Engine, command: str, policy: str) -> Iterator[None]:
    """Have a FORWARD policy inside the block."""
    before = engine.run(command, "-S", "FORWARD").stdout.split()[2]
    engine.run(command, "-P", "FORWARD", policy)
    yield
    engine.run(command, "-P", "FORWARD", before)


@pytest.mark.parametrize(("command", "target"), FORWARD_POLICIES)
def test_containers_reach_each_other_where_forward_drops(
    engine: Engine, command: str, target: str
) -> None:
    frames_pass_iptables = f"/proc/sys/net/bridge/bridge-nf-call-{command}"
    engine.run("tee", frames_pass_iptables, stdin="1")
    create_network(engine, "back", *DUAL_STACK)
    for name in ("left", "right"):
        run(engine, name, "back")
    with forward_policy(engine, command, "DROP"):
        assert engine.run("cat", frames_pass_iptables).stdout == "1\n"
        ping(engine, "left", target)


def test_a_container_is_stopped_started_and_restarted(engine: Engine) -> None:
    create_network(engine, "back")
    for name in ("left", "right"):
        run(engine, name, "back")
    for step in (("stop", "-t", "0"), ("start",), ("restart", "-t", "0")):
        engine.docker(*step, "left")
        if step[0] != "stop":
            ping(engine, "left", "right")
            ping(engine, "right", "left")


def test_a_container_may_end_by_itself_and_be_started_again(engine: Engine) -> None:
    create_network(engine, "back")
    engine.docker("run", "--name", "brief", "--network", "back", "bb", "true")
    for _ in range(3):
        engine.docker("start", "--attach", "brief")


@pytest.mark.managed("always")
def test_a_running_container_is_connected_and_disconnected(engine: Engine) -> None:
    for network in ("front", "back"):
        create_network(engine, network)
    run(engine, "box", "front")
    run(engine, "peer", "back")
    for _ in range(2):
        engine.docker("network", "connect", "back", "box")
        assert len(interfaces(engine, "box")) == 2
        ping(engine, "box", "peer")
        engine.docker("network", "disconnect", "back", "box")
        assert set(interfaces(engine, "box")) == {"eth0"}
    engine.docker("network", "disconnect", "front", "box")
    assert not interfaces(engine, "box")


def test_a_container_is_in_two_networks(engine: Engine) -> None:
    for network in ("front", "back"):
        create_network(engine, network)
        run(engine, f"{network}-peer", network)
    engine.docker("create", "--name", "box", "--network", "front", "bb", "sleep", "1000")
    engine.docker("network", "connect", "back", "box")
    for _ in range(2):
        engine.docker("start", "box")
        assert len(interfaces(engine, "box")) == 2
        for network in ("front", "back"):
            ping(engine, "box", f"{network}-peer")
        stop(engine, "box")


@pytest.mark.managed("always")
def test_a_container_has_the_addresses_that_were_asked_for(engine: Engine) -> None:
    create_network(engine, "back", *DUAL_STACK)
    wishes = ("--ip", "10.77.0.50", "--ip6", "fd77::50", "--mac-address", "02:00:00:00:be:ef")
    run(engine, "box", "back", *wishes)
    run(engine, "peer", "back")
    link = interfaces(engine, "box")["eth0"]
    assert global_addresses(link) == {"10.77.0.50/24", "fd77::50/64"}
    assert link["address"] == "02:00:00:00:be:ef"
    assert endpoint(engine, "box", "back")["MacAddress"] == "02:00:00:00:be:ef"
    for target in ("10.77.0.50", "fd77::50"):
        ping(engine, "peer", target)


def test_an_address_that_comes_back_has_the_same_mac(engine: Engine) -> None:
    create_network(engine, "back", *DUAL_STACK)
    run(engine, "peer", "back", "--ip", "10.77.0.9")
    macs = set()
    for name in ("first", "second"):
        run(engine, name, "back", "--ip", "10.77.0.50")
        macs.add(interfaces(engine, name)["eth0"]["address"])
        ping(engine, "peer", "10.77.0.50")
        engine.docker("rm", "-f", name)
    assert len(macs) == 1


def test_containers_find_each_other_by_name_and_alias(engine: Engine) -> None:
    create_network(engine, "back")
    run(engine, "database", "back", "--network-alias", "db")
    run(engine, "web", "back")
    for name in ("database", "db"):
        assert address(engine, "database", "back") in execute(engine, "web", "ping", "-c1", name)
    ping(engine, "database", "web")
    engine.docker("network", "disconnect", "back", "web")
    engine.docker("network", "connect", "--alias", "www", "back", "web")
    ping(engine, "database", "www")
