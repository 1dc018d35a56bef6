"""Make the root file systems that engines run from, once; knows nothing of running them."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMON = ("docker.io", "iptables", "nftables", "iproute2", "ca-certificates", "busybox-static")
MARKER = "etc/pynet-engine"


@dataclass(frozen=True, slots=True)
class Suite:
    """A Debian release, for the engine it ships; or, without an engine, for other packages."""

    name: str
    engine: str = ""
    extra: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    release: str = ""  # the name, unless another suite has it
    variant: str = "minbase"  # mmdebstrap's word; "extract" unpacks and sets nothing up

    @property
    def packages(self) -> tuple[str, ...]:
        """List what the root file system holds besides the essential packages."""
        return COMMON + self.extra if self.engine else self.extra


# A mirror that follows a moving suite slowly may serve a Release file that is past its Valid-Until.
# The signature is still verified.
MOVING = ('--aptopt=Acquire::Check-Valid-Until "false"',)

SUITES = {
    suite.name: suite
    for suite in (
        Suite("bookworm", "20.10"),
        Suite("trixie", "26.1", extra=("docker-cli",)),
        Suite(
            "forky",
            "28.5",
            extra=("docker-cli", "docker-compose", "docker-registry"),
            options=MOVING,
        ),
    )
}

# What the managed plugin is built on, in place of an image that no engine here can pull.
PYTHON = Suite(
    "python",
    extra=("python3.15", "python3.15-venv", "libnftables1", "libip4tc2", "libip6tc2", "netbase"),
    options=MOVING,
    release="forky",
)

OWN = "this machine's own"

# A machine with systemd, and with what pynet's own package depends on; see tests/packaging. Of this
# machine's own release, for which the package is that is made here.
SERVICE = Suite(
    "service",
    extra=(
        "systemd-sysv",
        "python3",
        "libnftables1",
        "libip4tc2",
        "libip6tc2",
        "netbase",
        "iproute2",
    ),
    release=OWN,
)

# What an operator runs beside Docker; see `firewalls.py`. Of this machine's own release, for the
# driver reads what they write with this machine's libnftables.
FIREWALLS = Suite(
    "firewalls",
    extra=("dbus", "firewalld", "ufw", "iptables", "nftables", "procps"),
    release=OWN,
)

# Reads what `pynet capture` writes.
READER = Suite("reader", extra=("tshark",), release="trixie", variant="extract")

# Looks at what `pynet map --html` and `--serve` show, as a person does.
BROWSER = Suite(
    "browser",
    extra=("chromium", "fonts-dejavu-core", "fonts-inter"),
    release="trixie",
    variant="extract",
)

# Scrapes the driver's metrics, and reads what examples/monitoring asks of them.
MONITOR = Suite("monitor", extra=("prometheus", "haproxy"), release="trixie", variant="extract")

# What pynet is measured beside, and with; see bench.
PEERS = Suite(
    "peers",
    extra=("containernetworking-plugins", "netavark", "iperf3"),
    options=MOVING,
    release="forky",
    variant="extract",
)

OTHERS = (PYTHON, SERVICE, FIREWALLS, READER, BROWSER, MONITOR, PEERS)


def cache_folder() -> Path:
    """Return the folder, outside the repository, that holds roots and running engines."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "pynet-engines"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def ensure_root(suite: str) -> Path:
    """Return the suite's root file system, making it if it is absent or its packages changed."""
    wanted = {
        **SUITES,
        **{each.name: each for each in OTHERS},
    }[suite]
    root = cache_folder() / suite
    with lock(root.with_suffix(".lock")):
        if not _is_current(root, wanted):
            _build(root, wanted)
    return root


def program(root: Path, name: str) -> list[str]:
    """Return the words that run a program of a root outside it, by the root's own loader."""
    # Beside the root's libc: in lib64 is an absolute link, outside of the root to another's loader.
    (loader,) = (root / "usr/lib").glob("*/ld-linux*.so.*")
    return [str(loader), "--library-path", str(loader.parent), str(root / "usr/bin" / name)]


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Keep other processes out of the block."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_current(root: Path, suite: Suite) -> bool:
    """Tell whether the root was made, completely, from the packages the suite has now."""
    marker = root / MARKER
    return marker.is_file() and marker.read_text() == _marker_text(suite)


def _marker_text(suite: Suite) -> str:
    own = (_release(suite),) if suite.release == OWN else ()
    return "\n".join((suite.name, *own, *suite.packages, ""))


def _release(suite: Suite) -> str:
    """Return the Debian release that a suite's packages are of."""
    if suite.release == OWN:
        return platform.freedesktop_os_release()["VERSION_CODENAME"]
    return suite.release or suite.name


def _build(root: Path, suite: Suite) -> None:
    """Make the root beside its final place, so that what has the final name is complete."""
    partial = root.with_suffix(".partial")
    _remove(partial)
    options = [
        f"--variant={suite.variant}",
        f"--include={','.join(suite.packages)}",
        *suite.options,
    ]
    subprocess.run(["mmdebstrap", *options, _release(suite), partial, _mirror()], check=True)
    (partial / MARKER).write_text(_marker_text(suite))
    _remove(root)
    partial.rename(root)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _mirror() -> str:
    """Return the Debian mirror that this machine itself uses."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)"]
    filters = ["Created-By: Packages", "Label: Debian"]
    answer = subprocess.run([*command, *filters], check=True, capture_output=True, text=True)
    mirrors = answer.stdout.split()
    if not mirrors:
        raise LookupError("find a Debian mirror: apt's configuration on this machine names none")
    return mirrors[0]


if __name__ == "__main__":
    for name in sys.argv[1:] or SUITES:
        print(ensure_root(name))
