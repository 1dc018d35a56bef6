"""Hear that something changed with the links of this namespace; knows not what."""

from __future__ import annotations

import errno
import socket

from pyroute2.netlink import NETLINK_ROUTE
from pyroute2.netlink.rtnl import RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR, RTMGRP_LINK

from driver.errors import KernelError

_MOST_BYTES = 65536


class LinkNews:
    """A socket that the kernel writes to when a link or an address comes, changes or goes.

    To be made in the namespace that it is about. Raises KernelError.
    """

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        try:
            self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_ROUTE)
            self._socket.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))
        except OSError as error:
            raise KernelError(f"listen to changes of links: {error.strerror}") from error

    def wait(self) -> None:
        """Wait for the next news. Raises KernelError."""
        try:
            self._socket.recv(_MOST_BYTES)
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # there was more than fits: news all the same
                raise KernelError(f"listen to changes of links: {error.strerror}") from error

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
