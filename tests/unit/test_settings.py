"""What the environment may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from driver.errors import InvalidRequest
from plugin.settings import Settings, parse_settings


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Settings()),
        ({"PYNET_SOCKET": "", "PYNET_STATE_DIR": "", "PYNET_LOG_LEVEL": ""}, Settings()),
        ({"PYNET_SOCKET": "/run/x.sock"}, Settings(socket=Path("/run/x.sock"))),
        ({"PYNET_STATE_DIR": "/srv/pynet"}, Settings(state_dir=Path("/srv/pynet"))),
        ({"PYNET_LOG_LEVEL": "debug"}, Settings(log_level="DEBUG")),
        ({"PATH": "relative"}, Settings()),
    ],
)
def test_settings_are_read(environment: dict[str, str], expected: Settings) -> None:
    assert parse_settings(environment) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [("PYNET_SOCKET", "x.sock"), ("PYNET_STATE_DIR", "./x"), ("PYNET_LOG_LEVEL", "loud")],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        parse_settings({name: value})


def test_the_defaults_are_those_of_the_documentation() -> None:
    assert Settings() == Settings(
        Path("/run/docker/plugins/pynet.sock"), Path("/var/lib/pynet"), "INFO"
    )
