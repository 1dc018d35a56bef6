"""The Debian package: what is in it, and what installing, upgrading and removing it does."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.engine.rootfs import SERVICE, ensure_root
from tests.engine.unixhttp import post_json, request
from tests.packaging.conftest import build, copy
from tests.packaging.machine import SOCKET

if TYPE_CHECKING:
    from tests.packaging.machine import Machine

REPOSITORY = Path(__file__).parents[2]
STATE = "var/lib/pynet/pynet.db"
NETWORK = {
    "NetworkID": "a" * 64,
    "Options": {"com.docker.network.generic": {}},
    "IPv4Data": [{"AddressSpace": "", "Pool": "10.91.0.0/24", "Gateway": "10.91.0.1/24"}],
    "IPv6Data": [],
}
# As an image is made: a root that no init runs in, and a network that is not ours.
IN_CHROOT = """
set -eu
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$2/root"
mount -t proc proc "$2/root/proc"
cp "$3" "$2/root/root/pynet.deb"
cd "$2/root"
files() { find . -xdev -path ./proc -prune -o -path ./var/log -prune -o -print | sort; }
run() { chroot . env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
files >"$2/before"
run dpkg --install /root/pynet.deb
run pynet version >"$2/version"
run dpkg --verify pynet >"$2/changed"
mkdir -p var/lib/pynet
touch var/lib/pynet/pynet.db
run dpkg --remove pynet
files >"$2/removed"
run dpkg --purge pynet
files >"$2/purged"
"""


def field(package: Path, name: str) -> str:
    command: list[str | Path] = ["dpkg-deb", "--field", package, name]
    return subprocess.check_output(command, text=True).strip()


def pid(machine: Machine) -> str:
    show = ("systemctl", "show", "--property=MainPID", "--value", "pynet.service")
    return machine.run(*show).stdout.strip()


def test_it_is_the_same_when_it_is_made_again(package: Path, tmp_path: Path) -> None:
    again = build(tmp_path)
    assert again.name == package.name
    assert again.read_bytes() == package.read_bytes()


def test_it_wants_the_python_it_was_made_with(package: Path) -> None:
    code = "import sys; print('%d.%d %d.%d' % (3, sys.version_info[1], 3, sys.version_info[1] + 1))"
    python = subprocess.check_output(["/usr/bin/python3", "-c", code], text=True)
    this, following = python.split()
    depends = field(package, "Depends").split(", ")
    assert {f"python3 (>= {this}~)", f"python3 (<< {following}~)"} < set(depends)


def test_it_installs_where_nothing_runs_and_leaves_nothing_behind(
    package: Path, tmp_path: Path
) -> None:
    for name in ("upper", "work", "root"):
        (tmp_path / name).mkdir()
    root = ensure_root(SERVICE.name)
    done = subprocess.run(
        ["unshare", "--mount", "--net", "sh", "-c", IN_CHROOT, "sh", root, tmp_path, package],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.replace("dpkg: warning", "")
    version, changed, before, removed, purged = (
        (tmp_path / name).read_text()
        for name in ("version", "changed", "before", "removed", "purged")
    )
    assert f"pynet {field(package, 'Version')}," in version
    assert changed == ""
    kept = {
        line for line in set(removed.splitlines()) - set(before.splitlines()) if "dpkg" not in line
    }
    assert {"./var/lib/pynet/pynet.db", "./etc/default/pynet"} < kept
    assert not any(line.startswith("./usr") for line in kept)
    known = ("./var/lib/dpkg/", "./var/cache/")
    left = set(purged.splitlines()) - set(before.splitlines())
    assert [line for line in left if not line.startswith(known)] == []
    assert set(before.splitlines()) - set(purged.splitlines()) == set()


def test_it_records_its_commit(service: Machine) -> None:
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, text=True)
    (recorded,) = service.root.joinpath("usr/lib/pynet").rglob("plugin/REVISION")
    assert recorded.read_text() == head


def test_its_files_know_nothing_of_where_they_were_made(service: Machine) -> None:
    listed = service.run("dpkg", "--listfiles", "pynet").stdout.splitlines()
    files = [service.root / name.lstrip("/") for name in listed]
    # Both are where things are staged: $TMPDIR, and the repository itself.
    for word in (b"/tmp/tmp.", str(REPOSITORY).encode()):
        assert [
            str(file)
            for file in files
            if file.is_file() and not file.is_symlink() and word in file.read_bytes()
        ] == []


def test_an_upgrade_restarts_the_driver_and_nothing_else(service: Machine, package: Path) -> None:
    socket = service.root / SOCKET
    post_json(socket, "/NetworkDriver.CreateNetwork", NETWORK)
    before, inode = pid(service), socket.stat().st_ino
    service.run("dpkg", "--install", copy(package, service))
    assert pid(service) not in (before, "0")
    assert socket.stat().st_ino == inode
    assert request(socket, "GET", "/networks")[0] == 200  # waits until all is there again
    service.run("ip", "link", "show", "pn-aaaaaaaaaaaa")
    assert post_json(socket, "/NetworkDriver.DeleteNetwork", {"NetworkID": "a" * 64}) == {}


def test_an_upgrade_leaves_a_disabled_service_alone(machine: Machine, package: Path) -> None:
    where = copy(package, machine)
    machine.run("dpkg", "--install", where)
    machine.run("systemctl", "disable", "--now", "pynet.socket", "pynet.service")
    machine.run("dpkg", "--install", where)
    assert pid(machine) == "0"
    assert not (machine.root / SOCKET).exists()


def test_removing_it_ends_the_service_and_keeps_the_state(machine: Machine, package: Path) -> None:
    before = machine.files()
    where = copy(package, machine)
    machine.run("dpkg", "--install", where)
    post_json(machine.root / SOCKET, "/NetworkDriver.CreateNetwork", NETWORK)
    docker = machine.root / "usr/local/bin/docker"
    docker.write_text("#!/bin/sh\necho back\n")
    docker.chmod(0o755)
    said = machine.run("dpkg", "--remove", "pynet").stderr
    docker.unlink()
    assert "Docker still has networks of this driver: back" in said
    assert not (machine.root / SOCKET).exists()
    units = machine.run("systemctl", "is-active", "pynet.socket", "pynet.service", check=False)
    assert units.stdout.split() == ["inactive", "inactive"]
    assert (machine.root / STATE).exists()
    machine.run("dpkg", "--install", where)
    assert post_json(machine.root / SOCKET, "/NetworkDriver.DeleteNetwork", NETWORK) == {}
    machine.run("dpkg", "--purge", "pynet")
    assert not (machine.root / STATE).parent.exists()
    left = machine.files() - before - {where}
    assert {name for name in left if "pynet" in name} == set()


def test_purging_it_leaves_alone_what_another_driver_is_using(
    machine: Machine, package: Path
) -> None:
    machine.run("dpkg", "--install", copy(package, machine))
    machine.run("systemctl", "disable", "--now", "pynet.socket", "pynet.service")
    machine.run("cp", "-a", "/usr/lib/pynet", "/root/other")
    with machine.other_driver("/root/other/bin/python", "-m", "plugin.cli"):
        post_json(machine.root / SOCKET, "/NetworkDriver.CreateNetwork", NETWORK)
        said = machine.run("dpkg", "--purge", "pynet").stderr
        assert "/var/lib/pynet stays, since a driver is using it" in said
        assert (machine.root / STATE).exists()
