"""Run nft text through the distribution's libnftables.

A few functions of libnftables.so.1 by ctypes: netfilter's own Python binding is only to be had as a
distribution package tied to the distribution's Python. The library reads all tables that there are
before it changes one, and its release 1.0.6 crashes on some that newer ones write. So it changes
tables only where there are none of others' (`driver.linux.preview`).
"""

from __future__ import annotations

import ctypes
import logging
from threading import Lock

from driver.errors import KernelError

LIBRARY = "libnftables.so.1"
# nftables/libnftables.h
_DEFAULT_CONTEXT = 0  # NFT_CTX_DEFAULT
_JSON = 1 << 4  # NFT_CTX_OUTPUT_JSON
_NUMERIC = 0b1111 << 7  # NFT_CTX_OUTPUT_NUMERIC_ALL
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
        self._library = load_library()
        self._lock = Lock()
        self._context = self._library.nft_ctx_new(_DEFAULT_CONTEXT)
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

    def show_table(self, table: str) -> bytes | None:
        """Return a table as JSON, numbers as numbers; None if there is no such table.

        Raises KernelError for any other failure.
        """
        text = f"list table {table}"
        with self._lock:
            self._library.nft_ctx_output_set_flags(self._context, _JSON | _NUMERIC)
            code = self._library.nft_run_cmd_from_buffer(self._context, text.encode())
            said = self._library.nft_ctx_get_error_buffer(self._context).decode(errors="replace")
            shown: bytes = self._library.nft_ctx_get_output_buffer(self._context)
        if code == 0:
            return shown
        if _ABSENT in said:
            return None
        raise KernelError(f"{text}: {said.strip()}")

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


def load_library() -> ctypes.CDLL:
    """Return libnftables with the types of the functions in use; raises KernelError without it."""
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
