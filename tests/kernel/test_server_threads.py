"""Who serves a request: one thread alone, as long as it is not at work; else others do."""

from __future__ import annotations

import os
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from plugin.worker import IDLE_SECONDS
from tests.engine.wait import wait_until
from tests.kernel.server import HEAD, Server, endpoint, ids, join, network, receive

if TYPE_CHECKING:
    from collections.abc import Iterator

CALLS = 100
FEW = CALLS // 4
NOTHING: dict[str, dict[str, str]] = {"Options": {}}
SECONDS = 10.0  # within which every request is answered, twice what is promised


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """Lend the name of the pipe that has the kernel hang."""
    return tmp_path / "stall"


@pytest.fixture
def server(tmp_path: Path, pipe: Path) -> Iterator[Server]:
    with Server(tmp_path / "server", PYNET_STALL=str(pipe)) as lent:
        assert lent.call("CreateNetwork", network(1)) == (200, {})
        yield lent


def tasks(server: Server) -> list[Path]:
    """Return where the kernel tells of the threads that serve."""
    return sorted(Path(f"/proc/{server.worker}/task").iterdir())


def sleeps(server: Server) -> dict[str, int]:
    """Return how often each thread has gone to sleep, and so how often it was woken."""
    told = {task.name: (task / "status").read_text() for task in tasks(server)}
    return {
        name: int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
        for name, text in told.items()
    }


def are_asleep(server: Server) -> bool:
    states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks(server)]
    return set(states) == {"S"}


def call_at_rest(server: Server) -> None:
    """Make a call when no thread of the server is at work."""
    wait_until(lambda: are_asleep(server), 30, "a server at rest")
    assert server.call("GwAllocCheck", NOTHING)[0] == 200


def test_one_call_after_the_other_wakes_one_thread_and_the_logs(server: Server) -> None:
    call_at_rest(server)
    before, began = sleeps(server), time.monotonic()
    for _ in range(CALLS):
        call_at_rest(server)
    after, looks = sleeps(server), (time.monotonic() - began) / IDLE_SECONDS
    assert after.keys() == before.keys()
    woken = {task: after[task] - before[task] for task in after}
    # The first thread, in which the loop is, looks about by itself.
    assert woken.pop(str(server.worker)) <= FEW + looks
    busy = [task for task, count in woken.items() if count > FEW]
    assert len(busy) == 2, "the thread that serves, and the one that writes the log"


def test_while_that_one_hangs_others_serve_and_then_it_does_again(
    server: Server, pipe: Path
) -> None:
    assert server.call("CreateEndpoint", endpoint(1))[0] == 200
    os.mkfifo(pipe)
    call_at_rest(server)
    with ThreadPoolExecutor(1) as callers:
        stuck = callers.submit(server.timed, "Join", join(1, "/run/none"))
        wait_until(lambda: "a verb hangs" in server.log(), SECONDS, "a join that hangs")
        for _ in range(CALLS):
            assert server.call("GwAllocCheck", NOTHING)[0] == 200
        took, status, _ = stuck.result()
    assert (status, took < SECONDS) == (503, True)
    assert server.call("GwAllocCheck", NOTHING)[0] == 200
    writer = os.open(pipe, os.O_WRONLY)
    pipe.unlink()
    os.close(writer)
    wait_until(lambda: server.call("DeleteEndpoint", ids(1))[0] == 200, SECONDS, "the lock")
    test_one_call_after_the_other_wakes_one_thread_and_the_logs(server)


def test_a_request_that_comes_in_pieces_is_served_and_keeps_nobody_waiting(server: Server) -> None:
    body = b'{"Options": {}}'
    request = HEAD % (b"GwAllocCheck", len(body)) + body
    for cut in (0, 1, len(request) - 1):
        slow = server.connect()
        slow.sendall(request[:cut])
        call_at_rest(server)  # it keeps nobody from being served
        slow.sendall(request[cut:])
        assert receive(slow)[0] == 200


def test_without_a_free_descriptor_who_says_nothing_makes_room(server: Server) -> None:
    silent = server.connect()
    call_at_rest(server)
    wait_until(lambda: are_asleep(server), 30, "the end of that call")
    before = resource.prlimit(server.worker, resource.RLIMIT_NOFILE)
    taken = {int(each.name) for each in Path(f"/proc/{server.worker}/fd").iterdir()}
    next_one = min(set(range(len(taken) + 1)) - taken)
    resource.prlimit(server.worker, resource.RLIMIT_NOFILE, (next_one, before[1]))
    try:
        assert server.call("GwAllocCheck", NOTHING)[0] == 200
    finally:
        resource.prlimit(server.worker, resource.RLIMIT_NOFILE, before)
    assert receive(silent)[0] == 503
    test_one_call_after_the_other_wakes_one_thread_and_the_logs(server)
