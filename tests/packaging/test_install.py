"""Installing below a folder, as packagers do it, and what the machine itself is spared."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engine.rootfs import MARKER
from tests.packaging.test_socket_activation import Question

if TYPE_CHECKING:
    from tests.packaging.machine import Machine

PACKAGING = Path(__file__).parents[2] / "packaging"
UNIT = "etc/systemd/system/pynet.service"
SOCKET_UNIT = "etc/systemd/system/pynet.socket"
# The service opened its socket by itself.
BEFORE_THE_SOCKET = """\
[Service]
Type=notify
ExecStart=/opt/pynet/bin/pynet serve
[Install]
WantedBy=multi-user.target docker.service
"""
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


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Have what packaging/install installs, for machines that reach no package index."""
    root = tmp_path_factory.mktemp("staged") / "staged"
    folders = ("PREFIX=/opt/pynet", "BIN=/usr/local/bin", "UNITS=/etc/systemd/system")
    doc = "DOC=/opt/pynet/share/doc/pynet"
    done = run("env", *folders, doc, PACKAGING / "stage", root)
    assert done.returncode == 0, done.stderr
    return root


def put(machine: Machine, staged: Path) -> None:
    """Put the scripts on a machine; what they build there is what was built here."""
    shutil.copytree(staged, machine.root / "root/staged", symlinks=True)
    shutil.copytree(PACKAGING, machine.root / "root/packaging")
    (machine.root / "root/packaging/apt-get").write_text("#!/bin/sh\n")
    stage = '#!/bin/sh\nmkdir -p "$(dirname "$1")" && cp -R /root/staged "$1"\n'
    (machine.root / "root/packaging/stage").write_text(stage)


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


def test_the_units_are_sound(installed: Path, tmp_path: Path) -> None:
    for name in (UNIT, SOCKET_UNIT):
        text = (installed / name).read_text()
        unit = tmp_path / Path(name).name
        unit.write_text(text.replace("/opt/pynet/bin/", f"{installed}/opt/pynet/bin/"))
    done = run("systemd-analyze", "verify", "--man=no", *tmp_path.iterdir())
    complaints = [line for line in done.stderr.splitlines() if "pynet" in line]
    assert (done.returncode, complaints) == (0, [])


def test_no_file_knows_where_it_was_staged(installed: Path) -> None:
    staged = str(installed).encode()
    files = (path for path in installed.rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert [path for path in files if staged in path.read_bytes()] == []


def test_links_of_the_installed_documents_lead_somewhere(installed: Path) -> None:
    """Besides those to what only the sources have: the results of the bench."""
    folder = installed / "opt/pynet/share/doc/pynet"
    documents = [*folder.glob("*.md"), *folder.glob("docs/*.md")]
    assert len(documents) > 10
    gone = {
        target
        for document in documents
        for target in re.findall(r"\]\(([^)#\s]+\.md)", document.read_text())
        if not target.startswith(("https:", "../bench/"))
        and not (document.parent / target).exists()
    }
    assert gone == set()


def test_the_command_is_on_the_path(installed: Path) -> None:
    assert (installed / "usr/local/bin/pynet").readlink() == Path("/opt/pynet/bin/pynet")


@pytest.mark.parametrize(
    ("shell", "name"),
    [
        ("bash", "bash-completion/completions/pynet"),
        ("zsh", "zsh/site-functions/_pynet"),
        ("fish", "fish/vendor_completions.d/pynet.fish"),
    ],
)
def test_shells_complete_its_words(installed: Path, shell: str, name: str) -> None:
    done = run(installed / "opt/pynet/bin/python", "-m", "plugin.cli", "completion", shell)
    assert done.returncode == 0
    assert (installed / "usr/local/share" / name).read_text() == done.stdout


def test_bash_completes_a_command(installed: Path, tmp_path: Path) -> None:
    command = tmp_path / "pynet"  # the installed one counts on its place
    command.write_text(f'#!/bin/sh\nexec {installed}/opt/pynet/bin/python -m plugin.cli "$@"\n')
    command.chmod(0o755)
    words = f"""
        PATH={tmp_path}:$PATH
        . {installed}/usr/local/share/bash-completion/completions/pynet
        COMP_WORDS=(pynet ins) COMP_CWORD=1
        _pynet_completion pynet
        echo "${{COMPREPLY[@]}}"
    """
    assert run("bash", "-c", words).stdout == "inspect\n"


def test_installing_again_replaces_everything(installed: Path) -> None:
    leftover = installed / "opt/pynet/leftover"
    leftover.touch()
    assert run(PACKAGING / "install", destdir=installed).returncode == 0
    assert not leftover.exists()
    assert [path.name for path in (installed / "opt").iterdir()] == ["pynet"]


def test_the_sources_are_left_as_they_were(installed: Path) -> None:
    """What setuptools leaves behind, and the record of the commit, are made in a copy."""
    left = ("build/lib", "plugin/REVISION")
    assert [name for name in left if (PACKAGING.parent / name).exists()] == []


def test_the_commit_is_recorded(installed: Path) -> None:
    (recorded,) = (installed / "opt/pynet").rglob("plugin/REVISION")
    assert recorded.read_text() == run("git", "-C", PACKAGING, "rev-parse", "HEAD").stdout


def test_there_are_settings_to_begin_with_and_those_of_the_machine_stay(installed: Path) -> None:
    settings = installed / "etc/default/pynet"
    lines = settings.read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []
    settings.write_text("PYNET_LOG_LEVEL=DEBUG\n")
    assert run(PACKAGING / "install", destdir=installed).returncode == 0
    assert settings.read_text() == "PYNET_LOG_LEVEL=DEBUG\n"


@pytest.mark.parametrize(("arguments", "kept"), [((), True), (("--purge",), False)])
def test_removing_takes_everything_but_the_state(
    tmp_path: Path, arguments: tuple[str, ...], *, kept: bool
) -> None:
    names = ("opt/pynet/bin/pynet", UNIT, SOCKET_UNIT, "usr/local/bin/pynet")
    files = [tmp_path / name for name in names]
    state = [tmp_path / name for name in STATE]
    for file in [*files, *state]:
        file.parent.mkdir(parents=True, exist_ok=True)
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


def test_installing_starts_both_units_and_upgrades_a_service_without_a_socket(
    machine: Machine, staged: Path
) -> None:
    put(machine, staged)
    (machine.root / UNIT).write_text(BEFORE_THE_SOCKET)
    machine.run("cp", "-R", "/root/staged/opt/pynet", "/opt/pynet")
    machine.run("systemctl", "enable", "--now", "pynet.service")
    said = machine.run("/root/packaging/install")
    assert "running; try" in said.stdout
    units = ("pynet.socket", "pynet.service")
    assert machine.run("systemctl", "is-enabled", *units).stdout.split() == ["enabled"] * 2
    path = machine.root / "run/docker/plugins/pynet.sock"
    inode = path.stat().st_ino
    assert Question(path).answer()
    machine.run("/root/packaging/install")
    assert Question(path).answer()
    assert path.stat().st_ino == inode


def test_uninstalling_refuses_while_there_are_networks_and_then_ends_both_units(
    machine: Machine, staged: Path
) -> None:
    put(machine, staged)
    machine.run("/root/packaging/install")
    docker = machine.root / "usr/local/bin/docker"
    docker.write_text("#!/bin/sh\necho back\n")
    docker.chmod(0o755)
    refused = machine.run("/root/packaging/uninstall", check=False)
    assert (refused.returncode, "docker network rm back" in refused.stderr) == (1, True)
    path = machine.root / "run/docker/plugins/pynet.sock"
    assert Question(path).answer()
    docker.write_text("#!/bin/sh\n")
    machine.run("/root/packaging/uninstall", "--purge")
    assert not path.exists()
    states = machine.run("systemctl", "is-active", "pynet.socket", "pynet.service", check=False)
    assert states.stdout.split() == ["inactive"] * 2
    left = {name for name in machine.files() if "pynet" in name}
    assert {name for name in left if not name.startswith("/root/")} == {f"/{MARKER}"}


def test_it_does_not_install_over_the_debian_package(machine: Machine, staged: Path) -> None:
    put(machine, staged)
    (machine.root / "usr/lib/pynet").mkdir()
    refused = machine.run("/root/packaging/install", check=False)
    assert (refused.returncode, "Debian package" in refused.stderr) == (1, True)


def test_the_service_sees_the_machines_mounts() -> None:
    """A mount namespace of its own would hide Docker's where / is not shared."""
    text = (PACKAGING / "pynet.service").read_text()
    names = {line.partition("=")[0] for line in text.splitlines() if not line.startswith("#")}
    prefixes = ("Protect", "Private", "Bind", "Inaccessible", "Temporary", "Mount", "Root")
    assert [name for name in names if name.startswith((*prefixes, "ReadOnly", "ReadWrite"))] == []


def test_uninstalling_a_service_that_gave_way_to_another_driver_takes_nothing_from_it(
    machine: Machine, staged: Path
) -> None:
    put(machine, staged)
    machine.run("/root/packaging/install")
    docker = machine.root / "usr/local/bin/docker"
    docker.write_text("#!/bin/sh\necho back\n")
    docker.chmod(0o755)
    machine.run("systemctl", "disable", "--now", "pynet.socket", "pynet.service")
    machine.run("cp", "-a", "/opt/pynet", "/root/other")
    with machine.other_driver("/root/other/bin/python", "-m", "plugin.cli"):
        said = machine.run("/root/packaging/uninstall", "--purge").stderr
        assert "/var/lib/pynet stays, since a driver is using it" in said
        assert (machine.root / STATE[0]).exists()
        assert not (machine.root / "opt/pynet").exists()
