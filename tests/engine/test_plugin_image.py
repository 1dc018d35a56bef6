"""What is in the managed plugin's image and what is not, and that an engine takes it.

What the plugin does once it runs is for other tests.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from driver.firewall.base import read_base
from plugin.settings import Settings, parse_settings
from tests.engine.managed import inspect
from tests.engine.plugin_image import NAME, create, ensure_built, make_plugin
from tests.engine.unixhttp import post_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine

MEGABYTE = 1_000_000
GOLDEN = Path(__file__).parent.parent / "golden"
# What the driver gives to libnftables, through the image's own interpreter.
LOAD_RULESET = """
import sys
from driver.linux.nft import Nft

Nft().run(sys.stdin.read())
"""
IN_ROOT = 'mount -t proc proc "$1/proc"; exec chroot "$@"'
ABSENT_PACKAGES = ("docker", "requests", "rich", "pip", "setuptools", "ensurepip", "venv", "test")


@pytest.fixture(scope="module")
def folder() -> Path:
    return ensure_built()


@pytest.fixture(scope="module")
def root(folder: Path) -> Path:
    return folder / "rootfs"


@pytest.fixture(scope="module")
def config(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


@pytest.fixture
def plugin(builder: Engine) -> Iterator[str]:
    """Lend the name of the plugin, created and not enabled."""
    create(builder)
    yield NAME
    builder.docker("plugin", "rm", "--force", NAME)


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]


def modules(root: Path) -> set[str]:
    """Name everything that can be imported, and what is beside it."""
    homes = [path for path in root.glob("usr/**/python3*") if path.is_dir()]
    places = [*homes, *(path for home in homes for path in home.glob("*-packages"))]
    return {entry.name.split(".")[0] for place in places for entry in place.iterdir()}


def fingerprint(folder: Path) -> dict[str, tuple[object, ...]]:
    """Say of every file all that goes into a layer."""
    return {
        str(path.relative_to(folder)): (
            oct(path.lstat().st_mode),
            path.lstat().st_uid,
            path.lstat().st_gid,
            path.lstat().st_mtime_ns,
            content(path),
        )
        for path in sorted(folder.rglob("*"))
    }


def content(path: Path) -> str:
    if path.is_symlink():
        return str(path.readlink())
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def in_image(root: Path, *argv: str, stdin: str = "") -> str:
    """Run a program of the image in namespaces of its own, with a `/proc` as any process has."""
    (python,) = (path for path in root.glob("usr/**/bin/python3*") if path.is_file())
    words = [f"/{python.relative_to(root)}" if word == "python" else word for word in argv]
    command = ["unshare", "--net", "--mount", "sh", "-eu", "-c", IN_ROOT, "sh", str(root), *words]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- what is in it


def test_it_is_small(root: Path) -> None:
    unpacked = sum(path.stat().st_size for path in files(root))
    with subprocess.Popen(["tar", "-c", "-C", root, "."], stdout=subprocess.PIPE) as tar:
        gzip = subprocess.run(["gzip"], stdin=tar.stdout, capture_output=True, check=True)
    packed = len(gzip.stdout)
    print(f"{unpacked / MEGABYTE:.1f} MB unpacked, {packed / MEGABYTE:.1f} MB packed")
    assert unpacked <= 90 * MEGABYTE
    assert packed <= 35 * MEGABYTE


def test_nothing_in_it_can_be_run_but_the_command_and_its_interpreter(root: Path) -> None:
    programs = sorted(path.name for path in files(root) if path.stat().st_mode & 0o111)
    loader, command, interpreter = programs
    assert loader.startswith("ld-linux")
    assert command == "pynet"
    assert interpreter.startswith("python3")


def test_no_file_gives_rights_of_its_own(root: Path) -> None:
    special = {path.relative_to(root): path.lstat().st_mode & 0o7000 for path in root.rglob("*")}
    assert {path: mode for path, mode in special.items() if mode} == {Path("tmp"): 0o1000}


def test_everything_in_it_is_a_file_a_folder_or_a_link_and_roots(root: Path) -> None:
    for path in root.rglob("*"):
        assert path.is_symlink() or path.is_file() or path.is_dir(), path
        assert (path.lstat().st_uid, path.lstat().st_gid) == (0, 0), path


@pytest.mark.parametrize("name", ABSENT_PACKAGES)
def test_what_only_the_command_line_or_an_installer_needs_is_not_in_it(
    root: Path, name: str
) -> None:
    assert {"plugin", "flask", "os"} <= modules(root)
    assert name not in modules(root)


def test_the_folders_that_are_mounted_on_are_folders(root: Path) -> None:
    for name in ("var/run/docker", "run/docker/plugins", "host/plugins", "var/lib", "proc", "dev"):
        place = root / name
        assert place.is_dir(), name
        assert place.resolve() == root.resolve() / name
        assert list(place.iterdir()) == [], name


def test_nothing_of_the_container_it_was_taken_from_is_in_it(root: Path) -> None:
    assert not (root / ".dockerenv").exists()
    assert sorted(path.name for path in (root / "etc").iterdir()) == [
        *("hosts", "ld.so.cache", "ld.so.conf", "protocols", "resolv.conf"),
    ]


def test_the_same_sources_give_the_same_bytes(
    builder: Engine, folder: Path, tmp_path: Path
) -> None:
    make_plugin(builder, tmp_path / "again", "--no-cache")
    assert fingerprint(tmp_path / "again") == fingerprint(folder)


def test_every_module_is_compiled_for_good(root: Path) -> None:
    sources = {path for path in root.glob("usr/**/*.py") if path.parent.name != "__pycache__"}
    compiled = {path.parent.parent / path.name.split(".")[0]: path for path in root.rglob("*.pyc")}
    assert {path.with_suffix("") for path in sources} == set(compiled)
    flags = {path.read_bytes()[4] for path in compiled.values()}
    assert flags == {0b01}  # by hash, and never compared with the source


# -- what it can do by itself


def test_it_knows_its_version_and_its_revision(root: Path, config: dict[str, Any]) -> None:
    (file,) = root.glob("usr/**/plugin/REVISION")
    code = "import importlib.metadata as m; print(m.version('pynet'))"
    version = in_image(root, "python", "-I", "-c", code).strip()
    assert version in in_image(root, "/usr/bin/pynet", "version")
    assert config["description"].startswith(f"pynet {version} ({file.read_text().strip()}): ")


def test_the_environment_does_not_change_what_is_imported(root: Path) -> None:
    assert in_image(root, "/usr/bin/pynet", "version").strip()
    command = (root / "usr/bin/pynet").read_text().splitlines()[0]
    assert command.split()[1:] == ["-IBu"]


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("*.nft")))
def test_its_nftables_takes_the_drivers_rules(root: Path, name: str) -> None:
    text = read_base() + (GOLDEN / name).read_text()
    in_image(root, "python", "-I", "-c", LOAD_RULESET, stdin=text)


def test_its_iptables_libraries_load(root: Path) -> None:
    code = "import ctypes; [ctypes.CDLL(f'libip{v}tc.so.{n}') for v, n in (('4', 2), ('6', 2))]"
    in_image(root, "python", "-I", "-c", code)


# -- what it asks of the engine


def test_it_asks_for_three_capabilities_and_no_device(config: dict[str, Any]) -> None:
    assert config["linux"] == {"capabilities": ["CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"]}


def test_it_asks_for_three_mounts(config: dict[str, Any]) -> None:
    mounts = {each["destination"]: (each["source"], each["options"]) for each in config["mounts"]}
    assert mounts == {
        "/var/run/docker": ("/var/run/docker", ["rbind", "rslave"]),
        "/host/plugins": ("/run/docker/plugins", ["rbind"]),
        "/var/lib": ("/var/lib", ["bind", "nosuid", "nodev", "noexec"]),
    }
    assert {each["type"] for each in config["mounts"]} == {"bind"}


def test_it_does_not_ask_for_dockers_socket(config: dict[str, Any]) -> None:
    assert "docker.sock" not in json.dumps(config)


def test_it_lives_in_the_hosts_network_and_sees_its_processes(config: dict[str, Any]) -> None:
    assert config["network"] == {"type": "host"}
    assert config["pidhost"] is True
    assert "ipchost" not in config


def test_every_setting_can_be_set(config: dict[str, Any]) -> None:
    names = {each["name"] for each in config["env"] if each.get("settable") == ["value"]}
    # Where its own socket and the relay's are is the plugin's affair.
    fixed = {"PYNET_SOCKET", "PYNET_RELAY_SOCKET"}
    wanted = {f"PYNET_{field.name.upper()}" for field in fields(Settings)} - fixed
    assert wanted <= names
    assert all(each["description"] for each in config["env"])


def test_its_settings_are_valid_and_the_socket_is_where_the_engine_looks(
    config: dict[str, Any],
) -> None:
    settings = parse_settings({each["name"]: each["value"] for each in config["env"]})
    assert settings.state_dir == Path("/var/lib/pynet")
    assert settings.socket == Path("/run/docker/plugins", config["interface"]["socket"])


# -- the engine's part


def test_it_is_created_enabled_and_answers(builder: Engine, plugin: str) -> None:
    builder.docker("plugin", "enable", plugin)
    seen = inspect(builder, plugin)
    socket = builder.outside / "run/docker/plugins" / seen["Id"] / "pynet.sock"
    assert post_json(socket, "/Plugin.Activate", None) == {"Implements": ["NetworkDriver"]}
    assert seen["Config"]["PidHost"] is True


def test_its_settings_and_its_sources_can_be_set(builder: Engine, plugin: str) -> None:
    settings = ("PYNET_LOG_LEVEL=DEBUG", "engine.source=/run/docker", "plugins.source=/run")
    builder.docker("plugin", "set", plugin, *settings)
    now = inspect(builder, plugin)["Settings"]
    assert "PYNET_LOG_LEVEL=DEBUG" in now["Env"]
    assert {"/run/docker", "/run"} <= {mount["Source"] for mount in now["Mounts"]}
    refused = builder.docker("plugin", "set", plugin, "state.source=/srv", check=False)
    assert refused.returncode != 0
    builder.docker("plugin", "enable", plugin)
