"""Collect the managed plugin's root file system: what `pynet serve` needs, and nothing besides.

The Dockerfile runs it in its build stage, with the interpreter that the plugin will run on. No
shell, compiler, installer or setuid program gets in, for only what is named or reached from here is
copied. Uses the standard library alone, asks no network, and gives the same bytes for the same
input: nothing may depend on the clock or on the order of a folder.
"""

from __future__ import annotations

import compileall
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Docker mounts something on most of these. /var/run is no link to /run: the engine puts the
# plugin's socket folder on /run/docker/plugins and the host's /var/run/docker beside it.
FOLDERS = (
    "dev",
    "etc",
    "host/plugins",
    "proc",
    "run/docker/plugins",
    "sys",
    "tmp",
    "usr/bin",
    "var/lib",
    "var/run/docker",
)
# Docker mounts the host's on these.
MOUNTED_FILES = ("etc/hosts", "etc/resolv.conf")

# What libraries read while they run.
DATA = ("/etc/protocols",)  # libnftables: ipv6-icmp, which is no word of its own language

# Libraries that no file names as one it needs.
OPENED_BY_NAME = (
    "libnftables.so.1",  # driver.linux.nft
    "libip4tc.so.2",  # the legacy iptables' tables
    "libip6tc.so.2",
    "libgcc_s.so.1",  # glibc opens it to end a thread from outside
)

# Modules of the standard library, files or packages, that a server has no use for.
UNUSED = {
    # Not unittest: pyroute2 imports its mock.
    "tests": ("test", "doctest", "__phello__", "__hello__"),
    "graphics and games": ("idlelib", "tkinter", "turtle", "turtledemo", "antigravity", "this"),
    "installing and distributing": ("ensurepip", "venv", "zipapp", "lib2to3", "site-packages"),
    "the distribution's additions": ("dist-packages", "sitecustomize", "EXTERNALLY-MANAGED"),
    "documentation": ("pydoc", "pydoc_data"),
    "a prompt": ("_pyrepl", "cmd", "code", "rlcompleter", "curses", "pty"),
    "debuggers and profilers": (
        # Not timeit: prometheus_client imports its clock.
        *("pdb", "bdb", "trace", "tabnanny", "pyclbr", "modulefinder"),
        *("profile", "cProfile", "pstats", "profiling", "pickletools"),
    ),
    # Not wsgiref: prometheus_client imports it.
    "mail, news and the web as a client": (
        *("imaplib", "poplib", "smtplib", "ftplib", "mailbox", "netrc", "webbrowser", "xmlrpc"),
    ),
    "media and old databases": ("wave", "colorsys", "dbm", "shelve"),
    "other systems": ("_aix_support", "_android_support", "_apple_support", "_ios_support"),
}
# Compiled modules, by how their names begin.
UNUSED_COMPILED = {
    "tests": ("_test", "_ctypes_test", "_xxtest", "xxlimited", "xxsubtype"),
    "what belongs to an unused module": (
        *("_tkinter", "_curses", "readline", "_dbm", "_gdbm", "_lsprof", "_remote_debugging"),
        *("nis", "ossaudiodev", "audioop"),
    ),
    "encodings of East Asia": ("_codecs_", "_multibytecodec"),
}
# Of the encodings only these: nothing that the driver reads is in a national one.
ENCODINGS = (
    *("__init__", "aliases", "ascii", "latin_1", "charmap", "utf_8", "utf_8_sig"),
    *("utf_16", "utf_16_be", "utf_16_le", "utf_32", "utf_32_be", "utf_32_le"),
    *("raw_unicode_escape", "unicode_escape", "idna", "punycode"),
    *("cp437",),  # names in zip archives
    *("iso8859_1", "hex_codec", "base64_codec", "zlib_codec"),
)
# Run by the collected interpreter: it starts without anything outside its root, and finds all that
# the server imports. The commands that ask Docker are for the machine, not for the plugin.
CHECK = """
import importlib, pkgutil, driver, plugin
for package in (driver, plugin):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.startswith(("plugin.cli.", "plugin.cli.names", "plugin.cli.leftovers")):
            importlib.import_module(module.name)
import plugin.cli.serve, gunicorn.workers.gthread, prometheus_client
"""

# Of a package's description only these: the rest says how and from where it was installed.
DESCRIPTION = ("METADATA", "entry_points.txt", "licenses")


def main(source: Path, packages: Path, root: Path, revision: str, epoch: int) -> None:
    """Make the root file system."""
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    for file in MOUNTED_FILES:
        (root / file).touch()
    interpreter = Path(sys.executable).resolve()
    for path in (*map(Path, DATA), interpreter):
        copy(path, root)
    copy_standard_library(root)
    modules = below(root, Path(site.getsitepackages()[0]))
    copy_packages(packages, modules)
    copy_pynet(source, modules, revision)
    write_command(root / "usr/bin/pynet", interpreter)
    copy_libraries(root, interpreter)
    compile_modules(root)
    normalise(root, interpreter, epoch)
    run("chroot", str(root), str(interpreter), "-IB", "-c", CHECK)
    run("chroot", str(root), "/usr/bin/pynet", "version")


def below(root: Path, path: Path) -> Path:
    """Return where an absolute path is in the root file system."""
    return root / path.relative_to("/")


def copy(file: Path, root: Path) -> None:
    """Copy one file to the same path, and what a link leads to in place of the link."""
    # /lib and /lib64 may be links to folders of /usr.
    target = below(root, file.parent.resolve() / file.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)


def copy_standard_library(root: Path) -> None:
    """Copy the standard library without what is listed as unused."""
    unused = {name for names in UNUSED.values() for name in names}
    for folder in sorted({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}):
        for entry in sorted(Path(folder).iterdir()):
            if entry.name.split(".")[0] in unused or is_of_a_build(entry):
                continue
            for file in files_below(entry):
                if is_used(file):
                    copy(file, root)


def is_of_a_build(entry: Path) -> bool:
    """Tell whether an entry of the standard library only serves to build against it."""
    return entry.name.startswith(("config-", "build-details"))


def is_used(file: Path) -> bool:
    """Tell whether a file of the standard library is one that a server can come to need."""
    if file.parent.name == "lib-dynload":
        return not file.name.startswith(tuple(sum(UNUSED_COMPILED.values(), ())))
    if file.parent.name == "encodings":
        return file.stem in ENCODINGS
    return file.suffix in (".py", ".json", ".txt")


def files_below(entry: Path) -> Iterator[Path]:
    """Yield a file itself, or all files of a folder; no compiled modules, which are made anew."""
    if entry.is_file():
        yield entry
        return
    for path in sorted(entry.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def copy_packages(packages: Path, modules: Path) -> None:
    """Copy what pip unpacked, without commands and without how it was installed."""
    for entry in sorted(packages.iterdir()):
        if entry.name == "bin":
            continue
        for file in files_below(entry):
            inside = file.relative_to(packages)
            if entry.suffix == ".dist-info" and inside.parts[1] not in DESCRIPTION:
                continue
            target = modules / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def copy_pynet(source: Path, modules: Path, revision: str) -> None:
    """Copy pynet as a package that knows its version and its revision."""
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    for package in ("driver", "plugin"):
        for file in files_below(source / package):
            target = modules / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    (modules / "plugin/REVISION").write_text(f"{revision}\n")
    description = modules / f"pynet-{project['version']}.dist-info"
    (description / "licenses").mkdir(parents=True)
    shutil.copyfile(source / "LICENSE", description / "licenses/LICENSE")
    (description / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        f"Summary: {project['description']}\n"
    )


def write_command(command: Path, interpreter: Path) -> None:
    """Write the one command, under a path that does not depend on where the interpreter is.

    -I: neither the environment nor the current folder has a say in what is imported; -B: nothing
    is written beside the modules; -u: what is logged is in the engine's log at once.
    """
    command.write_text(f"#!{interpreter} -IBu\nfrom plugin.cli import main\n\nmain()\n")


def copy_libraries(root: Path, interpreter: Path) -> None:
    """Copy every library that something in the root file system needs, and how to find them."""
    compiled = [str(file) for file in sorted(root.rglob("*.so"))]
    by_name = [str(find_library(name)) for name in OPENED_BY_NAME]
    needed = {Path(name) for name in by_name} | needs([str(interpreter), *compiled, *by_name])
    for library in sorted(needed):
        copy(library, root)
    for link in ("lib", "lib64"):
        if Path("/", link).is_symlink():
            (root / link).symlink_to(Path("/", link).readlink())
    folders = sorted({str(library.parent.resolve()) for library in needed})
    (root / "etc/ld.so.conf").write_text("".join(f"{folder}\n" for folder in folders))
    run("ldconfig", "-X", "-r", str(root))
    shutil.rmtree(root / "var/cache", ignore_errors=True)
    copy_licences(root, sorted(needed))


def find_library(name: str) -> Path:
    """Return where the loader finds a library of this name."""
    for line in run("ldconfig", "-p").splitlines():
        if line.split()[0] == name:
            return Path(line.split()[-1])
    raise FileNotFoundError(f"collect: this system has no {name}")


def needs(files: Iterable[str]) -> set[Path]:
    """Return the libraries, the loader included, that the loader would take for these files."""
    found = set()
    for line in run("ldd", *files).splitlines():
        if "not found" in line:
            raise FileNotFoundError(f"collect: {line.strip()}")
        if match := re.fullmatch(r"\t(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)", line):
            found.add(Path(match[1]))
    return found


def copy_licences(root: Path, libraries: Iterable[Path]) -> None:
    """Copy what the distribution says of the rights to each library of its own."""
    names = [path.name for path in libraries if not path.is_relative_to("/usr/local")]
    owners = run("dpkg-query", "-S", *(f"*/{name}" for name in names))
    for package in sorted({line.split(":")[0] for line in owners.splitlines()}):
        copyright_file = Path("/usr/share/doc", package, "copyright")
        if copyright_file.is_file():
            copy(copyright_file, root)


def run(*command: str) -> str:
    """Return what a command of the build stage prints."""
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    return done.stdout


def compile_modules(root: Path) -> None:
    """Compile every module once and for all: the socket has to be open soon after the start.

    The sources stay, for tracebacks, but are not even looked at when a module is imported.
    """
    mode = PycInvalidationMode.UNCHECKED_HASH
    for folder in (sysconfig.get_path("stdlib"), site.getsitepackages()[0]):
        where = str(below(root, Path(folder)))
        if not compileall.compile_dir(
            where, quiet=1, force=True, stripdir=str(root), prependdir="/", invalidation_mode=mode
        ):
            raise SyntaxError(f"collect: compile {folder}")


def normalise(root: Path, interpreter: Path, epoch: int) -> None:
    """Give every file the same owner, mode and time, whatever they were copied from."""
    programs = {below(root, interpreter), root / "usr/bin/pynet", *root.rglob("ld-linux*")}
    for path in sorted(root.rglob("*"), reverse=True):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path in programs else 0o644)
        os.utime(path, (epoch, epoch), follow_symlinks=False)
    (root / "tmp").chmod(0o1777)
    os.utime(root, (epoch, epoch))


if __name__ == "__main__":
    _, *folders, at, when = sys.argv
    from_source, from_pip, to_root = map(Path, folders)
    main(from_source, from_pip, to_root, at, int(when))
