"""The socket as systemd hands it over: its name stays, and who asks meanwhile is answered."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REPOSITORY = Path(__file__).parents[2]
SERVE = (sys.executable, "-m", "plugin.cli", "serve")
# A network of its own: a driver without networks removes rules of pynet's.
ALONE = ("unshare", "--net")
# What systemd does between fork and exec: the socket becomes descriptor 3, and the pid is the
# program's own.
HAND_OVER = """\
import os, sys
descriptor = int(sys.argv[1])
os.dup2(descriptor, 3)
if descriptor != 3:
    os.close(descriptor)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[2], sys.argv[2:])
"""
REQUEST = b"POST /Plugin.Activate HTTP/1.1\r\nHost: pynet\r\nContent-Length: 0\r\n\r\n"
ENDINGS = [signal.SIGTERM, signal.SIGKILL]


class Question:
    """A request that is sent, and may be answered by a driver that starts later.

    A thread waits for the answer: a client that does not close its connection has the server wait.
    """

    def __init__(self, path: Path) -> None:
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.settimeout(30)
        self._connection.connect(str(path))
        self._connection.sendall(REQUEST)
        self._received = b""
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        with self._connection, self._connection.makefile("rb") as stream:
            self._received = stream.read()

    def answer(self) -> dict[str, list[str]]:
        """Wait for the answer and return its document."""
        self._thread.join()
        head, _, body = self._received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        document: dict[str, list[str]] = json.loads(body)
        return document


class Drivers:
    """Starts drivers on one state and one socket, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "docker" / "pynet.sock"
        self.socket.parent.mkdir()
        self.other = folder / "other.sock"
        self._env = {**os.environ, "PYNET_STATE_DIR": str(folder / "state")}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> Self:
        self._listener.bind(str(self.socket))
        self.socket.chmod(0o600)
        self._listener.listen(4096)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    @contextmanager
    def start(self, setting: Path) -> Iterator[subprocess.Popen[bytes]]:
        """Start a driver on the socket that we hold, as systemd does."""
        descriptor = self._listener.fileno()
        command = [*ALONE, sys.executable, "-c", HAND_OVER, str(descriptor), *SERVE]
        with popen(command, {**self._env, "PYNET_SOCKET": str(setting)}, descriptor) as driver:
            yield driver


@contextmanager
def popen(
    command: Sequence[str], env: dict[str, str], *descriptors: int
) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, cwd=REPOSITORY, env=env, pass_fds=descriptors) as process:
        try:
            yield process
        finally:
            process.kill()


def end(driver: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """End the driver and wait until its worker is gone as well, whose end follows."""
    workers = children(driver.pid)
    assert workers
    driver.send_signal(how)
    assert driver.wait(20) == (0 if how == signal.SIGTERM else -how)
    wait_until(lambda: not any(is_alive(pid) for pid in workers), 10, "the worker's end")


def children(pid: int) -> list[int]:
    words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(word) for word in words]


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def drivers(tmp_path: Path) -> Iterator[Drivers]:
    with Drivers(tmp_path) as drivers:
        yield drivers


def test_a_question_starts_the_driver_and_is_answered(tmp_path: Path) -> None:
    path = tmp_path / "pynet.sock"
    env = {
        **os.environ,
        "PYNET_SOCKET": str(path),
        "PYNET_STATE_DIR": str(tmp_path / "state"),
    }
    activate = ["systemd-socket-activate", f"--listen={path}"]
    # The real tool passes on no more of its environment than it is told to.
    names = ("PYNET_SOCKET", "PYNET_STATE_DIR", "PATH", "HOME")
    options = [f"--setenv={name}={env[name]}" for name in names if name in env]
    with popen([*ALONE, *activate, *options, *SERVE], env) as driver:
        wait_until(path.exists, 20, "the socket")
        assert not (tmp_path / "state").exists()
        assert Question(path).answer() == {"Implements": ["NetworkDriver"]}
        end(driver, signal.SIGTERM)
        assert path.exists()


@pytest.mark.parametrize("how", ENDINGS)
def test_who_asks_between_two_drivers_is_answered_by_the_second(
    drivers: Drivers, how: signal.Signals
) -> None:
    early = Question(drivers.socket)
    with drivers.start(drivers.socket) as driver:
        assert early.answer() == {"Implements": ["NetworkDriver"]}
        before = drivers.socket.stat()
        end(driver, how)
    between = [Question(drivers.socket) for _ in range(100)]
    with drivers.start(drivers.socket):
        assert [question.answer() for question in between] == [
            {"Implements": ["NetworkDriver"]}
        ] * len(between)
    after = drivers.socket.stat()
    assert (after.st_ino, stat.S_IMODE(after.st_mode)) == (before.st_ino, 0o600)


@pytest.mark.parametrize("how", ENDINGS)
def test_the_socket_that_is_handed_over_is_stronger_than_the_setting(
    drivers: Drivers, how: signal.Signals
) -> None:
    with drivers.start(drivers.other) as driver:
        assert Question(drivers.socket).answer()
        assert not drivers.other.exists()
        end(driver, how)
    assert drivers.socket.exists()


def test_a_question_asked_while_the_driver_ends_is_not_lost(drivers: Drivers) -> None:
    """Docker repeats a request whose connection breaks without its body."""
    asked: list[Question] = []
    with drivers.start(drivers.socket) as driver:
        assert Question(drivers.socket).answer()
        driver.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 20
        while driver.poll() is None and time.monotonic() < deadline:
            asked.append(Question(drivers.socket))
            time.sleep(0.005)
        assert driver.returncode == 0
    with drivers.start(drivers.socket):
        assert all(question.answer() for question in asked)


def test_descriptors_meant_for_another_process_are_left_alone(tmp_path: Path) -> None:
    """A variable that was inherited is none that systemd set for this process."""
    path = tmp_path / "pynet.sock"
    env = {
        **os.environ,
        "LISTEN_FDS": "1",
        "LISTEN_PID": "1",
        "PYNET_SOCKET": str(path),
        "PYNET_STATE_DIR": str(tmp_path / "state"),
    }
    with popen([*ALONE, *SERVE], env) as driver:
        wait_until(path.exists, 20, "the socket")
        assert Question(path).answer()
        end(driver, signal.SIGTERM)
    assert not path.exists()
