"""Render pynet's nftables tables as text: values in, text out; never talks to the kernel.

The chains are constant. What grows with networks, endpoints and ports are set and map elements, so
that a packet's lookup and an update cost the same for one and for thousands. Every value that
reaches the text is typed and validated (addresses are `ipaddress` objects, ports are integers,
interface names have passed `driver.options`), never a string that somebody else wrote.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from itertools import chain
from typing import TYPE_CHECKING

from driver.model import (
    GatewayMode,
    Guard,
    connections_of,
    derive_link_local,
    guard_of,
    host_end_name,
    short,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from driver.model import Endpoint, IPAddress, MacAddress, Network, PortBinding

TABLE = "inet pynet"
BRIDGE_TABLE = "bridge pynet"
TABLES = (TABLE, BRIDGE_TABLE)

# Bits of the packet mark: none of those that Kubernetes (0x4000, 0x8000), Tailscale (0xff0000) or
# swarm's small numbers use. They are gone when a packet enters a sandbox (skb_scrub_packet()).
#
# Docker sets the iptables FORWARD policy to DROP, and a packet has to pass every base chain of the
# hook, so an accept in our table is not enough; a rule in FORWARD lets through what carries
# the mark. It bypasses Docker's isolation, so ours must be as strict.
ACCEPTED_MARK = 0x20000000
FORWARD_PRIORITY = -10  # of the chain that sets it, which is nft's "filter - 10"
# Translated to another container of the same bridge: passes between closed ports.
TRANSLATED_MARK = 0x40000000
# From a port with `pynet.guard=network`, and not from an address of the endpoint's own: on its way
# to where the host looks at its source. An address family's own hook does not see the port.
CHECKED_MARK = 0x10000000
# The same with `pynet.guard=off`: any source but the host's own, and loopback addresses.
UNGUARDED_MARK = 0x04000000

# Why a packet is dropped, by the table that does it. Each has a counter, and a set of the
# interfaces by which such packets came during the last day.
REASONS = {
    TABLE: {
        "source": "a source address that is not of the network, or none",
        "port": "by a port of a bridge itself, past the bridge",
        "subnet": "a container's source address, from where no container of its network is",
        "own": "a source address of the host itself",
        "loopback": "a loopback address",
        "internal": "into or out of an internal network",
        "connections": "more connections than pynet.limit.connections",
        "untranslated": "would leave with a container's own address",
    },
    BRIDGE_TABLE: {
        "source": "a MAC or source address that is not the container's",
        "neighbour": "ARP or neighbour discovery for an address that is not the container's",
        "router": "a router advertisement, a redirect or a DHCP answer",
        "protocol": "a VLAN tag, a protocol other than IPv4, IPv6 and ARP, or to the bridge",
    },
}


def _reasons(table: str) -> str:
    """Return the counters, sets and chains by which a table drops, a chain a reason."""
    return "".join(
        f"""\
	counter {reason} {{
		comment "{text}"
	}}
	set dropped_{reason} {{
		typeof iifname
		size 65535
		flags dynamic,timeout
		counter
		timeout 1d
		comment "by which interfaces: {text}"
	}}
	chain drop_{reason} {{
		counter name "{reason}" update @dropped_{reason} {{ iifname }} drop
	}}
"""
        for reason, text in REASONS[table].items()
    )


_BASE = f"""\
table {TABLE} {{
	comment "pynet, the Docker network driver; rebuilt from its state file at every start"

{_reasons(TABLE)}\
	set bridges {{
		typeof iifname
		comment "the bridge of every network"
	}}
	set uplinks {{
		typeof iifname
		comment "others' bridges, but for Docker's own: where the host's rules say who goes there"
	}}
	set same_bridge {{
		typeof iifname . oifname
		comment "bridges whose containers may talk to each other"
	}}
	set no_icc {{
		typeof iifname
		comment "bridges whose containers reach each other by published ports only"
	}}
	set internal {{
		typeof iifname
		comment "bridges with no way in or out"
	}}
	set unprotected {{
		typeof oifname . meta nfproto
		comment "bridges whose container addresses are open to everybody"
	}}
	set routed {{
		typeof oifname . meta nfproto
		comment "bridges whose published ports are reached by the container's own address"
	}}
	set trusted {{
		typeof iifname . oifname
		comment "host interfaces that may reach published ports by the container's own address"
	}}
	set subnets4 {{
		typeof ip saddr
		flags interval
		comment "subnets that are nowhere but on bridges of pynet"
	}}
	set subnets6 {{
		typeof ip6 saddr
		flags interval
		comment "subnets that are nowhere but on bridges of pynet"
	}}
	set home4 {{
		typeof ip saddr . oifname
		flags interval
		comment "a network's subnet and its own bridges: traffic that stays at home"
	}}
	set home6 {{
		typeof ip6 saddr . oifname
		flags interval
		comment "a network's subnet and its own bridges: traffic that stays at home"
	}}
	set masquerade4 {{
		typeof ip saddr
		flags interval
		comment "subnets that leave with the address of the interface they leave by"
	}}
	set masquerade6 {{
		typeof ip6 saddr
		flags interval
		comment "subnets that leave with the address of the interface they leave by"
	}}
	map source4 {{
		typeof ip saddr : ip saddr
		flags interval
		comment "subnets that leave with an address of the operator's choice"
	}}
	map source6 {{
		typeof ip6 saddr : ip6 saddr
		flags interval
		comment "subnets that leave with an address of the operator's choice"
	}}
	map published4 {{
		typeof ip daddr . meta l4proto . th dport : ip daddr . th dport
		comment "ports published on one address of the host"
	}}
	map published6 {{
		typeof ip6 daddr . meta l4proto . th dport : ip6 daddr . th dport
		comment "ports published on one address of the host"
	}}
	map everywhere4 {{
		typeof meta l4proto . th dport : ip daddr . th dport
		comment "ports published on all addresses of the host"
	}}
	map everywhere6 {{
		typeof meta l4proto . th dport : ip6 daddr . th dport
		comment "ports published on all addresses of the host"
	}}
	set relayed4 {{
		typeof meta l4proto . th dport
		comment "ports at which the relay serves what cannot be translated"
	}}
	set relayed6 {{
		typeof meta l4proto . th dport
		comment "ports at which the relay serves what cannot be translated"
	}}
	set open4 {{
		typeof ip daddr . meta l4proto . th dport
		comment "published container ports, for whoever may use the container's own address"
	}}
	set open6 {{
		typeof ip6 daddr . meta l4proto . th dport
		comment "published container ports, for whoever may use the container's own address"
	}}
	set connections4 {{
		typeof ip saddr
		ct count over 4294967295
		comment "how many connections a container may have begun"
	}}
	set connections6 {{
		typeof ip6 saddr
		ct count over 4294967295
		comment "how many connections a container may have begun"
	}}
	map arrivals {{
		typeof iifname : verdict
		comment "where a packet is looked at that arrives by an interface of pynet"
		elements = {{ "lo" comment "the host itself" : accept }}
	}}
	map leaving {{
		typeof iifname : verdict
		comment "who decides on a packet that comes from a bridge"
	}}
	map entering {{
		typeof oifname : verdict
		comment "who decides on a packet that goes to a bridge from elsewhere"
	}}

	chain guard {{
		type filter hook prerouting priority raw; policy accept;
		iifname "pnh*" goto drop_port
		iifname vmap @arrivals
		ip saddr @subnets4 goto drop_subnet
		ip6 saddr @subnets6 goto drop_subnet
	}}
	chain from_bridge {{
		meta pkttype host ip6 saddr != fe80::/10 fib saddr type local goto drop_own
		goto from_port
	}}
	chain from_part {{
		notrack
		goto check_source
	}}
	chain from_port {{
		ip daddr 127.0.0.0/8 goto drop_loopback
		ip saddr 127.0.0.0/8 goto drop_loopback
		ip6 daddr ::1 goto drop_loopback
		goto check_source
	}}
	chain check_source {{
		meta mark & {CHECKED_MARK | UNGUARDED_MARK:#x} == 0 accept
		ip saddr 0.0.0.0 goto unspecified
		ip6 saddr :: goto unspecified
		fib saddr type local goto drop_own
		ip6 saddr fe80::/10 fib saddr . iif type local goto drop_own
		meta mark & {UNGUARDED_MARK:#x} != 0 goto permitted
		ip saddr . iifname @home4 goto permitted
		ip6 saddr . iifname @home6 goto permitted
		ip6 saddr fe80::/10 goto permitted
		goto drop_source
	}}
	chain permitted {{
		meta mark set meta mark & {~(CHECKED_MARK | UNGUARDED_MARK) & 0xFFFFFFFF:#x} accept
	}}
	chain unspecified {{
		ip daddr 255.255.255.255 udp sport 68 udp dport 67 goto permitted
		ip daddr 224.0.0.0/4 meta l4proto igmp goto permitted
		ip6 daddr ff00::/8 icmpv6 type {{ nd-neighbor-solicit, nd-router-solicit, \
mld-listener-report, mld-listener-done, mld2-listener-report }} goto permitted
		goto drop_source
	}}
	chain count_connections {{
		type filter hook prerouting priority mangle; policy accept;
		ct state new ip saddr @connections4 goto drop_connections
		ct state new ip6 saddr @connections6 goto drop_connections
	}}
	chain prerouting {{
		type nat hook prerouting priority dstnat - 5; policy accept;
		ip daddr 127.0.0.0/8 return
		goto translate
	}}
	chain mark_translated {{
		type filter hook prerouting priority dstnat + 5; policy accept;
		ct status dnat iifname @bridges meta mark set meta mark | {TRANSLATED_MARK:#x}
	}}
	chain output {{
		type nat hook output priority -105; policy accept;
		goto translate
	}}
	chain translate {{
		ip6 saddr fe80::/10 return
		ip6 daddr ::1 return
		dnat ip to ip daddr . meta l4proto . th dport map @published4
		dnat ip6 to ip6 daddr . meta l4proto . th dport map @published6
		meta nfproto ipv4 fib daddr type local dnat ip to meta l4proto . th dport map @everywhere4
		meta nfproto ipv6 fib daddr type local dnat ip6 to meta l4proto . th dport map @everywhere6
	}}
	chain input {{
		type filter hook input priority filter - 10; policy accept;
		iifname @internal meta nfproto ipv4 meta l4proto . th dport @relayed4 goto drop_internal
		iifname @internal meta nfproto ipv6 meta l4proto . th dport @relayed6 goto drop_internal
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat - 5; policy accept;
		oifname @bridges ip saddr 127.0.0.0/8 masquerade
		ip saddr . oifname @home4 goto hairpin
		ip6 saddr . oifname @home6 goto hairpin
		snat ip to ip saddr map @source4
		snat ip6 to ip6 saddr map @source6
		ip saddr @masquerade4 masquerade
		ip6 saddr @masquerade6 masquerade
	}}
	chain hairpin {{
		ct status dnat masquerade
	}}
	chain forward {{
		type filter hook forward priority filter - 10; policy accept;
		iifname vmap @leaving
		oifname vmap @entering
	}}
	chain outgoing {{
		oifname @internal goto drop_internal
		ct state established,related ct status snat,dnat goto accepted
		iifname . oifname @same_bridge goto accepted
		ct state established,related goto untranslated
		ip saddr 169.254.0.0/16 drop
		ip6 saddr fe80::/10 drop
		oifname @bridges ct status dnat goto accepted
		oifname @bridges goto inbound
		meta oifkind "bridge" oifname != @uplinks goto dockers
		ct state invalid,untracked goto untranslated
		ct status confirmed ct status ! snat,dnat goto untranslated
		goto accepted
	}}
	chain dockers {{
		ct status dnat accept
		drop
	}}
	chain untranslated {{
		ct direction reply goto accepted
		ip saddr @masquerade4 goto drop_untranslated
		ip6 saddr @masquerade6 goto drop_untranslated
		ip saddr @source4 goto drop_untranslated
		ip6 saddr @source6 goto drop_untranslated
		goto accepted
	}}
	chain confined {{
		iifname . oifname @same_bridge goto accepted
		goto drop_internal
	}}
	chain incoming {{
		ip saddr 127.0.0.0/8 goto drop_loopback
		meta nfproto ipv6 fib saddr type local goto drop_own
		ct state established,related goto accepted
		ct status dnat goto accepted
		goto inbound
	}}
	chain inbound {{
		oifname . meta nfproto @unprotected goto accepted
		oifname . meta nfproto @routed meta l4proto {{ icmp, ipv6-icmp }} goto accepted
		oifname . meta nfproto @routed goto open
		iifname . oifname @trusted goto open
		drop
	}}
	chain open {{
		ip daddr . meta l4proto . th dport @open4 goto accepted
		ip6 daddr . meta l4proto . th dport @open6 goto accepted
		drop
	}}
	chain accepted {{
		meta mark set meta mark | {ACCEPTED_MARK:#x} accept
	}}
}}
table {BRIDGE_TABLE} {{
{_reasons(BRIDGE_TABLE)}\
	map guards {{
		typeof iifname : verdict
		comment "what each endpoint may send, by its host end"
	}}
	set macs {{
		typeof iifname . ether saddr
		comment "MAC addresses of endpoints with pynet.guard=address"
	}}
	set own4 {{
		typeof iifname . ether saddr . ip saddr
		comment "addresses that an endpoint may send with"
	}}
	set own6 {{
		typeof iifname . ether saddr . ip6 saddr
		comment "addresses that an endpoint may send with"
	}}
	set targets6 {{
		typeof iifname . @nh,384,128
		comment "addresses that an endpoint may advertise to its neighbours"
	}}
	set closed {{
		typeof iifname
		comment "host ends of containers that reach each other by published ports only"
	}}
	set joints {{
		typeof iifname . oifname
		comment "a joint to a further bridge, twice: out where it came in"
	}}
	map joint_macs {{
		typeof iifname : ether saddr
		comment "the first bridge's own address, by joint"
	}}

	chain guard {{
		type filter hook prerouting priority dstnat; policy accept;
		iifname != "pnh*" accept
		iifname vmap @guards
		drop
	}}
	chain network {{
		iifname . ether saddr . ip saddr @own4 accept
		iifname . ether saddr . ip6 saddr @own6 accept
		meta mark set meta mark | {CHECKED_MARK:#x}
	}}
	chain off {{
		iifname . ether saddr . ip saddr @own4 accept
		iifname . ether saddr . ip6 saddr @own6 accept
		meta mark set meta mark | {UNGUARDED_MARK:#x}
	}}
	chain address {{
		ether type ip goto address4
		ether type ip6 goto address6
		ether type arp goto address_arp
		goto drop_protocol
	}}
	chain address4 {{
		iifname . ether saddr . ip saddr != @own4 goto unspecified4
		udp sport 67 goto drop_router
		icmp type {{ redirect, router-advertisement }} goto drop_router
	}}
	chain unspecified4 {{
		ip saddr != 0.0.0.0 goto drop_source
		iifname . ether saddr != @macs goto drop_source
		ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept
		ip daddr 224.0.0.0/4 meta l4proto igmp accept
		goto drop_source
	}}
	chain address6 {{
		iifname . ether saddr . ip6 saddr != @own6 goto unspecified6
		udp sport 547 goto drop_router
		icmpv6 type {{ nd-router-advert, nd-redirect, router-renumbering }} goto drop_router
		icmpv6 type nd-neighbor-advert iifname . @nh,384,128 != @targets6 goto drop_neighbour
	}}
	chain unspecified6 {{
		ip6 saddr != :: goto drop_source
		iifname . ether saddr != @macs goto drop_source
		ip6 daddr ff00::/8 icmpv6 type {{ nd-neighbor-solicit, nd-router-solicit, \
mld-listener-report, mld-listener-done, mld2-listener-report }} accept
		goto drop_source
	}}
	chain address_arp {{
		iifname . ether saddr != @macs goto drop_source
		iifname . arp saddr ether . arp saddr ip @own4 accept
		iifname . arp saddr ether @macs arp saddr ip 0.0.0.0 accept
		goto drop_neighbour
	}}
	chain reserved {{
		type filter hook input priority filter; policy accept;
		iifname "pnh*" ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 goto drop_protocol
	}}
	chain forward {{
		type filter hook forward priority filter - 10; policy accept;
		iifname . oifname @joints meta mark & {TRANSLATED_MARK:#x} == 0 drop
		iifname . oifname @joints ether saddr set iifname map @joint_macs
		iifname @closed oifname @closed goto between_closed
	}}
	chain between_closed {{
		ether type arp accept
		ether type {{ ip, ip6 }} meta mark & {TRANSLATED_MARK:#x} != 0 accept
		drop
	}}
}}
"""


def render_ruleset(
    networks: Iterable[Network], endpoints: Iterable[Endpoint], uplinks: Iterable[str]
) -> str:
    """Return all of it for these networks and their endpoints, replacing what is there.

    One transaction, whatever was there before.
    """
    elements = "".join(render_elements(networks, endpoints))
    return f"{render_no_ruleset()}{_BASE}{render_uplinks(uplinks)}{elements}"


def render_elements(networks: Iterable[Network], endpoints: Iterable[Endpoint]) -> tuple[str, ...]:
    """Return what these networks, their endpoints and ports add, a text each."""
    by_id = {network.id: network for network in networks}
    elements = [render_network(network) for network in by_id.values()]
    for endpoint in endpoints:
        if endpoint.is_in_rules:
            elements.append(render_join(endpoint, by_id[endpoint.network_id]))
        elements.append(render_bindings(endpoint.id, endpoint.bindings))
    return tuple(filter(None, elements))


def render_uplinks(names: Iterable[str]) -> str:
    """Return the text that makes these bridges the ones that lead out of the host."""
    elements = _add(((f"{TABLE} uplinks", _quote(name), "") for name in sorted(names)), "uplink")
    return f"flush set {TABLE} uplinks\n{elements}"


def render_no_ruleset() -> str:
    """Return the text that removes the tables, whether they exist or not."""
    return "".join(f"table {table} {{}}\ndelete table {table}\n" for table in TABLES)


def render_network(network: Network) -> str:
    """Return the elements that a network adds."""
    return _add(_network_elements(network), _network_comment(network))


def render_no_network(network: Network) -> str:
    """Return the text that takes the network's elements out again."""
    return _delete(_network_elements(network))


def render_change(old: Network, new: Network, endpoints: Iterable[Endpoint]) -> str:
    """Return the text that brings a network, and its joined endpoints, to other options."""
    elements = [_exchange(_network_elements(old), _network_elements(new), _network_comment(new))]
    for endpoint in endpoints:
        before, after = _join_elements(endpoint, old), _join_elements(endpoint, new)
        elements.append(_exchange(before, after, _endpoint_comment(endpoint.id)))
    return "".join(elements)


def render_part(network: Network, number: int) -> str:
    """Return the elements that a further bridge of a network adds."""
    return _add(_part_elements(network, number), _network_comment(network))


def render_no_part(network: Network, number: int) -> str:
    """Return the text that takes them out again."""
    return _delete(_part_elements(network, number))


def render_join(endpoint: Endpoint, network: Network) -> str:
    """Return the elements that an endpoint adds when it joins; most add none."""
    return _add(_join_elements(endpoint, network), _endpoint_comment(endpoint.id))


def render_leave(endpoint: Endpoint, network: Network) -> str:
    """Return the text that takes them out again."""
    return _delete(_join_elements(endpoint, network))


def render_endpoint_change(old: Endpoint, new: Endpoint, network: Network) -> str:
    """Return the text that brings a joined endpoint to other addresses."""
    before, after = _join_elements(old, network), _join_elements(new, network)
    return _exchange(before, after, _endpoint_comment(new.id))


def render_bindings(endpoint_id: str, bindings: Iterable[PortBinding]) -> str:
    """Return the elements that publish an endpoint's ports."""
    return _add(_binding_elements(bindings), _endpoint_comment(endpoint_id))


def render_no_bindings(bindings: Iterable[PortBinding]) -> str:
    """Return the text that takes them out again."""
    return _delete(_binding_elements(bindings))


# An element is the name of its set or map with table, the key with what is said of it, such as a
# limit, and a map's value or "". What is said of a key is no part of it when it is deleted.
_Element = tuple[str, str, str]


def _network_elements(network: Network) -> Iterator[_Element]:
    bridge = _quote(network.bridge_name)
    options = network.options
    yield f"{TABLE} bridges", bridge, ""
    yield f"{TABLE} arrivals", bridge, f"goto {'from_bridge' if network.shared else 'from_port'}"
    yield f"{TABLE} leaving", bridge, "goto confined" if options.internal else "goto outgoing"
    yield f"{TABLE} entering", bridge, f"goto {'drop_internal' if options.internal else 'incoming'}"
    if options.icc:
        yield f"{TABLE} same_bridge", f"{bridge} . {bridge}", ""
    else:
        yield f"{TABLE} no_icc", bridge, ""
    if options.internal:
        yield f"{TABLE} internal", bridge, ""
    for interface in options.trusted_host_interfaces:
        yield f"{TABLE} trusted", f"{_quote(interface)} . {bridge}", ""
    for version in (4, 6):
        if network.has_family(version):
            yield from _family_elements(network, version)
    for number in network.parts:
        yield from _part_elements(network, number)


def _part_elements(network: Network, number: int) -> Iterator[_Element]:
    """Yield what a further bridge adds, which the host sees behind br_netfilter only.

    Frames pass it untouched: everything is translated on the first bridge. Where containers may not
    talk to each other, the first bridge's end of the joint is closed as theirs are, and the further
    one's is not: that way lead the host and all others.
    """
    bridge, joint = _quote(network.bridge_at(number)), _quote(network.joint(number).host_end)
    yield f"{TABLE} bridges", bridge, ""
    yield f"{TABLE} arrivals", bridge, "goto from_part"
    yield f"{TABLE} leaving", bridge, "goto confined"
    yield f"{TABLE} entering", bridge, "drop"
    yield f"{TABLE} same_bridge", f"{bridge} . {bridge}", ""
    for version in (4, 6):
        for subnet in network.subnets(version):
            yield f"{TABLE} home{version}", f"{subnet} . {bridge}", ""
    yield f"{BRIDGE_TABLE} joints", f"{joint} . {joint}", ""
    yield f"{BRIDGE_TABLE} joint_macs", joint, network.bridge.mac
    if not network.options.icc:
        yield f"{BRIDGE_TABLE} closed", joint, ""


def _family_elements(network: Network, version: int) -> Iterator[_Element]:
    bridge, mode = _quote(network.bridge_name), network.options.gateway_mode(version)
    if mode is GatewayMode.NAT_UNPROTECTED:
        yield f"{TABLE} unprotected", f"{bridge} . ipv{version}", ""
    if mode is GatewayMode.ROUTED:
        yield f"{TABLE} routed", f"{bridge} . ipv{version}", ""
    source = network.options.source_address(version)
    for subnet in network.subnets(version):
        yield f"{TABLE} home{version}", f"{subnet} . {bridge}", ""
        if not network.shared:
            yield f"{TABLE} subnets{version}", str(subnet), ""
        if network.options.masquerade and network.forwards(version) and mode.translates:
            if source is None:
                yield f"{TABLE} masquerade{version}", str(subnet), ""
            else:
                yield f"{TABLE} source{version}", str(subnet), str(source)


def _join_elements(endpoint: Endpoint, network: Network) -> Iterator[_Element]:
    end, guard = _quote(host_end_name(endpoint.id)), guard_of(endpoint, network)
    also = network.options.guard_also + endpoint.options.guard_also
    if not network.options.icc:
        yield f"{BRIDGE_TABLE} closed", end, ""
    yield f"{BRIDGE_TABLE} guards", end, f"goto {guard}"
    addresses = (*(each.ip for each in endpoint.addresses), *also.ipv4, *also.ipv6)
    yield from _own_elements(end, (endpoint.mac, *also.macs), addresses, guard)
    if limit := connections_of(endpoint, network):
        for address in (each.ip for each in endpoint.addresses):
            name = f"{TABLE} connections{address.version}"
            yield name, f"{address} ct count over {limit}", ""


def _own_elements(
    end: str, macs: tuple[MacAddress, ...], addresses: tuple[IPAddress, ...], guard: Guard
) -> Iterator[_Element]:
    """Yield what an endpoint may send with: each address with each MAC, once."""
    used = dict.fromkeys(macs, addresses)
    if guard is Guard.ADDRESS:
        used = {mac: (*addresses, derive_link_local(mac)) for mac in macs}
        for mac in used:
            yield f"{BRIDGE_TABLE} macs", f"{end} . {mac}", ""
    for version in (4, 6):
        for mac, allowed in used.items():
            for address in dict.fromkeys(allowed):
                if address.version == version:
                    yield f"{BRIDGE_TABLE} own{version}", f"{end} . {mac} . {address}", ""
    if guard is Guard.ADDRESS:
        for address in dict.fromkeys(chain.from_iterable(used.values())):
            if isinstance(address, IPv6Address):
                yield f"{BRIDGE_TABLE} targets6", f"{end} . {int(address):#034x}", ""


def _binding_elements(bindings: Iterable[PortBinding]) -> Iterator[_Element]:
    opened = set()
    for binding in bindings:
        version = binding.container_ip.version
        protocol = str(binding.protocol)
        target = f"{binding.container_ip} . {binding.container_port}"
        opening = f"{binding.container_ip} . {protocol} . {binding.container_port}"
        is_other_family = binding.host is not None and binding.host.ip.version != version
        if opening not in opened and not is_other_family:  # it can be published more than once
            opened.add(opening)
            yield f"{TABLE} open{version}", opening, ""
        if binding.host is None:
            continue
        place = f"{protocol} . {binding.host.port}"
        if binding.is_relayed:
            yield f"{TABLE} relayed{binding.host.ip.version}", place, ""
        if not binding.is_translated:
            continue
        if binding.host.ip.is_unspecified:
            yield f"{TABLE} everywhere{version}", place, target
        else:
            yield f"{TABLE} published{version}", f"{binding.host.ip} . {place}", target


def _network_comment(network: Network) -> str:
    return f"network {short(network.id)}"


def _endpoint_comment(endpoint_id: str) -> str:
    return f"endpoint {short(endpoint_id)}"


def _exchange(before: Iterable[_Element], after: Iterable[_Element], comment: str) -> str:
    """Return the text that touches what differs and nothing else."""
    old, new = tuple(before), tuple(after)
    gone = _delete(each for each in old if each not in new)
    return gone + _add((each for each in new if each not in old), comment)


def _add(elements: Iterable[_Element], comment: str) -> str:
    return "".join(
        f'add element {name} {{ {key} comment "{comment}"{f" : {value}" if value else ""} }}\n'
        for name, key, value in elements
    )


def _delete(elements: Iterable[_Element]) -> str:
    return "".join(
        f"delete element {name} {{ {key.partition(' ct ')[0]} }}\n" for name, key, _ in elements
    )


def _quote(ifname: str) -> str:
    return f'"{ifname}"'
