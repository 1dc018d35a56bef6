"""`pynet exec` on a host with Docker: the host's programs in a container's network namespace."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.engine.site import Site
from tests.engine.steps import pynet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine


@pytest.fixture
def site(engine28: Engine) -> Iterator[Site]:
    with Site(engine28) as site:
        yield site


@pytest.mark.parametrize("driver", ["pynet", "bridge"])
def test_a_program_of_the_host_sees_the_containers_network(site: Site, driver: str) -> None:
    engine = site.engine
    site.network(driver, "back", 60)
    site.container("web", "back")
    engine.docker("run", "-d", "--name=side", "--network=container:web", "bb", "sleep", "1000")
    address = site.address("web", "back", 4)
    for name in ("web", "side"):
        shown = json.loads(pynet(engine, "exec", name, "--", "ip", "-json", "addr").stdout)
        found = {info["local"] for each in shown for info in each["addr_info"]}
        assert address in found
    bridge = pynet(engine, "exec", "back", "--", "sh", "-c", "ip -json link show $PYNET_BRIDGE")
    (link,) = json.loads(bridge.stdout)
    ports = json.loads(engine.run("ip", "-json", "link", "show", "master", link["ifname"]).stdout)
    assert len(ports) == 1
    code = pynet(engine, "exec", "web", "--", "sh", "-c", "exit 7", check=False).returncode
    assert code == 7


def test_what_cannot_be_run_is_told_in_one_line(site: Site) -> None:
    engine = site.engine
    site.network("pynet", "back", 60)
    site.container("web", "back")
    engine.docker("run", "-d", "--name=own", "--network=host", "bb", "sleep", "1000")
    for words, code, said in (
        (("web", "no-such-program"), 127, "no such program on this machine"),
        (("web", "--"), 2, "what is to be run?"),
        (("wbe", "true"), 1, "did you mean web?"),
        (("own", "true"), 1, "own is in the host's own namespace"),
        (("pid:1", "true"), 1, "that is the host's own namespace"),
    ):
        refused = pynet(engine, "exec", *words, check=False)
        assert (refused.returncode, refused.stdout) == (code, ""), refused.stderr
        assert said in refused.stderr
        assert refused.stderr.count("\n") == 1
    engine.docker("stop", "--time=0", "web")
    assert "web does not run" in pynet(engine, "exec", "web", "true", check=False).stderr
