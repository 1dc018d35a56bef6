"""What others break is found by `check` and mended: when asked, or at once while watched."""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import sys
import threading
from collections import Counter
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest

from driver.errors import Conflict, KernelError
from driver.health import Health
from driver.linux import monitor as monitoring
from driver.linux.monitor import Monitor
from driver.model import host_end_name
from driver.reconcile.diff import Kind
from driver.reconcile.watcher import LONGEST_REST_SECONDS, REPAIRS
from tests.engine.wait import wait_until
from tests.kernel import seams
from tests.kernel.container import FAMILIES, arrives, sandbox_of, serving, start
from tests.kernel.host import ip, run, unmount_namespace
from tests.kernel.test_published import DUAL, HOST_ADDRESSES, dual_endpoint
from tests.samples import endpoint_id, network, new_endpoint, new_join, ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from driver.driver import BridgeDriver
    from driver.model import Endpoint
    from driver.observed import Link
    from driver.reconcile.diff import Drift
    from driver.reconcile.watcher import Choice
    from tests.kernel.host import RealHost

CLOSED = network(2, icc=False)
BRIDGE = DUAL.bridge_name
HOST_END = host_end_name(endpoint_id(1))
ACCEPT = "-m mark --mark 0x20000000/0x20000000 -m comment --comment pynet -j ACCEPT"
# In which everything is mended, beside whatever else this machine does: alone it takes a fifth of a
# second. Nothing is polled, so what is not told of is not mended after an hour either.
SECONDS = 15.0

DAMAGES = {
    "the whole ruleset flushed": (Kind.RULES, "nft flush ruleset"),
    "our table deleted": (Kind.RULES, "nft delete table inet pynet"),
    "the other table deleted": (Kind.RULES, "nft delete table bridge pynet"),
    "our table's rules flushed": (Kind.RULES, "nft flush table inet pynet"),
    "one chain flushed": (Kind.RULES, "nft flush chain inet pynet translate"),
    "one rule added": (Kind.RULES, "nft insert rule inet pynet forward accept"),
    "one set emptied": (Kind.RULES, "nft flush set inet pynet bridges"),
    "one port taken out": (Kind.RULES, "nft delete element inet pynet everywhere4 { tcp . 80 }"),
    "one port led astray": (
        Kind.RULES,
        "nft add element inet pynet everywhere4 { tcp . 81 : 10.1.0.9 . 81 }",
    ),
    "a chain's policy changed": (Kind.RULES, "nft chain inet pynet forward { policy drop; }"),
    "one of the other table's": (Kind.RULES, "nft chain bridge pynet guard { policy drop; }"),
    "our table put to sleep": (Kind.RULES, "nft add table inet pynet { flags dormant; }"),
    "the other table put to sleep": (Kind.RULES, "nft add table bridge pynet { flags dormant; }"),
    "the chain flushed": (Kind.ACCEPT, "iptables -w -F FORWARD"),
    "the IPv6 one, too": (Kind.ACCEPT, "ip6tables -w -F FORWARD"),
    "our rule deleted": (Kind.ACCEPT, f"iptables -w -D FORWARD {ACCEPT}"),
    "a rule put before ours": (Kind.ACCEPT, "iptables -w -I FORWARD 2 -j DROP"),
    "all of iptables flushed": (Kind.ACCEPT, "iptables -w -F"),
    "a bridge deleted": (Kind.BRIDGE, f"ip link delete {BRIDGE}"),
    "a bridge taken down": (Kind.BRIDGE, f"ip link set {BRIDGE} down"),
    "an address removed": (Kind.BRIDGE, f"ip address delete 10.1.0.1/24 dev {BRIDGE}"),
    "an IPv6 address removed": (Kind.BRIDGE, f"ip address delete fd00:1::1/64 dev {BRIDGE}"),
    "all addresses removed": (Kind.BRIDGE, f"ip address flush dev {BRIDGE}"),
    "a host end off its bridge": (Kind.HOST_END, f"ip link set {HOST_END} nomaster"),
    "a host end down": (Kind.HOST_END, f"ip link set {HOST_END} down"),
}
UNNOTICED = {
    "a bridge's MTU changed": (Kind.BRIDGE, f"ip link set {BRIDGE} mtu 1300"),
    "a bridge's MAC changed": (Kind.BRIDGE, f"ip link set {BRIDGE} address 02:00:00:00:00:07"),
}
each_damage = pytest.mark.parametrize(("kind", "command"), DAMAGES.values(), ids=DAMAGES)


@pytest.fixture
def server(driver: BridgeDriver, real: RealHost, as_docker_leaves_it: None) -> Endpoint:
    """Lend a container that publishes port 80 beside others, on a host where nothing is wrong."""
    for net in (DUAL, CLOSED):
        driver.create_network(net)
    server = start(driver, real, 1, dual_endpoint(1), has_ports=True)
    driver.program_external_connectivity(DUAL.id, endpoint_id(1), ports("80:8080"))
    start(driver, real, 2, dual_endpoint(2))
    start(driver, real, 3, new_endpoint(3, 2))
    assert driver.check() == ()
    return server


@pytest.fixture
def watched(driver: BridgeDriver, server: Endpoint) -> Iterator[Endpoint]:
    """Lend the same while damage is being mended."""
    driver.start_watching()
    yield server
    driver._stop_watching()


@pytest.mark.parametrize(
    ("kind", "command"), [*DAMAGES.values(), *UNNOTICED.values()], ids=[*DAMAGES, *UNNOTICED]
)
def test_damage_is_found_and_mended_when_asked(
    driver: BridgeDriver, server: Endpoint, kind: Kind, command: str
) -> None:
    run(*command.split())
    assert kind in {difference.kind for difference in driver.check()}
    assert driver.repair_all() == ()
    assert driver.check() == ()
    assert all(reached(server))


@each_damage
def test_damage_is_mended_at_once_while_watched(
    driver: BridgeDriver, watched: Endpoint, kind: Kind, command: str
) -> None:
    run(*command.split())
    wait_until(lambda: not driver.check(), SECONDS, "everything is as it was")
    assert all(reached(watched))


def reached(server: Endpoint) -> Iterator[bool]:
    with serving(server, 6):  # both families
        for version, address in HOST_ADDRESSES:
            yield arrives(socket.socket(FAMILIES[version]), address, 80)


def test_nothing_that_we_do_is_damage(
    driver: BridgeDriver, real: RealHost, server: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    repair, looks = driver._reconciler.repair, []

    def counting(choose: Choice) -> tuple[tuple[Drift, ...], bool]:
        looks.append(choose)
        return repair(choose)

    monkeypatch.setattr(driver._reconciler, "repair", counting)
    driver.start_watching()
    new = dual_endpoint(4)
    start(driver, real, 4, new, has_ports=True)
    driver.program_external_connectivity(DUAL.id, new.id, ports("90:9090"))
    driver.revoke_external_connectivity(DUAL.id, new.id)
    driver.leave(DUAL.id, new.id)
    driver.delete_endpoint(DUAL.id, new.id)
    wait_until(lambda: host_end_name(new.id) not in real.links(), 5, "the link is gone")
    # What the kernel told of it comes before what it tells of this.
    run("nft", "flush", "set", "inet", "pynet", "bridges")
    wait_until(lambda: not driver.check(), SECONDS, "everything is as it was")
    driver._stop_watching()
    assert len(looks) <= 2, "one for the damage, one to see that it is mended"


REMOVALS: dict[str, Callable[[BridgeDriver], object]] = {
    "the ports": lambda driver: driver.revoke_external_connectivity(DUAL.id, endpoint_id(1)),
    "a leave": lambda driver: driver.leave(DUAL.id, endpoint_id(1)),
    "an endpoint": lambda driver: driver.delete_endpoint(DUAL.id, endpoint_id(1)),
    "a network": lambda driver: driver.delete_network(DUAL.id),
    "a closed one": lambda driver: driver.delete_network(CLOSED.id),
}


@pytest.mark.parametrize("remove", REMOVALS.values(), ids=REMOVALS)
def test_what_a_failed_removal_leaves_is_gone_at_once(
    driver: BridgeDriver, watched: Endpoint, remove: Callable[[BridgeDriver], object]
) -> None:
    failed: list[str] = []

    def fail_once(step: str) -> None:
        if step == seams.NFT and not failed:
            failed.append(step)
            raise KernelError("injected")

    with seams.stepping_in(fail_once), pytest.raises(KernelError, match="injected"):
        remove(driver)
    wait_until(lambda: not driver.check(), SECONDS, "nothing is left of it")


def test_rules_are_compared_however_many_ports_are_published(
    driver: BridgeDriver, server: Endpoint
) -> None:
    # select(2), by which libnftables waits, aborts the process beyond 1,023.
    taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    run("nft", "flush", "ruleset")
    assert Kind.RULES in {difference.kind for difference in driver.check()}
    assert driver.repair_all() == ()
    for descriptor in taken:
        os.close(descriptor)


def test_a_look_that_finds_nothing_keeps_no_request_waiting(
    driver: BridgeDriver, server: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    preview, answered = driver._kernel.preview_rules, []

    def serve() -> None:
        driver.revoke_external_connectivity(server.network_id, endpoint_id(2))
        answered.append(True)

    def looking(*what: Any) -> frozenset[str]:
        request = threading.Thread(target=serve)
        request.start()
        request.join(SECONDS)
        return preview(*what)

    monkeypatch.setattr(driver._kernel, "preview_rules", looking)
    assert driver._reconciler.repair(lambda found: found) == ((), True)
    assert answered == [True]


def test_nor_does_one_that_finds_what_requests_do_meanwhile(
    driver: BridgeDriver, real: RealHost, server: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, answered = driver._kernel.observe_links, list[int]()

    def serve() -> None:
        number = 7 + len(answered)
        driver.create_endpoint(new_endpoint(number))
        driver.join(new_join(number, sandbox=real.add_sandbox(number)))
        answered.append(number)

    def looking() -> Mapping[str, Link]:
        request = threading.Thread(target=serve)
        request.start()
        request.join(SECONDS)
        return look()

    monkeypatch.setattr(driver._kernel, "observe_links", looking)
    assert driver._reconciler.repair(lambda found: found) == ((), True)
    assert answered == [7, 8], "the lock was not free, or everything was looked at once more"


def test_a_container_that_died_without_a_word_leaves_nothing(
    driver: BridgeDriver, real: RealHost, watched: Endpoint
) -> None:
    unmount_namespace(sandbox_of(watched))
    wait_until(lambda: not driver.check(), SECONDS, "it is forgotten")
    ids = {endpoint.id for _, endpoints in driver.describe() for endpoint in endpoints}
    assert ids == {endpoint_id(2), endpoint_id(3)}
    assert "tcp . 80" not in run("nft", "list", "map", "inet", "pynet", "everywhere4")
    assert not real.kernel.list_reserved()


def test_who_breaks_it_again_and_again_has_it_back_each_time(
    driver: BridgeDriver, watched: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    thing = f"{Kind.ACCEPT} FORWARD"
    for _ in range(REPAIRS + 5):
        run("iptables", "-w", "-F", "FORWARD")
        wait_until(lambda: not driver.check(), LONGEST_REST_SECONDS / 2, "it is mended")
    (problem,) = driver.health.problems()
    assert problem.startswith(f"{thing} was repaired {REPAIRS} times within")
    assert caplog.text.count(problem) == 1
    assert caplog.text.count("repairing: ") == REPAIRS, "health says it, and no line each time"


def test_nothing_is_mended_any_more_at_the_end(driver: BridgeDriver, watched: Endpoint) -> None:
    driver.shutdown()
    run("nft", "flush", "ruleset")
    assert Kind.RULES in {each.kind for each in driver.check()}


def test_a_port_by_which_a_bridge_may_lead_out_of_the_host_is_told_of(real: RealHost) -> None:
    ip("link", "add", "theirs", "up", "type", "bridge")
    ip("link", "add", "way-out", "up", "type", "vxlan", "id", "9", "dstport", "0")
    told = threading.Event()
    monitor = Monitor(lambda _: False, tuple, Health())
    monitor.start(told.set)
    try:
        ip("link", "set", "way-out", "master", "theirs")
        assert told.wait(SECONDS)
    finally:
        monitor.close()


def test_names_and_aliases_that_are_no_text_are_no_reason_to_fail() -> None:
    monitor = Monitor(lambda _: False, tuple, Health())
    latin = b"\xe9t\xe9"
    with monitoring._open_route() as route:
        ip("link", "add", "theirs", "type", "bridge")
        run("ip", "link", "add", latin, "type", "veth", "peer", "other")  # type: ignore[arg-type]
        run("ip", "link", "set", latin, "alias", latin, "master", "theirs")  # type: ignore[arg-type]
        run("ip", "link", "set", "theirs", "alias", latin)  # type: ignore[arg-type]
        ip("link", "set", "theirs", "up")
        ip("link", "del", "theirs")
        found = [monitor._is_link_damage(each) for each in received(route)]
    monitor.close()
    assert any(found), "a bridge is gone"


LIVES_OF_LINKS = (
    "link add theirs up type bridge",
    "link set theirs down",
    "link set theirs up",
    "link add pnh01 type veth peer pnc01",
    "link set pnh01 alias pynet\\ endpoint\\ 01",
    "link set pnh01 up master theirs",
    "link set pnc01 up",
    "address add fd00::1/64 dev pnc01 nodad",
    "address add 10.9.0.1/24 dev pnc01",
    "address add 10.8.0.1/24 dev theirs",
    "route add 10.7.0.0/24 via 10.8.0.2",
    "route del 10.7.0.0/24",
    "address del 10.8.0.1/24 dev theirs",
    "address del fd00::1/64 dev pnc01",
    "link set pnh01 nomaster",
    "link set pnh01 down",
    "link del pnc01",
    "link add pnh02 type bridge",
    "link add pnc02 up type vxlan id 9 dstport 0",
    "link set pnc02 master theirs",
    "link set pnc02 down",
    "link set pnh02 up",
    "link set pnh02 down",
    "link del pnh02",
    "link del pnc02",
    "link add name a type veth peer name b",
    "link set dev a up master theirs",
    "link del dev a",
    "link del theirs",
)


def test_what_is_not_decoded_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    judges = {}
    for name in ("some", "every"):
        bridges = monitoring.Bridges()
        judges[name] = monitoring._News(bridges), bridges
    is_sieved = monitoring.may_be_damage
    decoded, damages = Counter[str](), 0
    with monitoring._open_route() as route:
        for command in LIVES_OF_LINKS:
            ip(*shlex.split(command))
            for message in chain.from_iterable(map(split, received(route))):
                found = {}
                for name, (news, bridges) in judges.items():
                    sieve = is_sieved if name == "some" else is_known
                    monkeypatch.setattr(monitoring, "may_be_damage", sieve)
                    parsed = list(news.parse(message))
                    decoded[name] += len(parsed)
                    found[name] = [
                        monitoring.is_link_damage(each, lambda _: False, bridges) for each in parsed
                    ]
                assert any(found["some"]) == any(found["every"]), command
                damages += any(found["every"])
    assert damages
    assert decoded["some"] < decoded["every"]


def is_known(kind: int, *_: object) -> bool:
    """Have everything decoded that can be damage at all."""
    return kind in monitoring._NEWS


def received(route: socket.socket) -> Iterator[bytes]:
    """Return the datagrams that are there."""
    with suppress(BlockingIOError):
        while datagram := route.recv(monitoring.BUFFER_BYTES, socket.MSG_DONTWAIT):
            yield datagram


def split(datagram: bytes) -> Iterator[bytes]:
    """Return the messages of a datagram."""
    while datagram:
        length = int.from_bytes(datagram[:4], sys.byteorder)
        yield datagram[:length]
        datagram = datagram[(length + 3) & ~3 :]


@pytest.mark.parametrize("damage", ["ip link add theirs type bridge", "nft add table inet pynet"])
def test_it_goes_on_being_told_after_an_unexpected_failure(
    monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    told, health = threading.Event(), Health()
    failures = [OSError(errno.ENOMEM, "Cannot allocate memory")]
    originals = monitoring._drain, Monitor._open
    can_open = threading.Event()

    def drain(*arguments: Any) -> bool:
        if failures:
            raise failures.pop()
        return originals[0](*arguments)

    def open_sockets(monitor: Monitor) -> Any:
        if not can_open.is_set():
            raise OSError(errno.EMFILE, "Too many open files")
        return originals[1](monitor)

    monkeypatch.setattr(monitoring, "_drain", drain)
    monitor = Monitor(lambda _: False, tuple, health)
    monitor.start(told.set)
    monkeypatch.setattr(Monitor, "_open", open_sockets)
    try:
        run(*damage.split())
        wait_until(lambda: "Too many open files" in str(health.problems()), SECONDS, "it is told")
        can_open.set()
        assert told.wait(SECONDS)  # it cannot tell what it has missed
        wait_until(lambda: not health.problems(), SECONDS, "that it works again is told")
        told.clear()
        ip("link", "add", "later", "up", "type", "bridge")
        ip("link", "set", "later", "down")
        assert told.wait(SECONDS)
    finally:
        monitor.close()


@pytest.mark.parametrize("kind", ["ifb", "bridge", "veth"])
def test_somebodys_link_with_a_bridges_name_is_waited_for(
    driver: BridgeDriver,
    real: RealHost,
    server: Endpoint,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is there when the driver starts: nothing is put on it, and the bridge comes after it."""
    ip("link", "del", BRIDGE)
    ip("link", "add", BRIDGE, "type", kind)
    driver.start()
    try:
        wait_until(driver.health.problems, 5, "health tells of it")
        ip("link", "set", "lo", "down")  # any more looks change nothing
        ip("link", "set", "lo", "up")
        assert "is mended as soon as that link has gone" in " ".join(driver.health.problems())
        driver.create_endpoint(dual_endpoint(5))
        with pytest.raises(Conflict, match=f"bridge {BRIDGE}: another program has an interface"):
            driver.join(new_join(5, 1, real.add_sandbox(5)))
        driver.delete_endpoint(DUAL.id, endpoint_id(5))
        driver.repair_all()  # not even when asked
        (link,) = json.loads(ip("-json", "link", "show", HOST_END))
        assert "master" not in link
        ip("link", "del", BRIDGE)
        wait_until(lambda: not driver.check(), SECONDS, "everything is as it was")
        wait_until(lambda: not driver.health.problems(), 5, "health is told")
    finally:
        driver._stop_watching()
    assert all(reached(server))
    assert "repaired 3 times" not in caplog.text
    assert "Traceback" not in caplog.text


def uplinks() -> str:
    return run("nft", "list", "set", "inet", "pynet", "uplinks")


def test_a_bridge_of_others_that_comes_again_is_as_new(
    driver: BridgeDriver, watched: Endpoint
) -> None:
    """Also under the number of the one before."""
    for _ in range(2):
        ip("link", "add", "lxcbr0", "index", "4242", "up", "type", "bridge")
        wait_until(lambda: "lxcbr0" in uplinks(), SECONDS, "it is known")
        ip("link", "delete", "lxcbr0")
        wait_until(lambda: "lxcbr0" not in uplinks(), SECONDS, "it is forgotten")


def test_a_bridge_of_others_is_open_once_it_is_known_not_to_be_dockers(
    driver: BridgeDriver, watched: Endpoint
) -> None:
    """Until then it is closed; and it is closed for good when Docker has put a container on it."""
    for name in ("lxcbr0", "named", "br-0123456789ab"):
        ip("link", "add", name, "up", "type", "bridge")
    wait_until(lambda: "lxcbr0" in uplinks() and "named" in uplinks(), 5, "it is known")
    assert "br-0123456789ab" not in uplinks()
    ip("link", "add", "veth0a1b2c3", "master", "named", "up", "type", "veth")
    wait_until(lambda: "named" not in uplinks(), 5, "it is known to be Docker's")
    ip("link", "delete", "veth0a1b2c3")
    run("nft", "flush", "set", "inet", "pynet", "uplinks")  # have it looked at again
    wait_until(lambda: "lxcbr0" in uplinks(), 5, "it was looked at")
    assert "named" not in uplinks()
