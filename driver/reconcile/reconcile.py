"""Bring the kernel to what the state file says: at start, on request, after damage.

What differs is found by `driver.reconcile.diff`. Every kind of difference has one remedy here, and
a remedy that fails keeps no other from being tried. Opens transactions of its own.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, ParamSpec

from driver.errors import DriverError
from driver.firewall import ruleset
from driver.model import host_end_name, short, veth_of
from driver.observed import find_uplinks
from driver.reconcile.diff import (
    MENDS_ITSELF,
    Drift,
    Existence,
    Kind,
    bridge_of,
    compare_bridges,
    compare_endpoints,
    compare_macs,
    compare_passage,
    compare_relays,
    compare_reservations,
    compare_rules,
    find_ends,
    find_leftovers,
    is_blocked,
    is_dead,
)
from driver.sysctl.presence import sandbox_of
from driver.trunks import ensure_bridges
from driver.undo import Rollback, attempt_each

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from driver.counts import Counts
    from driver.firewall.firewall import Firewall
    from driver.firewall.portmapper import Publisher
    from driver.linux import Kernel
    from driver.lock import Lock
    from driver.model import Endpoint, Network, NetworkId, SandboxKey, Veth
    from driver.observed import Link
    from driver.state.store import Store
    from driver.sysctl.sandbox import SandboxSysctls

P = ParamSpec("P")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Intent:
    """What the state file says that there should be."""

    networks: Mapping[NetworkId, Network]
    endpoints: tuple[Endpoint, ...]

    @property
    def joined(self) -> tuple[Endpoint, ...]:
        """The endpoints that are in a sandbox, or on their way into one."""
        return tuple(each for each in self.endpoints if each.attachment is not None)

    @property
    def sandboxes(self) -> tuple[SandboxKey, ...]:
        """The sandboxes that any of them is in."""
        return tuple(dict.fromkeys(sandbox_of(endpoint) for endpoint in self.joined))


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of the driver by which things are made whole again."""

    firewall: Firewall
    publisher: Publisher
    sysctls: SandboxSysctls
    counts: Counts


class Reconciler:
    """The kernel's state as a whole, for all networks and endpoints."""

    def __init__(
        self,
        store: Store,
        kernel: Kernel,
        lock: Lock,
        parts: Parts,
        drop_endpoint: Callable[[Endpoint], None],
    ) -> None:
        self._store = store
        self._kernel = kernel
        self._lock = lock
        self._firewall = parts.firewall
        self._publisher = parts.publisher
        self._sysctls = parts.sysctls
        self._counts = parts.counts
        self._drop_endpoint = drop_endpoint

    def restore(self) -> bool:
        """Make all of it, after a restart, a crash or a reboot; return whether that succeeded.

        What cannot be restored is logged and does not keep the rest from being restored.
        """
        with self._lock, self._sysctls.pristine.refreshed_once():
            self._forget_last_boot()
            dead: list[Endpoint] = []
            is_known = attempt_each([partial(self._forget_dead, dead)])
            intent = self._intent()
            bindings = [binding for endpoint in dead for binding in endpoint.bindings]
            with self._store.transaction():
                traced = self._store.sandboxes()
            observe = cache(self._kernel.observe_links)  # once: 0.2 s for 1,000 of them
            links: dict[str, Link] = {}
            is_made = attempt_each(
                [
                    self._sysctls.validation.log_refused_defaults,
                    *(self._ensure_bridge(each) for each in intent.networks.values()),
                    self._kernel.delete_loopback_pair,
                    partial(self._install_firewall, intent, observe),
                    partial(self._kernel.forget_flows, bindings),
                    lambda: links.update(observe()),
                    partial(self._sweep, intent, links),
                    partial(self._publisher.release_unknown, intent.endpoints),
                    *(self._restore_ports(each, intent) for each in intent.endpoints),
                    *(
                        partial(self._restore_endpoint, each, intent, links)
                        for each in intent.joined
                    ),
                    *(partial(self._sysctls.restore, sandbox) for sandbox in traced),
                ]
            )
            return is_known and is_made

    def check(self) -> tuple[Drift, ...]:
        """Return all that differs between the state file and the kernel, and change nothing."""
        with self._lock, self._sysctls.pristine.refreshed_once():
            intent = self._intent()
            return (
                *self._find_damage(intent),
                *self._find_missing_parameters(intent),
                *self._find_equal_macs(intent),
                *self._find_zone_problem(),
            )

    def repair(
        self, choose: Callable[[tuple[Drift, ...]], tuple[Drift, ...]]
    ) -> tuple[tuple[Drift, ...], bool]:
        """Repair what is chosen of the damage there is; return that, and whether all went well.

        Parameters are not looked at: nothing but a container itself changes them. A look takes a
        third of a second beside 1,000 endpoints, so the first two keep no request waiting. What one
        of them finds may be a request's half-done work; what both find is looked for again.
        """
        seeming = self._glimpse()
        if not (seeming and seeming & self._glimpse()):
            return choose(()), True
        with self._lock:
            intent = self._intent()
            chosen = choose(self._find_damage(intent))
            return chosen, self._mend(chosen, intent)

    def _glimpse(self) -> set[tuple[Kind, str]]:
        """Return what seems to be damaged, by kind and subject, while requests go on."""
        with self._lock:
            intent = self._intent()
        found = self._find_damage(intent)
        return {(each.kind, each.subject) for each in found if each.kind not in MENDS_ITSELF}

    def repair_all(self) -> tuple[Drift, ...]:
        """Repair everything that `check` finds; return what differs afterwards."""
        with self._lock:
            intent = self._intent()
            found = self.check()
            with self._sysctls.pristine.refreshed_once():
                self._mend(found, intent)
            return self.check()

    def is_dead(self, endpoint: Endpoint) -> bool:
        """Return whether an endpoint's sandbox has ended without a word from Docker."""
        if endpoint.attachment is None:
            return False
        sandboxes = self._look_at([sandbox_of(endpoint)])
        return is_dead(endpoint, self._kernel.observe_links(), sandboxes)

    def _look_at(self, sandboxes: Iterable[SandboxKey]) -> dict[SandboxKey, Existence]:
        return {each: self._existence(each) for each in sandboxes}

    def _existence(self, sandbox: SandboxKey) -> Existence:
        if self._sysctls.presence.is_alive(sandbox):
            return Existence.IS
        return Existence.WAS if self._sysctls.presence.has_ended(sandbox) else Existence.UNSEEN

    def _intent(self) -> Intent:
        with self._store.transaction():
            networks = {network.id: network for network in self._store.networks()}
            return Intent(networks, self._store.endpoints())

    def _find_damage(self, intent: Intent) -> tuple[Drift, ...]:
        links = self._kernel.observe_links()
        sandboxes = self._look_at(intent.sandboxes)
        networks = intent.networks.values()
        bridges = tuple(compare_bridges(networks, links))
        return (
            *bridges,
            *compare_endpoints(intent.endpoints, intent.networks, links, sandboxes),
            *find_leftovers(networks, intent.endpoints, links),
            *_looked(Kind.RULES, "nftables", self._compare_tables, intent, links),
            *_looked(Kind.ACCEPT, "FORWARD", self._compare_accept, intent),
            *compare_reservations(intent.endpoints, self._kernel.list_reserved()),
            *compare_relays(intent.endpoints, intent.networks, self._kernel.list_relayed()),
            *_looked(Kind.FILTER, "nftables", self._compare_passage, intent, bridges),
        )

    def _compare_passage(self, intent: Intent, bridges: Iterable[Drift]) -> Iterator[Drift]:
        if intent.joined:
            damaged = frozenset(each.subject for each in bridges)
            ends = find_ends(intent.networks, intent.joined, damaged)
            passage = self._kernel.observe_passage(ends)
            yield from compare_passage(intent.networks, intent.joined, passage)

    def _compare_tables(self, intent: Intent, links: Mapping[str, Link]) -> Iterator[Drift]:
        networks = intent.networks.values()
        text = ""
        if networks:
            uplinks = find_uplinks(links)
            text = ruleset.render_ruleset(networks, intent.endpoints, uplinks)
        wanted = self._kernel.preview_rules(text, ruleset.TABLES)
        yield from compare_rules(wanted, self._kernel.list_rules(ruleset.TABLES))

    def _compare_accept(self, intent: Intent) -> Iterator[Drift]:
        networks = intent.networks
        if networks and not self._kernel.has_forward_accept(ruleset.ACCEPTED_MARK):
            yield Drift(
                Kind.ACCEPT,
                "FORWARD",
                "pynet's rule is not behind the operators' chain DOCKER-USER",
            )
        if not networks and self._kernel.has_forward_accept(ruleset.ACCEPTED_MARK):
            yield Drift(Kind.ACCEPT, "FORWARD", "pynet's rule is left over")

    def _find_equal_macs(self, intent: Intent) -> tuple[Drift, ...]:
        inside = self._kernel.read_macs(
            {host_end_name(each.id): sandbox_of(each) for each in intent.joined}
        )
        links = self._kernel.observe_links()
        return tuple(compare_macs(intent.networks.values(), intent.joined, links, inside))

    def _find_zone_problem(self) -> Iterator[Drift]:
        if problem := self._kernel.zone_problem():
            yield Drift(Kind.ZONE, "firewalld", problem)

    def _find_missing_parameters(self, intent: Intent) -> Iterator[Drift]:
        for sandbox in intent.sandboxes:
            yield from _looked(Kind.PARAMETER, sandbox, self._compare_parameters, sandbox)

    def _compare_parameters(self, sandbox: SandboxKey) -> Iterator[Drift]:
        with self._store.transaction():
            missing = self._sysctls.find_missing(sandbox)
        for sysctl in missing:
            yield Drift(Kind.PARAMETER, sandbox, f"{sysctl.key}={sysctl.value} was not written")

    def _mend(self, found: Collection[Drift], intent: Intent) -> bool:
        """Run the remedies of what was found, one a kind, in the order in which they build.

        What fails is logged; tells whether nothing did.
        """
        by_kind: dict[Kind, list[str]] = {}
        _log_repairs(found)
        for difference in found:
            by_kind.setdefault(difference.kind, []).append(difference.subject)
        steps: list[Callable[[], object]] = []
        for kind in Kind:  # bridges before their ports, endpoints before the rules
            if kind in by_kind:
                steps += self._remedies(kind, by_kind[kind], intent)
        return attempt_each(steps)

    def _remedies(
        self, kind: Kind, subjects: list[str], intent: Intent
    ) -> Iterator[Callable[[], object]]:
        match kind:
            case Kind.BRIDGE:
                networks = intent.networks.values()
                damaged = [
                    each
                    for each in networks
                    if any(bridge.name in subjects for bridge in each.bridges)
                ]
                yield from map(self._ensure_bridge, damaged)
            case Kind.HOST_END:
                yield from (partial(self._ensure_port, each, intent) for each in intent.joined)
            case Kind.DEAD:
                dead = [each for each in intent.joined if each.id in subjects]
                yield from (partial(self._drop_endpoint, each) for each in dead)
            case Kind.LEFTOVER:
                yield partial(self._kernel.delete_links, subjects)
            case Kind.RULES | Kind.ACCEPT | Kind.FORWARDING | Kind.UPLINK:
                yield self._rule_remedy(kind, intent)
            case Kind.RESERVATION | Kind.RELAY:
                yield from (
                    self._restore_ports(each, intent)
                    for each in intent.endpoints
                    if any(str(binding.host) in subjects for binding in each.bindings)
                )
            case Kind.PARAMETER:
                yield from (
                    partial(self._restore_parameters, each)
                    for each in intent.sandboxes
                    if each in subjects
                )
            case Kind.SEVERED | Kind.ROUTE | Kind.FILTER | Kind.MAC | Kind.ZONE:
                pass

    def _restore_ports(self, endpoint: Endpoint, intent: Intent) -> Callable[[], object]:
        network = intent.networks[endpoint.network_id]
        return partial(self._publisher.restore, endpoint, network)

    def _rule_remedy(self, kind: Kind, intent: Intent) -> Callable[[], object]:
        """Return what makes the one thing anew that others change often, or everything."""
        if kind is Kind.UPLINK:
            return self._firewall.set_uplinks
        if kind is Kind.ACCEPT and intent.networks:
            return self._firewall.accept
        return lambda: self._install_firewall(self._intent())

    def _ensure_bridge(self, network: Network) -> Callable[[], object]:
        return partial(ensure_bridges, self._kernel, network)

    def _ensure_port(self, endpoint: Endpoint, intent: Intent) -> bool:
        return self._kernel.ensure_port(self._veth(endpoint, intent))

    def _veth(self, endpoint: Endpoint, intent: Intent) -> Veth:
        return veth_of(endpoint, intent.networks[endpoint.network_id])

    def _install_firewall(
        self, intent: Intent, links: Callable[[], Mapping[str, Link]] | None = None
    ) -> None:
        self._firewall.install(intent.networks.values(), intent.endpoints, links)

    def _restore_endpoint(
        self, endpoint: Endpoint, intent: Intent, links: Mapping[str, Link]
    ) -> None:
        """Put a joined endpoint's host end back, unless a listing shows that it is in place.

        A question for each would have to wait for the kernel's lock every time, and for 15 to 30 ms
        while a namespace is being destroyed.
        """
        if is_blocked(bridge_of(endpoint, intent.networks), links):
            return  # never on another program's link; the watcher waits for its going
        veth = self._veth(endpoint, intent)
        link = links.get(veth.host_end)
        is_in_place = link is not None and link.is_port(veth)
        if is_in_place or self._kernel.ensure_port(veth):
            self._restore_parameters(sandbox_of(endpoint))

    def _restore_parameters(self, sandbox: SandboxKey) -> None:
        with Rollback() as undo, self._store.transaction():
            self._sysctls.resume(sandbox, undo)

    def _sweep(self, intent: Intent, links: Mapping[str, Link]) -> None:
        """Delete links that carry our alias and belong to nothing."""
        leftovers = list(find_leftovers(intent.networks.values(), intent.endpoints, links))
        for leftover in leftovers:
            log.warning("deleting %s", leftover)
        self._kernel.delete_links([leftover.subject for leftover in leftovers])
        self._counts.leftovers.labels("link").inc(len(leftovers))

    def _forget_last_boot(self) -> None:
        """Drop endpoints from before a reboot: no sandbox outlives it, and no one else tells."""
        boot_id = self._kernel.boot_id()
        with self._store.transaction(frees=True):
            if self._store.boot_id() == boot_id:
                return
            for endpoint in self._store.endpoints():
                self._store.delete_endpoint(endpoint.id)
            self._store.delete_parts()
            self._store.set_boot_id(boot_id)

    def _forget_dead(self, forgotten: list[Endpoint]) -> None:
        """Drop endpoints whose sandbox ended unnoticed, before rules are made for them.

        Only rows: the rest goes when everything is made anew.
        """
        intent = self._intent()
        links = self._kernel.observe_links()
        sandboxes = self._look_at(intent.sandboxes)
        with self._store.transaction(frees=True):
            for endpoint in intent.joined:
                if is_dead(endpoint, links, sandboxes):
                    log.info("endpoint %s died with its sandbox", short(endpoint.id))
                    self._store.delete_endpoint(endpoint.id)
                    forgotten.append(endpoint)


def _looked(
    kind: Kind, subject: str, look: Callable[P, Iterator[Drift]], *args: P.args, **kw: P.kwargs
) -> tuple[Drift, ...]:
    """Return what a look finds; one that fails is a difference itself, and keeps no other."""
    try:
        return tuple(look(*args, **kw))
    except DriverError as error:
        return (Drift(kind, subject, f"cannot be looked at: {error}"),)


def _log_repairs(found: Iterable[Drift]) -> None:
    """Log what is repaired, each in a line; of rules, which are repaired as a whole, how many."""
    rules: list[Drift] = []
    for difference in found:
        if difference.kind is Kind.UPLINK:  # nothing is broken
            log.info("taking note of: %s", difference)
        elif difference.kind is Kind.RULES:
            rules.append(difference)
            log.debug("repairing: %s", difference)
        else:
            log.log(_level(difference), "repairing: %s", difference)
    if rules:
        text = "repairing: %d rules and elements, such as: %s"
        log.log(_level(rules[0]), text, len(rules), rules[0])


def _level(difference: Drift) -> int:
    """Return how loud a repair is: of what others break again and again, health tells."""
    return logging.DEBUG if difference.contested else logging.WARNING
