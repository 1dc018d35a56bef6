"""Write the sysctls of sandboxes: read, plan, record, write; and restore what was there before.

What to write is decided in `driver.sysctl.policy`, outside the sandbox's namespace. The caller
holds the driver's lock, or is the watch of a sandbox that has just appeared.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from driver.model import Sysctl
from driver.sysctl.policy import (
    find_kept,
    foresee_traces,
    is_of_interface,
    plan_restores,
    plan_undo,
    plan_writes,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from driver.counts import Counts
    from driver.linux import Kernel
    from driver.model import SandboxKey, SysctlWrite, Trace
    from driver.state.store import Store
    from driver.sysctl.policy import RequestedValue
    from driver.sysctl.pristine import PristineValues
    from driver.undo import Rollback

log = logging.getLogger(__name__)


class SysctlWriter:
    """Writes of sysctls into sandboxes, each with a trace. A sandbox that is gone gets none."""

    def __init__(
        self, store: Store, kernel: Kernel, pristine: PristineValues, counts: Counts
    ) -> None:
        self._store = store
        self._kernel = kernel
        self._pristine = pristine
        self._counts = counts

    def write_recorded(
        self,
        sandbox: SandboxKey,
        requested: Collection[Sysctl],
        traces: Mapping[str, Trace],
        undo: Rollback,
    ) -> None:
        """Write what is requested, its traces stored first.

        Opens transactions of its own: what a sysctl was is stored before it is written, so that a
        crash in between leaves nothing that cannot be restored.
        """
        current = self._read(sandbox, requested)
        plan = self._plan(sandbox, requested, current, traces)
        if not plan:
            return
        foreseen = foresee_traces(current, plan)
        keys = [each.key for each in plan]
        undo.push(self._replace_traces, sandbox, traces, keys)
        with self._store.transaction():
            self._store.put_traces(sandbox, foreseen)
        written = self._write(sandbox, plan)
        undo.push(self.undo, sandbox, written)
        if written != foreseen:  # the kernel shows it otherwise, or the container has changed it
            self._replace_traces(sandbox, traces, keys, written)

    def write(
        self, sandbox: SandboxKey, requested: Collection[Sysctl], traces: Mapping[str, Trace]
    ) -> tuple[Trace, ...]:
        """Write what is requested; return the traces, which the caller stores."""
        current = self._read(sandbox, requested)
        return self._write(sandbox, self._plan(sandbox, requested, current, traces))

    def write_new(self, sandbox: SandboxKey, requested: Collection[Sysctl]) -> tuple[Trace, ...]:
        """Write what is requested into a sandbox that has just appeared; return the traces.

        Its first process is not held for long, so the sandbox is not read before: what a new one
        has is known. A value that is another is left for `write`.
        """
        known = self._pristine.known
        return self._write(sandbox, plan_writes(requested, known, known, {}))

    def find_missing(
        self, sandbox: SandboxKey, requested: Collection[Sysctl], traces: Mapping[str, Trace]
    ) -> tuple[Sysctl, ...]:
        """Return what `write` would write, and write nothing."""
        self._pristine.refresh([sysctl.key for sysctl in requested])
        current = self._read(sandbox, requested)
        plan = plan_writes(requested, current, self._pristine.known, traces)
        return tuple(Sysctl(each.key, each.value) for each in plan)

    def foresee(self, requested: Collection[Sysctl]) -> tuple[Trace, ...]:
        """Return the traces that writing this into a new sandbox will leave."""
        self._pristine.require([sysctl.key for sysctl in requested])
        known = self._pristine.known
        return foresee_traces(known, plan_writes(requested, known, known, {}))

    def undo(self, sandbox: SandboxKey, traces: Collection[Trace]) -> None:
        """Write what was there before, unless the container has changed it since."""
        self._write(sandbox, plan_undo(traces))

    def restore(
        self, sandbox: SandboxKey, requested: Iterable[Sysctl], traces: Mapping[str, Trace]
    ) -> None:
        """Restore the sysctls that are not requested any more; opens a transaction of its own."""
        values = {sysctl.key: sysctl.value for sysctl in requested}
        written = self._write(sandbox, plan_restores(values, traces))
        with self._store.transaction(frees=True):
            self._store.delete_traces(sandbox, traces.keys() - values.keys())
            self._store.put_traces(sandbox, [trace for trace in written if trace.key in values])

    def update(
        self,
        sandboxes: Mapping[SandboxKey, Mapping[str, RequestedValue]],
        keys: Collection[str],
        undo: Rollback,
    ) -> tuple[set[SandboxKey], dict[SandboxKey, list[str]]]:
        """Bring these sysctls to what sandboxes request by now; runs in a transaction.

        Returns the sandboxes in which a value has changed, and the keys that containers keep
        because they have set them themselves.
        """
        keys = sorted(key for key in keys if not is_of_interface(key))
        if not keys:
            return set(), {}
        self._pristine.refresh(keys)
        traces = {sandbox: self._store.traces(sandbox) for sandbox in sandboxes}
        plans: dict[SandboxKey, list[SysctlWrite]] = {}
        kept: dict[SandboxKey, list[str]] = {}
        for sandbox, current in self._kernel.read_sysctls(sandboxes.keys(), keys).items():
            ours, requested = traces[sandbox], sandboxes[sandbox]
            wanted = [requested[key].sysctl for key in keys if key in requested]
            kept[sandbox] = find_kept(wanted, current, self._pristine.known, ours)
            plans[sandbox] = [
                *plan_writes(wanted, current, self._pristine.known, ours),
                *plan_undo(ours[key] for key in keys if key in ours and key not in requested),
            ]
        written = self._write_all(plans)
        for sandbox, changes in written.items():
            undo.push(self.undo, sandbox, changes)
            late = {each.key for each in plans[sandbox]} - {each.key for each in changes}
            kept[sandbox] += sorted(late & sandboxes[sandbox].keys())
        for sandbox, requested in sandboxes.items():
            changes = written.get(sandbox, ())
            dropped = [key for key in keys if key in traces[sandbox] and key not in requested]
            self._store.delete_traces(sandbox, dropped)
            self._store.put_traces(sandbox, [each for each in changes if each.key in requested])
        changed = {
            sandbox
            for sandbox, changes in written.items()
            if any(trace.before != trace.written for trace in changes)
        }
        return changed, {sandbox: names for sandbox, names in kept.items() if names}

    def _plan(
        self,
        sandbox: SandboxKey,
        requested: Collection[Sysctl],
        current: Mapping[str, str],
        traces: Mapping[str, Trace],
    ) -> list[SysctlWrite]:
        if find_kept(requested, current, self._pristine.known, traces):
            # Either the container set them itself, or the host has changed a value that new
            # namespaces copy since we last looked.
            self._pristine.refresh([sysctl.key for sysctl in requested])
        for key in find_kept(requested, current, self._pristine.known, traces):
            log.info("sandbox %s keeps its own %s", sandbox, key)
        return plan_writes(requested, current, self._pristine.known, traces)

    def _read(self, sandbox: SandboxKey, requested: Collection[Sysctl]) -> Mapping[str, str]:
        if not requested:
            return {}
        found = self._kernel.read_sysctls([sandbox], [sysctl.key for sysctl in requested])
        if sandbox not in found:
            _log_gone(sandbox)
        return found.get(sandbox, {})

    def _write(self, sandbox: SandboxKey, plan: Sequence[SysctlWrite]) -> tuple[Trace, ...]:
        return self._write_all({sandbox: plan}).get(sandbox, ())

    def _write_all(
        self, plans: Mapping[SandboxKey, Sequence[SysctlWrite]]
    ) -> Mapping[SandboxKey, tuple[Trace, ...]]:
        plans = {sandbox: plan for sandbox, plan in plans.items() if plan}
        if not plans:
            return {}
        written = self._kernel.write_sysctls(plans)
        for sandbox in plans.keys() - written.keys():
            _log_gone(sandbox)
        self._counts.sysctl_writes.inc(sum(map(len, written.values())))
        return written

    def _replace_traces(
        self,
        sandbox: SandboxKey,
        before: Mapping[str, Trace],
        keys: Collection[str],
        written: Iterable[Trace] = (),
    ) -> None:
        """Set the traces of these keys to what they were before, except for what was written."""
        with self._store.transaction():
            self._store.delete_traces(sandbox, keys)
            self._store.put_traces(sandbox, [before[key] for key in keys if key in before])
            self._store.put_traces(sandbox, written)


def _log_gone(sandbox: SandboxKey) -> None:
    log.info("sandbox %s is gone; nothing to configure", sandbox)
