"""What the environment may say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from driver.errors import InvalidRequest
from driver.model import Sysctl
from plugin.settings import Settings, parse_settings
from tests.engine.driver import REPOSITORY
from tests.kernel.daemon import TUNABLES, TUNED


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Settings()),
        ({"PYNET_SOCKET": "", "PYNET_STATE_DIR": "", "PYNET_LOG_LEVEL": ""}, Settings()),
        ({"PYNET_SOCKET": "/run/x.sock"}, Settings(socket=Path("/run/x.sock"))),
        ({"PYNET_STATE_DIR": "/srv/pynet"}, Settings(state_dir=Path("/srv/pynet"))),
        ({"PYNET_LOG_LEVEL": "debug"}, Settings(log_level="DEBUG")),
        ({"PATH": "relative"}, Settings()),
        ({"PYNET_SECOND_SOCKET": "/run/x"}, Settings(second_socket=Path("/run/x"))),
        (
            {"PYNET_DEFAULT_SYSCTLS": "net.ipv4.tcp_rmem=1 2 3, net.core.somaxconn = 99 ,"},
            Settings(
                default_sysctls=(
                    Sysctl("net.core.somaxconn", "99"),
                    Sysctl("net.ipv4.tcp_rmem", "1 2 3"),
                )
            ),
        ),
        (
            {"PYNET_SYSCTL_ALLOW": "net.ipv4.tcp_*, net.ipv4.conf.IFNAME.rp_filter"},
            Settings(sysctl_allow=("net.ipv4.tcp_*", "net.ipv4.conf.IFNAME.rp_filter")),
        ),
    ],
)
def test_settings_are_read(environment: dict[str, str], expected: Settings) -> None:
    assert parse_settings(environment) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PYNET_SOCKET", "x.sock"),
        ("PYNET_SECOND_SOCKET", "y.sock"),
        ("PYNET_STATE_DIR", "./x"),
        ("PYNET_LOG_LEVEL", "loud"),
        ("PYNET_DEFAULT_SYSCTLS", "net.core.somaxconn"),
        ("PYNET_DEFAULT_SYSCTLS", "kernel.shmmax=1"),
        ("PYNET_DEFAULT_SYSCTLS", "net.core.somaxconn="),
        ("PYNET_DEFAULT_SYSCTLS", "net.core.somaxconn=1,net.core.somaxconn=2"),
        ("PYNET_SYSCTL_ALLOW", "kernel.*"),
        ("PYNET_SYSCTL_ALLOW", "net.ipv4.tcp_*;net.core.*"),
        ("PYNET_SYSCTL_ALLOW", "*"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        parse_settings({name: value})


def test_the_defaults_are_those_of_the_documentation() -> None:
    assert Settings() == Settings(
        socket=Path("/run/docker/plugins/pynet.sock"),
        second_socket=None,
        state_dir=Path("/var/lib/pynet"),
        default_sysctls=(),
        sysctl_allow=(),
        log_level="INFO",
    )


def test_service_and_plugin_tell_glibc_what_the_soak_is_run_with() -> None:
    unit = (REPOSITORY / "packaging/pynet.service").read_text().splitlines()
    config = json.loads((REPOSITORY / "config.json").read_text())
    assert f"Environment={TUNABLES}={TUNED}" in unit
    assert {each["name"]: each["value"] for each in config["env"]}[TUNABLES] == TUNED
