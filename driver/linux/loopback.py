"""Remove what earlier versions made for the host's ::1, which the relay serves now.

They led it to published ports over a veth pair of its own, with routes, which go with the pair, and
a policy rule, which does not.
"""

from __future__ import annotations

import errno

from driver.errors import KernelError
from driver.linux.links import unless_gone
from driver.linux.rtnetlink import Rtnetlink
from driver.linux.session import NetlinkError

NAME, ALIAS = "pnlo-out", "pynet: from the host's ::1 to published ports"
PRIORITY, MARK, TABLE = 7064, 0x08000000, 7064


def delete_loopback_pair() -> None:
    """Delete the pair, if it is pynet's, and the rule; absence is success. Raises KernelError."""
    try:
        with Rtnetlink() as route:
            link = route.find_link(NAME)
            if link is not None and link.alias == ALIAS:
                with unless_gone():
                    route.delete_link(link.index)
            try:
                route.delete_mark_rule(PRIORITY, MARK, TABLE)
            except NetlinkError as error:
                if error.errno not in {errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP}:
                    raise
    except OSError as error:  # refused by the kernel, or no descriptor or buffer is left
        raise KernelError(f"delete {NAME}: {error.strerror or error}") from error
