"""Measure what a network adds to a container's life, on pynet and on what Docker brings along.

A life is `docker run --rm`: start, a process that ends at once, removal. What it takes with
`--network none` is not the network's and is taken off.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import sub
from typing import TYPE_CHECKING

import psutil

from bench.measure import Curve, Results, Row, Series, clock, interleave, interleave_some
from bench.stage import private_engine
from tests.engine.unixhttp import request
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.engine.engine import Engine

SYSCTL = "net.ipv4.tcp_keepalive_time=600"
BRIDGE, MACVLAN = "built-in bridge", "macvlan"
OURS = ("handover", "direct")
NETWORKS = {
    BRIDGE: ("-d", "bridge"),
    MACVLAN: ("-d", "macvlan", "-o", "parent=uplink", "--subnet", "198.51.100.0/24"),
    "handover": ("-d", "pynet", "-o", SYSCTL),
    "direct": ("-d", "pynet", "-o", SYSCTL, "-o", "pynet.attach=direct"),
}
FIRST_PORT = 20000
MANY = 1000
AT_ONCE = 50
LIMITS = {0: (0.68, 0.32), 1: (0.44, 0.2), 32: (0.05, 0.05), MANY: (0.005, 0.005)}
AT_ONCE_LIMITS = (0.8, 0.7)
# A life takes 0.2 s, give or take 0.02, and what is compared are differences of two: with 240 runs
# of each the ratio without ports has a standard deviation of 0.02, with 60 to 90 one of 0.05 to
# 0.06 (bootstrap).
RUNS = {0: 75, 1: 50, 8: 6, 32: 20, 128: 2, MANY: 5}
# Minutes each with the built-in bridge: two processes a port.
PEER_RUNS = {0: 50, 1: 35, 8: 6, 32: 5, 128: 2, MANY: 1}
# What is measured in the same rounds, and over the same lives without a network.
TOGETHER = ((0, 1), *((ports,) for ports in RUNS if ports > 1))
MILLI = 1000
LAST = "bench-last"
END_A_NAMESPACE = f"""ip netns add {LAST} &&
    ip link add {LAST} type veth peer name end netns {LAST} &&
    ip netns del {LAST}"""
SPENT = "pynet_request_duration_seconds_sum"


def measure() -> Results:
    """Return a row for each number of ports and for many containers at once, and the curve."""
    with private_engine() as engine:
        for name, words in NETWORKS.items():
            engine.docker("network", "create", *words, _network(name))
        added: dict[int, dict[str, Series]] = {}
        for numbers in TOGETHER:
            added |= _added_times(engine, numbers)
        rows = [row for ports in LIMITS for row in _rows(ports, added[ports])]
        rows += _at_once(engine)
        version = engine.version
    curves = tuple(
        Curve(name, "ms", {ports: added[ports][name] for ports in RUNS if ports})
        for name in (BRIDGE, *OURS)
    )
    return Results(
        version, tuple(rows), {"Network time of docker run over published ports": curves}
    )


def _rows(ports: int, added: Mapping[str, Series]) -> list[Row]:
    """Return how pynet compares at a number of ports."""
    what = {0: "no ports, one sysctl", 1: "one published port"}.get(ports, f"{ports:,} ports")
    what = f"`docker run --rm`, {what}"
    rows = [
        Row(what, "ms", added[how], BRIDGE, added[BRIDGE], how, limit)
        for how, limit in zip(OURS, LIMITS[ports], strict=True)
    ]
    least = f"{what}, if the driver's calls took no time: the least there is"
    rows += [
        Row(least, "ms", added[f"{how} without calls"], BRIDGE, added[BRIDGE], how) for how in OURS
    ]
    if MACVLAN in added:
        rows += [Row(what, "ms", added[how], MACVLAN, added[MACVLAN], how) for how in OURS]
    return rows


def _added_times(engine: Engine, numbers: tuple[int, ...]) -> dict[int, dict[str, Series]]:
    """Return what each network adds to a life with so many ports, in milliseconds.

    Over a life without a network; of ours also without what its calls took the driver, from request
    to answer.
    """
    lives: dict[tuple[int, str], Callable[[], float]] = {
        (ports, name): partial(_live, engine, _network(name), ports, name)
        for ports in numbers
        for name in NETWORKS
        if not (ports and name == MACVLAN)
    }
    in_calls: dict[tuple[int, str], list[float]] = {
        which: [] for which in lives if which[1] in OURS
    }
    for which, spent in in_calls.items():
        lives[which] = partial(_live_and_ask, engine, lives[which], spent)
    # Only a run or two warm up what takes minutes.
    for (ports, _), live in lives.items():
        if ports <= 1:
            live()
    for warming in in_calls.values():
        warming.clear()
    runs = {(ports, name): (RUNS if name in OURS else PEER_RUNS)[ports] for ports, name in lives}
    nothing = (0, "none")
    lives[nothing] = partial(_live, engine, "none", 0, BRIDGE)
    runs[nothing] = max(RUNS[ports] for ports in numbers)
    taken = interleave_some(runs, lives)
    floor = taken.pop(nothing).median
    added: dict[int, dict[str, Series]] = {ports: {} for ports in numbers}
    for (ports, name), series in taken.items():
        added[ports][name] = series.above(floor)
    for (ports, how), spent in in_calls.items():
        rest = Series(tuple(map(sub, taken[ports, how].values, spent)))
        added[ports][f"{how} without calls"] = rest.above(floor)
    return added


def _live_and_ask(engine: Engine, live: Callable[[], float], in_calls: list[float]) -> float:
    """Return the milliseconds of a life, and add those that the driver spent on its calls."""
    before = _seconds_in_calls(engine)
    taken = live()
    in_calls.append((_seconds_in_calls(engine) - before) * MILLI)
    return taken


def measure_calls(engine: Engine, network: str) -> float:
    """Return the milliseconds that the driver spends on the calls of a container's life."""
    spent: list[float] = []
    live = partial(_live, engine, network, 0, OURS[0])
    _live_and_ask(engine, live, spent)
    return spent[0]


def _seconds_in_calls(engine: Engine) -> float:
    """Return how long the driver has worked on Docker's calls since it started."""
    assert engine.driver is not None
    _, text = request(engine.driver.socket, "GET", "/metrics")
    lines = text.decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(SPENT))


def _live(engine: Engine, network: str, ports: int, name: str) -> float:
    """Return the milliseconds of a container's life."""
    words = ("run", "--rm", *_words(network, ports, name), "true")
    seconds = clock(lambda: engine.docker(*words, timeout=600))
    settle(engine)
    return seconds * MILLI


def _words(network: str, ports: int, name: str) -> list[str]:
    """Return the words of `docker run`; the parameter that pynet's networks have is its own."""
    span = f"{FIRST_PORT}-{FIRST_PORT + ports - 1}"
    published = ["-p", f"{span}:{span}"] if ports else []
    sysctl = [] if name in OURS else ["--sysctl", SYSCTL]
    return ["--network", network, *published, *sysctl, "bb"]


def _at_once(engine: Engine) -> list[Row]:
    """Return the rows for many containers started together and then removed together."""
    networks = {"none": "none", **{name: _network(name) for name in (BRIDGE, *OURS)}}
    variants = {
        name: partial(_live_together, engine, network, name) for name, network in networks.items()
    }
    spent: dict[str, list[float]] = {how: [] for how in OURS}
    for how in OURS:
        variants[how] = partial(_live_together_and_ask, engine, variants[how], spent[how])
    taken = interleave(4, variants)
    what = f"{AT_ONCE} containers at once, started and removed"
    rows = [
        Row(what, "s", taken[how], BRIDGE, taken[BRIDGE], how, limit)
        for how, limit in zip(OURS, AT_ONCE_LIMITS, strict=True)
    ]
    least = "the same if the driver took no processor time: the least there is with its network"
    for how in OURS:
        rest = Series(tuple(map(sub, taken[how].values, spent[how])))
        rows.append(Row(least, "s", rest, BRIDGE, taken[BRIDGE], how))
    none = "the same without a network"
    return [*rows, Row(none, "s", taken["none"], BRIDGE, taken[BRIDGE])]


def _live_together_and_ask(engine: Engine, live: Callable[[], float], spent: list[float]) -> float:
    """Return the seconds that many take, and add those that a driver for nothing would save.

    All cores are busy all the time, so what the driver does not use is the containers'.
    """
    before = _processor_seconds(engine)
    taken = live()
    spent.append((_processor_seconds(engine) - before) / (os.cpu_count() or 1))
    return taken


def _processor_seconds(engine: Engine) -> float:
    """Return how long the driver's processes have been on a processor."""
    assert engine.driver is not None
    times = [psutil.Process(pid).cpu_times() for pid in engine.driver.pids]
    return sum(each.user + each.system for each in times)


def _live_together(engine: Engine, network: str, name: str) -> float:
    """Return the seconds until all have started and are gone again; none may fail."""
    names = [f"one{number}" for number in range(AT_ONCE)]
    words = _words(network, 0, name) if network != "none" else ["--network", "none", "bb"]

    def start(container: str) -> None:
        engine.docker("run", "-d", "--name", container, *words, "sleep", "1000", timeout=300)

    def live() -> None:
        with ThreadPoolExecutor(AT_ONCE) as starters:
            list(starters.map(start, names))
        engine.docker("rm", "-f", *names, timeout=300)

    seconds = clock(live)
    settle(engine)
    return seconds


def settle(engine: Engine) -> None:
    """Wait for what a life leaves to the driver and the kernel to do in the background.

    Whoever lives next would wait for it, whosever it is. The kernel destroys namespaces in the
    order in which they end (cleanup_net(), net/core/net_namespace.c): when a veth is gone whose
    other end was in one that has just ended, so are those before.
    """
    engine.run("sh", "-c", END_A_NAMESPACE)
    wait_until(lambda: not _is_at_work(engine), 30, "links and namespaces are gone")


def _is_at_work(engine: Engine) -> bool:
    links = engine.run("ip", "-br", "link").stdout
    return LAST in links or "pnh" in links


def _network(name: str) -> str:
    return f"bench-{name.replace(' ', '-')}"
