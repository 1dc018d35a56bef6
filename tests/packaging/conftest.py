"""Make the Debian package once, and lend machines to install it on."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.packaging.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGING = Path(__file__).parents[2] / "packaging"


def build(folder: Path) -> Path:
    """Make the Debian package in a folder."""
    command = [PACKAGING / "deb", folder]
    env = {**os.environ, "TZ": "Asia/Kathmandu"}  # nothing of it may depend on where it is made
    subprocess.run(command, check=True, env=env, capture_output=True)
    (package,) = folder.glob("*.deb")
    return package


def copy(package: Path, machine: Machine) -> str:
    """Put the package on a machine; return where it is there."""
    shutil.copy(package, machine.root / "root" / package.name)
    return f"/root/{package.name}"


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("deb"))


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Lend a machine on which pynet is not installed."""
    with Machine() as machine:
        yield machine


@pytest.fixture(scope="module")
def service(package: Path) -> Iterator[Machine]:
    """Lend a machine on which the package is installed; every test leaves its service running."""
    with Machine() as machine:
        machine.run("dpkg", "--install", copy(package, machine))
        yield machine
