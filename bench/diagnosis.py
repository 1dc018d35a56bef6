"""Measure what an operator waits for who looks for a fault, and what looking costs."""

from __future__ import annotations

import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING

from bench.measure import Results, Row, Series, interleave
from tests.engine.engine import Engine
from tests.engine.site import Site
from tests.engine.steps import pynet, pynet_command

if TYPE_CHECKING:
    from collections.abc import Iterator

SUITE = "forky"
RUNS = 15
PORT, SILENT = 80, 81
TIMEOUT = 0.5  # seconds that the doctor waits for an answer
FOR, AFTER = 0.2, 0.3  # seconds that a trace waits, and that it goes on after the last packet
RATE, FLOOD_SECONDS = 50_000, 2  # packets a second
MANY, ON_PAGE = 500, 100  # containers
POLLS = 60  # of the page, one a second, once what came with the containers is over
AT_ONCE = 10
ON_A_NETWORK = 200
NETWORK = "bench-diagnosis"
# Sends at a rate, a hundred at a time, and says how many.
FLOOD = """
import socket, sys, time
host, rate, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
caller = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
caller.connect((host, 9))
began, sent = time.monotonic(), 0
while sent < rate * seconds:
    if sent <= (time.monotonic() - began) * rate:
        for _ in range(100):
            try:
                caller.send(b"x" * 100)
            except ConnectionRefusedError:
                caller.send(b"x" * 100)
        sent += 100
print(sent, time.monotonic() - began)
"""
# Polls a page as its script does, and says when it begins to count.
LOOKER = """
import http.cookiejar, json, sys, time, urllib.parse, urllib.request
url, polls = sys.argv[1], int(sys.argv[2])
opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
opener.open(url).read()
root, version = url.partition("open/")[0], ""
for number in range(-30, polls):
    if not number:
        print(flush=True)
    have = urllib.parse.quote(version)
    answer = json.loads(opener.open(f"{root}map.json?have={have}").read())
    version = answer.get("version") or version
    time.sleep(1)
"""
INPUT = "{ type filter hook input priority 0; }"


def measure() -> Results:
    """Return a row for each figure: how long a look takes, and what is lost or used."""
    with Engine(SUITE) as engine:
        engine.start_driver()
        version = engine.version
        with Site(engine) as site:
            site.network("pynet", NETWORK, 60)
            site.containers({"web": (NETWORK,), "client": (NETWORK,)})
            site.serve("web", "tcp", PORT)
            rows = [*_looks(site), *_flood(site)]
            rows += _page_and_map(site)
    return Results(version, tuple(rows))


def _looks(site: Site) -> Iterator[Row]:
    nft = (*site.enter("web"), "nft", "add")
    site.engine.run(*nft, "table", "inet", "own")
    site.engine.run(*nft, "chain", "inet", "own", "i", INPUT)
    site.engine.run(*nft, "rule", "inet", "own", "i", "tcp", "dport", str(SILENT), "drop")
    ways = {
        "look": lambda: _time(site, 0, "doctor", "client", f"web:{PORT}", "--no-probe"),
        "probe": lambda: _time(
            site, TIMEOUT, "doctor", "client", f"web:{SILENT}", "--timeout", str(TIMEOUT)
        ),
        "trace": lambda: _time(
            site, FOR + AFTER, "trace", "client", f"web:{PORT}", "--for", str(FOR)
        ),
    }
    taken = interleave(RUNS, ways)
    yield Row("doctor, by looking", "s", taken["look"], limit=0.3)
    yield Row(
        "doctor, with a probe that nobody answers, over its timeout", "s", taken["probe"], limit=0.3
    )
    yield Row(
        "a trace, until it is armed and what ends it, over its time", "s", taken["trace"], limit=0.5
    )


def _time(site: Site, beside: float, *words: str) -> float:
    """Return how long a command takes, besides what it waits by its own options."""
    began = time.monotonic()
    pynet(site.engine, *words, check=False)
    return time.monotonic() - began - beside


def _flood(site: Site) -> Iterator[Row]:
    """Capture a flood at the host's end of the container that it comes from."""
    out = site.engine.folder / "flood.pcapng"
    words = ("capture", "client", "udp", "port", "9", "--where", "pair", "-w", str(out))
    command, env = pynet_command(*words, "--count", str(RATE * FLOOD_SECONDS))
    capture = site.engine.popen(
        *command, "--for", "20", env=env, stdout=PIPE, stderr=PIPE, stdin=PIPE
    )
    while not out.exists():  # it is armed when its file is there
        time.sleep(0.05)
    target = (site.address("web", NETWORK, 4), str(RATE), str(FLOOD_SECONDS))
    sent = site.engine.run(*site.enter("client"), sys.executable, "-c", FLOOD, *target).stdout
    number, seconds = map(float, sent.split())
    told = capture.result().stderr
    match = re.search(r"(\d+) packets, (\d+) lost", told)
    if match is None:
        raise ValueError(f"a capture that says nothing of its packets: {told}")
    seen = int(match[1])
    out.unlink()
    yield Row("packets a second that were sent", "packets", Series((number / seconds,)))
    yield Row(
        f"packets of {number:,.0f} that a capture has not written",
        "packets",
        Series((number - seen,)),
        limit=0,
    )


def _page_and_map(site: Site) -> Iterator[Row]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda n: site.container(f"many{n}", NETWORK), range(ON_PAGE - 2)))
        yield Row(
            f"a page of {ON_PAGE} containers that is looked at",
            "% of a core",
            Series((_page(site),)),
            limit=2,
        )
        for number in range(MANY // ON_A_NETWORK + 1):  # of 254 addresses each
            site.network("pynet", f"{NETWORK}-{number}", 61 + number)
        rest = range(ON_PAGE, MANY)
        places = ((f"many{n}", f"{NETWORK}-{n // ON_A_NETWORK}") for n in rest)
        list(pool.map(lambda each: site.container(*each), places))
    taken = Series(tuple(_time(site, 0, "map", "--json") for _ in range(5)))
    yield Row(f"a map of {MANY} containers", "s", taken, limit=2)


def _page(site: Site) -> float:
    """Return the share of a core, in percent, that the served page takes while it is polled."""
    command, env = pynet_command("map", "--serve")
    serving = site.engine.popen(*command, env=env, stdout=PIPE, stderr=PIPE)
    try:
        assert serving.stdout is not None
        url = serving.stdout.readline().strip()
        code = (sys.executable, "-I", "-c", LOOKER, url, str(POLLS))
        looker = site.engine.popen(*code, stdout=PIPE)
        assert looker.stdout is not None
        looker.stdout.readline()  # the first looks are another matter
        before, began = _processor_seconds(serving.main_pid), time.monotonic()
        looker.result(timeout=POLLS + 60)
        used = _processor_seconds(serving.main_pid) - before
        return 100 * used / (time.monotonic() - began)
    finally:
        serving.kill_group()
        for stream in (serving.stdout, serving.stderr):
            if stream is not None:
                stream.close()


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
