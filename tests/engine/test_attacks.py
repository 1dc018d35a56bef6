"""Packets that a hostile container or neighbour sends: what must not arrive does not arrive.

Each attack is a function that tells whether it worked; it did when something was heard that should
not have been. A test makes many on one site, on hosts of all kinds, and names those that worked.
"""

from __future__ import annotations

from functools import partial
from itertools import chain, count
from typing import TYPE_CHECKING

import pytest

from tests.engine import frames, steps
from tests.engine.attack import Attack, Port, new_mark, was_heard
from tests.engine.conftest import start
from tests.engine.hosts import bridged_frames, hosts, routing, rp_filter
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.engine.engine import Engine

    Attacks = Iterable[tuple[str, Callable[[], bool]]]

BRIDGE = "com.docker.network.bridge"
PORT, PUBLISHED, OWN, FAR = 80, 8080, 8081, 8082
SECRET, OPEN = 5300, 5301  # of programs on the host: on its loopback only, and on all addresses
EXPERIMENTAL, MPLS, PPPOE = 0x88B5, 0x8847, 0x8864
_ports = count(7000)


def new_port() -> int:
    """Return a port that no attempt has used, for the host remembers what was sent before."""
    return next(_ports)


@pytest.fixture
def attack(engine: Engine) -> Iterator[Attack]:
    with Site(engine) as site, Attack(site) as attack:
        yield attack


@pytest.fixture
def attack28(engine28: Engine) -> Iterator[Attack]:
    with Site(engine28) as site, Attack(site) as attack:
        yield attack


def those_that_worked(attacks: Attacks) -> list[str]:
    """Make attacks one after the other; return the names of those that worked."""
    return [name for name, worked in attacks if worked()]


def on_all_hosts(engine: Engine, attacks: Attacks) -> list[str]:
    """Make attacks on hosts of all kinds; return those that worked, with what the host was like."""
    made = list(attacks)
    return [f"{name}, {like}" for like in hosts(engine) for name in those_that_worked(made)]


# -- the host's own loopback


def loopback_by_tcp(attack: Attack, seeding: Port, opening: Port) -> bool:
    """Talk by TCP to what listens on the host's 127.0.0.1, by a simultaneous open.

    One sends the other, or itself, a bridged SYN from 127.0.0.1 to an address that nobody has. If
    it leaves with the gateway's, the way of the answer leads back to 127.0.0.1.
    """
    nobody, port = nobody_beside(opening), new_port()
    seeding.send(frames.tcp("127.0.0.1", SECRET, nobody, port, frames.SYN), to=opening.mac)
    opening.claim(nobody)
    attack.settle(seeding)

    def answer(flags: int, sequence: int, acknowledged: int = 0, data: bytes = b"") -> bytes:
        return frames.tcp(
            *(nobody, port, opening.gateways[4], SECRET, flags),
            data=data,
            sequence=sequence,
            acknowledged=acknowledged,
        )

    opening.send(answer(frames.SYN, 500))
    heard = attack.settle(opening)[opening.actor.name]
    for segment in filter(None, (frames.read_tcp(each.data) for each in heard)):
        if segment.ports == (SECRET, port) and segment.flags == frames.SYN | frames.ACK:
            mark, then = new_mark(), (segment.sequence + 1) % (1 << 32)
            opening.send(answer(frames.ACK, 501, then))
            opening.send(answer(frames.PSH | frames.ACK, 501, then, mark))
            heard = attack.settle(opening)[opening.actor.name]
            # Both directions; but it is enough that the host has answered the SYN.
            print("a connection to 127.0.0.1:", [each for each in heard if mark in each.data])
            return True
    return False


def loopback_by_udp(attack: Attack, seeding: Port, opening: Port) -> bool:
    """Reach what listens on the host's 127.0.0.1 by UDP, in the same way."""
    nobody, port, mark = nobody_beside(opening), new_port(), new_mark()
    seeding.send(frames.udp("127.0.0.1", SECRET, nobody, port), to=opening.mac)
    opening.claim(nobody)
    attack.settle(seeding)
    opening.send(frames.udp(nobody, port, opening.gateways[4], SECRET, mark))
    return was_heard(attack.settle(opening), HOST, mark)


def loopback_by_port(attack: Attack, seeding: Port, opening: Port, published: int) -> bool:
    """Reach what listens on 127.0.0.53: what was sent to a published port makes the way back."""
    mark, gateway = new_mark(), opening.gateways[4]
    attack.engine.run("conntrack", "-F")  # nothing of an attempt before, whose ports are the same
    seeding.send(frames.udp("127.0.0.53", SECRET, HOST_ADDRESS[4], published))
    attack.settle(seeding)
    opening.send(frames.udp(opening.addresses[4], PORT, gateway, SECRET, mark))
    return was_heard(attack.settle(opening), HOST, mark)


def loopback_source(
    attack: Attack, sender: Port, target: str, port: int, listener: Port | None = None
) -> bool:
    """Reach somebody with a source address that only the host itself should have."""
    mark = new_mark()
    sender.send(frames.udp("127.0.0.2", new_port(), target, port, mark))
    heard = attack.settle(sender, listeners=[listener] if listener else [])
    return was_heard(heard, listener.actor.name if listener else HOST, mark)


def nobody_beside(port: Port) -> str:
    """Return an address of a container's network that nobody has."""
    return f"{port.addresses[4].rpartition('.')[0]}.77"


# -- internal networks, and ports that are not published


def out_of_internal(attack: Attack, seeding: Port, hidden: Port, version: int) -> bool:
    """Talk between an internal container and the LAN, after another has in the container's name."""
    lan, port = attack.port(LAN), new_port()
    inside, outside = hidden.addresses[version], LAN_ADDRESS[version]
    out, back = new_mark(), new_mark()
    seeding.send(frames.udp(inside, port, outside, port))
    attack.settle(seeding)
    hidden.send(frames.udp(inside, port, outside, port, out))
    lan.send(frames.udp(outside, port, inside, port, back))
    heard = attack.settle(hidden, lan)
    return was_heard(heard, LAN, out) or was_heard(heard, hidden.actor.name, back)


def out_of_internal_alone(attack: Attack, hidden: Port, version: int) -> bool:
    """Reach the LAN from an internal container that has sent itself something in the LAN's name."""
    lan, port, mark = attack.port(LAN), new_port(), new_mark()
    inside, outside = hidden.addresses[version], LAN_ADDRESS[version]
    hidden.send(frames.udp(outside, port, inside, port))
    attack.settle(hidden)
    hidden.send(frames.udp(inside, port, outside, port, mark))
    return was_heard(attack.settle(hidden, listeners=[lan]), LAN, mark)


def out_of_internal_by_two(attack: Attack, hidden: Port, peer: Port, version: int) -> bool:
    """Do the same with a neighbour: what it sends is bridged, and sources are not looked at."""
    lan, port, mark = attack.port(LAN), new_port(), new_mark()
    inside, outside = hidden.addresses[version], LAN_ADDRESS[version]
    peer.send(frames.udp(outside, port, inside, port), to=hidden.mac)
    attack.settle(peer)
    hidden.send(frames.udp(inside, port, outside, port, mark))
    return was_heard(attack.settle(hidden, listeners=[lan]), LAN, mark)


def by_the_hosts_source(attack: Attack, sender: Port, victim: Port, version: int) -> bool:
    """Reach a container's port with the host's source, after the host has answered the container.

    Which it has because it was asked in the container's name.
    """
    port, mark = new_port(), new_mark()
    inside, host = victim.addresses[version], HOST_ADDRESS[version]
    sender.send(frames.udp(inside, port, host, OPEN))
    attack.settle(sender)
    sender.send(frames.udp(host, OPEN, inside, port, mark))
    return was_heard(attack.settle(sender, listeners=[victim]), victim.actor.name, mark)


def by_a_foreign_source(attack: Attack, seeding: Port, victim: Port, version: int) -> bool:
    """Reach a container's port from the LAN, after somebody has sent in the container's name.

    The answer goes to the container's address, or to the host's if that is what the LAN saw.
    """
    lan, port, mark = attack.port(LAN), new_port(), new_mark()
    inside, outside = victim.addresses[version], LAN_ADDRESS[version]
    seeding.send(frames.udp(inside, port, outside, port))
    attack.settle(seeding)
    for target in (inside, HOST_ADDRESS[version]):
        lan.send(frames.udp(outside, port, target, port, mark))
    return was_heard(attack.settle(lan, listeners=[victim]), victim.actor.name, mark)


def by_reflection(attack: Attack, sender: Port, victim: Port, version: int, target: str) -> bool:
    """Have the host send something to a container: the answer to a ping in the container's name."""
    mark = new_mark()
    sender.send(frames.ping(victim.addresses[version], target, mark))
    return was_heard(attack.settle(sender, listeners=[victim]), victim.actor.name, mark)


def out_by_reflection(attack: Attack, hidden: Port, version: int, target: str) -> bool:
    """Have the host send something to the LAN for an internal container: the answer to its ping."""
    lan, mark = attack.port(LAN), new_mark()
    hidden.send(frames.ping(LAN_ADDRESS[version], target, mark))
    return was_heard(attack.settle(hidden, listeners=[lan]), LAN, mark)


# -- tests


def build(site: Site, attack: Attack, driver: str = "pynet") -> None:
    """Build the site of most tests: two networks, an internal one, and a bridge of Docker's."""
    site.network(driver, "a", 61)
    site.network(driver, "b", 62)
    site.network(driver, "i", 63, "--internal")
    site.network("bridge", "d", 64)
    site.containers(
        {
            "evil": ("a", "-p", f"{OWN}:{PORT}", "-p", f"{OWN}:{PORT}/udp"),
            "helper": ("a", "-p", f"{PUBLISHED}:{PORT}/udp"),
            "far": ("b", "-p", f"{FAR}:{PORT}/udp"),
            "hidden": ("i",),
            "peer": ("i",),
            "dock": ("d",),
        }
    )
    serve_on_host(attack)


def serve_on_host(attack: Attack) -> None:
    """Have the host serve what nobody else is to reach, and what everybody may."""
    attack.serve("127.0.0.1", SECRET)
    attack.serve("127.0.0.53", SECRET)
    attack.serve("::", OPEN)


def all_attacks(attack: Attack) -> Attacks:
    """Yield the attacks that every kind of host is to withstand, by name."""
    evil, helper, far, hidden, peer, dock, lan = (
        attack.port(name) for name in ("evil", "helper", "far", "hidden", "peer", "dock", LAN)
    )
    yield "TCP to 127.0.0.1 by two", partial(loopback_by_tcp, attack, evil, helper)
    yield "TCP to 127.0.0.1 alone", partial(loopback_by_tcp, attack, evil, evil)
    yield "UDP to 127.0.0.1 by two", partial(loopback_by_udp, attack, evil, helper)
    yield "UDP to 127.0.0.1 alone", partial(loopback_by_udp, attack, evil, evil)
    for port in (evil, dock, lan):
        seeded = partial(loopback_by_port, attack, port, far, FAR)
        yield f"UDP to 127.0.0.53, seeded by {port.actor.name}", seeded
    yield "127.0.0.2 to the host", partial(loopback_source, attack, evil, evil.gateways[4], OPEN)
    yield "127.0.0.2 to the LAN", partial(loopback_source, attack, evil, lan.addresses[4], 9, lan)
    to_far = partial(loopback_source, attack, evil, HOST_ADDRESS[4], FAR, far)
    yield "127.0.0.2 to a published port", to_far
    for version in (4, 6):
        for port in (evil, dock, lan):
            name = f"by {port.actor.name}, IPv{version}"
            seeded = partial(out_of_internal, attack, port, hidden, version)
            yield f"out of an internal network, seeded {name}", seeded
            for target in sorted({port.gateways[version], hidden.gateways[version]}):
                reflected = partial(by_reflection, attack, port, hidden, version, target)
                yield f"into an internal network, reflected {name} from {target}", reflected
        name = f"IPv{version}"
        alone = partial(out_of_internal_alone, attack, hidden, version)
        yield f"out of an internal network alone, {name}", alone
        by_two = partial(out_of_internal_by_two, attack, hidden, peer, version)
        yield f"out of an internal network by two, {name}", by_two
        out = partial(out_by_reflection, attack, hidden, version, hidden.gateways[version])
        yield f"out of an internal network, reflected, {name}", out
        for port in (evil, dock, lan):
            for victim in (hidden, far):
                own = partial(by_the_hosts_source, attack, port, victim, version)
                what = f"by the host's source from {port.actor.name} to {victim.actor.name}"
                yield f"{what}, {name}", own
        for port in (far, dock, lan):
            foreign = partial(by_a_foreign_source, attack, port, helper, version)
            yield f"to an unpublished port, seeded by {port.actor.name}, {name}", foreign


@pytest.mark.managed("always")
def test_attacks_from_containers_and_from_the_lan(attack: Attack) -> None:
    build(attack.site, attack)
    with routing(attack.engine):
        worked = on_all_hosts(attack.engine, all_attacks(attack))
    assert not worked, "\n".join(worked)
    # What goes the same ways and may.
    attack.site.serve("far", "udp", PORT)
    attack.site.serve(LAN, "udp", PORT)
    questions = [
        Question(origin, HOST_ADDRESS[4], FAR, "*", "udp")
        for origin in ("evil", "far", "dock", LAN)
    ]
    for version in (4, 6):
        outside = LAN_ADDRESS[version], HOST_ADDRESS[version]
        questions += [
            Question(HOST, LOOPBACK[version], FAR, "*", "udp"),
            Question("evil", outside[0], PORT, outside[1], "udp"),
        ]
    check(attack.site, questions)


def test_the_same_attacks_on_dockers_bridge(attack28: Attack) -> None:
    """It takes any source, too, but it is not the way to the host's loopback."""
    engine = attack28.engine
    build(attack28.site, attack28, "bridge")
    with routing(engine), bridged_frames(engine, pass_iptables=True), rp_filter(engine, 0):
        worked = those_that_worked(all_attacks(attack28))
    assert set(worked) == {
        *(
            f"into an internal network, reflected by {port.actor.name}, IPv{version} from {target}"
            for port in map(attack28.port, ("evil", "dock", LAN))
            for version in (4, 6)
            for target in (port.gateways[version], attack28.port("hidden").gateways[version])
        ),
        *(f"out of an internal network, reflected, IPv{version}" for version in (4, 6)),
        *(
            f"to an unpublished port, seeded by {each}, IPv{version}"
            for each in ("far", "dock", "lan")
            for version in (4, 6)
        ),
    }


MODES = {
    "routed": [word for v in (4, 6) for word in ("-o", f"{BRIDGE}.gateway_mode_ipv{v}=routed")],
    "unprotected": [
        word for v in (4, 6) for word in ("-o", f"{BRIDGE}.gateway_mode_ipv{v}=nat-unprotected")
    ],
    "trusted": ["-o", f"{BRIDGE}.trusted_host_interfaces=uplink"],
    "direct": ["-o", "pynet.attach=direct"],
    "docker": ["-o", "pynet.publish=docker"],
    "icc": ["-o", f"{BRIDGE}.enable_icc=false"],
    "off": ["-o", "pynet.guard=off"],
}


def attacks_of_mode(attack: Attack, mode: str, far: Port) -> Attacks:
    """Yield the attacks from a network, and on its containers, whatever its mode."""
    evil, helper = (attack.port(f"{mode}-{name}", mode) for name in ("evil", "helper"))
    lan = attack.port(LAN)
    yield f"{mode}: TCP to 127.0.0.1 by two", partial(loopback_by_tcp, attack, evil, helper)
    yield f"{mode}: TCP to 127.0.0.1 alone", partial(loopback_by_tcp, attack, evil, evil)
    yield f"{mode}: UDP to 127.0.0.1 by two", partial(loopback_by_udp, attack, evil, helper)
    yield f"{mode}: UDP to 127.0.0.53", partial(loopback_by_port, attack, evil, far, FAR)
    gateway = evil.gateways[4]
    yield f"{mode}: 127.0.0.2 to the host", partial(loopback_source, attack, evil, gateway, OPEN)
    to_lan = partial(loopback_source, attack, evil, lan.addresses[4], 9, lan)
    yield f"{mode}: 127.0.0.2 to the LAN", to_lan
    to_far = partial(loopback_source, attack, evil, HOST_ADDRESS[4], FAR, far)
    yield f"{mode}: 127.0.0.2 to a published port", to_far
    for version in (4, 6):
        if mode == "icc":
            own = partial(by_the_hosts_source, attack, evil, helper, version)
            yield f"{mode}: by the host's source to a neighbour, IPv{version}", own
        if mode != "unprotected":  # whose ports are open to everybody
            own = partial(by_the_hosts_source, attack, lan, helper, version)
            yield f"{mode}: by the host's source, IPv{version}", own
            for port in (far, lan):
                foreign = partial(by_a_foreign_source, attack, port, helper, version)
                yield f"{mode}: seeded by {port.actor.name}, IPv{version}", foreign


def test_attacks_from_networks_of_all_modes(attack28: Attack) -> None:
    site = attack28.site
    site.network("pynet", "b", 62)
    for number, (mode, words) in enumerate(MODES.items(), 71):
        site.network("pynet", mode, number, *words)
    site.containers(
        {
            "far": ("b", "-p", f"{FAR}:{PORT}/udp"),
            **{f"{mode}-evil": (mode, "-p", f"{PORT}/udp") for mode in MODES},
            **{f"{mode}-helper": (mode,) for mode in MODES},
        }
    )
    serve_on_host(attack28)
    far = attack28.port("far")
    with routing(attack28.engine):
        every = chain.from_iterable(attacks_of_mode(attack28, mode, far) for mode in MODES)
        worked = on_all_hosts(attack28.engine, every)
    assert not worked, "\n".join(worked)


def frames_past_closed_ports(evil: Port, victim: Port) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield frames from a container to its neighbour: a name, the frame, the mark in it."""
    for version in (4, 6):
        for name, tags in TAGS.items():
            mark = new_mark()
            here, there = evil.addresses[version], victim.addresses[version]
            packet = frames.udp(here, new_port(), there, new_port(), mark)
            frame = frames.carry(victim.mac, evil.mac, packet)
            yield f"IPv{version} {name}", frames.tagged(frame, *tags), mark
    for ethertype in (EXPERIMENTAL, MPLS, PPPOE):
        mark = new_mark()
        frame = frames.ethernet(victim.mac, evil.mac, ethertype, bytes(8) + mark)
        yield f"EtherType {ethertype:#06x}", frame, mark
    mark = new_mark()
    frame = frames.length_framed(victim.mac, evil.mac, b"\xaa\xaa\x03" + bytes(5) + mark)
    yield "802.3", frame, mark


TAGS = {
    "untagged": (),
    "priority tagged": ((frames.VLAN, 0),),
    "priority tagged with 802.1ad": ((frames.SERVICE_VLAN, 0),),
    "tagged": ((frames.VLAN, 5),),
    "tagged with 802.1ad": ((frames.SERVICE_VLAN, 5),),
    "tagged twice": ((frames.SERVICE_VLAN, 5), (frames.VLAN, 6)),
    "priority tagged twice": ((frames.VLAN, 0), (frames.VLAN, 0)),
}


@pytest.mark.parametrize("guard", ["off", "network", "address"])
def test_no_frame_passes_between_closed_ports(attack28: Attack, guard: str) -> None:
    """And all of them between open ones, unless the guard keeps a container to its addresses."""
    site, engine = attack28.site, attack28.engine
    words = ("-o", f"pynet.guard={guard}")
    site.network("pynet", "a", 61, *words, "-o", f"{BRIDGE}.enable_icc=false")
    site.network("pynet", "b", 62, *words)
    site.containers(
        {"evil": ("a",), "helper": ("a",), "friend": ("b",), "other": ("b",)},
    )
    for passing in (True, False):
        with bridged_frames(engine, pass_iptables=passing):
            arrived = {
                network: sent_past(attack28, attack28.port(here), attack28.port(there))
                for network, here, there in (("a", "evil", "helper"), ("b", "friend", "other"))
            }
            assert not any(arrived["a"].values()), arrived["a"]
            open_to_all = {"IPv4 untagged", "IPv6 untagged"} if guard == "address" else arrived["b"]
            assert {name for name, came in arrived["b"].items() if came} == {*open_to_all}


def sent_past(attack: Attack, evil: Port, victim: Port) -> dict[str, bool]:
    """Send frames of many kinds from one container to another; tell which of them were heard."""
    sent = list(frames_past_closed_ports(evil, victim))
    evil.frames(*(frame for _, frame, _ in sent))
    heard = attack.settle(evil, listeners=[victim])
    return {name: was_heard(heard, victim.actor.name, mark) for name, _, mark in sent}


def test_the_first_ipv6_network_makes_no_open_router(engine: Engine) -> None:
    """Whoever turns forwarding on keeps strangers from being forwarded, as Docker does.

    On a host that has just booted, so that nobody has done it before.
    """
    engine.reboot()
    try:
        start(engine, driver=True)
        with Site(engine) as site, Attack(site) as attack:
            site.network("pynet", "a", 61)
            site.container("evil", "a")
            site.serve(LAN, "tcp", PORT)
            forwarding = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
            assert [steps.host_value(engine, key) for key in forwarding] == ["1", "1"]
            connect_third_host(attack)
            reached = [version for version in (4, 6) if reaches_third_host(attack, version)]
            assert not reached, f"the neighbour reaches a third host over {reached}"
            check(site, [Question("evil", LAN_ADDRESS[v], PORT, HOST_ADDRESS[v]) for v in (4, 6)])
    finally:
        engine.reboot()  # for the next test, a host that has no third beside it


THIRD = {4: "198.51.100.2", 6: "2001:db8:3::2"}


def connect_third_host(attack: Attack) -> None:
    """Connect the host to a wire, at whose other end everything is heard that is for a third."""
    engine = attack.engine
    engine.run("ip", "link", "add", "third", "type", "veth", "peer", "name", "beyond")
    for name in ("third", "beyond"):
        engine.run("ip", "link", "set", name, "up")
    for address in ("198.51.100.1/24", "2001:db8:3::1/64"):
        engine.run("ip", "address", "add", address, "dev", "third")
    for address in THIRD.values():
        where = ("lladdr", "02:00:00:00:00:03", "dev", "third")
        engine.run("ip", "neighbour", "add", address, *where)
    attack.actor(HOST).listen("beyond")


def reaches_third_host(attack: Attack, version: int) -> bool:
    """Tell whether what the neighbour sends to the third host arrives; the host's own does."""
    lan, host, mark, own = attack.port(LAN), attack.actor(HOST), new_mark(), new_mark()
    port = new_port()
    lan.send(frames.udp(lan.addresses[version], port, THIRD[version], port, mark))
    attack.settle(lan)
    host.say(THIRD[version], port, own)
    return was_heard({HOST: host.hear(own)}, HOST, mark)
