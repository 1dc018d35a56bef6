"""Be the container runtime on a private host: have networks joined and left, and time each step.

A program of its own inside the host's namespaces, so that no measurement contains the entering of
them. One line of JSON a request, one an answer; see `bench.lives` for who asks. Every kind of
network is driven as its own users drive it: pynet by the calls that the engine makes, the CNI
plugins and netavark by running them, the bare tools by their batch files.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SANDBOXES = Path("/run/netns")  # where `ip -n` looks
WORK = Path("/run/bench")
PEERS = Path("/run/peers")
NO_IPV6 = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
PYNET_SOCKET = "/run/docker/plugins/pynet.sock"
CLONE_NEWNET, CLONE_NEWNS = 0x40000000, 0x00020000  # include/uapi/linux/sched.h
MS_BIND = 4096  # include/uapi/linux/mount.h
SYSCTL = ("net.ipv4.tcp_keepalive_time", "600")
PER_SUBNET = 250

Steps = list[tuple[str, float]]
P = ParamSpec("P")
T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Place:
    """One container's place on a network: its sandbox, address and host ports by a number."""

    kind: str
    net: int
    number: int
    ports: int
    life: int

    @property
    def sandbox(self) -> Path:
        """Where its network namespace is mounted."""
        return SANDBOXES / f"{self.kind}{self.number}"

    @property
    def identity(self) -> str:
        """64 digits of its own, the first 12 of them too; no id comes back in another life."""
        return f"{self.net:02x}{self.number:04x}{self.life:06x}".ljust(64, "e")

    @property
    def address(self) -> str:
        """Its address, without the prefix length, which is 16."""
        high, low = divmod(self.number, PER_SUBNET)
        return f"10.{self.net}.{high + 1}.{low + 2}"

    @property
    def host_ports(self) -> range:
        """The host ports that it publishes, for as many ports of its own from 80 on."""
        first = 2000 + self.net % 10 * 10000 + self.number * self.ports
        return range(first, first + self.ports)


class Kind(Protocol):
    """A way to network containers."""

    def set_up(self) -> None:
        """Make what its networks need before the first container."""

    def begin(self, place: Place) -> Steps:
        """Put a container on the network; return what each step took, in seconds."""

    def end(self, place: Place) -> Steps:
        """Take it off again."""


def timed(steps: Steps, name: str, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a step and note what it took; return what it returns."""
    began = time.perf_counter()
    result = action(*args, **kwargs)
    steps.append((name, time.perf_counter() - began))
    return result


class Pynet:
    """pynet, by the calls of engine 28; `direct` has the driver make the interface itself."""

    def __init__(self, net: int, *, direct: bool) -> None:
        self._net = net
        self._direct = direct
        self._identity = f"{net:02x}" * 32

    def set_up(self) -> None:
        """Make the network."""
        options = {SYSCTL[0]: SYSCTL[1]} | ({"pynet.attach": "direct"} if self._direct else {})
        subnet = f"10.{self._net}.0"
        pool = {"AddressSpace": "", "Pool": f"{subnet}.0/16", "Gateway": f"{subnet}.1/16"}
        self._call(
            "CreateNetwork",
            Options={"com.docker.network.generic": options},
            IPv4Data=[pool],
            IPv6Data=[],
        )

    def begin(self, place: Place) -> Steps:
        """CreateEndpoint, Join, ProgramExternalConnectivity, EndpointOperInfo."""
        steps: Steps = []
        ports = {
            "com.docker.network.portmap": [
                {"Proto": 6, "Port": 80 + n, "HostPort": port, "HostPortEnd": port}
                for n, port in enumerate(place.host_ports)
            ]
        }
        interface = {"Address": f"{place.address}/16", "AddressIPv6": "", "MacAddress": ""}
        self._step(steps, "CreateEndpoint", place, Interface=interface, Options=ports)
        key = str(place.sandbox)
        joined = self._step(steps, "Join", place, SandboxKey=key, Options=ports)
        if not self._direct:  # what libnetwork does then is its own time
            name = joined["InterfaceName"]["SrcName"]
            _run("ip", "link", "set", name, "netns", place.sandbox.name, "name", "eth0")
            _run_in(place, f"addr add {place.address}/16 dev eth0", "link set eth0 up")
        self._step(steps, "ProgramExternalConnectivity", place, Options=ports)
        self._step(steps, "EndpointOperInfo", place)
        return steps

    def end(self, place: Place) -> Steps:
        """RevokeExternalConnectivity, Leave, DeleteEndpoint; then wait for what comes after."""
        steps: Steps = []
        self._step(steps, "RevokeExternalConnectivity", place)
        self._step(steps, "Leave", place)
        if not self._direct:
            name = f"pnc{place.identity[:12]}"
            _run_in(place, "link set eth0 down", f"link set eth0 name {name} netns 1")
        self._step(steps, "DeleteEndpoint", place)
        while _exists(f"pnh{place.identity[:12]}"):
            time.sleep(0.001)
        return steps

    def idle(self, place: Place) -> Steps:
        """Make a call that finds everything done."""
        steps: Steps = []
        self._step(steps, "EndpointOperInfo", place)
        return steps

    def _step(self, steps: Steps, method: str, place: Place, **body: Any) -> Any:
        return timed(steps, method, self._call, method, EndpointID=place.identity, **body)

    def _call(self, method: str, **body: Any) -> Any:
        return call(f"NetworkDriver.{method}", {"NetworkID": self._identity, **body})


def call(method: str, body: Mapping[str, Any]) -> Any:
    """Make one call of the plugin protocol on a connection of its own, as the engine does."""
    document = json.dumps(body).encode()
    head = f"POST /{method} HTTP/1.1\r\nHost: \r\nContent-Length: {len(document)}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(PYNET_SOCKET)
        connection.sendall(head.encode() + document)
        status, content = _read_answer(connection)
    if b" 200 " not in status:
        raise OSError(f"{method}: {content.decode()}")
    return json.loads(content)


def _read_answer(connection: socket.socket) -> tuple[bytes, bytes]:
    """Return the status line and the content; like the engine, don't wait for the closing."""
    answer = b""
    while (end := answer.find(b"\r\n\r\n")) < 0:
        answer += _receive(connection)
    head = answer[:end]
    size = int(
        next(each for each in head.split(b"\r\n") if each.startswith(b"Content-Length"))[15:]
    )
    while len(answer) < end + 4 + size:
        answer += _receive(connection)
    return head.partition(b"\r\n")[0], answer[end + 4 :]


def _receive(connection: socket.socket) -> bytes:
    received = connection.recv(65536)
    if not received:
        raise OSError("the driver closed the connection")
    return received


class Cni:
    """The CNI plugins that a Kubernetes node chains: what containerd does, without containerd."""

    def __init__(self, net: int) -> None:
        self._net = net
        self._folder = PEERS / "usr/lib/cni"

    def set_up(self) -> None:
        """Nothing: the first container makes the bridge."""

    def begin(self, place: Place) -> Steps:
        """ADD of each plugin, each with the result of the one before."""
        steps: Steps = []
        result: Any = None
        for plugin in self._chain(place):
            answer = timed(steps, f"{plugin['type']} ADD", self._run, "ADD", plugin, place, result)
            result = json.loads(answer)
        _remember(place, result)
        return steps

    def end(self, place: Place) -> Steps:
        """DEL of each plugin, the last one first."""
        steps: Steps = []
        result = _recall(place)
        for plugin in reversed(self._chain(place)):
            timed(steps, f"{plugin['type']} DEL", self._run, "DEL", plugin, place, result)
        return steps

    def _chain(self, place: Place) -> list[dict[str, Any]]:
        mappings = [
            {"hostPort": port, "containerPort": 80 + n, "protocol": "tcp"}
            for n, port in enumerate(place.host_ports)
        ]
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": f"10.{self._net}.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(WORK / "cni"),
        }
        return [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipMasq": True,
                "hairpinMode": True,
                "ipam": ipam,
            },
            {"type": "tuning", "sysctl": {SYSCTL[0]: SYSCTL[1]}},
            {"type": "portmap", "runtimeConfig": {"portMappings": mappings}},
            {"type": "firewall", "backend": "iptables"},
            {"type": "bandwidth", "ingressRate": 10**11, "ingressBurst": 2**31 - 1},
        ]

    def _run(self, verb: str, plugin: dict[str, Any], place: Place, result: Any) -> str:
        document = {"cniVersion": "1.0.0", "name": "bench", **plugin}
        if result is not None:
            document["prevResult"] = result
        words = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": place.identity,
            "CNI_NETNS": str(place.sandbox),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self._folder),
        }
        return _run(str(self._folder / plugin["type"]), stdin=json.dumps(document), env=words)


class Netavark:
    """Podman's network program."""

    def __init__(self, net: int) -> None:
        self._net = net

    def set_up(self) -> None:
        """Make the folder for its state."""
        (WORK / "netavark").mkdir(exist_ok=True)

    def begin(self, place: Place) -> Steps:
        """Run `setup`."""
        return self._run("setup", place)

    def end(self, place: Place) -> Steps:
        """Run `teardown`."""
        return self._run("teardown", place)

    def _run(self, verb: str, place: Place) -> Steps:
        steps: Steps = []
        network = {
            "dns_enabled": False,
            "driver": "bridge",
            "id": "5" * 64,
            "internal": False,
            "ipv6_enabled": False,
            "name": "bench",
            "network_interface": "podman0",
            "options": {},
            "ipam_options": {"driver": "host-local"},
            "subnets": [{"gateway": f"10.{self._net}.0.1", "subnet": f"10.{self._net}.0.0/16"}],
        }
        ports = [
            {
                "container_port": 80 + n,
                "host_ip": "",
                "host_port": port,
                "protocol": "tcp",
                "range": 1,
            }
            for n, port in enumerate(place.host_ports)
        ]
        document = {
            "container_id": place.identity,
            "container_name": place.sandbox.name,
            "networks": {"bench": {"static_ips": [place.address], "interface_name": "eth0"}},
            "network_info": {"bench": network},
            "port_mappings": ports,
        }
        program = str(PEERS / "usr/lib/podman/netavark")
        words = (program, "--config", str(WORK / "netavark"), verb, str(place.sandbox))
        timed(steps, verb, _run, *words, stdin=json.dumps(document))
        return steps


class Bare:
    """`ip -batch` and `nft -f`, with the least that a container needs: the floor for tools."""

    def __init__(self, net: int) -> None:
        self._net = net

    def set_up(self) -> None:
        """Make a bridge and a map of ports."""
        _run("ip", "link", "add", "barebr", "up", "type", "bridge")
        _run("ip", "addr", "add", f"10.{self._net}.0.1/16", "dev", "barebr")
        _nft(
            "table ip bare {",
            " map ports { typeof tcp dport : ip daddr . tcp dport; }",
            " chain in { type nat hook prerouting priority dstnat;",
            "  fib daddr type local dnat ip to tcp dport map @ports; }; }",
        )

    def begin(self, place: Place) -> Steps:
        """Make the pair, configure both ends, publish."""
        steps: Steps = []
        end = f"bare{place.number}"
        make = (
            f"link add {end} mtu 1500 master barebr up type veth"
            f" peer name eth0 netns {place.sandbox.name}"
        )
        timed(steps, "ip", _ip, make)
        configure = (
            f"addr add {place.address}/16 dev eth0",
            "link set eth0 up",
            f"route add default via 10.{self._net}.0.1",
        )
        timed(steps, "ip -n", _run_in, place, *configure)
        elements = ", ".join(
            f"{port} : {place.address} . {80 + n}" for n, port in enumerate(place.host_ports)
        )
        timed(steps, "nft", _nft, f"add element ip bare ports {{ {elements} }}")
        return steps

    def end(self, place: Place) -> Steps:
        """Take it all back."""
        steps: Steps = []
        keys = ", ".join(map(str, place.host_ports))
        timed(steps, "nft", _nft, f"delete element ip bare ports {{ {keys} }}")
        timed(steps, "ip", _ip, f"link del bare{place.number}")
        return steps


KINDS: dict[str, tuple[int, Kind]] = {
    "handover": (101, Pynet(101, direct=False)),
    "direct": (102, Pynet(102, direct=True)),
    "cni": (103, Cni(103)),
    "netavark": (104, Netavark(104)),
    "bare": (105, Bare(105)),
}


def serve(mounts: str) -> None:
    """Answer requests until there are no more, in the mount namespace of the engine's tools."""
    descriptor = os.open(mounts, os.O_RDONLY)
    if _libc.setns(descriptor, CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), f"enter {mounts}")
    os.chdir("/")
    for folder in (SANDBOXES, WORK):
        folder.mkdir(exist_ok=True)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)


def _answer(request: dict[str, Any]) -> Steps:
    """Do one thing; return the steps of it."""
    net, kind = KINDS[request["kind"]]
    do = request["do"]
    if do == "set_up":
        kind.set_up()
        return []
    place = Place(request["kind"], net, request["number"], request["ports"], request["life"])
    if do == "idle":
        assert isinstance(kind, Pynet)
        return kind.idle(place)
    make_sandbox(place)
    begun = kind.begin(place) if do in {"begin", "life"} else []
    return begun + (kind.end(place) if do in {"end", "life"} else [])


def make_sandbox(place: Place) -> None:
    """Mount a new network namespace for the place, unless there is one."""
    if place.sandbox.exists():
        return
    place.sandbox.touch()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            _check(_libc.unshare(CLONE_NEWNET))
            source = f"/proc/self/task/{threading.get_native_id()}/ns/net".encode()
            _check(_libc.mount(source, bytes(place.sandbox), None, MS_BIND, None))
            # As libnetwork does for an interface without an IPv6 address, which these all are.
            NO_IPV6.write_text("1")
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _remember(place: Place, result: Any) -> None:
    """Keep a result for DEL, as a runtime does."""
    (WORK / place.sandbox.name).write_text(json.dumps(result))


def _recall(place: Place) -> Any:
    return json.loads((WORK / place.sandbox.name).read_text())


def _exists(name: str) -> bool:
    try:
        return bool(socket.if_nametoindex(name))
    except OSError:
        return False


def _ip(*lines: str) -> str:
    return _run("ip", "-batch", "-", stdin="\n".join(lines) + "\n")


def _run_in(place: Place, *lines: str) -> str:
    return _run("ip", "-n", place.sandbox.name, "-batch", "-", stdin="\n".join(lines) + "\n")


def _nft(*lines: str) -> str:
    return _run("nft", "-f", "-", stdin="\n".join(lines) + "\n")


def _run(*argv: str, stdin: str = "", env: Mapping[str, str] | None = None) -> str:
    """Run a program of the engine's release; raises with all that it said if it fails."""
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LD_LIBRARY_PATH": str(PEERS / "usr/lib/x86_64-linux-gnu"),
        **(env or {}),
    }
    done = subprocess.run(
        argv, input=stdin, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ChildProcessError(f"{argv}: {done.stdout}{done.stderr}")
    return done.stdout


def main(arguments: Sequence[str]) -> None:
    """Serve; the argument is the mount namespace with the engine's tools."""
    serve(arguments[0])


if __name__ == "__main__":
    main(sys.argv[1:])
