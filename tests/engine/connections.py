"""Connections over a host's networks that carry data all the time, while something happens to them.

One comes from another host, through a published port, and one goes between two containers.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tests.engine.plugin_image import NAME
from tests.engine.site import HOST_ADDRESS, LAN, LAN_ADDRESS, Question, Site, check
from tests.engine.steps import KEEPALIVE, first_value, sysctl_options

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT, PUBLISHED, NEXT = 80, 8080, 8090
SHORT_NAME = "pynet"
NUMBERS = {SHORT_NAME: 60, NAME: 61}
DIES_AT_ONCE = ("--stop-signal", "KILL")


@contextmanager
def connections(site: Site, *drivers: str) -> Iterator[None]:
    """Have a network by each of these names, and connections over it that must not break."""
    with ExitStack() as streams:
        for driver in drivers:
            number = NUMBERS[driver]
            network, port = f"net{number}", PUBLISHED + number
            site.network(driver, network, number, *sysctl_options({KEEPALIVE: "600"}))
            web, near = f"web{number}", f"near{number}"
            site.container(web, network, "-p", f"{port}:{PORT}", *DIES_AT_ONCE)
            site.container(near, network, *DIES_AT_ONCE)
            site.echo(web, PORT)
            streams.enter_context(site.stream(LAN, HOST_ADDRESS[4], port))
            streams.enter_context(site.stream(near, site.address(web, network, 4), PORT))
        yield
        for driver in drivers:
            starts_work(site, f"net{NUMBERS[driver]}")


def starts_work(site: Site, network: str) -> None:
    """Start containers as if nothing had been: with their parameters, and ports for others."""
    assert first_value(site.engine, network, KEEPALIVE) == "600"
    site.container("next", network, "-p", f"{NEXT}:{PORT}")
    site.serve("next", "tcp", PORT)
    check(site, [Question(LAN, HOST_ADDRESS[4], NEXT, LAN_ADDRESS[4])])
    site.engine.docker("rm", "-f", "next")
