"""What a person who typed something wrong is told, and that nothing is left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.remains import Holdings
from tests.engine.steps import IPV4, create_network, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine

pytestmark = pytest.mark.managed

VETH = "somebodys"
BRIDGE_NAME = "com.docker.network.bridge.name"
MTU = "com.docker.network.driver.mtu"

WRONG_OPTIONS = {
    "unknown option": ("com.docker.network.driver.mtuu=1400", f"did you mean {MTU}?"),
    "sysctl that is not there": (
        "net.ipv4.tcp_keepalive_tim=600",
        "has no such parameter; did you mean net.ipv4.tcp_keepalive_time?",
    ),
    # An engine's host is a namespace of the machine, so even there this one does not exist; the
    # words for a host that has it are for a test that runs on the machine itself.
    "sysctl of the whole machine": (
        "net.core.netdev_max_backlog=2000",
        "net.core.netdev_max_backlog: this kernel has no such parameter",
    ),
    "sysctl that is read-only": (
        "net.ipv4.tcp_available_congestion_control=reno",
        "net.ipv4.tcp_available_congestion_control: is read-only",
    ),
    "sysctl out of range": (
        "net.ipv4.ip_default_ttl=1000",
        "set net.ipv4.ip_default_ttl=1000: Invalid argument: the value is malformed or out of",
    ),
    "sysctl with a malformed value": ("net.ipv4.tcp_keepalive_time=soon", "malformed or out of"),
    "sysctl of a named interface": ("net.ipv4.conf.eth0.rp_filter=1", "write IFNAME instead of"),
    "MTU that is no number": (f"{MTU}=big", "expected a number of bytes"),
    "MTU out of range": (f"{MTU}=67", "expected 68 to 65535"),
    "bridge name too long": (f"{BRIDGE_NAME}=br-of-sixteen-16", "16 characters; at most 15"),
    "bridge name of another interface": (f"{BRIDGE_NAME}={VETH}", "an interface of another kind"),
}


@pytest.fixture
def foreign_veth(engine: Engine) -> Iterator[None]:
    """Have an interface that another program made and that is no bridge."""
    engine.run("ip", "link", "add", VETH, "type", "veth", "peer", "name", "theirs")
    yield
    engine.run("ip", "link", "delete", VETH)


def refusal(engine: Engine, *args: str) -> str:
    """Return what Docker says about a command that must fail, and must leave all as it was."""
    before = Holdings.of(engine)
    done = engine.docker(*args, check=False)
    assert done.returncode != 0
    assert Holdings.of(engine) == before
    return done.stderr


@pytest.mark.parametrize(("option", "words"), WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
def test_a_wrong_option_of_a_network(
    engine: Engine, foreign_veth: None, option: str, words: str
) -> None:
    said = refusal(engine, "network", "create", "-d", "pynet", "-o", option, "wrong")
    assert words in said


def test_one_wrong_option_among_good_ones_beside_another_network(engine: Engine) -> None:
    create_network(engine, "good")
    options = ("-o", f"{MTU}=1400", "-o", "net.ipv4.tcp_sack=0", "-o", "net.ipv4.tcp_fin=9")
    said = refusal(engine, "network", "create", "-d", "pynet", *options, "wrong")
    assert "net.ipv4.tcp_fin: this kernel has no such parameter" in said


def test_a_bridge_of_another_network_of_ours(engine: Engine) -> None:
    option = ("-o", f"{BRIDGE_NAME}=br-shared")
    create_network(engine, "owner", *option)
    said = refusal(engine, "network", "create", "-d", "pynet", *option, "second")
    assert "bridge br-shared is network" in said


def test_an_mtu_that_ipv6_cannot_live_with(engine: Engine) -> None:
    pools = ("--ipv6", "--subnet", "fd77::/64", "--subnet", IPV4)
    said = refusal(
        engine, "network", "create", "-d", "pynet", *pools, "-o", f"{MTU}=1279", "narrow"
    )
    assert "IPv6 needs at least 1280" in said


def test_a_wrong_option_of_an_endpoint(engine: Engine) -> None:
    for network in ("front", "back"):
        create_network(engine, network)
    run(engine, "box", "front")
    wrong = ("--driver-opt", "net.ipv4.tcp_keepalive_tim=600")
    said = refusal(engine, "network", "connect", *wrong, "back", "box")
    assert "did you mean net.ipv4.tcp_keepalive_time?" in said
    engine.docker("network", "connect", "back", "box")


def test_a_container_with_a_wrong_option_does_not_start(engine: Engine) -> None:
    create_network(engine, "back")
    place = "name=back,driver-opt=net.ipv4.ip_default_ttl=0"
    said = refusal(engine, "run", "--name", "box", "--network", place, "bb", "true")
    assert "net.ipv4.ip_default_ttl=0: Invalid argument" in said
