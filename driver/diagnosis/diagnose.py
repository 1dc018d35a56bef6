"""Decide from facts why a flow does not arrive; no I/O.

Layer by layer from the container outwards. The first fault is the answer; what is found behind it
are warnings, for it may be in the way of the same packets. What a probe has shown is stronger than
what the settings let expect.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from driver.diagnosis.causes import Found, found
from driver.diagnosis.facts import HOST, Interface, place_of
from driver.model import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from driver.diagnosis.facts import Facts, Probe, Verdict, View, Way
    from driver.model import IPAddress

OK, FAULT, WARNING = "ok", "fault", "warn"
REACHES, REFUSED, DROPPED, UNANSWERED, UNKNOWN = (
    *("reaches", "refused", "dropped", "unanswered"),
    "unknown",
)
_RESOLVER = "127.0.0.11"  # Docker's own, in every container
_OURS = "pynet"
_ANSWERS_NOTHING = 4  # arp_ignore, ip-sysctl.rst: 8; 4 to 7 are reserved
_NEARLY = 0.98  # of the connections that are tracked at most
IPV4, IPV6 = 4, 6


@dataclass(frozen=True, slots=True)
class Step:
    """What was found at a layer."""

    layer: str
    state: str
    text: str
    cause: Found | None = None
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The answer: what becomes of the flow, why, and what was looked at on the way."""

    verdict: str
    cause: Found | None
    steps: tuple[Step, ...]


def diagnose(facts: Facts) -> Diagnosis:
    """Return what becomes of the flow, and why."""
    steps: list[Step] = []
    cause: Found | None = None
    passes = False
    if facts.probe is not None and facts.probe.outcome == "connected":
        passes = True
        steps.append(
            Step("probe", OK, f"{facts.flow} answers after {facts.probe.seconds * 1000:.1f} ms")
        )
    for step in _walk(facts):
        if step.state != FAULT:
            steps.append(step)
        elif cause is None and not passes:
            cause = step.cause
            steps.append(step)
        else:
            steps.append(Step(step.layer, WARNING, step.text, step.cause, step.evidence))
    if cause is None and not passes and facts.probe is not None:
        step = _from_outcome(facts, facts.probe)
        cause = step.cause
        steps.append(step)
    return Diagnosis(_verdict(facts, cause), cause, tuple(steps))


def _verdict(facts: Facts, cause: Found | None) -> str:
    if facts.probe is not None:
        if facts.probe.outcome == "connected":
            return REACHES
        if facts.probe.drop is not None:
            return DROPPED
        if facts.probe.outcome == "refused":
            return REFUSED
        return UNKNOWN if _proves_nothing(facts, facts.probe) and cause is None else UNANSWERED
    if cause is None:
        return UNKNOWN
    return REFUSED if cause.cause.layer == "socket" else DROPPED


def _proves_nothing(facts: Facts, probe: Probe) -> bool:
    """Return whether the silence is that of a UDP port, which need not answer."""
    return facts.flow.protocol is Protocol.UDP and probe.outcome == "silent"


def _walk(facts: Facts) -> Iterator[Step]:
    yield from _publish(facts)
    yield from _socket(facts)
    if facts.sandbox is not None:
        yield from _sandbox(facts, facts.sandbox, facts.flow.source.name, facts.leaving)
    if facts.other is not None:
        yield from _pair(
            facts, facts.other, facts.flow.destination.name, facts.flow.destination.address
        )
        yield from _neighbour(facts, facts.other)
        yield from _return(facts, facts.other)
    yield from _gateway(facts)
    yield from _host(facts)
    yield from _firewall(facts)
    yield from _uplink(facts)


# -- the application


def _socket(facts: Facts) -> Iterator[Step]:
    flow, port, ip = facts.flow, facts.flow.port, facts.flow.destination.address
    view = facts.other
    if flow.destination.name == HOST and not flow.destination.is_container:
        view = facts.host
    if view is None or port is None or ip is None:
        return
    name = flow.destination.name
    of_protocol = [
        each
        for each in view.listeners
        if each.protocol is flow.protocol and str(each.ip) != _RESOLVER
    ]
    taking = [each for each in of_protocol if each.port == port and each.takes(ip)]
    if taking:
        first = taking[0]
        yield Step("socket", OK, f"{first.owner} listens on {first.place}")
        if first.backlog and first.waiting > first.backlog:
            text = f"{first.waiting} connections wait to be accepted, of at most {first.backlog}"
            yield Step("socket", WARNING, text)
        return
    elsewhere = [each for each in of_protocol if each.port == port]
    everywhere = "0.0.0.0" if ip.version == IPV4 else "[::]"  # noqa: S104 - a word
    words = {"port": port, "protocol": flow.protocol.value, "name": name, "all": everywhere}
    if elsewhere:
        there = ", ".join(each.place for each in elsewhere)
        wanted = place_of(ip, port)
        cause = found("listens-elsewhere", there=there, wanted=wanted, **words)
        owners = ", ".join(f"{each.owner} listens on {each.place}" for each in elsewhere)
        yield Step("socket", FAULT, f"{owners}; nothing on {wanted}", cause)
        return
    others = ", ".join(f"{each.owner} on {each.place}" for each in of_protocol[:3])
    told = f"; there listen {others}" if others else ""
    cause = found("not-listening", others=told, **words)
    yield Step("socket", FAULT, f"nothing listens on port {port}{told}", cause)


def _publish(facts: Facts) -> Iterator[Step]:
    flow = facts.flow
    is_outside = not flow.source.is_container and flow.source.name != HOST
    if not is_outside or not flow.destination.is_container or flow.port is None:
        return
    of_port = [
        each
        for each in facts.published
        if each.container_port == flow.port and each.protocol is flow.protocol
    ]
    words = {
        "port": flow.port,
        "protocol": flow.protocol.value,
        "name": flow.destination.name,
    }
    if not of_port:
        others = sorted(
            {f"{each.container_port}/{each.protocol.value}" for each in facts.published}
        )
        told = f"; published are {', '.join(others)}" if others else ""
        cause = found("not-published", others=told, **words)
        yield Step("publish", FAULT, cause.text, cause)
        return
    open_ones = [each for each in of_port if not each.host_ip.is_loopback]
    places = ", ".join(place_of(each.host_ip, each.host_port) for each in (open_ones or of_port))
    if not open_ones:
        cause = found("published-elsewhere", there=places, **words)
        yield Step("publish", FAULT, cause.text, cause)
        return
    target = f"{of_port[0].container_ip}:{flow.port}/{flow.protocol.value}"
    yield Step("publish", OK, f"{places} leads to {target}")


# -- the container's network


def _sandbox(facts: Facts, view: View, name: str, way: Way | None) -> Iterator[Step]:
    ip = facts.flow.destination.address
    if way is None or ip is None:
        return
    if way.error:
        yield _no_way(view, name, way, ip)
        return
    link = view.interfaces.get(way.interface or "")
    if link is None or way.is_local:
        return
    if ip.version == IPV6 and view.sysctls.get(f"net.ipv6.conf.{link.name}.disable_ipv6") == "1":
        cause = found("ipv6-off", name=name, interface=link.name)
        yield Step("sandbox", FAULT, cause.text, cause)
    via = f" via {way.gateway}" if way.gateway else ""
    addresses = " ".join(sorted(str(each) for each in link.addresses if not each.is_link_local))
    yield Step("sandbox", OK, f"{link.name} is up, {addresses}, to {ip}{via}")
    yield from _pair_of(facts, link, name)


def _no_way(view: View, name: str, way: Way, ip: IPAddress) -> Step:
    is_off = [
        link.name
        for link in view.interfaces.values()
        if ip.version == IPV6
        and view.sysctls.get(f"net.ipv6.conf.{link.name}.disable_ipv6") == "1"
        and link.kind == "veth"
    ]
    if is_off:
        cause = found("ipv6-off", name=name, interface=is_off[0])
    elif way.error == errno.ENETUNREACH:
        down = [each for each in view.interfaces.values() if each.kind == "veth" and not each.is_up]
        if down:
            command = f"pynet exec {name} -- ip link set {down[0].name} up, and ask who set it down"
            cause = found(
                "interface-down",
                interface=f"{down[0].name} in {name}",
                command=command,
            )
        else:
            cause = found("no-route", name=name, ip=ip)
    else:
        command = f"pynet exec {name} -- ip route show table all"
        words = {"name": name, "ip": ip, "error": os.strerror(way.error)}
        cause = found("forbidden-route", command=command, **words)
    return Step("sandbox", FAULT, cause.text, cause)


def _pair(facts: Facts, view: View, name: str, ip: IPAddress | None) -> Iterator[Step]:
    """Look at the pair of the interface that has an address."""
    link = view.owner_of(ip) if ip is not None else None
    if link is None:
        return
    if not link.is_up:
        command = f"pynet exec {name} -- ip link set {link.name} up, and ask who set it down"
        cause = found("interface-down", interface=f"{link.name} in {name}", command=command)
        yield Step("sandbox", FAULT, cause.text, cause)
        return
    yield from _pair_of(facts, link, name)


def _pair_of(facts: Facts, link: Interface, name: str) -> Iterator[Step]:
    if link.kind != "veth":
        return
    end = host_end_of(link, facts.host)
    if end is None:
        cause = found("severed", interface=link.name, name=name)
        yield Step("pair", FAULT, cause.text, cause)
        return
    if not end.is_up:
        command = f"ip link set {end.name} up, and find who set it down"
        cause = found(
            "interface-down",
            interface=f"{end.name}, the host's end of {name},",
            command=command,
        )
        yield Step("pair", FAULT, cause.text, cause)
        return
    bridge = facts.host.interfaces.get(end.master or "")
    if bridge is None:
        own = [str(each) for each in end.addresses if not each.is_link_local]
        why = f", and has {own[0]} of its own" if own else ""
        cause = found(
            "off-bridge",
            interface=end.name,
            name=name,
            why=why,
            manager="NetworkManager or networkd",
        )
        yield Step("pair", FAULT, cause.text, cause)
        return
    yield Step("pair", OK, f"{end.name} of {name} is up, on {bridge.name}")
    if not bridge.is_up:
        command = f"ip link set {bridge.name} up, and find who set it down"
        cause = found("interface-down", interface=bridge.name, command=command)
        yield Step("bridge", FAULT, cause.text, cause)
        return
    yield Step("bridge", OK, f"{bridge.name} is up, MTU {bridge.mtu}")


def host_end_of(link: Interface, host: View) -> Interface | None:
    """Return the host's end of an interface of a sandbox."""
    end = host.at(link.other_end)
    return end if end is not None and end.moved and end.other_end == link.index else None


def bridge_of(view: View | None, ip: IPAddress | None, host: View) -> str | None:
    """Return the bridge behind which a sandbox has an address, None for none."""
    link = view.owner_of(ip) if view is not None and ip is not None else None
    end = host_end_of(link, host) if link is not None else None
    return end.master if end is not None else None


def _neighbour(facts: Facts, view: View) -> Iterator[Step]:
    """Look whether who sends to the destination knows it by the MAC address that it has."""
    ip = facts.flow.destination.address
    link = view.owner_of(ip) if ip is not None else None
    if link is None or ip is None:
        return
    here = bridge_of(facts.sandbox, facts.flow.source.address, facts.host)
    there = bridge_of(view, ip, facts.host)
    is_near = facts.sandbox is not None and here == there
    asker = facts.sandbox if is_near and facts.sandbox is not None else facts.host
    mac = asker.macs.get(ip)
    if mac is None or mac == link.mac:
        return
    name = facts.flow.source.name
    command = f"ip neigh del {ip} dev {there}"
    if is_near and facts.leaving is not None:
        command = f"pynet exec {name} -- ip neigh del {ip} dev {facts.leaving.interface}"
    words = {"ip": ip, "mac": mac, "own": link.mac, "command": command}
    cause = found("stale-neighbour", where=name if is_near else "the host", **words)
    yield Step("pair", FAULT, cause.text, cause)


def _gateway(facts: Facts) -> Iterator[Step]:
    """Look whether the bridge answers who asks for the gateway's MAC address."""
    way = facts.leaving
    bridge = bridge_of(facts.sandbox, facts.flow.source.address, facts.host)
    if way is None or way.gateway is None or way.gateway.version != IPV4 or bridge is None:
        return
    values = {
        key: int(facts.host.sysctls.get(f"net.ipv4.conf.{key}.arp_ignore", "0"))
        for key in ("all", bridge)
    }
    key, value = max(values.items(), key=lambda each: each[1])
    if value >= _ANSWERS_NOTHING:
        cause = found("arp-ignored", bridge=bridge, value=value, key=key)
        yield Step("bridge", FAULT, cause.text, cause)


def _return(facts: Facts, view: View) -> Iterator[Step]:
    """Look by which network the destination answers."""
    way, ip = facts.returning, facts.flow.destination.address
    home = view.owner_of(ip) if ip is not None else None
    if way is None or way.error or home is None or not way.interface or way.interface == home.name:
        return
    leaving = view.interfaces.get(way.interface)
    end = host_end_of(leaving, facts.host) if leaving is not None else None
    if end is None or end.master is None or _source_check(facts.host, end.master) != 1:
        return
    words = {"name": facts.flow.destination.name, "interface": way.interface, "ip": ip}
    cause = found("answer-elsewhere", bridge=end.master, **words)
    yield Step("host", FAULT, cause.text, cause)


def _source_check(view: View, interface: str) -> int:
    """Return the rp_filter in force: the stricter of two (ip-sysctl.rst)."""
    values = (
        view.sysctls.get(f"net.ipv4.conf.{each}.rp_filter", "0") for each in ("all", interface)
    )
    return max(map(int, values))


# -- the host


def _host(facts: Facts) -> Iterator[Step]:
    way, ip = facts.passing, facts.flow.destination.address
    if way is None or ip is None:
        return
    version = ip.version
    yield from _tracking(facts.host)
    if way.is_local:
        yield Step("host", OK, f"{ip} is this host's own")
        return
    if not way.error:
        yield from _mtu(facts, way)
        yield Step("host", OK, f"forwards, {_describe_way(way)}")
        return
    source, arriving = facts.flow.source.address, facts.arriving or ""
    closed = _closed_forwarding(facts.host, version, arriving)
    if way.error == errno.EHOSTUNREACH and closed:
        cause = found("forwarding-off", key=closed, where="")
    elif (
        version == IPV4
        and way.error in {errno.EXDEV, errno.EINVAL}
        and _source_check(facts.host, arriving) == 1
    ):
        cause = found("reverse-path", ip=source, interface=arriving)
    elif way.error == errno.ENETUNREACH:
        cause = found("no-way-out", ip=ip)
    else:
        words = {"name": "this host", "ip": ip, "error": os.strerror(way.error)}
        cause = found("forbidden-route", command="ip route show table all", **words)
    yield Step("host", FAULT, cause.text, cause)


def _tracking(host: View) -> Iterator[Step]:
    count = int(host.sysctls.get("net.netfilter.nf_conntrack_count", "0"))
    most = int(host.sysctls.get("net.netfilter.nf_conntrack_max", "0"))
    if most and count >= most * _NEARLY:
        cause = found("conntrack-full", count=count, most=most, more=2 * most)
        yield Step("host", FAULT, cause.text, cause)


def _mtu(facts: Facts, way: Way) -> Iterator[Step]:
    """Warn of a container that may send larger packets than the host can pass on in one piece."""
    if facts.sandbox is None or facts.leaving is None:
        return
    inside = facts.sandbox.interfaces.get(facts.leaving.interface or "")
    out = facts.host.interfaces.get(way.interface or "")
    if inside is not None and out is not None and inside.mtu > out.mtu:
        text = f"{out.name} takes {out.mtu} bytes, {inside.name} of the container {inside.mtu}"
        advice = "if ICMP is filtered, large packets are lost: pynet set NETWORK mtu"
        yield Step("host", WARNING, f"{text}; {advice}")


def _closed_forwarding(host: View, version: int, arriving: str) -> str | None:
    """Return the parameter that keeps a family from being forwarded, None if none does."""
    keys = (
        ("net.ipv4.ip_forward", f"net.ipv4.conf.{arriving}.forwarding")
        if version == IPV4
        else ("net.ipv6.conf.all.forwarding",)
    )
    return next((key for key in keys if host.sysctls.get(key) == "0"), None)


def _describe_way(way: Way) -> str:
    via = f" via {way.gateway}" if way.gateway else ""
    return f"route{via} dev {way.interface}"


def _firewall(facts: Facts) -> Iterator[Step]:
    drop = facts.probe.drop if facts.probe is not None else None
    drift = [each for each in facts.drift if each.kind in {"forward accept", "rules", "filter"}]
    if drop is not None:
        yield _from_drop(facts, drop)
        return
    if facts.probe is not None and facts.probe.outcome in {"connected", "refused"}:
        return
    for each in drift:
        place = f"{each.subject}, policy drop," if each.kind == "filter" else ""
        cause = (
            found("foreign-firewall", place=place, remedy=each.text)
            if each.kind == "filter"
            else found("accept-gone", from_where=f": {each.subject} {each.text}")
        )
        yield Step("firewall", FAULT, cause.text, cause)
        return


def _from_drop(facts: Facts, drop: Verdict) -> Step:
    text = f"dropped in hook {drop.hook} by {drop.place}"
    flow = facts.flow
    here = bridge_of(facts.sandbox, flow.source.address, facts.host)
    there = bridge_of(facts.other, flow.destination.address, facts.host)
    version = flow.destination.address.version if flow.destination.address else 4
    key = f"net.bridge.bridge-nf-call-{'iptables' if version == IPV4 else 'ip6tables'}"
    if drop.table == _OURS:
        reason, remedy = _explain_own(drop, same=here is not None and here == there)
        cause = found("own-policy", reason=reason, remedy=remedy)
    elif _is_dockers(drop):
        cause = found("docker-policy", place=drop.place)
    elif drop.hook == "input":
        rule = f'iifname "{here}" accept' if here else "accept what comes by the bridge"
        cause = found("host-firewall", place=drop.place, remedy=rule)
    elif here is not None and here == there and facts.host.sysctls.get(key) == "1":
        cause = found("bridged-through-iptables", place=drop.place, key=key)
    elif any(each.kind in {"forward accept", "rules"} for each in facts.drift):
        cause = found("accept-gone", from_where=f": {drop.place}")
    else:
        chain = f"{drop.family} {drop.table} {drop.chain}"
        mark = f"nft insert rule {chain} meta mark and 0x20000000 != 0 accept"
        cause = found("foreign-firewall", place=drop.place, remedy=mark)
    return Step("firewall", FAULT, text, cause)


def _is_dockers(drop: Verdict) -> bool:
    """Return whether a rule is one by which Docker isolates its networks."""
    of_raw = (drop.table, drop.chain) == ("raw", "PREROUTING") and drop.rule is not None
    return (drop.chain.startswith("DOCKER") and drop.chain != "DOCKER-USER") or of_raw


def _explain_own(drop: Verdict, *, same: bool) -> tuple[str, str]:
    """Return why pynet's own chain drops, and what helps; docs/ruleset.md has the chains."""
    if drop.chain == "drop_internal":
        return "a network is internal", "use a network that is not internal"
    if drop.chain == "between_closed" or same:
        return (
            "the network has enable_icc=false",
            "publish the port, or make the network without enable_icc=false",
        )
    if drop.chain in {"inbound", "open", "drop"}:
        return (
            "they are on different networks, and the port is not published",
            "connect both to one network, or publish the port and ask the host's address",
        )
    if drop.chain.startswith("drop_"):
        reason = drop.chain.removeprefix("drop_")
        return f"its guard drops it, reason {reason}", "docs/security.md says what each guard stops"
    return f"chain {drop.chain}", "docs/ruleset.md says what each chain is for"


def _uplink(facts: Facts) -> Iterator[Step]:
    way = facts.passing
    if way is None or way.error or way.is_local or facts.other is not None or not way.interface:
        return
    link = facts.host.interfaces.get(way.interface)
    if link is None:
        return
    next_hop = way.gateway or facts.flow.destination.address
    if not link.has_carrier or next_hop in facts.host.silent:
        cause = found("uplink-down", interface=link.name)
        yield Step("uplink", FAULT, cause.text, cause)
        return
    yield Step("uplink", OK, f"{link.name} is up, MTU {link.mtu}")


def _from_outcome(facts: Facts, probe: Probe) -> Step:
    """Say what is left when a probe failed and nothing on this host explains it."""
    way = facts.passing
    if probe.outcome == os.strerror(errno.EADDRNOTAVAIL):
        words = {"name": facts.flow.source.name, "ip": facts.flow.destination.address}
        cause = found("ports-used-up", **words)
        return Step("sandbox", FAULT, cause.text, cause)
    if _proves_nothing(facts, probe):
        return Step("beyond", OK, "no answer by UDP, which proves nothing: not all have one")
    if probe.outcome == "refused":
        return Step("beyond", OK, f"{facts.flow.destination.name} refuses the connection")
    out = way.interface if way is not None and not way.is_local and facts.other is None else None
    if out is not None and f"{HOST}:{out}" in probe.seen and not probe.is_answered:
        cause = found("beyond", interface=out)
        return Step("beyond", FAULT, cause.text, cause)
    cause = found("unexplained", name=facts.flow.source.name)
    return Step("beyond", FAULT, f"{probe.outcome}: {cause.text}", cause)
