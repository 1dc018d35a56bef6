"""`pynet trace` on a real engine: the way that it shows is what tcpdump and nft see."""

from __future__ import annotations

import json
import re
import signal
from contextlib import ExitStack
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.site import HOST_ADDRESS, LAN, LAN_ADDRESS, Question, Site, check
from tests.engine.steps import pynet, pynet_command
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine

PORT, PUBLISHED, SERVICE = 80, 8080, 7070


@pytest.fixture
def site(engine28: Engine) -> Iterator[Site]:
    with Site(engine28) as site:
        site.network("pynet", "back", 60)
        site.network("pynet", "front", 61)
        site.container("web", "back", "-p", f"{PUBLISHED}:{PORT}")
        site.container("client", "back")
        site.container("stranger", "front")
        site.serve("web", "tcp", PORT)
        site.serve(LAN, "tcp", SERVICE)
        yield site


def send(site: Site, *words: str) -> list[dict[str, Any]]:
    """Have one packet sent and return the ways of it and of what followed."""
    done = pynet(site.engine, "trace", *words, "--send", "--json", check=False)
    ways = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == (4 if any(way["dropped"] for way in ways) else 0), done.stderr
    assert done.stderr == ""
    return ways


def hops(way: dict[str, Any]) -> list[str]:
    """Return where a packet was seen: `web out`, `pair in`, `bridge in`, `uplink out`."""
    words = []
    for each in way["hops"]:
        where, _, interface = each["interface"].partition(":")
        kinds = {"pnh": "pair", "pn-": "bridge"}
        name = where if where != "host" else kinds.get(interface[:3], interface)
        words.append(f"{name} {each['direction']}")
    moments = [each["microseconds"] for each in way["hops"]]
    assert moments == sorted(moments)
    return words


def hooks(way: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(each["hook"] for each in way["rules"] if each["table"] == "pynet"))


def test_the_ways_between_containers_host_and_outside(site: Site) -> None:
    out, *_ = send(site, "client", f"{LAN_ADDRESS[4]}:{SERVICE}")
    assert hops(out) == ["client out", "pair in", "bridge in", "uplink out"]
    assert hooks(out)[-2:] == ["forward", "postrouting"]
    assert out["hops"][-1]["packet"].startswith(f"tcp {HOST_ADDRESS[4]}:"), "it is masqueraded"
    near, *_ = send(site, "client", f"web:{PORT}")
    assert hops(near) == ["client out", "pair in", "pair out", "web in"]
    down, up, *_ = send(site, "host", f"web:{PORT}")
    assert hops(down) == ["bridge out", "pair out", "web in"]
    assert hops(up) == ["web out", "pair in", "bridge in"]
    assert not any(way["dropped"] for way in (out, near, down, up))


def test_a_published_port_from_outside(site: Site) -> None:
    command, env = pynet_command("trace", "outside", f"web:{PORT}", "--count", "2", "--json")
    running = site.engine.popen(*command, env=env, stdout=PIPE, stderr=PIPE, stdin=PIPE)
    # Whatever comes after it has begun; before, nothing is missed but that.
    wait_until(lambda: asked(site) and running.poll() is not None, 30, "two packets")
    question, answer = map(json.loads, running.result().stdout.splitlines())
    assert hops(question)[-3:] == ["bridge out", "pair out", "web in"]
    assert hops(answer)[:1] == ["web out"]


def asked(site: Site) -> bool:
    check(site, [Question(LAN, HOST_ADDRESS[4], PUBLISHED, LAN_ADDRESS[4])])
    return True


def test_where_a_packet_dies(site: Site) -> None:
    away, *_ = send(site, "stranger", f"web:{PORT}")
    assert hops(away) == ["stranger out", "pair in", "bridge in"]
    assert away["rules"][-1]["chain"] == "inbound"
    assert (away["rules"][-1]["verdict"], away["rules"][-1]["hook"]) == ("drop", "forward")
    assert away["sent_again"] == 1, "after a second without an answer"
    option = ("-o", "com.docker.network.bridge.enable_icc=false")
    site.network("pynet", "closed", 62, *option)
    for name in ("one", "two"):
        site.container(name, "closed")
    apart, *_ = send(site, "two", f"one:{PORT}")
    assert (apart["rules"][-1]["family"], apart["rules"][-1]["chain"]) == (
        "bridge",
        "between_closed",
    )
    run = site.engine.run
    run("nft", "add", "table", "inet", "fw")
    run("nft", "add", "chain", "inet", "fw", "f", "{ type filter hook forward priority 0; }")
    run("nft", "add", "rule", "inet", "fw", "f", "tcp", "dport", str(SERVICE), "reject")
    try:
        foreign, *_ = send(site, "client", f"{LAN_ADDRESS[4]}:{SERVICE}")
    finally:
        run("nft", "delete", "table", "inet", "fw")
    assert foreign["rules"][-1]["table"] == "fw"
    assert foreign["rules"][-1]["rule"].startswith(f"rule 1: tcp dport {SERVICE} reject")


def test_tcpdump_and_nft_see_the_same(site: Site) -> None:
    engine = site.engine
    ends = {
        each["interface"] for each in send(site, "client", f"{LAN_ADDRESS[4]}:{SERVICE}")[0]["hops"]
    }
    interfaces = sorted(each.partition(":")[2] for each in ends if each.startswith("host:"))
    syn = f"tcp[tcpflags] == tcp-syn and port {SERVICE}"
    with ExitStack() as stack:
        monitor = engine.popen("stdbuf", "-oL", "nft", "monitor", "trace", stdout=PIPE, stdin=PIPE)
        stack.callback(monitor.result, check=False)
        stack.callback(monitor.send_signal, signal.SIGTERM)
        dumps = {
            name: engine.popen(
                *("tcpdump", "-n", "-i", name, "-c", "1", "--immediate-mode", syn),
                stdout=PIPE,
                stderr=PIPE,
                stdin=PIPE,
            )
            for name in interfaces
        }
        for dump in dumps.values():
            assert dump.stderr is not None
            while "listening on" not in dump.stderr.readline():
                assert dump.poll() is None
        way, *_ = send(site, "client", f"{LAN_ADDRESS[4]}:{SERVICE}")
        for name, dump in dumps.items():
            seen = dump.result().stdout
            (hop,) = (each for each in way["hops"] if each["interface"] == f"host:{name}")
            source = re.search(r"IP (\S+)\.(\d+) >", seen)
            assert source is not None
            assert f"{source[1]}:{source[2]} >" in hop["packet"]
        monitor.send_signal(signal.SIGTERM)
        told = monitor.result(check=False).stdout
    # An id is that of a piece of memory: what it is of says the last packet that was shown with it.
    syn_of_it = re.compile(rf" sport {way['source_port']} .*dport {SERVICE} .*flags == syn ")
    is_it: dict[str, bool] = {}
    chains = []
    for line in told.splitlines():
        _, _, identity, *place, kind = line.split(maxsplit=6)
        if kind.startswith("packet:"):
            is_it[identity] = syn_of_it.search(line) is not None
        elif is_it[identity] and kind.startswith(("rule ", "policy ")):
            chains.append(" ".join(place))
    chains = [each for each in chains if "pynet-trace" not in each]
    assert chains
    assert [f"{each['family']} {each['table']} {each['chain']}" for each in way["rules"]] == chains


def test_nothing_is_left_of_a_trace_that_is_killed(site: Site) -> None:
    engine = site.engine
    before = engine.run("nft", "list", "tables").stdout
    command, env = pynet_command("trace", "client", f"web:{PORT}")
    running = engine.popen(*command, env=env, stdout=PIPE, stderr=PIPE, stdin=PIPE)
    wait_until(lambda: "pynet-trace" in engine.run("nft", "list", "tables").stdout, 20, "its table")
    running.kill_group()
    running.communicate()
    wait_until(lambda: engine.run("nft", "list", "tables").stdout == before, 10, "its end")


def test_what_cannot_be_traced_is_told(site: Site) -> None:
    for words, code, said in (
        (("client", "web"), 2, "a trace needs a port"),
        (("outside", "web:80", "--send"), 2, "nothing can be sent from outside"),
        (("clint", "web:80"), 1, "did you mean client?"),
        (("back", "web:80"), 1, "back is a network: name a container of it"),
        (("client", "web:81", "--for", "0.2"), 1, "no packet of client > web:81/tcp"),
        (("client", "web:81", "--for", "nan"), 2, "no time that could be waited"),
    ):
        done = pynet(site.engine, "trace", *words, check=False)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert said in done.stderr
