"""The managed plugin from a registry: pushed, installed on a pristine machine, and upgraded."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import pytest

from tests.engine import plugin_image
from tests.engine.conftest import EVERY_SUITE, NEWEST
from tests.engine.engine import Engine
from tests.engine.managed import inspect
from tests.engine.registry import ADDRESS, pushed_bytes, registry
from tests.engine.site import HOST_ADDRESS, LAN, LAN_ADDRESS, Question, Site, check
from tests.engine.steps import KEEPALIVE, first_value, sysctl_options
from tests.engine.unixhttp import request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MEGABYTE = 1_000_000
REF = f"{ADDRESS}/pynet/pynet:1"
NEXT_REVISION, LAST_REVISION = "e" * 40, "f" * 40
NEXT_REF = f"{ADDRESS}/pynet/pynet:2"
PORT, PUBLISHED, NEXT = 80, 8080, 8090
WANTED = sysctl_options({KEEPALIVE: "600"})


@dataclass(frozen=True)
class Publisher:
    """Who builds plugins and pushes them, on an engine that nobody installs them on."""

    engine: Engine
    storage: Path
    pushed: int

    @classmethod
    def make_push(cls, engine: Engine, storage: Path) -> Self:
        """Build the plugin and push it, as people do; the engine must keep nothing of it."""
        plugin_image.ensure_base(engine)
        variables = (f"REF={REF}", f"BASE={plugin_image.BASE}", f"PLUGIN_DIR={storage}/built")
        plugin_image.run_docker_user(engine, "make", "plugin-push", *variables)
        assert engine.docker("plugin", "ls", "-q").stdout == ""
        return cls(engine, storage, pushed_bytes(storage))

    def push_other(self, revision: str, ref: str) -> None:
        """Push a plugin that says it was built from another commit."""
        folder = self.storage / "other"
        shutil.copytree(self.storage / "built", folder, symlinks=True, copy_function=os.link)
        (file,) = (folder / "rootfs").glob("usr/**/plugin/REVISION")
        file.unlink()
        file.write_text(f"{revision}\n")
        plugin_image.create(self.engine, ref, folder)
        self.engine.docker("plugin", "push", ref)
        self.engine.docker("plugin", "rm", ref)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def publisher(builder: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Publisher]:
    """Lend the one who has pushed the plugin as it is, and another."""
    storage = tmp_path_factory.mktemp("registry")
    with registry(builder, storage):
        publisher = Publisher.make_push(builder, storage)
        publisher.push_other(NEXT_REVISION, NEXT_REF)
        yield publisher


@contextmanager
def machine(suite: str, publisher: Publisher) -> Iterator[Engine]:
    """Have a machine on which nobody has used Docker, and that reaches the registry."""
    with Engine(suite) as engine, registry(engine, publisher.storage):
        assert not (engine.outside / "run/docker/netns").exists()
        assert not engine.state.exists()
        yield engine


def install(engine: Engine) -> None:
    engine.docker("plugin", "install", "--grant-all-permissions", REF)
    assert inspect(engine, REF)["Enabled"]


def version(engine: Engine) -> str:
    status, body = request(engine.outside / "run/docker/plugins/pynet.sock", "GET", "/version")
    assert status == 200
    return body.decode()


@pytest.mark.parametrize("suite", EVERY_SUITE)
def test_a_pristine_machine_installs_it_and_upgrades_it(suite: str, publisher: Publisher) -> None:
    """With connections over the upgrade that carry data all the time: not a byte goes astray."""
    with machine(suite, publisher) as engine, Site(engine) as site:
        install(engine)
        site.network("pynet", "short", 60, *WANTED)
        site.network(REF, "full", 61, *WANTED)
        for network in ("short", "full"):
            assert first_value(engine, network, KEEPALIVE) == "600"
        site.containers({"web": ("short", "-p", f"{PUBLISHED}:{PORT}"), "near": ("short",)})
        site.echo("web", PORT)
        with (
            site.stream(LAN, HOST_ADDRESS[4], PUBLISHED),
            site.stream("near", site.address("web", "short", 4), PORT),
        ):
            # To another reference: the engine asks whether that is meant, unless told not to.
            upgrade(engine, "--skip-remote-check", REF, NEXT_REF)
            assert NEXT_REVISION in version(engine)
            for network in ("short", "full"):
                assert first_value(engine, network, KEEPALIVE) == "600"
            site.container("next", "full", "-p", f"{NEXT}:{PORT}")
            site.serve("next", "tcp", PORT)
            check(site, [Question(LAN, HOST_ADDRESS[4], NEXT, LAN_ADDRESS[4])])


def test_it_is_small_in_a_registry_and_on_a_disk(publisher: Publisher) -> None:
    with machine(NEWEST, publisher) as engine:
        install(engine)
        (root,) = (engine.folder / "lib/docker/plugins").glob("*/rootfs")
        files = (path.lstat() for path in root.rglob("*"))
        unpacked = sum(each.st_size for each in files if stat.S_ISREG(each.st_mode))
    pushed = publisher.pushed
    print(f"\n{pushed / MEGABYTE:.1f} MB pushed, {unpacked / MEGABYTE:.1f} MB unpacked")
    assert 0 < pushed <= 35 * MEGABYTE
    assert 0 < unpacked <= 90 * MEGABYTE


def test_it_is_upgraded_to_what_the_reference_means_by_now(publisher: Publisher) -> None:
    with machine(NEWEST, publisher) as engine:
        install(engine)
        publisher.push_other(LAST_REVISION, REF)
        upgrade(engine, REF)
        assert LAST_REVISION in version(engine)


def upgrade(engine: Engine, *words: str) -> None:
    """Upgrade as the documents say."""
    engine.docker("plugin", "disable", "-f", REF)
    engine.docker("plugin", "upgrade", "--grant-all-permissions", *words)
    engine.docker("plugin", "enable", REF)
