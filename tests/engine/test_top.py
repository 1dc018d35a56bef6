"""`pynet top` on a host with Docker: it tells what was sent, and follows who comes and goes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import termios
from contextlib import closing, contextmanager, suppress
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.site import ECHO_PORT, HOST_ADDRESS, LAN, Site
from tests.engine.steps import pynet, pynet_command
from tests.engine.stream import BYTES_A_SECOND
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.command import Command
    from tests.engine.engine import Engine

PUBLISHED = {"pynet": 8080, "bridge": 8081}
ACCOUNTING = "net.netfilter.nf_conntrack_acct"


@pytest.fixture
def site(engine28: Engine) -> Iterator[Site]:
    """Lend a container on a network of pynet's, one on one of Docker's, and one on both."""
    engine28.run("conntrack", "-F")  # of containers before, that had the same addresses
    with Site(engine28) as site:
        for number, driver in enumerate(PUBLISHED, start=60):
            site.network(driver, f"of-{driver}", number)
        ports = {driver: f"{port}:{ECHO_PORT}" for driver, port in PUBLISHED.items()}
        site.containers(
            {f"on-{driver}": (f"of-{driver}", "-p", port) for driver, port in ports.items()}
            | {"both": ("of-pynet",)}
        )
        engine28.docker("network", "connect", "of-bridge", "both")
        yield site


def once(site: Site, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pynet(site.engine, "top", "--once", "--json", *words).stdout)
    assert found["not_seen"] == []
    return found


@pytest.mark.parametrize("driver", PUBLISHED)
def test_what_passes_is_told(site: Site, driver: str) -> None:
    site.engine.run("sysctl", "-w", f"{ACCOUNTING}=1")
    site.echo(f"on-{driver}", ECHO_PORT)
    places = {("on-pynet", "of-pynet"), ("on-bridge", "of-bridge")}
    places |= {("both", "of-pynet"), ("both", "of-bridge")}
    with site.stream(LAN, HOST_ADDRESS[4], PUBLISHED[driver]):
        # The stream has to be in its stride over the whole second.
        found = wait_until(
            lambda: (shown := once(site))["ports"][0]["bytes"] > BYTES_A_SECOND and shown,
            20,
            "the stream's bytes",
        )
    assert {(each["container"], each["network"]) for each in found["containers"]} == places
    busy, *idle = found["containers"]
    assert (busy["container"], busy["connections"]) == (f"on-{driver}", 1)
    for way in ("receive", "transmit"):
        # Half a stream that is paced, with its headers; none of it elsewhere.
        assert BYTES_A_SECOND / 4 < busy[f"{way}_bytes"] < 2 * BYTES_A_SECOND
        assert busy[f"{way}_packets"] > busy[f"{way}_bytes"] / 66_000
        assert max(each[f"{way}_bytes"] for each in idle) < 10_000
    port, *others = found["ports"]
    assert port["host"] == f"0.0.0.0:{PUBLISHED[driver]}"
    assert (port["container"], port["connections"]) == (f"on-{driver}", 1)
    assert {each["connections"] for each in others} == {0}


def test_a_name_chooses_and_a_wrong_one_is_refused(site: Site) -> None:
    for word, places in (
        ("both", {("both", "of-pynet"), ("both", "of-bridge")}),
        ("of-bridge", {("both", "of-bridge"), ("on-bridge", "of-bridge")}),
    ):
        found = once(site, word, "--sort", "name")["containers"]
        assert {(each["container"], each["network"]) for each in found} == places
    hosts = {each["host"] for each in once(site, "on-pynet")["ports"]}
    assert hosts == {"0.0.0.0:8080", "[::]:8080"}
    identity = site.engine.client.containers.get("both").id
    assert identity is not None
    assert len(once(site, identity[:12])["containers"]) == 2
    refused = pynet(site.engine, "top", "nosuch", "--once", check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    table = pynet(site.engine, "top", "--once").stdout
    assert table.startswith("CONTAINER  NETWORK")
    assert "\x1b" not in table


@contextmanager
def running(site: Site, *words: str, **streams: int) -> Iterator[Command]:
    """Have `pynet top` go on over the block; it ends with 0 when it is interrupted."""
    command, env = pynet_command("top", "--interval", "0.2", *words)
    shown = site.engine.popen(*command, env=env | {"TERM": "xterm-256color"}, **streams)
    try:
        yield shown
        shown.send_signal(signal.SIGINT)
        assert shown.wait(20) == 0
    finally:
        shown.kill_group()
        for stream in filter(None, (shown.stdout, shown.stderr)):
            stream.close()


def test_who_comes_and_goes_is_followed(site: Site) -> None:
    engine = site.engine
    with running(site, "--json", stdout=PIPE, stderr=PIPE) as shown:
        assert shown.stdout is not None
        lines = shown.stdout

        def names() -> set[str]:
            return {each["container"] for each in json.loads(lines.readline())["containers"]}

        assert names() == {"on-pynet", "on-bridge", "both"}
        for network in ("of-pynet", "of-bridge"):
            site.container("new", network)
            wait_until(lambda: "new" in names(), 20, "the new container")
            engine.docker("rm", "-f", "new")
            wait_until(lambda: "new" not in names(), 20, "its end")
        engine.docker("restart", "-t", "0", "on-bridge")
        wait_until(lambda: "on-bridge" in names(), 20, "the container that came back")


def test_a_terminal_is_as_it_was(site: Site) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 80, 0, 0))
        written = ""
        with closing(os.fdopen(theirs, "wb")) as slave:
            streams = dict.fromkeys(("stdin", "stdout", "stderr"), slave.fileno())
            with running(site, "of-pynet", **streams):
                while written.count("CONTAINER") < 3:
                    written += terminal.read(65536).decode()
        with suppress(OSError):  # how a terminal says that nobody writes any more
            while chunk := terminal.read(65536):
                written += chunk.decode()
    assert "\x1b[?1049h" in written  # the other screen
    assert written.rindex("\x1b[?1049l") > written.rindex("CONTAINER")
    assert written.rindex("\x1b[?25h") > written.rindex("CONTAINER"), "the cursor shows again"
    assert "on-pynet" in written
    assert "on-bridge" not in written
