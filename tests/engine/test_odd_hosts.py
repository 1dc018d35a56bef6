"""Hosts that are odd but ordinary: pynet does there what Docker's own bridge does."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.engine import steps
from tests.engine.site import (
    HOST,
    HOST_ADDRESS,
    LAN,
    LAN_ADDRESS,
    LOOPBACK,
    Question,
    Site,
    check,
    families,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine

pytestmark = pytest.mark.managed

DRIVERS = ("pynet", "bridge")
PORT, PUBLISHED, OTHER = 80, 8080, 8081


@pytest.fixture
def site(engine: Engine) -> Iterator[Site]:
    with Site(engine) as site:
        yield site


@contextmanager
def without_ipv6(engine: Engine) -> Iterator[None]:
    """Have IPv6 turned off on the host in the block, as a file of sysctl.d does it."""
    keys = [f"net.ipv6.conf.{name}.disable_ipv6" for name in ("all", "default", "lo")]
    address = (f"{HOST_ADDRESS[6]}/64", "dev", "uplink")
    engine.run("sysctl", "-qw", *(f"{key}=1" for key in keys))
    try:
        yield
    finally:
        engine.run("sysctl", "-qw", *(f"{key}=0" for key in keys))
        engine.run("ip", "address", "replace", *address, "nodad")
        engine.run("ip", "-6", "route", "replace", "default", "via", LAN_ADDRESS[6])


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_host_without_ipv6_has_networks_with_it(site: Site, driver: str) -> None:
    engine = site.engine
    with without_ipv6(engine):
        site.network(driver, "a", 60)
        site.network(driver, "b", 61, ipv6=False)
        site.containers({"web": ("a", "-p", f"{PUBLISHED}:{PORT}"), "near": ("a",)})
        site.serve("web", "tcp", PORT)
        if driver == "pynet":
            steps.revive_driver(engine)
        site.container("late", "b", "-p", f"{OTHER}:{PORT}")
        site.serve("late", "tcp", PORT)
        site.serve(LAN, "tcp", PORT)
        # Up to 26 the bridge's containers have no IPv6 then either.
        near = {each: site.address("near", "a", each) for each in families(engine, driver)}
        check(
            site,
            [
                *(Question("near", site.address("web", "a", v), PORT, near[v]) for v in near),
                *(
                    question
                    for port in (PUBLISHED, OTHER)
                    for question in (
                        Question(LAN, HOST_ADDRESS[4], port, LAN_ADDRESS[4]),
                        Question(HOST, LOOPBACK[4], port, "*"),
                    )
                ),
                *(
                    Question(each, LAN_ADDRESS[4], PORT, HOST_ADDRESS[4])
                    for each in ("web", "late")
                ),
            ],
        )
        if driver == "pynet":
            told = json.loads(steps.pynet(engine, "check", "--json").stdout)
            assert told["differences"] == []
            assert "net.ipv6.conf.all.disable_ipv6" in {
                each["setting"] for each in told["warnings"]
            }
