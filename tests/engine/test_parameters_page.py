"""docs/kernel-parameters.md shows what a reader would see: its commands are run, in their order."""

from __future__ import annotations

import os
import re
import shlex
import sys
from typing import TYPE_CHECKING

from tests.engine.driver import REPOSITORY
from tests.engine.engine import DOCKER_SOCKET
from tests.engine.steps import host_value, proc_path

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.engine import Engine

PAGE = REPOSITORY / "docs/kernel-parameters.md"
COMMAND = "PYNET_DOCS=write python -m pytest tests/engine/test_parameters_page.py"
CONSOLE = re.compile(r"(?<=^```console\n)(.*?)(?=^```$)", re.MULTILINE | re.DOTALL)
PROMPT = "# "
TUNED = ("net.ipv4.tcp_keepalive_time", "net.core.somaxconn")


def put_commands(engine: Engine, folder: Path) -> None:
    """Put the reader's commands into a folder: those of the engine's host, not this machine's."""
    pynet = (sys.executable, "-m", "plugin.cli")
    words = {"docker": engine.chroot("docker"), "pynet": pynet}
    for name, argv in words.items():
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {shlex.join(argv)} "$@"\n')
        path.chmod(0o755)


def run(engine: Engine, folder: Path, command: str) -> str:
    """Return what a command of the page writes where the reader would type it."""
    env = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "DOCKER_HOST": f"unix://{DOCKER_SOCKET}",
    }
    return engine.run("sh", "-c", command, check=False, env=env).stdout


def rendered(engine: Engine, folder: Path, block: str) -> str:
    """Return a block of the page with what its commands write now."""
    commands = [line for line in block.splitlines() if line.startswith(PROMPT)]
    return "".join(
        f"{command}\n{run(engine, folder, command.removeprefix(PROMPT))}" for command in commands
    )


def test_the_page_is_what_a_reader_sees(engine28: Engine, tmp_path: Path) -> None:
    engine = engine28
    put_commands(engine, tmp_path)
    before = {key: host_value(engine, key) for key in TUNED}
    try:
        text = PAGE.read_text()
        page = CONSOLE.sub(lambda block: rendered(engine, tmp_path, block[1]), text)
    finally:
        for key, value in before.items():
            engine.run("tee", proc_path(key), stdin=value)
    if os.environ.get("PYNET_DOCS") == "write":
        PAGE.write_text(page)
    assert page == PAGE.read_text(), f"as root: {COMMAND}"
