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

from driver.firewall.base import read_base
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

# Bits of the packet mark that others have to know; `base.nft` says what each is for.
ACCEPTED_MARK = 0x20000000
FORWARD_PRIORITY = -10  # of the chain that sets it, which is nft's "filter - 10"


def render_ruleset(
    networks: Iterable[Network], endpoints: Iterable[Endpoint], uplinks: Iterable[str]
) -> str:
    """Return all of it for these networks and their endpoints, replacing what is there.

    One transaction, whatever was there before.
    """
    elements = "".join(render_elements(networks, endpoints))
    return f"{render_no_ruleset()}{read_base()}{render_uplinks(uplinks)}{elements}"


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
