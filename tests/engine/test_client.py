"""The `pynet` command alone, as pip installs it, beside a driver that is the managed plugin."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.engine.driver import REPOSITORY
from tests.engine.site import HOST, Site
from tests.engine.steps import pynet_command

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.engine import Engine

PORT, PUBLISHED = 80, 8080


def test_it_works_from_what_pip_installs(managed_engine: Engine, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "installed"
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, source], check=True)
    # What it depends on is here already.
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", target, source], check=True, cwd=tmp_path)
    env = {**pynet_command()[1], "PYTHONPATH": str(target)}

    def run(*words: str) -> str:
        command = ("env", f"--chdir={tmp_path}", sys.executable, "-P", "-m", "plugin.cli")
        return managed_engine.run(*command, *words, env=env).stdout

    with Site(managed_engine) as site:
        site.network("pynet", "back", 60)
        site.containers({"web": ("back", "-p", f"{PUBLISHED}:{PORT}"), "client": ("back",)})
        site.serve("web", "tcp", PORT)
        site.serve(HOST, "tcp", PORT)
        assert "back" in run("ls")
        for source_name, to in (("client", f"web:{PORT}"), ("client", f"host:{PORT}")):
            found = json.loads(run("doctor", "--json", source_name, to))
            assert (found["verdict"], found["not_seen"]) == ("reaches", [])
        assert json.loads(run("trace", "--json", "--send", "client", f"web:{PORT}").split("\n")[0])
        assert "web:eth0" in run("map")
        assert "<html" in run("map", "--html", "-")
        assert "<svg" in run("map", "--svg", "-")
        assert json.loads(run("top", "--once", "--json", "--interval", "0.1"))["containers"]
        assert "eth0" in run("exec", "web", "--", "ip", "link")
        assert "web" in run("netns")
