"""The units on a machine that systemd runs: what the driver may do, when it runs, what stays."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.unixhttp import post_json, request
from tests.engine.wait import wait_until
from tests.packaging.conftest import PACKAGING, copy
from tests.packaging.machine import SOCKET
from tests.packaging.test_socket_activation import Question

if TYPE_CHECKING:
    from pathlib import Path

    from tests.packaging.machine import Machine

UNITS = ("pynet.socket", "pynet.service")
RELAY, RELAY_SOCKET = "pynet-relay.service", "pynet-relay.socket"
# What `systemd-analyze security` of Debian 12 says; docs/operations.md says what is left, and why.
SCORE, RELAY_SCORE = 4.6, 1.4
DESCRIPTORS = 524288
NETWORK, ENDPOINT = "b" * 64, "c" * 64
SANDBOX = "/run/docker/netns/0123456789ab"
KEEPALIVE = "net.ipv4.tcp_keepalive_time"
LISTEN = "import socket; s = socket.create_server(('', 8080)); print(flush=True); input()"
# A dockerd that asks its plugin before it says that it is ready, as a real one does for the
# networks it has.
DOCKERD = """\
[Unit]
After=network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/python3 /root/dockerd.py
[Install]
WantedBy=multi-user.target
"""
ASK = """\
import socket
with socket.socket(socket.AF_UNIX) as plugin:
    plugin.connect("/run/docker/plugins/pynet.sock")
    plugin.sendall(b"POST /Plugin.Activate HTTP/1.1\\r\\nHost:\\r\\nContent-Length: 0\\r\\n\\r\\n")
    assert b"NetworkDriver" in plugin.makefile("rb").read()
"""


def show(machine: Machine, name: str, unit: str = "pynet.service") -> str:
    command = ("systemctl", "show", f"--property={name}", "--value", unit)
    return machine.run(*command).stdout.strip()


def status(machine: Machine) -> dict[str, str]:
    """Return what the kernel says of the driver's worker."""
    main = show(machine, "MainPID")
    children = machine.root / f"proc/{main}/task/{main}/children"
    worker = wait_until(lambda: children.read_text().split(), 20, "the worker")[0]
    lines = (machine.root / f"proc/{worker}/status").read_text().splitlines()
    return {"pid": worker} | {
        name: value.strip() for name, _, value in (x.partition(":") for x in lines)
    }


def descriptors(machine: Machine, pid: str) -> tuple[int, int]:
    """Return how many descriptors a process may have, and may allow itself to have."""
    limits = (machine.root / f"proc/{pid}/limits").read_text()
    match = re.search(r"Max open files +(\d+) +(\d+)", limits)
    assert match, limits
    return int(match[1]), int(match[2])


def call(machine: Machine, method: str, **payload: Any) -> dict[str, Any]:
    return post_json(machine.root / SOCKET, f"/NetworkDriver.{method}", payload)


def add_unit(machine: Machine, name: str, text: str) -> None:
    file = machine.root / "etc/systemd/system" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    machine.run("systemctl", "daemon-reload")


def test_both_units_run_as_soon_as_they_are_installed(service: Machine) -> None:
    assert [show(service, "SubState", unit) for unit in UNITS] == ["running", "running"]
    assert [show(service, "UnitFileState", unit) for unit in UNITS] == ["enabled", "enabled"]
    kind, mode, owner = service.run("stat", "-c", "%F:%a:%U", f"/{SOCKET}").stdout.split(":")
    assert (kind, mode, owner) == ("socket", "600", "root\n")
    folders = service.run("stat", "-c", "%a", "/run/docker", "/run/docker/plugins").stdout
    assert folders.split() == ["755", "755"]
    # Debian 13 has units of its own that cannot start on a machine made of namespaces.
    failed = service.run("systemctl", "--failed", "--plain", "--no-legend").stdout
    assert not [unit for unit in failed.split() if unit.startswith("pynet")]


def test_the_sandbox_is_in_force(service: Machine) -> None:
    text = (PACKAGING / "pynet.service").read_text()
    names = (
        " ".join(re.findall(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE)).lower().split()
    )
    worker = status(service)
    bound = service.run("systemctl", "show", "--property=CapabilityBoundingSet", "pynet.service")
    assert set(bound.stdout.strip().partition("=")[2].split()) == set(names)
    assert worker["CapBnd"] == worker["CapPrm"] == worker["CapEff"]
    assert int(worker["CapBnd"], 16).bit_count() == len(names)
    assert (worker["CapAmb"], worker["NoNewPrivs"], worker["Seccomp"]) == ("0" * 16, "1", "2")
    # A first process that may not raise its own limit cannot raise anybody else's.
    wanted = min(DESCRIPTORS, descriptors(service, "1")[1])
    assert descriptors(service, worker["pid"]) == (wanted, wanted)


def test_it_is_in_the_namespaces_of_the_machine(service: Machine) -> None:
    worker = status(service)["pid"]
    for kind in ("mnt", "net", "pid", "uts", "ipc", "user"):
        spaces = [(service.root / f"proc/{pid}/ns/{kind}").readlink() for pid in ("1", worker)]
        assert spaces[0] == spaces[1], kind


def test_the_sandbox_lets_it_do_its_work(service: Machine) -> None:
    """The whole life of a container with a low port, and the name of who else has a port."""
    call(
        service,
        "CreateNetwork",
        NetworkID=NETWORK,
        Options={
            "com.docker.network.enable_ipv6": True,
            "com.docker.network.generic": {KEEPALIVE: "600"},
        },
        IPv4Data=[{"AddressSpace": "", "Pool": "10.92.0.0/24", "Gateway": "10.92.0.1/24"}],
        IPv6Data=[{"AddressSpace": "", "Pool": "fd92::/64", "Gateway": "fd92::1/64"}],
    )
    both = {"NetworkID": NETWORK, "EndpointID": ENDPOINT}
    call(
        service,
        "CreateEndpoint",
        **both,
        Interface={"Address": "10.92.0.2/24", "AddressIPv6": "fd92::2/64", "MacAddress": ""},
        Options={},
    )
    service.run("mkdir", "-p", "/run/docker/netns")
    service.run("touch", SANDBOX)
    service.run("unshare", f"--net={SANDBOX}", "true")
    joined = call(service, "Join", **both, SandboxKey=SANDBOX, Options={})
    assert joined["InterfaceName"]["DstPrefix"] == "eth"

    def value() -> str:
        path = f"/proc/sys/{KEEPALIVE.replace('.', '/')}"
        return service.run("nsenter", f"--net={SANDBOX}", "cat", path).stdout.strip()

    wait_until(lambda: value() == "600", 10, "the network's parameter")
    portmap = {"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 80, "HostPortEnd": 80}
    options = {"com.docker.network.portmap": [portmap]}
    call(service, "ProgramExternalConnectivity", **both, Options=options)
    taken = service.run("python3", "-c", LISTEN.replace("8080", "80"), check=False)
    assert "Address already in use" in taken.stderr
    call(service, "RevokeExternalConnectivity", **both)
    # Another program's process: its descriptors are nothing that root alone may read.
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    with service.popen(*nobody, "python3", "-c", LISTEN) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "\n"
        portmap |= {"HostPort": 8080, "HostPortEnd": 8080}
        refused = request(
            service.root / SOCKET,
            "POST",
            "/NetworkDriver.ProgramExternalConnectivity",
            json.dumps({**both, "Options": options}).encode(),
        )
        holder.communicate("\n")
    assert b"port is in use by python3 (pid " in refused[1]
    call(service, "Leave", **both)
    call(service, "DeleteEndpoint", **both)
    call(service, "DeleteNetwork", NetworkID=NETWORK)
    service.run("umount", SANDBOX)
    said = service.run("journalctl", "--unit=pynet.service", "--output=cat").stdout
    assert "Operation not permitted" not in said
    assert "Traceback" not in said


def test_it_has_a_procfs_of_its_own_where_that_is_allowed(service: Machine) -> None:
    """As docs/operations.md says, for hosts with hundreds of containers."""

    def opened() -> set[str]:
        """Return what is open after parameters were tried; a mount without a place is `/`."""
        network = {"NetworkID": NETWORK, "IPv6Data": []}
        pool = {"AddressSpace": "", "Pool": "10.92.0.0/24", "Gateway": "10.92.0.1/24"}
        options = {"com.docker.network.generic": {KEEPALIVE: "600"}}
        call(service, "CreateNetwork", **network, IPv4Data=[pool], Options=options)
        call(service, "DeleteNetwork", **network)
        files = (service.root / f"proc/{status(service)['pid']}/fd").iterdir()
        return {str(file.readlink()) for file in files} & {"/", "/proc"}

    assert opened() == {"/proc"}
    documented = (PACKAGING.parent / "docs/operations.md").read_text()
    (drop_in,) = re.findall(r"\[Service\]\n(SystemCallFilter=.*)\n", documented)
    add_unit(service, "pynet.service.d/procfs.conf", f"[Service]\n{drop_in}\n")
    service.run("systemctl", "restart", "pynet.service")
    assert opened() == {"/"}
    (service.root / "etc/systemd/system/pynet.service.d/procfs.conf").unlink()
    service.run("systemctl", "daemon-reload")
    service.run("systemctl", "restart", "pynet.service")


def publish(machine: Machine, port: int, sandbox: str = SANDBOX) -> dict[str, str]:
    """Publish a port of a container on an IPv4 network; return its endpoint."""
    pool = {"AddressSpace": "", "Pool": "10.93.0.0/24", "Gateway": "10.93.0.1/24"}
    call(machine, "CreateNetwork", NetworkID=NETWORK, Options={}, IPv4Data=[pool], IPv6Data=[])
    both = {"NetworkID": NETWORK, "EndpointID": ENDPOINT}
    interface = {"Address": "10.93.0.2/24", "AddressIPv6": "", "MacAddress": ""}
    call(machine, "CreateEndpoint", **both, Interface=interface, Options={})
    machine.run("mkdir", "-p", "/run/docker/netns")
    machine.run("touch", sandbox)
    machine.run("unshare", f"--net={sandbox}", "true")
    name = call(machine, "Join", **both, SandboxKey=sandbox, Options={})["InterfaceName"]["SrcName"]
    machine.run("ip", "link", "set", name, "netns", sandbox)
    for words in (
        ("address", "add", "10.93.0.2/24", "dev", name),
        ("link", "set", name, "up"),
        ("link", "set", "lo", "up"),
    ):
        machine.run("nsenter", f"--net={sandbox}", "ip", *words)
    numbers = {"Port": 80, "HostPort": port, "HostPortEnd": port}
    portmap = {"Proto": 6, "IP": "", "HostIP": "", **numbers}
    options = {"com.docker.network.portmap": [portmap]}
    call(machine, "ProgramExternalConnectivity", **both, Options=options)
    return both


def withdraw(machine: Machine, both: dict[str, str], sandbox: str = SANDBOX) -> None:
    call(machine, "RevokeExternalConnectivity", **both)
    call(machine, "Leave", **both)
    call(machine, "DeleteEndpoint", **both)
    call(machine, "DeleteNetwork", NetworkID=NETWORK)
    machine.run("umount", sandbox)


ECHO = """\
import socket, threading
def serve(connection):
    connection.sendall(b"hello")
    connection.sendall(connection.recv(100))
with socket.create_server(("", 80)) as server:
    print("ready", flush=True)
    while True:
        threading.Thread(target=serve, args=server.accept()[:1], daemon=True).start()
"""
CLIENT = """\
import socket
with socket.create_connection(("::1", 8081), 10) as connection:
    print(connection.recv(100), flush=True)
    input()
    connection.sendall(b"still here")
    print(connection.recv(100), flush=True)
"""


def test_the_relay_runs_when_it_is_needed_and_outlives_the_driver(service: Machine) -> None:
    """`systemctl restart pynet`, and an upgrade: a connection goes on, and the port answers.

    An upgrade brings another relay, which takes over the port; the old one keeps the connection.
    """
    assert show(service, "SubState", RELAY_SOCKET) in ("listening", "running")
    wait_until(lambda: show(service, "SubState", RELAY) == "dead", 30, "no relay without a port")
    both = publish(service, 8081)
    with service.popen("nsenter", f"--net={SANDBOX}", "python3", "-c", ECHO) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        with service.popen("python3", "-c", CLIENT) as client:
            assert client.stdout is not None
            assert client.stdin is not None
            assert client.stdout.readline() == "b'hello'\n"
            relay = show(service, "MainPID", RELAY)
            assert relay != "0"
            service.run("systemctl", "restart", "pynet.service")
            answered = Question(service.root / SOCKET).answer()
            again = "import socket; print(socket.create_connection(('::1', 8081), 10).recv(9))"
            second = service.run("python3", "-c", again, check=False).stdout
            same = show(service, "MainPID", RELAY)
            (code,) = (service.root / "usr/lib/pynet/lib").glob("python3*/*/driver/relay/udp.py")
            with code.open("a") as file:
                file.write("# another version\n")
            service.run("systemctl", "restart", "pynet.service")
            is_another = partial(
                lambda old: show(service, "MainPID", RELAY) not in (old, "0"), relay
            )
            wait_until(is_another, 20, "the relay of the other version")
            another = show(service, "MainPID", RELAY)
            third = service.run("python3", "-c", again, check=False).stdout
            client.stdin.write("\n")
            client.stdin.flush()
            first = client.stdout.readline()
            client.kill_group()
        server.kill_group()
    assert answered
    assert (first, second, third) == ("b'still here'\n", "b'hello'\n", "b'hello'\n")
    assert same == relay
    status = (service.root / f"proc/{another}/status").read_text()
    assert re.search(r"^CapBnd:\t0{16}$", status, re.MULTILINE)
    assert re.search(r"^Uid:\t[1-9]", status, re.MULTILINE)
    withdraw(service, both)
    wait_until(lambda: show(service, "SubState", RELAY) == "dead", 30, "the relay's end")
    assert show(service, "Result", RELAY) == "success"


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_the_name_stays_while_the_driver_does_not(service: Machine, how: str) -> None:
    path = service.root / SOCKET
    before, inode = show(service, "MainPID"), path.stat().st_ino
    if how == "kill":
        service.run("systemctl", "kill", "--signal=KILL", "pynet.service")
    else:
        service.run("systemctl", "restart", "--no-block", "pynet.service")
    asked = [Question(path) for _ in range(10)]

    def is_another() -> bool:
        asked.append(Question(path))  # the one before may answer a few before it is told to end
        return show(service, "MainPID") not in {before, "0"}

    wait_until(is_another, 20, "another driver")
    assert all(question.answer() for question in asked)
    assert path.stat().st_ino == inode


def test_a_stopped_driver_starts_when_it_is_asked(service: Machine) -> None:
    service.run("systemctl", "stop", "pynet.service")
    assert Question(service.root / SOCKET).answer()


def test_without_the_socket_there_is_no_name_and_starting_the_service_brings_it_back(
    service: Machine,
) -> None:
    service.run("systemctl", "stop", *UNITS)
    assert not (service.root / SOCKET).exists()
    service.run("systemctl", "start", "pynet.service")
    assert Question(service.root / SOCKET).answer()


def test_dockerd_finds_it_at_boot(machine: Machine, package: Path) -> None:
    machine.run("dpkg", "--install", copy(package, machine))
    (machine.root / "root/dockerd.py").write_text(ASK)
    add_unit(machine, "docker.service", DOCKERD)
    machine.run("systemctl", "enable", "docker.service")
    call(
        machine,
        "CreateNetwork",
        NetworkID=NETWORK,
        Options={"com.docker.network.generic": {}},
        IPv4Data=[{"AddressSpace": "", "Pool": "10.92.0.0/24", "Gateway": "10.92.0.1/24"}],
        IPv6Data=[],
    )
    machine.boot()
    assert show(machine, "ActiveState", "docker.service") == "active"
    started = [
        int(show(machine, f"{name}TimestampMonotonic", unit))
        for name, unit in (
            ("ActiveEnter", "pynet.socket"),
            ("ActiveEnter", "pynet.service"),
            ("InactiveExit", "docker.service"),
        )
    ]
    assert started == sorted(started)
    assert started[0] > 0
    link = ("ip", "link", "show", f"pn-{NETWORK[:12]}")
    wait_until(lambda: machine.run(*link, check=False).returncode == 0, 20, "the network's bridge")
    # And in the other order at shutdown.
    machine.run("systemctl", "stop", "docker.service")
    assert set(UNITS) <= set(show(machine, "After", "docker.service").split())


def test_a_driver_that_cannot_start_is_given_up_with_its_name(
    machine: Machine, package: Path
) -> None:
    """Docker waits for an answer without limit, but not for a socket that is not there."""
    machine.run("dpkg", "--install", copy(package, machine))
    broken = "[Service]\nExecStart=\nExecStart=/bin/false\n"
    add_unit(machine, "pynet.service.d/broken.conf", broken)
    machine.run("systemctl", "restart", "pynet.service", check=False)
    asked = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with asked:
        asked.settimeout(30)
        asked.connect(str(machine.root / SOCKET))
        with pytest.raises(ConnectionResetError):
            asked.recv(1)
    wait_until(lambda: not (machine.root / SOCKET).exists(), 5, "the end of the name")
    assert [show(machine, "ActiveState", unit) for unit in UNITS] == ["failed", "failed"]
    (machine.root / "etc/systemd/system/pynet.service.d/broken.conf").unlink()
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "reset-failed", *UNITS)
    machine.run("systemctl", "start", "pynet.service")
    assert Question(machine.root / SOCKET).answer()


def test_a_setting_for_another_socket_changes_nothing(machine: Machine, package: Path) -> None:
    machine.run("dpkg", "--install", copy(package, machine))
    with (machine.root / "etc/default/pynet").open("a") as settings:
        settings.write("PYNET_SOCKET=/run/other.sock\nPYNET_LOG_LEVEL=WARNING\n")
    machine.run("systemctl", "restart", "pynet.service")
    assert Question(machine.root / SOCKET).answer()
    assert not (machine.root / "run/other.sock").exists()


@pytest.mark.parametrize(("name", "score"), [("pynet", SCORE), ("pynet-relay", RELAY_SCORE)])
def test_the_exposure_does_not_grow(name: str, score: float) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager"]
    unit = PACKAGING / f"{name}.service"
    done = subprocess.run(
        [*command, f"--threshold={score * 10:.0f}", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    documented = (PACKAGING.parent / "docs/operations.md").read_text()
    assert f"`systemd-analyze security {name}` says {score}" in documented


def test_sigkill_of_the_worker_alone_is_noticed(service: Machine) -> None:
    worker = status(service)["pid"]
    service.run("sh", "-c", f"kill -{signal.SIGKILL.value} {worker}")
    assert Question(service.root / SOCKET).answer()
    assert status(service)["pid"] != worker


def test_the_name_is_left_to_a_driver_that_has_it(machine: Machine, package: Path) -> None:
    machine.run("dpkg", "--install", copy(package, machine))
    machine.run("systemctl", "stop", *UNITS)
    with machine.other_driver("pynet"):
        inode = (machine.root / SOCKET).stat().st_ino
        assert machine.run("systemctl", "start", "pynet.service", check=False).returncode != 0
        said = machine.run("journalctl", "--unit=pynet.socket", "--no-pager").stdout
        assert "another driver is answering on it" in said
        assert (machine.root / SOCKET).stat().st_ino == inode
        assert Question(machine.root / SOCKET).answer()
    machine.run("systemctl", "start", "pynet.service")
    assert Question(machine.root / SOCKET).answer()
