"""Whatever others have called things: `pynet` prints its own lines, and no escape sequence."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask

from plugin.api import create_app
from plugin.cli import DIFFERS, FAILED
from tests.samples import KEEPALIVE, SOMAXCONN, endpoint_id, sandbox_key
from tests.unit.command import (
    DUAL,
    OTHER,
    WEB,
    container,
    docker_app,
    environment_of,
    on_terminal,
    runner,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from wsgiref.types import WSGIApplication

    from driver.driver import BridgeDriver
    from driver.model import EndpointId
    from tests.fakes import FakeKernel

    Places = tuple[Path, Path]
    Build = Callable[[str, str], Places]

PLAIN = "plain"
HOSTILE = "w\n\x1b[31m\x1b]0;x\x07\r\t\x7f\x9b\u202e\u2066\u200b\u2028[red]x[/red] :bug:"
SHOWN = r"w\n\x1b[31m\x1b]0;x\x07\r\t\x7f\x9b\u202e\u2066\u200b\u2028[red]x[/red] :bug:"
# Of a parameter's value, what is blank is shown as a space: they are lists.
PLAIN_VALUE = "5000 x"
VALUE = "5000 \x1b[2J\x9b\u202e[bold]v[/bold]"
VALUE_SHOWN = r"5000 \x1b[2J\x9b\u202e[bold]v[/bold]"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
COLOURFUL = {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "CLICOLOR_FORCE": "1", "COLUMNS": "40"}

COMMANDS = [
    ("ls",),
    ("ports",),
    ("check",),
    ("gc",),
    ("version",),
    ("sysctl", "show", DUAL.id),
    ("sysctl", "show", WEB),
    ("sysctl", "show", 64 * "5"),
    ("sysctl", "audit", "--all"),
    ("sysctl", "audit", "--compose"),
    ("sysctl", "audit", DUAL.id),
    ("sysctl", "watch", WEB, "--interval", "0.01"),
    ("set", DUAL.id, f"{KEEPALIVE}=300"),
    ("inspect", "0"),
    ("sysctl", "watch", 64 * "5"),
]


@pytest.fixture
def build(
    with_networks: BridgeDriver,
    kernel: FakeKernel,
    serve: Callable[[str, WSGIApplication], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Build:
    """Lend a function that serves a driver and a Docker in which things are called so."""
    number = itertools.count()
    look, own = with_networks.sysctl_report.read_endpoint, set(kernel.links)

    def build(name: str, value: str) -> Places:
        networks = [
            {"Id": DUAL.id, "Name": name, "Driver": "pynet"},
            {"Id": OTHER.id, "Name": f"{name}2", "Driver": "pynet"},
            {"Id": 64 * "9", "Name": name, "Driver": f"{name}/pynet:1"},
        ]
        containers = [container(name, WEB, back=endpoint_id(1)), container(name, 64 * "5")]
        places = containers[1]["NetworkSettings"]["Networks"]
        places[name] = {"EndpointID": "", "NetworkID": OTHER.id}
        kernel.host |= {KEEPALIVE: value, SOMAXCONN: value, "net.core.rmem_max": value}
        kernel.sandboxes[sandbox_key(1)] |= {KEEPALIVE: value, SOMAXCONN: value}
        kernel.links = {each: link for each, link in kernel.links.items() if each in own}
        kernel.links["pnhe1e1e1e1e1e1"].bridge = name
        kernel.add_foreign(name, "veth", alias=f"pynet endpoint {name}")
        monkeypatch.setattr("plugin.api.admin.find_revision", lambda: name)
        looks = itertools.count()

        def read(identity: EndpointId) -> Mapping[str, str]:
            turn = next(looks)
            if turn == 1:
                kernel.sandboxes[sandbox_key(1)][KEEPALIVE] = f"{value}{value}"
            if turn == 2:
                kernel.sandboxes.pop(sandbox_key(1))
            return look(identity)

        monkeypatch.setattr(with_networks.sysctl_report, "read_endpoint", read)
        docker = docker_app(networks, containers, {}, sysctls={SOMAXCONN: f"{value}1"})
        app = create_app(lambda: with_networks)
        turn = next(number)
        return serve(f"pynet{turn}.sock", app), serve(f"docker{turn}.sock", docker)

    return build


def printed(places: Places, *words: str) -> tuple[int, list[str]]:
    """Return the exit code and the lines of both outputs, blanks and moments aside."""
    result = runner(*places)(*words)
    lines = [*result.stdout.split("\n"), *result.stderr.split("\n")]
    moment = re.compile(r"^\d\d:\d\d:\d\d\.\d+ ")
    return result.exit_code, [re.sub(" +", " ", moment.sub("", line)) for line in lines]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_names_change_nothing_but_the_names(
    build: Build, kernel: FakeKernel, words: tuple[str, ...]
) -> None:
    before = kernel.state()
    code, plain = printed(build(PLAIN, PLAIN_VALUE), *words)
    kernel.links, kernel.sandboxes = before["links"], before["sandboxes"]
    again = [word.replace("=300", "=400") for word in words]  # or nothing would change
    hostile_code, hostile = printed(build(HOSTILE, VALUE), *again)
    assert hostile_code == code
    assert all(line.isprintable() for line in hostile), hostile
    assert [
        line.replace(SHOWN, PLAIN).replace(VALUE_SHOWN, PLAIN_VALUE) for line in hostile
    ] == plain
    assert SHOWN in "\n".join(hostile) or VALUE_SHOWN in "\n".join(hostile)


@pytest.mark.parametrize(
    "words",
    [
        ("ls", "--json"),
        ("ports", "--json"),
        ("inspect", DUAL.id),
        ("inspect", WEB),
        ("check", "--json"),
        ("gc", "--json"),
        ("version", "--json"),
        ("sysctl", "show", DUAL.id, "--json"),
        ("sysctl", "audit", "--json"),
        ("sysctl", "watch", WEB, "--interval", "0.01", "--json"),
        ("set", DUAL.id, f"{KEEPALIVE}=300", "--json"),
    ],
    ids=" ".join,
)
def test_programs_get_the_names_as_they_are(build: Build, words: tuple[str, ...]) -> None:
    text = runner(*build(HOSTILE, VALUE))(*words).stdout
    assert text.isascii()
    assert text.replace("\n", "").isprintable()
    assert {HOSTILE, VALUE} & set(_strings(json.loads(text)))


def _strings(value: Any) -> Iterator[str]:
    """Yield every string of what JSON says, and every part of it between blanks."""
    if isinstance(value, str):
        yield value
        yield from (name for name in (HOSTILE, VALUE) if name in value)
    elif isinstance(value, dict):
        yield from itertools.chain(*map(_strings, [*value, *value.values()]))
    elif isinstance(value, list):
        yield from itertools.chain(*map(_strings, value))


def test_what_the_driver_and_docker_say_of_a_failure_is_escaped(
    serve: Callable[[str, WSGIApplication], Path], build: Build
) -> None:
    app = Flask("driver")
    app.add_url_rule("/networks", "networks", lambda: ({"Err": HOSTILE}, 400))
    refused = runner(serve("refusing.sock", app), serve("d.sock", docker_app([], [])))("ls")
    assert (refused.exit_code, refused.stderr) == (FAILED, f"Error: {SHOWN}\n")
    driver, _ = build(PLAIN, PLAIN_VALUE)
    broken = docker_app(({"message": HOSTILE}, 500), [])
    listed = runner(driver, serve("broken.sock", broken))("ls")
    assert SHOWN in listed.stderr
    assert listed.stderr.count("\n") == 1
    assert listed.stderr.strip().isprintable()


def test_only_what_a_shell_takes_for_one_word_is_completed(build: Build) -> None:
    places = build("$(reboot)", PLAIN_VALUE)
    state = {"_PYNET_COMPLETE": "bash_complete", "COMP_WORDS": "pynet inspect ", "COMP_CWORD": "2"}
    assert runner(*places)(env=state).stdout.split() == []
    assert runner(*build("harmless", PLAIN_VALUE))(env=state).stdout.split() == [
        "plain,harmless",
        "plain,harmless2",
    ]


TABLES = [("ls",), ("ports",), ("check",), ("gc",), ("sysctl", DUAL.id), ("sysctl", "audit")]


@pytest.mark.parametrize("words", TABLES, ids=" ".join)
def test_a_terminal_gets_no_escape_sequence_but_ours(build: Build, words: tuple[str, ...]) -> None:
    shown = on_terminal(*words, env=environment_of(*build(HOSTILE, VALUE)))
    assert shown.code in {0, DIFFERS}
    assert COLOUR.search(shown.text), "there is a head, which is bold"
    assert COLOUR.sub("", shown.text).replace("\n", "").isprintable()
    plain = on_terminal(*words, env=environment_of(*build(HOSTILE, VALUE)) | {"NO_COLOR": "1"})
    assert "\x1b" not in plain.text
    assert (
        "\x1b"
        not in on_terminal(
            *words, env=environment_of(*build(HOSTILE, VALUE)) | {"TERM": "dumb"}
        ).text
    )


@pytest.mark.parametrize("words", TABLES, ids=" ".join)
def test_a_pipe_gets_whole_lines_and_no_colour(build: Build, words: tuple[str, ...]) -> None:
    long = 12_000 * "x"
    places = environment_of(*build(long, PLAIN_VALUE))
    done = subprocess.run(
        [sys.executable, "-m", "plugin.cli", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **COLOURFUL, "TERM": "xterm-256color", **places},
    )
    assert done.returncode in {0, DIFFERS}, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert long in done.stdout or words[0] == "sysctl"
    rows = done.stdout.splitlines()
    assert len(rows) == runner(*build(PLAIN, PLAIN_VALUE))(*words).stdout.count("\n")
