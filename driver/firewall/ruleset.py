"""The set and map elements of networks, endpoints and port bindings; no I/O.

The chains are constant (`base.nft`). What grows with networks, endpoints and ports are set and map
elements, so that a packet's lookup and an update cost the same for one and for thousands.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from itertools import chain
from typing import TYPE_CHECKING

from driver.firewall.base import read_base
from driver.firewall.elements import (
    Bits,
    Change,
    Element,
    Family,
    Hardware,
    Interface,
    Part,
    SetName,
    Verb,
    Verdict,
    Version,
    add,
    delete,
    exchange,
    render_changes,
)
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

    from driver.firewall.elements import Changes
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

    One transaction of nft text, whatever was there before.
    """
    groups = (set_uplinks(uplinks), *list_changes(networks, endpoints))
    return f"{render_no_ruleset()}{read_base()}{''.join(map(render_changes, groups))}"


def render_no_ruleset() -> str:
    """Return the text that removes the tables, whether they exist or not."""
    return "".join(f"table {table} {{}}\ndelete table {table}\n" for table in TABLES)


def list_changes(networks: Iterable[Network], endpoints: Iterable[Endpoint]) -> tuple[Changes, ...]:
    """Return what these networks, their endpoints and ports add, each by itself."""
    by_id = {network.id: network for network in networks}
    groups = [add_network(network) for network in by_id.values()]
    for endpoint in endpoints:
        if endpoint.is_in_rules:
            groups.append(add_endpoint(endpoint, by_id[endpoint.network_id]))
        groups.append(add_bindings(endpoint.id, endpoint.bindings))
    return tuple(filter(None, groups))


def set_uplinks(names: Iterable[str]) -> Changes:
    """Return what makes these bridges the ones that lead out of the host."""
    uplinks = SetName(Family.INET, "uplinks")
    elements = (Element(uplinks, (Interface(name),)) for name in sorted(names))
    return (Change(Verb.FLUSH, uplinks), *add(elements, "uplink"))


def add_network(network: Network) -> Changes:
    """Return what adds a network's elements."""
    return add(_network_elements(network), _network_comment(network))


def delete_network(network: Network) -> Changes:
    """Return what takes the network's elements out again."""
    return delete(_network_elements(network))


def change_network(old: Network, new: Network, endpoints: Iterable[Endpoint]) -> Changes:
    """Return what brings a network, and its joined endpoints, to other options."""
    changes = exchange(_network_elements(old), _network_elements(new), _network_comment(new))
    for endpoint in endpoints:
        before, after = _endpoint_elements(endpoint, old), _endpoint_elements(endpoint, new)
        changes += exchange(before, after, _endpoint_comment(endpoint.id))
    return changes


def add_part(network: Network, number: int) -> Changes:
    """Return what adds the elements of an extra bridge of a network."""
    return add(_part_elements(network, number), _network_comment(network))


def delete_part(network: Network, number: int) -> Changes:
    """Return what takes them out again."""
    return delete(_part_elements(network, number))


def add_endpoint(endpoint: Endpoint, network: Network) -> Changes:
    """Return what adds an endpoint's elements when it joins."""
    return add(_endpoint_elements(endpoint, network), _endpoint_comment(endpoint.id))


def delete_endpoint(endpoint: Endpoint, network: Network) -> Changes:
    """Return what takes them out again."""
    return delete(_endpoint_elements(endpoint, network))


def change_endpoint(old: Endpoint, new: Endpoint, network: Network) -> Changes:
    """Return what brings a joined endpoint to other addresses."""
    before, after = _endpoint_elements(old, network), _endpoint_elements(new, network)
    return exchange(before, after, _endpoint_comment(new.id))


def add_bindings(endpoint_id: str, bindings: Iterable[PortBinding]) -> Changes:
    """Return what publishes an endpoint's ports."""
    return add(_binding_elements(bindings), _endpoint_comment(endpoint_id))


def delete_bindings(bindings: Iterable[PortBinding]) -> Changes:
    """Return what takes them out again."""
    return delete(_binding_elements(bindings))


def _inet(name: str, *key: Part, value: Verdict | tuple[Part, ...] | None = None) -> Element:
    return Element(SetName(Family.INET, name), key, value)


def _bridge(name: str, *key: Part, value: Verdict | tuple[Part, ...] | None = None) -> Element:
    return Element(SetName(Family.BRIDGE, name), key, value)


def _network_elements(network: Network) -> Iterator[Element]:
    bridge = Interface(network.bridge_name)
    options = network.options
    yield _inet("bridges", bridge)
    yield _inet("arrivals", bridge, value=Verdict("from_bridge" if network.shared else "from_port"))
    yield _inet("leaving", bridge, value=Verdict("confined" if options.internal else "outgoing"))
    entering = Verdict("drop_internal" if options.internal else "incoming")
    yield _inet("entering", bridge, value=entering)
    if options.icc:
        yield _inet("same_bridge", bridge, bridge)
    else:
        yield _inet("no_icc", bridge)
    if options.internal:
        yield _inet("internal", bridge)
    for interface in options.trusted_host_interfaces:
        yield _inet("trusted", Interface(interface), bridge)
    for version in (4, 6):
        if network.has_family(version):
            yield from _family_elements(network, version)
    for number in network.parts:
        yield from _part_elements(network, number)


def _part_elements(network: Network, number: int) -> Iterator[Element]:
    """Yield what an extra bridge adds, which the host sees behind br_netfilter only.

    Frames pass it untouched: everything is translated on the first bridge. Where containers may not
    talk to each other, the first bridge's end of the trunk is closed as theirs are, and the further
    one's is not: that way lead the host and all others.
    """
    bridge = Interface(network.bridge_at(number))
    trunk = Interface(network.trunk(number).host_end)
    yield _inet("bridges", bridge)
    yield _inet("arrivals", bridge, value=Verdict("from_part"))
    yield _inet("leaving", bridge, value=Verdict("confined"))
    yield _inet("entering", bridge, value=Verdict(None))
    yield _inet("same_bridge", bridge, bridge)
    for version in (4, 6):
        for subnet in network.subnets(version):
            yield _inet(f"home{version}", subnet, bridge)
    yield _bridge("trunks", trunk, trunk)
    yield _bridge("trunk_macs", trunk, value=(Hardware(network.bridge.mac),))
    if not network.options.icc:
        yield _bridge("closed", trunk)


def _family_elements(network: Network, version: int) -> Iterator[Element]:
    bridge, mode = Interface(network.bridge_name), network.options.gateway_mode(version)
    if mode is GatewayMode.NAT_UNPROTECTED:
        yield _inet("unprotected", bridge, Version(version))
    if mode is GatewayMode.ROUTED:
        yield _inet("routed", bridge, Version(version))
    source = network.options.source_address(version)
    for subnet in network.subnets(version):
        yield _inet(f"home{version}", subnet, bridge)
        if not network.shared:
            yield _inet(f"subnets{version}", subnet)
        if network.options.masquerade and network.forwards(version) and mode.translates:
            if source is None:
                yield _inet(f"masquerade{version}", subnet)
            else:
                yield _inet(f"source{version}", subnet, value=(source,))


def _endpoint_elements(endpoint: Endpoint, network: Network) -> Iterator[Element]:
    end, guard = Interface(host_end_name(endpoint.id)), guard_of(endpoint, network)
    also = network.options.guard_also + endpoint.options.guard_also
    if not network.options.icc:
        yield _bridge("closed", end)
    yield _bridge("guards", end, value=Verdict(str(guard)))
    addresses = (*(each.ip for each in endpoint.addresses), *also.ipv4, *also.ipv6)
    yield from _own_elements(end, (endpoint.mac, *also.macs), addresses, guard)
    if limit := connections_of(endpoint, network):
        for address in (each.ip for each in endpoint.addresses):
            counted = SetName(Family.INET, f"connections{address.version}")
            yield Element(counted, (address,), most=limit)


def _own_elements(
    end: Interface, macs: tuple[MacAddress, ...], addresses: tuple[IPAddress, ...], guard: Guard
) -> Iterator[Element]:
    """Yield what an endpoint may send with: each address with each MAC, once."""
    used = dict.fromkeys(macs, addresses)
    if guard is Guard.ADDRESS:
        used = {mac: (*addresses, derive_link_local(mac)) for mac in macs}
        for mac in used:
            yield _bridge("macs", end, Hardware(mac))
    for version in (4, 6):
        for mac, allowed in used.items():
            for address in dict.fromkeys(allowed):
                if address.version == version:
                    yield _bridge(f"own{version}", end, Hardware(mac), address)
    if guard is Guard.ADDRESS:
        for address in dict.fromkeys(chain.from_iterable(used.values())):
            if isinstance(address, IPv6Address):
                yield _bridge("targets6", end, Bits(address))


def _binding_elements(bindings: Iterable[PortBinding]) -> Iterator[Element]:
    opened = set()
    for binding in bindings:
        version, protocol, host = binding.container_ip.version, binding.protocol, binding.host
        target = binding.container_ip, binding.container_port
        opening = _inet(f"open{version}", binding.container_ip, protocol, binding.container_port)
        is_other_family = host is not None and host.ip.version != version
        if opening not in opened and not is_other_family:  # it can be published more than once
            opened.add(opening)
            yield opening
        if host is None:
            continue
        if binding.is_relayed:
            yield _inet(f"relayed{host.ip.version}", protocol, host.port)
        if not binding.is_translated:
            continue
        if host.ip.is_unspecified:
            yield _inet(f"everywhere{version}", protocol, host.port, value=target)
        else:
            yield _inet(f"published{version}", host.ip, protocol, host.port, value=target)


def _network_comment(network: Network) -> str:
    return f"network {short(network.id)}"


def _endpoint_comment(endpoint_id: str) -> str:
    return f"endpoint {short(endpoint_id)}"
