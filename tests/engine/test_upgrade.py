"""An upgrade from an old version, made of the repository's own history: nothing running notices.

As a service, as a Debian package and as a managed plugin. In a full soak only: the old version has
to be built first.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine import plugin_image
from tests.engine.conftest import NEWEST
from tests.engine.connections import SHORT_NAME, connections
from tests.engine.driver import REPOSITORY, SOCKET, DriverProcess
from tests.engine.engine import Engine
from tests.engine.registry import ADDRESS, registry
from tests.engine.site import HOST, HOST_ADDRESS, LOOPBACK, Question, Site, check
from tests.engine.soak import is_in_full
from tests.engine.steps import KEEPALIVE, sysctl_options
from tests.engine.unixhttp import post_json, request
from tests.engine.wait import wait_until
from tests.packaging.conftest import build, copy
from tests.packaging.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

OLD = "dab8395"  # before the server and the netlink code were exchanged; schema 4 of the state file
OLD_REF, NEW_REF = f"{ADDRESS}/pynet/pynet:old", f"{ADDRESS}/pynet/pynet:new"
# Of every kind that a state file of that version can hold.
KINDS = {
    "inner": ("--internal",),
    "closed": ("-o", "com.docker.network.bridge.enable_icc=false"),
    "direct": ("-o", "pynet.attach=direct"),
    "routed": ("-o", "com.docker.network.bridge.gateway_mode_ipv4=routed"),
}

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not is_in_full(), reason="builds an old version: a part of the full soak"),
]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lend a clone of the old version that can run."""
    folder = tmp_path_factory.mktemp("old") / "pynet"
    clone = ["git", "clone", "--quiet", "--no-checkout", str(REPOSITORY), str(folder)]
    subprocess.run(clone, check=True)
    found = subprocess.run(["git", "checkout", "--quiet", OLD], cwd=folder, check=False)
    if found.returncode:
        pytest.skip(f"the history of this clone does not go back to {OLD}")
    subprocess.run(["make", "venv"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder


def show(socket: Path) -> dict[str, dict[str, Any]]:
    """Return what the driver has, by network, as far as every version tells of it."""
    status, body = request(socket, "GET", "/networks")
    assert status == 200, body
    return {each.pop("id"): each for each in json.loads(body)["networks"]}


def differs(socket: Path) -> object:
    status, body = request(socket, "GET", "/differences")
    assert status == 200, body
    return json.loads(body)["differences"]


def assert_kept(before: object, after: object, where: str = "") -> None:
    """Fail if anything that was there is not, or is another; new things may be added."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            assert key in after, f"{where}: {key} is gone"
            assert_kept(value, after[key], f"{where}/{key}")
    elif isinstance(before, list) and isinstance(after, list):
        assert len(before) == len(after), where
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            assert_kept(old, new, f"{where}/{number}")
    else:
        assert before == after, where


@contextmanager
def running(site: Site) -> Iterator[None]:
    """Have containers on networks of every kind that must be as they were after the block."""
    engine = site.engine
    for number, (name, words) in enumerate(KINDS.items(), start=80):
        site.network(SHORT_NAME, name, number, *words, *sysctl_options({KEEPALIVE: "600"}))
        site.container(f"on-{name}", name, "-p", f"{9000 + number}:80")
    site.serve("on-closed", "tcp", 80)
    # To be answered by the host's addresses of both families, its loopback included.
    ways = [
        Question(HOST, each, 9081, "*") for each in (*LOOPBACK.values(), *HOST_ADDRESS.values())
    ]
    with connections(site, SHORT_NAME):
        check(site, ways)
        assert differs(engine.outside / SOCKET.lstrip("/")) == []
        before, links = show(engine.outside / SOCKET.lstrip("/")), list_links(engine)
        yield
        check(site, ways)
        assert list_links(engine) == links
        assert_kept(before, show(engine.outside / SOCKET.lstrip("/")))
        assert differs(engine.outside / SOCKET.lstrip("/")) == []
        for name in KINDS:
            value = engine.docker("exec", f"on-{name}", "sysctl", "-n", KEEPALIVE).stdout
            assert value.strip() == "600"


def list_links(engine: Engine | Machine) -> dict[str, int]:
    """Return the links of pynet's by name, with the numbers that made anew they would lose.

    Not the pair by which the old version led ::1 to ports, which the relay does by now.
    """
    found = json.loads(engine.run("ip", "-json", "link").stdout)
    links = {each["ifname"]: each["ifindex"] for each in found}
    return {name: links[name] for name in links if name.startswith("pn") and "pnlo" not in name}


def test_a_service(old: Path) -> None:
    with Engine(NEWEST) as engine, Site(engine) as site:
        engine.driver = DriverProcess(engine, repository=old)
        engine.driver.wait_ready()
        with running(site):
            engine.driver.terminate()
            engine.driver = DriverProcess(engine)
            engine.driver.wait_ready()


def test_the_managed_plugin(old: Path, builder: Engine, tmp_path: Path) -> None:
    code = "from tests.engine.plugin_image import ensure_built; print(ensure_built())"
    python = old / ".venv/bin/python"
    built = subprocess.run(
        [python, "-c", code], cwd=old, check=True, text=True, stdout=subprocess.PIPE
    )
    folders = {
        OLD_REF: Path(built.stdout.splitlines()[-1]),
        NEW_REF: plugin_image.ensure_built(),
    }
    with ExitStack() as stack:
        stack.enter_context(registry(builder, tmp_path))
        for ref, folder in folders.items():
            plugin_image.create(builder, ref, folder)
            builder.docker("plugin", "push", ref)
            builder.docker("plugin", "rm", ref)
        engine = stack.enter_context(Engine(NEWEST))
        stack.enter_context(registry(engine, tmp_path))
        site = stack.enter_context(Site(engine))
        engine.docker("plugin", "install", "--grant-all-permissions", OLD_REF)
        with running(site):
            engine.docker("plugin", "disable", "-f", OLD_REF)
            words = ("--grant-all-permissions", "--skip-remote-check", OLD_REF, NEW_REF)
            engine.docker("plugin", "upgrade", *words)
            engine.docker("plugin", "enable", OLD_REF)


def test_the_debian_package(old: Path, tmp_path: Path) -> None:
    """On a machine without Docker: what Docker asks is asked by the test, in its place."""
    command = [old / "packaging/deb", tmp_path / "old"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (before,) = (tmp_path / "old").glob("*.deb")
    before = before.rename(before.with_name("pynet_old.deb"))
    with Machine() as machine:
        socket = machine.root / SOCKET.lstrip("/")
        machine.run("dpkg", "--install", copy(before, machine))
        machine.run("ip", "netns", "add", "sandbox")
        start(socket)
        kept, links = show(socket), list_links(machine)
        assert [len(each["endpoints"]) for each in kept.values()] == [1]
        machine.run("dpkg", "--install", copy(build(tmp_path), machine))
        wait_until(lambda: differs(socket) == [], 20, "the new version")
        assert_kept(kept, show(socket))
        assert list_links(machine) == links
        parameter = f"/proc/sys/{KEEPALIVE.replace('.', '/')}"
        inside = machine.run("ip", "netns", "exec", "sandbox", "cat", parameter)
        assert inside.stdout.strip() == "600"


def start(socket: Path) -> None:
    """Start a container as Docker does, in the namespace `sandbox`, with a published port."""
    network, endpoint = {"NetworkID": "a" * 64}, {"EndpointID": "e" * 64}
    pool = {"AddressSpace": "", "Pool": "10.91.0.0/24", "Gateway": "10.91.0.1/24"}
    options = {"com.docker.network.generic": {KEEPALIVE: "600"}}
    port = {"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080}
    ports = {"com.docker.network.portmap": [port]}
    interface = {"Address": "10.91.0.2/24", "AddressIPv6": "", "MacAddress": ""}
    for name, call in (
        ("CreateNetwork", network | {"Options": options, "IPv4Data": [pool], "IPv6Data": []}),
        ("CreateEndpoint", network | endpoint | {"Options": {}, "Interface": interface}),
        ("Join", network | endpoint | {"SandboxKey": "/run/netns/sandbox", "Options": ports}),
        ("ProgramExternalConnectivity", network | endpoint | {"Options": ports}),
    ):
        answer = post_json(socket, f"/NetworkDriver.{name}", call)
        assert "Err" not in answer, answer
