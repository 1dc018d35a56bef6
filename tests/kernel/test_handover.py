"""From one driver to the next on the same host: what the last one holds, leaves and hangs on."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from plugin.server import LOCK_NAME
from tests.engine.unixhttp import accepts
from tests.engine.wait import wait_until
from tests.kernel.host import ip, run
from tests.kernel.server import Server, endpoint, ids, join, network

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 20  # for what takes one on an idle machine
ENDING_SECONDS = 0.5  # of a predecessor that is just ending; the next waits for six times that
KILLED_SECONDS = 10.0  # after SIGTERM, a managed plugin


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """Lend the name of the pipe that has the kernel hang."""
    return tmp_path / "stall"


@pytest.fixture
def server(tmp_path: Path, pipe: Path) -> Iterator[Server]:
    """Lend a server with a container's endpoint on its first network, and none on the second."""
    with Server(tmp_path / "server", PYNET_STALL=str(pipe)) as lent:
        for number in (1, 2):
            assert lent.call("CreateNetwork", network(number)) == (200, {})
        for number in (1, 2):
            assert lent.call("CreateEndpoint", endpoint(number))[0] == 200
        yield lent


def has_open(pid: int, file: Path) -> bool:
    """Tell whether a process has a file open."""
    opened = Path(f"/proc/{pid}/fd").iterdir()
    return any(os.path.realpath(each) == str(file) for each in opened)


def test_a_driver_waits_for_its_predecessors_end(tmp_path: Path) -> None:
    """A quick restart: the last one has not let go of the state, and has hardly begun to end."""
    state = tmp_path / "server" / "state"
    state.mkdir(parents=True)
    with (state / LOCK_NAME).open("w") as lock, ThreadPoolExecutor(1) as callers:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with Server(tmp_path / "server") as server:
            first = callers.submit(server.call, "CreateNetwork", network(1))
            wait_until(lambda: has_open(server.pid, state / LOCK_NAME), SECONDS, "who waits")
            seen = time.monotonic()
            wait_until(lambda: time.monotonic() > seen + ENDING_SECONDS, SECONDS, "the end")
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert first.result() == (200, {})
            assert server.get("/health")[0] == 200


def test_one_that_does_not_end_keeps_the_next_from_working_and_it_says_so(tmp_path: Path) -> None:
    state = tmp_path / "server" / "state"
    state.mkdir(parents=True)
    with (state / LOCK_NAME).open("w") as lock, Server(tmp_path / "server") as server:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, answer = server.call("CreateNetwork", network(1))
        assert (status, "another pynet is using the state folder" in answer["Err"]) == (409, True)
        assert server.running


def ended(server: Server) -> float:
    """Tell the server to end; return the seconds that it takes."""
    began = time.monotonic()
    os.kill(server.pid, signal.SIGTERM)
    wait_until(lambda: not server.running, SECONDS, "the end")
    return time.monotonic() - began


def test_the_end_waits_for_no_kernel_that_hangs(server: Server, pipe: Path) -> None:
    """A call has the driver's lock, and gives it back to nobody."""
    os.mkfifo(pipe)
    stuck = server.send("Join", join(1, "/run/none"))
    wait_until(lambda: "a verb hangs" in server.log(), SECONDS, "a join that hangs")
    took = ended(server)
    print(f"\nthe end beside a kernel that hangs: {took:.1f} s")
    assert took < KILLED_SECONDS
    stuck.close()
    wait_until(lambda: not accepts(server.socket), SECONDS, "the socket's end")


def test_what_one_leaves_the_next_has_at_once(server: Server, tmp_path: Path, pipe: Path) -> None:
    """Between the two a container runs on, and an idle network is gone."""
    sandbox = tmp_path / "sandbox"
    sandbox.touch()
    run("unshare", "--net", "mount", "--bind", "/proc/self/ns/net", str(sandbox))
    assert server.call("Join", join(1, str(sandbox)))[0] == 200
    before = json.loads(server.get("/networks")[1])
    links = set(ip("-o", "-br", "link").split())
    assert ended(server) < KILLED_SECONDS
    left = ip("-o", "-br", "link")
    assert "pn-000000000001" in left
    assert "pn-000000000002" not in left
    with Server(tmp_path / "server", PYNET_STALL=str(pipe)) as again:
        assert json.loads(again.get("/networks")[1]) == before
        assert set(ip("-o", "-br", "link").split()) >= {each for each in links if "pn" in each}
        assert json.loads(again.get("/differences")[1])["differences"] == []
        assert again.call("Leave", ids(1)) == (200, {})
