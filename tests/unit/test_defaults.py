"""What the host's operator says about the kernel parameters of all networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from driver.driver import BridgeDriver
from driver.errors import InvalidRequest
from driver.model import host_end_name
from driver.sysctl.policy import SysctlPolicy
from tests.samples import (
    KEEPALIVE,
    RP_FILTER,
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
ENGINES = pytest.mark.parametrize("sandbox_first", [True, False], ids=["28", "20.10 to 27"])


def start(store: Store, kernel: FakeKernel, *defaults: str, allowed: str = "") -> BridgeDriver:
    """Start a driver whose operator says this."""
    policy = SysctlPolicy(tuple(map(sysctl, defaults)), tuple(allowed.split()))
    driver = BridgeDriver(store, kernel, policy)
    driver.restore()
    return driver


def join(driver: BridgeDriver, kernel: FakeKernel, *wants: str, sandbox_first: bool) -> None:
    """Join one sandbox to a network for each of `wants`, in their order; none wants nothing."""
    if sandbox_first:
        kernel.add_sandbox(SANDBOX)
    for number, want in enumerate(wants, 1):
        driver.create_network(network(number, *want.split()))
        driver.create_endpoint(new_endpoint(number, number))
        driver.join(new_join(number, number, SANDBOX))
    if not sandbox_first:
        kernel.arrive(SANDBOX)


@ENGINES
@pytest.mark.parametrize(
    ("wants", "expected"),
    [
        (("",), "300"),
        ((f"{KEEPALIVE}=600",), "600"),
        ((f"{KEEPALIVE}=600", ""), "600"),
        (("", f"{KEEPALIVE}=600"), "600"),
        (("", ""), "300"),
    ],
)
def test_a_default_yields_to_what_any_network_asks_for(
    store: Store, kernel: FakeKernel, wants: tuple[str, ...], expected: str, *, sandbox_first: bool
) -> None:
    driver = start(store, kernel, f"{KEEPALIVE}=300")
    join(driver, kernel, *wants, sandbox_first=sandbox_first)
    assert kernel.sandboxes[SANDBOX][KEEPALIVE] == expected


@ENGINES
def test_a_default_takes_over_when_the_network_that_asked_has_left(
    store: Store, kernel: FakeKernel, *, sandbox_first: bool
) -> None:
    driver = start(store, kernel, f"{KEEPALIVE}=300")
    join(driver, kernel, f"{KEEPALIVE}=600", "", sandbox_first=sandbox_first)
    driver.leave(network_id(1), endpoint_id(1))
    assert kernel.sandboxes[SANDBOX][KEEPALIVE] == "300"
    driver.leave(network_id(2), endpoint_id(2))
    assert kernel.sandboxes[SANDBOX][KEEPALIVE] == "7200"


def test_a_containers_own_value_is_stronger(store: Store, kernel: FakeKernel) -> None:
    driver = start(store, kernel, f"{KEEPALIVE}=300")
    join(driver, kernel, "", sandbox_first=True)
    kernel.add_sandbox(sandbox_key(2), **{KEEPALIVE: "42"})
    driver.create_endpoint(new_endpoint(2, 1))
    driver.join(new_join(2, 1, sandbox_key(2)))
    assert kernel.sandboxes[sandbox_key(2)][KEEPALIVE] == "42"


def test_a_default_of_the_interface_is_written_for_every_interface(
    store: Store, kernel: FakeKernel
) -> None:
    driver = start(store, kernel, f"{RP_FILTER}=2")
    join(driver, kernel, "", f"{RP_FILTER}=1", sandbox_first=True)
    for number in (1, 2):
        kernel.move(host_end_name(endpoint_id(number)), SANDBOX)
        driver.endpoint_info(network_id(number), endpoint_id(number))
    written = {key: value for key, value in kernel.sandboxes[SANDBOX].items() if "pnc" in key}
    assert sorted(written.values()) == ["1", "2"]


def test_no_network_is_made_while_this_kernel_refuses_a_default(
    store: Store, kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    driver = start(store, kernel, "net.ipv4.tcp_keepalive_tim=300")
    (line,) = caplog.messages
    assert line.startswith("no network can be made: default for all networks of this host, PYNET_")
    assert not any(each.exc_info for each in caplog.records)
    assert driver.health.problems() == (line,)
    with pytest.raises(InvalidRequest, match=r"default for all networks.*tcp_keepalive_tim\b"):
        driver.create_network(network(1))
    assert store.networks() == ()


def test_defaults_are_tried_once(store: Store, kernel: FakeKernel) -> None:
    driver = start(store, kernel, f"{KEEPALIVE}=300")
    del kernel.pristine[KEEPALIVE]
    driver.create_network(network(1))


def test_what_the_operator_keeps_from_users_is_refused_by_name(
    store: Store, kernel: FakeKernel
) -> None:
    driver = start(store, kernel, f"{SOMAXCONN}=99", allowed="net.ipv4.tcp_*")
    driver.create_network(network(1, f"{KEEPALIVE}=600"))
    with pytest.raises(InvalidRequest, match=rf"{SOMAXCONN}.*operator.*net.ipv4.tcp_\*"):
        driver.create_network(network(2, f"{KEEPALIVE}=600", f"{SOMAXCONN}=1"))
    with pytest.raises(InvalidRequest, match=SOMAXCONN):
        driver.create_endpoint(new_endpoint(1, 1, f"{SOMAXCONN}=1"))
    assert [each.id for each in store.networks()] == [network_id(1)]


@pytest.mark.parametrize(
    ("pattern", "key", "is_allowed"),
    [
        ("net.ipv4.*", KEEPALIVE, True),
        ("net.*", "net.ipv6.conf.all.forwarding", True),
        ("net.ipv4.tcp_keepalive_time", KEEPALIVE, True),
        ("net.ipv4.tcp_keepalive_t?me", KEEPALIVE, True),
        ("net.ipv4.conf.IFNAME.*", RP_FILTER, True),
        ("net.ipv4.conf.IFNAME.*", "net.ipv4.conf.all.rp_filter", False),
        ("net.ipv4.tcp_keepalive", KEEPALIVE, False),
        ("net.ipv4", KEEPALIVE, False),
    ],
)
def test_patterns_match_whole_names(pattern: str, key: str, *, is_allowed: bool) -> None:
    policy = SysctlPolicy(allowed=(pattern,))
    if is_allowed:
        policy.check([sysctl(f"{key}=1")])
    else:
        with pytest.raises(InvalidRequest):
            policy.check([sysctl(f"{key}=1")])
