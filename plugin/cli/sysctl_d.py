"""Find the sysctl.d(5) file that sets a kernel parameter of the host.

Reads this machine's own files, as systemd-sysctl and `sysctl --system` read them at boot. Whatever
was set by hand or by a program leaves no trace.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from driver.sysctl.policy import is_same, match

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# The earlier folder's file replaces one of the same name in a later one.
FOLDERS = ("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d")
LAST = "etc/sysctl.conf"


def find_settings(values: Mapping[str, str], root: Path = Path("/")) -> dict[str, str]:
    """Return for each parameter the `file:line` that gave it the value which it has.

    A value that the files do not account for has been set since, and has no entry.
    """
    found: dict[str, str] = {}
    assignments = list(_assignments(root))
    # A pattern spares what a line without one names, wherever that line is (sysctl.d(5)).
    named = {name for _, name, _ in assignments if name in values}
    for place, name, value in assignments:
        keys = [name] if name in values else [*(values.keys() - named)]
        for key in match([name], keys):
            if is_same(values[key], value):
                found[key] = place
            else:
                found.pop(key, None)
    return found


def _assignments(root: Path) -> Iterator[tuple[str, str, str]]:
    """Yield place, name and value of every assignment, in the order in which they take effect."""
    for path in _files(root):
        try:
            lines = path.read_text(errors="replace").splitlines()
        except OSError:
            continue  # not ours to read: it cannot be told then
        for number, line in enumerate(lines, start=1):
            name, separator, value = line.strip().partition("=")
            if separator and not name.startswith(("#", ";")):
                key = _dotted(name.strip().removeprefix("-").strip())
                yield f"/{path.relative_to(root)}:{number}", key, value.strip()


def _files(root: Path) -> list[Path]:
    """Return the files in their order: by name over all folders, /etc/sysctl.conf last."""
    by_name: dict[str, Path] = {}
    for folder in reversed(FOLDERS):
        for path in (root / folder).glob("*.conf"):
            by_name[path.name] = path
    last = root / LAST
    files = [path for _, path in sorted(by_name.items()) if path.resolve() != last.resolve()]
    return [*files, last] if last.exists() else files


def _dotted(name: str) -> str:
    """Return a parameter's name with dots between its components, whichever way it is written.

    As sysctl(8): what comes first, a slash or a dot, is the separator, and the other is itself.
    """
    first = next((character for character in name if character in "./"), ".")
    return name if first == "." else name.replace("/", ".")
