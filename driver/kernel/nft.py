"""Give nft text to the kernel through the distribution's libnftables; renders nothing itself.

A few functions of libnftables.so.1 by ctypes: netfilter's own Python binding is only to be had as a
distribution package tied to the distribution's Python. In process, an element costs 0.2 ms;
running `nft` costs 6 ms.
"""

from __future__ import annotations

import ctypes
import logging
import os
import socket
import stat
from threading import Lock

from driver.errors import KernelError

LIBRARY = "libnftables.so.1"
# nftables/libnftables.h
_DEFAULT_CONTEXT = 0  # NFT_CTX_DEFAULT
_HANDLES = 1 << 3  # NFT_CTX_OUTPUT_HANDLE
_JSON = 1 << 4  # NFT_CTX_OUTPUT_JSON
_NUMERIC = 0b1111 << 7  # NFT_CTX_OUTPUT_NUMERIC_ALL
_LOW_DESCRIPTORS = 256  # among which those of a context are that is made at the start
_NETLINK_NETFILTER = 12  # include/uapi/linux/netlink.h
MOST_SAID = 300  # letters of what nft says that are answered
_ABSENT = "No such file or directory"

log = logging.getLogger(__name__)


class Nft:
    """A libnftables context: a netlink socket in the namespace of the thread that made it.

    Calls are serialised, since a context is not thread-safe. To be made while the process has few
    descriptors: the library waits for its own with select(2) and aborts if that is above 1,023
    (mnl_nft_socket_sendmsg() in nftables/src/mnl.c).
    """

    def __init__(self) -> None:
        self._library = _load_library()
        self._lock = Lock()
        self._port: int | None = None
        before = _netlink_sockets()
        self._context = self._library.nft_ctx_new(_DEFAULT_CONTEXT)
        self._sockets = _netlink_sockets() - before
        if not self._context:
            raise KernelError("open nftables: libnftables gave no context")
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_buffer_output(self._context)

    def run(self, text: str) -> None:
        """Run nft commands as one transaction; raises KernelError with what nft said."""
        with self._lock:
            code = self._library.nft_run_cmd_from_buffer(self._context, text.encode())
            said = self._library.nft_ctx_get_error_buffer(self._context).decode(errors="replace")
            self._library.nft_ctx_get_output_buffer(self._context)  # empties it
        if code != 0:
            log.error("nft refused: %s\nin:\n%s", said.strip(), text)
            raise KernelError(f"change the firewall: {_sentence(said)}; the log has all of it")

    def list_chain(self, table: str, chain: str) -> str | None:
        """Return a chain as nft shows it, with handles; None if there is no such chain.

        Raises KernelError for any other failure.
        """
        shown = self._show(f"list chain {table} {chain}", _HANDLES)
        return None if shown is None else shown.decode(errors="replace")

    def show_table(self, table: str) -> bytes | None:
        """Return a table as JSON, numbers as numbers; None if there is no such table.

        Raises KernelError for any other failure.
        """
        return self.show(f"list table {table}")

    def show(self, text: str) -> bytes | None:
        """Return what a list command shows, as JSON, numbers as numbers; None if there is nothing.

        Raises KernelError for any other failure.
        """
        return self._show(text, _JSON | _NUMERIC)

    def _show(self, text: str, flags: int) -> bytes | None:
        with self._lock:
            self._library.nft_ctx_output_set_flags(self._context, flags)
            code = self._library.nft_run_cmd_from_buffer(self._context, text.encode())
            said = self._library.nft_ctx_get_error_buffer(self._context).decode(errors="replace")
            shown: bytes = self._library.nft_ctx_get_output_buffer(self._context)
        if code == 0:
            return shown
        if _ABSENT in said:
            return None
        raise KernelError(f"{text}: {said.strip()}")

    def port(self) -> int | None:
        """Return the netlink port by which the kernel knows this context's changes.

        libnftables keeps its socket to itself, and the kernel names it when it first sends.
        """
        if self._port is None:
            ports = (_netfilter_port(descriptor) for descriptor in self._sockets)
            self._port = next(filter(None, ports), None)
        return self._port

    def close(self) -> None:
        """Free the context; safe to call twice."""
        with self._lock:
            if self._context:
                self._library.nft_ctx_free(self._context)
                self._context = None


def _sentence(said: str) -> str:
    """Return what is wrong, of all that nft says, which repeats the text that it was given."""
    errors = [line.partition("Error: ")[2] for line in said.splitlines() if "Error: " in line]
    return (errors[0] if errors else said.strip())[:MOST_SAID]


def _netlink_sockets() -> set[int]:
    """Return the low descriptors of this process that are sockets of nfnetlink.

    Without a list of them all: a root file system that is only being tried has no /proc.
    """
    return {each for each in range(_LOW_DESCRIPTORS) if _netfilter_port(each) is not None}


def _netfilter_port(descriptor: int) -> int | None:
    """Return the port of a socket of nfnetlink, 0 until the kernel has given it one.

    None if the descriptor is something else.
    """
    try:
        # Nothing but a socket may be copied: to close any copy of a file's descriptor drops all
        # record locks that the process has on the file (fcntl(2)), and SQLite's are such locks.
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return None
        copy = os.dup(descriptor)
    except OSError:
        return None
    with socket.socket(fileno=copy) as probe:
        if probe.family != socket.AF_NETLINK or probe.proto != _NETLINK_NETFILTER:
            return None
        port: int = probe.getsockname()[0]
        return port


def _load_library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise KernelError(f"load {LIBRARY} (package libnftables1): {error}") from error
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    for name, result, arguments in (
        ("nft_ctx_new", pointer, [ctypes.c_uint32]),
        ("nft_ctx_free", None, [pointer]),
        ("nft_ctx_buffer_output", ctypes.c_int, [pointer]),
        ("nft_ctx_buffer_error", ctypes.c_int, [pointer]),
        ("nft_ctx_get_output_buffer", text, [pointer]),
        ("nft_ctx_get_error_buffer", text, [pointer]),
        ("nft_ctx_output_set_flags", None, [pointer, ctypes.c_uint]),
        ("nft_run_cmd_from_buffer", ctypes.c_int, [pointer, text]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
