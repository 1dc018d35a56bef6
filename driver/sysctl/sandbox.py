"""Give sandboxes their kernel parameters and take them back: when, and on whose behalf.

What to write is decided in `driver.sysctl.policy`; writing is the kernel's. The caller holds the
driver's lock, except where a method says that it takes it.

Engine 28 and later create the sandbox before Join, so everything is written there and then. On
20.10 to 27 the sandbox comes after: a watch writes as soon as it exists, while runc's hooks still
hold the container's process. Per-interface parameters wait for libnetwork to bring the interface.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from driver.counts import Counts
from driver.errors import DriverError, InvalidRequest, NotFound
from driver.health import Health
from driver.model import Sysctl, host_end_name, sandbox_end_name, short
from driver.recent import Recent
from driver.sysctl.host import Heritage
from driver.sysctl.policy import (
    NO_POLICY,
    find_contests,
    find_kept,
    find_stronger,
    foresee_traces,
    is_of_interface,
    plan_restores,
    plan_undo,
    plan_writes,
    strongest,
)
from driver.sysctl.sources import Wishes, values_of
from driver.undo import Rollback

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from driver.linux import Kernel
    from driver.lock import Lock
    from driver.model import Endpoint, Network, SandboxKey, SysctlWrite, Trace
    from driver.state.store import Store
    from driver.sysctl.policy import SysctlPolicy, Wish

DEFAULTS = "PYNET_DEFAULT_SYSCTLS"
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Followed:
    """What a change of a network's parameters did to those who run on it.

    `changed` are the sandboxes in which something was written, `awaited` those that are yet to
    come; `kept` are the parameters that containers had set themselves, `overruled` those of which a
    stronger wish has another value, with it.
    """

    changed: set[SandboxKey] = field(default_factory=set)
    awaited: set[SandboxKey] = field(default_factory=set)
    kept: dict[SandboxKey, list[str]] = field(default_factory=dict)
    overruled: dict[SandboxKey, list[Wish]] = field(default_factory=dict)


class Sandboxes:
    """The sandboxes of all endpoints, as far as their kernel parameters go."""

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
        self._store = store
        self._kernel = kernel
        self._lock = lock
        self._policy = policy
        self._counts = counts or Counts()
        self._health = health or Health()
        self._untried = policy.defaults
        self._pristine: dict[str, str] = {}
        self._asked: set[str] | None = None
        self._seen: Recent[SandboxKey] = Recent()
        self.heritage = Heritage(kernel, policy)
        self._wishes = Wishes(store, policy)

    def check(self, sysctls: tuple[Sysctl, ...], inherit: tuple[str, ...] = ()) -> None:
        """Try the parameters, and what is inherited, where they do no harm; takes no lock.

        Raises InvalidRequest that names the parameter and the reason: this kernel's, or that the
        operator keeps it from users.
        """
        self._policy.check(sysctls)
        self._pristine.update(self._kernel.check_sysctls(sysctls))
        self.heritage.check(inherit)

    def inherit(self, network: Network) -> tuple[Sysctl, ...]:
        """Return what an endpoint of the network that joins now inherits from the host."""
        return self.heritage.read(network.options.inherit)

    def check_defaults(self) -> None:
        """Try the operator's defaults in the same way, until this kernel has taken them once.

        While it does not, health says so: no network can be made.
        """
        if not self._untried:
            return
        try:
            self._pristine.update(self._kernel.check_sysctls(self._untried))
        except InvalidRequest as error:
            problem = f"default for all networks of this host, {DEFAULTS}: {error}"
            self._health.report(DEFAULTS, f"no network can be made: {problem}")
            raise InvalidRequest(problem) from error
        self._untried = ()
        self._health.clear(DEFAULTS)

    def look_at_defaults(self) -> None:
        """Say at the start if a default is refused: what is there already does without it."""
        try:
            self.check_defaults()
        except InvalidRequest as error:
            log.error("no network can be made: %s", error)  # noqa: TRY400 - the words say it all

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
            others = [each for each in self._store.endpoints_in(sandbox) if each.id != endpoint.id]
            ranked = self._wishes.rank([*others, endpoint])
            traces = self._store.traces(sandbox)
        wishes = strongest(ranked)
        _log_contests(endpoint, ranked)
        if not self._kernel.has_sandbox(sandbox):
            return False
        wanted = [each.sysctl for each in wishes.values() if each.endpoint in {endpoint.id, None}]

        current = self._read(sandbox, wanted)
        plan = self._plan(sandbox, wanted, current, traces)
        if not plan:
            return True
        foreseen = foresee_traces(current, plan)
        keys = [each.key for each in plan]
        undo.push(self._remember, sandbox, traces, keys)
        with self._store.transaction():
            self._store.put_traces(sandbox, foreseen)
        written = self._write(sandbox, plan)
        undo.push(self._put_back, sandbox, written)
        if written != foreseen:  # the kernel shows it otherwise, or the container has changed it
            self._remember(sandbox, traces, keys, written)
        return True

    def await_sandbox(self, endpoint: Endpoint, undo: Rollback) -> None:
        """Have what an endpoint asks for written as soon as its sandbox exists.

        Runs in the transaction of the join, and after its row was stored.
        """
        sandbox = sandbox_of(endpoint)
        undo.push(self._renew_watch, sandbox)
        self.renew_watch(sandbox)

    def renew_watch(self, sandbox: SandboxKey, *, is_there: bool = False) -> None:
        """Have the sandbox configured when it comes, for the endpoints that are joined by now.

        `is_there` is for one that has come, but for an interface. Runs in a transaction.
        """
        endpoints = self._store.endpoints_in(sandbox)
        wanted = values_of(self._wishes.of_endpoints(endpoints))
        interfaces = {endpoint: self._per_interface(endpoint) for endpoint in endpoints}
        # Now, and without the rtnl lock: to ask for it when the sandbox has come takes up to 0.7 s
        # where many containers start and end, which their first processes may not be held for.
        indices = {
            endpoint: self._kernel.find_index(sandbox_end_name(endpoint.id))
            for endpoint, sysctls in interfaces.items()
            if sysctls
        }
        if not is_there:  # what was written was another one's, of this name
            self._store.delete_traces(sandbox, self._store.traces(sandbox))
            self._foresee(sandbox, wanted)
        if endpoints:
            # Also when there is nothing to write: only then can the sandbox's end be told from its
            # not having begun.
            action = partial(
                self._on_arrival, sandbox, wanted, interfaces, indices, is_new=not is_there
            )
            self._kernel.watch_sandbox(sandbox, action)
        elif self._kernel.unwatch_sandbox(sandbox):
            self._counts.watch_misses.inc()
            log.warning(
                "sandbox %s never came into sight: its container did not start, or it ran without "
                "the network's parameters, and this driver does not see Docker's mounts",
                sandbox,
            )

    def _foresee(self, sandbox: SandboxKey, wanted: Iterable[Sysctl]) -> None:
        """Store what the parameters of a sandbox that is yet to come will have been.

        They are written without the lock, for which its first process is not held, and a driver
        that is killed after the first of them has to know that it was its own. Runs in a
        transaction.
        """
        wanted = tuple(wanted)
        self._ask_pristine([each.key for each in wanted if each.key not in self._pristine])
        plan = plan_writes(wanted, self._pristine, self._pristine, {})
        self._store.put_traces(sandbox, foresee_traces(self._pristine, plan))

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
            self._counts.sysctl_writes.inc(len(sysctls))
        return done

    def settle(self, sandbox: SandboxKey) -> None:
        """Put back what nobody in the sandbox asks for any more, as far as the sandbox lives on.

        For when an endpoint has left, and its row says so; opens transactions of its own.
        """
        is_there = self._kernel.has_sandbox(sandbox)
        with self._store.transaction(frees=True):
            if not is_there:
                self.renew_watch(sandbox)
            endpoints = self._store.endpoints_in(sandbox)
            wanted = values_of(self._wishes.of_endpoints(endpoints))
            traces = self._store.traces(sandbox)
        if not endpoints:
            self._seen.discard(sandbox)  # nobody will ask whether it has ended
        values = {sysctl.key: sysctl.value for sysctl in wanted}
        if not (is_there and traces):
            return
        written = self._write(sandbox, plan_restores(values, traces))
        with self._store.transaction(frees=True):
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
        wanted = values_of(self._wishes.of_endpoints(endpoints))
        is_unfinished = any(map(self._is_unfinished, endpoints))  # traces may be foreseen, no more
        missing = [sysctl for sysctl in wanted if is_unfinished or sysctl.key not in traces]
        written = self._write_wanted(sandbox, missing, traces)
        undo.push(self._put_back, sandbox, written)
        self._store.put_traces(sandbox, written)
        if is_unfinished:
            self.renew_watch(sandbox, is_there=True)

    @contextmanager
    def one_look(self) -> Iterator[None]:
        """Ask the kernel once, inside the block, what a new namespace has of a parameter.

        It makes one and destroys it, 20 ms for each of the sandboxes that keep their own values.
        """
        self._asked = set()
        try:
            yield
        finally:
            self._asked = None

    def _ask_pristine(self, keys: Collection[str]) -> None:
        asked = self._asked
        if asked is not None:
            keys = [key for key in keys if key not in asked]
        if keys:
            self._pristine.update(self._kernel.read_pristine(keys))
        if asked is not None:
            asked.update(keys)

    def find_missing(self, sandbox: SandboxKey) -> tuple[Sysctl, ...]:
        """Return what `restore` would write into a sandbox that exists, and write nothing.

        Runs in a transaction.
        """
        traces = self._store.traces(sandbox)
        wanted = [
            sysctl
            for sysctl in values_of(self._wishes.of_sandbox(sandbox))
            if sysctl.key not in traces
        ]
        if not (wanted and self._kernel.has_sandbox(sandbox)):
            return ()
        self._ask_pristine([sysctl.key for sysctl in wanted])
        current = self._read(sandbox, wanted)
        plan = plan_writes(wanted, current, self._pristine, traces)
        return tuple(Sysctl(each.key, each.value) for each in plan)

    def follow(self, old: Network, new: Network, undo: Rollback) -> Followed:
        """Bring what runs from a network's old parameters to its new ones, which are stored.

        What a container has set itself stays. Runs in the transaction of the change.
        """
        outcome = Followed()
        before, after = set(old.options.sysctls), set(new.options.sysctls)
        is_moved = old.options.priority != new.options.priority
        keys = frozenset(sysctl.key for sysctl in (before | after if is_moved else before ^ after))
        joined: dict[SandboxKey, list[Endpoint]] = {}
        for endpoint in self._store.endpoints() if keys else ():
            if endpoint.attachment is not None:
                joined.setdefault(sandbox_of(endpoint), []).append(endpoint)
        own = [each for among in joined.values() for each in among if each.network_id == new.id]
        present: dict[SandboxKey, dict[str, Wish]] = {}
        for endpoint in own:
            sandbox = sandbox_of(endpoint)
            if self._kernel.has_sandbox(sandbox):
                present[sandbox] = self._wishes.of_endpoints(joined[sandbox])
            else:
                undo.push(self._renew_watch, sandbox)
                self.renew_watch(sandbox)
                outcome.awaited.add(sandbox)
        if present:
            self._rewrite(present, keys, outcome, undo)
        changed = [sysctl for sysctl in new.options.sysctls if sysctl.key in keys]
        for sandbox, wishes in present.items():
            if stronger := find_stronger(changed, wishes):
                outcome.overruled[sandbox] = stronger
        for endpoint in own:
            sandbox = sandbox_of(endpoint)
            if sandbox in present and self._rewrite_interface(endpoint, old, new, undo):
                outcome.changed.add(sandbox)
        return outcome

    def _rewrite(
        self,
        sandboxes: Mapping[SandboxKey, Mapping[str, Wish]],
        keys: Collection[str],
        outcome: Followed,
        undo: Rollback,
    ) -> None:
        """Have these parameters of sandboxes be what is wished for there by now."""
        keys = sorted(key for key in keys if not is_of_interface(key))
        if not keys:
            return
        self._pristine.update(self._kernel.read_pristine(keys))
        traces = {sandbox: self._store.traces(sandbox) for sandbox in sandboxes}
        plans: dict[SandboxKey, list[SysctlWrite]] = {}
        for sandbox, current in self._kernel.read_sysctls(sandboxes.keys(), keys).items():
            wishes = sandboxes[sandbox]
            wanted = [wishes[key].sysctl for key in keys if key in wishes]
            unwanted = [key for key in keys if key in traces[sandbox] and key not in wishes]
            if kept := find_kept(wanted, current, self._pristine, traces[sandbox]):
                outcome.kept[sandbox] = kept
            plans[sandbox] = [
                *plan_writes(wanted, current, self._pristine, traces[sandbox]),
                *plan_undo(traces[sandbox][key] for key in unwanted),
            ]
        written = self._write_all(plans)
        for sandbox, changes in written.items():
            undo.push(self._put_back, sandbox, changes)
            late = {each.key for each in plans[sandbox]} - {each.key for each in changes}
            if kept := sorted(late & sandboxes[sandbox].keys()):
                outcome.kept.setdefault(sandbox, []).extend(kept)
        for sandbox, wishes in sandboxes.items():
            changes = written.get(sandbox, ())
            if any(trace.before != trace.written for trace in changes):
                outcome.changed.add(sandbox)
            gone = [key for key in keys if key not in wishes and key in traces[sandbox]]
            self._store.delete_traces(sandbox, gone)
            self._store.put_traces(sandbox, [each for each in changes if each.key in wishes])

    def _rewrite_interface(
        self, endpoint: Endpoint, old: Network, new: Network, undo: Rollback
    ) -> bool:
        """Do the same for an endpoint's interface; returns whether anything was written."""
        before = set(values_of(self._wishes.of_interface(endpoint, old)))
        after = set(values_of(self._wishes.of_interface(endpoint, new)))
        if before == after:
            return False
        undo.push(self._write_interface, endpoint, before, after)
        return self._write_interface(endpoint, after, before)

    def _write_interface(
        self, endpoint: Endpoint, wanted: set[Sysctl], present: set[Sysctl]
    ) -> bool:
        """Bring an interface from its present parameters to those that are wanted."""
        changed = sorted(wanted - present, key=lambda sysctl: sysctl.key)
        reset = {sysctl.key for sysctl in present} - {sysctl.key for sysctl in wanted}
        sandbox, host_end = sandbox_of(endpoint), host_end_name(endpoint.id)
        try:
            return self._kernel.set_interface_sysctls(sandbox, host_end, changed, sorted(reset))
        except NotFound:
            log.info("the interface of %s is gone; nothing to configure", short(endpoint.id))
            return False

    def _on_arrival(
        self,
        sandbox: SandboxKey,
        wanted: tuple[Sysctl, ...],
        interfaces: Mapping[Endpoint, tuple[Sysctl, ...]],
        indices: Mapping[Endpoint, int | None],
        *,
        is_new: bool,
    ) -> None:
        """Configure a sandbox that has just come into being; takes the lock only afterwards.

        The container's process is held for a few tens of milliseconds only, and somebody else may
        be making links under the lock.
        """
        self._seen.add(sandbox)
        written: tuple[Trace, ...] = ()
        try:
            written = self._write_wanted(sandbox, wanted, {})
            for endpoint, index in indices.items():
                self._await_interface(endpoint, interfaces[endpoint], index)
        finally:
            with self._lock:
                with self._store.transaction():
                    if is_new:  # what was found there is the truth, not what was foreseen
                        self._store.delete_traces(sandbox, [sysctl.key for sysctl in wanted])
                    self._store.put_traces(sandbox, written)
                    is_deserted = not self._store.endpoints_in(sandbox)
                    if not is_deserted:
                        self._catch_up(sandbox, wanted)
                if is_deserted:  # before there was a trace by which a leave could put anything back
                    self.settle(sandbox)
        self._mark_configured(interfaces)

    def _catch_up(self, sandbox: SandboxKey, written: Iterable[Sysctl]) -> None:
        """Write what a network has come to ask for since a watch was told what to write."""
        wishes = self._wishes.of_sandbox(sandbox)
        late = {sysctl.key for sysctl in set(written) ^ set(values_of(wishes))}
        self._rewrite({sandbox: wishes}, late, Followed(), Rollback())

    def _await_interface(
        self, endpoint: Endpoint, sysctls: tuple[Sysctl, ...], index: int | None
    ) -> None:
        """Write an interface's parameters as soon as it is up; one whose endpoint left needs none.

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

    def _is_unfinished(self, endpoint: Endpoint) -> bool:
        attachment = endpoint.attachment
        return attachment is not None and not attachment.configured

    def _mark_configured(self, written: Mapping[Endpoint, tuple[Sysctl, ...]]) -> None:
        with self._lock, self._store.transaction():
            for endpoint, sysctls in written.items():
                known = self._store.find_endpoint(endpoint.id)
                if known is None or known.attachment != endpoint.attachment:
                    continue
                late = set(self._per_interface(known))
                if late != set(sysctls):  # the network has been changed meanwhile
                    self._write_interface(known, late, set(sysctls))
                self._store.put_endpoint(known.configured())

    def _per_interface(self, endpoint: Endpoint) -> tuple[Sysctl, ...]:
        return values_of(self._wishes.of_interface(endpoint))

    def _write_wanted(
        self, sandbox: SandboxKey, wanted: Collection[Sysctl], traces: Mapping[str, Trace]
    ) -> tuple[Trace, ...]:
        current = self._read(sandbox, wanted)
        return self._write(sandbox, self._plan(sandbox, wanted, current, traces))

    def _plan(
        self,
        sandbox: SandboxKey,
        wanted: Collection[Sysctl],
        current: Mapping[str, str],
        traces: Mapping[str, Trace],
    ) -> list[SysctlWrite]:
        if find_kept(wanted, current, self._pristine, traces):
            # Either the container set them itself, or the host has changed a value that new
            # namespaces copy since we last looked.
            self._ask_pristine([sysctl.key for sysctl in wanted])
        for key in find_kept(wanted, current, self._pristine, traces):
            log.info("sandbox %s keeps its own %s", sandbox, key)
        return plan_writes(wanted, current, self._pristine, traces)

    def _read(self, sandbox: SandboxKey, wanted: Collection[Sysctl]) -> Mapping[str, str]:
        """Return what a sandbox has of these parameters; one that has gone meanwhile has none."""
        if not wanted:
            return {}
        found = self._kernel.read_sysctls([sandbox], [sysctl.key for sysctl in wanted])
        if sandbox not in found:
            _log_gone(sandbox)
        return found.get(sandbox, {})

    def _write(self, sandbox: SandboxKey, plan: Sequence[SysctlWrite]) -> tuple[Trace, ...]:
        """Write into a sandbox; one that has gone meanwhile needs nothing."""
        return self._write_all({sandbox: plan}).get(sandbox, ())

    def _write_all(
        self, plans: Mapping[SandboxKey, Sequence[SysctlWrite]]
    ) -> Mapping[SandboxKey, tuple[Trace, ...]]:
        plans = {sandbox: plan for sandbox, plan in plans.items() if plan}
        if not plans:
            return {}
        written = self._kernel.write_sysctls(plans)
        for sandbox in plans:
            if sandbox not in written:
                _log_gone(sandbox)
        self._counts.sysctl_writes.inc(sum(map(len, written.values())))
        return written

    def _remember(
        self,
        sandbox: SandboxKey,
        traces: Mapping[str, Trace],
        keys: Collection[str],
        written: Iterable[Trace] = (),
    ) -> None:
        """Have the traces of these keys be what they were, but for what has been written."""
        with self._store.transaction():
            self._store.delete_traces(sandbox, keys)
            self._store.put_traces(sandbox, [traces[key] for key in keys if key in traces])
            self._store.put_traces(sandbox, written)

    def _put_back(self, sandbox: SandboxKey, traces: tuple[Trace, ...]) -> None:
        self._write(sandbox, plan_undo(traces))


def sandbox_of(endpoint: Endpoint) -> SandboxKey:
    """Return the sandbox that an endpoint is in; raises NotFound if it is in none."""
    if endpoint.attachment is None:
        raise NotFound(f"configure endpoint {short(endpoint.id)}: it has not joined a sandbox")
    return endpoint.attachment.sandbox


def _log_gone(sandbox: SandboxKey) -> None:
    log.info("sandbox %s is gone; nothing to configure", sandbox)


def _log_contests(endpoint: Endpoint, ranked: Collection[Wish]) -> None:
    """Say what the endpoint's network takes from another of the container's, or loses to it."""
    for contest in find_contests(ranked):
        winner, loser = contest.winner, contest.loser
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
                contest.reason,
            )
