"""Frames and packets as bytes, right or wrong as the caller wants them; sends nothing.

Addresses are texts, as in `site.py`; a packet is of the family of its addresses. Checksums are
right, so that what a host drops it drops for another reason.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

ARP, IPV4, IPV6, VLAN, SERVICE_VLAN = 0x0806, 0x0800, 0x86DD, 0x8100, 0x88A8
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
SYN, RST, PSH, ACK = 0x02, 0x04, 0x08, 0x10
BROADCAST = "ff:ff:ff:ff:ff:ff"
ALL_NODES, ALL_ROUTERS, ALL_MLD_ROUTERS = "ff02::1", "ff02::2", "ff02::16"
REQUEST, REPLY = 1, 2


def mac_bytes(mac: str) -> bytes:
    """Return a MAC address as it is on the wire."""
    return bytes.fromhex(mac.replace(":", ""))


def multicast_mac(group: str) -> str:
    """Return the MAC address of an IPv6 group."""
    return "33:33:" + ip_address(group).packed[-4:].hex(":")


def link_local(mac: str) -> str:
    """Return the link-local address that an interface makes of its MAC address."""
    raw = mac_bytes(mac)
    return str(
        IPv6Address(b"\xfe\x80" + bytes(6) + bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:])
    )


def ethernet(target: str, source: str, ethertype: int, payload: bytes) -> bytes:
    """Return a frame."""
    return mac_bytes(target) + mac_bytes(source) + struct.pack("!H", ethertype) + payload


def carry(target: str, source: str, packet: bytes) -> bytes:
    """Return the frame that carries an IP packet."""
    return ethernet(target, source, IPV6 if packet[0] >> 4 == 6 else IPV4, packet)


def tagged(frame: bytes, *tags: tuple[int, int]) -> bytes:
    """Return a frame with VLAN tags, the outer one first: EtherType and number of each."""
    inside = b"".join(struct.pack("!HH", *tag) for tag in tags)
    return frame[:12] + inside + frame[12:]


def length_framed(target: str, source: str, payload: bytes) -> bytes:
    """Return a frame of IEEE 802.3, with a length in place of an EtherType."""
    return ethernet(target, source, len(payload), payload)


def ip(source: str, target: str, protocol: int, payload: bytes, *, hops: int = 64) -> bytes:
    """Return an IP packet."""
    here, there = ip_address(source).packed, ip_address(target).packed
    if len(here) == 16:
        head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops)
        return head + here + there + payload
    head = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(payload), 0, 0, hops, protocol)
    return head + _checksum(head + bytes(2) + here + there) + here + there + payload


def udp(
    source: str, sport: int, target: str, dport: int, data: bytes = b"", *, hops: int = 64
) -> bytes:
    """Return a packet with a datagram."""
    head = struct.pack("!HHH", sport, dport, 8 + len(data))
    check = _transport_checksum(source, target, UDP, head + bytes(2) + data)
    check = check if any(check) else b"\xff\xff"  # nothing but zeros means none
    return ip(source, target, UDP, head + check + data, hops=hops)


def tcp(
    source: str,
    sport: int,
    target: str,
    dport: int,
    flags: int,
    *,
    data: bytes = b"",
    sequence: int = 1000,
    acknowledged: int = 0,
) -> bytes:
    """Return a packet with a TCP segment."""
    head = struct.pack("!HHIIBBH", sport, dport, sequence, acknowledged, 5 << 4, flags, 65535)
    check = _transport_checksum(source, target, TCP, head + bytes(4) + data)
    return ip(source, target, TCP, head + check + bytes(2) + data)


def ping(source: str, target: str, data: bytes = b"", *, hops: int = 64) -> bytes:
    """Return an echo request."""
    if ":" in source:
        return icmpv6(source, target, 128, struct.pack("!HH", 7, 1) + data, hops=hops)
    head, rest = struct.pack("!BB", 8, 0), struct.pack("!HH", 7, 1) + data
    return ip(source, target, ICMP, head + _checksum(head + bytes(2) + rest) + rest, hops=hops)


def icmpv6(
    source: str, target: str, kind: int, body: bytes, *, code: int = 0, hops: int = 255
) -> bytes:
    """Return an ICMPv6 message; `body` begins behind the checksum."""
    head = struct.pack("!BB", kind, code)
    check = _transport_checksum(source, target, ICMPV6, head + bytes(2) + body)
    return ip(source, target, ICMPV6, head + check + body, hops=hops)


def icmp(source: str, target: str, kind: int, body: bytes, *, code: int = 0) -> bytes:
    """Return an ICMP message of IPv4; `body` begins behind the checksum."""
    head = struct.pack("!BB", kind, code)
    return ip(source, target, ICMP, head + _checksum(head + bytes(2) + body) + body)


def arp(
    operation: int, mac: str, address: str, target_mac: str, target: str, *, trailer: bytes = b""
) -> bytes:
    """Return an ARP packet for the payload of a frame; the trailer is padding that bridges pass."""
    return b"".join(
        (
            struct.pack("!HHBBH", 1, IPV4, 6, 4, operation),
            mac_bytes(mac),
            ip_address(address).packed,
            mac_bytes(target_mac),
            ip_address(target).packed,
            trailer,
        )
    )


def neighbour_advertisement(
    source: str, address: str, mac: str, target: str = ALL_NODES, mark: bytes = b""
) -> bytes:
    """Return a neighbour advertisement that overrides what is known."""
    options = b"\x02\x01" + mac_bytes(mac) + _nonce(mark)
    body = struct.pack("!I", 0x20000000) + ip_address(address).packed + options
    return icmpv6(source, target, 136, body)


def neighbour_solicitation(
    source: str, address: str, mac: str, target: str, mark: bytes = b""
) -> bytes:
    """Return a neighbour solicitation that tells the asker's MAC address, if it has an address."""
    own = b"" if source == "::" else b"\x01\x01" + mac_bytes(mac)
    return icmpv6(source, target, 135, bytes(4) + ip_address(address).packed + own + _nonce(mark))


def router_advertisement(source: str, mac: str, prefix: str, mark: bytes = b"") -> bytes:
    """Return a router advertisement of the prefix, a /64."""
    head = struct.pack("!BBHII", 64, 0, 1800, 0, 0)
    option = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + ip_address(prefix).packed
    return icmpv6(
        source, ALL_NODES, 134, head + option + b"\x01\x01" + mac_bytes(mac) + _nonce(mark)
    )


def redirect(source: str, target: str, about: str, via: str, mark: bytes = b"") -> bytes:
    """Return a redirect for the family: what is for `about` is to go via another."""
    if ":" in source:
        body = bytes(4) + ip_address(via).packed + ip_address(about).packed + _nonce(mark)
        return icmpv6(source, target, 137, body)
    inner = udp(target, 4000, about, 4000, mark)
    return icmp(source, target, 5, ip_address(via).packed + inner, code=1)


def listener_report(source: str, group: str, mark: bytes = b"") -> bytes:
    """Return a multicast listener report (MLDv2) of one group; the mark is auxiliary data."""
    aux = mark.ljust((len(mark) + 3) // 4 * 4, b"\0")
    record = struct.pack("!BBH", 4, len(aux) // 4, 0) + ip_address(group).packed + aux
    body = struct.pack("!BB", 143, 0), struct.pack("!HH", 0, 1) + record
    check = _transport_checksum(source, ALL_MLD_ROUTERS, ICMPV6, body[0] + bytes(2) + body[1])
    option = bytes([ICMPV6, 0, 5, 2, 0, 0, 1, 0])  # router alert
    return ip(source, ALL_MLD_ROUTERS, 0, option + body[0] + check + body[1], hops=1)


def behind_options(packet: bytes) -> bytes:
    """Return an IPv6 packet with a header of options in front of what it carries."""
    length = struct.pack("!H", len(packet) - 40 + 8)
    head = packet[:4] + length + bytes([60]) + packet[7:40]
    return head + bytes([packet[6], 0, 1, 4, 0, 0, 0, 0]) + packet[40:]


def router_solicitation(source: str, mac: str, mark: bytes = b"") -> bytes:
    """Return a router solicitation."""
    body = bytes(4) + b"\x01\x01" + mac_bytes(mac) + _nonce(mark)
    return icmpv6(source, ALL_ROUTERS, 133, body)


def dhcp(message: int, mac: str, offered: str, server: str, mark: bytes = b"") -> bytes:
    """Return the payload of a DHCP message: 1 asks for a server, 2 offers an address."""
    fixed = struct.pack(
        "!BBBBIHH4s4s4s4s16s64s128s",
        *(1 if message == 1 else 2, 1, 6, 0, 0x70796E65, 0, 0x8000),
        *(bytes(4), ip_address(offered).packed, ip_address(server).packed, bytes(4)),
        *(mac_bytes(mac), mark, b""),
    )
    return fixed + bytes.fromhex("63825363") + bytes([53, 1, message, 255])


def dhcp6(message: int, mark: bytes = b"") -> bytes:
    """Return the payload of a DHCPv6 message: 1 solicits, 2 advertises."""
    return bytes([message, 1, 2, 3]) + struct.pack("!HH", 1, len(mark)) + mark


def bpdu(source: str, mark: bytes = b"") -> bytes:
    """Return a frame of the spanning tree protocol, by which a bridge claims to be the root."""
    body = bytes.fromhex("424203 0000 00 00 0000000000000000 00000000 0000000000000000 8001")
    body += struct.pack("!HHHH", 0, 20 << 8, 2 << 8, 15 << 8)
    return length_framed("01:80:c2:00:00:00", source, body + mark)


def is_error(frame: bytes) -> bool:
    """Tell whether a frame without tags is an ICMP error, which quotes another packet."""
    if (frame[12], frame[13]) == (0x08, 0x00):
        return frame[23] == ICMP and frame[34] in {3, 4, 11, 12}
    return (frame[12], frame[13]) == (0x86, 0xDD) and frame[20] == ICMPV6 and frame[54] < 128


def is_ping(frame: bytes) -> bool:
    """Tell whether a frame without tags is an echo request of IPv4."""
    return (frame[12], frame[13], frame[23], frame[34]) == (0x08, 0x00, ICMP, 8)


@dataclass(frozen=True)
class Segment:
    """What a frame says of TCP."""

    ports: tuple[int, int]
    sequence: int
    flags: int


def read_tcp(frame: bytes) -> Segment | None:
    """Return the TCP segment of a frame with IPv4 and no tags, None if it is another."""
    if (frame[12], frame[13]) != (0x08, 0x00) or frame[23] != TCP:
        return None
    sport, dport, sequence, _, _, flags = struct.unpack_from("!HHIIBB", frame, 34)
    return Segment((sport, dport), sequence, flags)


def _nonce(mark: bytes) -> bytes:
    """Return a nonce option (RFC 3971), by which a neighbour discovery message is recognised."""
    if not mark:
        return b""
    size = (2 + len(mark) + 7) // 8
    return struct.pack("!BB", 14, size) + mark.ljust(8 * size - 2, b"\0")


def _checksum(data: bytes) -> bytes:
    """Return the internet checksum of data."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def _transport_checksum(source: str, target: str, protocol: int, segment: bytes) -> bytes:
    """Return the checksum of a segment with the pseudo header of its packet."""
    pseudo = ip_address(source).packed + ip_address(target).packed
    return _checksum(pseudo + struct.pack("!II", len(segment), protocol) + segment)
