"""The `pynet` command against a driver and a Docker on real sockets, and against neither."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from flask import Flask, request

from driver.model import Count, Drops
from plugin.api import create_app
from plugin.cli import COMMANDS, DIFFERS, DRIVER_DOWN, FAILED, MISUSED, main
from plugin.cli.errors import AskError
from plugin.cli.names import AMBIGUOUS, Inventory
from tests.samples import KEEPALIVE, endpoint_id, network, new_endpoint, new_join, sandbox_key
from tests.unit.command import DUAL, OTHER, WEB, container, docker_app, runner, table
from tests.unit.test_fault_matrix import joins, on_small_bridges

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from wsgiref.types import WSGIApplication

    from flask import Response

    from driver.driver import BridgeDriver
    from tests.fakes import FakeKernel
    from tests.unit.command import Run


def test_networks_are_listed(run: Run) -> None:
    head, *rows = table(run("ls"))
    assert head == ["NETWORK", "ID", "BRIDGE", "POOLS", "ENDPOINTS", "SYSCTLS"]
    assert rows == [
        ["back", DUAL.id[:12], DUAL.bridge_name, "10.1.0.0/24", "fd00:1::/64", "1", "1"],
        ["front", OTHER.id[:12], OTHER.bridge_name, "10.2.0.0/24", "0", "0"],
    ]


def test_ports_are_listed(run: Run) -> None:
    head, *rows = table(run("ports"))
    assert head == ["NETWORK", "CONTAINER", "HOST", "CONTAINER", "PORT", "PROTOCOL"]
    assert sorted(rows) == [
        ["back", "web", "-", "[fd00:1::2]:53", "udp"],
        ["back", "web", "-", "[fd00:1::2]:80", "tcp"],
        ["back", "web", "0.0.0.0:8080", "10.1.0.2:80", "tcp"],
        ["back", "web", "127.0.0.1:53", "10.1.0.2:53", "udp"],
    ]


def test_ports_that_an_internal_network_does_not_publish_are_told_of(
    run: Run, with_networks: BridgeDriver
) -> None:
    with_networks.create_network(network(3, internal=True))
    for number, sandbox in ((3, 1), (4, 2)):
        with_networks.create_endpoint(new_endpoint(number, 3))
        with_networks.join(new_join(number, 3, sandbox_key(sandbox), has_ports=True))
    told = run("ports").stderr.splitlines()
    assert len(told) == 1, "the first one's container has published them on another network"
    assert told[0].startswith(f"the ports of {endpoint_id(4)[:12]} are not published: network")
    assert told[0].endswith("is internal")


def test_of_others_that_publish_none_nothing_is_told(run: Run, with_networks: BridgeDriver) -> None:
    """Their engine may publish them by another network, or has yet to ask for it."""
    with_networks.create_endpoint(new_endpoint(3, 2))
    with_networks.join(new_join(3, 2, sandbox_key(3), has_ports=True))
    assert run("ports").stderr == ""


def test_lists_are_had_as_json(run: Run) -> None:
    networks = json.loads(run("ls", "--json").stdout)
    assert [each["name"] for each in networks] == ["back", "front"]
    assert networks[0]["endpoints"][0]["container"] == "web"
    listed = json.loads(run("ports", "--json").stdout)
    assert {
        "network": "back",
        "container": "web",
        "protocol": "tcp",
        "host_ip": "0.0.0.0",
        "host_port": 8080,
        "container_ip": "10.1.0.2",
        "container_port": 80,
    } in listed


@pytest.mark.parametrize("name", ["back", DUAL.id, DUAL.id[:4]])
def test_a_network_is_inspected(run: Run, name: str) -> None:
    shown = json.loads(run("inspect", name).stdout)
    assert (shown["name"], shown["id"], shown["bridge"]) == ("back", DUAL.id, DUAL.bridge_name)
    assert shown["sysctls"] == {KEEPALIVE: "600"}
    assert shown["options"] == {
        "icc": False,
        "trusted_host_interfaces": ["eth1"],
        "gateway_mode_ipv6": "routed",
    }
    assert shown["pools"][1] == {"subnet": "fd00:1::/64", "gateway": "fd00:1::1"}


def test_what_was_dropped_is_told_by_container_and_by_network(run: Run, kernel: FakeKernel) -> None:
    assert json.loads(run("inspect", "back").stdout)["dropped"] == {}
    kernel.dropped = Drops(
        {"source": 9},
        {
            "pnhe1e1e1e1e1e1": {"source": 3, "router": 1},
            DUAL.bridge_name: {"source": 2},
            "pnhsomebody": {"source": 4},
        },
    )
    (shown,) = json.loads(run("inspect", "web").stdout)
    assert (shown["guard"], shown["dropped"]) == ("address", {"source": 3, "router": 1})
    assert json.loads(run("inspect", "back").stdout)["dropped"] == {"source": 5, "router": 1}


def test_so_it_is_of_all_bridges_that_a_network_has(
    run: Run, with_networks: BridgeDriver, kernel: FakeKernel
) -> None:
    kernel.add_sandbox(sandbox_key(2))
    with_networks.create_endpoint(new_endpoint(2))
    on_small_bridges(joins(2, 1, 2))(with_networks)
    kernel.dropped = Drops({}, {name: {"source": 1} for name in kernel.links})
    shown = json.loads(run("inspect", "back").stdout)
    assert shown["further_bridges"] == [DUAL.bridge_at(1)]
    assert shown["dropped"] == {"source": 4}, "two bridges and two containers, and no trunk"


@pytest.mark.parametrize("name", ["web", WEB, "3b", endpoint_id(1), endpoint_id(1)[:12]])
def test_a_container_is_inspected(run: Run, name: str) -> None:
    (shown,) = json.loads(run("inspect", name).stdout)
    assert (shown["container"], shown["network"]) == ("web", "back")
    assert (shown["host_end"], shown["sandbox_end"]) == ("pnhe1e1e1e1e1e1", "pnce1e1e1e1e1e1")
    assert (shown["ipv4"], shown["ipv6"]) == ("10.1.0.2/24", "fd00:1::2/64")
    assert len(shown["ports"]) == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "no network and no container of pynet's is called nothing"),
        ("elsewhere", "no network and no container of pynet's is called elsewhere"),
        ("0", "0 is ambiguous: network back (010101010101), network front (020202020202)"),
    ],
)
def test_what_cannot_be_told_apart_or_found_is_said(run: Run, name: str, words: str) -> None:
    result = run("inspect", name)
    assert result.exit_code == FAILED
    assert (result.stdout, result.stderr) == ("", f"Error: {words}\n")


@pytest.mark.parametrize("count", [2, AMBIGUOUS, AMBIGUOUS + 1, 99])
def test_of_many_meanings_some_are_named(count: int) -> None:
    networks = ({"id": f"0{number:02}", "endpoints": []} for number in range(count))
    inventory = Inventory(tuple(networks), {}, (), None)
    with pytest.raises(AskError) as error:
        inventory.find_network("0")
    assert str(error.value).count("network ") == min(count, AMBIGUOUS)
    assert str(error.value).endswith(", …") == (count > AMBIGUOUS)


def test_a_container_that_does_not_run_has_no_endpoints(run: Run) -> None:
    assert json.loads(run("inspect", "stopped").stdout) == []


def test_ids_stand_in_for_names_while_docker_is_down(run_without_docker: Run) -> None:
    result = run_without_docker("ls")
    assert [row[0] for row in table(result)[1:]] == [DUAL.id[:12], OTHER.id[:12]]
    assert "ids instead of names" in result.stderr
    assert json.loads(run_without_docker("inspect", DUAL.id[:12]).stdout)["name"] == DUAL.id[:12]
    assert len(json.loads(run_without_docker("ports", "--json").stdout)) == 4


def test_a_docker_that_answers_nonsense_is_as_good_as_down(
    with_networks: BridgeDriver, serve: Callable[[str, WSGIApplication], Path]
) -> None:
    broken = serve("docker.sock", docker_app(("out of order", 500), []))
    run = runner(serve("pynet.sock", create_app(lambda: with_networks)), broken)
    assert "ids instead of names" in run("ls").stderr


def test_a_name_that_a_driver_has_is_not_to_be_taken(run: Run, tmp_path: Path) -> None:
    refused = run("serve", "--check")
    assert refused.exit_code == FAILED
    assert "another driver is answering on it" in refused.stderr
    free = runner(tmp_path / "none.sock", tmp_path)("serve", "--check")
    assert (free.exit_code, free.output) == (0, "")


@pytest.mark.parametrize("words", [("ls",), ("ports",), ("inspect", "x")])
def test_a_driver_that_is_down_is_said(tmp_path: Path, words: tuple[str, ...]) -> None:
    socket = tmp_path / "none.sock"
    result = runner(socket, socket)(*words)
    assert result.exit_code == DRIVER_DOWN
    said = f"ask the driver on {socket}: No such file or directory; is it running?"
    assert result.stderr == f"Error: {said}\n"


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (({"Err": "405 Method Not Allowed"}, 405), FAILED, "405 Method Not Allowed"),
        ("<html>", DRIVER_DOWN, "that is no pynet"),
        ([], DRIVER_DOWN, "that is no pynet"),
    ],
)
def test_somebody_else_on_the_socket_is_told(
    serve: Callable[[str, WSGIApplication], Path], answer: Any, code: int, words: str
) -> None:
    app = Flask("somebody")
    app.add_url_rule("/networks", "networks", lambda: answer)
    socket = serve("pynet.sock", app)
    result = runner(socket, socket)("ls")
    assert result.exit_code == code
    assert words in result.stderr


def test_a_wrong_setting_is_said() -> None:
    result = CliRunner().invoke(main, ["ls"], env={"PYNET_SOCKET": "relative"})
    assert result.exit_code == 1
    assert "expected an absolute path" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("lsx",), "No such command 'lsx'; see pynet --help"),
        (("ls", "--jsn"), "No such option '--jsn'. Did you mean '--json'?; see pynet ls --help"),
        (("inspect",), "Missing argument 'NETWORK|CONTAINER'; see pynet inspect --help"),
        (("ls", "more"), "Got unexpected extra argument (more); see pynet ls --help"),
    ],
)
def test_a_wrong_command_line_is_one_line(words: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == MISUSED
    assert result.stderr == f"Error: {said}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    assert f"Usage: pynet {name}" in result.stdout
    assert "Examples:" in result.stdout
    assert f"\n    pynet {name}" in result.stdout


def test_the_exit_codes_are_told() -> None:
    text = CliRunner().invoke(main, ["--help"]).stdout
    assert CliRunner().invoke(main, []).stderr == text
    assert [f"  {code}  " in text for code in (0, FAILED, MISUSED, DRIVER_DOWN)] == 4 * [True]


def test_a_defect_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("plugin.cli.networks.print_table")
    result = run("ls")
    assert result.exit_code == FAILED
    assert result.stderr.startswith("Error: this is a defect of pynet: NameError")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert "_PYNET_COMPLETE" in result.stdout
    assert "complet" in result.stdout


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("pynet ins", "inspect"),
        ("pynet inspect b", "back"),
        ("pynet inspect w", "web"),
        ("pynet inspect st", "stopped"),
        ("pynet inspect elsew", ""),
        ("pynet ls --j", "--json"),
    ],
)
def test_words_and_names_are_completed(run: Run, typed: str, expected: str) -> None:
    words = typed.split()
    state = {
        "_PYNET_COMPLETE": "bash_complete",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words) - 1),
    }
    result = run(env=state)
    assert [line.partition(",")[2] for line in result.stdout.split()] == expected.split()


def test_check_says_that_nothing_differs(run: Run) -> None:
    result = run("check")
    assert (result.exit_code, result.stdout) == (0, "nothing differs\n")
    assert json.loads(run("check", "--json").stdout) == {"differences": [], "warnings": []}


def test_check_shows_the_rules_with_what_they_have_counted(run: Run, kernel: FakeKernel) -> None:
    kernel.rule_counts["bridge", "drop_source"] = (Count(3, 180),)
    rules = json.loads(run("check", "--rules", "--json").stdout)["rules"]
    (dropping,) = (each for each in rules if each["chain"] == "drop_source" and each["packets"])
    assert (dropping["table"], dropping["bytes"]) == ("bridge pynet", 180)
    shown = run("check", "--rules")
    assert shown.exit_code == 0
    (line,) = (line for line in shown.stdout.splitlines() if "  180  " in line)
    assert line.split()[:5] == ["bridge", "pynet", "drop_source", "3", "180"]
    assert line.endswith(dropping["rule"])
    assert len(shown.stdout.splitlines()) == len(rules) + 4, "a line a rule"


def test_check_prints_what_differs_and_repairs_it(run: Run, kernel: FakeKernel) -> None:
    kernel.links[DUAL.bridge_name].up = False
    result = run("check")
    assert result.exit_code == DIFFERS
    assert result.stdout.splitlines() == [
        "WHAT    WHICH            DIFFERENCE",
        "bridge  pn-010101010101  is down (network 010101010101)",
    ]
    (difference,) = json.loads(run("check", "--json").stdout)["differences"]
    assert (difference["kind"], difference["subject"]) == ("bridge", DUAL.bridge_name)
    assert run("check", "--repair").stdout == "nothing differs\n"
    assert kernel.links[DUAL.bridge_name].up


def garbage(run: Run, *words: str) -> Any:
    return json.loads(run("gc", "--json", *words).stdout)


def test_gc_finds_nothing_where_both_know_the_same(run: Run) -> None:
    result = run("gc")
    assert (result.exit_code, result.stdout) == (0, "nothing is left over\n")


def test_gc_leaves_what_is_just_being_started(
    with_networks: BridgeDriver, serve: Callable[[str, WSGIApplication], Path]
) -> None:
    known = [{"Id": each.id, "Name": "x", "Driver": "pynet"} for each in (DUAL, OTHER)]
    docker = docker_app(known, [], {"ep-1": {"EndpointID": endpoint_id(1)}})
    app = create_app(lambda: with_networks)
    run = runner(serve("pynet.sock", app), serve("docker.sock", docker))
    assert run("gc").stdout == "nothing is left over\n"


@pytest.mark.parametrize("state", ["created", "restarting", "exited", "paused"])
def test_gc_leaves_what_a_container_holds_that_does_not_run(
    with_networks: BridgeDriver, serve: Callable[[str, WSGIApplication], Path], state: str
) -> None:
    """Such as one that Docker starts again and again, or has restored and not started yet."""
    known = [{"Id": each.id, "Name": "x", "Driver": "pynet"} for each in (DUAL, OTHER)]
    docker = docker_app(known, [container("web", WEB, state, back=endpoint_id(1))])
    app = create_app(lambda: with_networks)
    run = runner(serve("pynet.sock", app), serve("docker.sock", docker))
    assert run("gc", "--yes").stdout == "nothing is left over\n"
    assert {each.id for _, ends in with_networks.describe() for each in ends} == {endpoint_id(1)}


def test_gc_goes_on_when_a_network_is_removed_meanwhile(
    with_networks: BridgeDriver, serve: Callable[[str, WSGIApplication], Path]
) -> None:
    known = [{"Id": each.id, "Name": "x", "Driver": "pynet"} for each in (DUAL, OTHER)]
    docker = docker_app(known, [], gone={DUAL.id})
    app = create_app(lambda: with_networks)
    run = runner(serve("pynet.sock", app), serve("docker.sock", docker))
    assert [each["id"] for each in garbage(run)["garbage"]] == [endpoint_id(1)]


def test_gc_shows_what_docker_has_forgotten_and_removes_it_when_told(
    with_networks: BridgeDriver, serve: Callable[[str, WSGIApplication], Path]
) -> None:
    lost = {"Id": 64 * "9", "Name": "lost", "Driver": "org/pynet:1"}
    known = [{"Id": OTHER.id, "Name": "front", "Driver": "pynet"}, lost]
    app = create_app(lambda: with_networks)
    run = runner(serve("pynet.sock", app), serve("docker.sock", docker_app(known, [])))
    shown = run("gc", "--dry-run")
    assert shown.exit_code == DIFFERS
    assert [line.split()[:2] for line in shown.stdout.splitlines()[1:]] == [
        ["endpoint", endpoint_id(1)[:12]],
        ["network", DUAL.id[:12]],
        ["network", 12 * "9"],
    ]
    assert "10.1.0.2/24, fd00:1::2/64, port 53/udp, port 8080/tcp" in shown.stdout
    assert "docker network rm 999999999999" in shown.stdout
    assert [each["kind"] for each in garbage(run)["garbage"]] == ["endpoint", "network"]
    assert len(with_networks.describe()) == 2, "nothing was removed yet"
    done = garbage(run, "--yes")
    assert [len(done["removed"]), len(done["garbage"])] == [2, 0]
    assert [network.id for network, _ in with_networks.describe()] == [OTHER.id]


def test_gc_asks_again_before_it_removes_what_docker_may_just_have_made(
    with_networks: BridgeDriver, serve: Callable[[str, WSGIApplication], Path]
) -> None:
    known = [{"Id": each.id, "Name": "x", "Driver": "pynet"} for each in (DUAL, OTHER)]
    listed: dict[str, Any] = {}
    docker = docker_app(known, [], listed)
    lists = 0

    @docker.before_request
    def finish_making() -> None:
        nonlocal lists
        lists += request.path.endswith("/networks")
        if lists > 1:
            listed["ep-1"] = {"EndpointID": endpoint_id(1)}

    app = create_app(lambda: with_networks)
    run = runner(serve("pynet.sock", app), serve("docker.sock", docker))
    assert garbage(run, "--yes") == {"removed": [], "garbage": [], "unknown_to_the_driver": []}
    assert lists > 1
    assert {each.id for _, ends in with_networks.describe() for each in ends} == {endpoint_id(1)}


def test_gc_takes_nothing_for_left_over_that_is_made_while_it_asks(
    with_networks: BridgeDriver, serve: Callable[[str, WSGIApplication], Path]
) -> None:
    """A network before Docker tells of its own, an endpoint after it has told of everything."""
    known = [{"Id": each.id, "Name": "x", "Driver": "pynet"} for each in (DUAL, OTHER)]
    docker = docker_app(known, [container("web", WEB, back=endpoint_id(1))])
    new = network(3)

    @docker.before_request
    def make_network() -> None:
        if request.path.endswith("/networks") and len(known) == 2:
            with_networks.create_network(new)
            known.append({"Id": new.id, "Name": "new", "Driver": "pynet"})

    @docker.after_request
    def make_endpoint(answer: Response) -> Response:
        if request.path.endswith("/containers/json"):
            with_networks.create_endpoint(new_endpoint(2, 2))
        return answer

    app = create_app(lambda: with_networks)
    run = runner(serve("pynet.sock", app), serve("docker.sock", docker))
    assert garbage(run) == {"removed": [], "garbage": [], "unknown_to_the_driver": []}
    assert sum(len(ends) for _, ends in with_networks.describe()) == 2
    assert len(with_networks.describe()) == 3


def test_gc_does_nothing_while_docker_is_down(
    run_without_docker: Run, with_networks: BridgeDriver
) -> None:
    result = run_without_docker("gc", "--yes")
    assert result.exit_code == FAILED
    assert "ask Docker, without which nothing can be told" in result.stderr
    assert len(with_networks.describe()) == 2


def test_gc_cannot_both_remove_and_not(run: Run) -> None:
    assert run("gc", "--yes", "--dry-run").exit_code == MISUSED
