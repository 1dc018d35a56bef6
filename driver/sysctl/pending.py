"""Watch for sandboxes that are yet to appear, and configure them when they do.

On engines 20.10 to 27 the sandbox appears after Join: it is configured while runc's hooks still
hold the container's process. Sysctls of the interface wait for libnetwork to move it.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from driver.errors import DriverError
from driver.model import host_end_name, sandbox_end_name, short
from driver.sysctl.presence import sandbox_of
from driver.sysctl.requested import sysctls_of
from driver.undo import Rollback

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from driver.counts import Counts
    from driver.linux import Kernel
    from driver.lock import Lock
    from driver.model import Endpoint, SandboxKey, Sysctl, Trace
    from driver.state.store import Store
    from driver.sysctl.interface import InterfaceSysctls
    from driver.sysctl.presence import SandboxPresence
    from driver.sysctl.requested import RequestedValues
    from driver.sysctl.writer import SysctlWriter

log = logging.getLogger(__name__)


class PendingSandboxes:
    """The sandboxes that endpoints have joined before they exist."""

    def __init__(  # noqa: PLR0913 - the parts that it works with
        self,
        *,
        store: Store,
        kernel: Kernel,
        lock: Lock,
        requested: RequestedValues,
        writer: SysctlWriter,
        interfaces: InterfaceSysctls,
        presence: SandboxPresence,
        counts: Counts,
    ) -> None:
        self._store = store
        self._kernel = kernel
        self._lock = lock
        self._requested = requested
        self._writer = writer
        self._interfaces = interfaces
        self._presence = presence
        self._counts = counts

    def watch(self, sandbox: SandboxKey, undo: Rollback) -> None:
        """Watch for the sandbox; if the change fails, for the endpoints that there were before.

        Runs in the transaction of the change, and after its rows were stored.
        """
        undo.push(self._renew_watch, sandbox)
        self.renew_watch(sandbox)

    def renew_watch(self, sandbox: SandboxKey, *, is_there: bool = False) -> None:
        """Watch for the sandbox on behalf of the endpoints that have joined by now, if any.

        `is_there` is for one that exists, but for an interface. Runs in a transaction.
        """
        endpoints = self._store.endpoints_in(sandbox)
        requested = sysctls_of(self._requested.of_endpoints(endpoints))
        interfaces = {endpoint: self._interfaces.requested(endpoint) for endpoint in endpoints}
        # Now, and without the rtnl lock: to ask for it when the sandbox has come takes up to 0.7 s
        # where many containers start and end, which their first processes may not be held for.
        indices = {
            endpoint: self._kernel.find_index(sandbox_end_name(endpoint.id))
            for endpoint, sysctls in interfaces.items()
            if sysctls
        }
        if not is_there:
            # What was written was another one's, of this name. What will be written is stored
            # ahead: that happens without the lock, for which the sandbox's first process is not
            # held, and a driver that is killed after the first write has to know that it was its
            # own.
            self._store.delete_traces(sandbox, self._store.traces(sandbox))
            self._store.put_traces(sandbox, self._writer.foresee(requested))
        if endpoints:
            # Also when there is nothing to write: only then can the sandbox's end be told from its
            # not having begun.
            action = partial(
                self._configure, sandbox, requested, interfaces, indices, is_new=not is_there
            )
            self._kernel.watch_sandbox(sandbox, action)
        elif self._kernel.unwatch_sandbox(sandbox):
            self._counts.watch_misses.inc()
            log.warning(
                "sandbox %s never came into sight: its container did not start, or it ran without "
                "the network's parameters, and this driver does not see Docker's mounts",
                sandbox,
            )

    def _configure(
        self,
        sandbox: SandboxKey,
        requested: tuple[Sysctl, ...],
        interfaces: Mapping[Endpoint, tuple[Sysctl, ...]],
        indices: Mapping[Endpoint, int | None],
        *,
        is_new: bool,
    ) -> None:
        """Configure a sandbox that has just appeared; takes the lock only afterwards.

        The container's process is held for a few tens of milliseconds only, and another request
        may be making links under the lock.
        """
        self._presence.remember(sandbox)
        written: tuple[Trace, ...] = ()
        try:
            if is_new:
                written = self._writer.write_new(sandbox, requested)
            done = {trace.key for trace in written}
            rest = [sysctl for sysctl in requested if sysctl.key not in done]
            written += self._writer.write(sandbox, rest, {})
            for endpoint, index in indices.items():
                self._await_interface(endpoint, interfaces[endpoint], index)
        finally:
            with self._lock:
                self._record(sandbox, requested, written, is_new=is_new)
        self._mark_configured(interfaces)

    def _record(
        self,
        sandbox: SandboxKey,
        requested: Iterable[Sysctl],
        written: Iterable[Trace],
        *,
        is_new: bool,
    ) -> None:
        """Store what was written, and catch up with what has changed meanwhile."""
        with self._store.transaction():
            if is_new:  # what was found there is the truth, not what was foreseen
                self._store.delete_traces(sandbox, [sysctl.key for sysctl in requested])
            self._store.put_traces(sandbox, written)
            if self._store.endpoints_in(sandbox):
                by_now = self._requested.of_sandbox(sandbox)
                late = {sysctl.key for sysctl in set(requested) ^ set(sysctls_of(by_now))}
                self._writer.update({sandbox: by_now}, late, Rollback())
                return
            traces = self._store.traces(sandbox)
        # The last endpoint left before there was a trace by which its leave could restore anything.
        self._presence.forget(sandbox)
        self._writer.restore(sandbox, (), traces)

    def _await_interface(
        self, endpoint: Endpoint, sysctls: tuple[Sysctl, ...], index: int | None
    ) -> None:
        """Write an interface's sysctls as soon as it is up, unless its endpoint has left.

        A container may be gone before its interface has been seen to be up.
        """
        sandbox, host_end = sandbox_of(endpoint), host_end_name(endpoint.id)
        try:
            self._kernel.await_interface_sysctls(sandbox, host_end, sysctls, index)
        except DriverError as error:
            if self._has_left(endpoint, sandbox):
                log.info("endpoint %s has left meanwhile: %s", short(endpoint.id), error)
                return
            self._counts.watch_misses.inc()
            raise
        self._counts.sysctl_writes.inc(len(sysctls))

    def _has_left(self, endpoint: Endpoint, sandbox: SandboxKey) -> bool:
        with self._lock, self._store.transaction():
            known = self._store.find_endpoint(endpoint.id)
        return known is None or known.attachment is None or sandbox_of(known) != sandbox

    def _renew_watch(self, sandbox: SandboxKey) -> None:
        with self._store.transaction():
            self.renew_watch(sandbox)

    def _mark_configured(self, written: Mapping[Endpoint, tuple[Sysctl, ...]]) -> None:
        with self._lock, self._store.transaction():
            for endpoint, sysctls in written.items():
                known = self._store.find_endpoint(endpoint.id)
                if known is None or known.attachment != endpoint.attachment:
                    continue
                late = set(self._interfaces.requested(known))
                if late != set(sysctls):  # the network has been changed meanwhile
                    self._interfaces.update(known, late, set(sysctls))
                self._store.put_endpoint(known.configured())
