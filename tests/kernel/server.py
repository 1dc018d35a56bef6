"""Run the real server in the test's own namespaces, and have it meet what a test does to it."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.engine.unixhttp import accepts, request
from tests.engine.wait import wait_until
from tests.kernel.host import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[2]
HEAD = b"POST /NetworkDriver.%s HTTP/1.1\r\nHost: \r\nContent-Length: %d\r\n\r\n"
TIMEOUT = 30  # seconds; no answer may take that long
TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds, in which the kernel tells of the processor's


class Server:
    """A driver process with a state folder and a socket of its own."""

    def __init__(self, folder: Path, **env: str) -> None:
        folder.mkdir(exist_ok=True)
        self.socket = folder / "pynet.sock"
        self.state = folder / "state"
        self._log = folder / "log"
        self._env = {
            **os.environ,
            "PYNET_SOCKET": str(self.socket),
            "PYNET_STATE_DIR": str(self.state),
            **env,
        }

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.kernel.stalling", "serve"],
                cwd=REPOSITORY,
                env=self._env,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - no more than prctl
            )
        wait_until(lambda: accepts(self.socket) or self._process.poll(), 20, "the socket")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        finally:
            self._process.kill()

    @property
    def running(self) -> bool:
        """Tell whether its first process is alive."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Return its first process."""
        return self._process.pid

    @property
    def worker(self) -> int:
        """Return the process that serves."""
        return self.workers[0]

    @property
    def workers(self) -> list[int]:
        """Return the processes that its first process has started."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return list(map(int, children.split()))

    def cpu_seconds(self) -> float:
        """Return what the process that serves has had of the processor, see proc_pid_stat(5)."""
        told = Path(f"/proc/{self.worker}/stat").read_text().rpartition(")")[2].split()
        return (int(told[11]) + int(told[12])) * TICK

    def log(self) -> str:
        """Return all that it has written."""
        return self._log.read_text(errors="replace")

    def call(self, name: str, payload: object) -> tuple[int, dict[str, Any]]:
        """Make one call; return the status and the answer."""
        body = json.dumps(payload).encode()
        target = f"/NetworkDriver.{name}"
        status, answer = request(self.socket, "POST", target, body, timeout=TIMEOUT)
        return status, json.loads(answer)

    def timed(self, name: str, payload: object) -> tuple[float, int, dict[str, Any]]:
        """Make one call; return how long it took, too, in seconds."""
        began = time.monotonic()
        status, answer = self.call(name, payload)
        return time.monotonic() - began, status, answer

    def send(self, name: str, payload: object) -> socket.socket:
        """Make one call and do not wait for its answer."""
        body = json.dumps(payload).encode()
        connection = self.connect()
        connection.sendall(HEAD % (name.encode(), len(body)) + body)
        return connection

    def get(self, target: str) -> tuple[int, bytes]:
        """Ask what people ask."""
        return request(self.socket, "GET", target, timeout=TIMEOUT)

    def connect(self) -> socket.socket:
        """Open a connection, and say nothing yet."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(TIMEOUT)
        connection.connect(str(self.socket))
        return connection


def receive(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Return the status and the answer that come on a connection, and close it."""
    with connection:
        answer = HTTPResponse(connection)
        answer.begin()
        return answer.status, json.loads(answer.read())


def network(number: int) -> dict[str, Any]:
    """Return a CreateNetwork."""
    pool = f"10.{number // 250}.{number % 250}"
    return {
        "NetworkID": ids(0, number)["NetworkID"],
        "Options": {},
        "IPv4Data": [{"Pool": f"{pool}.0/24", "Gateway": f"{pool}.1/24"}],
        "IPv6Data": [],
    }


def endpoint(number: int, of: int = 1) -> dict[str, Any]:
    """Return a CreateEndpoint in a network."""
    address = f"10.{of // 250}.{of % 250}.{number + 1}/24"
    return {**ids(number, of), "Interface": {"Address": address}, "Options": {}}


def ids(number: int, of: int = 1) -> dict[str, str]:
    """Return what names an endpoint in a call."""
    return {"NetworkID": f"{of:012x}" + 52 * "a", "EndpointID": f"{number:012x}" + 52 * "e"}


def join(number: int, sandbox: str, of: int = 1) -> dict[str, Any]:
    """Return a Join."""
    return {**ids(number, of), "SandboxKey": sandbox, "Options": {}}


@contextmanager
def dead_file_system(folder: Path) -> Iterator[Path]:
    """Mount a FUSE file system whose server never answers: system calls on it do not return."""
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/dev/fuse").open("r+b", buffering=0) as device:
        options = f"fd={device.fileno()},rootmode=40000,user_id=0,group_id=0".encode()
        if libc.mount(b"dead", bytes(folder), b"fuse", 0, options) != 0:
            raise OSError(ctypes.get_errno(), "mount the dead file system")
        yield folder
    # With its device closed the file system answers everything with an error.
