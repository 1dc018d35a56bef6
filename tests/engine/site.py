"""A host with networks, containers and a neighbour, and questions between them.

`Site` asserts nothing; `check` fails with all the answers that were not as expected.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import TYPE_CHECKING, Self

from tests.engine import steps

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from tests.engine.command import Command
    from tests.engine.engine import Engine

PROBE = str(Path(__file__).with_name("probe.py"))
STREAM = str(Path(__file__).with_name("stream.py"))
HOST = "host"
LAN = "lan"
HOST_ADDRESS = {4: "192.0.2.1", 6: "2001:db8:2::1"}
LAN_ADDRESS = {4: "192.0.2.2", 6: "2001:db8:2::2"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
ECHO_PORT = 9999
SHORT = 1.0  # seconds that a question waits which is not to be answered
LONG = 10.0


def major(engine: Engine) -> int:
    """Return the first number of the engine's version, such as 28."""
    return int(engine.version.partition(".")[0])


def is_modern(engine: Engine) -> bool:
    """Tell whether the engine's own bridge has gateway modes and IPv6 by default (from 27 on)."""
    return major(engine) >= 27


def families(engine: Engine, driver: str) -> tuple[int, ...]:
    """Return the families that the driver translates on this engine without being asked to."""
    return (4, 6) if driver == "pynet" or is_modern(engine) else (4,)


@dataclass(frozen=True)
class Question:
    """Ask `host:port` from a place; `seen` is what the other side is to see as the asker's address.

    `*` is any answer, None no answer at all. `sport` is the asker's port, 0 for any.
    """

    origin: str
    host: str
    port: int
    seen: str | None
    protocol: str = "tcp"
    sport: int = 0

    def wrong(self, got: str | None) -> str | None:
        """Return what is wrong with an answer, None if nothing is."""
        if got == self.seen or (self.seen == "*" and got is not None):
            return None
        what = f"{self.origin} asks {self.host} {self.port}/{self.protocol}"
        return f"{what}: expected {self.seen}, got {got}"

    def encode(self) -> dict[str, object]:
        """Return what the probe needs to ask it."""
        return {
            "protocol": self.protocol,
            "host": self.host,
            "port": self.port,
            "timeout": SHORT if self.seen is None else LONG,
            "sport": self.sport,
        }


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

    def network(self, driver: str, name: str, number: int, *options: str, ipv6: bool = True) -> str:
        """Create the network 10.NUMBER.0.0/24 and fdNUMBER::/64; return its id."""
        words = ["--subnet", f"10.{number}.0.0/24"]
        words += ["--ipv6", "--subnet", f"fd{number}::/64"] if ipv6 else []
        words += ["-d", driver, *options, name]
        identity = self.engine.docker("network", "create", *words).stdout.strip()
        for subnet, via in ((f"10.{number}.0.0/24", 4), (f"fd{number}::/64", 6)):
            # The neighbour knows the way: what it does not reach, the host keeps from it.
            self.engine.lan_run("ip", "route", "replace", subnet, "via", HOST_ADDRESS[via])
        return identity

    def container(self, name: str, network: str, *words: str) -> None:
        """Run a container that does nothing."""
        steps.run(self.engine, name, network, *words)

    def containers(self, wanted: Mapping[str, Sequence[str]]) -> None:
        """Run containers at once: for each name its network and the other words."""
        with ThreadPoolExecutor() as starters:
            started = [starters.submit(self.container, name, *wanted[name]) for name in wanted]
        for start in started:
            start.result()

    def serve(self, where: str, protocol: str, *ports: int) -> None:
        """Answer on the ports there, as soon as this returns and until the site is left."""
        self._serve(where, PROBE, "serve", protocol, *map(str, ports))

    def echo(self, where: str, port: int) -> None:
        """Send back there what comes by TCP, as long as `serve` answers."""
        self._serve(where, STREAM, "echo", str(port))

    @contextmanager
    def stream(self, origin: str, host: str, port: int) -> Iterator[Command]:
        """Have one connection carry data both ways over the whole block, and not a byte go astray.

        On the other side has to be an `echo`. Yields what runs for as long as nothing is wrong.
        """
        pouring = self.start(origin, STREAM, "pour", host, str(port), stdin=PIPE, stdout=PIPE)
        self._stack.callback(_end, pouring)
        assert pouring.stdout is not None
        if pouring.stdout.readline() != "flowing\n":
            raise AssertionError(f"{origin} cannot stream to {host} {port}")
        yield pouring
        counted = json.loads(pouring.result().stdout)
        print(f"\n{origin} to {host} {port}: {counted}")
        assert counted["received"] == counted["sent"]

    def ask(self, questions: Iterable[Question]) -> list[tuple[Question, str | None]]:
        """Ask everything at once; return each question with its answer, None if there was none."""
        by_origin: dict[str, list[Question]] = {}
        for question in questions:
            by_origin.setdefault(question.origin, []).append(question)
        answers: list[tuple[Question, str | None]] = []
        with ThreadPoolExecutor() as askers:
            for origin, got in zip(
                by_origin, askers.map(self._ask, by_origin.values()), strict=True
            ):
                answers += zip(by_origin[origin], got, strict=True)
        return answers

    def address(self, container: str, network: str, version: int) -> str:
        """Return a container's address."""
        place = steps.endpoint(self.engine, container, network)
        return str(place["IPAddress" if version == 4 else "GlobalIPv6Address"])

    def enter(self, where: str) -> tuple[str, ...]:
        """Return the words that run a command of the machine in a container's network."""
        if where == HOST:
            return ()
        return ("nsenter", f"--net={steps.settings(self.engine, where)['SandboxKey']}")

    def run(self, where: str, *argv: str) -> None:
        """Run a command of the machine in a place's network."""
        if where == LAN:
            self.engine.lan_run(*argv)
        else:
            self.engine.run(*self.enter(where), *argv)

    def _ask(self, questions: Sequence[Question]) -> list[str | None]:
        """Ask questions that have one origin."""
        origin = questions[0].origin
        asker = self.start(origin, PROBE, "ask", stdin=PIPE, stdout=PIPE, stderr=PIPE)
        text = json.dumps([question.encode() for question in questions])
        answers: list[str | None] = json.loads(asker.result(stdin=text).stdout)
        return answers

    def _serve(self, where: str, program: str, *words: str) -> None:
        """Start a program that serves, and have it ended with the site."""
        server = self.start(where, program, *words, stdout=PIPE)
        self._stack.callback(_end, server)
        assert server.stdout is not None
        if server.stdout.readline() != "ready\n":
            raise AssertionError(f"{where} cannot {words}")

    def start(
        self,
        where: str,
        program: str,
        *words: str,
        stdin: int = DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> Command:
        """Start a program of ours in a place's network."""
        argv = (sys.executable, "-I", program, *words)
        if where == LAN:
            return self.engine.lan_popen(*argv, stdin=stdin, stdout=stdout, stderr=stderr)
        argv = (*self.enter(where), *argv)
        return self.engine.popen(*argv, stdin=stdin, stdout=stdout, stderr=stderr)


@contextmanager
def transferring(engine: Engine, source: str, target: str) -> Iterator[Command]:
    """Have bytes flow between two containers of one network, as `Site.stream` does."""
    (network,) = steps.settings(engine, target)["Networks"]
    with Site(engine) as site:
        site.echo(target, ECHO_PORT)
        with site.stream(source, site.address(target, network, 4), ECHO_PORT) as pouring:
            yield pouring


def check(site: Site, questions: Iterable[Question]) -> None:
    """Ask everything at once, then fail with all that was wrong."""
    wrong = [said for question, got in site.ask(questions) if (said := question.wrong(got))]
    assert not wrong, "\n".join(wrong)


def _end(server: Command) -> None:
    server.kill()
    server.wait()
    if server.stdout is not None:
        server.stdout.close()
