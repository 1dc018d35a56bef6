"""A host as a test sees it, in memory or real: what others do to it, and how it looks."""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import signal
import socket
import subprocess
from collections import Counter
from contextlib import contextmanager, suppress
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from driver.linux import netns, sysctl
from driver.model import HostPort, IPInterface, SandboxKey
from driver.model import Protocol as Transport
from tests.fakes import FakeKernel, Link
from tests.samples import sandbox_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from driver.linux import Kernel
    from driver.linux.linux import LinuxKernel

COMMANDS = {4: "iptables", 6: "ip6tables"}
PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
NEEDS = {"vxlan": ("id", "1", "dstport", "4789")}  # what `ip link add` asks for beside the kind


class Host(Protocol):
    """What a test can do to a host besides calling its kernel."""

    @property
    def kernel(self) -> Kernel: ...

    def add_foreign(self, name: str, kind: str = "bridge", *addresses: str) -> None:
        """Have another program make a link, down."""

    def set_alias(self, name: str, alias: str) -> None:
        """Have another program write an alias."""

    def links(self) -> Mapping[str, Link]:
        """Return the links of the host."""

    def elements(self, name: str = "same_bridge") -> set[str]:
        """Return the elements of a set, or of a map with their values, without quotes."""

    def add_sandbox(self, number: int) -> SandboxKey:
        """Make a sandbox."""

    def move(self, host_end: str, sandbox: SandboxKey) -> None:
        """Have libnetwork bring the other end of a veth into a sandbox, as eth0."""

    def leave_by(self, sandbox: SandboxKey, host_end: str | None) -> None:
        """Have the IPv4 default route go by the other end of a veth, None for another program's."""

    def value(self, sandbox: SandboxKey, key: str) -> str | None:
        """Return a parameter's value in a sandbox."""

    def enslave(self, name: str, bridge: str) -> None:
        """Have another program make a link a port of a bridge."""

    def inside(self, sandbox: SandboxKey) -> Mapping[str, Link]:
        """Return the interfaces of a sandbox that a driver attached directly."""

    def forwards(self, version: int) -> bool:
        """Tell whether the host forwards packets of an address family."""

    def weaken(self, version: int, policy: str, sources: Mapping[str, int]) -> None:
        """Have the operator set the policy of FORWARD, and the checks of interfaces' sources."""

    def take(self, place: HostPort) -> None:
        """Have another program listen on a host port, for as long as the test lasts."""

    def track(self, *flows: HostPort) -> None:
        """Have the host see flows to these places."""

    def flows(self) -> set[HostPort]:
        """Return the original destinations of the flows that the host tracks."""


class FakeHost:
    """The host of a FakeKernel."""

    def __init__(self) -> None:
        self.kernel = FakeKernel()

    def add_foreign(self, name: str, kind: str = "bridge", *addresses: str) -> None:
        self.kernel.add_foreign(name, kind, addresses=parse(addresses), up=False)

    def set_alias(self, name: str, alias: str) -> None:
        self.kernel.links[name].alias = alias

    def links(self) -> Mapping[str, Link]:
        return self.kernel.state()["links"]  # type: ignore[no-any-return]

    def elements(self, name: str = "same_bridge") -> set[str]:
        held = self.kernel.elements(name)
        pairs = (f"{key} : {value}" if value else key for key, value in held.items())
        return {pair.replace('"', "") for pair in pairs}

    def add_sandbox(self, number: int) -> SandboxKey:
        self.kernel.add_sandbox(sandbox_key(number))
        return sandbox_key(number)

    def move(self, host_end: str, sandbox: SandboxKey) -> None:
        self.kernel.move(host_end, sandbox)

    def leave_by(self, sandbox: SandboxKey, host_end: str | None) -> None:
        self.kernel.default_routes[sandbox] = host_end or "somebody's"

    def value(self, sandbox: SandboxKey, key: str) -> str | None:
        values = self.kernel.sandboxes[sandbox]
        inside = {each.peer for each in self.kernel.links.values() if each.sandbox == sandbox}
        return values.get(re.sub(r"\beth0\b", str(next(iter(inside), None)), key))

    def enslave(self, name: str, bridge: str) -> None:
        self.kernel.links[name].bridge = bridge

    def inside(self, sandbox: SandboxKey) -> Mapping[str, Link]:
        return {
            name: each for (where, name), each in self.kernel.inside.items() if where == sandbox
        }

    def forwards(self, version: int) -> bool:
        return version in self.kernel.forwarding

    def weaken(self, version: int, policy: str, sources: Mapping[str, int]) -> None:
        self.kernel.forward_policies[version] = policy
        self.kernel.source_checks |= sources

    def take(self, place: HostPort) -> None:
        self.kernel.taken[place] = "python (pid 812)"

    def track(self, *flows: HostPort) -> None:
        self.kernel.flows |= set(flows)

    def flows(self) -> set[HostPort]:
        return set(self.kernel.flows)


class RealHost:
    """The network namespace that the test's process is in."""

    def __init__(self, kernel: LinuxKernel, folder: Path) -> None:
        self.kernel = kernel
        self._folder = folder
        self._taken: list[socket.socket] = []

    def add_foreign(self, name: str, kind: str = "bridge", *addresses: str) -> None:
        ip("link", "add", name, "type", kind, *NEEDS.get(kind, ()))
        for address in addresses:
            ip("addr", "add", address, "dev", name)

    def set_alias(self, name: str, alias: str) -> None:
        ip("link", "set", name, "alias", alias)

    def links(self) -> Mapping[str, Link]:
        return links_shown(ip("-json", "-details", "addr", "show"))

    def elements(self, name: str = "same_bridge") -> set[str]:
        content = run("nft", "--terse", "list", "table", "inet", "pynet")
        kind = "map" if f"map {name} {{" in content else "set"
        listing = json.loads(run("nft", "--json", "list", kind, "inet", "pynet", name))
        return set(map(element_of, listing["nftables"][1][kind].get("elem", [])))

    def add_sandbox(self, number: int) -> SandboxKey:
        path = self.expect_sandbox(number)
        mount_namespace(path)
        return path

    def expect_sandbox(self, number: int) -> SandboxKey:
        """Make the empty file over which a sandbox will be mounted."""
        path = self._folder / f"{number:012x}"
        path.touch()
        return SandboxKey(str(path))

    def move(self, host_end: str, sandbox: SandboxKey) -> None:
        name = host_end.replace("pnh", "pnc")
        link = json.loads(ip("-json", "link", "show", name))[0]
        assert link["ifname"] == name
        ip("link", "set", name, "netns", sandbox, "name", "eth0")
        ip("link", "set", "eth0", "up", sandbox=sandbox)

    def leave_by(self, sandbox: SandboxKey, host_end: str | None) -> None:
        name = "eth0" if host_end else "eth1"
        if host_end is None:
            ip("link", "add", name, "type", "ifb", sandbox=sandbox)
            ip("link", "set", name, "up", sandbox=sandbox)
        ip("route", "replace", "default", "dev", name, sandbox=sandbox)

    def value(self, sandbox: SandboxKey, key: str) -> str | None:
        components = key.split(".")
        with netns.open_namespace(sandbox) as namespace:
            path = sysctl.ROOT.joinpath(*components)
            text = netns.run_in(namespace, lambda: path.read_text() if path.exists() else None)
        return None if text is None else text.rstrip("\n")

    def enslave(self, name: str, bridge: str) -> None:
        ip("link", "set", name, "master", bridge)

    def inside(self, sandbox: SandboxKey) -> Mapping[str, Link]:
        return links_shown(ip("-json", "-details", "addr", "show", sandbox=sandbox))

    def forwards(self, version: int) -> bool:
        key = {4: "ip_forward", 6: "conf/all/forwarding"}[version]
        return Path(f"/proc/sys/net/ipv{version}/{key}").read_text() == "1\n"

    def weaken(self, version: int, policy: str, sources: Mapping[str, int]) -> None:
        run(COMMANDS[version], "-w", "-P", "FORWARD", policy)
        for name, mode in sources.items():
            Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text(str(mode))

    def take(self, place: HostPort) -> None:
        taken = bound(place)
        self._taken.append(taken)
        if place.protocol is Transport.TCP:
            taken.listen()

    def release(self) -> None:
        """Give back what `take` took."""
        for each in self._taken:
            each.close()

    def track(self, *flows: HostPort) -> None:
        for each in flows:
            source = "192.0.2.99" if each.ip.version == 4 else "2001:db8::99"
            ends = ("-s", source, "-d", str(each.ip), "-p", each.protocol.value)
            numbers = ("--sport", "4321", "--dport", str(each.port), "-t", "60")
            state = ("--state", "ESTABLISHED") if each.protocol is Transport.TCP else ()
            run("conntrack", "-I", *ends, *numbers, *state)

    def flows(self) -> set[HostPort]:
        listing = (run("conntrack", "-L", "-f", family) for family in ("ipv4", "ipv6"))
        found = re.findall(
            r"^(tcp|udp) .*? dst=(\S+) sport=\d+ dport=(\d+)", "".join(listing), re.MULTILINE
        )
        return {HostPort(Transport(name), ip_address(ip), int(port)) for name, ip, port in found}


def bound(place: HostPort) -> socket.socket:
    """Return a socket that is bound as servers do it, by default."""
    family = {4: socket.AF_INET, 6: socket.AF_INET6}[place.ip.version]
    kind = socket.SOCK_STREAM if place.protocol is Transport.TCP else socket.SOCK_DGRAM
    made = socket.socket(family, kind)
    if place.ip.version == 6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        made.bind((str(place.ip), place.port))
    except OSError:
        made.close()
        raise
    return made


def relays() -> list[int]:
    """List the relays in this network namespace."""
    ours = Path("/proc/self/ns/net").readlink()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            is_here = (folder / "ns/net").readlink() == ours
        except (
            FileNotFoundError,
            ProcessLookupError,
            PermissionError,
        ):  # it has just ended, or is none of ours
            continue
        if b"driver/relay/__main__.py" in command and is_here:
            found.append(int(folder.name))
    return found


def run(*command: str) -> str:
    """Return what a command prints; raises with what it says if it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}: {result.stderr}"
    return result.stdout


def add_loopback_pair() -> None:
    """Make what earlier versions of the driver made for the host's ::1, as they left it."""
    out_mac, in_mac = "02:70:6e:6c:6f:00", "02:70:6e:6c:6f:01"
    peer = ("peer", "name", "pnlo-in", "address", in_mac)
    ip("link", "add", "pnlo-out", "address", out_mac, "type", "veth", *peer)
    ip("link", "set", "pnlo-out", "alias", "pynet: from the host's ::1 to published ports")
    words = ("priority", "7064", "fwmark", "0x8000000/0x8000000", "table", "7064")
    ip("-6", "rule", "add", *words)


def ip(*arguments: str, sandbox: SandboxKey | None = None) -> str:
    """Run ip, in a sandbox if one is given."""
    enter = () if sandbox is None else ("nsenter", f"--net={sandbox}")
    return run(*enter, "ip", *arguments)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent goes, whatever that dies of."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def mount_namespace(path: str) -> None:
    """Mount a new network namespace over an existing file, as runc's hook does."""
    run("unshare", "--net", "mount", "--bind", "/proc/self/ns/net", path)


def unmount_namespace(path: str) -> None:
    """End a sandbox: unmount its namespace."""
    run("umount", path)


def descriptors() -> Counter[str]:
    """Return how many open files of each kind the process has."""
    kinds: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # another thread has closed it meanwhile
            kinds[str(entry.readlink()).partition(":")[0]] += 1
    return kinds


@contextmanager
def all_but(free: int) -> Iterator[None]:
    """Leave this process no more than a few descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    taken: list[int] = []
    with suppress(OSError):
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    for each in taken[:free]:
        os.close(each)
    try:
        yield
    finally:
        for each in taken[free:]:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def parse(addresses: Iterable[str]) -> tuple[IPInterface, ...]:
    """Return addresses as values."""
    return tuple(map(ip_interface, addresses))


def element_of(value: Any) -> str:
    """Return an element as nft writes it, from what `nft --json` shows of it."""
    match value:
        case [key, data]:
            return f"{element_of(key)} : {element_of(data)}"
        case {"elem": {"val": key}}:
            return element_of(key)
        case {"concat": parts}:
            return " . ".join(map(element_of, parts))
        case {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}"
        case _:
            return str(value)


def links_shown(listing: str) -> dict[str, Link]:
    """Return the links of a listing of `ip -json`, but for the loopback."""
    entries = json.loads(listing)
    return {entry["ifname"]: link_of(entry) for entry in entries if entry["ifname"] != "lo"}


def link_of(entry: dict[str, Any]) -> Link:
    """Return a link as `ip -json` shows it, without addresses that the kernel chose."""
    addresses = [each for each in entry["addr_info"] if each["scope"] != "link"]
    return Link(
        kind=entry.get("linkinfo", {}).get("info_kind", ""),
        alias=entry.get("ifalias", ""),
        mac=entry["address"],
        mtu=entry["mtu"],
        up="UP" in entry["flags"],
        addresses=parse(f"{each['local']}/{each['prefixlen']}" for each in addresses),
        bridge=entry.get("master"),
        peer=entry.get("link"),
        hairpin=entry.get("linkinfo", {}).get("info_slave_data", {}).get("hairpin", False),
    )
