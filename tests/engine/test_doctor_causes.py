"""`pynet doctor` on a host with Docker: the rarer causes, each provoked, and named as it is."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from subprocess import PIPE
from typing import TYPE_CHECKING

import pytest

from tests.engine.diagnosis import (
    Case,
    ask,
    bridge_name,
    host_end,
    listening,
    parameter,
    running,
    tried,
)
from tests.engine.site import HOST, LAN, LAN_ADDRESS, Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.engine.command import Command
    from tests.engine.engine import Engine

    Breaking = Callable[[Site], AbstractContextManager[None]]

BRIDGE = "com.docker.network.bridge"
PORT, PUBLISHED, SERVICE, TAKEN = 80, 8080, 7070, 8099
LAN_SERVICE = f"{LAN_ADDRESS[4]}:{SERVICE}"
NAME, MISSPELT = "lan.example.com", "lna.example.com"
NOBODY = "10.60.0.77"
FAR_V6 = "2001:db8:dead::1"
# A name server that knows one name.
NAMES = """
import sys, dns.message, dns.flags, dns.rcode, dns.rrset, socket
name, address = sys.argv[1:]
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("", 53))
print("ready", flush=True)
while True:
    data, caller = server.recvfrom(4096)
    answer = dns.message.make_response(dns.message.from_wire(data))
    answer.flags |= dns.flags.RA
    question = answer.question[0]
    if question.name.to_text().rstrip(".") != name:
        answer.set_rcode(dns.rcode.NXDOMAIN)
    elif question.rdtype == 1:
        answer.answer.append(dns.rrset.from_text(question.name, 5, "IN", "A", address))
    server.sendto(answer.to_wire(), caller)
"""
# Listens with no room, and has it filled.
FULL = """
import socket, sys
server = socket.socket()
server.bind(("", int(sys.argv[1])))
server.listen(0)
waiting = socket.create_connection(server.getsockname())
more = socket.socket(); more.setblocking(False); more.connect_ex(server.getsockname())
print(flush=True); sys.stdin.read()
"""
# Takes datagrams and does not read them.
UNREAD = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
server.bind(("", int(sys.argv[1])))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller:
    for _ in range(30):
        caller.sendto(b"x" * 100, server.getsockname())
print(flush=True); sys.stdin.read()
"""
HOLD = """
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print(flush=True); sys.stdin.read()
"""
# Sends frame after frame: whatever is for its MAC address, the bridge sends to it.
SENDING = """
import socket
caller = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
caller.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
caller.settimeout(0.005)
caller.sendto(b"x", ("255.255.255.255", 9))
print(flush=True)
while True:
    try:
        caller.recv(1)
    except TimeoutError:
        caller.sendto(b"x", ("255.255.255.255", 9))
"""
# Has checksums computed at once, as ethtool -K IFNAME tx off does.
SUMS = """
import ctypes, fcntl, socket, struct, sys
value = ctypes.create_string_buffer(struct.pack("=II", 0x17, 0))
request = struct.pack("16sP8x", sys.argv[1].encode(), ctypes.addressof(value))
fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8946, request)
"""


@pytest.fixture
def site(newest_engine: Engine) -> Iterator[Site]:
    with Site(newest_engine) as site:
        site.network("pynet", "back", 60)
        site.network("pynet", "plain", 61, "-o", f"{BRIDGE}.enable_ip_masquerade=false")
        dns = ("--dns", LAN_ADDRESS[4])
        site.containers(
            {
                "web": ("back", "-p", f"{PUBLISHED}:{PORT}", "-p", f"{PUBLISHED}:53/udp"),
                "client": ("back", *dns),
                "bare": ("plain",),
            }
        )
        site.serve("web", "tcp", PORT)
        site.serve(HOST, "tcp", SERVICE)
        site.serve(LAN, "tcp", SERVICE)
        yield site


@contextmanager
def program(site: Site, where: str, code: str, *words: str) -> Iterator[None]:
    """Run a program of Python in a place that says when it is ready; it ends with the block."""
    argv = (sys.executable, "-c", code, *words)
    started: Command = (
        site.engine.lan_popen(*argv, stdin=PIPE, stdout=PIPE)
        if where == LAN
        else site.engine.popen(*site.enter(where), *argv, stdin=PIPE, stdout=PIPE)
    )
    assert started.stdout is not None
    try:
        assert started.stdout.readline().endswith("\n")
        yield
    finally:
        started.kill()
        started.wait()
        started.stdout.close()
        if started.stdin is not None:
            started.stdin.close()


def running_in(where: str, code: str, *words: str) -> Breaking:
    return lambda site: program(site, where, code, *words)


@contextmanager
def rule(
    site: Site, chain: str, *words: str, family: str = "inet", where: str = HOST
) -> Iterator[None]:
    """Have another program's table, with one chain and one rule."""
    inside = site.enter(where)
    site.engine.run(*inside, "nft", "add", "table", family, "other")
    try:
        site.engine.run(*inside, "nft", "add", "chain", family, "other", "c", f"{{ {chain}; }}")
        site.engine.run(*inside, "nft", "add", "rule", family, "other", "c", *words)
        yield
    finally:
        site.engine.run(*inside, "nft", "delete", "table", family, "other")


def overlapping(site: Site) -> AbstractContextManager[None]:
    """Have a VPN, as it were, that the network's subnet is a part of."""
    route = ("10.60.0.0/15", "via", LAN_ADDRESS[4])
    return running(site, "ip", "route", "add", *route, undo=("ip", "route", "del", *route))


@contextmanager
def small_uplink(site: Site) -> Iterator[None]:
    """Have the way out take less than a container sends, and nobody told of it."""
    icmp = ("icmp", "type", "destination-unreachable", "drop")
    with (
        running(
            site,
            *("ip", "link", "set", "uplink", "mtu", "1400"),
            undo=("ip", "link", "set", "uplink", "mtu", "1500"),
        ),
        rule(site, "type filter hook output priority 0", *icmp),
    ):
        yield


@contextmanager
def one_port(site: Site) -> Iterator[None]:
    """Have all that goes to the neighbour leave by one port, which is in use."""
    to_neighbour = ("ip", "daddr", LAN_ADDRESS[4], "tcp", "dport", str(SERVICE))
    words = (*to_neighbour, "masquerade", "to", ":50000")
    with (
        rule(site, "type nat hook postrouting priority 90", *words),
        program(site, "client", HOLD, LAN_ADDRESS[4], str(SERVICE)),
    ):
        yield


def no_room(site: Site) -> AbstractContextManager[None]:
    """Have the queue towards the client have no room for a packet."""
    end = host_end(site, "client")
    tbf = ("tbf", "rate", "8bit", "burst", "10", "limit", "10")
    add = ("tc", "qdisc", "add", "dev", end, "root", *tbf)
    return running(site, *add, undo=("tc", "qdisc", "del", "dev", end, "root"))


@contextmanager
def wrong_sums(site: Site) -> Iterator[None]:
    """Have what goes to the server arrive with a checksum that is not its own."""
    site.engine.run(*site.enter("client"), sys.executable, "-c", SUMS, "eth0")
    words = ("tcp", "dport", str(PORT), "tcp", "checksum", "set", "0x1234")
    with rule(site, "type filter hook forward priority 0", *words, family="bridge"):
        yield


def stale_flow(site: Site) -> AbstractContextManager[None]:
    """Have a flow to the published port that began before there was one."""
    ends = ("--src", LAN_ADDRESS[4], "--dst", "192.0.2.1", "--sport", "5000")
    words = ("-p", "udp", *ends, "--dport", str(PUBLISHED))
    return running(
        site,
        *("conntrack", "-I", *words, "--timeout", "60"),
        undo=("conntrack", "-D", "-p", "udp", "--orig-port-dst", str(PUBLISHED)),
    )


def two_owners(site: Site) -> AbstractContextManager[None]:
    """Have the host take another container for the owner of the server's address."""
    inside = json.loads(
        site.engine.run(*site.enter("client"), "ip", "-json", "link", "show", "eth0").stdout
    )
    entry = (site.address("web", "back", 4), "dev", bridge_name(site, "back"))
    wrong = (*entry, "lladdr", inside[0]["address"], "nud", "reachable")
    return running(site, "ip", "neigh", "replace", *wrong, undo=("ip", "neigh", "del", *entry))


def own_rule(site: Site) -> AbstractContextManager[None]:
    words = ("tcp", "dport", str(PORT), "drop")
    return rule(site, "type filter hook input priority 0", *words, where="web")


def other_translation(site: Site) -> AbstractContextManager[None]:
    words = ("tcp", "dport", str(SERVICE), "dnat", "ip", "to", "198.51.100.9")
    return rule(site, "type nat hook prerouting priority -110", *words)


@contextmanager
def unknown_way_back(site: Site) -> Iterator[None]:
    """Have the neighbour not know the network of the container."""
    route = ("10.61.0.0/24", "via", "192.0.2.1")
    site.engine.lan_run("ip", "route", "del", *route)
    yield
    site.engine.lan_run("ip", "route", "add", *route)


@contextmanager
def few_hops(site: Site) -> Iterator[None]:
    inside = (*site.enter("client"), "sysctl", "-w")
    site.engine.run(*inside, "net.ipv4.ip_default_ttl=1")
    yield
    site.engine.run(*inside, "net.ipv4.ip_default_ttl=64")


@contextmanager
def no_routers(site: Site) -> Iterator[None]:
    """Have the host without a way out by IPv6, as one that forwards and does not hear routers."""
    with parameter(site, "net.ipv6.conf.uplink.accept_ra", "1"):
        route = ("default", "via", "2001:db8:2::2")
        had = "default" in site.engine.run("ip", "-6", "route").stdout
        if had:
            site.engine.run("ip", "-6", "route", "del", "default")
        yield
        if had:
            site.engine.run("ip", "-6", "route", "add", *route)


@contextmanager
def ipv6_off(site: Site) -> Iterator[None]:
    inside = (*site.enter("client"), "sysctl", "-w")
    site.engine.run(*inside, "net.ipv6.conf.eth0.disable_ipv6=1")
    yield
    site.engine.run(*inside, "net.ipv6.conf.eth0.disable_ipv6=0")


NAME_SERVER = running_in(LAN, NAMES, NAME, LAN_ADDRESS[4])
UNREADING = running_in("web", UNREAD, "91")
CASES = (
    Case("name-unknown", "client", f"{MISSPELT}:{SERVICE}", NAME_SERVER),
    Case("name-server-silent", "client", f"{NAME}:{SERVICE}"),
    Case(
        "loopback-target", "client", f"127.0.0.1:{SERVICE}", words="of this host", verdict="refused"
    ),
    Case("backlog-full", "client", "web:90", running_in("web", FULL, "90"), verdict="unanswered"),
    Case("receive-buffer-full", "client", "web:91/udp", UNREADING, verdict="unanswered"),
    Case("subnet-overlaps", "client", f"{NOBODY}:{SERVICE}", overlapping, "10.60.0.0/15"),
    Case("nobody-there", "client", f"{NOBODY}:{SERVICE}"),
    Case("mtu-too-large", "client", LAN_SERVICE, small_uplink, "1400", "reaches"),
    Case("not-masqueraded", "bare", LAN_SERVICE, unknown_way_back, "10.61.0."),
    Case("own-firewall", "client", f"web:{PORT}", own_rule, "inet other c, rule 1"),
    Case("translated-elsewhere", "client", LAN_SERVICE, other_translation, "198.51.100.9"),
    Case("no-free-translation", "client", LAN_SERVICE, one_port),
    Case("queue-drops", "client", f"web:{PORT}", no_room),
    Case("wrong-checksum", "client", f"web:{PORT}", wrong_sums),
    Case("stale-flow", "outside", "web:53/udp", stale_flow, "192.0.2.1"),
    Case("address-twice", "host", f"web:{PORT}", two_owners),
    Case("hops-spent", "client", LAN_SERVICE, few_hops),
    Case("routers-ignored", "client", f"[{FAR_V6}]:{SERVICE}", no_routers),
    Case("ipv6-off", "client", f"[{FAR_V6}]:{SERVICE}", ipv6_off),
)


def test_each_cause_is_named(site: Site) -> None:
    faults = [fault for each in CASES if (fault := tried(site, "pynet", each))]
    with program(site, LAN, NAMES, NAME, LAN_ADDRESS[4]):
        found = ask(site, "client", f"{NAME}:{SERVICE}")
    if (found["verdict"], found["cause"], found["not_seen"]) != ("reaches", None, []):
        faults.append(f"by a name: {found}")
    # Whoever has an address is asked about by it as well.
    found = ask(site, site.address("client", "back", 4), f"{site.address('web', 'back', 4)}:{PORT}")
    if (found["from"], found["to"], found["verdict"]) != ("client", "web", "reaches"):
        faults.append(f"by addresses: {found}")
    assert not faults, "\n".join(faults)


def test_what_iptables_legacy_drops(site: Site) -> None:
    drop = ("FORWARD", "-d", LAN_ADDRESS[4], "-j", "DROP")
    insert, delete = (("iptables-legacy", word, *drop) for word in ("-I", "-D"))
    with running(site, *insert, undo=delete):
        found = ask(site, "client", LAN_SERVICE)
    assert found["cause"]["id"] == "legacy-iptables", found


@pytest.mark.parametrize("driver", ["pynet", "bridge"])
def test_a_port_of_the_hosts_that_somebody_else_has(newest_engine: Engine, driver: str) -> None:
    with Site(newest_engine) as site:
        site.network(driver, "back", 60)
        with listening(site, HOST, "0.0.0.0", TAKEN):
            words = ("create", "--name", "late", "--network", "back", "-p", f"{TAKEN}:{PORT}")
            newest_engine.docker(*words, "bb", "sleep", "600")
            assert newest_engine.docker("start", "late", check=False).returncode != 0
            found = ask(site, "outside", f"late:{PORT}")
            assert found["cause"]["id"] == "port-taken", found
            assert "python" in found["cause"]["text"]
        assert ask(site, "outside", f"late:{PORT}")["cause"]["id"] == "not-running"


def test_two_containers_with_one_mac_address(newest_engine: Engine) -> None:
    with Site(newest_engine) as site:
        site.network("bridge", "back", 60)
        site.containers({"web": ("back",), "thief": ("back",)})
        site.serve("web", "tcp", PORT)
        inside = json.loads(newest_engine.run(*site.enter("web"), "ip", "-json", "link").stdout)
        (mac,) = (each["address"] for each in inside if each["ifname"] == "eth0")
        assert ask(site, HOST, f"web:{PORT}")["verdict"] == "reaches"  # it is a neighbour by now
        thief = site.enter("thief")
        newest_engine.run(*thief, "ip", "link", "set", "eth0", "address", mac)
        with program(site, "thief", SENDING):
            found = ask(site, HOST, f"web:{PORT}")
        assert found["cause"]["id"] == "mac-twice", found
