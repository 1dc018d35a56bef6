"""The driver as a process and a server on its socket, apart from what it does for networks."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.engine.driver import DriverProcess
from tests.engine.steps import create_network, run
from tests.engine.unixhttp import request
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from tests.engine.engine import Engine

ACTIVATE = "/Plugin.Activate"
STARTS = 5
HEAD = b"POST /NetworkDriver.DeleteNetwork HTTP/1.1\r\nHost: pynet\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture
def driver(engine28: Engine) -> DriverProcess:
    """Have the driver of one engine: none of this depends on Docker."""
    assert isinstance(engine28.driver, DriverProcess)
    return engine28.driver


def test_the_socket_answers_soon_after_the_start(engine28: Engine, driver: DriverProcess) -> None:
    """Measured against a Python that only begins and ends, beside which it is 10 to 20 times."""
    create_network(engine28, "back")
    run(engine28, "box", "back")
    waited, bare = [], []
    for _ in range(STARTS):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-c", "pass"], check=True)
        bare.append(time.perf_counter() - began)
        assert engine28.driver is not None
        engine28.driver.terminate()
        began = time.perf_counter()
        engine28.start_driver()
        assert request(driver.socket, "POST", ACTIVATE)[0] == 200
        waited.append(time.perf_counter() - began)
    print(f"\nstart to answer, best of {STARTS}: {min(waited):.2f} s")
    assert min(waited) < max(0.5, 40 * min(bare))


def test_only_root_may_open_the_socket(driver: DriverProcess) -> None:
    assert stat.S_IMODE(driver.socket.stat().st_mode) == 0o600


def test_sigterm_removes_the_socket(driver: DriverProcess) -> None:
    driver.terminate()
    assert not driver.socket.exists()


def test_sigterm_lets_a_call_in_flight_end(driver: DriverProcess) -> None:
    body = b'{"NetworkID": "%s"}' % (b"f" * 64)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as call:
        call.connect(str(driver.socket))
        call.sendall(HEAD % len(body))
        # Connections are served in the order they come: ours is in when this one is answered.
        driver.call("Plugin.Activate")
        os.kill(driver.pid, signal.SIGTERM)
        wait_until(lambda: not driver.socket.exists(), 5, "the socket removed")
        assert driver.running
        call.sendall(body)
        assert call.recv(4096).startswith(b"HTTP/1.1 200 OK")
    driver.wait()
    assert "DeleteNetwork network=ffffffffffff ok" in driver.log()


@pytest.mark.parametrize("method", ["NetworkDriver.AllocateNetwork", "IpamDriver.RequestPool", "x"])
def test_what_it_does_not_know_is_not_found(driver: DriverProcess, method: str) -> None:
    status, answer = request(driver.socket, "POST", f"/{method}", b"{}")
    assert (status, answer) == (404, b'{"Err":"no such method: %s"}' % method.encode())


def test_every_request_is_one_line_of_the_log(driver: DriverProcess) -> None:
    def written() -> list[str]:
        """List the lines from the call before the first that names the network."""
        lines = driver.log().splitlines()
        first = next((n for n, line in enumerate(lines) if "network=eeeeeeeeeeee" in line), 1)
        return lines[first - 1 :]

    driver.call("NetworkDriver.GetCapabilities")
    for _ in range(2):
        driver.call("NetworkDriver.DeleteNetwork", {"NetworkID": "e" * 64})
    status, _ = request(driver.socket, "POST", "/NetworkDriver.Join", b"{}")
    assert status == 400
    # A thread of its own writes the log, after the answer.
    wait_until(lambda: " Join failed: " in written()[-1], 5, "the last call's line")
    lines = written()
    assert [line.split()[3] for line in lines] == [
        *("GetCapabilities", "DeleteNetwork", "DeleteNetwork", "Join"),
    ]
    assert all(line.endswith(" ms") for line in lines)
    assert "network=eeeeeeeeeeee ok" in lines[1]
