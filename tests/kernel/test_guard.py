"""Ports of a bridge keep a container from sending what it may not, on the real kernel.

Attacks by containers on a real engine are in tests/engine; here is what needs no engine.
"""

from __future__ import annotations

import platform
import re
import socket
from contextlib import closing, suppress
from dataclasses import replace
from ipaddress import IPv6Interface, ip_address
from typing import TYPE_CHECKING, Any

import pytest

from driver.errors import Conflict
from driver.firewall.ruleset import TABLES
from driver.linux import netns, rtnetlink
from driver.linux.rtnetlink import MAX_LEARNED
from driver.model import EndpointOptions, Guard, host_end_name
from driver.options import parse_change
from tests.engine.wait import wait_until
from tests.kernel.container import reaches, sandbox_of, start
from tests.kernel.host import ip, run
from tests.samples import network, new_endpoint, pool

if TYPE_CHECKING:
    from collections.abc import Iterable

    from driver.driver import BridgeDriver
    from driver.linux.linux import LinuxKernel
    from driver.model import Endpoint, Network, RuleCount
    from tests.kernel.host import RealHost

NETWORK = network(1, pools=(pool("10.1.0.1/24"), pool("fd00:1::1/64")))
ETH_P_ALL, ETH_P_IP, ETH_P_ARP = 0x0003, 0x0800, 0x0806
GATEWAY = "10.1.0.1"


def kernel_version() -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", platform.release())[:2]))


def begin(
    driver: BridgeDriver, real: RealHost, net: Network = NETWORK, **options: Any
) -> list[Endpoint]:
    """Start two containers on a network, the first with these options."""
    driver.create_network(net)
    new = [
        replace(new_endpoint(number), ipv6=IPv6Interface(f"fd00:1::{number + 1}/64"))
        for number in (1, 2)
    ]
    new[0] = replace(new[0], options=EndpointOptions(**options))
    return [start(driver, real, number + 1, each) for number, each in enumerate(new)]


def ipv4(source: str, target: str, payload: bytes = b"") -> bytes:
    """Return an IPv4 packet of protocol 253, for experiments."""
    addresses = ip_address(source).packed + ip_address(target).packed
    length = (20 + len(payload)).to_bytes(2, "big")
    head = b"\x45\x00" + length + b"\0\0\0\0\x40\xfd"
    return head + checksum(head + b"\0\0" + addresses) + addresses + payload


def checksum(data: bytes) -> bytes:
    total = sum(int.from_bytes(data[each : each + 2], "big") for each in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


def mac_of(endpoint: Endpoint) -> bytes:
    return bytes.fromhex(endpoint.mac.replace(":", ""))


def raw_socket(endpoint: Endpoint) -> socket.socket:
    """Return a packet socket on the container's interface."""

    def make() -> socket.socket:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        opened.bind(("eth0", ETH_P_ALL))
        return opened

    with netns.open_namespace(sandbox_of(endpoint)) as namespace:
        return netns.run_in(namespace, make)


def heard(sender: Endpoint, listener: Endpoint, *packets: bytes) -> list[bytes]:
    """Send packets to a neighbour, then one that may pass; return which came before that one."""
    own, other = mac_of(sender), mac_of(listener)
    good = ipv4(str(sender.addresses[0].ip), str(listener.addresses[0].ip), b"the last one")
    with closing(raw_socket(sender)) as outlet, closing(raw_socket(listener)) as inlet:
        inlet.settimeout(5)
        frames = [other + own + ETH_P_IP.to_bytes(2, "big") + each for each in (*packets, good)]
        for frame in frames:
            outlet.send(frame)
        found = []
        while (frame := inlet.recv(2048)) != frames[-1]:
            if frame in frames:
                found.append(frame[14:])
        return found


FOREIGN = ipv4("192.0.2.9", "10.1.0.3", b"foreign")
NEIGHBOURS = ipv4("10.1.0.99", "10.1.0.3", b"of the network, and another's")
OWN = ipv4("10.1.0.2", "10.1.0.3", b"own")


@pytest.mark.parametrize(
    ("guard", "expected"),
    [
        (Guard.OFF, [FOREIGN, NEIGHBOURS, OWN]),
        (Guard.NETWORK, [NEIGHBOURS, OWN]),
        (Guard.ADDRESS, [OWN]),
        (None, [NEIGHBOURS, OWN]),
    ],
)
@pytest.mark.usefixtures("as_docker_leaves_it")
def test_what_a_guard_lets_pass(
    driver: BridgeDriver, real: RealHost, guard: Guard | None, expected: list[bytes]
) -> None:
    sender, listener = begin(driver, real, guard=guard)
    assert heard(sender, listener, FOREIGN, NEIGHBOURS, OWN) == expected


def test_a_change_of_the_guard_holds_at_once(driver: BridgeDriver, real: RealHost) -> None:
    sender, listener = begin(driver, real)
    for guard, expected in ((Guard.ADDRESS, [OWN]), (Guard.OFF, [FOREIGN, NEIGHBOURS, OWN])):
        change = parse_change({"pynet.guard": guard.value}, ())
        driver.change_network(NETWORK.id, change)
        assert heard(sender, listener, FOREIGN, NEIGHBOURS, OWN) == expected


def test_what_has_left_sends_nothing_more(driver: BridgeDriver, real: RealHost) -> None:
    """Docker takes the interface away after Leave; until then the container has it."""
    sender, listener = begin(driver, real, guard=Guard.OFF)
    before = heard(sender, listener)
    assert before == []
    driver.leave(NETWORK.id, sender.id)
    with closing(raw_socket(sender)) as outlet, closing(raw_socket(listener)) as inlet:
        outlet.send(mac_of(listener) + mac_of(sender) + ETH_P_IP.to_bytes(2, "big") + OWN)
        other = start(driver, real, 3, new_endpoint(3))
        assert reaches(other, listener), "which takes longer than a frame"
        inlet.setblocking(False)  # noqa: FBT003 - its own word for it
        found = []
        with suppress(BlockingIOError):
            while True:
                found.append(inlet.recv(2048)[14:])
    assert found
    assert OWN not in found


@pytest.mark.parametrize("is_mended", [False, True], ids=["as made", "put back"])
def test_nothing_gets_past_the_bridge_by_its_own_addresses(
    driver: BridgeDriver, real: RealHost, *, is_mended: bool
) -> None:
    """What is for the bridge itself the kernel takes off before it looks at rules for frames."""
    sender, _ = begin(driver, real, guard=Guard.OFF)
    if is_mended:
        ip("link", "set", host_end_name(sender.id), "nomaster", "arp", "on")
        assert driver.repair_all() == ()
    run("nft", "add", "table", "inet", "seen")
    run("nft", "add", "chain", "inet", "seen", "in", "{ type filter hook input priority 500; }")
    run("nft", "add", "rule", "inet", "seen", "in", "ip", "protocol", "253", "counter")
    arp = b"\0\1\x08\0\6\4\0\1" + mac_of(sender) + bytes([198, 51, 100, 7]) + bytes(6)
    arp += ip_address(GATEWAY).packed
    with closing(raw_socket(sender)) as outlet:
        for low in range(16):
            reserved = b"\x01\x80\xc2\0\0" + bytes([low]) + mac_of(sender)
            for tag in (b"", b"\x81\0\0\0"):
                outlet.send(reserved + tag + b"\x08\0" + ipv4("198.51.100.7", GATEWAY))
                outlet.send(reserved + tag + b"\x08\6" + arp)
        seen = b"\xff" * 6 + mac_of(sender) + b"\x08\0" + ipv4("10.1.0.2", GATEWAY)
        outlet.send(seen)
    wait_until(lambda: "packets 1 " in run("nft", "list", "table", "inet", "seen"), 5, "the last")
    assert "198.51.100.7" not in run("ip", "neigh")


def test_drops_are_counted_by_reason_and_port(
    driver: BridgeDriver, real: RealHost, linux: LinuxKernel
) -> None:
    sender, listener = begin(driver, real, guard=Guard.ADDRESS)
    assert linux.read_drops().by_interface == {}
    heard(sender, listener, FOREIGN, FOREIGN, NEIGHBOURS)
    drops = linux.read_drops()
    assert drops.totals["source"] == 3
    assert drops.by_interface == {host_end_name(sender.id): {"source": 3}}
    assert driver.check() == (), "what passing packets leave is no damage"


def test_every_rule_is_shown_with_what_it_has_counted(
    driver: BridgeDriver, real: RealHost, linux: LinuxKernel
) -> None:
    assert driver.read_rules() == ()
    sender, listener = begin(driver, real, guard=Guard.ADDRESS)
    heard(sender, listener, FOREIGN, FOREIGN, NEIGHBOURS)
    rules = driver.read_rules()
    assert counted(rules, "bridge pynet", "drop_source") == [3], "by the counter of its reason"
    assert counted(rules, "bridge pynet", "guard")[1] >= 4, "all that came by host ends"
    assert len({(each.table, each.chain) for each in rules}) == count_chains()
    assert driver.check() == (), "what rules have counted is no damage"
    chain = "bridge", "pynet", "address4"
    run("nft", "insert", "rule", *chain, "counter", "accept")
    assert any("chain address4, rule 4" in each.subject for each in driver.check())
    with pytest.raises(Conflict, match="address4: it has 4 rules in place of 3; pynet check --rep"):
        driver.read_rules()


def counted(rules: Iterable[RuleCount], table: str, chain: str) -> list[int]:
    """Return what the rules of a chain have counted."""
    return [each.count.packets for each in rules if (each.table, each.chain) == (table, chain)]


def count_chains() -> int:
    return sum(run("nft", "list", "table", *each.split()).count("\tchain ") for each in TABLES)


def test_no_table_has_dropped_nothing(linux: LinuxKernel) -> None:
    drops = linux.read_drops()
    assert (drops.totals, drops.by_interface) == ({}, {})


@pytest.mark.parametrize("limit", [1, 5])
def test_connections_are_limited(driver: BridgeDriver, real: RealHost, limit: int) -> None:
    client, _ = begin(driver, real, connections=limit)

    def call(number: int) -> None:
        """Begin a UDP flow to the host, which tracks it."""
        with netns.open_namespace(sandbox_of(client)) as namespace:
            opened = netns.run_in(namespace, lambda: socket.socket(type=socket.SOCK_DGRAM))
        with closing(opened):
            opened.sendto(b"", (GATEWAY, 9000 + number))

    for number in range(limit + 3):
        call(number)
    wait_until(lambda: dropped(real, "connections") == 3, 5, "three are dropped")
    assert len(run("conntrack", "-L", "-s", "10.1.0.2").splitlines()) >= limit


def dropped(real: RealHost, reason: str) -> int:
    return real.kernel.read_drops().totals.get(reason, 0)


@pytest.mark.skipif(kernel_version() < (6, 7), reason="bridges of this kernel learn without end")
@pytest.mark.parametrize("is_old", [False, True], ids=["made so", "of a version without a limit"])
def test_a_bridge_learns_so_many_addresses(
    driver: BridgeDriver, real: RealHost, monkeypatch: pytest.MonkeyPatch, *, is_old: bool
) -> None:
    if is_old:
        monkeypatch.setattr(rtnetlink, "MAX_LEARNED", 0)
    sender, _ = begin(driver, real)
    monkeypatch.undo()
    if is_old:
        driver.restore()
    with closing(raw_socket(sender)) as outlet:
        for number in range(MAX_LEARNED + 2000):
            made_up = b"\x06\0" + number.to_bytes(4, "big")
            outlet.send(b"\xff" * 6 + made_up + b"\x88\xb5" + bytes(46))
    table = run("bridge", "fdb", "show", "br", NETWORK.bridge_name)
    learned = [line for line in table.splitlines() if line.startswith("06:00:")]
    assert MAX_LEARNED - 100 < len(learned) <= MAX_LEARNED


def test_a_networks_subnet_comes_from_its_own_bridge_only(
    driver: BridgeDriver, real: RealHost
) -> None:
    """By the wire, or from a bridge of others, it is somebody who pretends to be a container."""
    driver.create_network(NETWORK)
    outside = real.add_sandbox(9)
    ip("link", "add", "wire", "type", "veth", "peer", "name", "eth0", "netns", outside)
    ip("link", "set", "wire", "up")
    ip("addr", "add", "192.0.2.1/24", "dev", "wire")
    ip("link", "set", "eth0", "up", sandbox=outside)
    run("sysctl", "-w", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.wire.rp_filter=0")

    def send() -> None:
        with closing(socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as outlet:
            outlet.bind(("eth0", ETH_P_IP))
            outlet.send(
                b"\xff" * 6 + b"\x02" + bytes(5) + b"\x08\x00" + ipv4("10.1.0.2", "192.0.2.1")
            )

    with netns.open_namespace(outside) as namespace:
        netns.run_in(namespace, send)
    wait_until(lambda: dropped(real, "subnet") == 1, 5, "it is dropped")
    assert real.kernel.read_drops().by_interface == {"wire": {"subnet": 1}}


def test_on_a_bridge_of_others_the_subnet_may_come_from_elsewhere(
    driver: BridgeDriver, real: RealHost
) -> None:
    real.add_foreign("br0")
    net = replace(NETWORK, options=replace(NETWORK.options, bridge_name="br0"))
    driver.create_network(net)
    assert real.elements("subnets4") == set()
    driver.delete_network(net.id)
    driver.create_network(NETWORK)
    assert real.elements("subnets4") == {"10.1.0.0/24"}
