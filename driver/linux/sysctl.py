"""Read and write kernel parameters of the namespace that the calling thread is in.

Decides nothing: which parameters, and whether, is `driver.sysctl.policy`.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from driver.errors import InvalidRequest, KernelError
from driver.linux import netns
from driver.linux.procfs import Procfs
from driver.model import Trace
from driver.sysctl.policy import NAMESPACE_WIDE_NAMES, is_of_interface, path_components

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from driver.model import Sysctl, SysctlWrite

ROOT = Path("/proc/sys")
LOOPBACK = "lo"
NEW_INTERFACE = "default"  # in its place the kernel keeps what an interface starts with
_OF_INTERFACES = frozenset({"conf", "neigh"})
_READ_AND_WRITE = 0o600
_MOST_FILES = 64  # open at once
_LONGEST = 65536  # bytes; the kernel gives a value as a whole or not at all

_procfs = Procfs()


@cache
def has_ipv6() -> bool:
    """Return whether the kernel was started with IPv6."""
    return (ROOT / "net/ipv6").is_dir()


def read(key: str, ifname: str = LOOPBACK, opened: int | None = None) -> str | None:
    """Return the value of a parameter, None if this namespace does not have it or hides it.

    `opened` is its file, if the caller has it open.
    """
    try:
        with _file(key, ifname, opened, os.O_RDONLY) as descriptor:
            return os.pread(descriptor, _LONGEST, 0).decode().rstrip("\n")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
        return None
    except OSError as error:
        raise KernelError(f"read {key}: {error.strerror}") from error


def read_all(keys: Iterable[str], ifname: str | None = LOOPBACK) -> dict[str, str]:
    """Return the values of the parameters that this namespace has; of no interface if None."""
    here = (key for key in keys if ifname is not None or not is_of_interface(key))
    values = {key: read(key, ifname or LOOPBACK) for key in here}
    return {key: value for key, value in values.items() if value is not None}


def read_settable() -> dict[str, str]:
    """Return every parameter that can be read and set here, with its value.

    Without those of an interface, but for `all`, `default` and `lo`, which every namespace has.
    """
    found: dict[str, str] = {}
    for folder, folders, files in os.walk(ROOT / "net"):
        if Path(folder).name in _OF_INTERFACES:
            folders[:] = [name for name in folders if name in NAMESPACE_WIDE_NAMES]
        for name in files:
            path = Path(folder, name)
            if path.stat().st_mode & _READ_AND_WRITE != _READ_AND_WRITE:
                continue
            with suppress(OSError):  # stable_secret answers EIO as long as there is none
                key = ".".join(path.relative_to(ROOT).parts)
                found[key] = path.read_text().rstrip("\n")
    return found


def write(key: str, value: str, ifname: str = LOOPBACK, opened: int | None = None) -> None:
    """Write one parameter; raises KernelError with the kernel's reason.

    `opened` is its file, if the caller has it open.
    """
    try:
        with _file(key, ifname, opened, os.O_WRONLY) as descriptor:
            os.pwrite(descriptor, value.encode(), 0)
    except OSError as error:
        raise KernelError(f"set {key}={value}: {error.strerror}") from error


def ensure(key: str, value: str, ifname: str) -> None:
    """Write a parameter of an interface unless it has the value, or is not there.

    Only writing takes the rtnl lock. Raises KernelError with the kernel's reason.
    """
    try:
        descriptor = _open(key, ifname, os.O_RDWR)
    except FileNotFoundError:  # a kernel started without IPv6, or an MTU too small for it
        return
    except OSError as error:
        raise KernelError(f"set {key}={value}: {error.strerror}") from error
    try:
        if read(key, ifname, descriptor) != value:
            write(key, value, ifname, descriptor)
    except KernelError as error:
        if not isinstance(error.__cause__, FileNotFoundError):  # gone while its file was open
            raise
    finally:
        os.close(descriptor)


def compare_and_write(writes: Sequence[SysctlWrite]) -> tuple[Trace, ...]:
    """Write the parameters that have an expected value; return a trace of every write.

    All or nothing: when one write fails the earlier ones are put back.
    """
    keys = [each.key for each in writes]
    with _open_some(keys) as files:
        # All before any: to set one may change another (ip_forward and conf.all.forwarding).
        before = {key: read(key, opened=files.get(key)) for key in keys}
        written: dict[str, str] = {}
        try:
            for each in writes:
                value = before[each.key]
                if value is not None and each.replaces(value):
                    write(each.key, each.value, opened=files.get(each.key))
                    written[each.key] = value
            return tuple(
                Trace(key, value, written=read(key, opened=files.get(key)) or "")
                for key, value in written.items()
            )
        except KernelError:
            for key, value in reversed(written.items()):
                write(key, value, opened=files.get(key))
            raise


@contextmanager
def _file(key: str, ifname: str, opened: int | None, flags: int) -> Iterator[int]:
    """Lend a parameter's file: the one that is open, or another for as long as the block lasts."""
    if opened is not None:
        yield opened
        return
    descriptor = _open(key, ifname, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _open_some(keys: Sequence[str]) -> Iterator[dict[str, int]]:
    """Lend the files of parameters, to be read and written: of the first, of those there are."""
    with ExitStack() as stack:
        files: dict[str, int] = {}
        for key in keys[:_MOST_FILES]:
            with suppress(OSError):  # reading or writing it says why
                files[key] = _open(key, LOOPBACK, os.O_RDWR)
                stack.callback(os.close, files[key])
        yield files


def check(sysctls: Sequence[Sysctl]) -> dict[str, str]:
    """Try each parameter in a throw-away namespace; return what the namespace had before.

    Raises InvalidRequest with the parameter's name and the reason. The host's own value is
    compared before and after: kernels older than 5.12 let a namespace write some parameters that
    belong to the whole machine (ensure_safe_net_sysctl() in net/sysctl_net.c ended that).
    """
    if not sysctls:
        return {}
    on_host = read_all(sysctl.key for sysctl in sysctls)

    def attempt() -> dict[str, str]:
        # All before any: to set one may change another (ip_forward and conf.all.forwarding).
        before = read_all(sysctl.key for sysctl in sysctls)
        for sysctl in sysctls:
            _try(sysctl, before.get(sysctl.key), sysctl.key in on_host)
        return before

    pristine = netns.run_in_new(attempt)
    for key, value in on_host.items():
        if read(key) != value:
            write(key, value)
            raise InvalidRequest(f"{key}: is not per network namespace, it is the whole machine's")
    return pristine


def read_pristine(keys: Iterable[str] | None = None) -> dict[str, str]:
    """Return what a namespace made now has; without keys, every parameter that can be set there."""
    if keys is None:
        return netns.run_in_new(read_settable)
    wanted = tuple(keys)
    return netns.run_in_new(lambda: read_all(wanted))


def _try(sysctl: Sysctl, before: str | None, on_host: bool) -> None:  # noqa: FBT001 - private
    path = ROOT.joinpath(*path_components(sysctl.key, LOOPBACK))
    if not path.is_file():
        raise InvalidRequest(_why_missing(sysctl.key, path, on_host=on_host))
    if not path.stat().st_mode & 0o200:
        raise InvalidRequest(f"{sysctl.key}: is read-only in a network namespace")
    if before is None:
        raise InvalidRequest(f"{sysctl.key}: cannot be read, so it could not be put back")
    try:
        write(sysctl.key, sysctl.value)
    except KernelError as error:
        reason = _why_refused(sysctl, error.__cause__)
        raise InvalidRequest(f"{error}: {reason} (a new namespace has {before!r})") from error


def _why_refused(sysctl: Sysctl, error: BaseException | None) -> str:
    """Return what the kernel's error number means for a value that was chosen."""
    number = error.errno if isinstance(error, OSError) else None
    match number, sysctl.key:
        case errno.EPERM, "net.ipv4.tcp_congestion_control":
            allowed = read("net.ipv4.tcp_allowed_congestion_control") or "none"
            return f"the host's net.ipv4.tcp_allowed_congestion_control does not name it: {allowed}"
        case ((errno.EPERM | errno.EACCES), _):
            return "the kernel permits this value to the host alone"
        case errno.ENOENT, _:
            return "the kernel knows nothing of that name"
        case ((errno.EINVAL | errno.ERANGE), _):
            return "the value is malformed or out of range"
        case _:
            return "the kernel does not take this value"


def _why_missing(key: str, path: Path, *, on_host: bool) -> str:
    if on_host:
        return f"{key}: is not per network namespace; it is set on the host, for the whole machine"
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    from difflib import get_close_matches  # noqa: PLC0415 - for who mistypes, and slow to come

    near = get_close_matches(path.name, siblings, n=1)
    hint = f"; did you mean {key.rpartition('.')[0]}.{near[0]}?" if near else ""
    return f"{key}: this kernel has no such parameter{hint}"


def _open(key: str, ifname: str, flags: int) -> int:
    # As text, for making a Path takes longer than reading the file.
    return _procfs.open("/".join(("sys", *path_components(key, ifname))), flags)
