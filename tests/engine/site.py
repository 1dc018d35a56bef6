"""A host with networks, containers and a neighbour, and questions between them; asserts nothing."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.engine import steps
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from types import TracebackType

    from tests.engine.command import Command
    from tests.engine.engine import Engine

PROBE = str(Path(__file__).with_name("probe.py"))
HOST = "host"
LAN = "lan"
HOST_ADDRESS = {4: "192.0.2.1", 6: "2001:db8:2::1"}
LAN_ADDRESS = {4: "192.0.2.2", 6: "2001:db8:2::2"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
SHORT = 1.0  # seconds that a question waits which is not to be answered


class Site:
    """Containers by name on networks by name; `host` and `lan` are places to ask from, too."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def network(
        self, driver: str, name: str, number: int, *options: str, ipv6: bool = True
    ) -> None:
        """Create the network 10.NUMBER.0.0/24 and fdNUMBER::/64."""
        words = ["--subnet", f"10.{number}.0.0/24"]
        words += ["--ipv6", "--subnet", f"fd{number}::/64"] if ipv6 else []
        self.engine.docker("network", "create", "-d", driver, *words, *options, name)
        for subnet, via in ((f"10.{number}.0.0/24", 4), (f"fd{number}::/64", 6)):
            # The neighbour knows the way: what it does not reach, the host keeps from it.
            self.engine.lan_run("ip", "route", "replace", subnet, "via", HOST_ADDRESS[via])

    def container(self, name: str, network: str, *words: str) -> None:
        """Run a container that does nothing."""
        steps.run(self.engine, name, network, *words)

    def serve(self, where: str, protocol: str, *ports: int) -> None:
        """Answer on the ports there until the site is left."""
        words = (sys.executable, PROBE, "serve", protocol, *map(str, ports))
        if where == LAN:
            server = self.engine.lan_popen(*words)
        else:
            server = self.engine.popen(*self._enter(where), *words)
        self._stack.callback(_end, server)
        wait_until(lambda: self._listens(where, protocol, ports[-1]), 10, f"{where} answers")

    def ask(
        self, where: str, host: str, port: int, protocol: str = "tcp", *, timeout: float = 5.0
    ) -> str | None:
        """Return the address that the server saw, None if nobody answered."""
        words = (sys.executable, PROBE, "ask", protocol, host, str(port), "--timeout", str(timeout))
        if where == LAN:
            done = self.engine.lan_run(*words, check=False)
        else:
            done = self.engine.run(*self._enter(where), *words, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    def address(self, container: str, network: str, version: int) -> str:
        """Return a container's address."""
        place = steps.endpoint(self.engine, container, network)
        return str(place["IPAddress" if version == 4 else "GlobalIPv6Address"])

    def _listens(self, where: str, protocol: str, port: int) -> bool:
        words = ("ss", "-Hnlt" if protocol == "tcp" else "-Hnlu" if protocol == "udp" else "-HnlS")
        listing = (
            self.engine.lan_run(*words)
            if where == LAN
            else self.engine.run(*self._enter(where), *words)
        )
        return f":{port} " in listing.stdout

    def _enter(self, where: str) -> tuple[str, ...]:
        if where == HOST:
            return ()
        return ("nsenter", f"--net={steps.settings(self.engine, where)['SandboxKey']}")


def _end(server: Command) -> None:
    server.kill()
    server.wait()
