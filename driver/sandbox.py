"""Give sandboxes their kernel parameters and take them back: when, and on whose behalf.

What to write is decided in `driver.sysctls`; writing is the kernel's. The caller holds the driver's
lock, except where a method says that it takes it.

Engine 28 and later create the sandbox before Join, so everything is written there and then. On
20.10 to 27 the sandbox comes after: a watch writes as soon as it exists, while runc's hooks still
hold the container's process. Per-interface parameters wait for libnetwork to bring the interface.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from driver.counts import Counts
from driver.errors import DriverError, InvalidRequest, NotFound
from driver.model import host_end_name, short
from driver.recent import Recent
from driver.sysctls import (
    SysctlPolicy,
    foresee_traces,
    is_per_interface,
    merge,
    plan_restores,
    plan_writes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from driver.kernel import Kernel
    from driver.lock import Lock
    from driver.model import Endpoint, SandboxKey, Sysctl, Trace
    from driver.store import Store
    from driver.undo import Rollback

NO_POLICY = SysctlPolicy()

log = logging.getLogger(__name__)


class Sandboxes:
    """The sandboxes of all endpoints, as far as their kernel parameters go."""

    def __init__(
        self,
        store: Store,
        kernel: Kernel,
        lock: Lock,
        policy: SysctlPolicy = NO_POLICY,
        counts: Counts | None = None,
    ) -> None:
        self._store = store
        self._kernel = kernel
        self._lock = lock
        self._policy = policy
        self._counts = counts or Counts()
        self._untried = policy.defaults
        self._pristine: dict[str, str] = {}
        self._seen: Recent[SandboxKey] = Recent()

    def check(self, sysctls: tuple[Sysctl, ...]) -> None:
        """Try the parameters where they do no harm; takes no lock.

        Raises InvalidRequest that names the parameter and the reason: this kernel's, or that the
        operator keeps it from users.
        """
        self._policy.check(sysctls)
        self._pristine.update(self._kernel.check_sysctls(sysctls))

    def check_defaults(self) -> None:
        """Try the operator's defaults in the same way, until this kernel has taken them once."""
        if not self._untried:
            return
        try:
            self._pristine.update(self._kernel.check_sysctls(self._untried))
        except InvalidRequest as error:
            raise InvalidRequest(f"default for all networks of this host: {error}") from error
        self._untried = ()

    def is_complete(self, endpoint: Endpoint) -> bool:
        """Tell whether a joined endpoint's sandbox exists and its interface needs no parameters."""
        return self.exists(sandbox_of(endpoint)) and not self._per_interface(endpoint)

    def exists(self, sandbox: SandboxKey) -> bool:
        """Tell whether a sandbox is there, and remember it if it is."""
        is_there = self._kernel.has_sandbox(sandbox)
        if is_there:
            self._seen.add(sandbox)
        return is_there

    def lives(self, sandbox: SandboxKey) -> bool:
        """Tell whether a sandbox exists; one that cannot be looked at is taken to."""
        try:
            return self.exists(sandbox)
        except DriverError as error:
            log.warning("taken to be alive: %s", error)
            return True

    def has_ended(self, sandbox: SandboxKey) -> bool:
        """Tell whether this process has seen a sandbox that is no more.

        One that it has never seen may be yet to come (engines up to 27), or where this process
        cannot see it.
        """
        return sandbox in self._seen and not self._kernel.has_sandbox(sandbox)

    def join(self, endpoint: Endpoint, undo: Rollback) -> bool:
        """Write what a joined endpoint asks for if its sandbox exists; tell whether it does.

        Opens transactions of its own: what a parameter was is stored before it is written, so that
        a crash in between leaves nothing that cannot be put back.
        """
        sandbox = sandbox_of(endpoint)
        with self._store.transaction():
            wanted = self._namespace_wide(endpoint)
            asked_before = self._asked_by_others(endpoint)
            traces = self._store.traces(sandbox)
        _log_contests(endpoint, wanted, asked_before)
        if not self._kernel.has_sandbox(sandbox):
            return False
        defaults = [each for each in self._policy.defaults if each.key not in asked_before]
        wanted = merge(_namespace_wide_of(defaults), wanted)

        def announce(current: Mapping[str, str], plan: Mapping[str, str]) -> None:
            undo.push(self._remember, sandbox, traces, plan.keys())
            with self._store.transaction():
                self._store.put_traces(sandbox, foresee_traces(current, plan))

        written = self._write(sandbox, wanted, traces, announce)
        undo.push(self._put_back, sandbox, written)
        with self._store.transaction():
            self._store.put_traces(sandbox, written)
        return True

    def await_sandbox(self, endpoint: Endpoint, undo: Rollback) -> None:
        """Have what an endpoint asks for written as soon as its sandbox exists.

        Runs in the transaction of the join, and after its row was stored.
        """
        sandbox = sandbox_of(endpoint)
        undo.push(self._renew_watch, sandbox)
        self.renew_watch(sandbox)

    def renew_watch(self, sandbox: SandboxKey) -> None:
        """Have the sandbox configured when it comes, for the endpoints that are joined by now.

        Runs in a transaction.
        """
        endpoints = self._store.endpoints_in(sandbox)
        wanted = self._wanted_by(endpoints)
        interfaces = {endpoint: self._per_interface(endpoint) for endpoint in endpoints}
        if endpoints:
            # Also when there is nothing to write: only then can the sandbox's end be told from its
            # not having begun.
            action = partial(self._on_arrival, sandbox, wanted, interfaces)
            self._kernel.watch_sandbox(sandbox, action)
        elif self._kernel.unwatch_sandbox(sandbox):
            self._counts.missed_watch()
            log.warning(
                "sandbox %s never came into sight: its container did not start, or it ran without "
                "the network's parameters, and this driver does not see Docker's mounts",
                sandbox,
            )

    def configure_interface(self, endpoint: Endpoint) -> bool:
        """Write the endpoint's per-interface parameters if its interface is in the sandbox by now.

        Returns whether there is nothing left to do. Runs in a transaction.
        """
        sysctls = self._per_interface(endpoint)
        if not sysctls:
            return True
        done = self._kernel.set_interface_sysctls(
            sandbox_of(endpoint), host_end_name(endpoint.id), sysctls
        )
        if done:
            self._counts.wrote_sysctls(len(sysctls))
        return done

    def settle(self, sandbox: SandboxKey) -> None:
        """Put back what nobody in the sandbox asks for any more, as far as the sandbox lives on.

        For when an endpoint has left, and its row says so; opens transactions of its own.
        """
        with self._store.transaction():
            if not self._kernel.has_sandbox(sandbox):
                self.renew_watch(sandbox)
            wanted = self._wanted_by(self._store.endpoints_in(sandbox))
            traces = self._store.traces(sandbox)
        values = {sysctl.key: sysctl.value for sysctl in wanted}
        if not traces:
            return
        # Most are still asked for as they were written: then nothing has to be looked at.
        changed = [key for key, trace in traces.items() if values.get(key) != trace.written]
        decide = partial(plan_restores, values, traces={key: traces[key] for key in changed})
        written = self._change(sandbox, changed, decide)
        with self._store.transaction():
            self._store.delete_traces(sandbox, traces.keys() - values.keys())
            self._store.put_traces(sandbox, [trace for trace in written if trace.key in values])

    def restore(self, sandbox: SandboxKey, undo: Rollback) -> None:
        """Finish, after a restart of the driver, what a join began: write now, or watch again.

        A watch of a sandbox that exists is called at once, and awaits what is yet to come into it.
        Runs in a transaction.
        """
        if not self.exists(sandbox):
            self.renew_watch(sandbox)
            return
        endpoints = self._store.endpoints_in(sandbox)
        traces = self._store.traces(sandbox)
        wanted = self._wanted_by(endpoints)
        missing = [sysctl for sysctl in wanted if sysctl.key not in traces]
        written = self._write(sandbox, missing, traces)
        undo.push(self._put_back, sandbox, written)
        self._store.put_traces(sandbox, written)
        if any(self._is_unfinished(endpoint) for endpoint in endpoints):
            self.renew_watch(sandbox)

    def find_missing(self, sandbox: SandboxKey) -> tuple[Sysctl, ...]:
        """Return what `restore` would write into a sandbox that exists, and write nothing.

        Runs in a transaction.
        """
        traces = self._store.traces(sandbox)
        wanted = [
            sysctl
            for sysctl in self._wanted_by(self._store.endpoints_in(sandbox))
            if sysctl.key not in traces
        ]
        planned: dict[str, str] = {}

        def decide(current: Mapping[str, str]) -> Mapping[str, str]:
            planned.update(plan_writes(wanted, current, self._pristine, traces))
            return {}

        if wanted and self._kernel.has_sandbox(sandbox):
            keys = [sysctl.key for sysctl in wanted]
            self._pristine.update(self._kernel.read_pristine(keys))
            self._change(sandbox, keys, decide)
        return tuple(sysctl for sysctl in wanted if sysctl.key in planned)

    def _on_arrival(
        self,
        sandbox: SandboxKey,
        wanted: tuple[Sysctl, ...],
        interfaces: Mapping[Endpoint, tuple[Sysctl, ...]],
    ) -> None:
        """Configure a sandbox that has just come into being; takes the lock only afterwards.

        The container's process is held for a few tens of milliseconds only, and somebody else may
        be making links under the lock.
        """
        self._seen.add(sandbox)
        written = self._write(sandbox, wanted, {})
        try:
            for endpoint, sysctls in interfaces.items():
                if sysctls:
                    self._await_interface(sandbox, host_end_name(endpoint.id), sysctls)
        finally:
            with self._lock, self._store.transaction():
                if self._store.endpoints_in(sandbox):
                    self._store.put_traces(sandbox, written)
        self._mark_configured(interfaces)

    def _await_interface(
        self, sandbox: SandboxKey, host_end: str, sysctls: tuple[Sysctl, ...]
    ) -> None:
        try:
            self._kernel.await_interface_sysctls(sandbox, host_end, sysctls)
        except DriverError:
            self._counts.missed_watch()
            raise
        self._counts.wrote_sysctls(len(sysctls))

    def _renew_watch(self, sandbox: SandboxKey) -> None:
        with self._store.transaction():
            self.renew_watch(sandbox)

    def _is_unfinished(self, endpoint: Endpoint) -> bool:
        attachment = endpoint.attachment
        return attachment is not None and not attachment.configured

    def _mark_configured(self, endpoints: Iterable[Endpoint]) -> None:
        with self._lock, self._store.transaction():
            for endpoint in endpoints:
                known = self._store.find_endpoint(endpoint.id)
                if known is not None and known.attachment == endpoint.attachment:
                    self._store.put_endpoint(known.configured())

    def _write(
        self,
        sandbox: SandboxKey,
        wanted: Iterable[Sysctl],
        traces: Mapping[str, Trace],
        announce: Callable[[Mapping[str, str], Mapping[str, str]], None] = lambda *_: None,
    ) -> tuple[Trace, ...]:
        wanted = tuple(wanted)
        keys = [sysctl.key for sysctl in wanted]

        def decide(current: Mapping[str, str]) -> Mapping[str, str]:
            plan = plan_writes(wanted, current, self._pristine, traces)
            if len(plan) < len(wanted):
                # Either the container set them itself, or the host has changed a value that new
                # namespaces copy since we last looked.
                self._pristine.update(self._kernel.read_pristine(keys))
                plan = plan_writes(wanted, current, self._pristine, traces)
            for key in keys:
                if key not in plan:
                    log.info("sandbox %s keeps its own %s", sandbox, key)
            announce(current, plan)
            return plan

        return self._change(sandbox, keys, decide)

    def _change(
        self,
        sandbox: SandboxKey,
        keys: list[str],
        decide: Callable[[Mapping[str, str]], Mapping[str, str]],
    ) -> tuple[Trace, ...]:
        """Change parameters; a sandbox that has gone meanwhile needs none."""
        if not keys:
            return ()
        try:
            written = self._kernel.change_sysctls(sandbox, keys, decide)
        except NotFound:
            log.info("sandbox %s is gone; nothing to configure", sandbox)
            return ()
        self._counts.wrote_sysctls(len(written))
        return written

    def _remember(
        self, sandbox: SandboxKey, traces: Mapping[str, Trace], keys: Collection[str]
    ) -> None:
        """Have the traces of these keys be what they were."""
        with self._store.transaction():
            self._store.delete_traces(sandbox, keys)
            self._store.put_traces(sandbox, [traces[key] for key in keys if key in traces])

    def _put_back(self, sandbox: SandboxKey, traces: tuple[Trace, ...]) -> None:
        before = {trace.key: trace.before for trace in traces}
        self._change(sandbox, list(before), lambda _: before)

    def _wanted_by(self, endpoints: Collection[Endpoint]) -> tuple[Sysctl, ...]:
        """Return what a sandbox with these endpoints is to have: of none, nothing.

        A default yields to what any of them asks for, whichever joined last.
        """
        if not endpoints:
            return ()
        defaults = _namespace_wide_of(self._policy.defaults)
        return merge(defaults, *(self._namespace_wide(endpoint) for endpoint in endpoints))

    def _namespace_wide(self, endpoint: Endpoint) -> tuple[Sysctl, ...]:
        return _namespace_wide_of(self._asked(endpoint))

    def _asked_by_others(self, endpoint: Endpoint) -> Mapping[str, str]:
        """Return what is to be written into the endpoint's sandbox for the earlier joins."""
        joined = self._store.endpoints_in(sandbox_of(endpoint))
        others = (self._namespace_wide(other) for other in joined if other.id != endpoint.id)
        return {sysctl.key: sysctl.value for sysctl in merge(*others)}

    def _per_interface(self, endpoint: Endpoint) -> tuple[Sysctl, ...]:
        return tuple(
            sysctl
            for sysctl in merge(self._policy.defaults, self._asked(endpoint))
            if is_per_interface(sysctl) and sysctl.key not in endpoint.engine_keys
        )

    def _asked(self, endpoint: Endpoint) -> tuple[Sysctl, ...]:
        network = self._store.find_network(endpoint.network_id)
        return merge(network.options.sysctls if network else (), endpoint.sysctls)


def sandbox_of(endpoint: Endpoint) -> SandboxKey:
    """Return the sandbox that an endpoint is in; raises NotFound if it is in none."""
    if endpoint.attachment is None:
        raise NotFound(f"configure endpoint {short(endpoint.id)}: it has not joined a sandbox")
    return endpoint.attachment.sandbox


def _namespace_wide_of(sysctls: Iterable[Sysctl]) -> tuple[Sysctl, ...]:
    return tuple(sysctl for sysctl in sysctls if not is_per_interface(sysctl))


def _log_contests(endpoint: Endpoint, wanted: Iterable[Sysctl], earlier: Mapping[str, str]) -> None:
    for sysctl in wanted:
        if earlier.get(sysctl.key, sysctl.value) != sysctl.value:
            log.warning(
                "endpoint %s sets %s=%s over %s of an earlier join: the later one wins",
                short(endpoint.id),
                sysctl.key,
                sysctl.value,
                earlier[sysctl.key],
            )
