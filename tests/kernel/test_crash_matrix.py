"""The real server is killed at every step of every operation, started again, and nothing is lost.

The steps are those of a recording, so that a new one cannot be forgotten: everything that it asks
of the kernel, every commit, the answer. After each death: `check` finds nothing, Docker's request
comes again and succeeds, and when Docker has deleted everything nothing is left.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sqlite3
import threading
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from random import Random
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from flask import request

from driver.linux import linux
from driver.state.store import FILE_NAME
from plugin.api import admin, docker
from plugin.api.reply import reply
from tests.engine.soak import PART, repetitions
from tests.engine.wait import wait_until
from tests.kernel.daemon import Daemon
from tests.kernel.host import relays, run
from tests.kernel.libnetwork import Sandbox, network_call, port_options
from tests.kernel.seams import stepping_in
from tests.samples import KEEPALIVE, RP_FILTER, SOMAXCONN, endpoint_id, network_id
from tests.unit.strangers import random_seed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Step = Callable[["Host"], None]

ANSWER = "answer"
NOT_AT_ALL = -1
SECONDS = 10
PUBLISHED = port_options((6, 80, 8080), (17, 53, 5353))
SYSCTLS = {KEEPALIVE: "600", RP_FILTER: "2"}
PRISTINE = "7200"
SEED = random_seed()


class FaultPoint:
    """Count the steps of a server, and kill it at one; what is shared is a page of memory."""

    def __init__(self, record: Path) -> None:
        self._shared = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")
        self._record = record
        self._lock = threading.Lock()
        record.touch()

    def arm(self, kill_at: int = NOT_AT_ALL) -> None:
        """Begin to count, and kill at that step."""
        self._record.write_text("")
        self._shared[0], self._shared[1], self._shared[2] = 1, 0, kill_at

    def disarm(self) -> None:
        """Count no more."""
        self._shared[0] = 0

    def steps(self) -> list[str]:
        """Return the steps counted since the point was armed."""
        return self._record.read_text().splitlines()

    def install(self) -> None:
        """Have every step of this process come by here, for as long as it lives."""
        self._seams = stepping_in(self.before)  # kept: it would undo itself
        self._seams.__enter__()

        def answer(*args: Any) -> Any:
            if request.method == "POST":  # a question changes nothing
                self.before(ANSWER)
            return reply(*args)

        for module in (docker, admin):
            patch.object(module, "reply", answer).__enter__()

    def before(self, step: str) -> None:
        """Count a step; does not return if it is the one to die at.

        The watcher looks, in a namespace of its own, at moments that nobody can foretell.
        """
        with self._lock:
            if not self._shared[0] or threading.current_thread().name == "watcher":
                return
            at = self._shared[1]
            self._shared[1] += 1
            with self._record.open("a") as record:
                record.write(f"{step}\n")
            if at == self._shared[2]:
                os.killpg(0, signal.SIGKILL)


@dataclass
class Host:
    """A host with a driver, and what Docker believes to have on it."""

    folder: Path
    networks: dict[int, dict[str, Any]] = field(default_factory=dict)
    endpoints: dict[int, int] = field(default_factory=dict)
    interfaces: dict[int, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.server = Daemon(self.folder)
        self.point = FaultPoint(self.folder / "steps")
        self.sandbox = Sandbox(self.folder / "sandbox")
        self.boot = self.folder / "boot"
        self.boot.write_text("first\n")
        self.has_come = False

    def fork(self) -> None:
        """Start the server, with the fault point in all that it does."""

        def prepare() -> None:
            patch.object(linux, "BOOT_ID", self.boot).__enter__()
            self.point.install()

        self.server.fork(prepare)

    def start(self) -> None:
        """Start the server, and wait until everything is restored."""
        self.fork()
        self.server.wait_ready()
        assert self.server.running, self.server.log_tail()

    def come(self) -> None:
        """Have the sandbox come."""
        if not self.has_come:
            self.sandbox.come()
            self.has_come = True

    def call(self, method: str, value: dict[str, Any]) -> Any:
        """Make a call; None if the server dies meanwhile."""
        with suppress(OSError, HTTPException):
            return self.server.call(method, value)

    def differences(self) -> list[str]:
        """Return what `pynet check` finds."""
        status, answer = self.server.ask("GET", "/differences")
        assert status == 200, answer
        return [f"{each['subject']}: {each['text']}" for each in answer["differences"]]

    def is_consistent(self) -> None:
        """Have `check` find nothing, as soon as what goes in the background is done."""
        with suppress(TimeoutError):
            wait_until(lambda: not self.differences(), SECONDS, "no difference")
        assert self.differences() == []

    def delete_everything(self) -> None:
        """Have Docker delete all that it knows."""
        for number, net in self.endpoints.items():
            ids = {"NetworkID": network_id(net), "EndpointID": endpoint_id(number)}
            self.server.call("Leave", ids)
            if number in self.interfaces:
                with suppress(Exception):  # the interface of a join that was not heard of
                    self.sandbox.take_back(*self.interfaces[number])
            self.server.call("DeleteEndpoint", ids)
        for net in self.networks:
            self.server.call("DeleteNetwork", {"NetworkID": network_id(net)})

    def left(self) -> list[str]:
        """Return what is left of anything, in words."""
        links = [link["ifname"] for link in json.loads(run("ip", "-json", "link"))]
        found = [f"link {name}" for name in links if name != "lo"]
        found += [line for line in run("nft", "list", "ruleset").splitlines() if "pynet" in line]
        with closing(sqlite3.connect(self.server.state / FILE_NAME)) as rows:
            for table in ("network", "pool", "endpoint", "binding", "trace"):
                found += map(str, rows.execute(f"SELECT * FROM {table}"))
        if self.has_come and self.sandbox.value(KEEPALIVE) != PRISTINE:
            found.append(f"{KEEPALIVE}={self.sandbox.value(KEEPALIVE)}")
        return found

    def nothing_is_left(self) -> None:
        """Have nothing be left, as soon as what goes in the background is done."""
        with suppress(TimeoutError):
            wait_until(lambda: not self.left(), SECONDS, "nothing left")
        assert self.left() == []

    def end_whole(self) -> None:
        """End the server and the sandbox, and clear the host, also after a failure."""
        if self.server.pid and self.server.running:
            self.server.kill()
        if self.has_come:
            self.sandbox.go()
            self.has_come = False
        clear()


def clear() -> None:
    """Lose every link, rule and relay of the test's own namespace."""
    for process in relays():
        os.kill(process, signal.SIGKILL)
    wait_until(lambda: not relays(), SECONDS, "the relay's end")
    run("nft", "flush", "ruleset")
    for link in json.loads(run("ip", "-json", "link")):
        if link["ifname"] != "lo":
            with suppress(AssertionError):  # the other end of one that has gone
                run("ip", "link", "delete", link["ifname"])


def creates(net: int, **options: str) -> Step:
    """Return Docker's CreateNetwork."""

    def step(host: Host) -> None:
        call = network_call(net, SYSCTLS | options)
        host.networks[net] = call
        host.call("CreateNetwork", call)

    return step


def places(number: int, net: int = 1, address: int | None = None) -> Step:
    """Return Docker's CreateEndpoint."""

    def step(host: Host) -> None:
        at = address or number + 1
        interface = {"Address": f"10.{net}.0.{at}/16", "AddressIPv6": f"fd00:{net}::{at}/64"}
        host.endpoints[number] = net
        options = {SOMAXCONN: "99"}
        host.call(
            "CreateEndpoint", _ids(number, net) | {"Interface": interface, "Options": options}
        )

    return step


def joins(number: int, net: int = 1) -> Step:
    """Return Docker's Join, and libnetwork moving the interface."""

    def step(host: Host) -> None:
        call = _ids(number, net) | {"SandboxKey": host.sandbox.key} | PUBLISHED
        answer = host.call("Join", call)
        if answer is not None and host.has_come and number not in host.interfaces:
            _bring(host, number, net, answer)

    return step


def _bring(host: Host, number: int, net: int, answer: Any) -> None:
    addresses = [f"10.{net}.0.{number + 1}/16", f"fd00:{net}::{number + 1}/64"]
    name = host.sandbox.bring(answer, addresses)
    if name is not None:
        host.interfaces[number] = (name, answer["InterfaceName"]["SrcName"])


def calls(method: str, number: int, net: int = 1, **rest: Any) -> Step:
    """Return another call on an endpoint."""
    return lambda host: host.call(method, _ids(number, net) | rest)


def deletes(net: int) -> Step:
    """Return Docker's DeleteNetwork."""
    return lambda host: host.call("DeleteNetwork", {"NetworkID": network_id(net)})


def _ids(number: int, net: int) -> dict[str, Any]:
    return {"NetworkID": network_id(net), "EndpointID": endpoint_id(number)}


def comes(host: Host) -> None:
    """Have the sandbox come."""
    host.come()


def arrives(host: Host) -> None:
    """Have the sandbox come, and wait until the driver has seen to it or died."""
    host.come()
    done = lambda: host.sandbox.value(KEEPALIVE) == "600" or not host.server.running  # noqa: E731
    wait_until(done, SECONDS, "the parameter")


def starts(host: Host) -> None:
    """Start the server; it may die at that."""
    if not host.server.running:
        host.fork()
        host.server.wait_ready()


def terminates(host: Host) -> None:
    """Ask the server to end, which a second time it has."""
    if host.server.running:
        host.server.terminate()


def kills(host: Host) -> None:
    """Kill the server."""
    host.server.kill()


def reboots(host: Host) -> None:
    """Lose the power: links, rules, sandboxes and what Docker knows of endpoints."""
    host.server.kill()
    host.sandbox.go()
    host.has_come = False
    host.endpoints.clear()
    host.interfaces.clear()
    host.boot.write_text("second\n")
    clear()


@dataclass(frozen=True)
class Scenario:
    """An operation, and what has been before it."""

    name: str
    act: Step
    before: tuple[Step, ...] = ()

    def prepare(self, host: Host) -> None:
        """Bring a new host to where the operation begins."""
        host.start()
        for step in self.before:
            step(host)


NETWORK, DIRECT = creates(1), creates(2, **{"pynet.attach": "direct"})
JOINED = (NETWORK, places(1), comes, joins(1))
PORTS = calls("ProgramExternalConnectivity", 1, **PUBLISHED)
BUSY = (*JOINED, PORTS, calls("EndpointOperInfo", 1), creates(3), places(3, 3))
GUARDED = creates(
    3, **{"pynet.guard": "address", "pynet.limit.connections": "9", "pynet.guard.also": "10.3.0.99"}
)
SCENARIOS = (
    Scenario("the first network", NETWORK),
    Scenario("another network", creates(3), (NETWORK,)),
    Scenario("an endpoint", places(1), (NETWORK,)),
    Scenario("an endpoint that evicts one", places(4, 1, 2), BUSY),
    Scenario("a join", joins(1), (NETWORK, places(1), comes)),
    Scenario("a join before the sandbox", joins(1), (NETWORK, places(1))),
    Scenario("the arrival of a sandbox", arrives, (NETWORK, places(1), joins(1))),
    Scenario("a direct join", joins(2, 2), (DIRECT, places(2, 2), comes)),
    Scenario("a guarded join", joins(2, 3), (GUARDED, places(2, 3), comes)),
    Scenario("a guarded leave", calls("Leave", 2, 3), (GUARDED, places(2, 3), comes, joins(2, 3))),
    Scenario("a report", calls("EndpointOperInfo", 1), JOINED),
    Scenario("ports", PORTS, JOINED),
    Scenario("ports taken back", calls("RevokeExternalConnectivity", 1), BUSY),
    Scenario("a leave", calls("Leave", 1), BUSY),
    Scenario("a direct leave", calls("Leave", 2, 2), (DIRECT, places(2, 2), comes, joins(2, 2))),
    Scenario("the end of an endpoint", calls("DeleteEndpoint", 1), (*BUSY, calls("Leave", 1))),
    Scenario("the end of a joined endpoint", calls("DeleteEndpoint", 1), BUSY),
    Scenario("the end of a network", deletes(1), BUSY),
    Scenario("the end of the last network", deletes(1), (*JOINED, PORTS)),
    Scenario("a restart", starts, (*BUSY, kills)),
    Scenario("a start after a reboot", starts, (*BUSY, reboots)),
    Scenario("the end of a busy driver", terminates, BUSY),
    Scenario("the end of an idle driver", terminates, (NETWORK, creates(3))),
)


def record(scenario: Scenario, folder: Path) -> list[str]:
    """Return the steps of the operation, with what it leaves to the background."""
    host = Host(folder)
    try:
        scenario.prepare(host)
        host.point.arm()
        scenario.act(host)
        if host.server.running:
            host.is_consistent()
        return host.point.steps()
    finally:
        host.end_whole()


def crash(scenario: Scenario, folder: Path, at: int) -> bool:
    """Kill the server at a step, and see that nothing is lost; False if it is never reached."""
    host = Host(folder)
    try:
        scenario.prepare(host)
        host.point.arm(at)
        scenario.act(host)
        died = _is_dead(host)
        host.point.disarm()
        starts(host)
        assert host.server.running, host.server.log_tail()
        host.is_consistent()
        scenario.act(host)
        starts(host)
        host.is_consistent()
        host.delete_everything()
        host.nothing_is_left()
    except BaseException as error:
        error.add_note(f"killed at step {at}; the driver wrote:\n{host.server.log_tail()}")
        raise
    finally:
        host.end_whole()
    return died


def _is_dead(host: Host) -> bool:
    """Tell whether the server has died, in the background at the latest."""
    with suppress(TimeoutError):
        wait_until(lambda: not host.server.running, 1, "the death of the driver")
    return not host.server.running


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_killed_at_every_step(
    scenario: Scenario, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    steps = record(scenario, tmp_path / "recorded")
    assert steps
    chosen = range(len(steps))
    if repetitions(PART) != PART:
        offset = Random(f"{SEED} {scenario.name}").randrange(PART)
        chosen = range(offset % len(steps), len(steps), PART)
    for at in chosen:
        died = crash(scenario, tmp_path / str(at), at)
        record_property("crash matrix: deaths", int(died))
        if not died:
            record_property("crash matrix: steps never reached again", 1)
    record_property("crash matrix: steps", len(steps))
    record_property("crash matrix's seed, PYNET_SEED", str(SEED))
    print(f"\n{scenario.name}: {len(steps)} steps: {', '.join(steps)}")
