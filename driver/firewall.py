"""Render pynet's nftables tables as text: values in, text out; never talks to the kernel.

The chains are constant. What grows with networks, endpoints and ports are set and map elements, so
that a packet's lookup and an update cost the same for one and for thousands. Every value that
reaches the text is typed and validated (addresses are `ipaddress` objects, ports are integers,
interface names have passed `driver.options`), never a string that somebody else wrote.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from driver.model import GatewayMode, LoopbackPair, host_end_name, short

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from driver.model import Endpoint, IPAddress, Network, PortBinding

TABLE = "inet pynet"
BRIDGE_TABLE = "bridge pynet"
TABLES = (TABLE, BRIDGE_TABLE)

# Bits of the packet mark: none of those that Kubernetes (0x4000, 0x8000), Tailscale (0xff0000) or
# swarm's small numbers use. They are gone when a packet enters a sandbox (skb_scrub_packet()).
#
# Docker sets the iptables FORWARD policy to DROP, and a packet has to pass every base chain of the
# hook, so an accept in our table is not enough; a rule in Docker's chain lets through what carries
# the mark. It bypasses Docker's isolation, so ours must be as strict.
ACCEPTED_MARK = 0x20000000
# Translated to another container of the same bridge: passes between closed ports.
TRANSLATED_MARK = 0x40000000
# From the host's ::1 to a published port: takes the way through the loopback pair.
LOOPBACK_MARK = 0x08000000

# The host reaches published ports by ::1 over a veth pair of its own, both ends in the host: the
# kernel takes a reply to ::1 only from an interface that has ::1 as a local address, and behind
# br_netfilter a bridge hands it over too early (ip6_rcv_core()). RFC 9780 gives the address.
LOOPBACK_PAIR = LoopbackPair(
    out_end="pnlo-out",
    in_end="pnlo-in",
    source=IPv6Address("100:0:0:1::8"),
    mark=LOOPBACK_MARK,
    table=7064,
)

_BASE = f"""\
table {TABLE} {{
	comment "pynet, the Docker network driver; rebuilt from its state file at every start"

	set bridges {{
		typeof iifname
		comment "the bridge of every network"
	}}
	set parts {{
		typeof iifname
		comment "further bridges of networks with more than a thousand containers"
	}}
	set uplinks {{
		typeof iifname
		comment "other bridges that lead out of the host, and not to somebody's containers"
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
	set home4 {{
		typeof ip saddr . oifname
		flags interval
		comment "a network's subnet and its own bridge: traffic that stays at home"
	}}
	set home6 {{
		typeof ip6 saddr . oifname
		flags interval
		comment "a network's subnet and its own bridge: traffic that stays at home"
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
	set loopback6 {{
		typeof meta l4proto . th dport
		comment "ports that the host reaches by ::1"
	}}
	set open4 {{
		typeof ip daddr . meta l4proto . th dport
		comment "published container ports, for whoever may use the container's own address"
	}}
	set open6 {{
		typeof ip6 daddr . meta l4proto . th dport
		comment "published container ports, for whoever may use the container's own address"
	}}

	chain guard {{
		type filter hook prerouting priority raw; policy accept;
		ip daddr 127.0.0.0/8 iifname @bridges drop
		iifname @parts notrack
		iifname "{LOOPBACK_PAIR.in_end}" meta mark set 0 ct original zone set {LOOPBACK_PAIR.table}
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
	chain route_loopback {{
		type route hook output priority mangle; policy accept;
		ip6 daddr ::1 meta l4proto . th dport @loopback6 \
meta mark set meta mark | {LOOPBACK_MARK:#x}
	}}
	chain output {{
		type nat hook output priority -105; policy accept;
		goto translate
	}}
	chain translate {{
		dnat ip to ip daddr . meta l4proto . th dport map @published4
		dnat ip6 to ip6 daddr . meta l4proto . th dport map @published6
		meta nfproto ipv4 fib daddr type local dnat ip to meta l4proto . th dport map @everywhere4
		meta nfproto ipv6 fib daddr type local dnat ip6 to meta l4proto . th dport map @everywhere6
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat - 5; policy accept;
		oifname "{LOOPBACK_PAIR.out_end}" snat ip6 to {LOOPBACK_PAIR.source}
		oifname @bridges ip saddr 127.0.0.0/8 masquerade
		oifname @bridges ip6 saddr {LOOPBACK_PAIR.source} masquerade
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
		iifname != @bridges oifname != @bridges accept
		ct state established goto accepted
		iifname . oifname @same_bridge goto accepted
		iifname @internal drop
		oifname @internal drop
		ct state related goto accepted
		oifname @bridges ct status dnat goto accepted
		iifname "{LOOPBACK_PAIR.in_end}" goto accepted
		oifname @bridges goto inbound
		oifname @uplinks goto accepted
		meta oifkind "bridge" ct status dnat accept
		meta oifkind "bridge" drop
		goto accepted
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
	chain forward {{
		type filter hook forward priority filter - 10; policy accept;
		iifname . oifname @joints meta mark & {TRANSLATED_MARK:#x} == 0 drop
		iifname . oifname @joints ether saddr set iifname map @joint_macs
		iifname @closed oifname @closed ether type {{ ip, ip6 }} \
meta mark & {TRANSLATED_MARK:#x} == 0 drop
	}}
}}
"""


def render_ruleset(
    networks: Iterable[Network], endpoints: Iterable[Endpoint], uplinks: Iterable[str]
) -> str:
    """Return all of it for these networks and their endpoints, replacing what is there.

    One transaction, whatever was there before.
    """
    by_id = {network.id: network for network in networks}
    elements = [render_network(network) for network in by_id.values()]
    for endpoint in endpoints:
        if endpoint.attachment is not None:
            elements.append(render_join(endpoint, by_id[endpoint.network_id]))
        elements.append(render_bindings(endpoint.id, endpoint.bindings))
    return f"{render_no_ruleset()}{_BASE}{render_uplinks(uplinks)}{''.join(elements)}"


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


def render_bindings(endpoint_id: str, bindings: Iterable[PortBinding]) -> str:
    """Return the elements that publish an endpoint's ports."""
    return _add(_binding_elements(bindings), _endpoint_comment(endpoint_id))


def render_no_bindings(bindings: Iterable[PortBinding]) -> str:
    """Return the text that takes them out again."""
    return _delete(_binding_elements(bindings))


# An element is the name of its set or map with table, the key, and a map's value or "".
_Element = tuple[str, str, str]


def _network_elements(network: Network) -> Iterator[_Element]:
    bridge = _quote(network.bridge_name)
    options = network.options
    yield f"{TABLE} bridges", bridge, ""
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
    yield f"{TABLE} parts", bridge, ""
    yield f"{TABLE} same_bridge", f"{bridge} . {bridge}", ""
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
    for pool in network.pools:
        if pool.subnet.version != version or pool.subnet.prefixlen == 0:
            continue  # length 0 is the null address manager's: no subnet at all
        yield f"{TABLE} home{version}", f"{pool.subnet} . {bridge}", ""
        if network.options.masquerade and network.forwards(version) and mode.translates:
            if source is None:
                yield f"{TABLE} masquerade{version}", str(pool.subnet), ""
            else:
                yield f"{TABLE} source{version}", str(pool.subnet), str(source)


def _join_elements(endpoint: Endpoint, network: Network) -> Iterator[_Element]:
    if not network.options.icc:
        yield f"{BRIDGE_TABLE} closed", _quote(host_end_name(endpoint.id)), ""


def _binding_elements(bindings: Iterable[PortBinding]) -> Iterator[_Element]:
    opened = set()
    for binding in bindings:
        version = binding.container_ip.version
        protocol = str(binding.protocol)
        target = f"{binding.container_ip} . {binding.container_port}"
        opening = f"{binding.container_ip} . {protocol} . {binding.container_port}"
        if opening not in opened:  # one container port can be published more than once
            opened.add(opening)
            yield f"{TABLE} open{version}", opening, ""
        if binding.host is None:
            continue
        place = f"{protocol} . {binding.host.port}"
        if binding.host.ip.is_unspecified:
            yield f"{TABLE} everywhere{version}", place, target
        else:
            yield f"{TABLE} published{version}", f"{binding.host.ip} . {place}", target
        if _is_on_loopback6(binding.host.ip):
            yield f"{TABLE} loopback6", place, ""


def _is_on_loopback6(ip: IPAddress) -> bool:
    return isinstance(ip, IPv6Address) and (ip.is_unspecified or ip.is_loopback)


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
    return "".join(f"delete element {name} {{ {key} }}\n" for name, key, _ in elements)


def _quote(ifname: str) -> str:
    return f'"{ifname}"'
