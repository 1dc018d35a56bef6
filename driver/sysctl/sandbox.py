"""Configure the sysctls of sandboxes at a join, a leave, a change and a restart of the driver.

Engine 28 and later create the sandbox before Join, so everything is written there and then. On
20.10 to 27 the sandbox comes after: `driver.sysctl.pending` writes as soon as it exists. The caller
holds the driver's lock.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from driver.counts import Counts
from driver.health import Health
from driver.model import short
from driver.sysctl.host import HostSysctls
from driver.sysctl.interface import InterfaceSysctls
from driver.sysctl.pending import PendingSandboxes
from driver.sysctl.policy import NO_POLICY, effective, find_overrides, find_overruling
from driver.sysctl.presence import SandboxPresence, sandbox_of
from driver.sysctl.pristine import PristineValues
from driver.sysctl.requested import RequestedValues, sysctls_of
from driver.sysctl.validation import SysctlValidation
from driver.sysctl.writer import SysctlWriter

if TYPE_CHECKING:
    from collections.abc import Collection

    from driver.linux import Kernel
    from driver.lock import Lock
    from driver.model import Endpoint, Network, SandboxKey, Sysctl
    from driver.state.store import Store
    from driver.sysctl.policy import RequestedValue, SysctlPolicy
    from driver.undo import Rollback

log = logging.getLogger(__name__)


@dataclass(slots=True)
class ChangeOutcome:
    """The effect of a change of a network's sysctls on its running containers.

    `changed` are the sandboxes in which something was written, `awaited` those that are yet to
    appear; `kept` are the sysctls that containers have set themselves, `overruled` those for which
    a stronger source requests another value, with it.
    """

    changed: set[SandboxKey] = field(default_factory=set)
    awaited: set[SandboxKey] = field(default_factory=set)
    kept: dict[SandboxKey, list[str]] = field(default_factory=dict)
    overruled: dict[SandboxKey, list[RequestedValue]] = field(default_factory=dict)


class SandboxSysctls:
    """The sysctls of all sandboxes, and the parts of the driver that read and write them."""

    def __init__(  # noqa: PLR0913 - the parts of the driver that it works with
        self,
        store: Store,
        kernel: Kernel,
        lock: Lock,
        policy: SysctlPolicy = NO_POLICY,
        *,
        counts: Counts | None = None,
        health: Health | None = None,
    ) -> None:
        counts = counts or Counts()
        self._store = store
        self._kernel = kernel
        self._requested = requested = RequestedValues(store, policy)
        self.pristine = PristineValues(kernel)
        self.presence = SandboxPresence(kernel)
        self.host = HostSysctls(kernel, policy)
        self.validation = SysctlValidation(policy, self.pristine, self.host, health or Health())
        self.interfaces = InterfaceSysctls(kernel, requested, counts)
        self._writer = writer = SysctlWriter(store, kernel, self.pristine, counts)
        self._pending = PendingSandboxes(
            store=store,
            kernel=kernel,
            lock=lock,
            requested=requested,
            writer=writer,
            interfaces=self.interfaces,
            presence=self.presence,
            counts=counts,
        )

    def is_complete(self, endpoint: Endpoint) -> bool:
        """Return whether a joined endpoint's sandbox exists and its interface needs no sysctls."""
        is_there = self.presence.exists(sandbox_of(endpoint))
        return is_there and not self.interfaces.requested(endpoint)

    def join(self, endpoint: Endpoint, undo: Rollback) -> bool:
        """Write what a joining endpoint requests if its sandbox exists; return whether it does.

        Opens transactions of its own.
        """
        sandbox = sandbox_of(endpoint)
        with self._store.transaction():
            others = [each for each in self._store.endpoints_in(sandbox) if each.id != endpoint.id]
            ranked = self._requested.rank([*others, endpoint])
            traces = self._store.traces(sandbox)
        _log_overrides(endpoint, ranked)
        if not self._kernel.has_sandbox(sandbox):
            return False
        requested = [
            each.sysctl
            for each in effective(ranked).values()
            if each.endpoint in {endpoint.id, None}
        ]
        self._writer.write_recorded(sandbox, requested, traces, undo)
        return True

    def await_sandbox(self, endpoint: Endpoint, undo: Rollback) -> None:
        """Write what an endpoint requests as soon as its sandbox exists.

        Runs in the transaction of the join, and after its row was stored.
        """
        self._pending.watch(sandbox_of(endpoint), undo)

    def restore(self, sandbox: SandboxKey) -> None:
        """Restore sysctls that no remaining endpoint of the sandbox requests. No-op if it is gone.

        For when an endpoint has left, and its row says so; opens transactions of its own.
        """
        is_there = self._kernel.has_sandbox(sandbox)
        with self._store.transaction(frees=True):
            if not is_there:
                self._pending.renew_watch(sandbox)
            endpoints = self._store.endpoints_in(sandbox)
            requested = sysctls_of(self._requested.of_endpoints(endpoints))
            traces = self._store.traces(sandbox)
        if not endpoints:
            self.presence.forget(sandbox)
        if is_there and traces:
            self._writer.restore(sandbox, requested, traces)

    def resume(self, sandbox: SandboxKey, undo: Rollback) -> None:
        """Finish, after a restart of the driver, what a join began: write now, or watch again.

        A watch of a sandbox that exists is called at once, and awaits what is yet to come into it.
        Runs in a transaction.
        """
        if not self.presence.exists(sandbox):
            self._pending.renew_watch(sandbox)
            return
        endpoints = self._store.endpoints_in(sandbox)
        traces = self._store.traces(sandbox)
        requested = sysctls_of(self._requested.of_endpoints(endpoints))
        is_unfinished = any(map(_is_unfinished, endpoints))  # traces may be foreseen, no more
        missing = [each for each in requested if is_unfinished or each.key not in traces]
        written = self._writer.write(sandbox, missing, traces)
        undo.push(self._writer.undo, sandbox, written)
        self._store.put_traces(sandbox, written)
        if is_unfinished:
            self._pending.renew_watch(sandbox, is_there=True)

    def apply_change(self, old: Network, new: Network, undo: Rollback) -> ChangeOutcome:
        """Bring running containers from a network's old sysctls to the new ones, which are stored.

        What a container has set itself stays. Runs in the transaction of the change.
        """
        outcome = ChangeOutcome()
        keys = _changed_keys(old, new)
        joined: dict[SandboxKey, list[Endpoint]] = {}
        for endpoint in self._store.endpoints() if keys else ():
            if endpoint.attachment is not None:
                joined.setdefault(sandbox_of(endpoint), []).append(endpoint)
        own = [each for among in joined.values() for each in among if each.network_id == new.id]
        present: dict[SandboxKey, dict[str, RequestedValue]] = {}
        for endpoint in own:
            sandbox = sandbox_of(endpoint)
            if self._kernel.has_sandbox(sandbox):
                present[sandbox] = self._requested.of_endpoints(joined[sandbox])
            else:
                self._pending.watch(sandbox, undo)
                outcome.awaited.add(sandbox)
        if present:
            outcome.changed, outcome.kept = self._writer.update(present, keys, undo)
        changed = [sysctl for sysctl in new.options.sysctls if sysctl.key in keys]
        for sandbox, requested in present.items():
            if overruling := find_overruling(changed, requested):
                outcome.overruled[sandbox] = overruling
        for endpoint in own:
            sandbox = sandbox_of(endpoint)
            if sandbox in present and self.interfaces.apply_change(endpoint, old, new, undo):
                outcome.changed.add(sandbox)
        return outcome

    def find_missing(self, sandbox: SandboxKey) -> tuple[Sysctl, ...]:
        """Return what `resume` would write into a sandbox that exists, and write nothing.

        Runs in a transaction.
        """
        traces = self._store.traces(sandbox)
        requested = sysctls_of(self._requested.of_sandbox(sandbox))
        missing = [each for each in requested if each.key not in traces]
        if not (missing and self._kernel.has_sandbox(sandbox)):
            return ()
        return self._writer.find_missing(sandbox, missing, traces)


def _changed_keys(old: Network, new: Network) -> frozenset[str]:
    """Return the keys that the networks request with different values, or at another priority."""
    before, after = set(old.options.sysctls), set(new.options.sysctls)
    is_moved = old.options.priority != new.options.priority
    return frozenset(sysctl.key for sysctl in (before | after if is_moved else before ^ after))


def _is_unfinished(endpoint: Endpoint) -> bool:
    attachment = endpoint.attachment
    return attachment is not None and not attachment.configured


def _log_overrides(endpoint: Endpoint, ranked: Collection[RequestedValue]) -> None:
    """Log which values the endpoint's network overrides, or loses to another network."""
    for override in find_overrides(ranked):
        winner, loser = override.winner, override.loser
        if endpoint.id in {winner.endpoint, loser.endpoint}:
            log.warning(
                "endpoint %s of network %s sets %s=%s over %s of endpoint %s of network %s: %s",
                short(winner.endpoint or ""),
                short(winner.network or ""),
                winner.sysctl.key,
                winner.sysctl.value,
                loser.sysctl.value,
                short(loser.endpoint or ""),
                short(loser.network or ""),
                override.reason,
            )
