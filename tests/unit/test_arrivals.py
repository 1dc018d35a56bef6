"""What a fuzzed frame is, and where it may arrive: the judgement, without anything being sent."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace

import pytest

from tests.engine.arrivals import (
    IGMP,
    Arrival,
    Guard,
    Place,
    Rules,
    may_arrive,
    read_frame,
    refusal,
)
from tests.engine.fuzz_frames import (
    ECHO,
    ICMP6,
    IP4,
    IP6,
    MARK,
    NUMBER,
    ROUTER,
    SEQUENCE,
    TCP,
    UDP,
    Flow,
    Frame,
    Kind,
    Published,
    World,
    draw,
    encode,
    find_number,
)

WORLD = World(
    macs={
        "own": "02:42:0a:3c:00:02",
        "near": "02:42:0a:3c:00:03",
        "bridge": "02:42:0a:3c:00:01",
        "far": "02:42:0a:3d:00:02",
    },
    addresses={
        "4": {
            "own": "10.60.0.2",
            "near": "10.60.0.3",
            "nobody": "10.60.0.77",
            "gateway": "10.60.0.1",
            "far": "10.61.0.2",
            "far gateway": "10.61.0.1",
            "inner": "10.63.0.2",
            "dock": "10.62.0.2",
            "dock gateway": "10.62.0.1",
            "host": "192.0.2.1",
            "lan": "192.0.2.2",
        },
        "6": {
            "own": "fd60::2",
            "own link": "fe80::2",
            "near": "fd60::3",
            "near link": "fe80::3",
            "nobody": "fd60::77",
            "gateway": "fd60::1",
            "gateway link": "fe80::1",
            "far": "fd61::2",
            "far gateway": "fd61::1",
            "inner": "fd63::2",
            "dock": "fd62::2",
            "dock gateway": "fd62::1",
            "host": "2001:db8:2::1",
            "lan": "2001:db8:2::2",
        },
    },
    subnets=("0a3c00", "fd60000000000000"),
    published=(Published(Place.FAR, TCP, 8082), Published(Place.DOCK, UDP, 8083)),
    ports=(8082, 8083, 80),
)
NETWORK = Rules(Guard.NETWORK)
ADDRESS = Rules(Guard.ADDRESS)
INTERNAL = Rules(Guard.ADDRESS, internal=True)
COUNT = 3000


def frame(source: str, target: str, dport: int = 80, *, protocol: int = TCP, version: int = 4,
          mac: str = "own", sport: int = 40000) -> Frame:  # fmt: skip
    known = WORLD.packed[version]
    flow = Flow(known[source], known[target], protocol, sport, dport)
    kind = Kind.IP4 if version == 4 else Kind.IP6
    ethertype = IP4 if version == 4 else IP6
    return Frame(7, kind, WORLD.mac[mac], WORLD.mac["bridge"], ethertype, flow=flow)


def arrival(sent: Frame, place: Place, source: str = "", *, is_answer: bool = False) -> Arrival:
    version = 4 if sent.kind is Kind.IP4 else 6
    flow = replace(sent.flow, source=WORLD.packed[version][source]) if source else sent.flow
    return Arrival(sent.number, place, is_answer, flow, sent.source_mac)


def test_a_seed_draws_the_same_frames_wherever_it_is_drawn() -> None:
    other = World.decode(json.loads(json.dumps(asdict(WORLD))))
    numbers = range(COUNT)
    assert [encode(draw(WORLD, 5, n), WORLD) for n in numbers] == [
        encode(draw(other, 5, n), other) for n in reversed(numbers)
    ][::-1]
    assert draw(WORLD, 5, 9) != draw(WORLD, 6, 9)


def test_every_frame_says_its_number_and_is_read_as_what_it_is() -> None:
    def drawn(number: int) -> Frame:
        return draw(WORLD, 5, number)

    for number in range(COUNT):
        data = encode(drawn(number), WORLD)
        assert find_number(data) == number
        read = read_frame(Place.NEAR, data, drawn)
        assert read is None or (read.number == number and not read.is_answer)


def test_there_are_frames_of_all_kinds() -> None:
    drawn = [draw(WORLD, 5, number) for number in range(COUNT)]
    assert {each.kind for each in drawn} == set(Kind)
    assert {0, 1, 2} == {len(each.tags) for each in drawn}
    sources = Counter(each.flow.source for each in drawn)
    assert all(sources[WORLD.packed[4][name]] for name in ("own", "inner", "lan", "127.0.0.1"))
    assert all(sources[WORLD.packed[6][name]] for name in ("own", "inner", "::1"))
    assert any(each.fragment for each in drawn)
    assert any(each.extensions for each in drawn)
    assert any(each.quote for each in drawn)


def test_answers_are_told_from_frames() -> None:
    sent = frame("own", "host")
    head = WORLD.mac["own"] + WORLD.mac["bridge"] + b"\x08\x00"
    ip = b"\x45" + bytes(8) + bytes((TCP, 0, 0)) + sent.flow.target + sent.flow.source
    code = SEQUENCE << 24 | sent.number << 7
    reset = bytes(8) + (code + 40).to_bytes(4) + b"\x50\x14" + bytes(6)
    read = read_frame(Place.NEAR, head + ip + reset, lambda _: sent)
    assert read is not None
    assert (read.number, read.is_answer) == (sent.number, True)
    echoed = encode(sent, WORLD).replace(MARK, ECHO)
    read = read_frame(Place.NEAR, echoed, lambda _: sent)
    assert read is not None
    assert read.is_answer
    assert find_number(ECHO + NUMBER.pack(sent.number)) == sent.number


@pytest.mark.parametrize("version", [4, 6])
def test_what_may_arrive(version: int) -> None:
    for rules in (NETWORK, ADDRESS):
        to_lan = frame("own", "lan", version=version)
        published = frame("own", "host", 8082, version=version)
        assert may_arrive(WORLD, rules, to_lan, arrival(to_lan, Place.LAN, "host"))
        assert may_arrive(WORLD, rules, published, arrival(published, Place.FAR))
        for place in (Place.NEAR, Place.HOST, Place.SERVICE):
            assert may_arrive(WORLD, rules, to_lan, arrival(to_lan, place))
    neighbours = frame("near", "host", version=version)
    assert may_arrive(WORLD, NETWORK, neighbours, arrival(neighbours, Place.HOST))
    bridged = frame("lan", "near", version=version)
    unseen = replace(NETWORK, br_netfilter=False)
    assert may_arrive(WORLD, unseen, bridged, arrival(bridged, Place.NEAR))


@pytest.mark.parametrize("version", [4, 6])
def test_what_must_not_arrive(version: int) -> None:
    loopback = "127.0.0.1" if version == 4 else "::1"

    def refused(sent: Frame, place: Place, source: str = "", rules: Rules = NETWORK) -> None:
        assert refusal(WORLD, rules, sent, arrival(sent, place, source))

    for source in (loopback, "host", "lan", "far", "inner", "dock"):
        sent = frame(source, "host", 8082, version=version)
        for place in (Place.FAR, Place.HOST, Place.SERVICE, Place.NEAR):
            refused(sent, place)
        refused(sent, Place.LAN, "host")
    refused(frame("own", "lan", version=version), Place.LAN)  # not masqueraded
    refused(frame("own", "far", 8082, version=version), Place.FAR)
    refused(frame("own", "host", 8084, version=version), Place.FAR)
    refused(frame("own", loopback, 8082, version=version), Place.FAR)
    refused(frame("own", loopback, version=version), Place.HOST)
    refused(frame("own", "inner", version=version), Place.INNER)
    refused(frame("own", "lan", version=version), Place.LAN, "host", INTERNAL)
    refused(frame("near", "host", version=version), Place.HOST, "", ADDRESS)
    refused(frame("own", "near", version=version, mac="near"), Place.NEAR, "", ADDRESS)


def test_what_the_tighter_guard_keeps_from_a_neighbour() -> None:
    own = frame("own", "near", version=6)
    advertisement = replace(own, flow=replace(own.flow, protocol=ICMP6, sport=ROUTER, dport=0))
    tagged = replace(own, tags=((0x8100, 0),))
    offer = frame("own", "broadcast", 68, protocol=UDP, sport=67)
    unknown = replace(own, kind=Kind.UNKNOWN, ethertype=0x88B5)
    arp = replace(own, kind=Kind.ARP, flow=Flow(WORLD.packed[4]["gateway"], b"\x0a\x3c\0\x03", 0,
                                                2, 0), claimed_mac=WORLD.mac["own"])  # fmt: skip
    for sent in (advertisement, tagged, offer, unknown, arp):
        came = Arrival(sent.number, Place.NEAR, is_answer=False, flow=sent.flow)
        assert may_arrive(WORLD, replace(NETWORK, br_netfilter=False), sent, came)
        assert refusal(WORLD, ADDRESS, sent, came)


def test_answers_go_where_the_frame_could_have_come_from() -> None:
    for source, place in (("inner", Place.INNER), ("lan", Place.LAN), ("far", Place.FAR)):
        sent = frame(source, "host")
        assert refusal(WORLD, NETWORK, sent, arrival(sent, place, "host", is_answer=True))
    neighbours = frame("near", "host")
    came = arrival(neighbours, Place.NEAR, "host", is_answer=True)
    assert may_arrive(WORLD, NETWORK, neighbours, came)
    assert refusal(WORLD, ADDRESS, neighbours, came)
    # The neighbour answers what came to it by the bridge alone, as itself and by way of the host.
    bridged = frame("lan", "near")
    unseen = replace(NETWORK, br_netfilter=False)
    came = arrival(bridged, Place.LAN, "host", is_answer=True)
    assert may_arrive(WORLD, unseen, bridged, came)
    assert refusal(WORLD, NETWORK, bridged, came)


@pytest.mark.parametrize(("target", "protocol"), [("all hosts", IGMP), ("broadcast", UDP)])
@pytest.mark.parametrize("rules", [NETWORK, ADDRESS, INTERNAL], ids=str)
def test_who_has_no_address_yet_may_ask_for_one_and_join_groups(
    rules: Rules, target: str, protocol: int
) -> None:
    """RFC 2131; RFC 3376, 4.2.13: such a report has the source 0.0.0.0."""
    asking = frame("0.0.0.0", target, 67, protocol=protocol, sport=68)
    assert may_arrive(WORLD, rules, asking, arrival(asking, Place.HOST))
    other = frame("0.0.0.0", target, 80, protocol=TCP, sport=68)
    assert not may_arrive(WORLD, rules, other, arrival(other, Place.HOST))
