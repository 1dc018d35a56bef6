"""Run a registry on an engine's host: Debian's own, at 127.0.0.1, where Docker asks for no TLS."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.engine.rootfs import SUITES, ensure_root, program
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.engine.engine import Engine

ADDRESS = "127.0.0.1:5000"
(SUITE,) = (suite.name for suite in SUITES.values() if "docker-registry" in suite.extra)
CONFIG = """\
version: 0.1
storage:
  filesystem:
    rootdirectory: {folder}
http:
  addr: {address}
"""


@contextmanager
def registry(engine: Engine, folder: Path) -> Iterator[None]:
    """Serve what the folder holds, to this host alone; other hosts may serve the same folder."""
    config = engine.folder / "registry.yml"
    config.write_text(CONFIG.format(folder=folder, address=ADDRESS))
    command = program(ensure_root(SUITE), "docker-registry")
    with (engine.folder / "registry.log").open("ab") as log:
        server = engine.popen(*command, "serve", str(config), stdout=log, stderr=log)
    try:
        wait_until(lambda: _answers(engine), 20, f"a registry at {ADDRESS}")
        yield
    finally:
        server.kill()
        server.wait()


def pushed_bytes(folder: Path) -> int:
    """Return how large all is that the folder holds, as it was pushed."""
    return sum(path.stat().st_size for path in folder.rglob("blobs/sha256/*/*/data"))


def _answers(engine: Engine) -> bool:
    ask = (engine.busybox, "wget", "-q", "-O", "-", f"http://{ADDRESS}/v2/")
    return engine.run(*ask, check=False).returncode == 0
