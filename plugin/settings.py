"""Read the process's settings from its environment, once; decides nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from driver.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be set from outside, with its defaults."""

    socket: Path = Path("/run/docker/plugins/pynet.sock")
    state_dir: Path = Path("/var/lib/pynet")
    log_level: str = "INFO"


def parse_settings(environment: Mapping[str, str]) -> Settings:
    """Return the settings in the environment; an empty variable means the default.

    Raises InvalidRequest that names the variable.
    """
    defaults = Settings()
    level = (environment.get("PYNET_LOG_LEVEL") or defaults.log_level).upper()
    if level not in LOG_LEVELS:
        raise InvalidRequest(f"PYNET_LOG_LEVEL={level[:40]}: expected {', '.join(LOG_LEVELS)}")
    return Settings(
        socket=_parse_path(environment, "PYNET_SOCKET", defaults.socket),
        state_dir=_parse_path(environment, "PYNET_STATE_DIR", defaults.state_dir),
        log_level=level,
    )


def _parse_path(environment: Mapping[str, str], name: str, default: Path) -> Path:
    path = Path(environment.get(name) or default)
    if not path.is_absolute():
        raise InvalidRequest(f"{name}={path}: expected an absolute path")
    return path
