"""Put a packet into a line: addresses, ports, flags, ARP, ICMP and the names that DNS is asked for.

No payload besides: what there is in a packet is for Wireshark.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plugin.capture.taps import Packet

_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD  # ETH_P_…
_VLANS = frozenset({0x8100, 0x88A8})
_ICMP, _TCP, _UDP, _ICMPV6, _SCTP = 1, 6, 17, 58, 132
_EXTENSIONS = frozenset({0, 43, 60})  # of IPv6 with a length: hop-by-hop, routing, destination
_FRAGMENT = 44
_PROTOCOLS = {_ICMP: "icmp", _TCP: "tcp", _UDP: "udp", _ICMPV6: "icmp6", _SCTP: "sctp", 2: "igmp"}
_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")
_DNS = frozenset({53, 5353})
_RECORDS = {
    1: "A",
    2: "NS",
    5: "CNAME",
    6: "SOA",
    12: "PTR",
    15: "MX",
    16: "TXT",
    28: "AAAA",
    33: "SRV",
}
_RCODES = {0: "", 1: "FormErr", 2: "ServFail", 3: "NXDomain", 5: "Refused"}
_ICMP_WORDS = {
    (8, 0): "echo request",
    (0, 0): "echo reply",
    (3, 0): "network unreachable",
    (3, 1): "host unreachable",
    (3, 3): "port unreachable",
    (3, 4): "fragmentation needed",
    (3, 13): "administratively prohibited",
    (5, 1): "redirect",
    (11, 0): "time exceeded",
}
_ICMPV6_WORDS = {
    1: "unreachable",
    2: "packet too big",
    3: "time exceeded",
    128: "echo request",
    129: "echo reply",
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbour solicitation",
    136: "neighbour advertisement",
    143: "multicast listener report",
}
_MOST_LABELS = 40  # of a DNS name: a pointer may lead in a circle


@dataclass(frozen=True, slots=True)
class Description:
    """What a line says of a packet; ports are None where there are none."""

    protocol: str
    source: str = ""
    destination: str = ""
    source_port: int | None = None
    destination_port: int | None = None
    text: str = ""

    def __str__(self) -> str:
        if not self.source:
            return f"{self.protocol} {self.text}".rstrip()
        where = f"{_place(self.source, self.source_port)} > " + _place(
            self.destination, self.destination_port
        )
        return f"{self.protocol} {where}  {self.text}".rstrip()


def describe(packet: Packet) -> Description:
    """Return what is known of a packet; one that is cut off or malformed is described as far."""
    try:
        return _describe(packet.data, is_raw=packet.place.is_raw)
    except (struct.error, IndexError, ValueError):
        return Description("malformed", text=f"{packet.length} bytes")


def identify(packet: Packet) -> bytes:
    """Return what stays of a packet from hop to hop, whatever translates its addresses and ports.

    Of TCP its sequence numbers and flags, of others what is behind their header.
    """
    try:
        network = packet.data if packet.place.is_raw else _above_ethernet(packet.data)[1]
        length = (network[0] & 15) * 4 if network[0] >> 4 == 4 else 40  # noqa: PLR2004
        return identify_headers(network[:length], network[length : length + 20])
    except IndexError:
        return packet.data


def identify_headers(network: bytes, transport: bytes) -> bytes:
    """Return the same of headers: the network header, and 20 bytes from the transport header on."""
    if len(network) < 20:  # noqa: PLR2004
        return network + transport
    protocol = network[9] if network[0] >> 4 == 4 else network[6]  # noqa: PLR2004
    if protocol == _TCP:
        return bytes([protocol]) + transport[4:14]
    if protocol == _UDP:
        return bytes([protocol]) + transport[4:6] + transport[8:20]
    return bytes([protocol]) + transport[:2] + transport[4:20]


def _describe(data: bytes, *, is_raw: bool) -> Description:
    if is_raw:
        return _of_ip(data)
    kind, above = _above_ethernet(data)
    if kind == _ARP:
        return _of_arp(above)
    if kind in {_IPV4, _IPV6}:
        return _of_ip(above)
    return Description(f"ethertype {kind:#06x}", text=f"{_mac(data[6:12])} > {_mac(data[:6])}")


def _above_ethernet(data: bytes) -> tuple[int, bytes]:
    """Return the protocol above Ethernet and VLAN tags, and what is of it."""
    kind, offset = int.from_bytes(data[12:14], "big"), 14
    while kind in _VLANS:
        kind, offset = int.from_bytes(data[offset + 2 : offset + 4], "big"), offset + 4
    return kind, data[offset:]


def _of_arp(data: bytes) -> Description:
    operation, mac, source, _, target = struct.unpack_from(">6xH6s4s6s4s", data)
    if operation == 1:
        return Description("arp", text=f"who has {IPv4Address(target)}? tell {IPv4Address(source)}")
    return Description("arp", text=f"{IPv4Address(source)} is at {_mac(mac)}")


def _of_ip(data: bytes) -> Description:
    if data[0] >> 4 == 4:  # noqa: PLR2004
        protocol, offset = data[9], (data[0] & 15) * 4
        source, destination = str(IPv4Address(data[12:16])), str(IPv4Address(data[16:20]))
        is_later = bool(int.from_bytes(data[6:8], "big") & 0x1FFF)
    else:
        protocol, offset = data[6], 40
        source, destination = str(IPv6Address(data[8:24])), str(IPv6Address(data[24:40]))
        is_later = False
        while protocol in _EXTENSIONS:
            protocol, offset = data[offset], offset + 8 + data[offset + 1] * 8
        if protocol == _FRAGMENT:
            is_later = bool(int.from_bytes(data[offset + 2 : offset + 4], "big") & 0xFFF8)
            protocol, offset = data[offset], offset + 8
    word = _PROTOCOLS.get(protocol, f"protocol {protocol}")
    if is_later:
        return Description(word, source, destination, text="later fragment")
    above = data[offset:]
    if protocol in {_TCP, _UDP, _SCTP}:
        ports = struct.unpack_from(">HH", above)
        text = _of_transport(protocol, above, ports)
        return Description(word, source, destination, ports[0], ports[1], text)
    return Description(word, source, destination, text=_of_icmp(protocol, above))


def _of_transport(protocol: int, above: bytes, ports: tuple[int, int]) -> str:
    if protocol == _TCP:
        flags = above[13]
        set_flags = [name for bit, name in enumerate(_FLAGS) if flags & 1 << bit]
        return " ".join(set_flags)
    if protocol == _UDP and not _DNS.isdisjoint(ports):
        return _of_dns(above[8:])
    return f"{int.from_bytes(above[4:6], 'big') - 8} bytes" if protocol == _UDP else ""


def _of_icmp(protocol: int, above: bytes) -> str:
    if protocol == _ICMP:
        kind, code = above[0], above[1]
        return _ICMP_WORDS.get((kind, code), f"type {kind} code {code}")
    if protocol == _ICMPV6:
        return _ICMPV6_WORDS.get(above[0], f"type {above[0]} code {above[1]}")
    return ""


def _of_dns(data: bytes) -> str:
    """Return the question of a DNS message, `A? db.`, and how it was answered."""
    flags, questions, answers = struct.unpack_from(">2xHHH", data)
    if not questions:
        return f"{answers} answers"
    name, offset = _dns_name(data, 12)
    (kind,) = struct.unpack_from(">H", data, offset)
    record = _RECORDS.get(kind, f"type {kind}")
    if not flags & 0x8000:
        return f"{record}? {name}"
    code = flags & 15
    failure = _RCODES.get(code, f"code {code}")
    found = ", ".join(_dns_addresses(data, offset + 4, answers))
    return f"{record} {name} {failure or found or f'{answers} answers'}"


def _dns_addresses(data: bytes, offset: int, answers: int) -> list[str]:
    found = []
    for _ in range(min(answers, 8)):
        _, offset = _dns_name(data, offset)
        kind, length = struct.unpack_from(">H6xH", data, offset)
        value = data[offset + 10 : offset + 10 + length]
        if kind == 1:
            found.append(str(IPv4Address(value)))
        elif kind == 28:  # noqa: PLR2004
            found.append(str(IPv6Address(value)))
        offset += 10 + length
    return found


def _dns_name(data: bytes, offset: int) -> tuple[str, int]:
    """Return a name and where it ends; RFC 1035, 4.1.4."""
    labels: list[str] = []
    end = None
    for _ in range(_MOST_LABELS):
        length = data[offset]
        if length >= 0xC0:  # noqa: PLR2004
            end = end or offset + 2
            offset = int.from_bytes(data[offset : offset + 2], "big") & 0x3FFF
        elif not length:
            return ".".join(labels) + ".", end or offset + 1
        else:
            labels.append(data[offset + 1 : offset + 1 + length].decode(errors="replace"))
            offset += 1 + length
    raise ValueError("a name without an end")


def _place(address: str, port: int | None) -> str:
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _mac(value: bytes) -> str:
    return value.hex(":")
