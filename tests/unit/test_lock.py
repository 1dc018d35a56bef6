"""What the managed plugin is made of: the server's dependencies, pinned, from no certain place."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
LOCK = (REPOSITORY / "packaging/plugin.lock").read_text()
PINNED = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", LOCK, re.MULTILINE))
EXCLUDED = {
    line
    for line in (REPOSITORY / "packaging/plugin.excludes").read_text().splitlines()
    if not line.startswith("#")
}


def dependencies() -> set[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return {re.split(r"[^a-z0-9-]", text)[0] for text in project["dependencies"]}


def test_every_dependency_is_pinned_or_excluded() -> None:
    assert dependencies() >= EXCLUDED
    assert dependencies() - EXCLUDED <= PINNED.keys()
    assert not EXCLUDED & PINNED.keys()


def test_every_line_is_a_pin_with_hashes_or_a_comment() -> None:
    lines = [line.strip() for line in LOCK.splitlines()]
    requirements = [line for line in lines if line and not line.startswith(("#", "--hash=sha256:"))]
    assert len(requirements) == len(PINNED)
    assert all(line.endswith("\\") for line in requirements)


def test_it_names_no_place_to_fetch_from() -> None:
    assert "://" not in LOCK
    assert "index" not in LOCK
