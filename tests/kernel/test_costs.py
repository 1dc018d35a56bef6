"""What each call costs, counted: it does not depend on the machine, so it may not grow unnoticed.

A change that makes a call dearer changes a number here, and has to say why.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from driver.driver import NewJoin
from driver.linux.elements import Elements
from driver.linux.netns import AFTERWARDS
from driver.linux.session import Session
from driver.model import Attach, EndpointId, host_end_name
from tests.engine.wait import wait_until
from tests.kernel.host import mount_namespace
from tests.samples import KEEPALIVE, RP_FILTER, network, new_endpoint, new_join, ports

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pyroute2.netlink import nlmsg

    from driver.driver import BridgeDriver, NewEndpoint
    from driver.model import Network
    from driver.observed import Link
    from tests.kernel.host import RealHost

PUBLISHED = ports("8080:80")
OPENING = {"open", "socket.__new__"}
BACKGROUND = {"link-reaper", AFTERWARDS, "watcher", "monitor"}  # nobody waits for them


@dataclass
class Cost:
    """What a call asks of the machine.

    `links`: rtnetlink messages; `sends`: how often some of them are sent, and the kernel's lock
    waited for; `rules`: nftables transactions; `statements`: SQL, with BEGIN and
    COMMIT and what triggers do; `threads`: started; `opened`: files and sockets.
    """

    links: int = 0
    sends: int = 0
    rules: int = 0
    statements: int = 0
    threads: int = 0
    opened: int = 0


@dataclass
class Meter:
    """Counts for as long as it is on."""

    cost: Cost
    on: bool = False

    def count(self, what: str, number: int = 1) -> None:
        if self.on and threading.current_thread().name not in BACKGROUND:
            setattr(self.cost, what, getattr(self.cost, what) + number)

    def measure(self, action: Callable[[], object]) -> Cost:
        """Return what an action costs in the thread that asks and in those that it waits for."""
        self.cost, self.on = Cost(), True
        try:
            action()
        finally:
            self.on = False
        return self.cost


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch, driver: BridgeDriver) -> Meter:
    """Lend a meter that sees all that the driver of this test does."""
    lent = Meter(Cost())

    def count(owner: type, method: str, what: str) -> None:
        original = getattr(owner, method)

        def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            lent.count(what)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(owner, method, counted)

    count(Session, "request", "sends")
    request = Session.request

    def request_counted(session: Session, *messages: nlmsg) -> list[nlmsg]:
        lent.count("links", len(messages))
        return request(session, *messages)

    monkeypatch.setattr(Session, "request", request_counted)
    count(Elements, "make", "rules")
    count(threading.Thread, "start", "threads")
    driver._store._db.set_trace_callback(lambda _: lent.count("statements"))
    # Hooks cannot be taken out again; the test's process ends with it.
    sys.addaudithook(lambda event, _: lent.count("opened") if event in OPENING else None)
    return lent


def lives(
    driver: BridgeDriver, real: RealHost, network: Network, new: NewEndpoint, meter: Meter
) -> dict[str, Cost]:
    """Return what each call of a container's life costs."""
    sandbox = real.add_sandbox(int(new.id[:12], 16))
    join = NewJoin(network.id, new.id, sandbox, has_ports=True)
    of = (network.id, new.id)
    costs = {
        "create_endpoint": meter.measure(lambda: driver.create_endpoint(new)),
        "join": meter.measure(lambda: driver.join(join)),
    }
    if network.options.attach is Attach.HANDOVER:
        real.move(host_end_name(new.id), sandbox)
    calls: dict[str, Callable[[], object]] = {
        "program": lambda: driver.program_external_connectivity(*of, PUBLISHED),
        "info": lambda: driver.endpoint_info(*of),
        "revoke": lambda: driver.revoke_external_connectivity(*of),
        "leave": lambda: driver.leave(*of),
        "delete_endpoint": lambda: driver.delete_endpoint(*of),
    }
    costs |= {name: meter.measure(call) for name, call in calls.items()}
    wait_until(lambda: host_end_name(new.id) not in real.links(), 10, "the link is deleted")
    return costs


# A network with one kernel parameter, a container with one published port.
SAME = {
    "create_endpoint": Cost(statements=9),
    # The range of ports, two reservations: IPv6 is the relay's.
    "program": Cost(rules=1, statements=12, opened=3),
    "info": Cost(statements=4),
    "revoke": Cost(rules=1, statements=5),
    # What it may send; the sandbox, and the parameter read, written and read: in one entry, since
    # what is put back is known from what was stored.
    "leave": Cost(rules=1, statements=18, threads=1, opened=2),
    "delete_endpoint": Cost(statements=9),
}
EXPECTED = {
    # The pair, its alias, then up: up and without a carrier the alias would cost more than the
    # message, the more of IPv6's routes there are. The sandbox looked up once and entered twice, to
    # read the parameter and to write it: what is written is decided and stored in between, in the
    # calling thread. A session opens three: its socket, and a pair that wakes its event loop.
    Attach.HANDOVER: SAME
    | {"join": Cost(links=3, sends=1, rules=1, statements=23, threads=2, opened=7)},
    # Besides the address and the link up, inside, and what is written for the interface.
    Attach.DIRECT: SAME
    | {"join": Cost(links=5, sends=2, rules=1, statements=23, threads=3, opened=11)},
}


@pytest.mark.parametrize("attach", Attach)
def test_a_life_costs_so_much(
    driver: BridgeDriver, real: RealHost, meter: Meter, attach: Attach
) -> None:
    of_kind = network(1, f"{KEEPALIVE}=600", attach=attach)
    driver.create_network(of_kind)
    for number in (1, 2):  # the first starts what stays
        identity = EndpointId(f"{number:012x}".ljust(64, "e"))
        new = replace(new_endpoint(1, 1), id=identity)
        costs = lives(driver, real, of_kind, new, meter)
    assert costs == EXPECTED[attach]


def test_a_container_without_ports_has_nothing_written_for_them(
    driver: BridgeDriver, meter: Meter
) -> None:
    new = new_endpoint()
    driver.create_network(network(1))
    driver.create_endpoint(new)
    of = (new.network_id, new.id)
    # BEGIN, the network and its pools, the endpoint and its bindings, COMMIT.
    assert meter.measure(lambda: driver.program_external_connectivity(*of, ())) == Cost(
        statements=6
    )
    assert meter.measure(lambda: driver.revoke_external_connectivity(*of)) == Cost(statements=4)


def test_a_sandbox_that_has_come_is_configured_without_asking_rtnetlink(
    driver: BridgeDriver, real: RealHost, meter: Meter
) -> None:
    """What waits for the kernel's rtnl lock may come after a container's first process."""
    wanted = (f"{KEEPALIVE}=600", f"{RP_FILTER}=2")
    driver.create_network(network(1, *wanted))
    driver.create_endpoint(new_endpoint())
    sandbox = real.expect_sandbox(1)
    driver.join(new_join(sandbox=sandbox))

    def arrive() -> None:
        mount_namespace(sandbox)
        real.move(host_end_name(new_endpoint().id), sandbox)
        wait_until(lambda: is_configured(driver), 10, "the driver has configured the interface")

    cost = meter.measure(arrive)
    # The sandbox entered once to write and once for the interface, beside the watch's own thread.
    assert (cost.links, cost.sends, cost.threads) == (0, 0, 3)
    assert real.value(sandbox, KEEPALIVE) == "600"
    assert real.value(sandbox, "net.ipv4.conf.eth0.rp_filter") == "2"


def test_a_restart_lists_the_interfaces_twice(
    driver: BridgeDriver, real: RealHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before what is dead is forgotten, and when the bridges are there: 0.2 s for 1,000 of them."""
    driver.create_network(network(1))
    driver.create_endpoint(new_endpoint())
    sandbox = real.add_sandbox(1)
    driver.join(new_join(sandbox=sandbox))
    real.move(host_end_name(new_endpoint().id), sandbox)
    observe_links = driver._kernel.observe_links
    listings: list[Mapping[str, Link]] = []

    def observe() -> Mapping[str, Link]:
        listings.append(found := observe_links())
        return found

    monkeypatch.setattr(driver._kernel, "observe_links", observe)
    driver.restore()
    assert len(listings) == 2
    assert not driver.check()


def is_configured(driver: BridgeDriver) -> bool:
    """Tell whether the one endpoint there is has all its parameters."""
    with driver._lock, driver._store.transaction():
        (endpoint,) = driver._store.endpoints()
    return endpoint.attachment is not None and endpoint.attachment.configured
