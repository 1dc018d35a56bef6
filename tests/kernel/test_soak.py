"""Thousands of endpoints come and go through the real server: it holds no more than at first."""

from __future__ import annotations

import json
import os
import random
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.soak import REST_SECONDS, at_rest, make_all_threads, repetitions
from tests.engine.wait import wait_until
from tests.kernel.host import run
from tests.kernel.libnetwork import Sandbox, network_call, port_options
from tests.samples import KEEPALIVE, RP_FILTER, SOMAXCONN, network_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kernel.daemon import Daemon

LIVES, SETTLED = 10_000, 1_000
GROWTH = 1.05
AGE = 10  # lives in one sandbox
PAGE = os.sysconf("SC_PAGE_SIZE")
HANDOVER, DIRECT = 1, 2
OPTIONS = {
    HANDOVER: {KEEPALIVE: "600", RP_FILTER: "2"},
    DIRECT: {"pynet.attach": "direct", "com.docker.network.bridge.enable_icc": "false"},
}


@dataclass
class Host:
    """The server, two networks, and the endpoints that come and go on them."""

    daemon: Daemon
    folder: Path
    numbers: Iterator[int] = field(default_factory=count)
    sandbox: Sandbox | None = None
    age: int = 0

    def create_networks(self) -> None:
        """Have a network of either way to attach."""
        for net, options in OPTIONS.items():
            self.daemon.call("CreateNetwork", network_call(net, options))

    def live(self) -> None:
        """Have an endpoint live from CreateEndpoint to DeleteEndpoint."""
        number = next(self.numbers)
        if number % 4 == 3:
            sandbox = Sandbox(self.folder / f"{number:012x}")
            self._live(number, HANDOVER, sandbox, comes_late=True)
            sandbox.go()
            sandbox.path.unlink()
        else:
            self._live(number, DIRECT if number % 4 == 2 else HANDOVER, self._lived_in())

    def _lived_in(self) -> Sandbox:
        """Return a sandbox that others have lived in before, a new one from time to time."""
        if self.sandbox is None or self.age == AGE:
            if self.sandbox is not None:
                self.sandbox.go()
            self.sandbox, self.age = Sandbox(self.folder / f"{next(self.numbers):012x}"), 0
            self.sandbox.come()
        self.age += 1
        return self.sandbox

    def _live(self, number: int, net: int, sandbox: Sandbox, *, comes_late: bool = False) -> None:
        ids = {"NetworkID": network_id(net), "EndpointID": f"{number:012x}" + 52 * "e"}
        addresses = [f"10.{net}.{number // 200 % 200}.{number % 200 + 2}/16"]
        if number % 2:
            addresses.append(f"fd00:{net}::{number % 60000 + 2:x}/64")
        interface = dict(zip(("Address", "AddressIPv6"), addresses, strict=False))
        options = {SOMAXCONN: "99"} if number % 3 else {}
        published = port_options((random.choice((6, 17)), 80, 0))
        call = self.daemon.call
        call("CreateEndpoint", ids | {"Interface": interface, "Options": options})
        answer = call("Join", ids | {"SandboxKey": sandbox.key} | published)
        if comes_late:
            sandbox.come()
        name = sandbox.bring(answer, addresses)
        if comes_late:  # as a container, whose first process takes longer than the driver
            key = RP_FILTER.replace("IFNAME", str(name))
            wait_until(lambda: sandbox.value(key) == "2", REST_SECONDS, "the interface's parameter")
        call("ProgramExternalConnectivity", ids | published)
        call("EndpointOperInfo", ids)
        call("RevokeExternalConnectivity", ids)
        call("Leave", ids)
        if name is not None:
            sandbox.take_back(name, answer["InterfaceName"]["SrcName"])
        call("DeleteEndpoint", ids)

    def held(self) -> dict[str, Any]:
        """Return everything that a life could leave behind, but for memory."""
        worker = Path(f"/proc/{self.daemon.pids[-1]}")
        with closing(sqlite3.connect(self.daemon.state / "pynet.db")) as rows:
            tables = ("network", "pool", "endpoint", "binding", "trace")
            counts = {
                each: rows.execute(f"SELECT count(*) FROM {each}").fetchone() for each in tables
            }
        return {
            "links": sorted(link["ifname"] for link in json.loads(run("ip", "-json", "link"))),
            "rules": run("nft", "-s", "list", "ruleset"),
            "rows": counts,
            "descriptors": len(list((worker / "fd").iterdir())),
            "threads": len(list((worker / "task").iterdir())),
        }

    def memory(self) -> int:
        """Return the bytes that the worker has in memory."""
        statm = Path(f"/proc/{self.daemon.pids[-1]}/statm").read_text()
        return int(statm.split()[1]) * PAGE


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_lives(
    daemon: Daemon, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    daemon.start()
    host = Host(daemon, tmp_path)
    host.create_networks()
    at_first = host.held()
    make_all_threads(daemon.socket, lambda: host.held()["threads"], lambda: 1)
    lives = repetitions(LIVES, 20)
    settled = min(SETTLED, lives // 2)
    for _ in range(settled):
        host.live()
    wait_until(lambda: host.held()["links"] == at_first["links"], REST_SECONDS, "the links gone")
    before, memory = at_rest(host.held), host.memory()
    for _ in range(lives - settled):
        host.live()
    wait_until(lambda: host.held()["links"] == at_first["links"], REST_SECONDS, "the links gone")
    after, grown = at_rest(host.held), host.memory() / memory
    record_property("lives of endpoints", lives)
    record_property(
        "memory after them", f"{host.memory() / 2**20:.1f} MiB, {grown:.3f} of that at first"
    )
    assert after == before
    assert after | {"threads": 0, "descriptors": 0} == at_first | {"threads": 0, "descriptors": 0}
    assert grown < GROWTH
    assert "Traceback" not in daemon.log()
