"""Kernel parameters as operators see and change them, with `pynet sysctl` and `pynet set`."""

from __future__ import annotations

import json
import shlex
import time
from contextlib import contextmanager
from subprocess import DEVNULL, PIPE
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine import steps
from tests.engine.rootfs import SUITES
from tests.engine.steps import (
    KEEPALIVE,
    create_network,
    kernel_value,
    proc_path,
    pynet,
    pynet_command,
    run,
    settings,
    stop,
    sysctl_options,
)
from tests.engine.unixhttp import post_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine

INTERVAL = "net.ipv4.tcp_keepalive_intvl"
PROBES = "net.ipv4.tcp_keepalive_probes"
RETRIES = "net.ipv4.tcp_retries2"
FIN = "net.ipv4.tcp_fin_timeout"
SOMAXCONN = "net.core.somaxconn"
CONGESTION = "net.ipv4.tcp_congestion_control"
TTL = "net.ipv4.ip_default_ttl"
NOTIFY = "net.ipv4.conf.IFNAME.arp_notify"
KEYS = {
    "keepalive": KEEPALIVE,
    "interval": INTERVAL,
    "probes": PROBES,
    "retries": RETRIES,
    "somaxconn": SOMAXCONN,
    "congestion": CONGESTION,
}
INHERIT = "pynet.sysctl.inherit"
FAILED, DIFFERS = 1, 4


@contextmanager
def host_values(engine: Engine, **values: str) -> Iterator[None]:
    """Have the host's operator set parameters, which go by their names here, for a while."""
    wanted = {KEYS[name]: value for name, value in values.items()}
    before = {key: steps.host_value(engine, key) for key in wanted}
    set_on_host(engine, wanted)
    try:
        yield
    finally:
        set_on_host(engine, before)


def set_on_host(engine: Engine, values: dict[str, str]) -> None:
    for key, value in values.items():
        engine.run("tee", proc_path(key), stdin=value)


def show(engine: Engine, name: str, *words: str) -> dict[str, dict[str, Any]]:
    """Return what `pynet sysctl` shows, by parameter."""
    done = pynet(engine, "sysctl", name, "--json", *words, check=False)
    assert done.returncode in {0, DIFFERS}, done.stderr
    return {line["parameter"]: line for line in json.loads(done.stdout)}


def test_each_source_and_each_precedence(engine: Engine) -> None:
    assert engine.driver
    engine.driver.terminate()
    defaults = {KEEPALIVE: "100", INTERVAL: "11", PROBES: "3", RETRIES: "4", FIN: "50"}
    engine.start_driver(
        env={"PYNET_DEFAULT_SYSCTLS": ",".join(f"{k}={v}" for k, v in defaults.items())}
    )
    with host_values(engine, keepalive="200", interval="22", probes="6", retries="8"):
        inherit = ("-o", f"{INHERIT}=net.ipv4.tcp_keepalive_*,{RETRIES}")
        wanted = {KEEPALIVE: "300", INTERVAL: "33", PROBES: "7"}
        create_network(engine, "back", *inherit, *sysctl_options(wanted))
        create_network(engine, "heir", *inherit)
        create_network(engine, "plain")
        place = f"name=back,driver-opt={KEEPALIVE}=400,driver-opt={INTERVAL}=44"
        run(engine, "own", place, "--sysctl", f"{KEEPALIVE}=500")
        run(engine, "web", "back")
        run(engine, "db", "heir")
        run(engine, "bare", "plain")
    expected = {
        "own": {
            KEEPALIVE: ("container", "500"),
            INTERVAL: ("endpoint", "44"),
            PROBES: ("network", "7"),
            RETRIES: ("inherit", "8"),
            FIN: ("default", "50"),
            TTL: ("kernel", "64"),
        },
        "web": {KEEPALIVE: ("network", "300"), RETRIES: ("inherit", "8"), FIN: ("default", "50")},
        "db": {KEEPALIVE: ("inherit", "200"), PROBES: ("inherit", "6"), FIN: ("default", "50")},
        "bare": {KEEPALIVE: ("default", "100"), RETRIES: ("default", "4")},
    }
    for container, keys in expected.items():
        shown = show(engine, container, "--all")
        for key, (source, value) in keys.items():
            line = shown[key]
            assert (line["by"], line["actual"]) == (source, {container: value}), (container, key)
            assert not line["differs"]
            assert kernel_value(engine, container, key) == value


def test_the_hosts_value_of_the_moment_is_inherited(engine: Engine) -> None:
    create_network(engine, "plain")
    with host_values(engine, keepalive="610", somaxconn="1111"):
        create_network(engine, "heir", "-o", f"{INHERIT}=net.ipv4.tcp_keepalive_*,{SOMAXCONN}")
        run(engine, "box", "heir")
        assert kernel_value(engine, "box", KEEPALIVE) == "610"
        set_on_host(engine, {KEEPALIVE: "620", SOMAXCONN: "2222"})
        assert kernel_value(engine, "box", KEEPALIVE) == "610"
        stop(engine, "box")
        engine.docker("start", "box")
        seen = [kernel_value(engine, "box", key) for key in (KEEPALIVE, SOMAXCONN)]
        assert seen == ["620", "2222"]
        engine.docker("network", "connect", "plain", "box")
        engine.docker("network", "disconnect", "heir", "box")
        assert kernel_value(engine, "box", KEEPALIVE) == "7200"


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("net.ipv4.tcp_nothing_*", "this kernel has no such parameter"),
        ("net.ipv4.conf.IFNAME.rp_filter", "the host has no IFNAME"),
        ("vm.*", "matches no kernel parameter of a network"),
    ],
)
def test_what_cannot_be_inherited_is_refused(engine28: Engine, pattern: str, words: str) -> None:
    done = engine28.docker(
        "network", "create", "-d", "pynet", "-o", f"{INHERIT}={pattern}", "x", check=False
    )
    assert done.returncode != 0
    assert words in done.stderr


def test_a_change_reaches_what_runs_and_spares_who_set_it_themselves(engine: Engine) -> None:
    create_network(engine, "plain")
    identity = create_network(engine, "back", *sysctl_options({KEEPALIVE: "600", NOTIFY: "1"}))
    for name in ("web", "db"):
        run(engine, name, "back")
    run(engine, "own", "back", "--sysctl", f"{KEEPALIVE}=42")
    stop(engine, "db")
    assert engine.driver
    began = time.monotonic()  # of the request itself: Python and docker take their time to start
    post_json(engine.driver.socket, f"/networks/{identity}/options", {"set": {KEEPALIVE: "500"}})
    assert time.monotonic() - began < 5  # a tenth of one, on a machine that has nothing else to do
    assert kernel_value(engine, "web", KEEPALIVE) == "500"
    done = pynet(engine, "set", "back", f"{KEEPALIVE}=300", f"{RETRIES}=8", f"{NOTIFY}=0")
    assert kernel_value(engine, "web", KEEPALIVE) == "300"
    assert done.stdout == (
        "changed, in 2 containers that run\n"
        f"own keeps its own {KEEPALIVE}\n"
        "connections that exist keep what they were opened with\n"
    )
    assert kernel_value(engine, "own", KEEPALIVE) == "42"
    for name in ("web", "own"):
        assert kernel_value(engine, name, RETRIES) == "8"
        assert kernel_value(engine, name, NOTIFY.replace("IFNAME", "eth0")) == "0"
    engine.docker("start", "db")
    assert kernel_value(engine, "db", KEEPALIVE) == "300"
    steps.revive_driver(engine)
    engine.docker("network", "connect", "plain", "web")
    engine.docker("network", "disconnect", "back", "web")
    assert kernel_value(engine, "web", KEEPALIVE) == "7200"
    assert pynet(engine, "set", "back", "--unset", KEEPALIVE, "--unset", RETRIES).returncode == 0
    seen = {name: kernel_value(engine, name, KEEPALIVE) for name in ("db", "own")}
    assert seen == {"db": "7200", "own": "42"}


def test_a_change_names_the_containers_that_another_network_rules(engine28: Engine) -> None:
    engine = engine28
    create_network(engine, "front", "-o", f"{KEEPALIVE}=600")
    create_network(engine, "back", "-o", f"{KEEPALIVE}=700")
    run(engine, "web", "back")
    engine.docker("network", "connect", "front", "web")
    run(engine, "own", f"name=back,driver-opt={KEEPALIVE}=42")
    assert pynet(engine, "set", "back", f"{KEEPALIVE}=800").stdout == (
        "changed, in 0 containers that run\n"
        f"own keeps {KEEPALIVE}=42 of its endpoint on back\n"
        f"web keeps {KEEPALIVE}=600 of front\n"
    )
    assert kernel_value(engine, "web", KEEPALIVE) == "600"
    assert pynet(engine, "set", "back", "pynet.sysctl.priority=1").stdout == (
        "changed, in 1 container that runs\n"
        f"own keeps {KEEPALIVE}=42 of its endpoint on back\n"
        "connections that exist keep what they were opened with\n"
    )
    assert kernel_value(engine, "web", KEEPALIVE) == "800"


def test_the_rest_of_a_network_is_changed_or_refused(engine28: Engine) -> None:
    engine = engine28
    identity = create_network(engine, "back")
    for name in ("web", "db"):
        run(engine, name, "back")
    target = steps.address(engine, "db", "back")
    assert steps.can_ping(engine, "web", target)
    pynet(engine, "set", "back", "com.docker.network.bridge.enable_icc=false")
    assert not steps.can_ping(engine, "web", target)
    pynet(engine, "set", "back", "--unset", "com.docker.network.bridge.enable_icc")
    assert steps.can_ping(engine, "web", target)
    pynet(engine, "set", "back", "com.docker.network.driver.mtu=1400")
    run(engine, "late", "back")
    mtus = {name: steps.interfaces(engine, name)["eth0"]["mtu"] for name in ("web", "late")}
    assert mtus == {"web": 1500, "late": 1400}
    bridge = steps.host_link(engine, f"pn-{identity[:12]}")
    assert bridge is not None
    assert bridge["mtu"] == 1400
    assert json.loads(pynet(engine, "inspect", "back").stdout)["options"] == {"mtu": 1400}
    said = engine.client.networks.get("back").attrs["Options"]
    assert "com.docker.network.driver.mtu" not in said
    for words, reason in (
        ((f"{KEEPALIVE}=much",), "malformed or out of range"),
        (("pynet.attach=direct",), "cannot be changed while the network exists"),
        (("nonsense=1",), "unknown option"),
        (("--unset", KEEPALIVE), "the network does not set it"),
        ((), "nothing to set"),
    ):
        refused = pynet(engine, "set", "back", *words, check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (FAILED, 1)
        assert reason in refused.stderr


def test_an_audit_names_what_does_not_arrive_and_says_how_it_does(engine28: Engine) -> None:
    engine = engine28
    other = "reno" if steps.host_value(engine, CONGESTION) != "reno" else "cubic"
    with host_values(engine, keepalive="600", somaxconn="65535", congestion=other):
        lost = {KEEPALIVE, SOMAXCONN, CONGESTION}
        create_network(engine, "plain")
        for about in ((), ("plain",)):
            done = pynet(engine, "sysctl", "audit", *about, "--json", check=False)
            found = json.loads(done.stdout)
            assert {each["parameter"] for each in found["reset"]} == lost
            assert done.returncode == DIFFERS
        said = pynet(engine, "sysctl", "audit", check=False).stdout.replace("\\\n", " ")
        commands = [line for line in said.splitlines() if line.startswith("docker network create")]
        assert len(commands) == 2
        for number, command in enumerate(commands):
            words = shlex.split(command.replace("NAME", f"carried{number}"))
            engine.docker(*words[1:])
            run(engine, f"box{number}", f"carried{number}")
            done = pynet(engine, "sysctl", "audit", f"carried{number}", "--json", check=False)
            assert (done.returncode, json.loads(done.stdout)["reset"]) == (0, [])
            assert {key: kernel_value(engine, f"box{number}", key) for key in lost} == {
                KEEPALIVE: "600",
                SOMAXCONN: "65535",
                CONGESTION: other,
            }
        snippet = pynet(engine, "sysctl", "audit", "--compose", check=False).stdout
        assert f'      {KEEPALIVE}: "600"\n' in snippet


def test_watch_tells_what_changes_until_the_container_ends(engine28: Engine) -> None:
    engine = engine28
    create_network(engine, "back")
    run(engine, "web", "back")
    words = ("sysctl", "watch", "web", "--interval", "0.05", "--json")
    argv, env = pynet_command(*words)
    command = engine.popen(*argv, env=env, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    try:
        assert command.stderr is not None
        assert "watching" in command.stderr.readline()
        pynet(engine, "set", "back", f"{KEEPALIVE}=300")
        assert command.stdout is not None
        change = json.loads(command.stdout.readline())
        assert (change["parameter"], change["was"], change["is"]) == (KEEPALIVE, "7200", "300")
        engine.docker("rm", "-f", "web")
        out, err = command.communicate(timeout=20)
        assert (command.returncode, err) == (0, "web has ended\n")
        # What the network had set is put back before the container is gone, and that may be seen.
        assert {json.loads(line)["is"] for line in out.splitlines()} <= {"7200"}
    finally:
        command.kill_group()


def test_it_works_without_docker_and_for_who_does_not_run(engine28: Engine) -> None:
    engine = engine28
    identity = create_network(engine, "back", *sysctl_options({KEEPALIVE: "600"}))
    run(engine, "web", "back", "--stop-signal", "KILL")
    run(engine, "gone", "back")
    stop(engine, "gone")
    line = show(engine, "gone")[KEEPALIVE]
    assert (line["asked"], line["by"], line["actual"]) == ("600", "network", {})
    endpoint = steps.endpoint(engine, "web", "back")["EndpointID"]
    sandbox = settings(engine, "web")["SandboxKey"]
    engine.kill_dockerd()
    for name in (identity[:12], endpoint[:8]):
        assert show(engine, name)[KEEPALIVE]["actual"] == {endpoint[:12]: "600"}
    pynet(engine, "set", identity[:12], f"{KEEPALIVE}=300")
    seen = engine.run("nsenter", f"--net={sandbox}", "cat", proc_path(KEEPALIVE)).stdout
    assert seen == "300\n"
    unknown = pynet(engine, "sysctl", "web", check=False)
    assert unknown.returncode == FAILED
    said = unknown.stderr.splitlines()
    assert said[0].startswith("ids instead of names: ")
    assert said[1:] == ["Error: no network and no container of pynet's is called web"]


def test_dockerds_own_default_options_are_a_networks(bare_engine: Engine) -> None:
    engine = bare_engine
    if SUITES[engine.suite].engine < "24":
        pytest.skip("--default-network-opt is there from engine 24 on")
    if engine.dockerd_running:
        engine.stop_dockerd()
    engine.start_dockerd(f"--default-network-opt=pynet={KEEPALIVE}=640")
    if not (engine.driver and engine.driver.running):
        engine.start_driver()
    create_network(engine, "back")
    create_network(engine, "own", *sysctl_options({KEEPALIVE: "650"}))
    for network, value in (("back", "640"), ("own", "650")):
        run(engine, f"box-{network}", network)
        assert kernel_value(engine, f"box-{network}", KEEPALIVE) == value
        assert show(engine, f"box-{network}")[KEEPALIVE]["by"] == "network"
