"""A host as a test sees it, in memory or real: what others do to it, and how it looks."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from contextlib import suppress
from ipaddress import ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from driver.kernel import netns, sysctl
from driver.model import IPInterface, SandboxKey
from tests.fakes import FakeKernel, Link
from tests.samples import sandbox_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from driver.kernel import Kernel
    from driver.kernel.linux import LinuxKernel

NEEDS = {"vxlan": ("id", "1", "dstport", "4789")}  # what `ip link add` asks for beside the kind


class Host(Protocol):
    """What a test can do to a host besides calling its kernel."""

    @property
    def kernel(self) -> Kernel: ...

    def add_foreign(self, name: str, kind: str = "bridge", *addresses: str) -> None:
        """Have somebody else make a link, down."""

    def set_alias(self, name: str, alias: str) -> None:
        """Have somebody else write an alias."""

    def links(self) -> Mapping[str, Link]:
        """Return the links of the host."""

    def elements(self, name: str = "same_bridge") -> set[str]:
        """Return the elements of a set, or of a map with their values, without quotes."""

    def add_sandbox(self, number: int) -> SandboxKey:
        """Make a sandbox."""

    def move(self, host_end: str, sandbox: SandboxKey) -> None:
        """Have libnetwork bring the other end of a veth into a sandbox, as eth0."""

    def value(self, sandbox: SandboxKey, key: str) -> str | None:
        """Return a parameter's value in a sandbox."""


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

    def value(self, sandbox: SandboxKey, key: str) -> str | None:
        values = self.kernel.sandboxes[sandbox]
        inside = {each.peer for each in self.kernel.links.values() if each.sandbox == sandbox}
        return values.get(re.sub(r"\beth0\b", str(next(iter(inside), None)), key))


class RealHost:
    """The network namespace that the test's process is in."""

    def __init__(self, kernel: LinuxKernel, folder: Path) -> None:
        self.kernel = kernel
        self._folder = folder

    def add_foreign(self, name: str, kind: str = "bridge", *addresses: str) -> None:
        ip("link", "add", name, "type", kind, *NEEDS.get(kind, ()))
        for address in addresses:
            ip("addr", "add", address, "dev", name)

    def set_alias(self, name: str, alias: str) -> None:
        ip("link", "set", name, "alias", alias)

    def links(self) -> Mapping[str, Link]:
        entries = json.loads(ip("-json", "-details", "addr", "show"))
        return {entry["ifname"]: link_of(entry) for entry in entries if entry["ifname"] != "lo"}

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

    def value(self, sandbox: SandboxKey, key: str) -> str | None:
        components = key.split(".")
        with netns.open_namespace(sandbox) as namespace:
            path = sysctl.ROOT.joinpath(*components)
            text = netns.run_in(namespace, lambda: path.read_text() if path.exists() else None)
        return None if text is None else text.rstrip("\n")


def run(*command: str) -> str:
    """Return what a command prints; raises with what it says if it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}: {result.stderr}"
    return result.stdout


def ip(*arguments: str, sandbox: SandboxKey | None = None) -> str:
    """Run ip, in a sandbox if one is given."""
    enter = () if sandbox is None else ("nsenter", f"--net={sandbox}")
    return run(*enter, "ip", *arguments)


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
