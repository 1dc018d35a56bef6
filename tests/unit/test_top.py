"""`pynet top`: rates out of two readings, in order, and nothing else without root."""

from __future__ import annotations

import gc
import warnings
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from driver.linux.flows import Flow
from driver.linux.traffic import read_traffic
from driver.model import Traffic
from plugin.cli import FAILED, MISUSED
from plugin.cli.rates import (
    SORTS,
    End,
    Known,
    Published,
    Reading,
    choose,
    compare,
    find_name,
    order,
)
from plugin.cli.readings import Counters
from tests.samples import binding
from tests.unit.command import runner

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.command import Run

WEB, DB, HOST = (ip_address(each).packed for each in ("10.1.0.2", "10.1.0.3", "192.0.2.1"))
KNOWN = Known(
    ends=(End("web", "back", "pnh1", (WEB,)), End("db", "back", "pnh2", (DB,))),
    ports=(
        Published(
            "web",
            frozenset({"back"}),
            "0.0.0.0:8080",
            "80/tcp",
            (binding("0.0.0.0:8080", "10.1.0.2:80"),),
        ),
    ),
    names={"a1b2": "web", "a1c3": "db", "f0": "back"},
)
NONE = Traffic(0, 0, 0, 0, 0, 0)


def reading(moment: float, *flows: Flow, **links: Traffic) -> Reading:
    return Reading(moment, links, {}, flows)


def flow(source_port: int, octets: int | None = None, *, is_open: bool = True) -> Flow:
    """Return a connection to the published port, with ten packets if they are counted."""
    packets = None if octets is None else 10
    return Flow(6, HOST, source_port, HOST, 8080, WEB, 80, is_open, packets, octets)


def test_what_passes_is_of_the_time_between() -> None:
    before = reading(10.0, pnh1=Traffic(1000, 10, 2000, 20, 1, 2), pnh2=NONE)
    after = reading(12.0, pnh1=Traffic(1400, 14, 2800, 28, 3, 6), pnh2=NONE)
    guarded = replace(after, guarded={"pnh2": 10})
    web, db = compare(before, guarded, KNOWN).containers
    assert (web.receive_bytes, web.transmit_bytes) == (200, 400)
    assert (web.receive_packets, web.transmit_packets) == (2, 4)
    assert (web.drops, db.drops) == (3, 5), "of the link, and of the guard"


def test_a_link_that_was_made_between_has_begun_at_nothing() -> None:
    """Also one that took the name of another, so that its counter is less than it was."""
    new = Traffic(100, 1, 100, 1, 0, 0)
    before = reading(0, pnh1=Traffic(1000, 10, 1000, 10, 0, 0))
    web, db = compare(before, reading(1, pnh1=new, pnh2=new), KNOWN).containers
    assert (web.receive_bytes, db.receive_bytes) == (100, 100)


def test_who_has_no_link_by_now_is_not_shown() -> None:
    (web,) = compare(reading(0, pnh1=NONE, pnh2=NONE), reading(1, pnh1=NONE), KNOWN).containers
    assert web.container == "web"


def test_connections_are_those_that_are_open() -> None:
    outwards = Flow(6, WEB, 5, DB, 5432, DB, 5432, True, None, None)  # noqa: FBT003
    after = reading(1, flow(1), flow(2, is_open=False), outwards, pnh1=NONE, pnh2=NONE)
    rates = compare(reading(0), after, KNOWN)
    assert [each.connections for each in rates.containers] == [2, 1]
    (port,) = rates.ports
    assert (port.connections, port.bytes, port.packets) == (1, None, None)


def test_bytes_of_a_port_are_what_its_connections_have_carried_since() -> None:
    before = reading(0, flow(1, 1000))
    (port,) = compare(before, reading(2, flow(1, 1600), flow(2, 400)), KNOWN).ports
    assert (port.bytes, port.packets) == (500, 5)


def test_what_the_kernel_does_not_list_is_unknown_and_not_nothing() -> None:
    after = replace(reading(1, pnh1=NONE), flows=None, not_seen=("connections (why)",))
    rates = compare(reading(0), after, KNOWN)
    assert [each.connections for each in rates.containers] == [None]
    assert [each.connections for each in rates.ports] == [None]
    assert rates.not_seen == ("connections (why)",)


@pytest.mark.parametrize(
    ("sort", "first"),
    [("traffic", "b"), ("receive", "a"), ("drops", "c"), ("connections", "c"), ("name", "a")],
)
def test_the_most_comes_first(sort: str, first: str) -> None:
    ends = tuple(End(name, "n", name, (name.encode(),)) for name in "cab")
    known = Known(ends, (), {})
    talk = Flow(6, b"c", 1, b"x", 1, b"x", 1, True, None, None)  # noqa: FBT003
    links = {
        "a": Traffic(500, 0, 0, 0, 0, 0),
        "b": Traffic(0, 0, 900, 0, 0, 0),
        "c": Traffic(0, 0, 0, 0, 0, 1),
    }
    rates = compare(reading(0), reading(1, talk, **links), known)
    assert order(rates, sort).containers[0].container == first
    assert sort in SORTS


@pytest.mark.parametrize(
    ("word", "meant"),
    [("web", "web"), ("a1b", "web"), ("a1", None), ("f0", "back"), ("", None), ("x", None)],
)
def test_a_word_is_a_name_or_the_beginning_of_one_id(word: str, meant: str | None) -> None:
    assert find_name(KNOWN, word) == meant


def test_what_is_chosen_keeps_its_ports() -> None:
    assert choose(KNOWN, "db").ports == ()
    assert len(choose(KNOWN, "back").ends) == 2
    assert choose(KNOWN, "web").ports == KNOWN.ports


def test_ids_stand_in_while_docker_is_down(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    del run  # for the sockets of its driver
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'none.sock'}")
    with warnings.catch_warnings():
        # docker-py leaves its sockets to the garbage collector when a connection fails.
        warnings.simplefilter("ignore", ResourceWarning)
        seen = Counters(tmp_path / "pynet.sock").know(Reading(1.0, {}, {}, ()))
        gc.collect()
    (end,) = seen.ends
    assert (end.container, end.network) == ("e1e1e1e1e1e1", "010101010101")
    assert end.host_end == "pnhe1e1e1e1e1e1"
    assert end.addresses == tuple(ip_address(each).packed for each in ("10.1.0.2", "fd00:1::2"))
    assert {each.host for each in seen.ports} == {"0.0.0.0:8080", "127.0.0.1:53"}
    assert len(seen.not_seen) == 1
    assert find_name(seen, "e1e1") == "e1e1e1e1e1e1"


def test_it_says_at_once_that_it_needs_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    nowhere = tmp_path / "none.sock"
    result = runner(nowhere, nowhere)("top", "--once")
    assert result.exit_code == FAILED
    assert result.stderr == "Error: read the counters of containers: you must be root\n"


@pytest.mark.parametrize("interval", ["nan", "0", "inf", "-1"])
def test_an_interval_is_some_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    nowhere = tmp_path / "none.sock"
    assert runner(nowhere, nowhere)("top", "--interval", interval).exit_code == MISUSED


@pytest.mark.parametrize("words", [("--json",), ()])
def test_names_are_shown_and_not_obeyed(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    hostile = "w\x1b[31m\u202e[red]"
    known = replace(KNOWN, ends=(End(hostile, hostile, "lo", ()),), ports=())
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(Counters, "know", lambda *_: known)
    now = iter((1.0, 2.0))
    monkeypatch.setattr(Counters, "read", lambda _: Reading(next(now), read_traffic(), {}, ()))
    shown = run("top", "--once", "--interval", "0.1", *words)
    assert shown.exit_code == 0, shown.output
    assert not {"\x1b", "\u202e"} & set(shown.output)
    assert r"\u202e[red]" in shown.output
