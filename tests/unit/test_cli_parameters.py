"""`pynet sysctl` and `pynet set`, and every command's looks on a terminal and through a pipe."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from typing import TYPE_CHECKING, Any

import pytest
from werkzeug.test import Client

from driver import options
from driver.driver import BridgeDriver
from driver.model import host_end_name
from driver.options import parse_change
from driver.sysctl.policy import SysctlPolicy
from plugin.api import create_app
from plugin.cli import DIFFERS, DRIVER_DOWN, FAILED, MISUSED
from tests.samples import (
    KEEPALIVE,
    RP_FILTER,
    SOMAXCONN,
    endpoint_id,
    new_endpoint,
    new_join,
    sandbox_key,
    sysctl,
)
from tests.unit.command import (
    COLUMNS,
    CONTAINERS_LISTED,
    DUAL,
    NETWORKS_LISTED,
    OTHER,
    WEB,
    container,
    docker_app,
    environment_of,
    on_terminal,
    runner,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from wsgiref.types import WSGIApplication

    from driver.model import EndpointId, Network
    from driver.state.store import Store
    from tests.fakes import FakeKernel
    from tests.unit.command import Run

BIG, SMALL = "4096 262144 33554432", "4096 131072 6291456"
CONGESTION = "net.ipv4.tcp_congestion_control"
RMEM = "net.ipv4.tcp_rmem"
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def tuned(kernel: FakeKernel) -> FakeKernel:
    """Have a host whose operator has tuned it."""
    kernel.host |= {
        KEEPALIVE: "610",
        SOMAXCONN: "65535",
        RMEM: "4096\t262144\t33554432",
        "net.core.rmem_max": "212992",
    }
    return kernel


def lines(run: Run, *words: str) -> dict[str, dict[str, Any]]:
    """Return what a command says as JSON, by parameter."""
    result = run(*words, "--json")
    assert result.exit_code in {0, DIFFERS}, result.stderr
    return {line["parameter"]: line for line in json.loads(result.stdout)}


def cells(text: str) -> list[list[str]]:
    """Return the cells of a table, which are two spaces apart at least."""
    return [re.split(r"  +", line.strip()) for line in text.splitlines()]


# pynet sysctl


def test_a_networks_parameters_are_shown(run: Run, tuned: FakeKernel) -> None:
    result = run("sysctl", "back")
    assert result.exit_code == 0
    head, *rows, legend = cells(result.stdout)
    assert head == ["PARAMETER", "HOST", "PRISTINE", "ASKED", "BY", "ACTUAL"]
    assert rows == [
        ["*", SOMAXCONN, "65535", "4096", "-", "kernel", "4096"],
        [KEEPALIVE, "610", "7200", "600", "network", "600"],
        ["*", RMEM, BIG, SMALL, "-", "kernel", SMALL],
    ]
    assert legend[0].startswith("! is not what was asked for")


def test_what_is_not_as_asked_is_marked(run: Run, kernel: FakeKernel) -> None:
    kernel.sandboxes[sandbox_key(1)][KEEPALIVE] = "7200"
    for name in ("back", "web"):
        result = run("sysctl", name)
        assert result.exit_code == DIFFERS
        assert ["!", KEEPALIVE, "7200", "7200", "600", "network", "7200"] in cells(result.stdout)


def test_what_an_endpoint_asks_for_itself_is_not_marked(
    run: Run, with_networks: BridgeDriver, kernel: FakeKernel
) -> None:
    kernel.add_sandbox(sandbox_key(2))
    with_networks.create_endpoint(new_endpoint(2, 1, f"{KEEPALIVE}=300"))
    with_networks.join(new_join(2, 1, sandbox_key(2)))
    line = lines(run, "sysctl", "back")[KEEPALIVE]
    assert line["actual"] == {"web": "600", endpoint_id(2)[:12]: "300"}
    assert (line["asked"], line["differs"]) == ("600", False)


def test_a_containers_parameters_are_shown(run: Run, tuned: FakeKernel) -> None:
    shown = lines(run, "sysctl", "web")
    assert shown[KEEPALIVE] == {
        "parameter": KEEPALIVE,
        "host": "610",
        "pristine": "7200",
        "asked": "600",
        "by": "network",
        "actual": {"web": "600"},
        "differs": False,
        "lost": False,
    }
    assert shown[SOMAXCONN]["lost"]
    assert CONGESTION not in shown
    assert CONGESTION in lines(run, "sysctl", "show", "web", "--all")


def test_each_interface_of_a_container_has_its_parameters_shown_and_the_rest_once(
    with_networks: BridgeDriver, kernel: FakeKernel, serve: Callable[[str, WSGIApplication], Path]
) -> None:
    with_networks.create_endpoint(new_endpoint(2, 2))
    with_networks.join(new_join(2, 2, sandbox_key(1)))
    kernel.move(host_end_name(endpoint_id(2)), sandbox_key(1))
    for net, value in ((DUAL, "1"), (OTHER, "2")):
        with_networks.change_network(net.id, parse_change({RP_FILTER: value}, ()))
    listed = [container("web", WEB, back=endpoint_id(1), front=endpoint_id(2))]
    docker = serve("d.sock", docker_app(NETWORKS_LISTED, listed))
    run = runner(serve("pynet.sock", create_app(lambda: with_networks)), docker)
    shown = json.loads(run("sysctl", "web", "--json").stdout)
    assert [
        (each["asked"], each["actual"]) for each in shown if each["parameter"] == RP_FILTER
    ] == [("1", {"web": "1"}), ("2", {"web": "2"})]
    assert [each["asked"] for each in shown if each["parameter"] == KEEPALIVE] == ["600"]


def test_a_containers_own_parameters_are_dockers_to_tell(
    with_networks: BridgeDriver, kernel: FakeKernel, serve: Callable[[str, WSGIApplication], Path]
) -> None:
    kernel.sandboxes[sandbox_key(1)][KEEPALIVE] = "42"
    told = docker_app(NETWORKS_LISTED, CONTAINERS_LISTED, sysctls={KEEPALIVE: "42"})
    run = runner(serve("pynet.sock", create_app(lambda: with_networks)), serve("d.sock", told))
    line = lines(run, "sysctl", "web")[KEEPALIVE]
    assert (line["asked"], line["by"], line["differs"]) == ("42", "container", False)
    assert not lines(run, "sysctl", "back")[KEEPALIVE]["differs"]


def test_a_container_that_does_not_run_is_told_what_it_would_get(
    run: Run, with_networks: BridgeDriver
) -> None:
    with_networks.change_network(OTHER.id, parse_change({SOMAXCONN: "9"}, ()))
    result = run("sysctl", "stopped", "--json")
    assert result.stderr == "stopped does not run: this is what it would get\n"
    (line,) = json.loads(result.stdout)
    assert (line["parameter"], line["asked"], line["actual"]) == (SOMAXCONN, "9", {})


LATER, FIRST = (DUAL, OTHER), (OTHER, DUAL)
# When the network of `front` is made, what it asks for, and what comes of that beside `back`.
FRONT: dict[str, tuple[tuple[Network, ...], dict[str, str], str]] = {
    "nothing": (LATER, {}, "600"),
    "the same parameter, later": (LATER, {KEEPALIVE: "900"}, "600"),
    "the same parameter, first": (FIRST, {KEEPALIVE: "900"}, "900"),
    "with a greater priority": (LATER, {KEEPALIVE: "900", options.PRIORITY: "1"}, "900"),
    "with a smaller one": (FIRST, {KEEPALIVE: "900", options.PRIORITY: "-1"}, "600"),
    "the host's": (FIRST, {options.INHERIT: KEEPALIVE, options.PRIORITY: "1"}, "600"),
}


@pytest.fixture
def run_stopped(serve: Callable[[str, WSGIApplication], Path]) -> Callable[[BridgeDriver], Run]:
    """Lend the command for a driver, with a Docker whose one container is on both networks."""
    stopped = [container("stopped", 64 * "5", "exited", back="", front="")]
    docker = serve("docker.sock", docker_app(NETWORKS_LISTED, stopped))
    return lambda driver: runner(serve("pynet.sock", create_app(lambda: driver)), docker)


@pytest.mark.parametrize(("made", "given", "asked"), FRONT.values(), ids=FRONT)
def test_so_it_is_told_where_its_networks_ask_for_different_values(
    kernel: FakeKernel,
    run_stopped: Callable[[BridgeDriver], Run],
    store: Store,
    made: tuple[Network, ...],
    *,
    given: dict[str, str],
    asked: str,
) -> None:
    """As it is decided when it starts, whatever their ids, and over the operator's defaults."""
    kernel.host[KEEPALIVE] = "610"
    driver = BridgeDriver(store, kernel, SysctlPolicy((sysctl(f"{KEEPALIVE}=500"),)))
    for each in made:
        driver.create_network(each)
    if given:
        driver.change_network(OTHER.id, parse_change(given, ()))
    line = lines(run_stopped(driver), "sysctl", "stopped")[KEEPALIVE]
    assert (line["asked"], line["by"], line["actual"]) == (asked, "network", {})


def test_endpoints_stand_in_for_containers_while_docker_is_down(
    run_without_docker: Run, kernel: FakeKernel
) -> None:
    kernel.sandboxes[sandbox_key(1)][KEEPALIVE] = "42"
    line = lines(run_without_docker, "sysctl", endpoint_id(1)[:6])[KEEPALIVE]
    assert (line["by"], line["actual"]) == ("container", {endpoint_id(1)[:12]: "42"})


def test_nothing_to_show_is_said(run: Run) -> None:
    result = run("sysctl", "front")
    assert result.stdout == "nobody asks for a parameter, and no value of the host's gets lost\n"


def test_a_container_called_like_a_command_is_shown_by_the_long_form(run: Run) -> None:
    assert run("sysctl", "show", "web").stdout == run("sysctl", "web").stdout
    assert "no network and no container" in run("sysctl", "show", "audit").stderr


# pynet sysctl audit


def test_an_audit_sorts_and_suggests(run: Run, tuned: FakeKernel) -> None:
    result = run("sysctl", "audit")
    assert result.exit_code == DIFFERS
    text = result.stdout
    assert [KEEPALIVE, "610", "7200", "-"] in cells(text)
    assert [RMEM, "4096 262144 33554432", "4096 131072 6291456", "-"] in cells(text)
    assert "Not per network namespace; the host's hold for everyone: 1\n" in text
    assert "net.core.rmem_max" not in text
    assert ["net.core.rmem_max", "212992", "-"] in cells(run("sysctl", "audit", "--all").stdout)
    commands = [
        shlex.split(line)
        for line in text.replace("\\\n", " ").splitlines()
        if line.startswith("docker network create")
    ]
    assert commands[0][5:] == [
        *("-o", f"{SOMAXCONN}=65535"),
        *("-o", f"{KEEPALIVE}=610", "-o", f"{RMEM}=4096 262144 33554432", "NAME"),
    ]
    assert commands[1][5:] == [
        "-o",
        f"{options.INHERIT}={SOMAXCONN},{KEEPALIVE},{RMEM}",
        "NAME",
    ]


def test_an_audit_of_a_network_counts_what_it_carries_over(run: Run, tuned: FakeKernel) -> None:
    found = json.loads(run("sysctl", "audit", "back", "--json").stdout)
    assert {each["parameter"]: each["container"] for each in found["reset"]} == {
        SOMAXCONN: "4096",
        RMEM: "4096\t131072\t6291456",
    }
    assert {each["parameter"]: each["container"] for each in found["chosen"]} == {KEEPALIVE: "600"}
    said = run("sysctl", "audit", "back").stdout.replace("\\\n", " ")
    (command,) = (line for line in said.splitlines() if line.startswith("pynet set"))
    assert KEEPALIVE not in command
    assert run(*shlex.split(command)[1:]).exit_code == 0
    result = run("sysctl", "audit", "back")
    assert result.exit_code == 0
    words = (
        "Every value of the host's that a namespace can have arrives in a new container of back."
    )
    assert result.stdout.startswith(words)
    assert "Set otherwise by back, as it asks for" in result.stdout
    assert [KEEPALIVE, "610", "600", "-"] in cells(result.stdout)


def test_an_audit_speaks_compose(run: Run, tuned: FakeKernel) -> None:
    result = run("sysctl", "audit", "--compose")
    assert result.stdout.splitlines() == [
        "# docker compose -f compose.yaml -f THIS_FILE up",
        "# NAME is the network's below `networks:` in compose.yaml, or `default`.",
        "networks:",
        "  NAME:",
        "    driver: pynet",
        "    driver_opts:",
        f'      {SOMAXCONN}: "65535"',
        f'      {KEEPALIVE}: "610"',
        f'      {RMEM}: "4096 262144 33554432"',
    ]


def test_an_audit_says_what_cannot_be_carried_over(run: Run, kernel: FakeKernel) -> None:
    kernel.host[KEEPALIVE] = "much"
    result = run("sysctl", "audit")
    assert (
        f"{KEEPALIVE} cannot be carried over: set {KEEPALIVE}=much: out of range" in result.stdout
    )
    assert "docker network create" not in result.stdout


# pynet sysctl watch


def test_watch_tells_what_changes_until_the_end(
    run: Run, with_networks: BridgeDriver, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = with_networks.sysctl_report.read_endpoint
    count = itertools.count()

    def read(identity: EndpointId) -> Mapping[str, str]:
        match next(count):
            case 1:
                kernel.sandboxes[sandbox_key(1)][KEEPALIVE] = "300"
            case 3:
                kernel.die(sandbox_key(1))
        return look(identity)

    monkeypatch.setattr(with_networks.sysctl_report, "read_endpoint", read)
    result = run("sysctl", "watch", "web", "--interval", "0.01")
    assert result.exit_code == 0
    assert re.fullmatch(rf"\d\d:\d\d:\d\d\.\d+  {KEEPALIVE}  600 -> 300\n", result.stdout)
    said = result.stderr.splitlines()
    assert re.fullmatch(r"watching \d+ parameters of web", said[0])
    assert said[1:] == ["web has ended"]


def test_watch_does_not_take_the_drivers_end_for_the_containers(
    with_networks: BridgeDriver, serve: Callable[[str, WSGIApplication], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    driver = serve("pynet.sock", create_app(lambda: with_networks))
    docker = serve("docker.sock", docker_app(NETWORKS_LISTED, CONTAINERS_LISTED))
    look = with_networks.sysctl_report.read_endpoint

    def read(identity: EndpointId) -> Mapping[str, str]:
        driver.unlink()
        return look(identity)

    monkeypatch.setattr(with_networks.sysctl_report, "read_endpoint", read)
    result = runner(driver, docker)("sysctl", "watch", "web", "--interval", "0.01")
    assert result.exit_code == DRIVER_DOWN
    assert "has ended" not in result.stderr
    assert result.stderr.endswith("is it running?\n")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("back", "back is a network; only a container's parameters can be watched"),
        ("stopped", "container stopped (555555555555) does not run"),
        ("nobody", "no network and no container of pynet's is called nobody"),
    ],
)
def test_what_cannot_be_watched_is_said(run: Run, name: str, words: str) -> None:
    result = run("sysctl", "watch", name)
    assert (result.exit_code, result.stderr) == (FAILED, f"Error: {words}\n")


# pynet set


def test_a_change_says_whom_it_reached(run: Run, kernel: FakeKernel) -> None:
    result = run("set", "back", f"{KEEPALIVE}=300", f"{SOMAXCONN}=9")
    assert result.exit_code == 0
    assert result.stdout == (
        "changed, in 1 container that runs\n"
        "connections that exist keep what they were opened with\n"
    )
    assert kernel.sandboxes[sandbox_key(1)][KEEPALIVE] == "300"
    assert lines(run, "sysctl", "back")[KEEPALIVE]["asked"] == "300"
    kernel.sandboxes[sandbox_key(1)][KEEPALIVE] = "42"
    result = run("set", "back", "--unset", SOMAXCONN, f"{KEEPALIVE}=200")
    assert f"web keeps its own {KEEPALIVE}\n" in result.stdout
    answer = json.loads(run("set", "back", f"{KEEPALIVE}=100", "--json").stdout)
    assert answer == {
        "network": "back",
        "changed": 0,
        "awaited": 0,
        "kept": {"web": [KEEPALIVE]},
        "overruled": {},
    }


def test_so_does_a_change_of_who_has_the_say(
    run: Run, with_networks: BridgeDriver, kernel: FakeKernel
) -> None:
    """Between the networks of a container, by which its parameters change."""
    with_networks.change_network(OTHER.id, parse_change({KEEPALIVE: "900"}, ()))
    with_networks.create_endpoint(new_endpoint(2, 2))
    with_networks.join(new_join(2, 2, sandbox_key(1)))
    assert run("set", "front", f"{options.PRIORITY}=1").stdout == (
        "changed, in 1 container that runs\n"
        "connections that exist keep what they were opened with\n"
    )
    assert kernel.sandboxes[sandbox_key(1)][KEEPALIVE] == "900"
    assert run("set", "back", f"{options.PRIORITY}=1", f"{SOMAXCONN}=9").stdout == (
        "changed, in 1 container that runs\n"
        "connections that exist keep what they were opened with\n"
    )
    assert run("set", "back", "--unset", options.PRIORITY).stdout == (
        "changed, in 1 container that runs\n"
        f"web keeps {KEEPALIVE}=900 of front\n"
        "connections that exist keep what they were opened with\n"
    )


def test_a_change_of_other_options_has_no_more_to_say(
    run: Run, with_networks: BridgeDriver
) -> None:
    assert run("set", DUAL.id[:12], f"{options.MTU}=1400").stdout == "changed\n"
    assert json.loads(run("inspect", "back").stdout)["options"]["mtu"] == 1400


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("set", "back"), FAILED, "nothing to set and nothing to unset"),
        (("set", "back", KEEPALIVE), MISUSED, f"'{KEEPALIVE}' is not KEY=VALUE"),
        (("set", "back", "=1"), MISUSED, "'=1' is not KEY=VALUE"),
        (("set", "back", f"{KEEPALIVE}=1", f"{KEEPALIVE}=2"), MISUSED, "is there twice"),
        (("set", "back", f"{KEEPALIVE}=much"), FAILED, "out of range"),
        (("set", "back", "pynet.attach=direct"), FAILED, "while the network exists"),
        (("set", "back", "--unset", SOMAXCONN), FAILED, "the network does not set it"),
        (("set", "web", f"{KEEPALIVE}=1"), FAILED, "no network of pynet's is called web"),
        (("set",), MISUSED, "Missing argument 'NETWORK'"),
        (("sysctl", "nobody"), FAILED, "no network and no container of pynet's is called nobody"),
        (("sysctl", "audit", "web"), FAILED, "no network of pynet's is called web"),
        (("sysctl", "watch"), MISUSED, "Missing argument 'CONTAINER'"),
        (("sysctl", "watch", "web", "--interval", "x"), MISUSED, "'x' is not a valid float"),
    ],
)
def test_failures_are_one_line(run: Run, words: tuple[str, ...], code: int, said: str) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
    assert (result.stderr[:7], result.stderr.count("\n")) == ("Error: ", 1)


def test_a_sandbox_that_ends_while_it_is_read_has_ended(
    with_networks: BridgeDriver, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there a moment before."""
    read = kernel.read_sandboxes

    def end(*args: Any) -> Any:
        kernel.die(sandbox_key(1))
        return read(*args)

    monkeypatch.setattr(kernel, "read_sandboxes", end)
    client = Client(create_app(lambda: with_networks))
    answer = client.get(f"/endpoints/{endpoint_id(1)}/sysctls/actual")
    assert answer.status_code == 400
    assert answer.json == {"Err": "endpoint e1e1e1e1e1e1 has left its sandbox"}


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"set": {"x": 1}}', b'{"sett": {}}', b"\xff"]
)
def test_a_driver_is_told_nonsense_in_vain(with_networks: BridgeDriver, body: bytes) -> None:
    client = Client(create_app(lambda: with_networks))
    answer = client.post(f"/networks/{DUAL.id}/options", data=body)
    assert answer.status_code == 400
    assert answer.json is not None
    assert "change a network" in answer.json["Err"]


@pytest.mark.parametrize(
    "words",
    [
        ("set", "back", "x=1"),
        ("sysctl", "back"),
        ("sysctl", "audit"),
        ("sysctl", "watch", "web"),
    ],
)
def test_a_driver_that_is_down_is_said(tmp_path: Path, words: tuple[str, ...]) -> None:
    nowhere = tmp_path / "none.sock"
    result = runner(nowhere, nowhere)(*words)
    assert result.exit_code == DRIVER_DOWN
    assert result.stderr.endswith("is it running?\n")


# On a terminal, and through a pipe.


@pytest.fixture
def places(
    with_networks: BridgeDriver, serve: Callable[[str, WSGIApplication], Path]
) -> dict[str, str]:
    """Serve a driver and a Docker to processes of their own; lend where."""
    docker = docker_app(NETWORKS_LISTED, CONTAINERS_LISTED, {})
    driver = serve("pynet.sock", create_app(lambda: with_networks))
    return environment_of(driver, serve("docker.sock", docker))


EVERY_COMMAND: tuple[tuple[tuple[str, ...], int], ...] = (
    (("ls",), 0),
    (("ports",), 0),
    (("inspect", "back"), 0),
    (("version",), 0),
    (("completion", "bash"), 0),
    (("check",), 0),
    (("gc",), 0),
    (("sysctl", "back"), DIFFERS),
    (("sysctl", "web"), DIFFERS),
    (("sysctl", "audit"), DIFFERS),
    (("set", "back", f"{options.MTU}=1400"), 0),
)
IN_COLOUR = {("sysctl", "back"), ("sysctl", "web")}


@pytest.mark.parametrize(("words", "code"), EVERY_COMMAND, ids=str)
def test_a_terminal_shows_all_that_a_pipe_does(
    places: dict[str, str], run: Run, tuned: FakeKernel, words: tuple[str, ...], code: int
) -> None:
    tuned.sandboxes[sandbox_key(1)][KEEPALIVE] = "7200"
    piped = run(*words)
    assert (piped.exit_code, piped.stderr) == (code, "")
    assert "\x1b" not in piped.stdout
    shown = on_terminal(*words, env=places)
    assert shown.code == code
    assert ("\x1b[33m" in shown.text) == (words in IN_COLOUR)
    plain = ESCAPE.sub("", shown.text)
    # What a narrow column breaks is in the same order still, column by column.
    assert sorted("".join(plain.split())) == sorted("".join(piped.stdout.split()))
    if words[0] in {"ls", "ports", "check"} or words[:2] in {("sysctl", "back"), ("sysctl", "web")}:
        assert max(map(len, plain.splitlines())) <= COLUMNS


def test_no_colour_is_shown_to_whom_it_is_no_help(
    places: dict[str, str], tuned: FakeKernel
) -> None:
    shown = on_terminal("sysctl", "back", env={**places, "NO_COLOR": "1"})
    assert "\x1b[33m" not in shown.text


def test_parameters_are_completed(run: Run) -> None:
    state = {
        "_PYNET_COMPLETE": "bash_complete",
        "COMP_WORDS": "pynet set back net.ipv4.tcp_keepalive_t",
        "COMP_CWORD": "3",
    }
    assert run(env=state).stdout == f"plain,{KEEPALIVE}=\n"
