"""Compile capture filters in tcpdump's language (pcap-filter(7)) for the kernel, by libpcap.

Two functions of libpcap by ctypes: `tcpdump -dd` needs the program, and what the Python index has
under libpcap's name brings a capture loop of its own, which knows one namespace.
"""

from __future__ import annotations

import ctypes
import socket
from functools import cache

from driver.errors import DriverError, InvalidRequest

_ETHERNET, _RAW = 1, 12  # DLT_…: with an Ethernet header, as all of Docker's have, or without
_UNKNOWN_NETMASK = 0xFFFFFFFF  # PCAP_NETMASK_UNKNOWN
_SO_ATTACH_FILTER = 26  # include/uapi/asm-generic/socket.h
_NAMES = ("libpcap.so.0.8", "libpcap.so.1")  # Debian's for it, whatever its version; others'


class _Instruction(ctypes.Structure):
    """struct sock_filter, include/uapi/linux/filter.h, and libpcap's struct bpf_insn."""

    _fields_ = (
        ("code", ctypes.c_ushort),
        ("jt", ctypes.c_ubyte),
        ("jf", ctypes.c_ubyte),
        ("k", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    """libpcap's struct bpf_program."""

    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.POINTER(_Instruction)))


class _Attached(ctypes.Structure):
    """struct sock_fprog, include/uapi/linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


class PacketFilter:
    """A filter that the kernel runs on every packet of a socket."""

    def __init__(self, instructions: bytes) -> None:
        count = len(instructions) // ctypes.sizeof(_Instruction)
        self._instructions = (_Instruction * count).from_buffer_copy(instructions)

    def attach(self, packets: socket.socket) -> None:
        """Have the socket take what passes the filter, cut to its length. Raises OSError."""
        attached = _Attached(len(self._instructions), self._instructions)
        packets.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, bytes(attached))


def compile_filter(text: str, length: int, *, is_raw: bool = False) -> PacketFilter:
    """Return the filter that takes `length` bytes of each packet that the text asks for.

    `is_raw` is for interfaces without an Ethernet header, such as a tunnel. An empty text asks for
    all. Raises InvalidRequest with libpcap's words for a wrong one, DriverError where there is no
    libpcap.
    """
    library = _load()
    handle = library.pcap_open_dead(_RAW if is_raw else _ETHERNET, length)
    if not handle:
        raise DriverError("compile the filter: libpcap gave no handle")
    program = _Program()
    try:
        if library.pcap_compile(handle, ctypes.byref(program), text.encode(), 1, _UNKNOWN_NETMASK):
            why = library.pcap_geterr(handle).decode(errors="replace")
            raise InvalidRequest(f"compile the filter {text!r}: {why}")
        size = program.length * ctypes.sizeof(_Instruction)
        instructions = ctypes.string_at(program.instructions, size)
        library.pcap_freecode(ctypes.byref(program))
    finally:
        library.pcap_close(handle)
    return PacketFilter(instructions)


def _find(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


@cache
def _load() -> ctypes.CDLL:
    library = next(filter(None, map(_find, _NAMES)), None)
    if library is None:
        raise DriverError(
            "compile the filter: there is no libpcap; on Debian: apt-get install libpcap0.8"
        )
    library.pcap_open_dead.restype = ctypes.c_void_p
    library.pcap_open_dead.argtypes = (ctypes.c_int, ctypes.c_int)
    library.pcap_compile.argtypes = (
        ctypes.c_void_p,
        ctypes.POINTER(_Program),
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_uint32,
    )
    library.pcap_geterr.restype = ctypes.c_char_p
    library.pcap_geterr.argtypes = (ctypes.c_void_p,)
    library.pcap_freecode.argtypes = (ctypes.POINTER(_Program),)
    library.pcap_close.argtypes = (ctypes.c_void_p,)
    return library
