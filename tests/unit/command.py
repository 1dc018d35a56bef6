"""The `pynet` command run as people and programs do, on a driver and a Docker of real sockets."""

from __future__ import annotations

import fcntl
import gc
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from flask import Flask, request
from werkzeug.serving import make_server

from driver.model import GatewayMode
from plugin.api import create_app
from plugin.cli import main
from tests.samples import KEEPALIVE, endpoint_id, network, new_endpoint, new_join, pool, ports

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path
    from wsgiref.types import WSGIApplication

    from click.testing import Result

    from driver.driver import BridgeDriver
    from tests.fakes import FakeKernel

    Run = Callable[..., Result]

COLUMNS = 80
DUAL = network(
    1,
    f"{KEEPALIVE}=600",
    pools=(pool("10.1.0.1/24"), pool("fd00:1::1/64")),
    icc=False,
    trusted_host_interfaces=("eth1",),
    gateway_mode_ipv6=GatewayMode.ROUTED,
)
OTHER = network(2)
VERSION = "1.45"
WEB = "3b" + 62 * "c"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[str, WSGIApplication], Path]]:
    """Lend a function that serves an application on a socket of that name."""
    servers = []

    def start(name: str, app: WSGIApplication) -> Path:
        path = tmp_path / name
        server = make_server(f"unix://{path}", 0, app)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        return path

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def docker_app(
    networks: Any,
    containers: Any,
    starting: Any = None,
    sysctls: Any = None,
    gone: Collection[str] = (),
) -> Flask:
    """Return as much of Docker's API as the command asks.

    A network that is `gone` is listed, and removed by the time that it is asked for.
    """
    app = Flask("docker")
    own = {"HostConfig": {} if sysctls is None else {"Sysctls": sysctls}}

    def list_containers() -> Any:
        if isinstance(containers, tuple) or request.args.get("all") in {"1", "true"}:
            return containers
        return [each for each in containers if each["State"] == "running"]

    def inspect_container(identity: str) -> Any:
        known = containers if isinstance(containers, list) else []
        names = {each["Id"] for each in known} | {each["Names"][0].lstrip("/") for each in known}
        if known and identity not in names:
            return {"message": f"no such container: {identity}"}, 404
        return own

    def inspect_network(identity: str) -> Any:
        if identity in gone or identity not in {each["Id"] for each in networks}:
            return {"message": f"network {identity} not found"}, 404
        return {"Containers": starting}

    app.add_url_rule("/version", "version", lambda: {"ApiVersion": VERSION})
    app.add_url_rule(f"/v{VERSION}/networks", "networks", lambda: networks)
    app.add_url_rule(f"/v{VERSION}/containers/json", "containers", list_containers)
    app.add_url_rule(f"/v{VERSION}/containers/<identity>/json", "container", inspect_container)
    app.add_url_rule(f"/v{VERSION}/networks/<identity>", "network", inspect_network)
    return app


def container(name: str, identity: str, state: str = "running", **endpoints: str) -> dict[str, Any]:
    """Return a container as Docker lists it, with its endpoint, if it runs, on each network."""
    ids = {"back": DUAL.id, "front": OTHER.id}
    settings = {
        name: {"EndpointID": each, "NetworkID": ids.get(name, "") if each else ""}
        for name, each in endpoints.items()
    }
    return {
        "Id": identity,
        "Names": [f"/{name}"],
        "State": state,
        "NetworkSettings": {"Networks": settings},
    }


NETWORKS_LISTED = [
    {"Id": DUAL.id, "Name": "back", "Driver": "pynet"},
    {"Id": OTHER.id, "Name": "front", "Driver": "pynet"},
    {"Id": "0", "Name": "x", "Driver": "bridge"},
]
CONTAINERS_LISTED = [
    container("web", WEB, back=endpoint_id(1), x=""),
    container("stopped", 64 * "5", "exited", front=""),
    container("elsewhere", 64 * "6", x=""),
    container("none", 64 * "7"),
]
DOCKER = docker_app(NETWORKS_LISTED, CONTAINERS_LISTED)


@pytest.fixture
def with_networks(driver: BridgeDriver, kernel: FakeKernel) -> BridgeDriver:
    """Lend a driver with two networks, one of which has a container."""
    for each in (DUAL, OTHER):
        driver.create_network(each)
    new = new_endpoint(ipv6="fd00:1::2/64")
    driver.create_endpoint(new)
    join = new_join(has_ports=True)
    kernel.add_sandbox(join.sandbox)
    driver.join(join)
    kernel.move("pnhe1e1e1e1e1e1", join.sandbox)
    driver.program_external_connectivity(DUAL.id, new.id, ports("8080:80", "127.0.0.1:53:53/udp"))
    return driver


def environment_of(driver: Path, docker: Path) -> dict[str, str]:
    """Return what tells the command where to ask."""
    return {"PYNET_SOCKET": str(driver), "DOCKER_HOST": f"unix://{docker}"}


def runner(driver: Path, docker: Path) -> Run:
    """Return a function that runs the command, its output in pipes."""
    environment = environment_of(driver, docker)

    def run(*words: str, env: Mapping[str, str] | None = None) -> Result:
        with warnings.catch_warnings():
            # docker-py leaves its sockets to the garbage collector when a connection fails.
            warnings.simplefilter("ignore", ResourceWarning)
            result = CliRunner().invoke(
                main, words, env={**environment, **(env or {})}, catch_exceptions=False
            )
            gc.collect()
        return result

    return run


@pytest.fixture
def run(with_networks: BridgeDriver, serve: Callable[[str, WSGIApplication], Path]) -> Run:
    """Lend the command, with a driver and a Docker to ask."""
    return runner(
        serve("pynet.sock", create_app(lambda: with_networks)), serve("docker.sock", DOCKER)
    )


@pytest.fixture
def run_without_docker(
    with_networks: BridgeDriver, serve: Callable[[str, WSGIApplication], Path], tmp_path: Path
) -> Run:
    return runner(serve("pynet.sock", create_app(lambda: with_networks)), tmp_path / "none.sock")


def table(result: Result) -> list[list[str]]:
    """Return the cells of what was printed, which are two spaces apart at least."""
    assert result.exit_code == 0, result.output
    return [line.split() for line in result.stdout.splitlines()]


@dataclass(frozen=True)
class Shown:
    """What a command that ended left on a terminal."""

    code: int
    text: str


def on_terminal(*words: str, env: Mapping[str, str]) -> Shown:
    """Run the command on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    argv = [sys.executable, "-m", "plugin.cli", *words]
    environment = {**os.environ, "TERM": "xterm-256color", **env}
    environment.pop("COLUMNS", None)
    with subprocess.Popen(
        argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as made:
        os.close(theirs)
        written = bytearray()
        with suppress(OSError):  # how a terminal says that nobody writes any more
            while chunk := os.read(ours, 65536):
                written += chunk
        os.close(ours)
        code = made.wait(20)
    return Shown(code, written.decode().replace("\r\n", "\n"))
