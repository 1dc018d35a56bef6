"""The kernel of this host: implements the verbs of `driver.linux.Kernel`."""

from __future__ import annotations

import logging
import queue
import threading
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from driver.errors import KernelError, NotFound
from driver.health import Health
from driver.linux import (
    conntrack,
    counters,
    filters,
    flows,
    forward,
    iptables,
    links,
    loopback,
    netns,
    ports,
    preview,
    sysctl,
    tables,
    traffic,
)
from driver.linux.elements import Elements
from driver.linux.firewalld import Zone
from driver.linux.monitor import Monitor
from driver.linux.nft import Nft
from driver.linux.relay import NoRelay
from driver.linux.watch import SandboxWatch
from driver.observed import HostSettings, Passage
from driver.recent import Recent
from driver.sysctl.policy import is_of_interface, plan_undo
from driver.undo import Rollback

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from driver.firewall.elements import Change
    from driver.linux.relay import RelayClient
    from driver.model import (
        Bridge,
        Count,
        DirectInterface,
        Drops,
        HostPort,
        IPAddress,
        IPInterface,
        PortBinding,
        Relay,
        SandboxKey,
        Sysctl,
        SysctlWrite,
        Trace,
        Traffic,
        Usage,
        Veth,
    )
    from driver.observed import Link

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# As Docker: for IPv6 also what interfaces that come later start with.
FORWARDING = {
    4: ("net.ipv4.ip_forward",),
    6: ("net.ipv6.conf.default.forwarding", "net.ipv6.conf.all.forwarding"),
}
BRIDGE_FORWARDING = "net.ipv4.conf.IFNAME.forwarding"  # of IPv6, that of all is in force
SOURCE_CHECK = "net.ipv4.conf.IFNAME.rp_filter"
INTERFACE_TIMEOUT = 30.0  # seconds from the sandbox's birth to its interface being up

log = logging.getLogger(__name__)


class LinuxKernel:
    """The kernel whose network namespace this process is in. Documented in `Kernel`."""

    def __init__(
        self,
        health: Health | None = None,
        *,
        drops_forwarded: bool = True,
        relay: RelayClient | None = None,
    ) -> None:
        """Open what is needed; `health` is told of what fails by itself.

        `drops_forwarded` is for `ensure_forwarding`. A relay that runs already hands over the ports
        that it holds.
        """
        health = health or Health()
        self._drops_forwarded = drops_forwarded
        self._relay = relay or NoRelay()
        self._nft = Nft()
        self._elements = Elements()
        self._looking = tables.Looking()
        self._netfilter = forward.Netfilter(self._looking, self._elements)
        self._preview = preview.Preview()
        self._watch = SandboxWatch(health)
        self._reaper = LinkReaper()
        self._dockers: set[str] = set()  # bridges that an interface of Docker's has been on
        self._bridges: dict[str, int | None] = {}  # by name, as they were seen to be the right ones
        self._reservations = ports.Reservations()
        if relay is not None:
            self._reservations.adopt(relay.adopt())
        self._zone = Zone()
        self._monitor = Monitor(self._reaper.is_expected, self._rule_ports, health)

    def _rule_ports(self) -> tuple[int | None, ...]:
        """Return the netlink ports by which the kernel knows our changes of rules."""
        return (self._elements.port,)

    def ensure_bridge(self, bridge: Bridge) -> tuple[IPInterface, ...]:
        """See `Kernel`."""
        self._reaper.expect_no_more(bridge.name)
        self._bridges.pop(bridge.name, None)
        added = links.ensure_bridge(bridge)
        self._bridges[bridge.name] = links.find_index(bridge.name)
        return added

    def delete_bridge(self, bridge: Bridge, added: Sequence[IPInterface]) -> None:
        """See `Kernel`."""
        self._bridges.pop(bridge.name, None)
        links.delete_bridge(bridge, added)

    def create_veth(self, veth: Veth) -> None:
        """See `Kernel`."""
        self._reaper.expect_no_more(veth.host_end)
        links.create_veth(veth, self._bridges.get(veth.bridge))

    def create_veth_in(self, veth: Veth, sandbox: SandboxKey, interface: DirectInterface) -> None:
        """See `Kernel`."""
        self._reaper.expect_no_more(veth.host_end)
        with netns.open_namespace(sandbox) as namespace:
            links.create_veth_in(veth, namespace, interface, self._bridges.get(veth.bridge))

    def ensure_port(self, veth: Veth) -> bool:
        """See `Kernel`."""
        return links.ensure_port(veth)

    def delete_links(self, names: Iterable[str]) -> None:
        """See `Kernel`."""
        self._reaper.delete(names)

    def release_links(self, names: Iterable[str]) -> None:
        """See `Kernel`."""
        self._reaper.release(names)

    def observe_links(self) -> Mapping[str, Link]:
        """See `Kernel`."""
        found = links.observe_links()
        # A bridge of Docker's stays one when its last container goes.
        self._dockers.update(name for name, each in found.items() if each.dockers)
        self._dockers.intersection_update(found)
        return {
            name: replace(each, dockers=True) if name in self._dockers else each
            for name, each in found.items()
            if not self._reaper.is_expected(name)
        }

    def apply_rules(self, text: str) -> None:
        """See `Kernel`."""
        self._elements.make(self._preview.compile(text))

    def change_elements(self, changes: Sequence[Change]) -> None:
        """See `Kernel`."""
        self._elements.change(changes)

    def list_rules(self, names: Sequence[str]) -> frozenset[str]:
        """See `Kernel`."""
        with self._looking.open() as netfilter:
            outline = tables.outline(tables.read(netfilter))
        if not self._preview.knows(outline):
            return outline
        return preview.list_elements(self._nft, names) | outline

    def preview_rules(self, text: str, names: Sequence[str]) -> frozenset[str]:
        """See `Kernel`."""
        return self._preview.list_rules(text, names)

    def read_traffic(self) -> Mapping[str, Traffic]:
        """See `Kernel`."""
        return traffic.read_traffic()

    def read_published(self) -> Mapping[HostPort, int]:
        """See `Kernel`."""
        with self._looking.open() as netfilter:
            return counters.read_published(netfilter)

    def count_connections(
        self, bindings: Collection[PortBinding], most: int
    ) -> Mapping[PortBinding, Usage] | None:
        """See `Kernel`."""
        translated = flows.read_translated(most)
        return None if translated is None else flows.count_published(translated, bindings)

    def read_drops(self) -> Drops:
        """See `Kernel`."""
        with self._looking.open() as netfilter:
            return counters.read_drops(netfilter)

    def read_rule_counts(self) -> Mapping[tuple[str, str], tuple[Count, ...]]:
        """See `Kernel`."""
        with self._looking.open() as netfilter:
            return counters.read_rule_counts(netfilter)

    def ensure_forward_accept(self, mark: int) -> None:
        """See `Kernel`."""
        if iptables.is_installed():
            iptables.ensure_forward_accept(mark)
        else:
            forward.ensure_forward_accept(self._netfilter, mark)

    def has_forward_accept(self, mark: int) -> bool:
        """See `Kernel`."""
        if iptables.is_installed():
            return iptables.has_forward_accept(mark)
        return forward.has_forward_accept(self._netfilter, mark)

    def delete_forward_accept(self, mark: int) -> None:
        """See `Kernel`."""
        if iptables.is_installed():
            iptables.delete_forward_accept(mark)
        else:
            forward.delete_forward_accept(self._netfilter, mark)
        forward.delete_bare_tables(self._netfilter)

    def set_zone(self, interfaces: Collection[str]) -> None:
        """See `Kernel`."""
        self._zone.set(interfaces)

    def change_zone(self, *, add: Collection[str] = (), remove: Collection[str] = ()) -> None:
        """See `Kernel`."""
        self._zone.change(add=add, remove=remove)

    def delete_zone(self) -> None:
        """See `Kernel`."""
        self._zone.delete()

    def settle_zone(self, seconds: float) -> bool:
        """See `Kernel`."""
        return self._zone.settle(seconds)

    def zone_problem(self) -> str | None:
        """See `Kernel`."""
        return self._zone.problem()

    def watch_zone(self, report: Callable[[str | None], None]) -> None:
        """See `Kernel`."""
        self._zone.watch(report)

    def ensure_forwarding(self, version: int) -> None:
        """See `Kernel`."""
        before = {key: sysctl.read(key) for key in FORWARDING[version]}
        off = {key: value or "0" for key, value in before.items() if value != "1"}
        if not off:
            return
        with Rollback() as undo:
            if self._drops_forwarded:  # first, so that the host is at no moment an open router
                undo.push(self._set_forward_policy, version, self._forward_policy(version))
                self._set_forward_policy(version, "DROP")
            for key, value in off.items():
                sysctl.write(key, "1")
                undo.push(sysctl.write, key, value)

    def _forward_policy(self, version: int) -> str | None:
        if iptables.has_command(version):
            return iptables.forward_policy(version)
        return forward.forward_policy(self._netfilter, version)

    def _set_forward_policy(self, version: int, policy: str | None) -> None:
        """Set FORWARD's policy where Docker would; where there is no chain it is to accept."""
        if iptables.has_command(version):
            iptables.set_forward_policy(version, policy or "ACCEPT")
        else:
            forward.set_forward_policy(self._netfilter, version, policy or "ACCEPT")

    def delete_loopback_pair(self) -> None:
        """See `Kernel`."""
        loopback.delete_loopback_pair()

    def ephemeral_ports(self) -> range:
        """See `Kernel`."""
        return ports.ephemeral_ports()

    def reserve_ports(self, places: Sequence[HostPort]) -> None:
        """See `Kernel`."""
        self._reservations.reserve(places)

    def release_ports(self, places: Iterable[HostPort]) -> None:
        """See `Kernel`."""
        places = tuple(places)
        self._relay.drop(places)
        self._reservations.release(places)

    def relay_ports(self, relays: Iterable[Relay]) -> None:
        """See `Kernel`."""
        reserved = self._reservations.places()
        self._relay.add(
            {
                each: self._reservations.listen(each.place)
                for each in relays
                if each.place in reserved
            }
        )

    def list_relayed(self) -> frozenset[Relay]:
        """See `Kernel`."""
        return self._relay.served()

    def list_reserved(self) -> frozenset[HostPort]:
        """See `Kernel`."""
        return self._reservations.places()

    def find_port_owner(self, place: HostPort) -> str:
        """See `Kernel`."""
        return ports.find_owner(place)

    def forget_flows(self, bindings: Iterable[PortBinding]) -> None:
        """See `Kernel`."""
        conntrack.forget_flows(bindings)

    def check_sysctls(self, sysctls: Sequence[Sysctl]) -> Mapping[str, str]:
        """See `Kernel`."""
        return sysctl.check(sysctls)

    def read_pristine(self, keys: Iterable[str] | None = None) -> Mapping[str, str]:
        """See `Kernel`."""
        return sysctl.read_pristine(keys)

    def read_host(self, keys: Iterable[str] | None = None) -> Mapping[str, str]:
        """See `Kernel`."""
        return sysctl.read_settable() if keys is None else sysctl.read_all(keys)

    def read_sandboxes(
        self, host_ends: Mapping[str, SandboxKey], keys: Iterable[str] | None = None
    ) -> Mapping[str, Mapping[str, str]]:
        """See `Kernel`."""
        wanted = None if keys is None else tuple(keys)
        leading: dict[SandboxKey, list[str]] = {}
        for host_end, sandbox in host_ends.items():
            leading.setdefault(sandbox, []).append(host_end)
        peers: dict[str, links.Peer] = {}
        for host_end in host_ends if any(map(is_of_interface, wanted or ())) else ():
            with suppress(NotFound):
                peer = links.find_peer(host_end)
                if peer.moved:
                    peers[host_end] = peer

        def read(host_end: str) -> Mapping[str, str]:
            if wanted is None:
                return sysctl.read_settable()
            peer = peers.get(host_end)
            return sysctl.read_all(wanted, links.name_of(peer.index) if peer else None)

        def read_each(sandbox: SandboxKey) -> Mapping[str, Mapping[str, str]]:
            return {host_end: read(host_end) for host_end in leading[sandbox]}

        found: dict[str, Mapping[str, str]] = {}
        for values in netns.run_in_each(leading, read_each).values():
            found |= values
        return found

    def observe_host(self, interfaces: Iterable[str]) -> HostSettings:
        """See `Kernel`."""
        neighbours = {
            version: sysctl.read(f"net.ipv{version}.neigh.default.gc_thresh3") for version in (4, 6)
        }
        policies: dict[int, str | None] = {}
        for version in (4, 6):
            with suppress(KernelError):  # unknown then, which is no reason to leave out the rest
                policies[version] = self._forward_policy(version)
        # Of the two the stricter is in force (ip-sysctl.rst).
        everywhere = int(sysctl.read(SOURCE_CHECK, "all") or 0)
        checks = {name: sysctl.read(SOURCE_CHECK, name) for name in interfaces}
        return HostSettings(
            neighbours={key: int(value) for key, value in neighbours.items() if value is not None},
            forwards=frozenset(
                version for version, keys in FORWARDING.items() if sysctl.read(keys[-1]) == "1"
            ),
            forward_policies={key: value for key, value in policies.items() if value is not None},
            source_checks={
                name: max(everywhere, int(value))
                for name, value in checks.items()
                if value is not None
            },
        )

    def observe_passage(self, ends: Mapping[IPAddress, str]) -> Passage:
        """See `Kernel`."""
        closed = {
            key for keys in FORWARDING.values() for key in keys[-1:] if sysctl.read(key) == "0"
        }
        if FORWARDING[4][-1] not in closed:
            bridges = {bridge for ip, bridge in ends.items() if ip.version == 4}  # noqa: PLR2004
            closed |= {
                BRIDGE_FORWARDING.replace("IFNAME", name)
                for name in bridges
                if sysctl.read(BRIDGE_FORWARDING, name) == "0"
            }
        indexes = {name: links.find_index(name) for name in frozenset(ends.values())}
        with self._looking.open() as netfilter:
            found = filters.read_filters(netfilter)
        return Passage(
            closed=frozenset(closed),
            filters=found,
            ways=links.find_ways(ends),
            indexes={name: index for name, index in indexes.items() if index is not None},
        )

    def has_sandbox(self, sandbox: SandboxKey) -> bool:
        """See `Kernel`."""
        return netns.is_namespace(sandbox)

    def hold_sandbox(self, sandbox: SandboxKey) -> AbstractContextManager[bool]:
        """See `Kernel`."""
        return netns.hold_namespace(sandbox)

    def read_sysctls(
        self, sandboxes: Collection[SandboxKey], keys: Sequence[str]
    ) -> Mapping[SandboxKey, Mapping[str, str]]:
        """See `Kernel`."""
        return netns.run_in_each(sandboxes, lambda _: sysctl.read_all(keys))

    def write_sysctls(
        self, writes: Mapping[SandboxKey, Sequence[SysctlWrite]]
    ) -> Mapping[SandboxKey, tuple[Trace, ...]]:
        """See `Kernel`."""

        def write(sandbox: SandboxKey) -> tuple[Trace, ...]:
            traces = sysctl.compare_and_write(writes[sandbox])
            undo.push(take_back, sandbox, traces)
            return traces

        def take_back(sandbox: SandboxKey, traces: tuple[Trace, ...]) -> None:
            self.write_sysctls({sandbox: plan_undo(traces)})

        with Rollback() as undo:
            return netns.run_in_each(writes, write)

    def find_index(self, link: str) -> int | None:
        """See `Kernel`."""
        return links.find_index(link)

    def find_interface(self, sandbox: SandboxKey, host_end: str) -> str | None:
        """See `Kernel`."""
        peer = links.find_peer(host_end)
        if not peer.moved:
            return None
        with netns.open_namespace(sandbox) as namespace:
            return netns.run_in(namespace, partial(links.name_of, peer.index))

    def read_macs(self, host_ends: Mapping[str, SandboxKey]) -> Mapping[str, str]:
        """See `Kernel`."""
        peers: dict[str, dict[str, links.Peer]] = {}
        for host_end, sandbox in host_ends.items():
            with suppress(NotFound):
                peers.setdefault(sandbox, {})[host_end] = links.find_peer(host_end)

        def work(path: str) -> Mapping[str, str | None]:
            return {end: links.mac_of(peer.index) for end, peer in peers[path].items()}

        found = netns.run_in_each(peers, work)
        return {end: mac for macs in found.values() for end, mac in macs.items() if mac}

    def leaves_elsewhere(self, sandbox: SandboxKey, host_end: str) -> bool:
        """See `Kernel`."""
        peer = links.find_peer(host_end)

        def work() -> bool:
            leaving = links.default_route_interfaces()
            return bool(leaving) and links.name_of(peer.index) not in leaving

        with netns.open_namespace(sandbox) as namespace:
            return netns.run_in(namespace, work)

    def set_interface_sysctls(
        self,
        sandbox: SandboxKey,
        host_end: str,
        sysctls: Sequence[Sysctl],
        reset: Sequence[str] = (),
    ) -> bool:
        """See `Kernel`."""
        peer = links.find_peer(host_end)
        if not peer.moved:
            return False
        return _write_interface(sandbox, sysctls, partial(links.name_of, peer.index), reset)

    def await_interface_sysctls(
        self,
        sandbox: SandboxKey,
        host_end: str,
        sysctls: Sequence[Sysctl],
        index: int | None = None,
    ) -> None:
        """See `Kernel`."""
        # All interfaces of a sandbox come from this namespace, so the index stays what it is.
        if index is None:
            index = links.find_peer(host_end).index
        find = partial(links.await_up, index, INTERFACE_TIMEOUT)
        if not _write_interface(sandbox, sysctls, find):
            raise KernelError(
                f"configure the interface behind {host_end}: it was not up in {sandbox} after "
                f"{INTERFACE_TIMEOUT:.0f} s"
            )

    def watch_sandbox(self, sandbox: SandboxKey, then: Callable[[], None]) -> None:
        """See `Kernel`."""
        self._watch.add(sandbox, then)

    def unwatch_sandbox(self, sandbox: SandboxKey) -> bool:
        """See `Kernel`."""
        return self._watch.remove(sandbox)

    def watch_damage(self, then: Callable[[], None]) -> None:
        """See `Kernel`."""
        try:
            self._zone.watch_reloads(then)
            self._monitor.start(then)
        except OSError as error:
            raise KernelError(f"watch links and rules: {error.strerror}") from error

    def boot_id(self) -> str:
        """See `Kernel`."""
        return BOOT_ID.read_text().strip()

    def close(self) -> None:
        """See `Kernel`."""
        self._zone.close()
        self._monitor.close()
        self._watch.close()
        self._reaper.close()
        self._preview.close()
        self._nft.close()
        self._elements.close()
        self._looking.close()
        self._relay.close()
        self._reservations.close()


def _write_interface(
    sandbox: SandboxKey,
    sysctls: Sequence[Sysctl],
    find: Callable[[], str | None],
    reset: Sequence[str] = (),
) -> bool:
    """Enter the sandbox, find the interface's name there and write its parameters."""

    def work() -> bool:
        ifname = find()
        if ifname is None:
            return False
        reset_to = sysctl.read_all(reset, sysctl.NEW_INTERFACE)
        writes = {each.key: each.value for each in sysctls} | reset_to
        with Rollback() as undo:
            for key, value in writes.items():
                before = sysctl.read(key, ifname)
                sysctl.write(key, value, ifname)
                if before is not None:
                    undo.push(sysctl.write, key, before, ifname)
        return True

    with netns.open_namespace(sandbox) as namespace:
        return netns.run_in(namespace, work)


class LinkReaper:
    """Delete links, if need be in the background, so that no request waits for grace periods.

    What a crash leaves undone is found again by its alias, at the next start. A link is handed over
    by its index: by the time of its deletion another, made anew, may have its name.
    """

    def __init__(self) -> None:
        self._released: queue.SimpleQueue[tuple[str, int] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._expected: Recent[str] = Recent()  # the kernel tells of them within moments

    def release(self, names: Iterable[str]) -> None:
        """Hand over links; returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="link-reaper", daemon=True)
            self._thread.start()
        for name in names:
            index = links.find_index(name)
            if index is not None:
                self._expected.add(name)
                self._released.put((name, index))

    def delete(self, names: Iterable[str]) -> None:
        """Delete links now."""
        names = tuple(names)
        for name in names:
            self._expected.add(name)
        try:
            links.delete_links(names)
        except BaseException:
            for name in names:
                self.expect_no_more(name)
            raise

    def is_expected(self, name: str) -> bool:
        """Return whether a link is going, or has lately gone, because we wanted it to."""
        return name in self._expected

    def expect_no_more(self, name: str) -> None:
        """Record that a link of this name was made anew and is to stay."""
        self._expected.discard(name)

    def close(self) -> None:
        """Delete what was handed over, then end the thread."""
        if self._thread is not None:
            self._released.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (first := self._released.get()) is not None:
            released = [first, *self._drain()]
            try:
                links.delete_links(index for _, index in released)
            except Exception:
                names = [name for name, _ in released]
                for each in names:
                    self.expect_no_more(each)
                log.exception("%s: they stay until that is repaired", ", ".join(names))

    def _drain(self) -> Iterator[tuple[str, int]]:
        """Yield what else has been handed over by now; leave the end of the thread for last."""
        while not self._released.empty():
            released = self._released.get()
            if released is None:
                self._released.put(None)
                return
            yield released
