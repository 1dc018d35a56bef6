"""What operators write in the chain that is theirs, DOCKER-USER, is the last word."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from driver.reconcile.watcher import REPAIRS
from tests.engine.site import HOST, HOST_ADDRESS, LAN, LAN_ADDRESS, LOOPBACK, Question, Site, check
from tests.engine.unixhttp import request
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine

pytestmark = pytest.mark.managed

CHAIN = "DOCKER-USER"
REWRITTEN_SECONDS = 10.0  # generously: it is a second, or twice as long as a repair takes
PORT, PUBLISHED, OTHER = 80, 8080, 8081
FROM_LAN = f"-s {LAN_ADDRESS[4]}/32 -j DROP"
# What keeps the neighbour out, in the kinds that people and their tools write.
RULES = {
    "by source": [f"-I {CHAIN} {FROM_LAN}"],
    "by interface": [f"-I {CHAIN} -i uplink -j DROP"],
    "by the port asked for": [
        f"-I {CHAIN} -p tcp -m conntrack --ctorigdstport {PUBLISHED} --ctdir ORIGINAL -j DROP",
        f"-I {CHAIN} -p tcp -m conntrack --ctorigdstport {OTHER} --ctdir ORIGINAL -j DROP",
    ],
    "by a jump to a chain of bans": ["-N f2b", f"-A f2b {FROM_LAN}", f"-I {CHAIN} -j f2b"],
    "behind a flush": [f"-F {CHAIN}", f"-A {CHAIN} {FROM_LAN}", f"-A {CHAIN} -j RETURN"],
}


@pytest.fixture
def site(engine: Engine) -> Iterator[Site]:
    with Site(engine) as site:
        yield site


def iptables(engine: Engine, *rules: str) -> None:
    for rule in rules:
        engine.run("iptables", "-w", *rule.split())


@pytest.fixture
def _as_it_was(engine: Engine) -> Iterator[None]:
    """Give the operators' chain back as it was found."""
    before = engine.run("iptables", "-w", "-S", CHAIN).stdout.splitlines()[1:]
    yield
    iptables(engine, f"-F {CHAIN}", *before)
    engine.run("iptables", "-w", "-F", "f2b", check=False)
    engine.run("iptables", "-w", "-X", "f2b", check=False)


def build(site: Site, driver: str, number: int, port: int) -> None:
    """Start a container that publishes a port on a network of its own."""
    name = f"web{number}"
    site.network(driver, f"n{number}", number, ipv6=False)
    site.container(name, f"n{number}", "-p", f"{port}:{PORT}")
    site.serve(name, "tcp", PORT)


@pytest.mark.usefixtures("_as_it_was")
@pytest.mark.parametrize("driver", ["pynet", "bridge"])
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_operators_keep_out_whom_they_will(site: Site, driver: str, rules: list[str]) -> None:
    """Written before the second network is made, and after the first."""
    build(site, driver, 60, PUBLISHED)
    outside = HOST_ADDRESS[4]
    check(site, [Question(LAN, outside, PUBLISHED, LAN_ADDRESS[4])])
    iptables(site.engine, *rules)
    build(site, driver, 61, OTHER)
    check(
        site,
        [
            question
            for port in (PUBLISHED, OTHER)
            for question in (
                Question(LAN, outside, port, None),
                Question(HOST, LOOPBACK[4], port, "*"),
            )
        ],
    )


@pytest.mark.usefixtures("_as_it_was")
def test_operators_rules_are_there_before_the_first_network(site: Site) -> None:
    iptables(site.engine, f"-I {CHAIN} {FROM_LAN}")
    build(site, "pynet", 60, PUBLISHED)
    check(site, [Question(LAN, HOST_ADDRESS[4], PUBLISHED, None)])
    iptables(site.engine, f"-D {CHAIN} {FROM_LAN}")
    check(site, [Question(LAN, HOST_ADDRESS[4], PUBLISHED, LAN_ADDRESS[4])])


@pytest.mark.usefixtures("_as_it_was")
def test_a_chain_that_is_rewritten_again_and_again_closes_no_port(site: Site) -> None:
    engine = site.engine
    build(site, "pynet", 60, PUBLISHED)
    script = f"*filter\n:{CHAIN} - [0:0]\n-A {CHAIN} -s 198.51.100.7/32 -j DROP\nCOMMIT\n"
    for _ in range(8):
        engine.run("iptables-restore", "--noflush", stdin=script)
        check(site, [Question(LAN, HOST_ADDRESS[4], PUBLISHED, LAN_ADDRESS[4])])
    shown = engine.run("iptables", "-w", "-S", CHAIN).stdout
    assert shown.splitlines()[1:] == [f"-A {CHAIN} -s 198.51.100.7/32 -j DROP"]


def test_a_flushed_forward_chain_is_no_closed_port(site: Site) -> None:
    """With the jump to the operators' chain gone, too."""
    engine = site.engine
    build(site, "pynet", 60, PUBLISHED)
    before = engine.run("iptables-save", "-t", "filter").stdout
    engine.run("iptables", "-w", "-F", "FORWARD")
    try:
        wait_until(
            lambda: "pynet" in engine.run("iptables", "-w", "-S", "FORWARD").stdout, 10, "our rule"
        )
        check(site, [Question(LAN, HOST_ADDRESS[4], PUBLISHED, LAN_ADDRESS[4])])
    finally:
        engine.run("iptables-restore", stdin=before)


def test_a_forward_chain_that_is_rewritten_again_and_again_is_closed_for_moments_only(
    engine28: Engine,
) -> None:
    """By a script, say, that knows of Docker's chain and of nothing else."""
    script = f"*filter\n-F FORWARD\n-A FORWARD -j {CHAIN}\nCOMMIT\n"
    before = engine28.run("iptables-save", "-t", "filter").stdout
    with Site(engine28) as site:
        build(site, "pynet", 60, PUBLISHED)
        try:
            for _ in range(REPAIRS * 3):
                engine28.run("iptables-restore", "--noflush", stdin=script)
                wait_until(lambda: is_accepted(engine28), REWRITTEN_SECONDS, "our rule")
                check(site, [Question(LAN, HOST_ADDRESS[4], PUBLISHED, LAN_ADDRESS[4])])
            found = health(engine28)
            assert "forward accept FORWARD was repaired 3 times" in found, found
        finally:
            engine28.run("iptables-restore", stdin=before)


def is_accepted(engine: Engine) -> bool:
    """Tell whether pynet's rule is in FORWARD."""
    return "pynet" in engine.run("iptables", "-w", "-S", "FORWARD").stdout


def health(engine: Engine) -> str:
    """Return what the driver says of its health."""
    assert engine.driver is not None
    return request(engine.driver.socket, "GET", "/health")[1].decode()
