"""Installing below a folder, as packagers do it, and what the machine itself is spared."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

PACKAGING = Path(__file__).parents[2] / "packaging"
UNIT = "etc/systemd/system/pynet.service"
STATE = ("var/lib/pynet/pynet.db", "etc/default/pynet")


def run(*command: str | Path, destdir: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = dict(os.environ)
    env.pop("DESTDIR", None)
    if destdir:
        env["DESTDIR"] = str(destdir)
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    destdir = tmp_path_factory.mktemp("root")
    done = run(PACKAGING / "install", destdir=destdir)
    assert done.returncode == 0, done.stderr
    return destdir


def test_the_installed_program_runs(installed: Path) -> None:
    done = run(installed / "opt/pynet/bin/python", "-m", "plugin.cli", "version")
    assert done.stdout.strip(), done.stderr


def test_the_installed_program_is_of_the_systems_python(installed: Path) -> None:
    python = (installed / "opt/pynet/bin/python").resolve()
    assert python.is_relative_to("/usr/bin")


def test_the_unit_starts_what_was_installed(installed: Path) -> None:
    text = (installed / UNIT).read_text()
    (start,) = (line for line in text.splitlines() if line.startswith("ExecStart="))
    program = start.removeprefix("ExecStart=").split()[0]
    assert os.access(installed / program.lstrip("/"), os.X_OK)


def test_the_unit_is_sound(installed: Path, tmp_path: Path) -> None:
    unit = tmp_path / "pynet.service"
    text = (installed / UNIT).read_text()
    unit.write_text(text.replace("/opt/pynet/bin/", f"{installed}/opt/pynet/bin/"))
    done = run("systemd-analyze", "verify", "--man=no", unit)
    complaints = [line for line in done.stderr.splitlines() if "pynet" in line]
    assert (done.returncode, complaints) == (0, [])


def test_no_file_knows_where_it_was_staged(installed: Path) -> None:
    staged = str(installed).encode()
    files = (path for path in installed.rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert [path for path in files if staged in path.read_bytes()] == []


def test_the_command_is_on_the_path(installed: Path) -> None:
    assert (installed / "usr/local/bin/pynet").readlink() == Path("/opt/pynet/bin/pynet")


def test_installing_again_replaces_everything(installed: Path) -> None:
    leftover = installed / "opt/pynet/leftover"
    leftover.touch()
    assert run(PACKAGING / "install", destdir=installed).returncode == 0
    assert not leftover.exists()
    assert [path.name for path in (installed / "opt").iterdir()] == ["pynet"]


def test_the_sources_are_left_as_they_were(installed: Path) -> None:
    assert not (PACKAGING.parent / "build").exists()


@pytest.mark.parametrize(("arguments", "kept"), [((), True), (("--purge",), False)])
def test_removing_takes_everything_but_the_state(
    tmp_path: Path, arguments: tuple[str, ...], *, kept: bool
) -> None:
    files = [tmp_path / name for name in ("opt/pynet/bin/pynet", UNIT, "usr/local/bin/pynet")]
    state = [tmp_path / name for name in STATE]
    for file in [*files, *state]:
        file.parent.mkdir(parents=True)
        file.touch()
    for _ in range(2):
        assert run(PACKAGING / "uninstall", *arguments, destdir=tmp_path).returncode == 0
        assert not any(file.exists() for file in files)
        assert [file.exists() for file in state] == [kept] * len(state)


def test_without_systemd_it_says_so_and_does_nothing() -> None:
    script = 'mount -t tmpfs tmpfs /run && exec "$0"'
    done = run("unshare", "--mount", "sh", "-c", script, PACKAGING / "install")
    assert done.returncode == 1
    assert "systemd does not run here" in done.stderr
    assert done.stdout == ""


def test_the_service_sees_the_machines_mounts() -> None:
    """A mount namespace of its own would hide Docker's where / is not shared."""
    text = (PACKAGING / "pynet.service").read_text()
    names = {line.partition("=")[0] for line in text.splitlines() if not line.startswith("#")}
    prefixes = ("Protect", "Private", "Bind", "Inaccessible", "Temporary", "Mount", "Root")
    assert [name for name in names if name.startswith((*prefixes, "ReadOnly", "ReadWrite"))] == []
