"""The process writes where it says, and no container makes it act on the host."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from driver.linux import netns, sysctl
from driver.model import host_end_name
from tests.engine.wait import wait_until
from tests.kernel.host import ip, run
from tests.kernel.server import Server, endpoint, ids, join, network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from driver.model import EndpointId, SandboxKey
    from tests.kernel.host import RealHost

KEEPALIVE = "net.ipv4.tcp_keepalive_time"
FILTER = "net.ipv4.conf.IFNAME.rp_filter"
GENERIC = "com.docker.network.generic"
MS_REMOUNT, MS_RDONLY, MS_BIND = 32, 1, 4096
WEB = {"Proto": 6, "Port": 80, "HostIP": "127.0.0.1", "HostPort": 8080, "HostPortEnd": 8080}


def with_parameters(**options: str) -> dict[str, Any]:
    """Return a CreateNetwork with a parameter of the sandbox and one of the interface."""
    generic = {KEEPALIVE: "600", FILTER: "2", **options}
    return network(1) | {"Options": {GENERIC: generic}}


def host_end(number: int) -> str:
    identity: EndpointId = ids(number)["EndpointID"]  # type: ignore[assignment]
    return host_end_name(identity)


def links() -> list[str]:
    """Name the interfaces of the host."""
    return [line.split()[1] for line in ip("-o", "link").splitlines()]


def value_in(sandbox: str, key: str) -> str | None:
    """Return a parameter as the kernel has it in the namespace."""
    with netns.open_namespace(sandbox) as namespace:
        return netns.run_in(namespace, lambda: sysctl.read(key))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "server") as lent:
        yield lent


def make_read_only(*but: Path) -> None:
    """Have every file system of the test's own mount namespace read-only, but for these."""
    libc = ctypes.CDLL(None, use_errno=True)
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [Path(line.split()[4].replace("\\040", " ")) for line in lines]
    for point in points:
        if point in but or point.is_relative_to("/proc"):
            continue
        if libc.mount(None, bytes(point), None, MS_REMOUNT | MS_BIND | MS_RDONLY, None) != 0:
            assert not point.exists(), f"{point} stays writable: {os.strerror(ctypes.get_errno())}"


def test_it_needs_to_write_nowhere_but_to_its_state_and_its_socket(
    real: RealHost, tmp_path: Path
) -> None:
    sandbox = real.add_sandbox(1)
    folder = tmp_path / "server"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "x", folder], check=True)
    make_read_only(folder)
    with pytest.raises(OSError, match="Read-only"):
        (tmp_path / "file").touch()
    with Server(folder) as server:
        assert server.call("CreateNetwork", with_parameters()) == (200, {})
        assert server.call("CreateEndpoint", endpoint(1))[0] == 200
        assert server.call("Join", join(1, sandbox))[0] == 200
        ports = ids(1) | {"Options": {"com.docker.network.portmap": [WEB]}}
        assert server.call("ProgramExternalConnectivity", ports) == (200, {})
        assert value_in(sandbox, KEEPALIVE) == "600"
        for target in ("/networks", "/health", "/metrics", "/version", "/differences", "/warnings"):
            assert server.get(target)[0] == 200, target
        for name in ("RevokeExternalConnectivity", "Leave", "DeleteEndpoint"):
            assert server.call(name, ids(1)) == (200, {})
        assert server.call("DeleteNetwork", ids(0)) == (200, {})
        assert stat.S_IMODE(server.socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(server.state.stat().st_mode) == 0o700
        files = list(server.state.iterdir())
        assert {file.name for file in files} == {
            *("lock", "pynet.db", "pynet.db-wal", "pynet.db-shm"),
            *("pynet.db-copy", "pynet.db-reserve"),
        }
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert {entry.name for entry in folder.iterdir()} == {"log", "state"}
    assert "Traceback" not in server.log()


@pytest.mark.parametrize(
    ("by", "attach"),
    [
        ("path", "handover"),
        ("symbolic link", "handover"),
        ("mount", "handover"),
        ("path", "direct"),
    ],
)
def test_the_hosts_own_namespace_is_no_sandbox(
    server: Server, tmp_path: Path, by: str, attach: str
) -> None:
    path = tmp_path / "sandbox"
    if by == "path":
        path = Path(f"/proc/{os.getpid()}/ns/net")
    elif by == "symbolic link":
        path.symlink_to(f"/proc/{os.getpid()}/ns/net")
    else:
        path.touch()
        run("mount", "--bind", f"/proc/{os.getpid()}/ns/net", str(path))
    before = sysctl.read(KEEPALIVE)
    assert before != "600"
    created = with_parameters(**{"pynet.attach": attach})
    assert server.call("CreateNetwork", created) == (200, {})
    before_links = links()
    assert server.call("CreateEndpoint", endpoint(1))[0] == 200
    status, answer = server.call("Join", join(1, str(path)))
    assert (status, "that is the host's own namespace" in answer["Err"]) == (400, True)
    assert server.call("EndpointOperInfo", ids(1))[0] == 200
    assert server.call("Leave", ids(1)) == (200, {})
    assert sysctl.read(KEEPALIVE) == before
    assert links() == before_links


@pytest.mark.parametrize("name", ["pn-000000000001", "eth0.100", 'a"};x', "-n"])
def test_an_interface_may_be_called_anything_in_its_container(
    server: Server, real: RealHost, name: str
) -> None:
    """As a bridge of the host is, or so that nft and a shell trip over it; `all` cannot be had."""
    sandbox = real.add_sandbox(1)
    assert server.call("CreateNetwork", with_parameters()) == (200, {})
    bridge = sysctl.read(FILTER, "pn-000000000001")
    everywhere = {name: sysctl.read(FILTER, name) for name in ("all", "default", "lo")}
    assert server.call("CreateEndpoint", endpoint(1))[0] == 200
    assert server.call("Join", join(1, sandbox))[0] == 200
    real.move(host_end(1), sandbox)
    ip("link", "set", "dev", "eth0", "down", sandbox=sandbox)
    ip("link", "set", "dev", "eth0", "name", name, sandbox=sandbox)
    ip("link", "set", "dev", name, "up", sandbox=sandbox)
    assert server.call("EndpointOperInfo", ids(1))[0] == 200
    with netns.open_namespace(sandbox) as namespace:
        assert netns.run_in(namespace, lambda: sysctl.read(FILTER, name)) == "2"
    assert sysctl.read(FILTER, "pn-000000000001") == bridge
    assert everywhere == {name: sysctl.read(FILTER, name) for name in everywhere}
    assert server.get("/metrics")[0] == 200
    for call in ("Leave", "DeleteEndpoint"):
        assert server.call(call, ids(1)) == (200, {})


def test_what_a_container_mounts_on_its_proc_is_not_seen(server: Server, real: RealHost) -> None:
    sandbox = real.add_sandbox(1)
    decoy = "mount -t tmpfs x /proc/sys && mkdir -p /proc/sys/net/ipv4 && "
    decoy += "echo 1 > /proc/sys/net/ipv4/tcp_keepalive_time && echo ready && exec cat"
    with subprocess.Popen(
        ["nsenter", f"--net={sandbox}", "unshare", "--mount", "sh", "-c", decoy],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as container:
        assert container.stdout is not None
        assert container.stdout.readline() == b"ready\n"
        assert server.call("CreateNetwork", with_parameters()) == (200, {})
        assert server.call("CreateEndpoint", endpoint(1))[0] == 200
        assert server.call("Join", join(1, sandbox))[0] == 200
        assert value_in(sandbox, KEEPALIVE) == "600"
        inside = Path(f"/proc/{container.pid}/root/proc/sys/net/ipv4/tcp_keepalive_time")
        assert inside.read_text() == "1\n"
        container.communicate()


def test_a_container_that_throws_its_interface_away_harms_nobody(
    server: Server, real: RealHost
) -> None:
    sandbox: SandboxKey = real.add_sandbox(1)
    assert server.call("CreateNetwork", with_parameters()) == (200, {})
    assert server.call("CreateEndpoint", endpoint(1))[0] == 200
    assert server.call("Join", join(1, sandbox))[0] == 200
    real.move(host_end(1), sandbox)
    ip("link", "del", "eth0", sandbox=sandbox)
    wait_until(lambda: host_end(1) not in ip("link"), 5, "the pair gone")
    # One of its own, of the host end's name, must not be taken for it.
    ip("link", "add", host_end(1), "type", "bridge", sandbox=sandbox)
    ip("link", "set", host_end(1), "up", sandbox=sandbox)
    assert server.call("EndpointOperInfo", ids(1))[0] == 200
    for call in ("Leave", "DeleteEndpoint"):
        assert server.call(call, ids(1)) == (200, {})
    assert host_end(1) in ip("link", sandbox=sandbox)
    assert server.call("DeleteNetwork", ids(0)) == (200, {})
