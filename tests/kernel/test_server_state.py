"""A state that cannot be used or kept: the server says so, in every answer, and loses nothing."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from driver.state.reserve import NAME as RESERVE
from driver.state.store import FILE_NAME
from tests.engine.unixhttp import accepts
from tests.engine.wait import wait_until
from tests.kernel.host import ip, relays
from tests.kernel.server import Server, endpoint, ids, join, network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZE = 8 * 1024 * 1024


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Lend a folder for a server, its state on a small disk of its own."""
    state = tmp_path / "server" / "state"
    state.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "x", state], check=True)
    return tmp_path / "server"


def fill(state: Path) -> Path:
    """Fill the disk to its last byte."""
    ballast = state / "somebody's"
    with ballast.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


def refused(server: Server, words: str) -> None:
    """Check that every request is refused, with these words, by a server that lives on."""
    health = wait_until(lambda: unhealthy(server, words), 10, f"{words!r} in health")
    assert health is not None
    assert health["status"] == "unhealthy"
    for name, call in (
        ("CreateNetwork", network(1)),
        ("Join", join(1, "/run/none")),
        ("DeleteNetwork", {"NetworkID": ids(1)["NetworkID"]}),
    ):
        status, answer = server.call(name, call)
        assert status in {409, 500}
        assert words in answer["Err"]
        assert "restart the driver" in answer["Err"] or "start the newer" in answer["Err"]
    assert server.call("GwAllocCheck", {"Options": {}})[0] == 200
    assert server.get("/metrics")[0] == 200
    assert server.running
    wait_until(lambda: "every request is refused" in server.log(), 5, "the refusal in the log")
    assert server.log().count("every request is refused") == 1


def unhealthy(server: Server, words: str) -> dict[str, Any] | None:
    status, answer = server.get("/health")
    problems: dict[str, Any] = json.loads(answer)
    return problems if status == 503 and words in str(problems) else None


def be_of_a_newer_version(state: Path) -> None:
    db = sqlite3.connect(state / FILE_NAME)
    db.execute("PRAGMA user_version = 99")
    db.close()


def be_no_folder(state: Path) -> None:
    subprocess.run(["umount", state], check=True)
    state.rmdir()
    state.touch()


def be_read_only(state: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", state], check=True)


def be_read_only_with_a_state(state: Path) -> None:
    sqlite3.connect(state / FILE_NAME).close()
    (state / "lock").touch()
    be_read_only(state)


def be_full(state: Path) -> None:
    fill(state)


def have_a_folder_for_a_file(state: Path) -> None:
    (state / FILE_NAME).mkdir()


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (be_of_a_newer_version, "start the newer pynet that wrote it"),
        (be_no_folder, "File exists"),
        (be_read_only, "Read-only file system"),
        (be_read_only_with_a_state, "Read-only file system"),
        (be_full, "full"),
        (have_a_folder_for_a_file, "unable to open database file"),
    ],
)
def test_every_request_is_refused_with_the_reason(
    folder: Path, trouble: Callable[[Path], None], words: str
) -> None:
    trouble(folder / "state")
    with Server(folder) as server:
        refused(server, words)
    assert "Traceback" not in server.log(), "it ends in peace, too"


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    """Lend a server with a network, an endpoint that has joined and one that has not."""
    with Server(folder) as lent:
        assert lent.call("CreateNetwork", network(1)) == (200, {})
        for number in (1, 2):
            assert lent.call("CreateEndpoint", endpoint(number))[0] == 200
        assert lent.call("Join", join(1, "/run/none"))[0] == 200
        yield lent


def shape(server: Server) -> tuple[Any, ...]:
    """Return what the server has and what the kernel has."""
    links = sorted(line.split()[1] for line in ip("-o", "link").splitlines())
    rules = subprocess.run(
        ["nft", "-s", "list", "ruleset"], check=True, capture_output=True, text=True
    ).stdout
    return json.loads(server.get("/networks")[1]), links, rules


def test_a_full_disk_fails_what_needs_it_and_nothing_is_left(server: Server) -> None:
    before = shape(server)
    filled = fill(server.state)
    # SQLite writes over the log that it has before it needs more; then it is the disk's end.
    calls: dict[str, Callable[[int], dict[str, Any]]] = {
        "CreateNetwork": network,
        "CreateEndpoint": endpoint,
    }
    for name, make in calls.items():
        made: list[int] = []
        for number in range(10, 200):
            status, answer = server.call(name, make(number))
            if status != 200:
                break
            made.append(number)
        assert status == 500, f"{name} never failed"
        assert "full" in answer["Err"]
        for number in made:
            call = ids(number) if name == "CreateEndpoint" else ids(0, number)
            assert server.call(name.replace("Create", "Delete"), call) == (200, {})
    assert shape(server) == before
    filled.unlink()
    assert server.call("CreateNetwork", network(9)) == (200, {})


def test_a_full_disk_does_not_keep_docker_from_removing_things(server: Server) -> None:
    filled = fill(server.state)
    assert (server.state / RESERVE).exists()
    for name, call in (
        ("RevokeExternalConnectivity", ids(1)),
        ("Leave", ids(1)),
        ("DeleteEndpoint", ids(1)),
        ("DeleteEndpoint", ids(2)),
        ("DeleteNetwork", ids(0)),
    ):
        assert server.call(name, call) == (200, {}), name
    assert "pn" not in {line.split()[1][:2] for line in ip("-o", "link").splitlines()}
    assert json.loads(server.get("/networks")[1]) == {"networks": []}
    assert not (server.state / RESERVE).exists()
    filled.unlink()
    assert server.call("CreateNetwork", network(1)) == (200, {})


FORGETTING: dict[str, tuple[str, dict[str, Any]]] = {
    "revoke": ("RevokeExternalConnectivity", ids(1)),
    "leave": ("Leave", ids(1)),
    "delete a joined endpoint": ("DeleteEndpoint", ids(1)),
    "delete an endpoint that has not joined": ("DeleteEndpoint", ids(2)),
    "delete a network": ("DeleteNetwork", ids(0)),
}


def take_last_page(server: Server) -> None:
    """Have nothing more fit on the full disk, nor into what SQLite has of it already."""
    refusals = (server.call("CreateEndpoint", endpoint(number)) for number in range(10, 200))
    answer = next(answer for status, answer in refusals if status != 200)
    assert "full" in answer["Err"]


@pytest.mark.parametrize(("name", "call"), FORGETTING.values(), ids=FORGETTING)
def test_whatever_forgets_does_so_as_the_first_call_on_a_full_disk(
    server: Server, name: str, call: dict[str, Any]
) -> None:
    """One that came earlier may have given the reserve up already."""
    port = {"HostPort": 8080, "HostPortEnd": 8080, "Port": 80, "Proto": 6}
    program = {**ids(1), "Options": {"com.docker.network.portmap": [port]}}
    assert server.call("ProgramExternalConnectivity", program) == (200, {})
    fill(server.state)
    take_last_page(server)
    assert (server.state / RESERVE).exists()
    assert server.call(name, call) == (200, {})
    assert not (server.state / RESERVE).exists()


def test_a_damaged_state_does_not_keep_it_from_starting(folder: Path) -> None:
    with Server(folder) as server:
        assert server.call("CreateNetwork", network(1)) == (200, {})
        assert server.call("CreateEndpoint", endpoint(1))[0] == 200
        assert server.call("Join", join(1, "/run/none"))[0] == 200
        links = sorted(line.split()[1] for line in ip("-o", "link").splitlines())
        os.kill(server.pid, 9)  # the one that serves goes with it
        wait_until(lambda: not accepts(server.socket), 10, "the driver's end")
    (folder / "state" / f"{FILE_NAME}-wal").unlink()
    (folder / "state" / FILE_NAME).write_bytes(b"no database" * 4096)
    with Server(folder) as server:
        problem = wait_until(lambda: unhealthy(server, "was damaged"), 10, "the damage told")
        (aside,) = (folder / "state").glob(f"{FILE_NAME}.damaged-*")
        assert aside.name in str(problem)
        wait_until(lambda: aside.name in server.log(), 5, "the file's new name in the log")
        assert sorted(line.split()[1] for line in ip("-o", "link").splitlines()) == links
        for name, call in (
            ("Leave", ids(1)),
            ("DeleteEndpoint", ids(1)),
            ("DeleteNetwork", ids(0)),
        ):
            assert server.call(name, call) == (200, {})
        assert "pn" not in {line.split()[1][:2] for line in ip("-o", "link").splitlines()}
    with Server(folder) as server:
        wait_until(lambda: unhealthy(server, "then remove it"), 10, "the damage told again")


@pytest.mark.parametrize("name", ["SIGTTIN", "SIGTTOU", "SIGHUP", "SIGUSR2", "SIGWINCH"])
def test_no_signal_gives_the_state_a_second_owner(tmp_path: Path, name: str) -> None:
    with Server(tmp_path / "server") as server:
        assert server.call("CreateNetwork", network(1)) == (200, {})
        before = server.worker
        os.kill(server.pid, getattr(signal, name))
        wait_until(lambda: name in server.log(), 10, "the signal told in the log")
        assert server.call("CreateNetwork", network(2)) == (200, {})
        assert server.workers == [before]


def test_a_worker_that_ends_is_followed_by_another_that_docker_finds(tmp_path: Path) -> None:
    """By the same name, which belongs to the process that has made it."""
    with Server(tmp_path / "server") as server:
        assert server.call("CreateNetwork", network(1)) == (200, {})
        before = server.worker
        os.kill(before, signal.SIGTERM)
        wait_until(lambda: server.workers not in ([], [before]), 20, "another worker")
        assert server.call("CreateNetwork", network(1)) == (200, {})


def test_a_log_that_nobody_reads_keeps_no_request_waiting(folder: Path) -> None:
    os.mkfifo(folder / "log")
    unread = os.open(folder / "log", os.O_RDWR | os.O_NONBLOCK)
    with Server(folder) as server:
        for _ in range(1200):
            assert server.call("Leave", ids(1)) == (200, {})
        assert server.call("CreateNetwork", network(1)) == (200, {})
    os.close(unread)


def test_a_relay_that_systemd_starts_is_not_started_by_the_driver(folder: Path) -> None:
    """While that one is down health says so: the driver's own would be without its limits."""
    with Server(folder, PYNET_RELAY_SOCKET=str(folder / "relay.sock")) as server:
        assert server.call("CreateNetwork", network(1)) == (200, {})
        assert server.call("CreateEndpoint", endpoint(1))[0] == 200
        assert server.call("Join", join(1, "/run/none"))[0] == 200
        wanted = {"Proto": 6, "Port": 80, "HostPort": 8080, "HostPortEnd": 8080}
        program = ids(1) | {"Options": {"com.docker.network.portmap": [wanted]}}
        assert server.call("ProgramExternalConnectivity", program) == (200, {})
        wait_until(lambda: unhealthy(server, "reach the relay on"), 10, "the relay in health")
        assert not relays()
