"""Parse the process's settings from its environment."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from driver.errors import InvalidRequest
from driver.options import parse_bool
from driver.sysctl.policy import merge, parse_pattern, parse_sysctl

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from driver.model import Sysctl

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be set from outside, with its defaults."""

    socket: Path = Path("/run/docker/plugins/pynet.sock")
    second_socket: Path | None = None
    state_dir: Path = Path("/var/lib/pynet")
    relay_socket: Path | None = None  # where a service manager starts the relay; else we do
    default_sysctls: tuple[Sysctl, ...] = ()
    sysctl_allow: tuple[str, ...] = ()
    log_level: str = "INFO"
    ip_forward_no_drop: bool = False


def parse_settings(environment: Mapping[str, str]) -> Settings:
    """Return the settings in the environment; an empty variable means the default.

    Raises InvalidRequest that names the variable.
    """
    defaults = Settings()
    return Settings(
        socket=_parse_path(environment, "PYNET_SOCKET") or defaults.socket,
        second_socket=_parse_path(environment, "PYNET_SECOND_SOCKET"),
        state_dir=_parse_path(environment, "PYNET_STATE_DIR") or defaults.state_dir,
        relay_socket=_parse_path(environment, "PYNET_RELAY_SOCKET"),
        default_sysctls=_parse_sysctls(environment, "PYNET_DEFAULT_SYSCTLS"),
        sysctl_allow=_parse_patterns(environment, "PYNET_SYSCTL_ALLOW"),
        log_level=_parse_level(environment, "PYNET_LOG_LEVEL") or defaults.log_level,
        ip_forward_no_drop=_parse_flag(environment, "PYNET_IP_FORWARD_NO_DROP"),
    )


def _parse_path(environment: Mapping[str, str], name: str) -> Path | None:
    text = environment.get(name)
    if not text:
        return None
    path = Path(text)
    if not path.is_absolute():
        raise InvalidRequest(f"{name}={path}: expected an absolute path")
    return path


def _parse_flag(environment: Mapping[str, str], name: str) -> bool:
    text = environment.get(name)
    return parse_bool(name, text) if text else False


def _parse_level(environment: Mapping[str, str], name: str) -> str | None:
    level = environment.get(name, "").upper()
    if level and level not in LOG_LEVELS:
        raise InvalidRequest(f"{name}={level[:40]}: expected {', '.join(LOG_LEVELS)}")
    return level or None


def _parse_sysctls(environment: Mapping[str, str], name: str) -> tuple[Sysctl, ...]:
    """Return what stands between the commas as `key=value`."""
    with _naming(name):
        parsed = [_parse_pair(entry) for entry in _entries(environment, name)]
        keys = [sysctl.key for sysctl in parsed]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise InvalidRequest(f"{', '.join(sorted(twice))} is there twice")
        return merge(parsed)


def _parse_pair(entry: str) -> Sysctl:
    key, separator, value = entry.partition("=")
    if not separator:
        raise InvalidRequest(f"{entry[:80]!r}: expected net.….…=value, with commas in between")
    return parse_sysctl(key.strip(), value)


def _parse_patterns(environment: Mapping[str, str], name: str) -> tuple[str, ...]:
    with _naming(name):
        return tuple(parse_pattern(entry) for entry in _entries(environment, name))


def _entries(environment: Mapping[str, str], name: str) -> list[str]:
    """Return what stands between the commas; a value that holds one cannot be set here."""
    entries = (entry.strip() for entry in environment.get(name, "").split(","))
    return [entry for entry in entries if entry]


@contextmanager
def _naming(variable: str) -> Iterator[None]:
    """Prefix an error with the variable that it is about."""
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(f"{variable}: {error}") from error
