"""Write the sysctls of an endpoint's interface (IFNAME), once libnetwork has moved it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from driver.errors import NotFound
from driver.model import host_end_name, short
from driver.sysctl.presence import sandbox_of
from driver.sysctl.requested import sysctls_of

if TYPE_CHECKING:
    from driver.counts import Counts
    from driver.linux import Kernel
    from driver.model import Endpoint, Network, Sysctl
    from driver.sysctl.requested import RequestedValues
    from driver.undo import Rollback

log = logging.getLogger(__name__)


class InterfaceSysctls:
    """The sysctls of endpoints' interfaces. Runs in transactions of the caller's."""

    def __init__(self, kernel: Kernel, requested: RequestedValues, counts: Counts) -> None:
        self._kernel = kernel
        self._requested = requested
        self._counts = counts

    def requested(self, endpoint: Endpoint) -> tuple[Sysctl, ...]:
        """Return what is requested for an endpoint's interface."""
        return sysctls_of(self._requested.of_interface(endpoint))

    def configure(self, endpoint: Endpoint) -> bool:
        """Write what is requested if the interface is in the sandbox by now.

        Returns whether there is nothing left to do.
        """
        sysctls = self.requested(endpoint)
        if not sysctls:
            return True
        done = self._kernel.set_interface_sysctls(
            sandbox_of(endpoint), host_end_name(endpoint.id), sysctls
        )
        if done:
            self._counts.sysctl_writes.inc(len(sysctls))
        return done

    def apply_change(self, endpoint: Endpoint, old: Network, new: Network, undo: Rollback) -> bool:
        """Bring the interface from its network's old sysctls to the new ones.

        Returns whether anything was written.
        """
        before = set(sysctls_of(self._requested.of_interface(endpoint, old)))
        after = set(sysctls_of(self._requested.of_interface(endpoint, new)))
        if before == after:
            return False
        undo.push(self.update, endpoint, before, after)
        return self.update(endpoint, after, before)

    def update(self, endpoint: Endpoint, requested: set[Sysctl], present: set[Sysctl]) -> bool:
        """Bring the interface from its present sysctls to those that are requested.

        Returns whether the interface is in the sandbox.
        """
        changed = sorted(requested - present, key=lambda sysctl: sysctl.key)
        reset = {sysctl.key for sysctl in present} - {sysctl.key for sysctl in requested}
        sandbox, host_end = sandbox_of(endpoint), host_end_name(endpoint.id)
        try:
            return self._kernel.set_interface_sysctls(sandbox, host_end, changed, sorted(reset))
        except NotFound:
            log.info("the interface of %s is gone; nothing to configure", short(endpoint.id))
            return False
