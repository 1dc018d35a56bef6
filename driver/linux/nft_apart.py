"""Run nft commands by libnftables in a process of its own, which may crash and takes nobody along.

The library reads all tables that there are before it changes one, and its release 1.0.6 crashes
on some that newer ones write (see `driver.linux.nft`). A table with `flags owner` belongs to the
process and goes with it, whatever it ends by.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from driver.errors import KernelError
from driver.linux.nft import load_library

if TYPE_CHECKING:
    from types import TracebackType

_STATELESS, _HANDLES = 1 << 2, 1 << 3  # NFT_CTX_OUTPUT_…, nftables/libnftables.h
_ROOT = Path(__file__).parents[2]


class NftApart:
    """A libnftables context in another process; tables that it owns end with the block."""

    def __enter__(self) -> Self:
        """Start the process, in the namespaces of this one."""
        self._process = subprocess.Popen(
            # -P: nothing is imported from the folder that root happens to be in.
            [sys.executable, "-P", "-m", "driver.linux.nft_apart"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
            start_new_session=True,  # an interrupt is this process's to deal with
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it, and with it its tables."""
        self._process.kill()
        self._process.communicate()

    def run(self, text: str) -> str:
        """Run commands; return what they print, rules with their handles and without counts.

        Raises KernelError with what nft says, or that the library has crashed.
        """
        process = self._process
        assert process.stdin is not None  # noqa: S101 - for mypy
        assert process.stdout is not None  # noqa: S101
        try:
            process.stdin.write(json.dumps(text) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise KernelError("run nft: libnftables has crashed, on a table of another program's")
        answer: dict[str, Any] = json.loads(line)
        if answer["error"]:
            raise KernelError(f"run nft: {answer['error'].strip()}")
        return str(answer["output"])


def main() -> None:
    """Run a command a line, of JSON, until standard input ends."""
    library = load_library()
    context = library.nft_ctx_new(0)
    library.nft_ctx_buffer_output(context)
    library.nft_ctx_buffer_error(context)
    library.nft_ctx_output_set_flags(context, _STATELESS | _HANDLES)
    for line in sys.stdin:
        failed = library.nft_run_cmd_from_buffer(context, json.loads(line).encode())
        output = library.nft_ctx_get_output_buffer(context).decode(errors="replace")
        error = library.nft_ctx_get_error_buffer(context).decode(errors="replace")
        sys.stdout.write(json.dumps({"output": output, "error": error if failed else ""}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
