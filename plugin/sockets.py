"""Open the sockets by which Docker finds the driver, and remove their names at the end.

Imports next to nothing: a managed plugin whose socket is late is killed and disabled for good, so
the sockets are open before the server is even imported.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

from driver.errors import Conflict, KernelError

if TYPE_CHECKING:
    from pathlib import Path

BACKLOG = 2048  # calls that wait while the driver starts; the kernel cuts it to net.core.somaxconn
FIRST_INHERITED = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)

log = logging.getLogger("pynet")


class Names:
    """The sockets that are open, and the files of those that this process made."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []
        self._owner = os.getpid()
        self._made: list[tuple[Path, int]] = []

    def inherit(self) -> bool:
        """Take the sockets that a service manager has opened, sd_listen_fds(3); tell if there are.

        Their names are the manager's: they stay when this process ends.
        """
        if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
            return False
        count = int(os.environ.pop("LISTEN_FDS", "0"))
        self.descriptors += range(FIRST_INHERITED, FIRST_INHERITED + count)
        return count > 0

    def open(self, path: Path) -> None:
        """Listen on the path, which only root may then connect to.

        A socket that a killed driver left is replaced. Raises Conflict if a driver answers on it,
        KernelError if it cannot be made.
        """
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            check_free(path)
            if path.is_socket():
                log.info("removing the stale socket %s", path)
                path.unlink(missing_ok=True)
            self._listen(path)
        except OSError as error:
            raise KernelError(f"open the socket {path}: {error.strerror or error}") from error

    def _listen(self, path: Path) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        except BaseException:
            listener.close()
            raise
        finally:
            os.umask(mask)
        listener.listen(BACKLOG)
        self._made.append((path, path.stat().st_ino))
        self.descriptors.append(listener.detach())

    def remove(self) -> None:
        """Remove the files of the sockets that were made here, unless they were replaced.

        With a stale one `docker volume ls` takes 15 s more. In a child of the process that made
        them this does nothing.
        """
        if os.getpid() != self._owner:
            return
        for path, inode in self._made:
            try:
                if path.stat().st_ino == inode:
                    path.unlink()
            except FileNotFoundError:
                continue
        self._made.clear()


def check_free(path: Path) -> None:
    """Raise Conflict if a driver answers on the socket, so that the name is not to be taken."""
    if answers(path):
        raise Conflict(f"open the socket {path}: another driver is answering on it")


def answers(path: Path) -> bool:
    """Return whether a process accepts connections on the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True
