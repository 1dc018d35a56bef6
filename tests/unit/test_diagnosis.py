"""Each cause is found by its facts, and by no others; nothing is found where all is well."""

from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from driver.diagnosis.causes import CAUSES
from driver.diagnosis.diagnose import DROPPED, REACHES, UNANSWERED, UNKNOWN, diagnose
from driver.diagnosis.facts import (
    HOST,
    NO_ANSWER,
    NO_SERVER,
    NO_SUCH_NAME,
    OUTSIDE,
    REFUSED,
    Drift,
    Facts,
    Flow,
    Interface,
    Listener,
    Lookup,
    Party,
    Probe,
    Published,
    Routed,
    Stopped,
    Verdict,
    View,
    Way,
)
from driver.diagnosis.steps import OK, WARNING
from driver.model import Protocol

LAN, WEB, DB, GATEWAY = map(ip_address, ("192.0.2.9", "10.1.0.2", "10.1.0.3", "10.1.0.1"))
TCP = Protocol.TCP
REPLY = Probe("connected", 0.001)
SILENCE = Probe("silent", 2.0, ("web:eth0", "host:pnh1", "host:pn-1", "host:ens3"))


def inside(index: int, address: str, **changed: Any) -> View:
    """Return what a sandbox shows whose interface's other end has that index in the host."""
    addresses = frozenset({ip_interface(address)})
    words = {"other_end": index, "moved": True, "addresses": addresses}
    eth0 = link(5, "eth0", "veth", **(words | changed))
    return View({"eth0": eth0}, (Listener(TCP, ip_address("0.0.0.0"), 80, "nginx (pid 7)"),))


def link(index: int, name: str, kind: str | None, **other: Any) -> Interface:
    words = {"mac": "02:00:00:00:00:02", "mtu": 1500, "is_up": True, "has_carrier": True}
    return Interface(index, name, kind, **(words | other))  # type: ignore[arg-type]


def host(**changed: Any) -> View:
    """Return a host with two networks and an uplink; by name what is another, None what is gone."""
    links = {
        "pn-1": link(2, "pn-1", "bridge", addresses=frozenset({ip_interface("10.1.0.1/24")})),
        "pn-2": link(3, "pn-2", "bridge"),
        "pnh1": link(11, "pnh1", "veth", master="pn-1", other_end=5, moved=True),
        "pnh2": link(12, "pnh2", "veth", master="pn-1", other_end=5, moved=True),
        "pnh3": link(13, "pnh3", "veth", master="pn-2", other_end=6, moved=True),
        "other1": link(14, "other1", "veth", master="pn-1", other_end=9, moved=True),
        "ens3": link(4, "ens3", None),
    }
    found = {name: each for name, each in (links | changed).items() if each is not None}
    return View(found, sysctls={"net.ipv4.ip_forward": "1"})


def out(**changed: Any) -> Facts:
    """Return what is known of a flow from a container to the LAN that works."""
    flow = Flow(Party("web", "/s/web", WEB), Party(str(LAN), None, LAN), TCP, 443)
    return replace(
        Facts(
            flow,
            host(),
            sandbox=inside(11, "10.1.0.2/24"),
            leaving=Way("eth0", GATEWAY),
            passing=Way("ens3", ip_address("192.0.2.254")),
            probe=SILENCE,
            arriving="pn-1",
        ),
        **changed,
    )


def between(**changed: Any) -> Facts:
    """Return what is known of a flow between two containers of one network that works."""
    flow = Flow(Party("web", "/s/web", WEB), Party("db", "/s/db", DB), TCP, 80)
    return replace(
        Facts(
            flow,
            host(),
            sandbox=inside(11, "10.1.0.2/24"),
            other=inside(12, "10.1.0.3/24"),
            leaving=Way("eth0"),
            probe=SILENCE,
        ),
        **changed,
    )


def into(**changed: Any) -> Facts:
    """Return what is known of a flow from outside to a published port that works."""
    flow = Flow(Party(OUTSIDE), Party("db", "/s/db", DB), TCP, 80)
    return replace(
        Facts(
            flow,
            host(),
            other=inside(12, "10.1.0.3/24"),
            returning=Way("eth0", GATEWAY),
            published=(Published(ip_address("0.0.0.0"), 8080, DB, 80, TCP),),
        ),
        **changed,
    )


def to_host(**changed: Any) -> Facts:
    """Return what is known of a flow from a container to a service of the host."""
    listener = Listener(TCP, ip_address("0.0.0.0"), 53, "dnsmasq (pid 9)")
    flow = Flow(Party("web", "/s/web", WEB), Party(HOST, None, GATEWAY), TCP, 53)
    facts = out(flow=flow, passing=Way("lo", is_local=True), probe=SILENCE)
    return replace(facts, host=replace(facts.host, listeners=(listener,)), **changed)


def silent(**changed: Any) -> Facts:
    """Return what is known of a flow to the LAN that nothing answers, with other news of it."""
    return out(probe=replace(SILENCE, **changed))


def asking(name: str, **found: Any) -> Facts:
    """Return what is known of a flow to a name that was looked up."""
    flow = Flow(Party("web", "/s/web", WEB), Party(name), TCP, 443)
    lookup = Lookup(name, ("127.0.0.11",), 0.004, **found)
    return Facts(flow, host(), sandbox=inside(11, "10.1.0.2/24"), lookup=lookup)


def stopped(*taken: tuple[str, str]) -> Facts:
    """Return what is known of a flow to a container that does not run."""
    flow = Flow(Party(OUTSIDE), Party("db"), TCP, 80)
    return Facts(flow, host(), stopped=Stopped("exit status 1", taken))


def to_itself(*listeners: Listener) -> Facts:
    """Return what is known of a flow from a container to its own loopback."""
    facts = replace(LOOPBACK, port=443)
    there = replace(host(), listeners=(replace(facts, ip=ip_address("0.0.0.0")),))
    flow = Flow(Party("web", "/s/web"), Party("127.0.0.1", None, LOOPBACK.ip), TCP, 443)
    view = replace(inside(11, "10.1.0.2/24"), listeners=listeners)
    way = Way("lo", is_local=True)
    return Facts(flow, there, sandbox=view, leaving=way, probe=REFUSAL)


def large(*, lost: bool) -> Facts:
    """Return what is known of a flow whose way out takes less than the container sends."""
    small = host(ens3=link(4, "ens3", None, mtu=1400))
    return out(host=small, probe=REPLY, is_large_lost=lost)


def to_subnet(*routes: Routed) -> Facts:
    """Return what is known of a flow to an address that the host looks for on a bridge."""
    flow = Flow(Party("web", "/s/web", WEB), Party("10.1.0.9", None, NOBODY), TCP, 443)
    return out(flow=flow, host=replace(host(), routes=routes), passing=Way("pn-1"))


def dropped(
    table: str, chain: str, hook: str = "forward", rule: str | None = "rule 1: drop"
) -> Probe:
    family = "inet" if table in {"pynet", "fw"} else "ip"
    return replace(SILENCE, drop=Verdict(family, table, chain, hook, rule))


def with_sysctls(facts: Facts, **values: str) -> Facts:
    """Return the facts with other parameters of the host, by the last words of their names."""
    names = {
        "forward": "net.ipv4.ip_forward",
        "bridged": "net.bridge.bridge-nf-call-iptables",
        "check1": "net.ipv4.conf.pn-1.rp_filter",
        "check2": "net.ipv4.conf.pn-2.rp_filter",
        "arp1": "net.ipv4.conf.pn-1.arp_ignore",
        "count": "net.netfilter.nf_conntrack_count",
        "most": "net.netfilter.nf_conntrack_max",
        "neighbours": "net.ipv4.neigh.default.gc_thresh3",
        "forward6": "net.ipv6.conf.all.forwarding",
        "routers": "net.ipv6.conf.ens3.accept_ra",
    }
    sysctls = dict(facts.host.sysctls) | {names[each]: value for each, value in values.items()}
    return replace(facts, host=replace(facts.host, sysctls=sysctls))


def listening(facts: Facts, *listeners: Listener) -> Facts:
    assert facts.other is not None
    return replace(facts, other=replace(facts.other, listeners=listeners))


UDP = Protocol.UDP
NOBODY = ip_address("10.1.0.9")
LAN_ROUTE = Routed(ip_network("192.0.2.0/24"), "ens3")
REFUSAL = Probe(REFUSED, 0.001)
LOOPBACK = Listener(TCP, ip_address("127.0.0.1"), 80, "node (pid 3)")
IPV6_OFF = {"net.ipv6.conf.eth0.disable_ipv6": "1"}
V6 = ip_address("2001:db8::9")
TWO_HOMES = replace(
    inside(12, "10.1.0.3/24"),
    interfaces=dict(inside(12, "10.1.0.3/24").interfaces)
    | {"eth1": link(6, "eth1", "veth", other_end=13, moved=True)},
)
DOWN = {"is_up": False, "has_carrier": False}

FOUND: dict[str, list[Facts]] = {
    "listens-elsewhere": [listening(between(), LOOPBACK), listening(into(), LOOPBACK)],
    "not-listening": [listening(between()), listening(between(), replace(LOOPBACK, port=81))],
    "backlog-full": [
        listening(between(), replace(LOOPBACK, ip=DB, waiting=129, backlog=128)),
    ],
    "receive-buffer-full": [
        listening(
            replace(between(), flow=replace(between().flow, protocol=UDP)),
            Listener(UDP, DB, 80, "dnsmasq (pid 9)", waiting=2304, backlog=2304, lost=27),
        )
    ],
    "name-unknown": [asking("exmaple.com", error=NO_SUCH_NAME)],
    "no-name-server": [asking("example.com", error=NO_SERVER)],
    "name-server-loopback": [
        replace(
            asking("example.com"),
            lookup=Lookup("example.com", ("127.0.0.53",), error=NO_ANSWER),
        )
    ],
    "name-server-silent": [
        asking("example.com", error=NO_ANSWER),
        asking("example.com", error=NO_ANSWER, answering=("192.0.2.53",)),
    ],
    "not-running": [stopped()],
    "port-taken": [stopped(("0.0.0.0:80/tcp", "nginx (pid 7)"))],
    "loopback-target": [to_itself()],
    "hops-spent": [
        out(sandbox=replace(inside(11, "10.1.0.2/24"), sysctls={"net.ipv4.ip_default_ttl": "1"}))
    ],
    "neighbours-full": [
        with_sysctls(out(host=replace(host(), neighbour_entries=1024)), neighbours="1024"),
    ],
    "routers-ignored": [
        with_sysctls(
            out(
                flow=Flow(Party("web", "/s/web"), Party(str(V6), None, V6), TCP, 443),
                passing=Way(error=errno.ENETUNREACH),
            ),
            forward6="1",
            routers="1",
        )
    ],
    "subnet-overlaps": [to_subnet(Routed(ip_network("10.1.0.0/16"), "ens3"))],
    "nobody-there": [to_subnet()],
    "mtu-too-large": [large(lost=True)],
    "own-firewall": [
        silent(drop=Verdict("ip", "filter", "INPUT", "input", "rule 1: drop"), drop_in="web")
    ],
    "legacy-iptables": [
        replace(silent(seen=("web:eth0", "host:pn-1")), legacy=("ip filter",)),
    ],
    "translated-elsewhere": [
        silent(translation="ip other pre, rule 1: dnat to 10.9.9.9"),
        out(probe=replace(REFUSAL, translation="ip other pre, rule 1: redirect to :1")),
    ],
    "no-free-translation": [silent(risen={"insert_failed": 1})],
    "not-masqueraded": [silent(left_as=WEB)],
    "queue-drops": [silent(risen={"no room at ens3": 1})],
    "wrong-checksum": [between(probe=replace(SILENCE, risen={"wrong checksum at db": 2}))],
    "stale-flow": [into(stale=(ip_address("192.0.2.1"),))],
    "address-twice": [
        into(
            host=replace(
                host(),
                macs={DB: "02:00:00:00:00:99"},
                ports_of={"02:00:00:00:00:99": frozenset({"pnh1"})},
            )
        )
    ],
    "mac-twice": [
        between(host=replace(host(), ports_of={"02:00:00:00:00:02": frozenset({"other1"})}))
    ],
    "no-route": [out(leaving=Way(error=errno.ENETUNREACH))],
    "forbidden-route": [
        out(leaving=Way(error=errno.EACCES)),
        out(leaving=Way(error=errno.EINVAL)),
        out(passing=Way(error=errno.EINVAL)),
    ],
    "ipv6-off": [
        out(
            sandbox=replace(inside(11, "10.1.0.2/24"), sysctls=IPV6_OFF),
            flow=Flow(Party("web", "/s/web"), Party(str(V6), None, V6), TCP, 443),
            leaving=Way(error=errno.ENETUNREACH),
        )
    ],
    "interface-down": [
        out(sandbox=inside(11, "10.1.0.2/24", **DOWN), leaving=Way(error=errno.ENETUNREACH)),
        out(
            host=host(pnh1=link(11, "pnh1", "veth", master="pn-1", other_end=5, moved=True, **DOWN))
        ),
        out(host=host(**{"pn-1": link(2, "pn-1", "bridge", **DOWN)})),
        between(other=inside(12, "10.1.0.3/24", **DOWN)),
    ],
    "severed": [out(host=host(pnh1=None)), between(host=host(pnh2=None))],
    "off-bridge": [out(host=host(pnh1=link(11, "pnh1", "veth", other_end=5, moved=True)))],
    "forwarding-off": [
        with_sysctls(out(passing=Way(error=errno.EHOSTUNREACH)), forward="0"),
    ],
    "reverse-path": [with_sysctls(out(passing=Way(error=errno.EXDEV)), check1="1")],
    "no-way-out": [out(passing=Way(error=errno.ENETUNREACH))],
    "accept-gone": [
        out(
            probe=dropped("filter", "FORWARD", rule=None),
            drift=(Drift("forward accept", "IPv4", "is gone"),),
        ),
        out(probe=None, drift=(Drift("rules", "pynet", "is missing"),)),
    ],
    "foreign-firewall": [
        out(probe=dropped("fw", "f")),
        out(probe=None, drift=(Drift("filter", "inet fw f", "nft insert rule …"),)),
    ],
    "host-firewall": [to_host(probe=dropped("filter", "INPUT", "input"))],
    "bridged-through-iptables": [
        with_sysctls(between(probe=dropped("filter", "FORWARD", rule=None)), bridged="1")
    ],
    "own-policy": [
        out(probe=dropped("pynet", "drop_internal")),
        between(probe=dropped("pynet", "between_closed")),
        out(probe=dropped("pynet", "inbound")),
        out(probe=dropped("pynet", "drop_source", "prerouting")),
    ],
    "docker-policy": [
        out(probe=dropped("filter", "DOCKER-FORWARD")),
        out(probe=dropped("raw", "PREROUTING", "prerouting")),
    ],
    "stale-neighbour": [
        between(sandbox=replace(inside(11, "10.1.0.2/24"), macs={DB: "02:00:00:00:00:99"})),
        into(host=replace(host(), macs={DB: "02:00:00:00:00:99"})),
    ],
    "arp-ignored": [
        with_sysctls(out(), arp1="8"),
        with_sysctls(to_host(leaving=Way("eth0", GATEWAY)), arp1="8"),
    ],
    "conntrack-full": [with_sysctls(out(), count="262144", most="262144")],
    "ports-used-up": [
        between(probe=replace(SILENCE, outcome="Cannot assign requested address")),
        out(
            probe=Probe("Cannot assign requested address", 0.001),
            legacy=("ip filter",),
        ),
    ],
    "not-published": [into(published=())],
    "published-elsewhere": [
        into(published=(Published(ip_address("127.0.0.1"), 8080, DB, 80, TCP),)),
    ],
    "answer-elsewhere": [with_sysctls(into(other=TWO_HOMES, returning=Way("eth1")), check2="1")],
    "uplink-down": [
        out(host=host(ens3=link(4, "ens3", None, **DOWN))),
        out(host=replace(host(), silent=frozenset({ip_address("192.0.2.254")}))),
    ],
    "beyond": [out()],
    "unexplained": [out(probe=replace(SILENCE, seen=("web:eth0",))), between()],
}
CASES = [
    pytest.param(each, name, id=f"{name}-{n}")
    for name, all_ in FOUND.items()
    for n, each in enumerate(all_)
]


@pytest.mark.parametrize(("facts", "expected"), CASES)
def test_a_cause_is_found(facts: Facts, expected: str) -> None:
    found = diagnose(facts)
    assert found.cause is not None
    assert found.cause.cause.id == expected
    assert found.verdict in {DROPPED, UNANSWERED, REFUSED, REACHES}
    assert "{" not in found.cause.text + found.cause.remedy


def test_every_cause_is_provoked_and_has_an_id_of_its_own() -> None:
    assert set(FOUND) | {"drift"} == {cause.id for cause in CAUSES}  # of all networks: test_map.py
    assert len({cause.id for cause in CAUSES}) == len(CAUSES)


@pytest.mark.parametrize(
    "facts",
    [
        out(probe=REPLY),
        between(probe=REPLY),
        to_host(probe=REPLY),
        into(),
        asking("example.com", address=LAN),
        to_itself(replace(LOOPBACK, port=443)),
        out(probe=REPLY, legacy=("ip filter",)),
        out(host=replace(host(), ports_of={"02:00:00:00:00:02": frozenset({"pnh1"})}), probe=REPLY),
        out(
            host=replace(host(), routes=(Routed(ip_network("192.0.2.0/24"), "ens3"),)), probe=REPLY
        ),
    ],
)
def test_nothing_is_found_where_all_is_well(facts: Facts) -> None:
    found = diagnose(facts)
    assert found.cause is None
    assert {step.state for step in found.steps} == {OK}


@pytest.mark.parametrize(("facts", "expected"), CASES)
def test_what_passes_has_no_fault_whatever_else_is_found(facts: Facts, expected: str) -> None:
    found = diagnose(replace(facts, probe=REPLY))
    if expected == "mtu-too-large":  # of what is small this says nothing
        assert (found.verdict, found.cause is None) == (REACHES, False)
        return
    assert (found.verdict, found.cause) == (REACHES, None)
    assert found.steps[0].layer == "probe"
    assert {step.state for step in found.steps} <= {OK, WARNING}, expected


def test_an_answer_by_another_network_is_no_fault_where_the_host_does_not_mind() -> None:
    assert diagnose(into(other=TWO_HOMES, returning=Way("eth1"))).cause is None


def test_the_silence_of_a_udp_port_proves_nothing() -> None:
    asked = between()
    udp = replace(asked.flow, protocol=Protocol.UDP)
    listener = Listener(Protocol.UDP, ip_address("0.0.0.0"), 80, "dnsmasq (pid 9)")
    found = diagnose(listening(replace(asked, flow=udp), listener))
    assert (found.verdict, found.cause) == (UNKNOWN, None)


def test_what_a_firewall_rejects_was_dropped_by_it() -> None:
    rejected = replace(dropped("fw", "f"), outcome="refused")
    found = diagnose(out(probe=rejected))
    assert found.cause is not None
    assert (found.verdict, found.cause.cause.id) == (DROPPED, "foreign-firewall")


def test_a_container_may_be_called_host() -> None:
    asked = between()
    named = replace(asked.flow, destination=replace(asked.flow.destination, name=HOST))
    assert diagnose(replace(asked, flow=named, probe=REPLY)).steps[1].text.startswith("nginx")


def test_a_larger_mtu_than_the_uplinks_is_worth_a_look() -> None:
    small = out(host=host(ens3=link(4, "ens3", None, mtu=1400)), probe=REPLY)
    assert [step.state for step in diagnose(small).steps].count(WARNING) == 1
    assert diagnose(small).cause is None


@pytest.mark.parametrize(
    "facts",
    [
        between(sandbox=replace(inside(11, "10.1.0.2/24"), macs={DB: "02:00:00:00:00:02"})),
        with_sysctls(out(), arp1="2"),
        with_sysctls(out(), count="1000", most="262144"),
    ],
)
def test_what_is_ordinary_is_no_cause(facts: Facts) -> None:
    found = diagnose(replace(facts, probe=REPLY))
    assert {step.state for step in found.steps} == {OK}


def test_a_full_queue_is_told() -> None:
    full = Listener(TCP, ip_address("::"), 80, "nginx (pid 7)", waiting=129, backlog=128)
    found = diagnose(listening(between(probe=REPLY), full))
    assert [step.text for step in found.steps if step.state == WARNING] == [
        "nginx (pid 7) does not accept what comes: 129 connections wait, of at most 128"
    ]


@pytest.mark.parametrize(
    ("bound", "only6", "asked", "takes"),
    [
        ("0.0.0.0", False, "10.1.0.3", True),
        ("0.0.0.0", False, "fd00::3", False),
        ("::", False, "10.1.0.3", True),
        ("::", True, "10.1.0.3", False),
        ("::", True, "fd00::3", True),
        ("10.1.0.3", False, "10.1.0.3", True),
        ("10.1.0.4", False, "10.1.0.3", False),
    ],
)
def test_what_a_socket_takes(bound: str, only6: bool, asked: str, takes: bool) -> None:  # noqa: FBT001
    assert Listener(TCP, ip_address(bound), 80, "", only6).takes(ip_address(asked)) is takes
