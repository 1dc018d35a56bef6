"""Tell which sandboxes exist, and which have ended without a call from Docker."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from driver.errors import DriverError, NotFound
from driver.model import short
from driver.recent import Recent

if TYPE_CHECKING:
    from driver.linux import Kernel
    from driver.model import Endpoint, SandboxKey

log = logging.getLogger(__name__)


class SandboxPresence:
    """The sandboxes that exist, and those that this process has seen."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._seen: Recent[SandboxKey] = Recent()

    def exists(self, sandbox: SandboxKey) -> bool:
        """Return whether a sandbox exists, and remember it if it does."""
        is_there = self._kernel.has_sandbox(sandbox)
        if is_there:
            self.remember(sandbox)
        return is_there

    def is_alive(self, sandbox: SandboxKey) -> bool:
        """Return whether a sandbox exists; one that cannot be looked at is taken to."""
        try:
            return self.exists(sandbox)
        except DriverError as error:
            log.warning("taken to be alive: %s", error)
            return True

    def has_ended(self, sandbox: SandboxKey) -> bool:
        """Return whether a sandbox that this process has seen exists no more.

        One that it has never seen may be yet to come (engines up to 27), or where this process
        cannot see it.
        """
        return sandbox in self._seen and not self._kernel.has_sandbox(sandbox)

    def remember(self, sandbox: SandboxKey) -> None:
        """Record that a sandbox has been seen."""
        self._seen.add(sandbox)

    def forget(self, sandbox: SandboxKey) -> None:
        """Discard the record of a sandbox without endpoints: its end concerns none."""
        self._seen.discard(sandbox)


def sandbox_of(endpoint: Endpoint) -> SandboxKey:
    """Return the sandbox that an endpoint is in; raises NotFound if it is in none."""
    if endpoint.attachment is None:
        raise NotFound(f"configure endpoint {short(endpoint.id)}: it has not joined a sandbox")
    return endpoint.attachment.sandbox
