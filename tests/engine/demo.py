"""Show the main job on a private engine, as a terminal would, and check everything that is shown.

    python -m tests.engine.demo

Nothing of the machine is touched: the engine has namespaces of its own. Whatever does not hold
ends the demo at once, with a status other than 0 and a line that says what it was.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from subprocess import CalledProcessError, TimeoutExpired
from typing import TYPE_CHECKING

from tests.engine.engine import Engine
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SUITE = "forky"  # engine 28.5
KEEPALIVE = "net.ipv4.tcp_keepalive_time"
CONGESTION = "net.ipv4.tcp_congestion_control"
ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
WIDTH = 100


class DemoError(Exception):
    """Something that the demo shows is not as it is said to be."""


def main() -> None:
    """Run the demo; end with a status other than 0 if any of it does not hold."""
    if os.geteuid() != 0:
        sys.exit("demo: it makes network namespaces, and for that it must be run as root")
    try:
        with Engine(SUITE) as engine, _driver_log_on_failure(engine):
            engine.start_driver()
            Demo(engine).run()
    except (DemoError, CalledProcessError, TimeoutExpired, TimeoutError, OSError) as error:
        sys.exit(f"\ndemo: FAILED: {error}")


class Demo:
    """The steps of the demo, in order, on an engine with a driver."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._host = self._read_host()
        self._wanted = {KEEPALIVE: "600", CONGESTION: _other_congestion(self._host[CONGESTION])}

    def run(self) -> None:
        """Show everything, from the network's creation until nothing is left of it."""
        self._introduce()
        network = self._create_network()
        self._reach_by_name()
        self._compare_values()
        self._show_links(network)
        self._remove()
        _say("Everything above was checked.")

    def _introduce(self) -> None:
        _say(
            f"Docker Engine {self._engine.version}, in namespaces of its own: nothing of this "
            "machine is touched.\n`bb` is an image of busybox.\n"
        )
        if self._host[CONGESTION] == "bbr":
            _say(f"(This host's default is bbr already, so: {self._wanted[CONGESTION]}.)\n")
        elif self._wanted[CONGESTION] != "bbr":
            _say(f"(This kernel has no bbr loaded, so: {self._wanted[CONGESTION]}.)\n")

    def _create_network(self) -> str:
        options = [word for key, value in self._wanted.items() for word in ("-o", f"{key}={value}")]
        network = self._docker("network", "create", "-d", "pynet", *options, "back").strip()
        _check(len(network) == 64, f"a network's id: {network!r}")
        return network

    def _reach_by_name(self) -> None:
        for name in ("db", "web"):
            self._docker("run", "-d", "--name", name, "--network", "back", "bb", "sleep", "1000")
        for name, other in (("web", "db"), ("db", "web")):
            said = self._docker("exec", name, "ping", "-q", "-c1", "-w5", other)
            _check(" 0% packet loss" in said, f"{name} reaches {other} by name: {said}")
            address = self._address(other)
            _check(f"PING {other} ({address})" in said, f"{other} has the address {address}")

    def _compare_values(self) -> None:
        _say("The host, a container on Docker's own bridge, a container on the network:\n")
        busybox = self._engine.busybox
        host = self._run([busybox, "sysctl", *self._wanted], shown=["sysctl", *self._wanted])
        _check(_values(host) == self._host, f"the host has its own values still: {host}")

        first = ("bb", "sysctl", *self._wanted)
        bridge = _values(self._docker("run", "--rm", *first))
        _check(
            all(bridge[key] != value for key, value in self._wanted.items()),
            f"Docker's own bridge gives a container other values: {bridge}",
        )
        ours = _values(self._docker("run", "--rm", "--network", "back", *first))
        _check(ours == self._wanted, f"the first process sees {self._wanted}: {ours}")

    def _show_links(self, network: str) -> None:
        bridge = f"pn-{network[:12]}"
        self._run(["ip", "-br", "link", "show", "type", "bridge"])
        self._run(["ip", "-br", "link", "show", "master", bridge])
        ports = json.loads(self._engine.run("ip", "-json", "link", "show", "master", bridge).stdout)
        _check(len(ports) == 2, f"{bridge} has a port for each of two containers: {ports}")
        _check(all(port["operstate"] == "UP" for port in ports), f"the ports of {bridge} are up")
        left = self._left_on_host()
        _check(all(left.values()), f"there is something to remove: {left}")

    def _remove(self) -> None:
        self._docker("rm", "-f", "web", "db")
        self._docker("network", "rm", "back")
        # The driver answers Docker first and deletes links afterwards.
        wait_until(lambda: not self._left_on_host()["links"], 10, "all links of the driver gone")
        for command in _TRACES.values():
            self._run(["sh", "-c", command], shown=[command], check=False)
        left = self._left_on_host()
        _check(not any(left.values()), f"nothing is left: {left}")
        _check(self._read_host() == self._host, "the host's own values are what they were")

    def _left_on_host(self) -> Mapping[str, int]:
        """Count what of the driver's there is on the host, by kind."""
        return {
            kind: int(self._engine.run("sh", "-c", command, check=False).stdout)
            for kind, command in _TRACES.items()
        }

    def _read_host(self) -> dict[str, str]:
        return _values(
            self._engine.run(self._engine.busybox, "sysctl", KEEPALIVE, CONGESTION).stdout
        )

    def _address(self, container: str) -> str:
        attributes = self._engine.client.containers.get(container).attrs
        address = attributes["NetworkSettings"]["Networks"]["back"]["IPAddress"]
        return str(ip_address(address))

    def _docker(self, *arguments: str) -> str:
        return self._run(self._engine.chroot("docker", *arguments), shown=["docker", *arguments])

    def _run(
        self, command: list[str], *, shown: list[str] | None = None, check: bool = True
    ) -> str:
        """Run a command on the engine's host, and show it with what it wrote."""
        line = shown[0] if shown and len(shown) == 1 else shlex.join(shown or command)
        _say(_prompt(line))
        written = self._engine.run(*command, check=check).stdout
        _say("\n".join(line.rstrip() for line in written.splitlines() if line) + "\n")
        return written


# Each counts; interface aliases, the table's name and the rules' comments all say pynet.
_TRACES = {
    "links": "ip link | grep -c pynet",
    "tables": "nft list tables | grep -c pynet",
    "rules": "(iptables -S; ip6tables -S) | grep -c pynet",
}


def _other_congestion(default: str) -> str:
    """Return bbr, or another congestion control if this kernel has no bbr or has it as default.

    The kernel takes in a namespace of its own only those that it allows to everybody.
    """
    allowed = [name for name in ALLOWED.read_text().split() if name != default]
    if not allowed:
        raise DemoError(f"this kernel has no congestion control besides {default}")
    return "bbr" if "bbr" in allowed else allowed[0]


def _values(written: str) -> dict[str, str]:
    """Return what sysctl wrote, by key."""
    pairs = (line.partition(" = ") for line in written.splitlines())
    return {key: value for key, _, value in pairs}


def _prompt(line: str) -> str:
    """Return a command as it would be typed, broken before an option where it is long."""
    lines, current = [], "#"
    for word in line.split(" "):
        if word == "-o" or len(current) + len(word) > WIDTH - 2:
            lines.append(current)
            current = "     "
        current += f" {word}"
    return " \\\n".join([*lines, current])


def _say(text: str) -> None:
    print(text, flush=True)


def _check(holds: bool, what: str) -> None:  # noqa: FBT001 - private
    if not holds:
        raise DemoError(what)


@contextmanager
def _driver_log_on_failure(engine: Engine) -> Iterator[None]:
    """Show what the driver wrote when something fails: its log goes with the engine."""
    try:
        yield
    except BaseException:
        print(engine.log("driver"), file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
