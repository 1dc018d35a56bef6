"""Write a capture into a file that only root reads, a pipe, or a ring of files."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from driver.errors import DriverError
from plugin.capture.pcapng import Writer
from plugin.version import find_version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plugin.capture.taps import Packet

_PRIVATE = 0o600  # packets hold passwords


class CaptureFile:
    """Where packets are written: `-` is standard output.

    With a `size` in bytes, NAME.pcapng is NAME_00001.pcapng and so on, each whole by itself; of
    them the last `files` stay, all without. Raises DriverError if it cannot be written.
    """

    def __init__(
        self,
        where: str,
        filter_text: str,
        length: int,
        *,
        size: int | None = None,
        files: int | None = None,
    ) -> None:
        self._where, self._filter, self._length = where, filter_text, length
        self._size, self._files = size, files
        self._made: list[Path] = []
        self._number = 0
        self._output, self._writer = self._begin()

    def write(self, packet: Packet) -> None:
        """Write a packet, in a new file if this one is full."""
        if self._size is not None and self._writer.written >= self._size:
            self.close()
            self._output, self._writer = self._begin()
        with self._writing():
            self._writer.write(packet)

    def flush(self) -> None:
        """Have whoever reads see what has been written."""
        with self._writing():
            self._output.flush()

    def close(self) -> None:
        """Write what is left."""
        with suppress(BrokenPipeError), self._writing():
            self._output.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise  # whoever reads has enough
        except OSError as error:
            raise DriverError(f"write {self._where}: {error.strerror}") from error

    def _begin(self) -> tuple[BinaryIO, Writer]:
        output = self._open()
        return output, Writer(output, f"pynet {find_version()}", self._filter, self._length)

    def _open(self) -> BinaryIO:
        if self._where == "-":
            return os.fdopen(os.dup(sys.stdout.fileno()), "wb")
        path = Path(self._where)
        if self._size is not None:
            self._number += 1
            path = path.with_name(f"{path.stem}_{self._number:05}{path.suffix}")
            self._made.append(path)
            if self._files and len(self._made) > self._files:
                self._made.pop(0).unlink(missing_ok=True)
        try:
            descriptor = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _PRIVATE
            )
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.fchmod(descriptor, _PRIVATE)
        except OSError as error:
            raise DriverError(f"write {path}: {error.strerror}") from error
        return os.fdopen(descriptor, "wb")
