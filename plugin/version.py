"""The version and the commit of this pynet."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REVISION = Path(__file__).with_name("REVISION")  # one line, written when a package is built


@cache
def find_version() -> str:
    """Return the version, `unknown` where pynet runs without being installed as a package."""
    try:
        return version("pynet")
    except PackageNotFoundError:
        return "unknown"


@cache
def find_revision() -> str:
    """Return the commit that this was built from, `unknown` when it runs from its sources."""
    try:
        return REVISION.read_text().strip()
    except FileNotFoundError:
        return "unknown"
