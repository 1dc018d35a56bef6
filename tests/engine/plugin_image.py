"""Build the managed plugin as `make plugin` does, on a private engine; keep it for other engines.

No engine here can pull, so what the Dockerfile builds on is an image made of Debian's packages,
with its python3 where the official image has it. The wheels of the lock are fetched once.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.engine.driver import REPOSITORY
from tests.engine.engine import DOCKER_SOCKET, Engine
from tests.engine.rootfs import MARKER, PYTHON, cache_folder, ensure_root, lock, program

if TYPE_CHECKING:
    from collections.abc import Iterator

BASE = "pynet-base"
BUILDER = "forky"
NAME = "pynet/pynet:latest"
LOCK = REPOSITORY / "packaging/plugin.lock"
# What `make plugin` reads; packaging/ also holds the service's files.
INPUTS = (
    *("Dockerfile", ".dockerignore", "config.json", "Makefile", "pyproject.toml", "LICENSE"),
    *("driver", "plugin"),
    *(f"packaging/{name}" for name in ("apt-get", "collect.py", "plugin", "plugin.lock")),
)
KEPT = 4  # builds in the cache, the newest


def ensure_built() -> Path:
    """Return a folder with config.json and rootfs/, built from the tree as it is now.

    It is built once, on an engine of its own. The folder is the cache's: copy it to change it.
    """
    folder = cache_folder() / f"plugin-{_key()}"
    with lock(cache_folder() / "plugin.lock"):
        if not folder.is_dir():
            partial = folder.with_suffix(".partial")
            with Engine(BUILDER) as engine:
                make_plugin(engine, partial)
            partial.rename(folder)
        os.utime(folder)
        _forget_old_builds()
    return folder


def make_plugin(engine: Engine, folder: Path, *build_flags: str) -> None:
    """Run `make plugin` against an engine, on the base image that stands in for the official."""
    ensure_base(engine)
    run_docker_user(
        engine,
        *("make", "plugin", f"BASE={BASE}", f"PLUGIN_DIR={folder}"),
        f"BUILD_FLAGS={' '.join(build_flags)}",
    )


def create(engine: Engine, name: str = NAME, folder: Path | None = None) -> None:
    """Have the engine hold the plugin, or the one in the folder, not yet enabled."""
    run_docker_user(engine, "docker", "plugin", "create", name, str(folder or ensure_built()))


def run_docker_user(engine: Engine, *argv: str) -> str:
    """Run a command of this machine that runs `docker`, as if the engine were the machine's own."""
    with tempfile.TemporaryDirectory() as bin_folder:
        _write_docker(engine, Path(bin_folder) / "docker")
        env = {
            # Of a make that runs the tests, nothing: its flags and variables are not for this one.
            **{name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "DOCKER_HOST": f"unix://{engine.outside}{DOCKER_SOCKET}",
            "DOCKER_CONFIG": bin_folder,  # no settings, and no plugins, of the machine's
        }
        done = subprocess.run(
            argv, cwd=REPOSITORY, env=env, text=True, capture_output=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"{argv} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def _write_docker(engine: Engine, command: Path) -> None:
    """Make the suite's own client a command of the machine."""
    command.write_text(f'#!/bin/sh\nexec {shlex.join(program(engine.lower, "docker"))} "$@"\n')
    command.chmod(0o755)


def ensure_base(engine: Engine) -> None:
    """Have the engine hold the image that the plugin is built on."""
    if engine.client.images.list(BASE):
        return
    root, wheels = ensure_root(PYTHON.name), _ensure_wheels()
    with tempfile.TemporaryDirectory(dir=cache_folder()) as work:
        extra = Path(work) / "extra"
        (extra / "usr/local/bin").mkdir(parents=True)
        (extra / "usr/local/bin/python3").symlink_to("/usr/bin/python3.15")
        shutil.copytree(wheels, extra / "wheels")
        tar = Path(work) / "base.tar"
        exclude = [f"--exclude=./{name}/*" for name in ("dev", "proc", "sys", "var/lib/apt")]
        added = ("-C", extra, "wheels", "usr/local/bin/python3")
        subprocess.run(["tar", "-c", "-f", tar, *exclude, "-C", root, ".", *added], check=True)
        engine.client.api.import_image_from_file(
            str(tar),
            repository=BASE,
            tag="latest",
            changes=["ENV PIP_NO_INDEX=1", "ENV PIP_FIND_LINKS=/wheels"],
        )


def _ensure_wheels() -> Path:
    """Return a folder with the wheels of the lock, fetching them if the lock has changed."""
    folder = cache_folder() / f"wheels-{_digest(LOCK.read_bytes())}"
    if not folder.is_dir():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        options = ["--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps"]
        target = ["--only-binary=:all:", "--python-version=3.15", f"--dest={partial}"]
        pip = (sys.executable, "-m", "pip", "download")
        subprocess.run([*pip, *options, *target, "-r", LOCK], check=True)
        partial.rename(folder)
    return folder


def _key() -> str:
    """Return what names a build: a hash of everything that goes into it."""
    revision = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    done = subprocess.run(revision, cwd=REPOSITORY, capture_output=True, check=False)
    parts = [done.stdout, (ensure_root(PYTHON.name) / MARKER).read_bytes()]
    for file in _inputs():
        parts += [str(file.relative_to(REPOSITORY)).encode(), file.read_bytes()]
    return _digest(*parts)


def _inputs() -> Iterator[Path]:
    for name in INPUTS:
        path = REPOSITORY / name
        inside = path.rglob("*") if path.is_dir() else [path]
        yield from sorted(file for file in inside if file.is_file() and file.suffix != ".pyc")


def _digest(*parts: bytes) -> str:
    hashes = (hashlib.sha256(part).digest() for part in parts)
    return hashlib.sha256(b"".join(hashes)).hexdigest()[:16]


def _forget_old_builds() -> None:
    builds = [path for path in cache_folder().glob("plugin-*") if path.is_dir()]
    for folder in sorted(builds, key=lambda path: path.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(folder)
