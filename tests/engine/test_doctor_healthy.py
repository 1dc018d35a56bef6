"""`pynet doctor` finds nothing where all is well: networks of all kinds, again and again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.engine.driver import REPOSITORY
from tests.engine.site import HOST, HOST_ADDRESS, LAN, LAN_ADDRESS, Site, is_modern
from tests.engine.soak import repetitions
from tests.engine.steps import pynet_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine

pytestmark = pytest.mark.managed

TIMES = 1000
SECONDS = 1200  # for a full soak, beside other work
PORT, PUBLISHED, SERVICE = 80, 8080, 7070


@pytest.fixture
def site(newest_engine: Engine) -> Iterator[Site]:
    """Lend networks: open, with a second one, internal, closed, made in the sandbox itself."""
    with Site(newest_engine) as site:
        site.network("pynet", "back", 60)
        site.network("pynet", "front", 61)
        site.network("pynet", "inner", 62, "--internal")
        site.network("pynet", "closed", 63, "-o", "com.docker.network.bridge.enable_icc=false")
        wanted: dict[str, tuple[str, ...]] = {
            "web": ("back", "-p", f"{PUBLISHED}:{PORT}"),
            "client": ("back",),
            "both": ("front",),
            "one": ("inner",),
            "two": ("inner",),
            "apart": ("closed", "-p", f"{PUBLISHED + 1}:{PORT}"),
        }
        if is_modern(newest_engine):
            site.network("pynet", "direct", 64, "-o", "pynet.attach=direct")
            wanted |= {"near": ("direct",), "far": ("direct", "-p", f"{PUBLISHED + 2}:{PORT}")}
        site.containers(wanted)
        newest_engine.docker("network", "connect", "back", "both")
        for name in ("web", "one", "apart", *(["far"] if "far" in wanted else [])):
            site.serve(name, "tcp", PORT)
        for name in (HOST, LAN):
            site.serve(name, "tcp", SERVICE)
        yield site


@pytest.mark.timeout(SECONDS + 60)
def test_nothing_is_found_where_all_is_well(site: Site) -> None:
    flows = [
        ("client", f"web:{PORT}"),
        ("client", f"[{site.address('web', 'back', 6)}]:{PORT}"),
        ("client", f"{LAN_ADDRESS[4]}:{SERVICE}"),
        ("client", f"[{LAN_ADDRESS[6]}]:{SERVICE}"),
        ("client", f"{HOST_ADDRESS[4]}:{PUBLISHED}"),
        ("client", f"host:{SERVICE}"),
        ("host", f"web:{PORT}"),
        ("outside", f"web:{PORT}"),
        ("both", f"web:{PORT}"),
        ("both", f"{LAN_ADDRESS[4]}:{SERVICE}"),
        ("two", f"one:{PORT}"),
        ("apart", f"{LAN_ADDRESS[4]}:{SERVICE}"),
        ("outside", f"apart:{PORT}"),
        ("host", f"apart:{PORT}"),
    ]
    if is_modern(site.engine):
        flows += [
            ("near", f"far:{PORT}"),
            ("near", f"[{LAN_ADDRESS[6]}]:{SERVICE}"),
            ("outside", f"far:{PORT}"),
            ("host", f"far:{PORT}"),
        ]
    env = pynet_command()[1]
    command = ("env", f"--chdir={REPOSITORY}", sys.executable, "-m", "tests.engine.healthy")
    words = [word for flow in flows for word in flow]
    done = site.engine.run(
        *command, str(repetitions(TIMES)), *words, env=env, timeout=SECONDS, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
