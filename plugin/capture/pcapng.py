"""Write packets as pcapng, the format that Wireshark and tcpdump read (draft-ietf-opsawg-pcapng).

Three kinds of blocks. Each place that packets are taken at is an interface of the file, with its
name, and a packet may have a comment. The packages that write pcapng are not kept any more
(python-pcapng, dpkt) or large (scapy: 24 MB).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from plugin.capture.taps import Packet, Place

# Block types, and then option codes, of the draft.
_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_END, _COMMENT = 0, 1
_APPLICATION = 4  # shb_userappl
_NAME, _DESCRIPTION, _RESOLUTION, _FILTER = 2, 3, 9, 11  # if_…
_FLAGS = 2  # epb_flags
_IN, _OUT = 1, 2  # bits of epb_flags: inbound, outbound
_MAGIC = 0x1A2B3C4D
_UNKNOWN_LENGTH = 0xFFFFFFFFFFFFFFFF
_NANOSECONDS = b"\x09"  # 10 to the minus 9
_PCAP_TEXT = b"\x00"  # a filter in libpcap's language follows
LINK_ETHERNET, LINK_RAW = 1, 101  # LINKTYPE_…
_OPTION = struct.Struct("=HH")
_LENGTH = struct.Struct("=I")
_HEAD = struct.Struct("=II")
_DESCRIBED = struct.Struct("=HHI")
_CAPTURED = struct.Struct("=IIIII")


class Writer:
    """Writes a section: its head at once, an interface when its first packet comes."""

    def __init__(self, output: BinaryIO, program: str, filter_text: str, length: int) -> None:
        self._output = output
        self._filter = filter_text
        self._length = length
        self._interfaces: dict[Place, int] = {}
        self.written = 0
        head = struct.pack("=IHHQ", _MAGIC, 1, 0, _UNKNOWN_LENGTH)
        self._write(_SECTION, head + _options((_APPLICATION, program.encode())))

    def write(self, packet: Packet) -> None:
        """Write a packet, behind the description of its interface if that is new."""
        number = self._interfaces.get(packet.place)
        if number is None:
            number = self._interfaces[packet.place] = len(self._interfaces)
            self._describe(packet.place)
        data, moment = packet.data, packet.nanoseconds
        head = _CAPTURED.pack(number, moment >> 32, moment & 0xFFFFFFFF, len(data), packet.length)
        options = [(_FLAGS, _LENGTH.pack(_OUT if packet.is_outgoing else _IN))]
        if packet.comment:
            options.append((_COMMENT, packet.comment.encode()))
        self._write(_PACKET, head + _padded(data) + _options(*options))

    def _describe(self, place: Place) -> None:
        options = [
            (_NAME, place.label.encode()),
            (_DESCRIPTION, place.description.encode()),
            (_RESOLUTION, _NANOSECONDS),
        ]
        if self._filter:
            options.append((_FILTER, _PCAP_TEXT + self._filter.encode()))
        link = LINK_RAW if place.is_raw else LINK_ETHERNET
        self._write(_INTERFACE, _DESCRIBED.pack(link, 0, self._length) + _options(*options))

    def _write(self, kind: int, body: bytes) -> None:
        length = 12 + len(body)  # type, length, body, length again
        self._output.write(_HEAD.pack(kind, length) + body + _LENGTH.pack(length))
        self.written += length


def _options(*options: tuple[int, bytes]) -> bytes:
    encoded = (_OPTION.pack(code, len(value)) + _padded(value) for code, value in options)
    return b"".join(encoded) + _OPTION.pack(_END, 0)


def _padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4)
