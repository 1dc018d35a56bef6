"""Be libnetwork: what it sends, and how it brings an interface into a sandbox and back."""

from __future__ import annotations

import ctypes
import os
import socket
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Any

from pyroute2 import IPRoute

from driver.linux import netns, sysctl
from driver.model import SandboxKey
from plugin.api.protocol import GENERIC, PORT_MAP
from tests.samples import network_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MS_BIND, MNT_DETACH = 4096, 2  # include/uapi/linux/mount.h, umount(2)

_libc = ctypes.CDLL(None, use_errno=True)


def network_call(net: int, options: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return what CreateNetwork is sent with, for 10.NET.0.0/16 and fd00:NET::/64."""
    space = {"AddressSpace": "LocalDefault"}
    return {
        "NetworkID": network_id(net),
        "Options": {GENERIC: dict(options or {})},
        "IPv4Data": [{"Pool": f"10.{net}.0.0/16", "Gateway": f"10.{net}.0.1/16"} | space],
        "IPv6Data": [{"Pool": f"fd00:{net}::/64", "Gateway": f"fd00:{net}::1/64"} | space],
    }


def port_options(*ports: tuple[int, int, int]) -> dict[str, Any]:
    """Return the options that publish ports: of a protocol number, a container's, on the host."""
    entries = [{"Proto": proto, "Port": port, "HostPort": on} for proto, port, on in ports]
    return {"Options": {PORT_MAP: entries}}


class Sandbox:
    """A network namespace that is mounted where Docker would mount it, or is yet to come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.key = SandboxKey(str(path))
        path.touch()

    def come(self) -> None:
        """Make the namespace, as runc's hook does: mounted over the empty file."""

        def mount() -> None:
            source = f"/proc/self/task/{_gettid()}/ns/net".encode()
            if _libc.mount(source, bytes(self.path), None, MS_BIND, None) != 0:
                raise OSError(ctypes.get_errno(), f"mount {self.path}")
            with IPRoute(groups=0) as route:
                route.link("set", index=1, state="up")

        netns.run_in_new(mount)

    def go(self) -> None:
        """End it, with all that is in it."""
        if _libc.umount2(bytes(self.path), MNT_DETACH) != 0:
            raise OSError(ctypes.get_errno(), f"unmount {self.path}")

    def bring(self, answer: Any, addresses: Sequence[str]) -> str | None:
        """Move the interface that Join answered in, name it, give it addresses, bring it up."""
        if "InterfaceName" not in answer:
            return None
        source, prefix = (answer["InterfaceName"][each] for each in ("SrcName", "DstPrefix"))
        with netns.open_namespace(self.key) as namespace:
            with IPRoute(groups=0) as route:
                index = route.link("get", ifname=source)[0]["index"]
                route.link("set", index=index, net_ns_fd=namespace)
            return netns.run_in(namespace, lambda: _configure(index, prefix, addresses))

    def take_back(self, name: str, source: str) -> None:
        """Move an interface back to the host under the name that it came with."""
        host = os.open(netns.OWN_NAMESPACE, os.O_RDONLY)
        try:
            with netns.open_namespace(self.key) as namespace:
                netns.run_in(namespace, lambda: _give_back(name, source, host))
        finally:
            os.close(host)

    def value(self, key: str) -> str | None:
        """Return a parameter of it."""
        with netns.open_namespace(self.key) as namespace:
            return netns.run_in(namespace, lambda: sysctl.read(key))


def _configure(index: int, prefix: str, addresses: Sequence[str]) -> str:
    taken = {name for _, name in socket.if_nameindex()}
    name = next(each for number in range(99) if (each := f"{prefix}{number}") not in taken)
    with IPRoute(groups=0) as route:
        route.link("set", index=index, ifname=name)
        for address in map(ip_interface, addresses):
            options: dict[str, Any] = {"flags": 2} if address.version == 6 else {}
            route.addr(
                "add",
                index=index,
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                **options,
            )
        route.link("set", index=index, state="up")
    return name


def _give_back(name: str, source: str, host: int) -> None:
    with IPRoute(groups=0) as route:
        index = route.link("get", ifname=name)[0]["index"]
        route.link("set", index=index, state="down")
        route.link("set", index=index, ifname=source, net_ns_fd=host)


def _gettid() -> int:
    return int(_libc.gettid())
