"""Read the packet and byte counters of links.

From /proc/net/dev, not over netlink: the kernel writes it without its rtnl lock, which a dump of
the links holds for every part, and 1,000 links take 2 ms instead of 260 (dev_seq_show(),
net/core/net-procfs.c).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from driver.errors import KernelError
from driver.model import Traffic

if TYPE_CHECKING:
    from collections.abc import Iterator

COUNTERS = Path("/proc/self/net/dev")
HEAD_LINES = 2
SENT, DROPPED = 8, 3  # columns: the first of what was sent, and in either half what was dropped


def read_traffic() -> dict[str, Traffic]:
    """Return what has passed each link of the process's namespace, seen from its other end."""
    try:
        lines = COUNTERS.read_text().splitlines()[HEAD_LINES:]
    except OSError as error:
        raise KernelError(f"read the counters of the interfaces: {error.strerror}") from error
    return dict(_parse(lines))


def _parse(lines: list[str]) -> Iterator[tuple[str, Traffic]]:
    for line in lines:
        name, _, counters = line.rpartition(":")
        columns = counters.split()
        # What the host end has received, the container has sent.
        yield (
            name.strip(),
            Traffic(
                received_bytes=int(columns[SENT]),
                received_packets=int(columns[SENT + 1]),
                sent_bytes=int(columns[0]),
                sent_packets=int(columns[1]),
                received_dropped=int(columns[SENT + DROPPED]),
                sent_dropped=int(columns[DROPPED]),
            ),
        )
