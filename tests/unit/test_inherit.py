"""What networks inherit from the host: which parameters, when, and who is stronger."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from driver.driver import BridgeDriver
from driver.errors import InvalidRequest
from driver.options import INHERIT, parse_network_options
from driver.sysctl.policy import SysctlPolicy
from tests.samples import (
    KEEPALIVE,
    SOMAXCONN,
    endpoint_id,
    network,
    network_id,
    new_endpoint,
    new_join,
    sandbox_key,
    sysctl,
)

if TYPE_CHECKING:
    from driver.state.store import Store
    from tests.fakes import FakeKernel

SANDBOX = sandbox_key(1)
INTERVAL = "net.ipv4.tcp_keepalive_intvl"
ENGINES = pytest.mark.parametrize("sandbox_first", [True, False], ids=["28", "20.10 to 27"])


def join(
    driver: BridgeDriver,
    number: int = 1,
    *wants: str,
    inherit: str = "",
    own: tuple[str, ...] = (),
) -> None:
    """Join the sandbox, which is there or not, to a network of its own."""
    driver.create_network(network(number, *wants, inherit=tuple(inherit.split())))
    driver.create_endpoint(new_endpoint(number, number, *own))
    driver.join(new_join(number, number, SANDBOX))


def value(kernel: FakeKernel, key: str = KEEPALIVE) -> str:
    return kernel.sandboxes[SANDBOX][key]


@pytest.fixture(autouse=True)
def tuned(kernel: FakeKernel) -> FakeKernel:
    """Have a host whose operator has tuned it."""
    kernel.host |= {KEEPALIVE: "600", SOMAXCONN: "65535", "net.core.rmem_max": "1"}
    return kernel


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("net.ipv4.tcp_*", ("net.ipv4.tcp_*",)),
        (" net.ipv4.tcp_*, ,net.core.somaxconn ", ("net.ipv4.tcp_*", "net.core.somaxconn")),
        ("net.core.*,net.core.*", ("net.core.*",)),
        ("net.ipv4.tcp_keepalive_t?me", ("net.ipv4.tcp_keepalive_t?me",)),
        ("net.ipv[46].*", ("net.ipv[46].*",)),
    ],
)
def test_patterns_are_read(text: str, expected: tuple[str, ...]) -> None:
    options = parse_network_options({INHERIT: text}, internal=False, has_ipv4=True, has_ipv6=False)
    assert options.inherit == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("*", "matches no kernel parameter of a network"),
        ("kernel.*", "matches no kernel parameter of a network"),
        ("net.ipv4/tcp", "matches no kernel parameter of a network"),
        ("net.ipv4.conf.IFNAME.rp_filter", "the host has no IFNAME"),
    ],
)
def test_what_can_be_no_pattern_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        parse_network_options({INHERIT: text}, internal=False, has_ipv4=True, has_ipv6=False)


@ENGINES
@pytest.mark.parametrize(
    ("asks", "expected"),
    [
        ({}, "7200"),
        ({"default": "300"}, "300"),
        ({"default": "300", "inherit": "net.ipv4.*"}, "600"),
        ({"default": "300", "inherit": "net.*", "network": "400"}, "400"),
        ({"inherit": "net.*", "network": "400", "own": "500"}, "500"),
    ],
    ids=["kernel", "default", "inherit", "network", "endpoint"],
)
def test_who_is_stronger(
    store: Store,
    kernel: FakeKernel,
    asks: dict[str, str],
    expected: str,
    *,
    sandbox_first: bool,
) -> None:
    def asked(who: str) -> tuple[str, ...]:
        return (f"{KEEPALIVE}={asks[who]}",) if who in asks else ()

    driver = BridgeDriver(store, kernel, SysctlPolicy(tuple(map(sysctl, asked("default")))))
    if sandbox_first:
        kernel.add_sandbox(SANDBOX)
    inherit = asks.get("inherit", "")
    join(driver, 1, *asked("network"), inherit=inherit, own=asked("own"))
    if not sandbox_first:
        kernel.arrive(SANDBOX)
    assert value(kernel) == expected
    driver.leave(network_id(1), endpoint_id(1))
    assert value(kernel) == "7200"


def test_a_containers_own_value_is_stronger(driver: BridgeDriver, kernel: FakeKernel) -> None:
    kernel.add_sandbox(SANDBOX, **{KEEPALIVE: "42"})
    join(driver, inherit="net.*")
    assert (value(kernel), value(kernel, SOMAXCONN)) == ("42", "65535")


def test_the_hosts_default_is_inherited_over_the_operators(
    store: Store, kernel: FakeKernel
) -> None:
    kernel.host[KEEPALIVE] = "7200"
    driver = BridgeDriver(store, kernel, SysctlPolicy((sysctl(f"{KEEPALIVE}=300"),)))
    kernel.add_sandbox(SANDBOX)
    join(driver, inherit="net.ipv4.tcp_keepalive_time")
    assert value(kernel) == "7200"


@pytest.mark.parametrize("first", [1, 2])
def test_what_one_network_inherits_yields_to_what_another_asks_for(
    driver: BridgeDriver, kernel: FakeKernel, first: int
) -> None:
    kernel.add_sandbox(SANDBOX)
    for number in (first, 3 - first):
        if number == 1:
            join(driver, 1, inherit="net.*")
        else:
            join(driver, 2, f"{KEEPALIVE}=900")
    assert (value(kernel), value(kernel, SOMAXCONN)) == ("900", "65535")
    driver.leave(network_id(2), endpoint_id(2))
    assert (value(kernel), value(kernel, SOMAXCONN)) == ("600", "65535")


def test_a_value_is_the_hosts_at_the_join(driver: BridgeDriver, kernel: FakeKernel) -> None:
    kernel.add_sandbox(SANDBOX)
    join(driver, inherit="net.ipv4.tcp_keepalive_*")
    kernel.host |= {KEEPALIVE: "500", INTERVAL: "30"}
    driver.leave(network_id(1), endpoint_id(1))
    assert value(kernel) == "7200"
    driver.join(new_join(1, 1, SANDBOX))
    assert (value(kernel), value(kernel, INTERVAL)) == ("500", "30")


def test_it_stays_what_it_was_when_something_else_changes(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    kernel.add_sandbox(SANDBOX)
    join(driver, 1, inherit="net.ipv4.*")
    join(driver, 2, f"{SOMAXCONN}=1")
    kernel.host[KEEPALIVE] = "500"
    driver.join(new_join(1, 1, SANDBOX))  # Docker repeats a call
    driver.leave(network_id(2), endpoint_id(2))
    assert value(kernel) == "600"


def test_it_is_there_after_a_restart_of_the_driver(store: Store, kernel: FakeKernel) -> None:
    driver = BridgeDriver(store, kernel)
    driver.restore()
    kernel.add_sandbox(SANDBOX)
    join(driver, inherit="net.ipv4.*")
    kernel.host[KEEPALIVE] = "500"
    kernel.restart()
    driver = BridgeDriver(store, kernel)
    driver.restore()
    assert value(kernel) == "600"
    driver.leave(network_id(1), endpoint_id(1))
    driver.join(new_join(1, 1, SANDBOX))
    assert value(kernel) == "500"


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("net.core.rmem_*", "net.core.rmem_max: not per network namespace"),
        ("net.ipv4.tcp_nothing*", "this kernel has no such parameter"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(
    driver: BridgeDriver, store: Store, pattern: str, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        driver.create_network(network(1, inherit=("net.core.*", pattern)))
    with store.transaction():
        assert store.networks() == ()


def test_a_value_that_a_namespace_does_not_take_is_refused(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    kernel.host[KEEPALIVE] = "much"
    with pytest.raises(InvalidRequest, match=f"inherit the host's set {KEEPALIVE}=much"):
        driver.create_network(network(1, inherit=("net.ipv4.*",)))


def test_what_the_operator_keeps_from_users_is_not_inherited(
    store: Store, kernel: FakeKernel
) -> None:
    driver = BridgeDriver(store, kernel, SysctlPolicy(allowed=("net.ipv4.tcp_*",)))
    driver.create_network(network(1, inherit=("net.ipv4.tcp_*",)))
    with pytest.raises(InvalidRequest, match=f"{SOMAXCONN}: the operator of this host"):
        driver.create_network(network(2, inherit=("net.core.*",)))
