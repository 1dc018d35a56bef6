"""Look at the host: whether it forwards, what its tables hold, its way out; no I/O."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from driver.diagnosis.steps import IPV4, IPV6, OK, WARNING, Step, fault, source_check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from driver.diagnosis.facts import Facts, Routed, View, Way
    from driver.model import IPAddress, IPNetwork

_NEARLY = 0.98  # of the connections that are tracked at most


def look_at_host(facts: Facts) -> Iterator[Step]:
    """Say what the host does with the flow's packets, by its own answer, and what is full."""
    way, ip = facts.passing, facts.flow.destination.address
    if way is None or ip is None:
        return
    yield from _look_at_tables(facts.host)
    if way.is_local:
        yield Step("host", OK, f"{ip} is this host's own")
    elif way.error:
        yield _explain_error(facts, way, ip)
    else:
        yield from _look_at_subnets(facts, way, ip)
        yield from _look_at_mtu(facts, way)
        yield Step("host", OK, f"forwards, {_describe_way(way)}")


def _explain_error(facts: Facts, way: Way, ip: IPAddress) -> Step:
    source, arriving, host = facts.flow.source.address, facts.arriving or "", facts.host
    closed = _closed_forwarding(host, ip.version, arriving)
    if way.error == errno.EHOSTUNREACH and closed:
        return fault("host", "forwarding-off", key=closed, where="")
    is_forged = ip.version == IPV4 and way.error in {errno.EXDEV, errno.EINVAL}
    if is_forged and source_check(host, arriving) == 1:
        return fault("host", "reverse-path", ip=source, interface=arriving)
    if way.error == errno.ENETUNREACH:
        deaf = [name for name in host.interfaces if _ignores_routers(host, name)]
        if ip.version == IPV6 and deaf:
            return fault("uplink", "routers-ignored", interface=deaf[0])
        return fault("host", "no-way-out", ip=ip)
    words = {"name": "this host", "ip": str(ip), "error": os.strerror(way.error)}
    return fault("host", "forbidden-route", command="ip route show table all", **words)


def _ignores_routers(host: View, name: str) -> bool:
    """Return whether an uplink hears no router, for the host forwards (ip-sysctl.rst)."""
    link = host.interfaces[name]
    is_uplink = link.kind != "bridge" and link.master is None and link.has_carrier
    forwards = host.sysctls.get("net.ipv6.conf.all.forwarding") == "1"
    accepts = host.sysctls.get(f"net.ipv6.conf.{name}.accept_ra") == "1"
    return is_uplink and name != "lo" and forwards and accepts


def _look_at_tables(host: View) -> Iterator[Step]:
    count = int(host.sysctls.get("net.netfilter.nf_conntrack_count", "0"))
    most = int(host.sysctls.get("net.netfilter.nf_conntrack_max", "0"))
    if most and count >= most * _NEARLY:
        yield fault("host", "conntrack-full", count=count, most=most, more=2 * most)
    most = int(host.sysctls.get("net.ipv4.neigh.default.gc_thresh3", "0"))
    if most and host.neighbour_entries >= most:
        words = {"count": host.neighbour_entries, "most": most, "more": 4 * most}
        yield fault("host", "neighbours-full", **words)


def _look_at_subnets(facts: Facts, way: Way, ip: IPAddress) -> Iterator[Step]:
    """Say whether what is outside is looked for on a bridge, for that has the same subnet."""
    if facts.other is not None:
        return
    sandbox, leaving = facts.sandbox, facts.leaving
    link = facts.host.interfaces.get(way.interface or "")
    bridge = link if link is not None and link.kind == "bridge" else None
    inside = sandbox.interfaces.get(leaving.interface or "") if sandbox and leaving else None
    networks = (each.network for one in (bridge, inside) if one for each in one.addresses)
    subnet = next((each for each in networks if ip in each), None)
    if subnet is None:
        return
    elsewhere = find_overlap(facts.host, subnet, facts.arriving or "", ip)
    if elsewhere is not None:
        words = {"prefix": elsewhere.prefix, "interface": elsewhere.interface}
        yield fault("host", "subnet-overlaps", ip=ip, subnet=subnet, **words)
    elif bridge is not None and ip not in facts.host.macs:
        yield fault("host", "nobody-there", ip=ip, subnet=subnet, bridge=bridge.name)


def find_overlap(
    host: View, subnet: IPNetwork, bridge: str, ip: IPAddress | None = None
) -> Routed | None:
    """Return a route that leads elsewhere with what a bridge's subnet has, or has an address of."""
    for each in host.routes:
        is_other = each.interface != bridge and each.prefix.version == subnet.version
        if is_other and each.prefix.overlaps(subnet):
            link = host.interfaces.get(each.interface)
            leads_on = link is None or link.master is None
            if (ip is None or ip in each.prefix) and leads_on:
                return each
    return None


def _look_at_mtu(facts: Facts, way: Way) -> Iterator[Step]:
    """Tell of a container that may send larger packets than the host can pass on in one piece."""
    if facts.sandbox is None or facts.leaving is None:
        return
    inside = facts.sandbox.interfaces.get(facts.leaving.interface or "")
    out = facts.host.interfaces.get(way.interface or "")
    if inside is None or out is None or inside.mtu <= out.mtu:
        return
    words = {"out": out.name, "most": out.mtu, "interface": inside.name, "mtu": inside.mtu}
    if facts.is_large_lost:
        yield fault("host", "mtu-too-large", name=facts.flow.source.name, **words)
    else:
        text = f"{out.name} takes {out.mtu} bytes, {inside.name} of the container {inside.mtu}"
        yield Step("host", WARNING, f"{text}; if ICMP is filtered, large packets are lost")


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


def look_at_uplink(facts: Facts) -> Iterator[Step]:
    """Say whether the interface that leads out is up, its next hop answers, and knows the way."""
    way = facts.passing
    if way is None or way.error or way.is_local or facts.other is not None or not way.interface:
        return
    link = facts.host.interfaces.get(way.interface)
    if link is None:
        return
    next_hop = way.gateway or facts.flow.destination.address
    if not link.has_carrier or next_hop in facts.host.silent:
        yield fault("uplink", "uplink-down", interface=link.name)
        return
    yield Step("uplink", OK, f"{link.name} is up, MTU {link.mtu}")
    probe, own = facts.probe, facts.flow.source.address
    is_unanswered = probe is not None and not probe.is_answered and probe.left_as == own
    if facts.sandbox is not None and own is not None and is_unanswered:
        yield fault("NAT", "not-masqueraded", ip=own, interface=link.name)
