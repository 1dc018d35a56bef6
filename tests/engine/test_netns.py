"""`pynet netns` on a host with Docker: every namespace is there, with its name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.engine.site import Site
from tests.engine.steps import KEEPALIVE, pynet, sysctl_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine


@pytest.fixture
def site(engine28: Engine) -> Iterator[Site]:
    with Site(engine28) as site:
        yield site


def test_every_namespace_is_there_with_its_name(site: Site) -> None:
    engine = site.engine
    site.network("pynet", "back", 60, *sysctl_options({KEEPALIVE: "600"}))
    site.network("bridge", "front", 61)
    site.containers({"web": ("back",), "old": ("front",)})
    engine.run("ip", "netns", "add", "lab")
    sleeper = engine.popen("unshare", "--net", "sleep", "1000")
    try:
        shown = json.loads(pynet(engine, "netns", "--sysctls", "--json").stdout)
    finally:
        sleeper.kill_group()
        engine.run("ip", "netns", "del", "lab")
    found = {(each["kind"], each["name"]): each for each in shown}
    assert {("host", "host"), ("container", "web"), ("container", "old"), ("ip netns", "lab")} <= {
        *found
    }
    assert ("process", "sleep") in found
    for name in ("web", "old"):
        settings = json.loads(engine.docker("inspect", name).stdout)[0]
        inside = found["container", name]
        (eth0,) = (each for each in inside["interfaces"] if each["name"] == "eth0")
        (network,) = settings["NetworkSettings"]["Networks"].values()
        assert any(each.startswith(network["IPAddress"]) for each in eth0["addresses"])
        assert settings["State"]["Pid"] in inside["processes"]
    assert found["container", "web"]["sysctls"][KEEPALIVE] == "600"
    assert KEEPALIVE not in found["container", "old"]["sysctls"]
    assert len({each["inode"] for each in shown}) == len(shown)
    table = pynet(engine, "netns").stdout.splitlines()
    assert table[0].split() == ["INODE", "OF", "NAME", "PROCESSES", "INTERFACES"]
    assert any(line.split()[1:3] == ["container", "web"] for line in table)
