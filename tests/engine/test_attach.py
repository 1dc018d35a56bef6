"""`pynet.attach=direct`: the driver makes the interface in the sandbox by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine import steps
from tests.engine.conftest import Choice
from tests.engine.site import HOST, HOST_ADDRESS, LAN, LAN_ADDRESS, LOOPBACK, Question, Site, check
from tests.engine.steps import KEEPALIVE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.conftest import Engines
    from tests.engine.engine import Engine

pytestmark = pytest.mark.managed

DIRECT = ("-o", "pynet.attach=direct")
PREFIX = "com.docker.network.container_iface_prefix"
IFNAME = "com.docker.network.endpoint.ifname"
RP_FILTER = "net.ipv4.conf.front0.rp_filter"
PORT, PUBLISHED = 80, 8080


@pytest.fixture
def site(engine28: Engine) -> Iterator[Site]:
    with Site(engine28) as site:
        yield site


def reaches_all(site: Site) -> None:
    """Have web reached through its port, by its neighbour and by name, and reach the outside."""
    questions = []
    for version in (4, 6):
        outside, neighbour = HOST_ADDRESS[version], LAN_ADDRESS[version]
        web, near = (site.address(name, "a", version) for name in ("web", "near"))
        questions += [
            Question(LAN, outside, PUBLISHED, neighbour),
            Question(HOST, LOOPBACK[version], PUBLISHED, "*"),
            Question("near", outside, PUBLISHED, "*"),
            Question("web", outside, PUBLISHED, "*"),
            Question("near", web, PORT, near),
            Question("web", neighbour, PORT, outside),
        ]
    check(site, questions)
    steps.ping(site.engine, "near", "web")


@pytest.mark.managed("always")
def test_an_interface_made_in_the_sandbox(site: Site) -> None:
    engine = site.engine
    parameters = ("-o", f"{KEEPALIVE}=600", "-o", "net.ipv4.conf.IFNAME.rp_filter=2")
    site.network("pynet", "a", 60, *DIRECT, *parameters)
    site.containers(
        {
            "web": (f"name=a,driver-opt={IFNAME}=front0", "-p", f"{PUBLISHED}:{PORT}"),
            "near": ("a",),
        }
    )
    site.serve("web", "tcp", PORT)
    site.serve(LAN, "tcp", PORT)
    reaches_all(site)

    def is_complete() -> None:
        (name,) = steps.interfaces(engine, "web")
        assert name == "front0"
        link = steps.interfaces(engine, "web")[name]
        place = steps.endpoint(engine, "web", "a")
        assert link["address"] == place["MacAddress"]
        assert steps.global_addresses(link) == {
            f"{place['IPAddress']}/24",
            f"{place['GlobalIPv6Address']}/64",
        }
        assert steps.kernel_value(engine, "web", KEEPALIVE) == "600"
        assert steps.kernel_value(engine, "web", RP_FILTER) == "2"

    is_complete()
    assert "eth0" in steps.interfaces(engine, "near")
    engine.docker("restart", "-t", "0", "web")
    site.serve("web", "tcp", PORT)
    is_complete()
    reaches_all(site)


def test_several_networks_with_prefixes_of_their_own(site: Site) -> None:
    engine = site.engine
    site.network("pynet", "a", 60, *DIRECT, "-o", f"{PREFIX}=one")
    site.network("pynet", "b", 61, *DIRECT, "-o", f"{PREFIX}=two")
    site.network("pynet", "c", 62, "-o", f"{PREFIX}=three")
    site.container("web", "a")
    for network in ("b", "c"):
        engine.docker("network", "connect", network, "web")
    assert set(steps.interfaces(engine, "web")) == {"one0", "two0", "three0"}
    engine.docker("network", "disconnect", "b", "web")
    assert set(steps.interfaces(engine, "web")) == {"one0", "three0"}
    engine.docker("network", "connect", "b", "web")
    assert set(steps.interfaces(engine, "web")) == {"one0", "two0", "three0"}
    engine.docker("restart", "-t", "0", "web")
    assert set(steps.interfaces(engine, "web")) == {"one0", "two0", "three0"}


def test_who_names_an_interface_is_settled_before_two_have_one_name(site: Site) -> None:
    """The engine counts by prefix and minds no interface that it has not named itself."""
    engine = site.engine
    site.network("pynet", "a", 60, *DIRECT)
    site.network("pynet", "b", 61)
    site.network("pynet", "c", 62, "-o", f"{PREFIX}=lan")
    for first, second in (("a", "b"), ("b", "a")):
        name = f"on-{first}"
        site.container(name, first)
        refused = engine.docker("network", "connect", second, name, check=False)
        assert refused.returncode != 0
        assert "both call interfaces eth…; give one of them a" in refused.stderr
        # What was refused has left nothing, and another prefix is all it takes.
        engine.docker("network", "connect", "c", name)
    engine.docker("network", "connect", "--driver-opt", f"{IFNAME}=front0", "a", "on-b")
    assert set(steps.interfaces(engine, "on-a")) == {"eth0", "lan0"}
    assert set(steps.interfaces(engine, "on-b")) == {"eth0", "lan0", "front0"}
    engine.docker("restart", "-t", "0", "on-b")
    assert set(steps.interfaces(engine, "on-b")) == {"eth0", "lan0", "front0"}


def test_a_name_that_an_endpoint_asks_for_is_given(site: Site) -> None:
    """On an ordinary network, beside others that the engine names."""
    engine = site.engine
    site.network("pynet", "a", 60, "-o", f"{KEEPALIVE}=600")
    site.network("pynet", "b", 61)
    site.containers(
        {
            "web": (f"name=a,driver-opt={IFNAME}=wan", "-p", f"{PUBLISHED}:{PORT}"),
            "near": ("a",),
        }
    )
    engine.docker("network", "connect", "b", "web")
    engine.docker("network", "connect", "--driver-opt", f"{IFNAME}=back", "b", "near")
    assert set(steps.interfaces(engine, "near")) == {"eth0", "back"}
    site.serve(LAN, "tcp", PORT)
    for _ in range(2):
        assert set(steps.interfaces(engine, "web")) == {"wan", "eth0"}
        assert steps.kernel_value(engine, "web", KEEPALIVE) == "600"
        site.serve("web", "tcp", PORT)
        reaches_all(site)
        engine.docker("restart", "-t", "0", "web")
    engine.docker("network", "disconnect", "a", "web")
    assert set(steps.interfaces(engine, "web")) == {"eth0"}


@pytest.mark.parametrize(
    "suite", [pytest.param("bookworm", id="20.10"), pytest.param("trixie", id="26.1")]
)
def test_an_older_engine_is_told_that_it_is_too_old(engines: Engines, suite: str) -> None:
    for engine in engines.lend(Choice(suite), driver=True):
        steps.create_network(engine, "a", *DIRECT)
        done = engine.docker("run", "--rm", "--network", "a", "bb", "true", check=False)
        assert done.returncode != 0
        assert "pynet.attach=direct: the sandbox does not exist yet" in done.stderr
        assert "needs Docker Engine 28 or later" in done.stderr
