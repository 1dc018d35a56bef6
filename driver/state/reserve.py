"""Reserve 1 MiB of disk so that deletes can be committed when the disk is full.

Docker ignores the errors of deletes and never repeats them, so one that a full disk refuses would
leave its endpoint and its ports behind. SQLite needs room for a delete, too.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

NAME = "pynet.db-reserve"
BYTES = 1024 * 1024  # hundreds of deletes
LOW = 256 * 1024  # bytes that are free: SQLite may need as many for one change

log = logging.getLogger(__name__)


class DiskReserve:
    """A file of no use but that it can be given up."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / NAME

    def release(self) -> None:
        """Make room if there is hardly any."""
        if self._free() < LOW and self._path.exists():
            log.warning("the disk of %s is full: giving up the reserve for deletes", self._folder)
            self._path.unlink(missing_ok=True)

    def allocate(self) -> None:
        """Set room aside, again, if there is plenty."""
        if self._path.exists() or self._free() < 4 * BYTES:
            return
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, BYTES)
        finally:
            os.close(descriptor)

    def _free(self) -> int:
        """Return the bytes that are free for us."""
        disk = os.statvfs(self._folder)
        return disk.f_bavail * disk.f_frsize
