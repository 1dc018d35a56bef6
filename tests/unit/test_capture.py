"""What `pynet capture` says of a packet, and what it refuses before it takes any."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.errors import InvalidRequest
from plugin.capture.describe import describe
from plugin.capture.filters import compile_filter
from plugin.capture.taps import Packet, Place

if TYPE_CHECKING:
    from tests.unit.command import Run

PLACE = Place("web:eth0", "in the sandbox of web", "/run/none", 2)
TUNNEL = Place("host:tun0", "uplink", None, 3, is_raw=True)
ETHERNET = b"\x02" + bytes(5) + b"\x06" + bytes(5)
DB = b"\x02db\0"


def ethernet(kind: int, above: bytes) -> bytes:
    return ETHERNET + kind.to_bytes(2, "big") + above


def ipv4(protocol: int, above: bytes, fragment: int = 0) -> bytes:
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(above), 0, fragment, 64, protocol, 0)
    return head + ip_address("10.1.0.2").packed + ip_address("10.1.0.1").packed + above


def ipv6(protocol: int, above: bytes) -> bytes:
    head = struct.pack(">IHBB", 6 << 28, len(above), protocol, 64)
    return head + ip_address("fd00::2").packed + ip_address("fd00::1").packed + above


def tcp(flags: int) -> bytes:
    return struct.pack(">HHIIBBHHH", 40112, 80, 0, 0, 0x50, flags, 0, 0, 0)


def udp(port: int, above: bytes) -> bytes:
    return struct.pack(">HHHH", 40112, port, 8 + len(above), 0) + above


def dns(flags: int, answers: int, name: bytes, kind: int, *records: bytes) -> bytes:
    head = struct.pack(">HHHHHH", 7, flags, 1, answers, 0, 0)
    return head + name + struct.pack(">HH", kind, 1) + b"".join(records)


def record(kind: int, value: bytes) -> bytes:
    return b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 60, len(value)) + value


def said(data: bytes, place: Place = PLACE) -> str:
    return str(describe(Packet(0, place, True, data, len(data))))  # noqa: FBT003


WAY = "10.1.0.2:40112 > 10.1.0.1"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (ethernet(0x0800, ipv4(6, tcp(2))), f"tcp {WAY}:80  SYN"),
        (ethernet(0x0800, ipv4(6, tcp(0x12))), f"tcp {WAY}:80  SYN ACK"),
        (ethernet(0x86DD, ipv6(6, tcp(4))), "tcp [fd00::2]:40112 > [fd00::1]:80  RST"),
        (
            ethernet(0x86DD, ipv6(0, b"\x06\0" + bytes(6) + tcp(1))),
            "tcp [fd00::2]:40112 > [fd00::1]:80  FIN",
        ),
        (ethernet(0x0800, ipv4(17, udp(9, b"secret"))), f"udp {WAY}:9  6 bytes"),
        (ethernet(0x0800, ipv4(17, udp(53, dns(0x100, 0, DB, 28)))), f"udp {WAY}:53  AAAA? db."),
        (
            ethernet(
                0x0800, ipv4(17, udp(53, dns(0x8180, 1, DB, 1, record(1, b"\x0a\x01\0\x03"))))
            ),
            f"udp {WAY}:53  A db. 10.1.0.3",
        ),
        (
            ethernet(0x0800, ipv4(17, udp(53, dns(0x8183, 0, DB, 1)))),
            f"udp {WAY}:53  A db. NXDomain",
        ),
        (ethernet(0x0800, ipv4(1, b"\x08\0\0\0")), "icmp 10.1.0.2 > 10.1.0.1  echo request"),
        (
            ethernet(0x0800, ipv4(1, b"\x03\x0d\0\0")),
            "icmp 10.1.0.2 > 10.1.0.1  administratively prohibited",
        ),
        (
            ethernet(0x86DD, ipv6(58, b"\x87\0\0\0")),
            "icmp6 fd00::2 > fd00::1  neighbour solicitation",
        ),
        (
            ethernet(0x0800, ipv4(17, b"rest", fragment=8)),
            "udp 10.1.0.2 > 10.1.0.1  later fragment",
        ),
        (ethernet(0x8100, b"\0\x07\x08\0" + ipv4(6, tcp(2))), f"tcp {WAY}:80  SYN"),
        (
            ethernet(
                0x0806,
                b"\0\x01\x08\0\x06\x04\0\x01"
                + bytes(6)
                + b"\x0a\x01\0\x02"
                + bytes(6)
                + b"\x0a\x01\0\x01",
            ),
            "arp who has 10.1.0.1? tell 10.1.0.2",
        ),
        (ethernet(0x88B5, b"x"), "ethertype 0x88b5 06:00:00:00:00:00 > 02:00:00:00:00:00"),
    ],
)
def test_a_packet_is_a_line(data: bytes, expected: str) -> None:
    assert said(data) == expected


def test_a_tunnel_has_no_ethernet_header() -> None:
    assert said(ipv4(6, tcp(2)), TUNNEL) == f"tcp {WAY}:80  SYN"


@given(st.binary(max_size=200), st.sampled_from([0x0800, 0x86DD, 0x0806, 0x8100, 0x1234]))
def test_whatever_comes_is_described(data: bytes, kind: int) -> None:
    assert said(ethernet(kind, data))
    assert said(data)
    assert said(data, TUNNEL)


@given(st.binary(max_size=100))
def test_whatever_is_asked_of_dns_is_described(data: bytes) -> None:
    assert said(ethernet(0x0800, ipv4(17, udp(53, data))))


def test_a_name_that_leads_to_itself_ends() -> None:
    question = ethernet(0x0800, ipv4(17, udp(53, dns(0, 0, b"\xc0\x0c", 1))))
    assert said(question).startswith("malformed")


def test_a_payload_is_never_shown() -> None:
    for above in (ipv4(17, udp(9, b"secret")), ipv4(6, tcp(0x18) + b"secret"), ipv4(47, b"secret")):
        assert "secret" not in said(ethernet(0x0800, above))


def test_a_wrong_filter_is_refused_in_libpcaps_words() -> None:
    with pytest.raises(InvalidRequest, match=r"compile the filter 'tcp prt 80': .*syntax error"):
        compile_filter("tcp prt 80", 128)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["web", "--size", "100M"], "--size and --files are for --write"),
        (["web", "-w", "-", "--size", "1M"], "need a file to write"),
        (["web", "-w", "x", "--files", "2"], "--files needs --size"),
        (["web", "-w", "x", "--json"], "one of --write and --json"),
        (["web", "--for", "nan"], "nan is no time that could be waited"),
        (["web", "--for", "inf"], "inf is no time that could be waited"),
        (["web", "-w", "x", "--size", "1.5M"], "'1.5M' is no size such as 100M"),
        (["web", "-w", "x", "--size", "0"], "'0' is no size"),
        (["web", "--count", "0"], "is not in the range"),
        (["web", "--where", "nowhere"], "is not one of"),
        (["host", "--where", "pair"], "the host has no hops"),
        ([], "Missing argument"),
    ],
)
def test_what_cannot_be_meant_is_refused(run: Run, words: list[str], reason: str) -> None:
    refused = run("capture", *words)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert reason in refused.stderr


def test_an_unknown_name_is_told_with_the_nearest(run: Run) -> None:
    refused = run("capture", "wbe")
    assert refused.exit_code == 1
    assert "no container, network or namespace is called wbe" in refused.stderr
    assert "did you mean web?" in refused.stderr
