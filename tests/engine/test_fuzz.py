"""A container sends a hundred thousand frames of all kinds; only what may arrive does, anywhere.

What is sent depends on a seed alone, which is printed: PYNET_FUZZ_SEED=N repeats a run, and
PYNET_FUZZ_FRAMES=N changes how many there are. `frames.py` draws them, `fuzzer.py` sends and hears
them, `arrivals.py` says what may arrive.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import asdict, replace
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine import steps
from tests.engine.arrivals import (
    Arrival,
    Guard,
    Place,
    Rules,
    read_frame,
    read_packet,
    refusal,
)
from tests.engine.driver import REPOSITORY
from tests.engine.fuzz_frames import TCP, UDP, Kind, Published, World, draw
from tests.engine.site import HOST, HOST_ADDRESS, LAN, LAN_ADDRESS, Site
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.engine.command import Command
    from tests.engine.engine import Engine
    from tests.engine.fuzz_frames import Frame

FRAMES = int(os.environ.get("PYNET_FUZZ_FRAMES", "100000"))
LOG_GROUP = 20
# Behind every filter, so that what is logged has reached the host's own IP stack.
LOG_RULES = f"""\
table inet fuzz {{
	chain input {{
		type filter hook input priority 500; policy accept;
		log group {LOG_GROUP}
	}}
}}
"""
# The kernel of the sender is to say nothing of its own, but where its addresses are.
SILENCE = """\
table inet silence {
	chain output {
		type filter hook output priority 0; policy drop;
		icmpv6 type { nd-neighbor-advert, nd-neighbor-solicit } accept
	}
}
"""
OWN_PUBLISHED, NEAR_PUBLISHED, FAR_PUBLISHED, DOCK_PUBLISHED = 8080, 8085, 8082, 8083
FAR_LOCAL, FAR_LOCAL6, OPEN, LOCAL = 8081, 8086, 7001, 7002
CONTAINERS = {"near": "a", "far": "b", "inner": "i", "dock": "d"}
EXAMPLES = 4
BRIDGED = ("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables")


class Fuzz:
    """A site with a sender and with listeners everywhere, and what they heard."""

    def __init__(self, site: Site, rules: Rules, seed: int) -> None:
        self.site = site
        self.engine = site.engine
        self.network = rules
        self.seed = seed
        self.arrivals: list[Arrival] = []
        self._frames: dict[int, Frame] = {}
        self.accepted: list[tuple[str, str]] = []

    def build(self) -> None:
        """Make the networks and containers, and learn what a sender may know."""
        bridge = self.site.network("pynet", "a", 60, *self._options())
        self.site.network("pynet", "b", 61)
        self.site.network("bridge", "d", 62)
        self.site.network("pynet", "i", 63, "--internal")

        def both(port: int) -> tuple[str, ...]:
            return ("-p", f"{port}:80", "-p", f"{port}:80/udp")

        local = ("-p", f"127.0.0.1:{FAR_LOCAL}:80", "-p", f"[::1]:{FAR_LOCAL6}:80")
        self.site.containers(
            {
                "sender": ("a", *both(OWN_PUBLISHED)),
                "near": ("a", *both(NEAR_PUBLISHED)),
                "far": ("b", *both(FAR_PUBLISHED), *local),
                "inner": ("i",),
                "dock": ("d", *both(DOCK_PUBLISHED)),
            }
        )
        for name in ("sender", *CONTAINERS):  # whoever forwards would answer for others
            off = ("net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
            self.site.run(name, "sysctl", "-qw", *off)
        self.engine.run(*self.site.enter("sender"), "nft", "-f", "-", stdin=SILENCE)
        self.bridge = f"pn-{bridge[:12]}"
        self.world = self._explore()

    def _options(self) -> tuple[str, ...]:
        """Return the words that ask for the network's rules, which are few: most are defaults."""
        if self.network.internal:
            return ("--internal",)
        if self.network.guard is Guard.ADDRESS:
            return ("-o", f"pynet.guard={Guard.ADDRESS}")
        return ()

    def _explore(self) -> World:
        addresses: dict[int, dict[str, str]] = {4: {}, 6: {}}
        macs = {}
        for name, network in (("sender", "a"), *CONTAINERS.items()):
            own = "own" if name == "sender" else name
            for version in (4, 6):
                addresses[version][own] = self.site.address(name, network, version)
            macs[own] = str(steps.endpoint(self.engine, name, network)["MacAddress"])
            addresses[6][f"{own} link"] = _link_local(steps.interfaces(self.engine, name)["eth0"])
        link = steps.host_link(self.engine, self.bridge)
        assert link is not None
        macs["bridge"] = link["address"]
        addresses[6]["gateway link"] = _link_local(link)
        uplink = steps.host_link(self.engine, "uplink")
        assert uplink is not None
        addresses[6]["host link"] = _link_local(uplink)
        for name, number in (("", 60), ("far ", 61), ("dock ", 62), ("inner ", 63)):
            addresses[4][f"{name}gateway"] = f"10.{number}.0.1"
            addresses[6][f"{name}gateway"] = f"fd{number}::1"
        for version, nobody in ((4, "10.60.0.77"), (6, "fd60::77")):
            addresses[version]["nobody"] = nobody
            addresses[version]["host"] = HOST_ADDRESS[version]
            addresses[version]["lan"] = LAN_ADDRESS[version]
        ports = (OWN_PUBLISHED, NEAR_PUBLISHED, FAR_PUBLISHED, DOCK_PUBLISHED, FAR_LOCAL,
                 FAR_LOCAL6, OPEN, LOCAL, 80, 81)  # fmt: skip
        return World(
            macs=macs,
            addresses={str(version): known for version, known in addresses.items()},
            subnets=("0a3c00", "fd60000000000000"),
            published=tuple(
                Published(place, protocol, port)
                for place, port in ((Place.FAR, FAR_PUBLISHED), (Place.DOCK, DOCK_PUBLISHED))
                for protocol in (TCP, UDP)
            ),
            ports=ports,
        )

    def run(self) -> None:
        """Send everything, one half where br_netfilter sees bridged packets, one where not."""
        self.engine.run("conntrack", "-F")  # what others began, and the addresses are ours now
        self.engine.run("nft", "-f", "-", stdin=LOG_RULES)
        try:
            with ExitStack() as stack:
                listeners = {place: self._listen(place, stack) for place in _listening()}
                for first, end, br_netfilter in _halves():
                    self._set_br_netfilter(on=br_netfilter)
                    self._send(first, end)
                heard = {place: _heard(each) for place, each in listeners.items()}
        finally:
            self._set_br_netfilter(on=True)
            self.engine.run("nft", "delete", "table", "inet", "fuzz")
        assert not any(each["lost"] for each in heard.values())
        for place, each in heard.items():
            self.arrivals += self._read(place, each["heard"])
            self.accepted += map(tuple, each["accepted"])

    def frame(self, number: int) -> Frame:
        """Return what was sent under a number."""
        if number not in self._frames:
            self._frames[number] = draw(self.world, self.seed, number)
        return self._frames[number]

    def rules(self, number: int) -> Rules:
        """Return what held when a frame was sent."""
        return replace(self.network, br_netfilter=number < FRAMES // 2)

    def _set_br_netfilter(self, *, on: bool) -> None:
        self.engine.run("sysctl", "-qw", *(f"{each}={on:d}" for each in BRIDGED))

    def _send(self, first: int, end: int) -> None:
        words = ("send", "eth0", str(self.seed), str(first), str(end))
        sending = self._start("sender", *words)
        world = json.dumps(asdict(self.world))
        done = json.loads(sending.result(stdin=world, timeout=240).stdout)
        print(f"sent {done}")
        assert done["sent"] + done["refused"] == end - first
        assert done["refused"] < (end - first) // 100

    def _listen(self, place: Place, stack: ExitStack) -> Command:
        if place is Place.HOST:
            listener = self._start(place, "record", str(LOG_GROUP), str(OPEN), str(LOCAL))
        elif place is Place.LAN:
            listener = self._start(place, "listen", "uplink")
        elif place is Place.NEAR:
            listener = self._start(place, "listen", "eth0", "10.60.0.1")
        else:
            listener = self._start(place, "listen", "eth0")
        stack.callback(_end, listener)
        assert listener.stdout is not None
        assert listener.stdout.readline() == "ready\n", f"{place} cannot listen"
        return listener

    def _start(self, where: str, *words: str) -> Command:
        program = (sys.executable, "-m", "tests.engine.fuzzer", *words)
        argv = ("env", f"--chdir={REPOSITORY}", f"PYTHONPATH={REPOSITORY}", *program)
        if where == LAN:
            return self.engine.lan_popen(*argv, stdin=PIPE, stdout=PIPE)
        return self.engine.popen(*self.site.enter(where), *argv, stdin=PIPE, stdout=PIPE)

    def _read(self, place: Place, heard: Sequence[tuple[str, str]]) -> Iterator[Arrival]:
        for where, text in heard:
            data = bytes.fromhex(text)
            if place is not Place.HOST:
                arrival = read_frame(place, data, self.frame)
            elif where == Place.HOST:
                arrival = read_packet(place, data, self.frame)
            else:
                arrival = self._read_datagram(Place(where), data)
            if arrival is not None and 0 <= arrival.number < FRAMES:
                yield arrival

    def _read_datagram(self, place: Place, data: bytes) -> Arrival | None:
        """Return what a service of the host got, which sees no addresses of its own."""
        packet = read_packet(place, b"\x60" + bytes(39) + data, self.frame)
        if packet is None:
            return None
        return Arrival(packet.number, place, packet.is_answer, self.frame(packet.number).flow)


def _listening() -> tuple[Place, ...]:
    return (*map(Place, CONTAINERS), Place.LAN, Place.HOST)


def _halves() -> Iterator[tuple[int, int, bool]]:
    yield 0, FRAMES // 2, True
    yield FRAMES // 2, FRAMES, False


def _end(listener: Command) -> None:
    listener.kill_group()
    for pipe in (listener.stdin, listener.stdout):
        if pipe is not None:
            pipe.close()


def _heard(listener: Command) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(listener.result(stdin="", timeout=120).stdout)
    return found


def _link_local(link: dict[str, Any]) -> str:
    return str(next(each["local"] for each in link["addr_info"] if each["scope"] == "link"))


def _state(engine: Engine) -> dict[str, str]:
    """Return what of the host's network a sender must not change."""
    looks = {
        "addresses": ("-oneline", "address"),
        "routes": ("-4", "route", "show", "table", "all"),
        "IPv6 routes": ("-6", "route", "show", "table", "all"),
        "rules": ("rule",),
    }
    return {name: engine.run("ip", *words).stdout for name, words in looks.items()}


@pytest.fixture
def site(engine28: Engine) -> Iterator[Site]:
    with Site(engine28) as site:
        yield site


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(Rules(Guard.NETWORK), id="network"),
        pytest.param(Rules(Guard.ADDRESS), id="address"),
        pytest.param(Rules(Guard.ADDRESS, internal=True), id="internal"),
    ],
)
def test_only_what_may_arrive_does(
    site: Site, rules: Rules, record_property: Callable[[str, object], None]
) -> None:
    engine = site.engine
    seed = int(os.environ.get("PYNET_FUZZ_SEED") or random.randrange(1 << 31))
    name = "an internal network" if rules.internal else f"guard {rules.guard}"
    record_property(f"seed of the frames fuzzed with {name}", str(seed))
    fuzz = Fuzz(site, rules, seed)
    fuzz.build()
    wait_until(lambda: "tentative" not in _state(engine)["addresses"], 10, "settled addresses")
    state = _state(engine)
    fuzz.run()
    problems = [*_illegitimate(fuzz), *_missing(fuzz), *_poisoned(fuzz)]
    problems += [f"{place} has accepted a connection of {who}" for place, who in fuzz.accepted]
    problems += _changes(state, _state(engine))
    problems += _unwell(engine)
    if problems:
        pytest.fail("\n".join((f"PYNET_FUZZ_SEED={seed}, {name}:", *problems)))


def _illegitimate(fuzz: Fuzz) -> Iterator[str]:
    """Yield what should not have arrived, a few of each kind."""
    found: dict[tuple[str, str, bool, str], list[Arrival]] = defaultdict(list)
    for arrival in fuzz.arrivals:
        frame = fuzz.frame(arrival.number)
        why = refusal(fuzz.world, fuzz.rules(arrival.number), frame, arrival)
        if why is not None:
            found[arrival.place, frame.kind, arrival.is_answer, why].append(arrival)
    for (place, kind, is_answer, why), arrivals in sorted(found.items()):
        what = "answers" if is_answer else "frames"
        yield f"\n{len(arrivals)} {kind} {what} at {place}: {why}"
        for arrival in arrivals[:EXAMPLES]:
            netfilter = f"br_netfilter {'on' if fuzz.rules(arrival.number).br_netfilter else 'off'}"
            yield f"  {fuzz.frame(arrival.number).describe(fuzz.world)}, {netfilter}"
            yield f"    {arrival.describe(fuzz.world)}"


def _missing(fuzz: Fuzz) -> Iterator[str]:
    """Yield what should have arrived now and then: who reaches nobody proves nothing."""
    counts: Counter[str] = Counter()
    for arrival in fuzz.arrivals:
        counts.update(_classes(fuzz, arrival))
    print("\n".join(f"{count:7} {name}" for name, count in sorted(counts.items())))
    for name in _expected(fuzz.network):
        halves = [counts[f"{name}, br_netfilter {on}"] for on in (True, False)]
        # Who may lie about MAC addresses can keep the host from a neighbour for a while.
        is_seen = any(halves) if "by way of" in name else all(halves)
        if not is_seen:
            yield f"too little came of {name}: {halves} with br_netfilter on and off"


def _classes(fuzz: Fuzz, arrival: Arrival) -> Iterator[str]:
    """Yield which of the classes that have to be seen an arrival is of."""
    frame = fuzz.frame(arrival.number)
    netfilter = f"br_netfilter {fuzz.rules(arrival.number).br_netfilter}"
    what = "answers" if arrival.is_answer else frame.kind
    yield f"{what} at {arrival.place}, {netfilter}"
    if arrival.is_answer:
        return
    if frame.tags:
        yield f"tagged at {arrival.place}, {netfilter}"
    if frame.kind in (Kind.IP4, Kind.IP6):
        known = fuzz.world.packed[4 if frame.kind is Kind.IP4 else 6]
        if frame.flow.source == known["near"]:
            yield f"{frame.kind} of a neighbour at {arrival.place}, {netfilter}"
        if frame.flow.protocol in (TCP, UDP):
            yield f"{frame.kind} {frame.flow.protocol} at {arrival.place}, {netfilter}"
        if frame.target_mac == fuzz.world.mac["bridge"] and arrival.place is Place.NEAR:
            yield f"{frame.kind} by way of the host at near, {netfilter}"


def _expected(rules: Rules) -> Iterator[str]:
    """Yield the classes that have to be seen."""
    outside = () if rules.internal else (Place.FAR, Place.DOCK, Place.LAN)
    for kind in (Kind.IP4, Kind.IP6):
        for place in (Place.NEAR, Place.HOST, *outside):
            yield from (f"{kind} {protocol} at {place}" for protocol in (TCP, UDP))
        yield f"{kind} at service"
        yield f"{kind} by way of the host at near"
        if rules.guard is Guard.NETWORK:
            yield from (f"{kind} of a neighbour at {place}" for place in (Place.HOST, *outside))
    yield "ARP at near"
    if rules.guard is Guard.NETWORK:
        yield from ("LLC at near", "unknown EtherType at near", "tagged at near")


def _poisoned(fuzz: Fuzz) -> Iterator[str]:
    """Yield who takes another's MAC address for that of the neighbour or the gateway.

    Where a container may say such things of itself only; where it is itself is its own business.
    """
    if fuzz.network.guard is not Guard.ADDRESS:
        return
    world = fuzz.world
    owners = {"near": "near", "near link": "near", "gateway": "bridge", "gateway link": "bridge"}
    right = {
        address: world.macs[owners[name]]
        for known in world.addresses.values()
        for name, address in known.items()
        if name in owners
    }
    for where in (HOST, Place.NEAR):
        words = ("ip", "-json", "neighbour", "show")
        table = json.loads(fuzz.engine.run(*fuzz.site.enter(where), *words).stdout)
        for entry in table:
            mac = entry.get("lladdr")
            if entry["dev"] not in (fuzz.bridge, "eth0"):
                continue  # no packet of the host's goes that way
            if entry["dst"] in right and mac not in (None, right[entry["dst"]]):
                yield f"{where} takes {entry['dst']} to be at {mac} on {entry['dev']}"


def _changes(before: dict[str, str], after: dict[str, str]) -> Iterator[str]:
    """Yield what a look shows now and did not, and the other way round."""
    for name, lines in before.items():
        old, new = set(lines.splitlines()), set(after[name].splitlines())
        yield from (f"{name} of the host: gone is {line}" for line in sorted(old - new))
        yield from (f"{name} of the host: new is {line}" for line in sorted(new - old))


def _unwell(engine: Engine) -> Iterator[str]:
    """Yield what is wrong with the driver and the host afterwards."""
    assert engine.driver is not None
    if not engine.driver.running:
        yield "the driver has ended"
    if "Traceback" in engine.log("driver"):
        yield "the driver has logged a traceback"
    checked = steps.pynet(engine, "check", check=False)
    if checked.returncode:
        yield f"pynet check: {checked.stdout}{checked.stderr}"
    steps.run(engine, "after", "a")
    if not steps.can_ping(engine, "after", "10.60.0.1"):
        yield "a new container does not reach its gateway"
