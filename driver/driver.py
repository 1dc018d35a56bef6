"""The operations of the network driver protocol: store, change the kernel, undo on failure.

Every change is one block: the lock, what to take back, the transaction. It parses no request and
knows no netlink. Nothing in here calls Docker, resolves a name or waits for a sandbox.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count
from typing import TYPE_CHECKING

from driver.announcements import Neighbours
from driver.counts import Counts
from driver.errors import Conflict, DriverError, InvalidRequest, NotFound
from driver.firewall.firewall import Firewall
from driver.firewall.portmapper import Publisher
from driver.firewall.ports import find_unserved, is_satisfied
from driver.health import Health
from driver.lock import Lock
from driver.model import (
    BRIDGE_PORTS,
    PARTS,
    BridgeFull,
    DirectInterface,
    Endpoint,
    EndpointOptions,
    JoinInfo,
    MacAddress,
    PortInUse,
    attaches_directly,
    derive_mac,
    find_room,
    guard_of,
    hash_mac,
    host_end_name,
    sandbox_end_name,
    short,
    takes_name_of,
    veth_of,
)
from driver.observed import find_bridges_with_ports
from driver.options import apply_change
from driver.recent import Recent
from driver.reconcile.advice import (
    NO_IPV6,
    advise,
    advise_on_filters,
    advise_on_ipv6,
    advise_on_names,
    describe_wrong_name,
    find_entrances,
)
from driver.reconcile.diff import find_ends
from driver.reconcile.reconcile import Parts, Reconciler
from driver.reconcile.watcher import Watcher
from driver.sysctl.policy import NO_POLICY
from driver.sysctl.presence import sandbox_of
from driver.sysctl.report import SysctlReport
from driver.sysctl.sandbox import SandboxSysctls
from driver.trunks import add_part, delete_bridges, ensure_bridges
from driver.undo import Rollback, attempt_all, attempt_each

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from ipaddress import IPv4Interface, IPv6Interface

    from driver.linux import Kernel
    from driver.lock import Request
    from driver.model import (
        Drops,
        EndpointId,
        HostPort,
        Network,
        NetworkId,
        PortBinding,
        PortRequest,
        RuleCount,
        SandboxKey,
        Sysctl,
        Traffic,
        Usage,
        Veth,
    )
    from driver.options import OptionChange
    from driver.reconcile.advice import Advice
    from driver.reconcile.diff import Drift
    from driver.state.store import Store
    from driver.sysctl.policy import SysctlPolicy
    from driver.sysctl.sandbox import ChangeOutcome

ZONE = "firewalld"  # the key of its zone in what health tells
ZONE_SECONDS = 2.0  # Docker waits for no call longer than it has to, and a reload may take as long

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NewEndpoint:
    """What CreateEndpoint asks for; `mac` is None when the driver is to choose."""

    id: EndpointId
    network_id: NetworkId
    ipv4: IPv4Interface | None
    ipv6: IPv6Interface | None
    mac: MacAddress | None
    sysctls: tuple[Sysctl, ...]
    engine_keys: frozenset[str]
    ifname: str | None = None
    options: EndpointOptions = field(default_factory=EndpointOptions)


@dataclass(frozen=True, slots=True)
class NewJoin:
    """What Join asks for; `has_ports` tells whether the container publishes any."""

    network_id: NetworkId
    endpoint_id: EndpointId
    sandbox: SandboxKey
    has_ports: bool


@dataclass(frozen=True, slots=True)
class NewPorts:
    """What ProgramExternalConnectivity asks for; see there for `only_ipv4`."""

    network_id: NetworkId
    endpoint_id: EndpointId
    requests: tuple[PortRequest, ...]
    only_ipv4: bool = False


class BridgeDriver:
    """Networks that are Linux bridges, endpoints that are veth pairs on them.

    Thread-safe. Identical repeats of creates and joins get the same answer; deletes and leaves of
    what is not there succeed. Failures are DriverError with words for who typed `docker …`.
    """

    def __init__(
        self,
        store: Store,
        kernel: Kernel,
        policy: SysctlPolicy = NO_POLICY,
        counts: Counts | None = None,
        health: Health | None = None,
    ) -> None:
        self._store = store
        self._kernel = kernel
        self.counts = counts or Counts()
        self.health = health or Health()
        self._lock = Lock()
        self._sysctls = SandboxSysctls(
            store, kernel, self._lock, policy, counts=self.counts, health=self.health
        )
        self.sysctl_report = SysctlReport(store, kernel, self._lock, self._sysctls.host, policy)
        self._firewall = Firewall(kernel)
        self._publisher = Publisher(store, kernel)
        self._neighbours = Neighbours()
        self._misnamed: Recent[EndpointId] = Recent()
        parts = Parts(self._firewall, self._publisher, self._sysctls, self.counts)
        self._reconciler = Reconciler(store, kernel, self._lock, parts, self._drop_endpoint)
        self._watcher: Watcher | None = None

    def serving(self, request: Request) -> AbstractContextManager[None]:
        """Mark this thread as serving a request inside the block; see `driver.lock`."""
        return self._lock.serving(request)

    def create_network(self, network: Network) -> None:
        """Create the network's bridge and let its containers talk to each other."""
        self._sysctls.validation.check_defaults()
        self._sysctls.validation.check(network.options.sysctls, network.options.inherit)
        network.refuse_guard(network.guard)
        network.refuse_sysctls(network.options.sysctls)
        with self._lock:
            self._evict_superseded(network)
            with self._change(durable=True) as undo:
                if not self._is_known(network):
                    self._add_network(network, undo)
        self._settle_zone()

    def change_network(self, network_id: NetworkId, change: OptionChange) -> ChangeOutcome:
        """Change a network's options while it exists, and the sysctls of what runs on it."""
        self._sysctls.validation.check(change.sysctls, change.inherit)
        with self._change(durable=True) as undo:
            old = self._network(network_id)
            options = apply_change(old.options, change, has_ipv6=old.has_family(6))
            new = replace(old, options=options)
            new.refuse_guard(new.guard)
            new.refuse_sysctls(change.sysctls)
            self._store.change_options(new)
            endpoints = self._store.endpoints(network_id)
            joined = [each for each in endpoints if each.is_in_rules]
            self._firewall.change_network(old, new, joined, undo)
            if new.bridge != old.bridge:
                undo.push(ensure_bridges, self._kernel, old)
                ensure_bridges(self._kernel, new)
            if new.options.mtu > old.options.mtu:
                for endpoint in joined:
                    self._kernel.ensure_port(veth_of(endpoint, new))
            return self._sysctls.apply_change(old, new, undo)

    def delete_network(self, network_id: NetworkId) -> None:
        """Remove the network and whatever endpoints it still has: Docker has forgotten them."""
        with self._lock:
            with self._store.transaction(durable=True, frees=True):
                network = self._store.find_network(network_id)
                if network is None:
                    return
                endpoints = self._store.endpoints(network_id)
                added = self._store.added_addresses(network_id)
                self._store.delete_network(network_id)
                is_last = not self._store.networks()
            self._remove(
                [
                    *self._clean_up(endpoints, network),
                    *delete_bridges(self._kernel, network, added),
                    partial(self._firewall.drop_network, network, is_last=is_last),
                ]
            )

    def create_endpoint(self, new: NewEndpoint) -> Endpoint:
        """Reserve an endpoint's place; makes nothing in the kernel yet."""
        self._sysctls.validation.check(new.sysctls)
        with self._lock:
            with self._store.transaction():
                network = self._network(new.network_id)
                endpoint = _place(new, network)
                network.refuse_guard(guard_of(endpoint, network))
                network.refuse_sysctls(new.sysctls if new.ipv6 is not None else ())
                known = self._store.find_endpoint(new.id)
                if known is not None:
                    mac = known.mac if new.mac is None else new.mac
                    if known.definition() != replace(endpoint, mac=mac):
                        raise Conflict(
                            f"create endpoint {short(new.id)}: it exists, defined otherwise"
                        )
                    return known
                steps = [
                    step
                    for holder in self._store.endpoints_at(endpoint.addresses)
                    if endpoint.shares_address(holder)
                    for step in self._take_addresses(endpoint, holder, network)
                ]
                if new.mac is None:
                    endpoint = replace(endpoint, mac=self._find_free_mac(endpoint, network))
                else:
                    steps += self._take_mac(endpoint, network)
                self._store.put_endpoint(endpoint)
                self._lock.check()
            attempt_each([partial(self._remove, steps)])
            return endpoint

    def _find_free_mac(self, endpoint: Endpoint, network: Network) -> MacAddress:
        """Return the endpoint's MAC address, or another if one on the network has that.

        An address's own may have been requested for an endpoint with another address.
        """
        others = (hash_mac(f"{endpoint.id} {number}") for number in count())
        return next(
            mac
            for mac in chain([endpoint.mac], others)
            if mac not in network.macs and not self._store.endpoints_with_mac(network.id, mac)
        )

    def _take_mac(self, endpoint: Endpoint, network: Network) -> Iterable[Callable[[], object]]:
        """Take the MAC address that was asked for from who is dead; return the kernel's steps.

        Raises Conflict if it is in use: a bridge would send each one's frames to either.
        """
        attempt = f"create endpoint {short(endpoint.id)} with the MAC address {endpoint.mac}"
        if endpoint.mac in network.macs:
            raise Conflict(f"{attempt}: the network's bridge has it")
        holders = self._store.endpoints_with_mac(network.id, endpoint.mac)
        for holder in holders:
            if not self._reconciler.is_dead(holder):
                raise Conflict(f"{attempt}: endpoint {short(holder.id)} of the same network has it")
            log.warning("%s: endpoint %s had it and is dead", attempt, short(holder.id))
            self._store.delete_endpoint(holder.id)
            self.counts.evictions.labels("endpoint").inc()
        return self._clean_up(holders, network)

    def _take_addresses(
        self, endpoint: Endpoint, holder: Endpoint, network: Network
    ) -> Iterable[Callable[[], object]]:
        """Take from another endpoint the addresses of this one; return the kernel's steps of it.

        A holder that is dead goes: after a crash of dockerd a v1 driver is not told. One that
        lives loses these addresses and nothing else: engine 29 gives the IPv6 address of a running
        container to another when the container's own parameters turn IPv6 off on its interface.
        """
        if not self._is_in_place(holder):
            log.warning(
                "endpoint %s is given the address of %s", short(endpoint.id), short(holder.id)
            )
            self._store.delete_endpoint(holder.id)
            self.counts.evictions.labels("endpoint").inc()
            return self._clean_up([holder], network)
        kept = holder.without(endpoint.addresses)
        log.warning(
            "endpoint %s is given an address of %s, which goes on without it",
            short(endpoint.id),
            short(holder.id),
        )
        self._store.change_addresses(kept)
        self._store.put_bindings(kept.id, kept.bindings)
        lost = tuple(each for each in holder.bindings if each not in kept.bindings)
        return [
            partial(self._neighbours.remember, holder),
            partial(self._firewall.change_endpoint, holder, kept, network),
            partial(self._publisher.withdraw, holder.published(lost)),
        ]

    def delete_endpoint(self, network_id: NetworkId, endpoint_id: EndpointId) -> None:
        """Remove an endpoint, whether it has left its sandbox or not."""
        with self._lock:
            with self._store.transaction(frees=True):
                endpoint = self._find_endpoint(network_id, endpoint_id)
                if endpoint is None:
                    return
                network = self._network(network_id)
                self._store.delete_endpoint(endpoint_id)
            self._remove(self._clean_up([endpoint], network))

    def join(self, new: NewJoin) -> JoinInfo:
        """Create the veth pair and give the sandbox its kernel parameters."""
        # The sandbox first: if that hangs, then without the lock.
        holding = self._kernel.hold_sandbox(new.sandbox)
        with holding as has_sandbox, self._lock, Rollback() as undo_writes:
            with self._store.transaction():
                network = self._network(new.network_id)
                endpoint = self._endpoint(new.network_id, new.endpoint_id)
                joined = endpoint.joined(
                    new.sandbox,
                    self._sysctls.host.read(network.options.inherit),
                    wants_ports=new.has_ports,
                    direct=attaches_directly(endpoint, network, has_sandbox=has_sandbox),
                )
                if joined == endpoint:
                    return _join_info(joined, network)
                self._check_name(joined, network)
            is_written = self._sysctls.join(joined, undo_writes)
            with self._change() as undo:
                host_end = host_end_name(new.endpoint_id)
                self._kernel.delete_links([host_end])  # of an earlier join
                undo.push(self._kernel.delete_links, [host_end])
                # Before the link: what guards it is there when its first packet comes.
                self._firewall.join(joined, network, undo)
                joined = self._attach_where_room_is(joined, network, undo)
                if self._sysctls.is_complete(joined):
                    joined = joined.configured()
                self._store.put_endpoint(joined)
                if not is_written:
                    self._sysctls.await_sandbox(joined, undo)
            if new.has_ports and network.options.internal:
                log.warning(
                    "endpoint %s: its container's ports are not published by network %s, which is "
                    "internal",
                    short(new.endpoint_id),
                    short(new.network_id),
                )
            return _join_info(joined, network)

    def _attach_where_room_is(
        self, endpoint: Endpoint, network: Network, undo: Rollback
    ) -> Endpoint:
        """Create the veth pair on the network's first bridge that has room; return the endpoint.

        The kernel has the last word: others may have put ports on a bridge, or links that are
        being deleted may still be there.
        """
        for number in find_room(self._store.count_ports(network.id)):
            if number and number not in network.parts:
                add_part(self._kernel, network, number, undo)
                self._store.add_part(network.id, number)
                self._firewall.add_part(network, number, undo)
            placed = endpoint.on_bridge(number)
            try:
                self._attach(placed, network, veth_of(placed, network))
            except BridgeFull as error:
                log.info("endpoint %s goes on the next bridge: %s", short(endpoint.id), error)
                continue
            return placed
        raise Conflict(
            f"join: network {short(network.id)} is full; it has {len(PARTS) + 1} bridges of "
            f"{BRIDGE_PORTS:,} endpoints each"
        )

    def _check_name(self, endpoint: Endpoint, network: Network) -> None:
        """Raise Conflict if libnetwork and the driver may give one name to two interfaces."""
        for other in self._store.endpoints_in(sandbox_of(endpoint)):
            theirs = self._network(other.network_id)
            if other.is_direct is endpoint.is_direct:
                continue
            direct, ours, named = (
                (endpoint, network, theirs) if endpoint.is_direct else (other, theirs, network)
            )
            if takes_name_of(direct, named, ours):
                raise Conflict(
                    f"join: pynet names the interface on network {short(ours.id)}, the engine that "
                    f"on network {short(named.id)}, and both call interfaces "
                    f"{named.options.ifname_prefix}…; give one of them a "
                    "com.docker.network.container_iface_prefix of its own"
                )

    def _attach(self, endpoint: Endpoint, network: Network, veth: Veth) -> None:
        if not endpoint.is_direct:
            self._kernel.create_veth(veth)
            return
        sandbox = sandbox_of(endpoint)
        if not self._kernel.has_sandbox(sandbox):
            raise Conflict(
                "join with pynet.attach=direct: the sandbox does not exist yet; this needs "
                "Docker Engine 28 or later"
            )
        interface = DirectInterface(
            endpoint.ifname,
            network.options.ifname_prefix,
            endpoint.addresses,
            announced=self._neighbours.may_be_wrong_about(endpoint),
        )
        self._kernel.create_veth_in(veth, sandbox, interface)

    def leave(self, network_id: NetworkId, endpoint_id: EndpointId) -> None:
        """Take the endpoint out of its sandbox; its link stays until the endpoint is deleted.

        libnetwork moves the interface back to the host between Leave and DeleteEndpoint, and
        engines 28 to 29.7.1 crash when it is not there.
        """
        with self._lock:
            with self._store.transaction(frees=True):
                endpoint = self._find_endpoint(network_id, endpoint_id)
                if endpoint is None or endpoint.attachment is None:
                    return
                network = self._network(network_id)
                self._store.put_endpoint(endpoint.left())
                self._store.put_bindings(endpoint_id, ())
            # Leave is Revoke, too: engine 29 sends none after a restart with live-restore.
            steps: list[Callable[[], object]] = [
                partial(self._publisher.withdraw, endpoint),
                *self._detach(endpoint, network),
            ]
            if endpoint.is_direct:
                steps.append(partial(self._kernel.release_links, [host_end_name(endpoint_id)]))
            self._remove(steps)

    def endpoint_info(self, network_id: NetworkId, endpoint_id: EndpointId) -> None:
        """Finish the endpoint's interface, which libnetwork has brought into the sandbox by now.

        Engines up to 27 fail a container's start when this call fails, so a failure is logged.
        """
        with self._change():
            endpoint = self._find_endpoint(network_id, endpoint_id)
            if endpoint is None or endpoint.attachment is None:
                return
            if name := self._find_wrong_name(endpoint):
                self._warn_of_name(endpoint, name)
            if endpoint.attachment.configured:
                return
            if not self._kernel.has_sandbox(endpoint.attachment.sandbox):
                return
            try:
                done = self._sysctls.interfaces.configure(endpoint)
            except Exception:
                log.exception("could not configure the interface of %s", short(endpoint_id))
                return
            if done:
                self._store.put_endpoint(endpoint.configured())

    def _find_wrong_name(self, endpoint: Endpoint) -> str | None:
        """Return the name of an interface that was to have another one, None if all is well.

        The engine is told the name in the answer to Join, and does not say whether it knows what to
        do with it.
        """
        attachment = endpoint.attachment
        if endpoint.ifname is None or attachment is None:
            return None
        try:
            name = self._kernel.find_interface(attachment.sandbox, host_end_name(endpoint.id))
        except DriverError:  # it has not come yet, or is leaving
            return None
        return None if name == endpoint.ifname else name

    def _warn_of_name(self, endpoint: Endpoint, name: str) -> None:
        """Log once that an interface has another name than requested."""
        if endpoint.id not in self._misnamed:
            self._misnamed.add(endpoint.id)
            log.warning("endpoint %s: %s", short(endpoint.id), describe_wrong_name(endpoint, name))

    def program_external_connectivity(
        self,
        network_id: NetworkId,
        endpoint_id: EndpointId,
        requests: tuple[PortRequest, ...],
        *,
        only_ipv4: bool = False,
    ) -> None:
        """Publish the endpoint's ports: it has become its container's way out.

        The same again changes nothing; another set of ports takes the place of the first. A port
        that only a dead container has is taken from it.

        Of two ways out, one a family (engine 29), each is told all ports of the container. The one
        for IPv4 is told so by `only_ipv4`; the other finds that IPv4 is served.
        """
        try:
            self._publish(network_id, endpoint_id, requests, only_ipv4=only_ipv4)
        except PortInUse as refusal:
            raise self._publisher.name_holder(refusal) from refusal

    def _publish(
        self,
        network_id: NetworkId,
        endpoint_id: EndpointId,
        requests: tuple[PortRequest, ...],
        *,
        only_ipv4: bool,
    ) -> None:
        with self._lock:
            with self._store.transaction():
                network = self._network(network_id)
                endpoint = self._endpoint(network_id, endpoint_id)
                others = self._find_others(endpoint)
            families = self._find_families(endpoint, others, only_ipv4=only_ipv4)
            for other in others:
                self._narrow(other, frozenset((4, 6)) - families)
            endpoint = self._narrow(endpoint, families)
            while not is_satisfied(
                requests, endpoint.only(families), network, relays=_relays(endpoint, families)
            ):
                if endpoint.bindings:
                    self.revoke_external_connectivity(network_id, endpoint_id)
                    endpoint = endpoint.published(())
                try:
                    with self._change() as undo:
                        self._publisher.publish(
                            endpoint.only(families),
                            network,
                            requests,
                            undo,
                            relays=_relays(endpoint, families),
                        )
                except PortInUse as refusal:
                    if self._evict_dead_publisher(refusal.place):
                        continue
                    if families == {4} or refusal.place.ip.version != 4:  # noqa: PLR2004
                        raise
                    if not self._is_elsewhere(endpoint):
                        raise
                    families = frozenset({6})
                else:
                    break
            if len(families) > 1:  # else the rest is another's to publish
                _warn_of_unserved(requests, endpoint, network)

    def _find_others(self, endpoint: Endpoint) -> tuple[Endpoint, ...]:
        """Return the endpoints of the same container in other networks that publish ports."""
        if endpoint.attachment is None:
            return ()
        return self._store.find_publishers_in(endpoint.attachment.sandbox, endpoint.id)

    def _find_families(
        self, endpoint: Endpoint, others: Iterable[Endpoint], *, only_ipv4: bool
    ) -> frozenset[int]:
        """Return the families for which an endpoint is its container's way out.

        Engine 29 tells the way out for IPv4 that another one is there for IPv6, and the others
        nothing; it tells those that have been ways out before it tells a new one. So an endpoint
        that hears nothing is not there for IPv4 if another has it still, and one that was there
        for both and is told again may not be any more.
        """
        if only_ipv4:
            return frozenset({4})
        is_served = any(map(_publishes_ipv4, others))
        if is_served or (_publishes_ipv4(endpoint) and self._is_elsewhere(endpoint)):
            return frozenset({6})
        return frozenset({4, 6})

    def _is_elsewhere(self, endpoint: Endpoint) -> bool:
        """Return whether another interface than the endpoint's is its container's way out by IPv4.

        It may be one of Docker's own bridge. On engines up to 27 there is nothing to look at yet,
        and one endpoint has both families.
        """
        if endpoint.attachment is None:
            return False
        try:
            return self._kernel.leaves_elsewhere(
                endpoint.attachment.sandbox, host_end_name(endpoint.id)
            )
        except NotFound:
            return False

    def _narrow(self, endpoint: Endpoint, families: frozenset[int]) -> Endpoint:
        """Withdraw an endpoint's ports on the host of all families but these; return the rest."""
        lost = tuple(
            each
            for each in endpoint.bindings
            if each.host is not None
            and not families.issuperset({each.container_ip.version, each.host.ip.version})
        )
        if not lost:
            return endpoint
        kept = endpoint.published(tuple(each for each in endpoint.bindings if each not in lost))
        with self._store.transaction(frees=True):
            self._store.put_bindings(endpoint.id, kept.bindings)
        self._remove([partial(self._publisher.withdraw, endpoint.published(lost))])
        return kept

    def _evict_dead_publisher(self, place: HostPort) -> bool:
        """Drop the endpoint that has a host port, if its container is dead; tell whether it was.

        After a crash of dockerd a v1 driver is not told that a container has ended.
        """
        with self._store.transaction():
            owner = self._store.find_publisher(place)
        if owner is None or not self._reconciler.is_dead(owner):
            return False
        log.warning("endpoint %s is dead and had %s", short(owner.id), place)
        self._drop_endpoint(owner)
        self.counts.evictions.labels("endpoint").inc()
        return True

    def revoke_external_connectivity(self, network_id: NetworkId, endpoint_id: EndpointId) -> None:
        """Withdraw the endpoint's ports; none and not known are success."""
        with self._lock:
            with self._store.transaction(frees=True):
                endpoint = self._find_endpoint(network_id, endpoint_id)
                if endpoint is None or not endpoint.bindings:
                    return
                self._store.put_bindings(endpoint_id, ())
            self._remove([partial(self._publisher.withdraw, endpoint)])

    def start(self) -> None:
        """Restore, and have what others damage meanwhile or later repaired, until the end."""
        with self._lock:  # so that a repair waits for the end of the restoring
            self.start_watching()
            self.restore()
            self._look()  # what only others can mend is told from the start
        self._settle_zone()

    def _settle_zone(self) -> None:
        """Wait for firewalld, without the lock, to let be what is new; it may take its time."""
        if not self._kernel.settle_zone(ZONE_SECONDS):
            log.warning(
                "firewalld has not done within %.0f s what lets containers through; they wait for "
                "it",
                ZONE_SECONDS,
            )

    def _report_zone(self, problem: str | None) -> None:
        if problem is None:
            self.health.clear(ZONE)
        else:
            log.error("%s", problem)
            self.health.report(ZONE, problem)

    def restore(self) -> None:
        """Bring the kernel to what the state file says; see `Reconciler`."""
        if not self._reconciler.restore():
            self._look()

    def start_watching(self) -> None:
        """Repair what other programs damage from now on, until `shutdown` or `close`."""
        self._watcher = Watcher(self._reconciler, self.counts, self.health)
        self._kernel.watch_damage(self._watcher.on_damage)
        self._kernel.watch_zone(self._report_zone)

    def check(self) -> tuple[Drift, ...]:
        """Return all that differs between the state file and the kernel, and change nothing."""
        return self._reconciler.check()

    def advise(self) -> tuple[Advice, ...]:
        """Return where the host's own settings are weaker than its networks deserve."""
        with self._lock, self._store.transaction():
            networks, endpoints = self._store.networks(), self._store.endpoints()
        settings = self._kernel.observe_host(find_entrances(self._kernel.observe_links()))
        by_id = {network.id: network for network in networks}
        joined = [each for each in endpoints if each.attachment is not None]
        passage = self._kernel.observe_passage(find_ends(by_id, joined, ()))
        names = ((each, self._find_wrong_name(each)) for each in endpoints)
        misnamed = {each: name for each, name in names if name}
        return (
            *advise(networks, endpoints, settings),
            *advise_on_filters(networks, passage),
            *self._advise_on_ipv6(networks),
            *advise_on_names(misnamed),
        )

    def _advise_on_ipv6(self, networks: Collection[Network]) -> Iterator[Advice]:
        return advise_on_ipv6(networks, self._kernel.read_host(NO_IPV6.values()))

    def repair_all(self) -> tuple[Drift, ...]:
        """Repair all that `check` finds; return what differs afterwards."""
        return self._reconciler.repair_all()

    def describe(self) -> tuple[tuple[Network, tuple[Endpoint, ...]], ...]:
        """Return every network with its endpoints, as they are stored."""
        with self._lock, self._store.transaction():
            return tuple(
                (network, self._store.endpoints(network.id)) for network in self._store.networks()
            )

    def read_traffic(self) -> Mapping[str, Traffic]:
        """Return what has passed each link of the host, by its name; takes no lock."""
        return self._kernel.read_traffic()

    def read_published(self) -> Mapping[HostPort, int]:
        """Return how many connections published ports have had; takes no lock."""
        return self._kernel.read_published()

    def count_connections(
        self, bindings: Collection[PortBinding], most: int
    ) -> Mapping[PortBinding, Usage] | None:
        """Return the open connections of published ports, None if there are more than `most`.

        Takes no lock.
        """
        return self._kernel.count_connections(bindings, most)

    def read_drops(self) -> Drops:
        """Return what the firewall has dropped, by reason and by interface; takes no lock."""
        return self._kernel.read_drops()

    def read_rules(self) -> tuple[RuleCount, ...]:
        """Return every rule of the firewall with what it has counted; takes no lock."""
        return self._firewall.read_rules()

    def find_interface(self, endpoint_id: EndpointId) -> str | None:
        """Return what the endpoint's interface is called in its sandbox, None if it is in none."""
        with self._lock, self._store.transaction():
            endpoint = self._store.find_endpoint(endpoint_id)
        if endpoint is None or endpoint.attachment is None:
            return None
        try:
            return self._kernel.find_interface(
                endpoint.attachment.sandbox, host_end_name(endpoint.id)
            )
        except NotFound:  # it is leaving
            return None

    def shutdown(self) -> None:
        """Take out of the kernel what no running container needs: the driver may not come back.

        For the end of the process, which cannot know whether it is restarted, disabled or removed.
        `restore` makes all of it again. A network that a container runs on stays whole; a bridge
        stays if anything is on it, such as another program's interface or one that libnetwork is
        about to look for. Nothing is repaired any more.
        """
        self._stop_watching()
        with self._lock:
            with self._store.transaction():
                networks = self._store.networks()
                in_use = {each.network_id for each in self._store.endpoints() if self._lives(each)}
                added = {each.id: self._store.added_addresses(each.id) for each in networks}
            idle = [network for network in networks if network.id not in in_use]
            links = self._kernel.observe_links() if idle else {}
            trunks = {
                end
                for network in idle
                for trunk in network.trunks
                for end in (trunk.host_end, trunk.sandbox_end)
            }
            with_ports = find_bridges_with_ports(
                {name: link for name, link in links.items() if name not in trunks}
            )
            attempt_each(
                step
                for network in idle
                if with_ports.isdisjoint(bridge.name for bridge in network.bridges)
                for step in delete_bridges(self._kernel, network, added[network.id])
            )
            attempt_each(
                [partial(self._firewall.drop_network, network, is_last=False) for network in idle]
                if in_use
                else [self._firewall.remove]
            )

    def close(self) -> None:
        """Finish background work and let go of every resource; the networks stay."""
        self._stop_watching()
        self._kernel.close()
        self._store.close()

    def _stop_watching(self) -> None:
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    @contextmanager
    def _change(self, *, durable: bool = False) -> Iterator[Rollback]:
        """Hold the lock; commit on the way out, or take back rows and kernel steps alike."""
        with self._lock, Rollback(self._look) as undo, self._store.transaction(durable=durable):
            yield undo
            self._lock.check()

    def _remove(self, steps: Iterable[Callable[[], object]]) -> None:
        """Run every step that removes what has no row any more; raise the first failure.

        Docker ignores that and does not ask again, so what a failed step has left is looked for.
        """
        try:
            attempt_all(steps)
        except Exception:
            self._look()
            raise
        if self._watcher is not None:
            self._watcher.on_deletion()

    def _look(self) -> None:
        """Wake the watcher: a failed step of the driver's own may have left something."""
        if self._watcher is not None:
            self._watcher.on_damage()

    def _lives(self, endpoint: Endpoint) -> bool:
        """Return whether the endpoint's container runs."""
        attachment = endpoint.attachment
        return attachment is not None and self._sysctls.presence.is_alive(attachment.sandbox)

    def _is_in_place(self, endpoint: Endpoint) -> bool:
        """Return whether the endpoint lives: its sandbox and its interface are there."""
        has_interface = self._kernel.find_index(host_end_name(endpoint.id)) is not None
        return has_interface and self._lives(endpoint)

    def _is_known(self, network: Network) -> bool:
        known = self._store.find_definition(network.id)
        if known is not None and known != network:
            raise Conflict(f"create network {short(network.id)}: it exists, defined otherwise")
        return known is not None

    def _add_network(self, network: Network, undo: Rollback) -> None:
        others = self._store.networks()
        for other in others:
            if reason := network.clash(other):
                raise Conflict(f"create network {short(network.id)}: {reason}")
        if network.options.bridge_name is not None:
            link = self._kernel.observe_links().get(network.bridge_name)
            network = replace(network, shared=link is not None and not link.is_ours)
        added = self._kernel.ensure_bridge(network.bridge)
        undo.push(self._kernel.delete_bridge, network.bridge, added)
        self._store.add_network(network, added)
        for option in network.options.without_effect:
            log.warning("network %s: option %s has no effect", short(network.id), option)
        self._firewall.add_network(network, undo, is_first=not others)
        for advice in self._advise_on_ipv6([network]):
            log.warning("network %s: %s %s", short(network.id), advice.setting, advice.text)

    def _evict_superseded(self, network: Network) -> None:
        """Remove networks without endpoints whose addresses Docker has just given away anew."""
        with self._store.transaction():
            stale = [
                other.id
                for other in self._store.networks()
                if other.id != network.id
                and network.supersedes(other)
                and not self._store.endpoints(other.id)
            ]
        for network_id in stale:
            log.warning("network %s is given the pool of %s", short(network.id), short(network_id))
            self.delete_network(network_id)
            self.counts.evictions.labels("network").inc()

    def _drop_endpoint(self, endpoint: Endpoint) -> None:
        with self._store.transaction(frees=True):
            network = self._network(endpoint.network_id)
            self._store.delete_endpoint(endpoint.id)
        self._remove(self._clean_up([endpoint], network))

    def _clean_up(
        self, endpoints: Iterable[Endpoint], network: Network
    ) -> Iterator[Callable[[], object]]:
        """Return the steps that take endpoints out of the kernel whose rows have gone."""
        for endpoint in endpoints:
            yield partial(self._kernel.release_links, [host_end_name(endpoint.id)])
            yield partial(self._publisher.withdraw, endpoint)
            if endpoint.attachment is not None:
                yield from self._detach(endpoint, network)
            elif endpoint.is_in_rules:
                yield partial(self._firewall.leave, endpoint, network)

    def _detach(self, endpoint: Endpoint, network: Network) -> Iterator[Callable[[], object]]:
        """Return the steps that follow when an attached endpoint has left, or its row has gone."""
        yield partial(self._neighbours.remember, endpoint)
        yield partial(self._firewall.leave, endpoint, network)
        yield partial(self._sysctls.restore, sandbox_of(endpoint))

    def _network(self, network_id: NetworkId) -> Network:
        network = self._store.find_network(network_id)
        if network is None:
            raise NotFound(
                f"network {short(network_id)} is not known to pynet; "
                "remove it from Docker and create it again"
            )
        return network

    def _endpoint(self, network_id: NetworkId, endpoint_id: EndpointId) -> Endpoint:
        endpoint = self._find_endpoint(network_id, endpoint_id)
        if endpoint is None:
            raise NotFound(f"endpoint {short(endpoint_id)} is not in network {short(network_id)}")
        return endpoint

    def _find_endpoint(self, network_id: NetworkId, endpoint_id: EndpointId) -> Endpoint | None:
        endpoint = self._store.find_endpoint(endpoint_id)
        if endpoint is not None and endpoint.network_id != network_id:
            raise Conflict(
                f"endpoint {short(endpoint_id)} is in network {short(endpoint.network_id)}, "
                f"not in {short(network_id)}"
            )
        return endpoint


def _join_info(endpoint: Endpoint, network: Network) -> JoinInfo:
    return JoinInfo(
        sandbox_end=None if endpoint.is_direct else sandbox_end_name(endpoint.id),
        ifname_prefix=network.options.ifname_prefix,
        gateway=network.gateway_for(endpoint.ipv4),
        gateway_ipv6=network.gateway_for(endpoint.ipv6),
        ifname=endpoint.ifname,
    )


def _publishes_ipv4(endpoint: Endpoint) -> bool:
    return any(each.host and each.host.ip.version == 4 for each in endpoint.bindings)  # noqa: PLR2004


def _relays(endpoint: Endpoint, families: Collection[int]) -> bool:
    """Return whether an endpoint is there for the host's IPv6 though it has none itself."""
    return endpoint.ipv6 is None and 6 in families  # noqa: PLR2004


def _warn_of_unserved(
    requests: Iterable[PortRequest], endpoint: Endpoint, network: Network
) -> None:
    relays = _relays(endpoint, (4, 6))
    for request in find_unserved(requests, endpoint, network, relays=relays):
        log.warning(
            "endpoint %s: container port %d is not published on %s, which needs another network "
            "with an address of that family",
            short(endpoint.id),
            request.container_port,
            request.host_ip,
        )


def _place(new: NewEndpoint, network: Network) -> Endpoint:
    """Return the endpoint that the request defines; raises InvalidRequest for a wrong address."""
    for address in (new.ipv4, new.ipv6):
        if address is not None and not network.contains(address):
            raise InvalidRequest(
                f"create endpoint {short(new.id)}: {address} is in no pool of network "
                f"{short(network.id)}"
            )
    return Endpoint(
        id=new.id,
        network_id=new.network_id,
        ipv4=new.ipv4,
        ipv6=new.ipv6,
        mac=new.mac or _choose_mac(new),
        sysctls=new.sysctls,
        engine_keys=new.engine_keys,
        ifname=new.ifname,
        options=new.options,
    )


def _choose_mac(new: NewEndpoint) -> MacAddress:
    address = new.ipv4 or new.ipv6
    if address is not None:
        return derive_mac(address.ip)
    return hash_mac(new.id)
