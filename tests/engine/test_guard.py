"""The guard of a network and of an endpoint: what a container may send, and in whose name.

Every frame is sent under every guard, `off` included, where it has to arrive: one that arrives
nowhere would show nothing.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.engine import frames, steps
from tests.engine.attack import Attack, Port, new_mark, was_heard
from tests.engine.conftest import start
from tests.engine.hosts import bridged_frames, rp_filter
from tests.engine.site import (
    HOST,
    HOST_ADDRESS,
    LAN,
    LAN_ADDRESS,
    LOOPBACK,
    Question,
    Site,
    check,
)
from tests.engine.soak import repetitions
from tests.engine.unixhttp import request
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.engine.engine import Engine

GUARDS = ("off", "network", "address")
ALL, LOOSE, NONE = frozenset(GUARDS), frozenset({"off", "network"}), frozenset({"off"})
# Of these guards nothing is promised.
UNSAID, STRICT = frozenset({"off", "network?"}), frozenset({"off?", "network?"})
BRIDGE = "com.docker.network.bridge"
PORT, UNPUBLISHED, PUBLISHED, FAR, CLOSED, DIRECT = 80, 81, 8080, 8082, 8083, 8084
FOREIGN = {4: "10.99.0.5", 6: "fd99::5"}
NOWHERE = {4: "0.0.0.0", 6: "::"}
FOREIGN_MAC, ZERO_MAC, VIRTUAL_MAC = "02:00:00:00:66:66", "00:00:00:00:00:00", "00:00:5e:00:01:07"
EXPERIMENTAL = 0x88B5
STARTS, AT_A_TIME = 250, 10
_ports = count(20000)


def guard(value: str) -> tuple[str, str]:
    """Return the words of a network with this guard."""
    return ("-o", f"pynet.guard={value}")


@pytest.fixture
def attack(engine28: Engine) -> Iterator[Attack]:
    with Site(engine28) as site, Attack(site) as attack:
        yield attack


class Attempt(NamedTuple):
    """A frame, where it may be heard, and under which guards it is."""

    name: str
    mark: bytes
    frame: bytes
    passes: frozenset[str]
    at: str = "victim"


class Sender:
    """Makes the attempts of one container: its own frames, and what it tries besides."""

    def __init__(self, evil: Port, victim: Port, other: Port) -> None:
        self.evil, self.victim, self.other = evil, victim, other
        self._local = frames.link_local(evil.mac)

    def attempts(self, *, bridged_is_judged: bool) -> Iterator[Attempt]:
        """Yield all of them."""
        yield from self._own()
        yield from self._in_others_names()
        yield from self._announcements()
        yield from self._infrastructure()
        yield from self._foreign(NONE if bridged_is_judged else LOOSE)
        yield from self._routed()

    def _udp(
        self, name: str, source: str, target: str, passes: frozenset[str], *, mac: str = ""
    ) -> Attempt:
        """Return a datagram to the victim, or to everybody."""
        mark = new_mark()
        packet = frames.udp(source, next(_ports), target, next(_ports), mark)
        to = frames.BROADCAST if target == "255.255.255.255" else self.victim.mac
        return Attempt(name, mark, frames.carry(to, mac or self.evil.mac, packet), passes)

    def _group(
        self, name: str, make: Callable[[bytes], bytes], passes: frozenset[str] = LOOSE
    ) -> Attempt:
        """Return what goes to all nodes of the link."""
        mark = new_mark()
        packet = make(mark)
        to = frames.multicast_mac(frames.ALL_NODES)
        return Attempt(name, mark, frames.carry(to, self.evil.mac, packet), passes)

    def _arp(
        self,
        name: str,
        address: str,
        passes: frozenset[str] = LOOSE,
        *,
        asked: str = "",
        operation: int = frames.REQUEST,
        mac: str = "",
        said: str = "",
    ) -> Attempt:
        """Return an ARP packet that says where an address is: at `said`, or at the sender."""
        mark, mac = new_mark(), mac or self.evil.mac
        about = asked or self.victim.addresses[4]
        packet = frames.arp(operation, said or mac, address, ZERO_MAC, about, trailer=mark)
        frame = frames.ethernet(frames.BROADCAST, mac, frames.ARP, packet)
        return Attempt(name, mark, frame, passes)

    def _own(self) -> Iterator[Attempt]:
        own, mac = self.evil.addresses, self.evil.mac
        local, there = self._local, frames.link_local(self.victim.mac)
        for version in (4, 6):
            yield self._udp(f"own IPv{version}", own[version], self.victim.addresses[version], ALL)
            yield self._to_lan(f"own IPv{version} to the LAN", own[version], ALL)
        yield self._udp("own link-local", local, there, ALL)
        yield self._udp("own broadcast", own[4], "255.255.255.255", ALL)
        yield self._udp("own multicast", own[4], "224.0.0.251", ALL)
        yield self._arp("ARP question", own[4], ALL)
        yield self._arp("ARP announcement", own[4], ALL, asked=own[4])
        yield self._arp("ARP answer", own[4], ALL, operation=frames.REPLY)
        yield self._arp("ARP probe", NOWHERE[4], ALL, asked=own[4])
        for name, address in (("global", own[6]), ("link-local", local)):

            def advertise(mark: bytes, address: str = address) -> bytes:
                return frames.neighbour_advertisement(address, address, mac, mark=mark)

            def detect(mark: bytes, address: str = address) -> bytes:
                return frames.neighbour_solicitation("::", address, mac, frames.ALL_NODES, mark)

            yield self._group(f"neighbour advertisement, own {name}", advertise, ALL)
            yield self._group(f"duplicate address detection, own {name}", detect, ALL)
        for source in ("::", local):

            def report(mark: bytes, source: str = source) -> bytes:
                return frames.listener_report(source, "ff02::1:3", mark)

            yield self._group(f"multicast listener report from {source}", report, ALL)

        def solicit(mark: bytes) -> bytes:
            return frames.router_solicitation(local, mac, mark)

        yield self._group("router solicitation", solicit, ALL)
        yield self._dhcp("DHCP question", 1, ALL)
        yield self._dhcp6("DHCPv6 question", 1, ALL)

    def _in_others_names(self) -> Iterator[Attempt]:
        for version in (4, 6):
            name, there = f"IPv{version}", self.victim.addresses[version]
            others = self.other.addresses[version]
            yield self._udp(f"{name} of a neighbour", others, there, LOOSE)
            gateway = self.evil.gateways[version]
            # The host's own sources are dropped where the host sees them, guard or not.
            yield self._udp(f"{name} of the gateway", gateway, there, STRICT)
            own = self.evil.addresses[version]
            yield self._udp(f"{name}, another MAC", own, there, LOOSE, mac=FOREIGN_MAC)
            mac = self.other.mac
            yield self._udp(f"{name}, a neighbour's MAC", own, there, LOOSE, mac=mac)
            yield self._udp(f"{name} of nobody", NOWHERE[version], there, STRICT)
        yield self._udp("IPv4 link-local", "169.254.7.7", self.victim.addresses[4], UNSAID)
        there, local = frames.link_local(self.victim.mac), frames.link_local(self.other.mac)
        yield self._udp("link-local of a neighbour", local, there, LOOSE)

    def _announcements(self) -> Iterator[Attempt]:
        own, mac, other = self.evil.addresses[4], self.evil.mac, self.other
        for name, address in (
            ("a neighbour", other.addresses[4]),
            ("the gateway", self.evil.gateways[4]),
            ("a stranger", FOREIGN[4]),
        ):
            yield self._arp(f"ARP question of {name}", address)
            yield self._arp(f"ARP answer of {name}", address, operation=frames.REPLY)
            yield self._arp(f"ARP announcement of {name}", address, asked=address)
        yield self._arp("ARP about another MAC", own, said=other.mac)
        yield self._arp("ARP from another MAC", own, mac=FOREIGN_MAC)
        for name, address in (
            ("a neighbour", other.addresses[6]),
            ("the gateway", self.evil.gateways[6]),
            ("a neighbour's link-local", frames.link_local(other.mac)),
        ):

            def advertise(mark: bytes, address: str = address) -> bytes:
                return frames.neighbour_advertisement(self._local, address, mac, mark=mark)

            def hide(mark: bytes, address: str = address) -> bytes:
                own = frames.neighbour_advertisement(self._local, address, mac, mark=mark)
                return frames.behind_options(own)

            yield self._group(f"neighbour advertisement of {name}", advertise)
            yield self._group(f"neighbour advertisement of {name} behind options", hide)

    def _infrastructure(self) -> Iterator[Attempt]:
        mac, local = self.evil.mac, self._local
        victim, there = self.victim, frames.link_local(self.victim.mac)

        def advertise(mark: bytes) -> bytes:
            return frames.router_advertisement(local, mac, "fd98::", mark)

        yield self._group("router advertisement", advertise)
        yield self._group(
            "router advertisement behind options",
            lambda mark: frames.behind_options(advertise(mark)),
        )
        for version, source, target in (
            (4, self.evil.addresses[4], victim.addresses[4]),
            (6, local, there),
        ):
            mark = new_mark()
            away, via = LAN_ADDRESS[version], source
            packet = frames.redirect(source, target, away, via, mark)
            frame = frames.carry(victim.mac, mac, packet)
            yield Attempt(f"redirect, IPv{version}", mark, frame, LOOSE)
        yield self._dhcp("DHCP answer", 2, LOOSE)
        yield self._dhcp6("DHCPv6 answer", 2, LOOSE)
        mark = new_mark()
        yield Attempt("BPDU", mark, frames.bpdu(mac, mark), LOOSE)
        mark = new_mark()
        frame = frames.ethernet(victim.mac, mac, EXPERIMENTAL, bytes(8) + mark)
        yield Attempt("unknown EtherType", mark, frame, LOOSE)
        mark = new_mark()
        frame = frames.length_framed(victim.mac, mac, b"\xaa\xaa\x03" + bytes(5) + mark)
        yield Attempt("802.3", mark, frame, LOOSE)
        for name, tag in TAGS.items():
            own = self._udp(name, self.evil.addresses[4], victim.addresses[4], LOOSE)
            yield own._replace(frame=frames.tagged(own.frame, tag))

    def _foreign(self, passes: frozenset[str]) -> Iterator[Attempt]:
        """Yield what is of no address of the network, bridged."""
        for version, source in FOREIGN.items():
            there = self.victim.addresses[version]
            yield self._udp(f"IPv{version} of a stranger", source, there, passes)

    def _routed(self) -> Iterator[Attempt]:
        """Yield what goes to the gateway, and on to the LAN."""
        for version in (4, 6):
            name, others = f"IPv{version} to the LAN", self.other.addresses[version]
            yield self._to_lan(f"{name}, a neighbour's", others, LOOSE)
            foreign = self._to_lan(f"{name}, a stranger's", FOREIGN[version], NONE)
            yield foreign
            for tag, vlan in TAGS.items():
                if not vlan[1]:  # the host has no interface for another VLAN
                    tagged = self._to_lan(f"{name}, a stranger's, {tag}", FOREIGN[version], NONE)
                    yield tagged._replace(frame=frames.tagged(tagged.frame, vlan))

    def _to_lan(self, name: str, source: str, passes: frozenset[str]) -> Attempt:
        mark = new_mark()
        there = LAN_ADDRESS[6 if ":" in source else 4]
        packet = frames.udp(source, next(_ports), there, next(_ports), mark)
        frame = frames.carry(self.evil.gateway_mac, self.evil.mac, packet)
        return Attempt(name, mark, frame, passes, LAN)

    def _dhcp(self, name: str, message: int, passes: frozenset[str]) -> Attempt:
        """Return a DHCP message, a client's or a server's."""
        mark = new_mark()
        if message == 1:
            source, sport, dport = NOWHERE[4], 68, 67
        else:
            source, sport, dport = self.evil.addresses[4], 67, 68
        data = frames.dhcp(message, self.evil.mac, FOREIGN[4], source, mark)
        packet = frames.udp(source, sport, "255.255.255.255", dport, data)
        frame = frames.carry(frames.BROADCAST, self.evil.mac, packet)
        return Attempt(name, mark, frame, passes)

    def _dhcp6(self, name: str, message: int, passes: frozenset[str]) -> Attempt:
        """Return a DHCPv6 message, a client's or a server's."""
        mark = new_mark()
        if message == 1:
            target, sport, dport = "ff02::1:2", 546, 547
        else:
            target, sport, dport = frames.link_local(self.victim.mac), 547, 546
        packet = frames.udp(self._local, sport, target, dport, frames.dhcp6(message, mark))
        to = frames.multicast_mac(target) if message == 1 else self.victim.mac
        return Attempt(name, mark, frames.carry(to, self.evil.mac, packet), passes)


TAGS = {
    "priority tagged": (frames.VLAN, 0),
    "priority tagged with 802.1ad": (frames.SERVICE_VLAN, 0),
    "tagged": (frames.VLAN, 5),
    "tagged with 802.1ad": (frames.SERVICE_VLAN, 5),
}


def keep_known(engine: Engine, port: Port) -> None:
    """Have the host know a container by its own MAC, whatever the container says of it later.

    Else its answers go elsewhere if what is said comes a second after it was last heard of
    (`locktime` in arp_process(), net/ipv4/arp.c).
    """
    for address in port.addresses.values():
        (route,) = json.loads(engine.run("ip", "-json", "route", "get", address).stdout)
        entry = (address, "lladdr", port.mac, "dev", route["dev"], "nud", "permanent")
        engine.run("ip", "neighbour", "replace", *entry)


def not_as_promised(attack: Attack, value: str, sender: Sender, *, judged: bool) -> Iterator[str]:
    """Make all attempts under a guard; yield what arrived and should not, and the reverse."""
    # What an attempt before has made the victim believe must not keep it from answering the host.
    attack.site.run(sender.victim.actor.name, "ip", "neighbour", "flush", "all")
    attack.settle(sender.evil, sender.victim, attack.port(LAN))
    attempts = list(sender.attempts(bridged_is_judged=judged))
    keep_known(attack.engine, sender.evil)
    sender.evil.frames(*(attempt.frame for attempt in attempts))
    heard = attack.settle(sender.evil, listeners=[sender.victim, attack.port(LAN)])
    for attempt in attempts:
        place = LAN if attempt.at == LAN else sender.victim.actor.name
        came = was_heard(heard, place, attempt.mark)
        if came != (value in attempt.passes) and f"{value}?" not in attempt.passes:
            yield f"{value}: {attempt.name} {'arrived' if came else 'did not arrive'}"


@pytest.mark.managed("always")
def test_what_each_guard_lets_a_container_send(attack: Attack) -> None:
    site, engine = attack.site, attack.engine
    for number, value in enumerate(GUARDS, 61):
        site.network("pynet", value, number, *guard(value))
    roles = ("evil", "victim", "other")
    site.containers({f"{value}-{role}": (value,) for value in GUARDS for role in roles})
    wrong: list[str] = []
    for passing in (True, False):
        with bridged_frames(engine, pass_iptables=passing), rp_filter(engine, 0):
            for value in GUARDS:
                sender = Sender(*(attack.port(f"{value}-{role}") for role in roles))
                found = not_as_promised(attack, value, sender, judged=passing)
                wrong += [f"{each}, br_netfilter {passing}" for each in found]
    assert not wrong, "\n".join(wrong)


def spoofs(attack: Attack, evil: Port, victim: Port) -> dict[str, bool]:
    """Send in the own name, in the victim's and in a stranger's; tell what was heard of each."""
    marks = {}
    for name, source in (
        ("own", evil.addresses[4]),
        ("neighbour", nobody_beside(evil)),
        ("stranger", FOREIGN[4]),
    ):
        marks[name] = new_mark()
        packet = frames.udp(source, next(_ports), victim.addresses[4], next(_ports), marks[name])
        evil.send(packet, to=victim.mac)
    heard = attack.settle(evil, listeners=[victim])
    return {name: was_heard(heard, victim.actor.name, mark) for name, mark in marks.items()}


def nobody_beside(port: Port) -> str:
    """Return an address of a container's network that nobody has."""
    return f"{port.addresses[4].rpartition('.')[0]}.77"


# What of these three is heard under each guard, where bridged frames pass iptables.
HEARD = {
    "off": {"own": True, "neighbour": True, "stranger": True},
    "network": {"own": True, "neighbour": True, "stranger": False},
    "address": {"own": True, "neighbour": False, "stranger": False},
}


def test_the_guard_that_a_network_and_an_endpoint_have_by_default(attack: Attack) -> None:
    """Internal networks are strict. Those without ICC are, too: nothing is heard there anyway."""
    site = attack.site
    site.network("pynet", "plain", 61)
    site.network("pynet", "internal", 62, "--internal")
    site.network("pynet", "routed", 63, "-o", f"{BRIDGE}.gateway_mode_ipv4=routed")
    defaults = {"plain": "network", "internal": "address", "routed": "network"}
    site.containers({f"{net}-{role}": (net,) for net in defaults for role in ("evil", "victim")})
    site.containers(
        {
            "loose": ("name=internal,driver-opt=pynet.guard=off",),
            "strict": ("name=plain,driver-opt=pynet.guard=address",),
        }
    )
    for net, value in defaults.items():
        evil, victim = (attack.port(f"{net}-{role}") for role in ("evil", "victim"))
        assert spoofs(attack, evil, victim) == HEARD[value], net
    for name, net, value in (("loose", "internal", "off"), ("strict", "plain", "address")):
        got = spoofs(attack, attack.port(name), attack.port(f"{net}-victim"))
        assert got == HEARD[value], name


def test_a_container_without_icc_is_kept_to_its_addresses(attack: Attack) -> None:
    """By default; what tells is what reaches the LAN, since the neighbour hears nothing."""
    site, engine = attack.site, attack.engine
    site.network("pynet", "a", 61, "-o", f"{BRIDGE}.enable_icc=false")
    site.network("pynet", "b", 62, "-o", f"{BRIDGE}.enable_icc=false", *guard("network"))
    site.containers({name: (name[0],) for name in ("a-evil", "a-other", "b-evil", "b-other")})
    lan = attack.port(LAN)
    with rp_filter(engine, 0):
        for net, passes in (("a", False), ("b", True)):
            evil, other = attack.port(f"{net}-evil"), attack.port(f"{net}-other")
            for version in (4, 6):
                marks = {port.actor.name: new_mark() for port in (evil, other)}
                for port in (evil, other):
                    ports = (next(_ports), next(_ports))
                    here, there = port.addresses[version], LAN_ADDRESS[version]
                    mark = marks[port.actor.name]
                    evil.send(frames.udp(here, ports[0], there, ports[1], mark))
                heard = attack.settle(evil, listeners=[lan])
                came = [was_heard(heard, LAN, mark) for mark in marks.values()]
                assert came == [True, passes], (net, version)


def test_a_guard_off_lets_a_container_be_a_router(attack: Attack) -> None:
    """Its networks are strict; without the option of its endpoints nothing comes through."""
    site, engine = attack.site, attack.engine
    for name, number, value in (("p", 61, "network"), ("q", 62, "address")):
        site.network("pynet", name, number, *guard(value))
    forward = ("--sysctl=net.ipv4.ip_forward=1", "--sysctl=net.ipv6.conf.all.forwarding=1")
    site.containers(
        {
            "server": ("q",),
            "client": ("p",),
            "unlucky": ("p",),
            "router": ("name=p,driver-opt=pynet.guard=off", *forward),
            "fool": ("p", *forward),
        }
    )
    engine.docker("network", "connect", "--driver-opt", "pynet.guard=off", "q", "router")
    engine.docker("network", "connect", "q", "fool")
    site.serve("server", "tcp", PORT)
    questions = []
    for version in (4, 6):
        server = site.address("server", "q", version)
        for client, router, works in (("client", "router", True), ("unlucky", "fool", False)):
            own = site.address(client, "p", version)
            here, there = (site.address(router, network, version) for network in ("p", "q"))
            site.run(client, "ip", f"-{version}", "route", "add", server, "via", here)
            site.run("server", "ip", f"-{version}", "route", "add", own, "via", there)
            questions.append(Question(client, server, PORT, own if works else None))
    check(site, questions)


def test_addresses_that_a_container_may_use_besides_its_own(attack: Attack) -> None:
    site, engine = attack.site, attack.engine
    shared = {4: "10.61.0.200", 6: "fd61::200"}
    also = f"pynet.guard.also={shared[4]} {shared[6]} {VIRTUAL_MAC}"
    site.network("pynet", "a", 61, *guard("address"))
    site.network("pynet", "b", 62)
    site.containers({"master": ("b",), "evil": ("a",), "victim": ("a",)})
    engine.docker("network", "connect", "--driver-opt", also, "a", "master")
    victim = attack.port("victim")
    for name, passes in (("master", True), ("evil", False)):
        port = attack.port(name, "a")
        for mac in (VIRTUAL_MAC, port.mac):  # the neighbours believe the last one
            tried = list(uses_of(shared, mac, victim))
            port.frames(*(frame for _, frame, _ in tried))
            heard = attack.settle(port, listeners=[victim])
            came = {what: was_heard(heard, "victim", mark) for what, _, mark in tried}
            assert came == dict.fromkeys(came, passes), (name, mac)
    # As a daemon would do it: the address is there, and who asks for it is answered.
    interface = attack.port("master", "a").interface
    for version, length in ((4, 24), (6, 64)):
        address = f"{shared[version]}/{length}"
        nodad = ("nodad",) if version == 6 else ()
        site.run("master", "ip", "address", "add", address, "dev", interface, *nodad)
    site.serve("master", "tcp", PORT)
    check(
        site,
        [Question(each, shared[v], PORT, "*") for each in ("victim", HOST) for v in (4, 6)],
    )


def uses_of(shared: dict[int, str], mac: str, victim: Port) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield frames that use addresses by a MAC: what it is, the frame, the mark in it."""
    mark = new_mark()
    said = frames.arp(frames.REQUEST, mac, shared[4], ZERO_MAC, shared[4], trailer=mark)
    yield "ARP", frames.ethernet(frames.BROADCAST, mac, frames.ARP, said), mark
    mark = new_mark()
    said = frames.neighbour_advertisement(shared[6], shared[6], mac, mark=mark)
    yield "NA", frames.carry(frames.multicast_mac(frames.ALL_NODES), mac, said), mark
    for version, address in shared.items():
        mark = new_mark()
        there = victim.addresses[version]
        packet = frames.udp(address, next(_ports), there, next(_ports), mark)
        yield f"IPv{version}", frames.carry(victim.mac, mac, packet), mark


def ordinary_questions(site: Site) -> Iterator[Question]:
    """Yield what works under every guard."""
    yield Question(HOST, LOOPBACK[4], FAR, "*")
    for version in (4, 6):
        outside, neighbour = HOST_ADDRESS[version], LAN_ADDRESS[version]
        address = {
            name: site.address(name, name[0], version)
            for name in ("a-web", "a-near", "c-web", "c-near", "x-web", "x-near", "b-far")
        }
        for net, published in (("a", PUBLISHED), ("c", CLOSED), ("x", DIRECT)):
            web, near = f"{net}-web", f"{net}-near"
            # From the LAN, from the host, from a neighbour, from itself, from another network.
            yield Question(LAN, outside, published, neighbour)
            yield Question(HOST, LOOPBACK[version], published, "*")
            yield Question(HOST, outside, published, "*")
            yield Question(HOST, address[web], UNPUBLISHED, "*")
            yield from (Question(each, outside, published, "*") for each in (near, web, "b-far"))
            yield Question(web, neighbour, PORT, outside)
            yield Question(web, outside, FAR, "*")
            straight = None if net == "c" else address[near]
            yield Question(near, address[web], UNPUBLISHED, straight)
            yield Question("b-far", address[web], UNPUBLISHED, None)
            yield Question(LAN, address[web], UNPUBLISHED, None)


@pytest.mark.parametrize("value", GUARDS)
def test_the_ordinary_ways_are_open_under_every_guard(attack: Attack, value: str) -> None:
    site = attack.site
    site.network("pynet", "a", 61, *guard(value))
    site.network("pynet", "b", 62, *guard(value))
    site.network("pynet", "c", 63, *guard(value), "-o", f"{BRIDGE}.enable_icc=false")
    site.network("pynet", "x", 64, *guard(value), "-o", "pynet.attach=direct")
    site.network("pynet", "i", 65, *guard(value), "--internal")
    site.containers(
        {
            "a-web": ("a", "-p", f"{PUBLISHED}:{PORT}"),
            "c-web": ("c", "-p", f"{CLOSED}:{PORT}"),
            "x-web": ("x", "-p", f"{DIRECT}:{PORT}"),
            "b-far": ("b", "-p", f"{FAR}:{PORT}"),
            **{f"{net}-near": (net,) for net in ("a", "c", "x", "i")},
            "i-web": ("i",),
        }
    )
    for name in ("a-web", "c-web", "x-web", "b-far", "i-web"):
        site.serve(name, "tcp", PORT, UNPUBLISHED)
    site.serve(LAN, "tcp", PORT)
    questions = list(ordinary_questions(site))
    for version in (4, 6):
        here, there = (site.address(name, "i", version) for name in ("i-near", "i-web"))
        questions += [
            Question("i-near", there, PORT, here),
            Question(HOST, there, PORT, "*"),
            Question("i-web", LAN_ADDRESS[version], PORT, None),
        ]
    for passing in (True, False):
        with bridged_frames(attack.engine, pass_iptables=passing):
            check(site, questions)
    # By name, which Docker answers in the container; and what libnetwork or the kernel announces
    # of a container that comes anew with the address of one that has gone.
    steps.ping(attack.engine, "a-near", "a-web")
    attack.engine.docker("restart", "-t", "0", "a-web")
    site.serve("a-web", "tcp", PORT)
    check(
        site,
        [
            Question("a-near", site.address("a-web", "a", 4), PORT, "*"),
            Question("a-near", site.address("a-web", "a", 6), PORT, "*"),
        ],
    )


@pytest.mark.managed("always")
def test_a_guard_outlives_what_happens_to_it(engine28: Engine) -> None:
    """Restarts, what others do to the rules, changes, and a power failure."""
    engine = engine28
    with Site(engine) as site:
        site.network("pynet", "a", 61, *guard("address"))
        site.containers({"evil": ("a",), "victim": ("a",)})
        with Attack(site) as attack:
            evil, victim = attack.port("evil"), attack.port("victim")

            def holds(value: str = "address") -> None:
                assert spoofs(attack, evil, victim) == HEARD[value]

            holds()
            steps.revive_driver(engine)
            holds()
            for damage in ("flush ruleset", "delete table bridge pynet", "delete table inet pynet"):
                engine.run("nft", *damage.split())
                await_whole(engine)
                holds()
            for value in ("off", "network", "address"):
                steps.pynet(engine, "set", "a", f"pynet.guard={value}")
                holds(value)
            steps.pynet(engine, "set", "a", "--unset", "pynet.guard")
            holds("network")
            steps.revive_driver(engine)
            holds("network")
            steps.pynet(engine, "set", "a", "pynet.guard=address")
        engine.reboot()
        start(engine, driver=True)
        engine.docker("start", "evil", "victim")
        with Attack(site) as attack:
            assert spoofs(attack, attack.port("evil"), attack.port("victim")) == HEARD["address"]


def await_whole(engine: Engine) -> None:
    """Wait until the driver finds nothing that differs from what it should be."""
    assert engine.driver is not None
    socket = engine.driver.socket
    nothing = (200, b'{"differences":[]}')
    wait_until(lambda: request(socket, "GET", "/differences") == nothing, 10, "a whole firewall")


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("attach", ["handover", "direct"])
def test_no_first_process_is_quicker_than_the_guard(attack: Attack, attach: str) -> None:
    """It takes another MAC and another address and says so; then, as itself, it pings."""
    site, starts = attack.site, repetitions(STARTS)
    site.network("pynet", "a", 61, *guard("address"), "-o", f"pynet.attach={attach}")
    site.container("ear", "a")
    ear, claimed = attack.port("ear"), "10.61.0.200"
    script = " && ".join(
        (
            "own=$(cat /sys/class/net/eth0/address)",
            f"ip link set eth0 address {FOREIGN_MAC}",
            f"ip address add {claimed}/24 dev eth0",
            f"arping -q -c 1 -U -I eth0 -s {claimed} {claimed}",
            "ip link set eth0 address $own",
            f"ping -q -c 1 -w 10 {ear.addresses[4]}",
        )
    )

    def begin(_: int) -> None:
        options = ("--cap-add=NET_ADMIN",)
        steps.run_once(attack.engine, "a", "sh", "-c", script, options=options)

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(begin, range(starts)))
    heard = attack.settle(ear)["ear"]
    ours = frames.mac_bytes(FOREIGN_MAC), bytes(map(int, claimed.split(".")))
    bad = [each.data.hex() for each in heard if any(word in each.data for word in ours)]
    assert not bad, f"{len(bad)} frames of {starts} starts, such as {bad[0]}"
    assert sum(frames.is_ping(each.data) for each in heard) >= starts
