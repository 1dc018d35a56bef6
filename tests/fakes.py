"""A kernel in memory with the semantics of the real one, and faults at any chosen call.

`tests/kernel/test_contract.py` holds the fake to what the real kernel does.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from ipaddress import IPv6Interface
from itertools import count
from typing import TYPE_CHECKING, Any, cast
from zlib import crc32

from driver.errors import Conflict, DriverError, InvalidRequest, KernelError, NotFound
from driver.firewall.base import list_chains
from driver.firewall.elements import render_changes
from driver.model import (
    Count,
    Drops,
    HostPort,
    MacAddress,
    PortInUse,
    Protocol,
    Trace,
    Traffic,
    Usage,
    derive_link_local,
    is_our_alias,
)
from driver.observed import HostSettings, Passage, is_dockers_port
from driver.observed import Link as Observed
from driver.sysctl.policy import path_components
from tests.fake_nft import Table, apply

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from driver.firewall.elements import Change
    from driver.linux import Kernel
    from driver.model import (
        Bridge,
        DirectInterface,
        IPAddress,
        IPInterface,
        PortBinding,
        Relay,
        SandboxKey,
        Sysctl,
        SysctlWrite,
        Veth,
    )
    from driver.state.store import Store

ALIAS_LENGTH = 255  # IFALIASZ less the closing NUL, include/linux/if.h
IPV6 = 6
PRISTINE = {
    "net.core.somaxconn": "4096",
    "net.ipv4.conf.lo.rp_filter": "0",
    "net.ipv4.ip_unprivileged_port_start": "1024",
    "net.ipv4.tcp_congestion_control": "cubic",
    "net.ipv4.tcp_keepalive_intvl": "75",
    "net.ipv4.tcp_keepalive_time": "7200",
    "net.ipv4.tcp_rmem": "4096\t131072\t6291456",
}


@dataclass
class Link:
    """An interface of the host; `sandbox` is where the other end of a veth has gone."""

    kind: str
    alias: str = ""
    mac: str = ""
    mtu: int = 1500
    up: bool = True
    addresses: tuple[IPInterface, ...] = ()
    bridge: str | None = None
    peer: str | None = None
    sandbox: SandboxKey | None = None
    hairpin: bool = False


class FakeKernel:
    """The kernel in memory. Documented in `Kernel`; `state` is everything that it holds."""

    def __init__(self) -> None:
        self.links: dict[str, Link] = {}
        self.tables: dict[str, Table] = {}
        self.accepted_marks: set[int] = set()
        self.forwarding: set[int] = set()
        self.forward_policies = {4: "ACCEPT", 6: "ACCEPT"}
        self.neighbours: dict[int, int] = {}
        self.source_checks = {"all": 0}
        self.reserved: set[HostPort] = set()
        self.relayed: set[Relay] = set()
        self.taken: dict[HostPort, str] = {}
        self.flows: set[HostPort] = set()
        self.inside: dict[tuple[SandboxKey, str], Link] = {}
        self.pristine = dict(PRISTINE)
        self.host = dict(PRISTINE)
        self.sandboxes: dict[SandboxKey, dict[str, str]] = {}
        self.watches: dict[SandboxKey, Callable[[], None]] = {}
        self.macs: dict[str, str] = {}
        self.default_routes: dict[SandboxKey, str] = {}
        self.passage = Passage()
        self.boot = "first boot"
        self.dropped = Drops({}, {})
        self.published: dict[HostPort, int] = {}
        self.open: dict[PortBinding, Usage] = {}
        self.rule_counts: dict[tuple[str, str], tuple[Count, ...]] = {}
        self.zone: frozenset[str] = frozenset()
        self.problem_of_zone: str | None = None
        self.zone_answers = True
        self.on_damage: Callable[[], None] = lambda: None
        self.on_zone: Callable[[str | None], None] = lambda _: None

    def state(self) -> dict[str, Any]:
        """Return a copy of all state, to be compared."""
        callbacks = {"watches", "on_damage", "on_zone"}
        held = {name: value for name, value in vars(self).items() if name not in callbacks}
        awaited = {sandbox: getattr(then, "args", ()) for sandbox, then in self.watches.items()}
        return deepcopy(held) | {"watches": awaited}

    # What others do to the kernel: other programs, runc, libnetwork, a restart, a reboot.

    def add_foreign(self, name: str, kind: str = "bridge", **attributes: Any) -> None:
        """Have another program make a link."""
        self.links[name] = Link(kind, **attributes)

    def add_sandbox(self, sandbox: SandboxKey, **user: str) -> None:
        """Make a sandbox, with what the user set in it."""
        self.sandboxes[sandbox] = self.pristine | user

    def arrive(self, sandbox: SandboxKey, moved: Sequence[str] = ()) -> None:
        """Have an awaited sandbox come into being with its interfaces; fires the watch, once."""
        self.add_sandbox(sandbox)
        for host_end in moved:
            self.move(host_end, sandbox)
        self._call(sandbox)

    def look(self) -> None:
        """Fire the watches of sandboxes that exist by now; what they cannot do is logged only."""
        for sandbox in self.watches.keys() & self.sandboxes.keys():
            with suppress(DriverError):
                self._call(sandbox)

    def _call(self, sandbox: SandboxKey) -> None:
        then = self.watches.pop(sandbox, None)
        if then is not None:
            then()

    def move(self, host_end: str, sandbox: SandboxKey) -> None:
        """Have libnetwork move the sandbox end of a veth."""
        link = self.links[host_end]
        end = self.links.pop(cast("str", link.peer), None)
        mac = end.mac if end else ""
        link.sandbox = sandbox
        self.macs[host_end] = mac
        self.sandboxes[sandbox][f"net.ipv4.conf.{link.peer}.rp_filter"] = "0"

    def die(self, sandbox: SandboxKey) -> None:
        """Have a sandbox end, and the links into it with it."""
        del self.sandboxes[sandbox]
        for name in [name for name, each in self.links.items() if each.sandbox == sandbox]:
            self._delete(name)

    def restart(self) -> None:
        """Forget what only the driver's process knew, or held."""
        self.watches.clear()
        self.reserved.clear()
        self.relayed.clear()

    def elements(self, name: str, table: str = "inet pynet") -> dict[str, str]:
        """Return the elements of a set, or of a map with their values."""
        held = self.tables.get(table, Table()).elements
        return {key: value for (owner, key), value in held.items() if owner == name}

    def reboot(self) -> None:
        """Lose everything that does not outlive a boot."""
        self.__init__()  # type: ignore[misc]
        self.boot = "another boot"

    # The verbs.

    def ensure_bridge(self, bridge: Bridge) -> tuple[IPInterface, ...]:
        _check_alias(bridge.alias)
        link = self.links.get(bridge.name)
        if link is None:
            self.links[bridge.name] = Link(
                "bridge", bridge.alias, bridge.mac, bridge.mtu, addresses=bridge.addresses
            )
            return bridge.addresses
        if link.alias != bridge.alias:
            if link.kind != "bridge":
                raise Conflict(f"use {bridge.name} as bridge: it is an interface of another kind")
            if bridge.must_be_ours or is_our_alias(link.alias):
                raise Conflict(f"use bridge {bridge.name}: it belongs to another program")
        missing = tuple(each for each in bridge.addresses if each not in link.addresses)
        if {each.ip for each in missing if each.version == IPV6} & {
            each.ip for each in link.addresses
        }:
            raise KernelError("add address: File exists")
        link.addresses += missing
        link.up = True
        if link.alias == bridge.alias:
            link.mtu, link.mac = bridge.mtu, bridge.mac
        return missing

    def delete_bridge(self, bridge: Bridge, added: Sequence[IPInterface]) -> None:
        link = self.links.get(bridge.name)
        if link is None:
            return
        if link.alias == bridge.alias:
            self._delete(bridge.name)
        else:
            link.addresses = tuple(each for each in link.addresses if each not in added)

    def create_veth(self, veth: Veth) -> None:
        self._create_host_end(veth, veth.sandbox_end, None, is_taken=veth.sandbox_end in self.links)
        self.links[veth.sandbox_end] = Link(
            "veth", mac=veth.mac, mtu=veth.mtu, up=False, peer=veth.host_end
        )

    def create_veth_in(self, veth: Veth, sandbox: SandboxKey, interface: DirectInterface) -> None:
        self._sandbox(sandbox)
        numbered = (f"{interface.prefix}{number}" for number in count())
        name = interface.name or next(
            each for each in numbered if (sandbox, each) not in self.inside
        )
        self._create_host_end(veth, name, sandbox, is_taken=(sandbox, name) in self.inside)
        self.inside[sandbox, name] = Link(
            "veth", mac=veth.mac, mtu=veth.mtu, addresses=interface.addresses
        )

    def _create_host_end(
        self, veth: Veth, peer: str, sandbox: SandboxKey | None, *, is_taken: bool
    ) -> None:
        if veth.bridge not in self.links:
            raise KernelError(f"create {veth.host_end}: bridge {veth.bridge} is gone")
        self._check_bridge(veth)
        if is_taken or veth.host_end in self.links:
            raise Conflict(f"create {veth.host_end}: the name is taken")
        _check_alias(veth.alias)
        self.links[veth.host_end] = Link(
            "veth",
            veth.alias,
            mtu=veth.mtu,
            bridge=veth.bridge,
            peer=peer,
            sandbox=sandbox,
            hairpin=veth.hairpin,
        )

    def ensure_port(self, veth: Veth) -> bool:
        link = self.links.get(veth.host_end)
        if link is None or veth.bridge not in self.links:
            return False
        self._check_bridge(veth)
        link.bridge, link.up = veth.bridge, True
        link.mtu = max(link.mtu, veth.mtu)
        link.hairpin |= veth.hairpin
        return True

    def _check_bridge(self, veth: Veth) -> None:
        if veth.bridge_alias not in {None, self.links[veth.bridge].alias}:
            raise Conflict(f"put {veth.host_end} on bridge {veth.bridge}: it is another program's")

    def delete_links(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self.links and is_our_alias(self.links[name].alias):
                self._delete(name)

    def release_links(self, names: Iterable[str]) -> None:
        self.delete_links(names)

    def observe_links(self) -> Mapping[str, Observed]:
        dockers = {each.bridge for name, each in self.links.items() if is_dockers_port(name)}
        return {
            name: Observed(
                kind=each.kind,
                alias=each.alias,
                mac=each.mac,
                mtu=each.mtu,
                up=each.up,
                bridge=each.bridge,
                addresses=frozenset((*each.addresses, *_link_local(each))),
                dockers=name in dockers,
            )
            for name, each in self.links.items()
        }

    def apply_rules(self, text: str) -> None:
        self.run_nft(text)

    def change_elements(self, changes: Sequence[Change]) -> None:
        self.run_nft(render_changes(changes))

    def run_nft(self, text: str) -> None:
        """Do what nft does with a text; every change of the tables comes by here."""
        self.tables = apply(text, self.tables)

    def list_rules(self, tables: Sequence[str]) -> frozenset[str]:
        return _lines(self.tables, tables)

    def preview_rules(self, text: str, tables: Sequence[str]) -> frozenset[str]:
        return _lines(apply(text, {}), tables)

    def read_traffic(self) -> dict[str, Traffic]:
        return {name: Traffic(0, 0, 0, 0, 0, 0) for name in self.links}

    def read_published(self) -> dict[HostPort, int]:
        return dict(self.published)

    def count_connections(
        self, bindings: Collection[PortBinding], most: int
    ) -> dict[PortBinding, Usage] | None:
        return {each: self.open.get(each, Usage(0)) for each in bindings if each.is_translated}

    def read_drops(self) -> Drops:
        return self.dropped

    def read_rule_counts(self) -> dict[tuple[str, str], tuple[Count, ...]]:
        """Return `rule_counts`; what is not there has counted nothing."""
        there = {name.split()[0] for name in self.tables}
        nothing = {
            (each.family, each.name): (Count(0, 0),) * len(each.rules)
            for each in list_chains()
            if each.family in there
        }
        return nothing | self.rule_counts

    def ensure_forward_accept(self, mark: int) -> None:
        self.accepted_marks.add(mark)

    def has_forward_accept(self, mark: int) -> bool:
        return mark in self.accepted_marks

    def delete_forward_accept(self, mark: int) -> None:
        self.accepted_marks.discard(mark)

    def set_zone(self, interfaces: Collection[str]) -> None:
        self.zone = frozenset(interfaces)

    def change_zone(self, *, add: Collection[str] = (), remove: Collection[str] = ()) -> None:
        self.zone = (self.zone | frozenset(add)) - frozenset(remove)

    def delete_zone(self) -> None:
        self.zone = frozenset()

    def settle_zone(self, seconds: float) -> bool:
        return self.zone_answers

    def zone_problem(self) -> str | None:
        return self.problem_of_zone

    def watch_zone(self, report: Callable[[str | None], None]) -> None:
        self.on_zone = report

    def ensure_forwarding(self, version: int) -> None:
        if version not in self.forwarding:
            self.forwarding.add(version)
            self.forward_policies[version] = "DROP"

    def delete_loopback_pair(self) -> None:
        pass  # no earlier version was here

    def ephemeral_ports(self) -> range:
        return range(32768, 32868)

    def reserve_ports(self, places: Sequence[HostPort]) -> None:
        done: set[HostPort] = set()
        for place in places:
            if not self._has_address(place.ip):
                raise KernelError(f"publish {place}: this host has no such address")
            if any(_collide(place, each) for each in self.reserved | done | self.taken.keys()):
                raise PortInUse(f"publish {place}: port is in use", place)
            done.add(place)
        self.reserved |= done

    def release_ports(self, places: Iterable[HostPort]) -> None:
        self.reserved -= set(places)
        self.relayed = {each for each in self.relayed if each.place in self.reserved}

    def relay_ports(self, relays: Iterable[Relay]) -> None:
        new = {each.place: each for each in relays if each.place in self.reserved}
        self.relayed = {each for each in self.relayed if each.place not in new} | {*new.values()}

    def list_relayed(self) -> frozenset[Relay]:
        return frozenset(self.relayed)

    def list_reserved(self) -> frozenset[HostPort]:
        return frozenset(self.reserved)

    def find_port_owner(self, place: HostPort) -> str:
        owners = [owner for taken, owner in self.taken.items() if _collide(place, taken)]
        return next(iter(owners), "another process")

    def forget_flows(self, bindings: Iterable[PortBinding]) -> None:
        published = [each.host for each in bindings if each.host is not None]
        self.flows = {
            flow
            for flow in self.flows
            if flow.protocol is not Protocol.UDP
            or not any(
                (place.ip.is_unspecified and _collide(flow, place)) or flow == place
                for place in published
            )
        }

    def check_sysctls(self, sysctls: Sequence[Sysctl]) -> Mapping[str, str]:
        found = self.read_pristine([sysctl.key for sysctl in sysctls])
        for sysctl in sysctls:
            if sysctl.key not in found:
                raise InvalidRequest(f"{sysctl.key}: this kernel has no such parameter")
            if not _takes(found[sysctl.key], sysctl.value):
                raise InvalidRequest(f"set {sysctl.key}={sysctl.value}: out of range")
        return found

    def read_pristine(self, keys: Iterable[str] | None = None) -> Mapping[str, str]:
        if keys is None:
            return dict(self.pristine)
        paths = {key: ".".join(path_components(key, "lo")) for key in keys}
        return {key: self.pristine[path] for key, path in paths.items() if path in self.pristine}

    def read_host(self, keys: Iterable[str] | None = None) -> Mapping[str, str]:
        wanted = self.host if keys is None else set(keys)
        return {key: value for key, value in self.host.items() if key in wanted}

    def read_sandboxes(
        self, host_ends: Mapping[str, SandboxKey], keys: Iterable[str] | None = None
    ) -> Mapping[str, Mapping[str, str]]:
        wanted = tuple(self.pristine if keys is None else keys)
        found: dict[str, dict[str, str]] = {}
        for host_end, sandbox in host_ends.items():
            if sandbox not in self.sandboxes:
                continue
            values, link = self.sandboxes[sandbox], self.links.get(host_end)
            name = str(link.peer) if link and link.sandbox else "nowhere"
            paths = {key: ".".join(path_components(key, name)) for key in wanted}
            found[host_end] = {key: values[path] for key, path in paths.items() if path in values}
        return found

    def observe_host(self, interfaces: Iterable[str]) -> HostSettings:
        checks = self.source_checks
        return HostSettings(
            neighbours=dict(self.neighbours),
            forwards=frozenset(self.forwarding),
            forward_policies=dict(self.forward_policies),
            source_checks={
                name: max(checks["all"], checks.get(name, 0))
                for name in interfaces
                if name in self.links
            },
        )

    def observe_passage(self, ends: Mapping[IPAddress, str]) -> Passage:
        return replace(self.passage, ways={**ends, **self.passage.ways})

    def has_sandbox(self, sandbox: SandboxKey) -> bool:
        return sandbox in self.sandboxes

    @contextmanager
    def hold_sandbox(self, sandbox: SandboxKey) -> Iterator[bool]:
        yield sandbox in self.sandboxes

    def read_sysctls(
        self, sandboxes: Collection[SandboxKey], keys: Sequence[str]
    ) -> Mapping[SandboxKey, Mapping[str, str]]:
        found = {each: self.sandboxes[each] for each in sandboxes if each in self.sandboxes}
        return {
            sandbox: {key: values[key] for key in keys if key in values}
            for sandbox, values in found.items()
        }

    def write_sysctls(
        self, writes: Mapping[SandboxKey, Sequence[SysctlWrite]]
    ) -> Mapping[SandboxKey, tuple[Trace, ...]]:
        before = deepcopy(self.sandboxes)
        try:
            return {
                sandbox: _write(self.sandboxes[sandbox], each)
                for sandbox, each in writes.items()
                if sandbox in self.sandboxes
            }
        except KernelError:
            self.sandboxes = before
            raise

    def find_index(self, link: str) -> int | None:
        return crc32(link.encode()) if link in self.links else None  # the same at every start

    def find_interface(self, sandbox: SandboxKey, host_end: str) -> str | None:
        link = self._veth(host_end)
        if link.sandbox is None:
            return None
        self._sandbox(sandbox)
        return link.peer

    def read_macs(self, host_ends: Mapping[str, SandboxKey]) -> Mapping[str, str]:
        ends = {end: self.links[end] for end in host_ends if end in self.links}
        there = {end: each for end, each in ends.items() if each.sandbox in self.sandboxes}
        return {end: self.macs[end] for end in there if end in self.macs}

    def leaves_elsewhere(self, sandbox: SandboxKey, host_end: str) -> bool:
        self._veth(host_end)
        self._sandbox(sandbox)
        return self.default_routes.get(sandbox, host_end) != host_end

    def set_interface_sysctls(
        self,
        sandbox: SandboxKey,
        host_end: str,
        sysctls: Sequence[Sysctl],
        reset: Sequence[str] = (),
    ) -> bool:
        link = self._veth(host_end)
        if link.sandbox is None:
            return False
        values = self._sandbox(sandbox)
        for sysctl in sysctls:
            values[".".join(path_components(sysctl.key, str(link.peer)))] = sysctl.value
        for key in reset:
            default = values.get(".".join(path_components(key, "default")), "0")
            values[".".join(path_components(key, str(link.peer)))] = default
        return True

    def await_interface_sysctls(
        self,
        sandbox: SandboxKey,
        host_end: str,
        sysctls: Sequence[Sysctl],
        index: int | None = None,
    ) -> None:
        if not self.set_interface_sysctls(sandbox, host_end, sysctls):
            raise KernelError(f"configure the interface behind {host_end}: it was not up")

    def watch_sandbox(self, sandbox: SandboxKey, then: Callable[[], None]) -> None:
        self.watches[sandbox] = then

    def unwatch_sandbox(self, sandbox: SandboxKey) -> bool:
        return self.watches.pop(sandbox, None) is not None

    def watch_damage(self, then: Callable[[], None]) -> None:
        self.on_damage = then

    def boot_id(self) -> str:
        return self.boot

    def close(self) -> None:
        self.watches.clear()

    def _veth(self, host_end: str) -> Link:
        if host_end not in self.links:
            raise NotFound(f"look at {host_end}: there is no such link")
        return self.links[host_end]

    def _sandbox(self, sandbox: SandboxKey) -> dict[str, str]:
        if sandbox not in self.sandboxes:
            raise NotFound(f"enter sandbox {sandbox}: there is no network namespace")
        return self.sandboxes[sandbox]

    def _delete(self, name: str) -> None:
        link = self.links.pop(name)
        if link.sandbox is None:
            self.links.pop(link.peer or "", None)
        else:
            self.inside.pop((link.sandbox, link.peer or ""), None)
        for port in self.links.values():
            if port.bridge == name:
                port.bridge, port.hairpin = None, False

    def _has_address(self, ip: IPAddress) -> bool:
        own = {each.ip for link in self.links.values() for each in link.addresses}
        return ip.is_unspecified or ip.is_loopback or ip in own


def _link_local(link: Link) -> Iterator[IPInterface]:
    """Yield the address that the kernel gives a bridge with IPv6 besides what it is told."""
    if link.kind == "bridge" and link.mac and any(each.version == IPV6 for each in link.addresses):
        yield IPv6Interface((derive_link_local(MacAddress(link.mac)), 64))


def _collide(one: HostPort, other: HostPort) -> bool:
    """Tell whether bind(2) refuses the one because of the other."""
    if (one.protocol, one.port, one.ip.version) != (other.protocol, other.port, other.ip.version):
        return False
    return one.ip == other.ip or one.ip.is_unspecified or other.ip.is_unspecified


def _check_alias(alias: str) -> None:
    if len(alias) > ALIAS_LENGTH:
        raise KernelError("write an alias: Invalid argument")


def _write(values: dict[str, str], writes: Sequence[SysctlWrite]) -> tuple[Trace, ...]:
    """Write parameters of a sandbox whose values are as expected."""
    before = dict(values)
    due = [each for each in writes if each.key in before and each.replaces(before[each.key])]
    for each in due:
        if not _takes(before[each.key], each.value):
            raise KernelError(f"set {each.key}={each.value}: Invalid argument")
        values[each.key] = _normal(each.value)
    return tuple(Trace(each.key, before[each.key], values[each.key]) for each in due)


def _normal(value: str) -> str:
    return "\t".join(value.split())


def _takes(present: str, value: str) -> bool:
    """Tell whether a parameter takes a value: a number where it has one, else any word."""
    had, has = (text.split()[0].lstrip("-").isdigit() for text in (present, value))
    return had == has


class Calls:
    """The calls made to the kernel and to the store, one of which may be made to fail.

    `fault` is an error to raise in place of the call, or what happens right before it.
    """

    def __init__(
        self, fail_at: int | None = None, fault: Exception | Callable[..., None] | None = None
    ) -> None:
        self.made: list[str] = []
        self._fail_at = fail_at
        self._fault = fault or KernelError("injected")

    def count(self, name: str, *args: Any) -> None:
        """Note a call that is about to be made; raises if it is the one to fail."""
        self.made.append(name)
        if len(self.made) - 1 != self._fail_at:
            return
        if isinstance(self._fault, Exception):
            raise self._fault
        self._fault(*args)


class _Counted:
    """Pass every call through to the target, after it has been counted."""

    def __init__(self, target: object, calls: Calls) -> None:
        self.target = target
        self._calls = calls

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.target, name)
        label = f"{type(self.target).__name__}.{name}"

        def call(*args: Any, **kwargs: Any) -> Any:
            self._calls.count(label, *args)
            return method(*args, **kwargs)

        return call


class _CountedStore(_Counted):
    """The same for a store, whose transactions can fail when they begin and when they commit."""

    @contextmanager
    def transaction(self, *, durable: bool = False, frees: bool = False) -> Iterator[None]:
        self._calls.count("Store.BEGIN")
        with cast("Store", self.target).transaction(durable=durable, frees=frees):
            yield
            self._calls.count("Store.COMMIT")


def counted_kernel(kernel: FakeKernel, calls: Calls) -> Kernel:
    """Return the kernel with every verb counted, and failed before it acts."""
    return cast("Kernel", _Counted(kernel, calls))


def counted_store(store: Store, calls: Calls) -> Store:
    """Return the store with every call counted, and failed before it acts."""
    return cast("Store", _CountedStore(store, calls))


def _lines(tables: Mapping[str, Table], names: Iterable[str]) -> frozenset[str]:
    """Return what the tables hold, in lines of our own."""
    held = {name: tables[name] for name in names if name in tables}
    elements = {
        f"{name} set {owner}, element {key}: {value}"
        for name, each in held.items()
        for (owner, key), value in each.elements.items()
    }
    return frozenset({f"{name}: {each.text}" for name, each in held.items()} | elements)
