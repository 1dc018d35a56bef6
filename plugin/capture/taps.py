"""Take copies of packets at interfaces, in whatever network namespaces they are; packet(7).

A packet socket belongs to the namespace in which it was opened, whichever thread reads it then. So
nothing is put into a container, and one loop reads all of them.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import socket
import struct
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from driver.errors import KernelError, NotFound
from driver.linux import netns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from plugin.capture.filters import PacketFilter

_ALL = 0x0003  # ETH_P_ALL
_SOL_PACKET = 263
_STATISTICS, _AUXDATA = 6, 8  # PACKET_…, include/uapi/linux/if_packet.h
_OUTGOING = 4  # PACKET_OUTGOING
_CHECKSUM_IS_NOT_READY, _VLAN_IS_VALID = 1 << 3, 1 << 4  # TP_STATUS_…
_AUXILIARY = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata
_ADDRESS = struct.Struct("=HHi12x")  # struct sockaddr_ll
_COUNTS = struct.Struct("=II")  # struct tpacket_stats: packets, drops
# SO_TIMESTAMPING, which also is the type of what comes of it: three timespecs, of which the first
# is the kernel's own. Other than SO_TIMESTAMPNS it tells of no moment rather than of a wrong one.
_TIMESTAMPS = 37
_OF_THE_KERNEL = 1 << 3 | 1 << 4  # SOF_TIMESTAMPING_RX_SOFTWARE, _SOFTWARE
_STAMPED_SECONDS = 1.0
_MOMENT = struct.Struct("=qq")  # struct timespec
_BUFFER_FORCED = 33  # SO_RCVBUFFORCE
_BUFFER = 64 << 20
_NO_CLOSED_LENGTH = 1 << 16  # more than any packet: 64 KiB is what segmentation offload makes
_ANCILLARY = socket.CMSG_SPACE(_AUXILIARY.size) + socket.CMSG_SPACE(3 * _MOMENT.size)
_ETHERNET_ADDRESSES = 12
_AT_ONCE = 2_000  # packets from one socket before the others have their turn
# Nanoseconds: a packet has its time before it is in the queue, and processors are not in step.
_LATE = 1_000_000
_libc = ctypes.CDLL(None, use_errno=True)
NOT_READY = "checksum not computed yet"


@dataclass(frozen=True, slots=True)
class Place:
    """An interface to take packets at, in a namespace given by its path; None is the host's."""

    label: str
    description: str
    namespace: str | None
    index: int
    is_raw: bool = False


class Packet(NamedTuple):
    """A packet as it was seen at a place.

    `nanoseconds` since 1970; `length` is what it had before it was cut.
    """

    nanoseconds: int
    place: Place
    is_outgoing: bool
    data: bytes
    length: int
    comment: str = ""


@dataclass(eq=False, slots=True)
class _Tap:
    place: Place
    socket: socket.socket
    lost: int = 0

    def count_lost(self) -> int:
        """Return how many packets the socket had no room for; the kernel begins anew each time."""
        counted = self.socket.getsockopt(_SOL_PACKET, _STATISTICS, _COUNTS.size)
        self.lost += _COUNTS.unpack(counted)[1]
        return self.lost


@dataclass(slots=True)
class Taps:
    """The packet sockets at work, read in the order of the packets' times.

    To be closed. `lost` counts what the kernel had no room for.
    """

    wanted: Callable[[Place], PacketFilter | None]
    _taps: dict[Place, _Tap] = field(default_factory=dict)
    _held: list[Packet] = field(default_factory=list)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _lost: int = 0

    def tap(self, places: Iterable[Place]) -> None:
        """Take packets at these places, and at no others any more.

        A namespace that has gone meanwhile has none. Raises KernelError if the kernel refuses.
        """
        wanted = dict.fromkeys(places)
        for place in self._taps.keys() - wanted.keys():
            self._end(place)
        by_namespace: dict[str | None, list[Place]] = {}
        for place in wanted:
            if place not in self._taps:
                by_namespace.setdefault(place.namespace, []).append(place)
        is_first = not self._taps
        for namespace, new in by_namespace.items():
            for tap in _open_all(namespace, new, self.wanted):
                self._taps[tap.place] = tap
                self._selector.register(tap.socket, selectors.EVENT_READ, tap)
        if is_first and self._taps:
            _await_timestamps()

    def watch(self, wakes: socket.socket) -> None:
        """Have `read` return when something comes by this socket, too."""
        self._selector.register(wakes, selectors.EVENT_READ)

    def read(self, seconds: float) -> list[Packet]:
        """Return the packets that have come, in order, waiting so long for the first.

        Those of the last moment are held back until nothing older can come by another socket.
        """
        ready = self._selector.select(0.001 if self._held else seconds)
        now = time.time_ns()
        before = now - _LATE
        for key, _ in ready:
            if isinstance(key.data, _Tap):
                found = _receive(key.data)
                self._held += found
                if len(found) == _AT_ONCE:  # it has more, and older ones than others by now
                    before = min(before, found[-1].nanoseconds)
        self._held.sort(key=lambda packet: packet.nanoseconds)
        count = next(
            (each for each, packet in enumerate(self._held) if packet.nanoseconds > before),
            len(self._held),
        )
        done, self._held = self._held[:count], self._held[count:]
        return done

    def finish(self) -> list[Packet]:
        """Return all that is left; packets that come from now on are none of ours."""
        for tap in tuple(self._taps.values()):
            self._held += _drain(tap)
        self._held.sort(key=lambda packet: packet.nanoseconds)
        done, self._held = self._held, []
        return done

    @property
    def lost(self) -> int:
        """How many packets the kernel had no room for."""
        return self._lost + sum(tap.count_lost() for tap in self._taps.values())

    def close(self) -> None:
        """Close all sockets."""
        for place in tuple(self._taps):
            self._end(place)
        self._selector.close()

    def _end(self, place: Place) -> None:
        tap = self._taps.pop(place)
        self._held += _drain(tap)
        self._lost += tap.count_lost()
        self._selector.unregister(tap.socket)
        tap.socket.close()


def _open_all(
    namespace: str | None,
    places: list[Place],
    wanted: Callable[[Place], PacketFilter | None],
) -> list[_Tap]:
    """Open a socket for each place of one namespace, in a thread that is in it."""

    def work() -> list[_Tap]:
        with ExitStack() as stack:
            opened = [stack.enter_context(_open(place, wanted(place))) for place in places]
            stack.pop_all()
        return [_Tap(place, packets) for place, packets in zip(places, opened, strict=True)]

    try:
        if namespace is None:
            return work()
        with netns.open_namespace(namespace) as descriptor:
            return netns.run_in(descriptor, work)
    except NotFound:
        return []
    except OSError as error:
        names = ", ".join(place.label for place in places)
        raise KernelError(f"take packets at {names}: {error.strerror}") from error


def _open(place: Place, wanted: PacketFilter | None) -> socket.socket:
    """Return a socket that takes the packets of one interface.

    Of no protocol until its filter is there: what it takes before that would not have passed it.
    """
    packets = socket.socket(
        socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0
    )
    try:
        packets.setsockopt(socket.SOL_SOCKET, _BUFFER_FORCED, _BUFFER)
        packets.setsockopt(socket.SOL_SOCKET, _TIMESTAMPS, _OF_THE_KERNEL)
        packets.setsockopt(_SOL_PACKET, _AUXDATA, 1)
        if wanted is not None:
            wanted.attach(packets)
        _bind(packets, place.index)
    except BaseException:
        packets.close()
        raise
    return packets


def _bind(packets: socket.socket, index: int) -> None:
    """Bind a packet socket to an interface by its index; raises OSError.

    Python binds by a name that is text, and an interface of a container's may have any.
    """
    address = _ADDRESS.pack(socket.AF_PACKET, socket.htons(_ALL), index)
    if _libc.bind(packets.fileno(), address, len(address)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _await_timestamps() -> None:
    """Wait until the kernel stamps packets: it begins a moment after the first socket asks for it.

    net_enable_timestamp() leaves that to a work queue; until then hops have no order. Asked of a
    datagram to this host itself; where that cannot be sent, nothing is waited for.
    """
    end = time.monotonic() + _STAMPED_SECONDS
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.setsockopt(socket.SOL_SOCKET, _TIMESTAMPS, _OF_THE_KERNEL)
        own.settimeout(_STAMPED_SECONDS)
        try:
            own.bind(("127.0.0.1", 0))
            while time.monotonic() < end:
                own.sendto(b"", own.getsockname())
                _, ancillary, _, _ = own.recvmsg(1, _ANCILLARY)
                if ancillary:
                    return
        except OSError:
            return


def _drain(tap: _Tap) -> list[Packet]:
    """Return all that a socket has by now, and not what goes on coming."""
    now = time.time_ns()
    found: list[Packet] = []
    while True:
        more = _receive(tap)
        found += more
        if len(more) < _AT_ONCE or more[-1].nanoseconds > now:
            return found


def _receive(tap: _Tap) -> list[Packet]:
    """Return the packets that a socket has, up to so many."""
    receive, place = tap.socket.recvmsg, tap.place
    found: list[Packet] = []
    for _ in range(_AT_ONCE):
        try:
            data, ancillary, _, address = receive(_NO_CLOSED_LENGTH + 64, _ANCILLARY)
        except BlockingIOError:
            break
        except OSError:  # ENETDOWN, once: the interface went down, or away
            break
        moment, status, length, tag, tag_kind = 0, 0, len(data), 0, 0
        for level, kind, value in ancillary:
            if level == _SOL_PACKET and kind == _AUXDATA:
                status, length, _, _, _, tag, tag_kind = _AUXILIARY.unpack(value)
            elif level == socket.SOL_SOCKET and kind == _TIMESTAMPS:
                seconds, nanoseconds = _MOMENT.unpack_from(value)
                moment = seconds * 1_000_000_000 + nanoseconds
        if status & _VLAN_IS_VALID:  # the kernel has taken it out of the frame
            at = _ETHERNET_ADDRESSES
            data = data[:at] + struct.pack(">HH", tag_kind or 0x8100, tag) + data[at:]
            length += 4
        comment = NOT_READY if status & _CHECKSUM_IS_NOT_READY else ""
        moment = moment or time.time_ns()
        found.append(Packet(moment, place, address[2] == _OUTGOING, data, length, comment))
    return found
