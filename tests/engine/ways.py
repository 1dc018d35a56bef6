"""The ways that packets take to and from containers, asked of two drivers side by side.

What the operator of a host has decided holds for both; where Docker's own bridge gets through,
pynet has to.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from tests.engine.site import (
    HOST,
    HOST_ADDRESS,
    LAN,
    LAN_ADDRESS,
    LOOPBACK,
    Question,
    families,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from tests.engine.site import Site

PORT, SERVICE = 80, 7070
NUMBERS = {"pynet": 60, "bridge": 70}
OUT, LAN_IN, LOOPBACK_IN, HOST_IN = "out", "lan in", "loopback in", "host in"
NEAR_IN, FAR_IN, NEIGHBOUR, TO_HOST, APART = "near in", "far in", "neighbour", "to host", "apart"


class Way(NamedTuple):
    """Whose way, of which family, which."""

    driver: str
    version: int
    name: str


def published(driver: str) -> int:
    """Return the host port of a driver's web container."""
    return 8000 + NUMBERS[driver]


def build(site: Site, *drivers: str) -> None:
    """Give each driver two networks: `web` and `near` on the first, `far` on the second."""
    wanted: dict[str, tuple[str, ...]] = {}
    for driver in drivers:
        number = NUMBERS[driver]
        ipv6 = 6 in families(site.engine, driver)
        for name, each in (("a", number), ("b", number + 1)):
            site.network(driver, f"{name}{number}", each, ipv6=ipv6)
        wanted[f"web{number}"] = (f"a{number}", "-p", f"{published(driver)}:{PORT}")
        wanted[f"near{number}"] = (f"a{number}",)
        wanted[f"far{number}"] = (f"b{number}",)
    site.containers(wanted)
    for name in wanted:
        if name.startswith("web"):
            site.serve(name, "tcp", PORT)


def serve_outside(site: Site) -> None:
    """Answer on the neighbour, and on the host."""
    site.serve(LAN, "tcp", PORT)
    site.serve(HOST, "tcp", SERVICE)


def ways(site: Site, *drivers: str) -> dict[Way, Question]:
    """Return the question that tells of each way whether it is open."""
    return {
        Way(driver, version, name): question
        for driver in drivers
        for version in families(site.engine, driver)
        for name, question in _questions(site, driver, version)
    }


def _questions(site: Site, driver: str, version: int) -> Iterator[tuple[str, Question]]:
    number = NUMBERS[driver]
    outside, port = HOST_ADDRESS[version], published(driver)
    web = site.address(f"web{number}", f"a{number}", version)
    near = site.address(f"near{number}", f"a{number}", version)
    gateway = f"10.{number}.0.1" if version == 4 else f"fd{number}::1"
    yield OUT, Question(f"web{number}", LAN_ADDRESS[version], PORT, outside)
    yield LAN_IN, Question(LAN, outside, port, LAN_ADDRESS[version])
    yield LOOPBACK_IN, Question(HOST, LOOPBACK[version], port, "*")
    yield HOST_IN, Question(HOST, outside, port, "*")
    yield NEAR_IN, Question(f"near{number}", outside, port, "*")
    yield FAR_IN, Question(f"far{number}", outside, port, "*")
    yield NEIGHBOUR, Question(f"near{number}", web, PORT, near)
    yield TO_HOST, Question(f"web{number}", gateway, SERVICE, web)
    yield APART, Question(f"far{number}", web, PORT, None)


def find_faults(
    site: Site,
    when: str,
    asked: dict[Way, Question],
    closed: Collection[tuple[int, str]] = (),
    proxied: Collection[tuple[int, str]] = (),
) -> Iterator[str]:
    """Ask all, and yield what is wrong with pynet's ways.

    `closed` has the ways, by family and name, that the operator has closed; all others are to be
    open, but those between networks. `proxied` has those of them that are open on Docker's bridge
    all the same, for its proxy is a program of the host's.
    """
    wanted = {way: way.name != APART and way[1:] not in closed for way in asked}
    # Docker's bridge is no more than looked at: nobody waits for what it may not have.
    questions = {
        way: question if wanted[way] and way.driver == "pynet" else replace(question, seen=None)
        for way, question in asked.items()
    }
    by_question = {question: way for way, question in questions.items()}
    answers = {by_question[question]: got for question, got in site.ask(questions.values())}
    for way, got in answers.items():
        beside = answers.get(way._replace(driver="bridge"), "not asked")
        text = f"{when}: {way.name}, IPv{way.version}: {got}; Docker's bridge: {beside}"
        if way.driver == "pynet" and (
            questions[way].wrong(got)
            or (beside not in (None, "not asked") and way[1:] in {*closed} - {*proxied})
        ):
            yield text
