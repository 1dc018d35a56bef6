"""Start the relay process: `python -S -E FILE`, with the control socket as standard input.

Or as the first of those that systemd hands over. Run by its path and without `site`, which would
cost a quarter of the memory: so it finds the package by itself.
"""

from __future__ import annotations

import os
import socket
import sys

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120

from driver.relay.relay import Relay

NOBODY = 65534  # of those who need no rights: kernel.overflowuid
INHERITED = 3  # sd_listen_fds(3)


def main() -> None:
    """Serve until nothing is to be served."""
    # What systemd says may be for the driver that has started us.
    is_activated = os.environ.get("LISTEN_PID") == str(os.getpid())
    control = socket.socket(fileno=INHERITED if is_activated else 0)
    users = {0, os.geteuid()}
    os.chdir("/")
    relay = Relay(control, users)
    give_up_rights()  # after all has been read: the user nobody may not be let into our folder
    relay.run()


def give_up_rights() -> None:
    """Drop root and all capabilities: what is relayed comes from anywhere."""
    if os.geteuid() != 0:
        return
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except PermissionError as error:
        sys.stderr.write(f"the relay keeps root's rights: {error.strerror}\n")


if __name__ == "__main__":
    main()
