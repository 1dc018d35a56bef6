"""What a network is on the host and in its containers: bridge, pools, families, options."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.remains import await_nothing_left, driver_remains
from tests.engine.steps import (
    DUAL_STACK,
    IPV4,
    IPV6,
    address,
    can_ping,
    create_network,
    execute,
    global_addresses,
    host_link,
    interfaces,
    ping,
    run,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine

pytestmark = pytest.mark.managed

BRIDGE_NAME = "com.docker.network.bridge.name"
FOREIGN = "br-foreign"


@pytest.fixture
def foreign_bridge(engine: Engine) -> Iterator[str]:
    """Have a bridge that another program made."""
    engine.run("ip", "link", "add", FOREIGN, "type", "bridge")
    engine.run("ip", "address", "add", "10.99.0.1/24", "dev", FOREIGN)
    yield FOREIGN
    engine.run("ip", "link", "delete", FOREIGN)


@pytest.mark.managed("always")
def test_a_network_is_created_inspected_and_removed(engine: Engine) -> None:
    identity = create_network(engine, "back", "--subnet", IPV4, "-o", "net.ipv4.tcp_sack=0")
    told = engine.client.networks.get("back").attrs
    assert (told["Driver"], told["Scope"]) == ("pynet", "local")
    assert told["Options"] == {"net.ipv4.tcp_sack": "0"}
    bridge = host_link(engine, f"pn-{identity[:12]}")
    assert bridge is not None
    assert bridge["linkinfo"]["info_kind"] == "bridge"
    assert identity in bridge["ifalias"]
    assert global_addresses(bridge) == {"10.77.0.1/24"}
    engine.docker("network", "rm", "back")
    assert not engine.client.networks.list(names=["back"])
    assert not driver_remains(engine)


def test_several_networks_come_and_go_independently(engine: Engine) -> None:
    for name in ("one", "two", "three"):
        create_network(engine, name)
    engine.docker("network", "rm", "two")
    for network in ("one", "three"):
        for side in ("left", "right"):
            run(engine, f"{network}-{side}", network)
        ping(engine, f"{network}-left", f"{network}-right")


def test_the_bridge_has_the_name_that_was_asked_for(engine: Engine) -> None:
    create_network(engine, "named", "-o", f"{BRIDGE_NAME}=br-of-fifteen-1")
    assert host_link(engine, "br-of-fifteen-1")
    engine.docker("network", "rm", "named")
    assert not host_link(engine, "br-of-fifteen-1")


def test_a_bridge_that_exists_is_used_and_not_deleted(engine: Engine, foreign_bridge: str) -> None:
    create_network(engine, "guest", "--subnet", IPV4, "-o", f"{BRIDGE_NAME}={foreign_bridge}")
    for name in ("left", "right"):
        run(engine, name, "guest")
    ping(engine, "left", address(engine, "right", "guest"))
    bridge = host_link(engine, foreign_bridge)
    assert bridge is not None
    assert global_addresses(bridge) == {"10.99.0.1/24", "10.77.0.1/24"}
    engine.docker("rm", "-f", "left", "right")
    engine.docker("network", "rm", "guest")
    bridge = host_link(engine, foreign_bridge)
    assert bridge is not None
    assert global_addresses(bridge) == {"10.99.0.1/24"}
    await_nothing_left(engine)


def test_the_mtu_is_seen_in_the_container(engine: Engine) -> None:
    create_network(engine, "small", "-o", "com.docker.network.driver.mtu=1400")
    run(engine, "box", "small")
    assert execute(engine, "box", "cat", "/sys/class/net/eth0/mtu") == "1400\n"


def test_interfaces_have_the_prefix_that_was_asked_for(engine: Engine) -> None:
    create_network(engine, "lan", "-o", "com.docker.network.container_iface_prefix=lan")
    run(engine, "box", "lan")
    assert list(interfaces(engine, "box")) == ["lan0"]


def test_the_bridge_has_the_gateway_of_every_pool(engine: Engine) -> None:
    pools = (
        *("--subnet", "10.77.1.0/24", "--gateway", "10.77.1.254"),
        *("--subnet", "10.77.2.0/24"),
        *("--ipv6", "--subnet", "fd77:1::/64", "--subnet", "fd77:2::/64"),
    )
    identity = create_network(engine, "wide", *pools)
    bridge = host_link(engine, f"pn-{identity[:12]}")
    assert bridge is not None
    assert global_addresses(bridge) == {
        *("10.77.1.254/24", "10.77.2.1/24", "fd77:1::1/64", "fd77:2::1/64"),
    }
    run(engine, "first", "wide", "--ip", "10.77.1.5", "--ip6", "fd77:1::5")
    run(engine, "second", "wide", "--ip", "10.77.2.5", "--ip6", "fd77:2::5")
    assert "default via 10.77.2.1 " in execute(engine, "second", "ip", "route")
    for target in ("10.77.1.254", "fd77:1::1", "10.77.2.5"):
        ping(engine, "first", target)  # the last one from pool to pool, through the gateways


def test_an_ipv4_network_has_no_ipv6(engine: Engine) -> None:
    create_network(engine, "four", "--subnet", IPV4)
    run(engine, "box", "four")
    assert global_addresses(interfaces(engine, "box")["eth0"]) == {"10.77.0.2/24"}
    assert "default" not in execute(engine, "box", "ip", "-6", "route")


@pytest.mark.managed("always")
def test_a_dual_stack_network_has_both(engine: Engine) -> None:
    create_network(engine, "both", *DUAL_STACK)
    run(engine, "box", "both")
    assert global_addresses(interfaces(engine, "box")["eth0"]) == {"10.77.0.2/24", "fd77::2/64"}
    for target in ("10.77.0.1", "fd77::1"):
        ping(engine, "box", target)
    assert "default via 10.77.0.1 " in execute(engine, "box", "ip", "route")
    assert "default via fd77::1 " in execute(engine, "box", "ip", "-6", "route")


def test_a_network_of_ipv6_alone(engine28: Engine) -> None:
    create_network(engine28, "six", "--ipv4=false", "--ipv6", "--subnet", IPV6)
    for name in ("left", "right"):
        run(engine28, name, "six")
    assert global_addresses(interfaces(engine28, "left")["eth0"]) == {"fd77::2/64"}
    assert "default" not in execute(engine28, "left", "ip", "route")
    for target in ("fd77::1", "fd77::3", "right"):
        ping(engine28, "left", target)


@pytest.mark.managed("always")
def test_an_internal_network_has_no_way_out(engine: Engine) -> None:
    create_network(engine, "inner", "--internal", *DUAL_STACK)
    for name in ("left", "right"):
        run(engine, name, "inner")
    for family in ("-4", "-6"):
        assert "default" not in execute(engine, "left", "ip", family, "route")
    for target in ("right", "10.77.0.3", "fd77::3"):
        ping(engine, "left", target)
    assert not can_ping(engine, "left", "192.0.2.2")
