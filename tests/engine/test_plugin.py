"""The managed plugin at work: both of its names, a container's life, its end and its crashes."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engine import plugin_image
from tests.engine.conftest import EVERY_SUITE
from tests.engine.engine import Engine
from tests.engine.remains import links, rules
from tests.engine.site import HOST, HOST_ADDRESS, LAN, LAN_ADDRESS, LOOPBACK, Question, Site, check
from tests.engine.unixhttp import accepts, request
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

KEEPALIVE = "net.ipv4.tcp_keepalive_time"
SECOND_NAME = "run/docker/plugins/pynet.sock"


@pytest.fixture(scope="module", params=EVERY_SUITE)
def host(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Lend an engine, pristine but for the plugin that was created there."""
    plugin_image.ensure_built()
    with Engine(request.param) as engine:
        assert not (engine.outside / "run/docker/netns").exists()
        assert not engine.state.exists()
        plugin_image.create(engine)
        yield engine


@pytest.fixture
def enabled(host: Engine) -> Iterator[Engine]:
    """Lend the engine with the plugin enabled; afterwards nothing of it may be left."""
    before = links(host)
    host.docker("plugin", "enable", plugin_image.NAME)
    yield host
    for container in host.client.containers.list(all=True):
        container.remove(force=True)
    for network in host.docker("network", "ls", "-q", "--filter", "type=custom").stdout.split():
        host.docker("network", "rm", network)
    host.docker("plugin", "disable", "-f", plugin_image.NAME)
    assert not (host.outside / SECOND_NAME).exists()
    assert "pynet" not in rules(host)
    wait_until(lambda: links(host) == before, 10, "the links gone")


def seen_by_first_process(host: Engine, network: str) -> str:
    path = f"/proc/sys/{KEEPALIVE.replace('.', '/')}"
    return host.docker("run", "--rm", "--network", network, "bb", "cat", path).stdout.strip()


def worker_pids(host: Engine) -> list[int]:
    """List the plugin's processes, as the machine sees them."""
    space = Path(f"/proc/{host.init_pid}/ns/pid").readlink()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            ours = (entry / "ns/pid").readlink() == space
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # gone, or the machine's
        if ours and b"/usr/bin/pynet" in words:
            found.append(int(entry.name))
    return found


@pytest.mark.parametrize("name", ["pynet", plugin_image.NAME])
def test_both_names_give_networks_with_parameters(enabled: Engine, name: str) -> None:
    enabled.docker("network", "create", "-d", name, "-o", f"{KEEPALIVE}=600", "back")
    assert seen_by_first_process(enabled, "back") == "600"


def test_containers_talk_to_each_other_and_their_ports_are_published(enabled: Engine) -> None:
    with Site(enabled) as site:
        site.network("pynet", "back", 61)
        site.containers({"web": ("back", "-p", "8080:80"), "other": ("back",)})
        site.serve("web", "tcp", 80)
        address = site.address("web", "back", 4)
        check(
            site,
            [
                Question("other", address, 80, "*"),
                Question(HOST, LOOPBACK[4], 8080, "*"),
                Question(LAN, HOST_ADDRESS[4], 8080, LAN_ADDRESS[4]),
            ],
        )


def test_it_says_which_version_it_is(enabled: Engine) -> None:
    status, body = request(enabled.outside / SECOND_NAME, "GET", "/version")
    assert status == 200
    assert b'"version":"0' in body


def test_a_killed_plugin_is_back_for_the_next_container(enabled: Engine) -> None:
    enabled.docker("network", "create", "-d", "pynet", "-o", f"{KEEPALIVE}=600", "back")
    for pid in worker_pids(enabled):
        with suppress(ProcessLookupError):  # the worker dies with its parent
            os.kill(pid, signal.SIGKILL)
    assert seen_by_first_process(enabled, "back") == "600"


def test_disabled_and_enabled_again_it_still_has_its_networks(enabled: Engine) -> None:
    enabled.docker("network", "create", "-d", "pynet", "-o", f"{KEEPALIVE}=600", "back")
    enabled.docker("plugin", "disable", "-f", plugin_image.NAME)
    assert "pynet" not in rules(enabled)
    assert not [name for name in links(enabled) if name.startswith("pn")]
    enabled.docker("plugin", "set", plugin_image.NAME, "PYNET_LOG_LEVEL=DEBUG")
    enabled.docker("plugin", "enable", plugin_image.NAME)
    assert accepts(enabled.outside / SECOND_NAME)
    assert seen_by_first_process(enabled, "back") == "600"
