"""Make a container image without a registry: busybox and the links to it."""

from __future__ import annotations

import io
import subprocess
import tarfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FOLDERS = ("bin", "dev", "etc", "proc", "root", "sys", "tmp", "var")


def busybox_tar(root: Path) -> bytes:
    """Pack the static busybox of a root file system, its applets, and who its users are."""
    busybox = root / "usr/bin/busybox"
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder in FOLDERS:
            tar.addfile(_folder(folder))
        for file in ("etc/passwd", "etc/group"):
            tar.add(root / file, file)
        tar.add(busybox, "bin/busybox")
        for applet in applets.stdout.split():
            if applet != "busybox":
                tar.addfile(_link(f"bin/{applet}", "busybox"))
    return buffer.getvalue()


def _folder(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    info.mode = 0o1777 if name == "tmp" else 0o755
    return info


def _link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.SYMTYPE
    info.linkname = target
    return info
