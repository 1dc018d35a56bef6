"""Look at a container's network: its interface, the pair, the bridge, its neighbours; no I/O."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from driver.diagnosis.facts import bridge_of, host_end_of
from driver.diagnosis.steps import IPV4, IPV6, OK, Step, fault, source_check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from driver.diagnosis.facts import Facts, Interface, View, Way
    from driver.model import IPAddress

_ANSWERS_NOTHING = 4  # arp_ignore, ip-sysctl.rst: 8; 4 to 7 are reserved


def look_at_sandbox(facts: Facts) -> Iterator[Step]:
    """Say by which interface the source sends, and whether that leads to its bridge."""
    view, name, way = facts.sandbox, facts.flow.source.name, facts.leaving
    ip = facts.flow.destination.address
    if view is None or way is None or ip is None:
        return
    if way.error:
        yield _no_way(view, name, way, ip)
        return
    link = view.interfaces.get(way.interface or "")
    if link is None or way.is_local:
        return
    if ip.version == IPV6 and _has_ipv6_off(view, link):
        yield fault("sandbox", "ipv6-off", name=name, interface=link.name)
    via = f" via {way.gateway}" if way.gateway else ""
    addresses = " ".join(sorted(str(each) for each in link.addresses if not each.is_link_local))
    yield Step("sandbox", OK, f"{link.name} is up, {addresses}, to {ip}{via}")
    # Each host on the way takes one (ip_forward() in net/ipv4/ip_forward.c).
    if ip.version == IPV4 and facts.passing is not None and not facts.passing.is_local:
        hops = view.sysctls.get("net.ipv4.ip_default_ttl")
        if hops == "1":
            yield fault("sandbox", "hops-spent", name=name)
    yield from _look_at_pair(facts, link, name)


def _has_ipv6_off(view: View, link: Interface) -> bool:
    return view.sysctls.get(f"net.ipv6.conf.{link.name}.disable_ipv6") == "1"


def _no_way(view: View, name: str, way: Way, ip: IPAddress) -> Step:
    own = [link for link in view.interfaces.values() if link.kind == "veth"]
    without = [link for link in own if ip.version == IPV6 and _has_ipv6_off(view, link)]
    down = [link for link in own if not link.is_up]
    if without:
        return fault("sandbox", "ipv6-off", name=name, interface=without[0].name)
    if way.error != errno.ENETUNREACH:
        command = f"pynet exec {name} -- ip route show table all"
        words = {"name": name, "ip": ip, "error": os.strerror(way.error)}
        return fault("sandbox", "forbidden-route", command=command, **words)
    if down:
        return _down_inside(down[0], name)
    return fault("sandbox", "no-route", name=name, ip=ip)


def _down_inside(link: Interface, name: str) -> Step:
    command = f"pynet exec {name} -- ip link set {link.name} up, and ask who set it down"
    where = f"{link.name} in {name}"
    return fault("sandbox", "interface-down", interface=where, command=command)


def look_at_destination(facts: Facts) -> Iterator[Step]:
    """Say whether the destination's interface is connected, and how its neighbours know it."""
    view, ip = facts.other, facts.flow.destination.address
    link = view.owner_of(ip) if view is not None and ip is not None else None
    if view is None or link is None or ip is None:
        return
    name = facts.flow.destination.name
    if not link.is_up:
        yield _down_inside(link, name)
        return
    yield from _look_at_pair(facts, link, name)
    yield from _look_at_neighbour(facts, link, ip)
    yield from _look_at_return(facts, view, link, ip)


def _look_at_pair(facts: Facts, link: Interface, name: str) -> Iterator[Step]:
    if link.kind != "veth":
        return
    end = host_end_of(link, facts.host)
    if end is None:
        yield fault("pair", "severed", interface=link.name, name=name)
        return
    if not end.is_up:
        command = f"ip link set {end.name} up, and find who set it down"
        where = f"{end.name}, the host's end of {name},"
        yield fault("pair", "interface-down", interface=where, command=command)
        return
    bridge = facts.host.interfaces.get(end.master or "")
    if bridge is None:
        own = [str(each) for each in end.addresses if not each.is_link_local]
        why = f", and has {own[0]} of its own" if own else ""
        words = {"interface": end.name, "name": name, "manager": "NetworkManager or networkd"}
        yield fault("pair", "off-bridge", why=why, **words)
        return
    yield Step("pair", OK, f"{end.name} of {name} is up, on {bridge.name}")
    if not bridge.is_up:
        command = f"ip link set {bridge.name} up, and find who set it down"
        yield fault("bridge", "interface-down", interface=bridge.name, command=command)
        return
    yield Step("bridge", OK, f"{bridge.name} is up, MTU {bridge.mtu}")
    yield from _look_behind_ports(facts, link.mac, end, name)


def _look_behind_ports(facts: Facts, mac: str, end: Interface, name: str) -> Iterator[Step]:
    """Say whether the bridge knows a container's MAC address behind another port than its own."""
    others = facts.host.ports_of.get(mac, frozenset()) - {end.name}
    here = [each for each in others if _is_beside(facts.host, each, end)]
    if here:
        words = {"first": name, "second": f"what is behind {here[0]}", "network": end.master}
        yield fault("bridge", "mac-twice", what=mac, **words)


def _is_beside(host: View, port: str, end: Interface) -> bool:
    link = host.interfaces.get(port)
    return link is not None and link.master == end.master


def _look_at_neighbour(facts: Facts, link: Interface, ip: IPAddress) -> Iterator[Step]:
    """Look whether who sends to the destination knows it by the MAC address that it has."""
    here = bridge_of(facts.sandbox, facts.flow.source.address, facts.host)
    there = bridge_of(facts.other, ip, facts.host)
    is_near = facts.sandbox is not None and here == there
    asker = facts.sandbox if is_near and facts.sandbox is not None else facts.host
    mac = asker.macs.get(ip)
    if mac is None or mac == link.mac:
        return
    name = facts.flow.source.name
    if ports := facts.host.ports_of.get(mac):
        owner = f"what has {mac} behind {min(ports)}"
        words = {"first": facts.flow.destination.name, "second": owner, "network": there}
        yield fault("pair", "address-twice", what=ip, **words)
        return
    command = f"ip neigh del {ip} dev {there}"
    if is_near and facts.leaving is not None:
        command = f"pynet exec {name} -- ip neigh del {ip} dev {facts.leaving.interface}"
    words = {"ip": str(ip), "mac": mac, "own": link.mac, "command": command}
    yield fault("pair", "stale-neighbour", where=name if is_near else "the host", **words)


def _look_at_return(facts: Facts, view: View, home: Interface, ip: IPAddress) -> Iterator[Step]:
    """Look by which network the destination answers."""
    way = facts.returning
    if way is None or way.error or not way.interface or way.interface == home.name:
        return
    leaving = view.interfaces.get(way.interface)
    end = host_end_of(leaving, facts.host) if leaving is not None else None
    if end is None or end.master is None or source_check(facts.host, end.master) != 1:
        return
    words = {"name": facts.flow.destination.name, "interface": way.interface, "ip": ip}
    yield fault("host", "answer-elsewhere", bridge=end.master, **words)


def look_at_gateway(facts: Facts) -> Iterator[Step]:
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
        yield fault("bridge", "arp-ignored", bridge=bridge, value=value, key=key)
