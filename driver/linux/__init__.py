"""The verbs that the driver asks of the kernel, as a protocol; only this package implements them.

The verbs are all or nothing: one that fails has taken back what it did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from driver.model import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from driver.firewall.elements import Change
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
        Traffic,
        Usage,
        Veth,
    )
    from driver.observed import HostSettings, Link, Passage


class Kernel(Protocol):
    """The kernel of this host, as far as a network driver needs it."""

    def ensure_bridge(self, bridge: Bridge) -> tuple[IPInterface, ...]:
        """Create the bridge, or use the one of that name, and give it its addresses.

        Returns the addresses that it did not have before. Raises Conflict if the name belongs to
        something that may not be used, KernelError if the kernel refuses.
        """

    def delete_bridge(self, bridge: Bridge, added: Sequence[IPInterface]) -> None:
        """Delete the bridge if it is ours; from a foreign one take only the added addresses."""

    def create_veth(self, veth: Veth) -> None:
        """Create the pair, its host end on the bridge and up. Raises Conflict for a taken name."""

    def create_veth_in(self, veth: Veth, sandbox: SandboxKey, interface: DirectInterface) -> None:
        """Create the pair with its sandbox end in the sandbox, named, addressed and up."""

    def ensure_port(self, veth: Veth) -> bool:
        """Put the host end on its bridge and up, with the network's MTU at least.

        Returns False if there is no such link.
        """

    def delete_links(self, names: Iterable[str]) -> None:
        """Delete these links of ours; absence is success, a foreign link is left alone."""

    def release_links(self, names: Iterable[str]) -> None:
        """Delete these links of ours in the background: it takes 15 to 30 ms each."""

    def observe_links(self) -> Mapping[str, Link]:
        """Return every interface of the host, by name, but for those that we are deleting."""

    def apply_rules(self, text: str) -> None:
        """Replace our tables by what this nft text makes, in one transaction."""

    def change_elements(self, changes: Sequence[Change]) -> None:
        """Add elements to our sets and maps, and delete them, in one transaction."""

    def list_rules(self, tables: Sequence[str]) -> frozenset[str]:
        """Return what these tables hold, a line a chain, rule, set and element."""

    def preview_rules(self, text: str, tables: Sequence[str]) -> frozenset[str]:
        """Return what they would hold if nothing but this nft text had been given to them."""

    def read_traffic(self) -> Mapping[str, Traffic]:
        """Return what has passed the links of the host, by their names; cheap, for thousands."""

    def read_published(self) -> Mapping[HostPort, int]:
        """Return how many connections were led to containers since our tables were made, by port.

        Each has its own count of what was translated; what a relay serves is not in it.
        """

    def count_connections(
        self, bindings: Collection[PortBinding], most: int
    ) -> Mapping[PortBinding, Usage] | None:
        """Return the open connections that the kernel translates to each of these ports.

        None if it translates more than `most` in all: to look through them takes 10 µs each.
        """

    def read_drops(self) -> Drops:
        """Return what our tables have dropped since they were made, and by which interfaces."""

    def read_rule_counts(self) -> Mapping[tuple[str, str], tuple[Count, ...]]:
        """Return what each rule of our tables has counted, by family and chain, in their order."""

    def ensure_forward_accept(self, mark: int) -> None:
        """Accept packets that carry the mark in the iptables FORWARD chain, IPv4 and IPv6."""

    def has_forward_accept(self, mark: int) -> bool:
        """Return whether they do, as far as we have seen to it."""

    def delete_forward_accept(self, mark: int) -> None:
        """Remove what `ensure_forward_accept` added, wherever it is."""

    def set_zone(self, interfaces: Collection[str]) -> None:
        """Ask firewalld, where it runs, to accept traffic of these interfaces and no others.

        All verbs of the zone but `settle_zone` return at once: firewalld may take seconds.
        """

    def change_zone(self, *, add: Collection[str] = (), remove: Collection[str] = ()) -> None:
        """Add interfaces to those, or remove some."""

    def delete_zone(self) -> None:
        """Remove the zone and the policy from firewalld."""

    def settle_zone(self, seconds: float) -> bool:
        """Wait until firewalld has done, or refused, what it was asked; return whether in time."""

    def zone_problem(self) -> str | None:
        """Return why firewalld does not do so, as a sentence; None if all is well."""

    def watch_zone(self, report: Callable[[str | None], None]) -> None:
        """Call `report` whenever `zone_problem` has changed; it must return at once."""

    def ensure_forwarding(self, version: int) -> None:
        """Turn on forwarding of an address family, 4 or 6.

        Where that was off, what no rule accepts is dropped from then on, as with Docker: a host
        that forwards and accepts everything is an open router. Not if the operator forbids it.
        """

    def delete_loopback_pair(self) -> None:
        """Remove the interfaces by which earlier versions led ::1 to ports; absence is success."""

    def ephemeral_ports(self) -> range:
        """Return the host ports to choose from when none is requested."""

    def reserve_ports(self, places: Sequence[HostPort]) -> None:
        """Reserve host ports. Raises PortInUse for the first that is taken."""

    def release_ports(self, places: Iterable[HostPort]) -> None:
        """Let go of host ports, relayed ones included; absence is success."""

    def relay_ports(self, relays: Iterable[Relay]) -> None:
        """Serve reserved host ports by the relay, from a little later on.

        What comes until then waits. What is not reserved cannot be relayed, and is left out.
        """

    def list_relayed(self) -> frozenset[Relay]:
        """Return what the relay serves, or is about to unless something is wrong with it."""

    def list_reserved(self) -> frozenset[HostPort]:
        """Return the host ports that are kept."""

    def find_port_owner(self, place: HostPort) -> str:
        """Return who has a host port, in words for an error message."""

    def forget_flows(self, bindings: Iterable[PortBinding]) -> None:
        """Remove the tracked UDP flows to published host ports."""

    def check_sysctls(self, sysctls: Sequence[Sysctl]) -> Mapping[str, str]:
        """Try the parameters in a throw-away namespace and return their pristine values.

        Raises InvalidRequest that names the parameter and the reason.
        """

    def read_pristine(self, keys: Iterable[str] | None = None) -> Mapping[str, str]:
        """Return what a namespace made now has; keys that it does not have are left out.

        Without keys, every parameter that can be read and set there.
        """

    def read_host(self, keys: Iterable[str] | None = None) -> Mapping[str, str]:
        """Return what the host itself has, in the same way."""

    def read_sandboxes(
        self, host_ends: Mapping[str, SandboxKey], keys: Iterable[str] | None = None
    ) -> Mapping[str, Mapping[str, str]]:
        """Return what sandboxes have, by the host end that leads into each.

        IFNAME stands for its other end there. Keys that a sandbox does not have are left out;
        without keys, every parameter that can be read and set. Sandboxes that are gone are left
        out.
        """

    def observe_host(self, interfaces: Iterable[str]) -> HostSettings:
        """Return settings of the host that bear on all networks, and on these interfaces of its."""

    def observe_passage(self, ends: Mapping[IPAddress, str]) -> Passage:
        """Return what decides whether packets pass this host, beside our own rules.

        `ends` are containers' addresses with the bridges that they are behind. Of others' rules
        only those of chains that drop by policy are read.
        """

    def has_sandbox(self, sandbox: SandboxKey) -> bool:
        """Return whether the path is a network namespace by now."""

    def hold_sandbox(self, sandbox: SandboxKey) -> AbstractContextManager[bool]:
        """Look a sandbox up once for what this thread asks of it inside the block.

        Lends whether it exists by now. Raises InvalidRequest if it is the host itself.
        """

    def read_sysctls(
        self, sandboxes: Collection[SandboxKey], keys: Sequence[str]
    ) -> Mapping[SandboxKey, Mapping[str, str]]:
        """Return what sandboxes have; keys that one does not have are left out.

        Sandboxes that are gone are left out.
        """

    def write_sysctls(
        self, writes: Mapping[SandboxKey, Sequence[SysctlWrite]]
    ) -> Mapping[SandboxKey, tuple[Trace, ...]]:
        """Write parameters whose value is still an expected one; return a trace of every write.

        All or nothing: a write that fails undoes those in every sandbox. Sandboxes that are gone
        are left out.
        """

    def find_index(self, link: str) -> int | None:
        """Return a link's index in the host's namespace, None if there is no such link there.

        Never waits for the kernel's rtnl lock, as whatever else looks at a link may.
        """

    def find_interface(self, sandbox: SandboxKey, host_end: str) -> str | None:
        """Return what the sandbox end of a host end is called in the sandbox, None if not there.

        Raises NotFound if there is no such link or sandbox.
        """

    def read_macs(self, host_ends: Mapping[str, SandboxKey]) -> Mapping[str, str]:
        """Return the MAC addresses that interfaces have in their sandboxes, by their host ends.

        What is not in its sandbox is left out.
        """

    def leaves_elsewhere(self, sandbox: SandboxKey, host_end: str) -> bool:
        """Return whether the sandbox's IPv4 default route goes by another interface than this one.

        Raises NotFound if there is no such link or sandbox.
        """

    def set_interface_sysctls(
        self,
        sandbox: SandboxKey,
        host_end: str,
        sysctls: Sequence[Sysctl],
        reset: Sequence[str] = (),
    ) -> bool:
        """Write per-interface parameters of the sandbox end that belongs to a host end.

        What is in `reset` gets what a new interface of the sandbox would have. Returns False if
        the interface is not in the sandbox (yet).
        """

    def await_interface_sysctls(
        self,
        sandbox: SandboxKey,
        host_end: str,
        sysctls: Sequence[Sysctl],
        index: int | None = None,
    ) -> None:
        """Do the same as soon as libnetwork has brought the interface up in the sandbox.

        `index` is what `find_index` said of the sandbox end before it was moved; without, it is
        asked for, and the answer may come after the container's first process.
        """

    def watch_sandbox(self, sandbox: SandboxKey, then: Callable[[], None]) -> None:
        """Call `then`, once, in a thread of its own, as soon as the sandbox exists."""

    def unwatch_sandbox(self, sandbox: SandboxKey) -> bool:
        """Forget the watch, if there is one; returns whether the sandbox was still awaited."""

    def watch_damage(self, then: Callable[[], None]) -> None:
        """Call `then` whenever others may have damaged links or rules; it must return at once."""

    def boot_id(self) -> str:
        """Return what the kernel calls this boot: another value means that links are gone."""

    def close(self) -> None:
        """Finish what is under way and let go of every resource."""


__all__ = ["Kernel", "Trace"]
