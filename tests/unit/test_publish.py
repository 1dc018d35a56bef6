"""Publishing: what is reserved and translated, who is named in a conflict, what a repeat does."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING, Any

import pytest

from driver.driver import BridgeDriver
from driver.errors import Conflict, NotFound
from driver.lock import Request
from driver.model import GatewayMode, Publish, Relay
from tests.fakes import Calls, FakeKernel, counted_kernel
from tests.samples import (
    endpoint_id,
    network,
    network_id,
    new_endpoint,
    new_join,
    place,
    pool,
    ports,
    sandbox_key,
)

if TYPE_CHECKING:
    from driver.model import HostPort
    from driver.state.store import Store

NGINX = "nginx (pid 812)"


def test_nobody_waits_while_the_holder_of_a_port_is_looked_for(store: Store) -> None:
    """That takes a tenth of a second, and waits without the driver's lock."""
    looked: list[str] = []

    class Looking(FakeKernel):
        def find_port_owner(self, place: HostPort) -> str:
            with ThreadPoolExecutor(1) as other:
                looked.append(other.submit(describe).result())
            return super().find_port_owner(place)

    kernel = Looking()
    driver = BridgeDriver(store, kernel)

    def describe() -> str:
        with driver.serving(Request("GET /networks", time.monotonic() + 10)):
            return str(len(driver.describe()))

    kernel.taken[place("0.0.0.0:8080")] = NGINX
    driver.create_network(network(1))
    driver.create_endpoint(new_endpoint())
    driver.join(new_join(has_ports=True))
    with pytest.raises(Conflict, match=rf"8080/tcp: port is in use by {re.escape(NGINX)}"):
        driver.program_external_connectivity(network_id(1), endpoint_id(1), ports("8080:80"))
    assert looked == ["1"]


@pytest.fixture
def two(driver: BridgeDriver, kernel: FakeKernel) -> BridgeDriver:
    """Lend a driver with two joined endpoints on one IPv4 network."""
    driver.create_network(network(1))
    for number in (1, 2):
        driver.create_endpoint(new_endpoint(number))
        driver.join(new_join(number, 1, sandbox_key(number), has_ports=True))
    return driver


def everywhere(*numbers: int) -> set[HostPort]:
    """Return the places of TCP ports on all addresses of the host."""
    return {place(f"{ip}:{number}") for ip in ("0.0.0.0", "[::]") for number in numbers}


def relay(text: str, target: str, *, proxy_protocol: bool = False) -> Relay:
    """Return what the relay serves, as `docker ps` would write it."""
    ip, _, port = target.rpartition(":")
    return Relay(place(text), ip_address(ip.strip("[]")), int(port), proxy_protocol)


def publish(driver: BridgeDriver, number: int, *texts: str) -> None:
    driver.program_external_connectivity(network_id(1), endpoint_id(number), ports(*texts))


def test_ports_are_reserved_and_translated(two: BridgeDriver, kernel: FakeKernel) -> None:
    publish(two, 1, "8080:80", "127.0.0.1:53:53/udp")
    assert kernel.reserved == everywhere(8080) | {place("127.0.0.1:53/udp")}
    assert kernel.elements("everywhere4") == {"tcp . 8080": "10.1.0.2 . 80"}
    assert kernel.elements("published4") == {"127.0.0.1 . udp . 53": "10.1.0.2 . 53"}
    assert not kernel.elements("everywhere6")
    assert kernel.relayed == {relay("[::]:8080", "10.1.0.2:80")}
    two.revoke_external_connectivity(network_id(1), endpoint_id(1))
    assert not kernel.reserved | kernel.relayed
    assert not kernel.elements("open4")


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["8080:80"], r"publish 0\.0\.0\.0:8080/tcp: port is in use by nginx \(pid 812\)$"),
        (["127.0.0.1:8080:80"], r"publish 127\.0\.0\.1:8080/tcp: port is in use by nginx"),
        (
            ["9000:80"],
            "publish 0.0.0.0:9000/tcp: port is in use by endpoint e2e2e2e2e2e2 of network 0101010",
        ),
        (
            ["127.0.0.1:9000:80"],
            "publish 127.0.0.1:9000/tcp: port is in use by endpoint e2e2e2e2e2e2",
        ),
        (
            ["8079-8080:80", "8079:1"],
            r"container port 80/tcp on host ports 8079-8080: all are in use, .*:8080/tcp by nginx",
        ),
    ],
)
def test_a_conflict_names_the_port_and_its_owner(
    two: BridgeDriver, kernel: FakeKernel, texts: list[str], words: str
) -> None:
    kernel.taken[place("0.0.0.0:8080")] = NGINX
    publish(two, 2, "9000:80")
    before = kernel.state()
    with pytest.raises(Conflict, match=words):
        publish(two, 1, "7000:70", *texts)
    assert kernel.state() == before


@pytest.mark.parametrize(
    ("one", "other"),
    [("8695:80", "8695:81"), ("127.0.0.1:8695:80", "8695:81"), ("8695:80", "8695-8695:81")],
)
def test_a_container_that_asks_twice_is_told_so(two: BridgeDriver, one: str, other: str) -> None:
    words = r":8695/tcp: this container asks for it twice, for its ports (80 and 81|81 and 80)$"
    with pytest.raises(Conflict, match=words):
        publish(two, 1, one, other)


def test_ports_on_an_internal_network_are_told_of(
    driver: BridgeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    driver.create_network(network(1, internal=True))
    for number, has_ports in ((1, True), (2, False)):
        driver.create_endpoint(new_endpoint(number))
        driver.join(new_join(number, 1, sandbox_key(number), has_ports=has_ports))
    assert "e1e1e1e1e1e1: its container's ports are not published" in caplog.text
    assert "e2e2e2e2e2e2" not in caplog.text


def test_a_host_without_a_free_port_says_so(two: BridgeDriver, kernel: FakeKernel) -> None:
    for port in kernel.ephemeral_ports():
        kernel.taken[place(f"0.0.0.0:{port}")] = NGINX
    with pytest.raises(Conflict, match=r"on host ports any: all are in use, .* by nginx"):
        publish(two, 1, "80")


@pytest.mark.parametrize("leaving", [1, 2])
def test_a_chosen_port_is_the_next_one_that_is_free(
    two: BridgeDriver, kernel: FakeKernel, leaving: int
) -> None:
    first = kernel.ephemeral_ports().start
    kernel.taken[place(f"0.0.0.0:{first + 1}")] = NGINX
    publish(two, 1, "80")
    publish(two, 2, "80")
    assert kernel.reserved == everywhere(first, first + 2)
    two.leave(network_id(1), endpoint_id(leaving))
    publish(two, leaving, "80")
    assert place(f"0.0.0.0:{first + 3}") in kernel.reserved, "a port rests before it comes again"


def test_a_port_that_is_asked_for_no_more_is_closed(two: BridgeDriver, kernel: FakeKernel) -> None:
    """Though one of the requests that are left would be content with it."""
    chosen = kernel.ephemeral_ports().start
    publish(two, 1, "8080:80", "80")
    assert kernel.reserved == everywhere(8080, chosen)
    publish(two, 1, "80")
    assert len(kernel.reserved) == 2 * len(kernel.elements("everywhere4")) == 2
    assert place("0.0.0.0:8080") not in kernel.reserved


def test_a_range_never_takes_a_fixed_port(two: BridgeDriver, kernel: FakeKernel) -> None:
    publish(two, 1, "80", "32768:81", "8000-8001:1", "8000:2")
    held = kernel.elements("everywhere4")
    assert held["tcp . 8000"].endswith(". 2")
    assert held["tcp . 8001"].endswith(". 1")
    assert held["tcp . 32768"].endswith(". 81")
    assert held["tcp . 32769"].endswith(". 80")


def test_both_families_have_the_same_port(driver: BridgeDriver, kernel: FakeKernel) -> None:
    driver.create_network(network(1, pools=(pool("10.1.0.1/24"), pool("fd00:1::1/64"))))
    driver.create_endpoint(new_endpoint(1, ipv6="fd00:1::2/64"))
    first = kernel.ephemeral_ports().start
    kernel.taken[place(f"[::]:{first}")] = NGINX
    kernel.taken[place("0.0.0.0:7000")] = NGINX
    publish(driver, 1, "80", "7000-7001:1")
    numbers = {first + 1, 7001}
    places = {f"0.0.0.0:{port}" for port in numbers} | {f"[::]:{port}" for port in numbers}
    assert kernel.reserved == set(map(place, places))


def test_a_repeat_changes_nothing_and_another_set_takes_the_place(
    two: BridgeDriver, kernel: FakeKernel
) -> None:
    publish(two, 1, "80", "8080:80")
    before = kernel.state()
    publish(two, 1, "80", "8080:80")
    assert kernel.state() == before
    publish(two, 1, "8081:80")
    assert kernel.reserved == everywhere(8081)
    publish(two, 1)
    assert not kernel.reserved


def test_a_failed_change_of_ports_leaves_the_endpoint_without(
    two: BridgeDriver, kernel: FakeKernel
) -> None:
    publish(two, 1, "8080:80")
    kernel.taken[place("0.0.0.0:8081")] = NGINX
    with pytest.raises(Conflict):
        publish(two, 1, "8081:80")
    assert not kernel.reserved
    publish(two, 1, "8080:80")


def test_udp_flows_are_forgotten_when_ports_come_and_go(
    two: BridgeDriver, kernel: FakeKernel
) -> None:
    mine, others = place("192.0.2.1:53/udp"), place("192.0.2.1:54/udp")
    identity = network_id(1), endpoint_id(1)
    for operation in (
        partial(publish, two, 1, "53:53/udp"),
        partial(two.revoke_external_connectivity, *identity),
        partial(publish, two, 1, "53:53/udp"),
        partial(two.leave, *identity),
    ):
        kernel.flows = {mine, others}
        operation()
        assert kernel.flows == {others}


def test_a_family_that_is_missing_is_no_error_and_the_log_says_so(
    two: BridgeDriver, kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    """Engine 28 tells one of two endpoints all ports; the rest may be the other's to publish."""
    publish(two, 1, "[::1]:8080:80/sctp", "8081:81")
    assert kernel.reserved == everywhere(8081)
    assert "container port 80 is not published on ::1" in caplog.text


def test_an_endpoint_of_another_network_or_of_none_is_refused(two: BridgeDriver) -> None:
    two.create_network(network(2))
    with pytest.raises(Conflict, match="is in network 010101010101"):
        two.program_external_connectivity(network_id(2), endpoint_id(1), ports("8080:80"))
    with pytest.raises(NotFound):
        publish(two, 9, "8080:80")
    two.revoke_external_connectivity(network_id(1), endpoint_id(9))


def test_a_thousand_ports_are_one_change_of_the_rules(
    two: BridgeDriver, kernel: FakeKernel, store: Store
) -> None:
    calls = Calls()
    counting = BridgeDriver(store, counted_kernel(kernel, calls))
    publish(counting, 1, *(f"{port}:{port}" for port in range(1000, 2000)))
    assert calls.made.count("FakeKernel.change_elements") == 1
    assert calls.made.count("FakeKernel.relay_ports") == 1
    assert len(kernel.elements("everywhere4")) == len(kernel.relayed) == 1000


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["8080:80"], {"[::]:8080": "10.1.0.2:80"}),
        (["[::1]:8080:80"], {"[::1]:8080": "10.1.0.2:80"}),
        (["0.0.0.0:8080:80"], {}),
        (["127.0.0.1:8080:80", "127.0.0.1:53:53/udp", "10.1.0.1:53:53/udp"], {}),
        (["53:53/udp"], {"[::]:53/udp": "10.1.0.2:53", "0.0.0.0:53/udp": "10.1.0.2:53"}),
        (["7000:7/sctp"], {}),
    ],
)
def test_what_is_relayed_to_a_network_without_ipv6(
    two: BridgeDriver, kernel: FakeKernel, texts: list[str], expected: dict[str, str]
) -> None:
    publish(two, 1, *texts)
    assert kernel.relayed == {relay(*each) for each in expected.items()}
    assert not kernel.elements("everywhere6") | kernel.elements("published6")
    assert two.check() == ()
    two.leave(network_id(1), endpoint_id(1))
    assert not kernel.relayed


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["8080:80"], {"[::]:8080": "[fd00:1::2]:80"}),
        (["[::1]:8080:80"], {"[::1]:8080": "[fd00:1::2]:80"}),
        (["127.0.0.1:8080:80", "10.1.0.1:8080:80/udp"], {}),
        (["53:53/udp"], {"[::]:53/udp": "[fd00:1::2]:53", "0.0.0.0:53/udp": "10.1.0.2:53"}),
    ],
)
def test_what_is_relayed_to_a_network_with_ipv6(
    driver: BridgeDriver, kernel: FakeKernel, texts: list[str], expected: dict[str, str]
) -> None:
    driver.create_network(network(1, pools=(pool("10.1.0.1/24"), pool("fd00:1::1/64"))))
    driver.create_endpoint(new_endpoint(1, ipv6="fd00:1::2/64"))
    publish(driver, 1, *texts)
    assert kernel.relayed == {relay(*each) for each in expected.items()}


@pytest.mark.parametrize(
    "options",
    [
        {"publish": Publish.DOCKER},
        {"gateway_mode_ipv4": GatewayMode.ROUTED},
        {"host_binding_ipv4": IPv4Address("127.0.0.1")},
        {"internal": True},
    ],
    ids=str,
)
def test_what_is_not_published_is_not_relayed(
    driver: BridgeDriver, kernel: FakeKernel, options: dict[str, Any]
) -> None:
    driver.create_network(network(1, **options))
    driver.create_endpoint(new_endpoint())
    publish(driver, 1, "8080:80")
    assert not kernel.relayed


def test_ipv6_that_another_endpoint_serves_is_not_relayed(
    two: BridgeDriver, kernel: FakeKernel
) -> None:
    """Engine 28 and later say so; what they have said before does not count any more."""
    publish(two, 1, "8080:80")
    two.program_external_connectivity(
        network_id(1), endpoint_id(1), ports("8080:80"), only_ipv4=True
    )
    assert kernel.reserved == {place("0.0.0.0:8080")}
    assert not kernel.relayed


def test_who_the_client_is_is_said_where_it_is_asked_for(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    driver.create_network(network(1, proxy_protocol=True))
    driver.create_endpoint(new_endpoint())
    publish(driver, 1, "8080:80")
    assert kernel.relayed == {relay("[::]:8080", "10.1.0.2:80", proxy_protocol=True)}


def test_a_port_that_is_not_relayed_is_a_difference_and_is_mended(
    two: BridgeDriver, kernel: FakeKernel
) -> None:
    publish(two, 1, "8080:80")
    kernel.relayed.clear()
    (difference,) = two.check()
    assert str(difference) == (
        "relay [::]:8080/tcp: is not served by the relay for endpoint e1e1e1e1e1e1"
    )
    assert two.repair_all() == ()
    assert kernel.relayed
