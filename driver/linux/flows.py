"""Count tracked connections: by published port and by address, from one listing of the kernel's.

Each takes 0.01 ms to read, so nobody asks who holds a lock, and nothing is converted that is only
compared: addresses are bytes. Of TCP those are open whose two sides have not both ended.
include/uapi/linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_tcp.h have the numbers.
"""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from driver.errors import KernelError
from driver.linux import sysctl
from driver.linux.nfnetlink import Connection, encode_attribute, parse_attributes
from driver.linux.tables import HEAD
from driver.model import Count, Protocol, Usage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from driver.model import PortBinding

TRACKED = "net.netfilter.nf_conntrack_count"

_GET = 0x101  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_ORIGINAL, _REPLY, _STATUS, _STATE = 1, 2, 3, 4  # CTA_TUPLE_…, CTA_STATUS, CTA_PROTOINFO
_COUNTED = (9, 10)  # CTA_COUNTERS_ORIG, CTA_COUNTERS_REPLY
_STATUS_MASK = 26  # CTA_STATUS_MASK
_TRANSLATED = (1 << 5).to_bytes(4, "big")  # IPS_DST_NAT
_ADDRESSES, _TRANSPORT = 1, 2  # CTA_TUPLE_…
_SOURCE, _DESTINATION = {4: 1, 16: 3}, {4: 2, 16: 4}  # CTA_IP_…, by the length of an address
_PROTOCOL, _FROM, _TO = 1, 2, 3  # CTA_PROTO_…
_TCP_STATE = 1  # CTA_PROTOINFO_TCP, and in it CTA_PROTOINFO_TCP_STATE
_OPEN = range(1, 6)  # TCP_CONNTRACK_SYN_SENT to _CLOSE_WAIT
_PACKETS, _BYTES = 1, 2  # CTA_COUNTERS_…
_LENGTHS: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 16}
_NUMBERS = {
    Protocol.TCP: socket.IPPROTO_TCP,
    Protocol.UDP: socket.IPPROTO_UDP,
    Protocol.SCTP: socket.IPPROTO_SCTP,
}


class Flow(NamedTuple):
    """A tracked connection: who began it to where, and the server that answers.

    The server is another than the destination where that was translated. `packets` and `bytes` are
    both directions', None while the kernel does not count them.
    """

    protocol: int
    source: bytes
    source_port: int
    destination: bytes
    port: int
    server: bytes
    server_port: int
    is_open: bool
    packets: int | None
    bytes: int | None


def read_flows() -> list[Flow]:
    """Return what the kernel tracks in the calling thread's namespace. Raises KernelError."""
    return [flow for body in _list(b"") for flow in _parse(body)]


def read_translated(most: int) -> list[Flow] | None:
    """Return what is led to another destination; older than 5.15, a kernel tells of all it tracks.

    None if those are more than `most`, or ten times as many are tracked: the kernel looks through
    them in a tenth of the time that it takes to read one. Raises KernelError.
    """
    if int(sysctl.read(TRACKED) or 0) > 10 * most:
        return None
    mask = encode_attribute(_STATUS_MASK, _TRANSLATED)
    bodies = _list(encode_attribute(_STATUS, _TRANSLATED) + mask)
    if len(bodies) > most:
        return None
    return [flow for body in bodies for flow in _parse(body)]


def _list(only: bytes) -> list[bytes]:
    try:
        with closing(Connection()) as tracking:
            return tracking.dump(_GET, HEAD.pack(socket.AF_UNSPEC, 0, 0) + only)
    except OSError as error:
        raise KernelError(f"list tracked connections: {error.strerror or error}") from error


def count_published(
    flows: Iterable[Flow], bindings: Collection[PortBinding]
) -> dict[PortBinding, Usage]:
    """Return what passes each published port that the kernel translates, also where it is none."""
    return {each: _use(some) for each, some in find_published(flows, bindings).items()}


def find_published(
    flows: Iterable[Flow], bindings: Collection[PortBinding]
) -> dict[PortBinding, list[Flow]]:
    """Return the connections of each published port that the kernel translates."""
    wanted: dict[tuple[int, int, bytes, int], list[PortBinding]] = {}
    for each in bindings:
        if each.host is not None and each.is_translated:
            server = each.container_ip.packed, each.container_port
            wanted.setdefault((_NUMBERS[each.protocol], each.host.port, *server), []).append(each)
    found: dict[PortBinding, list[Flow]] = {each: [] for some in wanted.values() for each in some}
    for flow in flows:
        if flow.server != flow.destination or flow.server_port != flow.port:
            for each in wanted.get((flow.protocol, flow.port, flow.server, flow.server_port), ()):
                host = each.host
                if host and (host.ip.is_unspecified or host.ip.packed == flow.destination):
                    found[each].append(flow)
    return found


def count_by_address(flows: Iterable[Flow], addresses: Collection[bytes]) -> Mapping[bytes, int]:
    """Return how many open connections each address has begun or answers."""
    found: Counter[bytes] = Counter()
    wanted = frozenset(addresses)
    for flow in flows:
        if flow.is_open:
            found.update({flow.source, flow.server} & wanted)
    return found


def _use(flows: Collection[Flow]) -> Usage:
    connections = sum(flow.is_open for flow in flows)
    counted = [(flow.packets, flow.bytes) for flow in flows]
    packets = sum(each for each, _ in counted if each is not None)
    octets = sum(each for _, each in counted if each is not None)
    is_counted = not any(each is None for each, _ in counted)
    return Usage(connections, Count(packets, octets) if is_counted else None)


def _parse(body: bytes) -> Iterator[Flow]:
    """Yield the flow of a message; none if it has no ports, as ICMP."""
    length = _LENGTHS[body[0]]
    parts = parse_attributes(body, HEAD.size)
    original, reply = parse_attributes(parts[_ORIGINAL]), parse_attributes(parts[_REPLY])
    transport, back = parse_attributes(original[_TRANSPORT]), parse_attributes(reply[_TRANSPORT])
    if _TO not in transport:
        return
    ends = parse_attributes(original[_ADDRESSES])
    counted = [parse_attributes(parts[each]) for each in _COUNTED if each in parts]
    yield Flow(
        protocol=transport[_PROTOCOL][0],
        source=ends[_SOURCE[length]],
        source_port=int.from_bytes(transport[_FROM], "big"),
        destination=ends[_DESTINATION[length]],
        port=int.from_bytes(transport[_TO], "big"),
        server=parse_attributes(reply[_ADDRESSES])[_SOURCE[length]],
        server_port=int.from_bytes(back[_FROM], "big"),
        is_open=_is_open(parts.get(_STATE)),
        packets=_sum(counted, _PACKETS),
        bytes=_sum(counted, _BYTES),
    )


def _is_open(state: bytes | None) -> bool:
    if state is None:  # UDP has none
        return True
    tcp = parse_attributes(state).get(_TCP_STATE)
    return tcp is None or parse_attributes(tcp)[_TCP_STATE][0] in _OPEN


def _sum(counted: Collection[Mapping[int, bytes]], kind: int) -> int | None:
    if not counted:
        return None
    return sum(int.from_bytes(each.get(kind, b""), "big") for each in counted)
