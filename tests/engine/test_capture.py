"""`pynet capture` on a host with Docker: by name, on any driver's networks, over a restart."""

from __future__ import annotations

import json
import signal
import subprocess
from contextlib import contextmanager
from subprocess import PIPE
from typing import TYPE_CHECKING

import pytest

from tests.engine.rootfs import READER, ensure_root, program
from tests.engine.site import HOST_ADDRESS, LAN, Question, Site, check
from tests.engine.steps import pynet, pynet_command
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.engine.command import Command
    from tests.engine.engine import Engine

PORT, PUBLISHED = 80, 8080


@pytest.fixture
def site(engine28: Engine) -> Iterator[Site]:
    with Site(engine28) as site:
        yield site


@contextmanager
def capturing(engine: Engine, file: Path, *words: str) -> Iterator[Command]:
    """Have a capture written to a file over the block, whole when it ends."""
    command, env = pynet_command("capture", *words, "-w", str(file))
    running = engine.popen(*command, env=env, stderr=PIPE, stdout=PIPE, stdin=PIPE)
    try:
        wait_until(lambda: file.exists() and file.stat().st_size > 0, 20, "the capture's head")
        yield running
    finally:
        running.send_signal(signal.SIGINT)
        done = running.result(check=True)
    assert ", 0 lost" in done.stderr, done.stderr


def read(file: Path, *fields: str) -> list[list[str]]:
    """Return fields of each packet as tshark tells them."""
    tshark = program(ensure_root(READER.name), "tshark")
    words = [word for field in fields for word in ("-e", field)]
    command = [*tshark, "-n", "-r", str(file), "-T", "fields", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [line.split("\t") for line in done.stdout.splitlines()]


@pytest.mark.parametrize("driver", ["pynet", "bridge"])
def test_every_hop_of_a_connection_from_the_lan(site: Site, driver: str, tmp_path: Path) -> None:
    engine = site.engine
    site.network(driver, "back", 60)
    site.container("web", "back", "-p", f"{PUBLISHED}:{PORT}")
    site.serve("web", "tcp", PORT)
    file = tmp_path / "web.pcapng"
    flow = f"tcp port {PORT} or tcp port {PUBLISHED}"
    with capturing(engine, file, "web", "--where", "all", *flow.split()):
        check(site, [Question(LAN, HOST_ADDRESS[4], PUBLISHED, "*")])
        wait_until(lambda: file.stat().st_size > 2000, 10, "the packets")
    fields = ("frame.interface_name", "frame.packet_flags_direction", "tcp.flags", "tcp.dstport")
    packets = read(file, *fields, "frame.time_epoch")
    syn = [each for each in packets if int(each[2], 16) == 2]
    assert [(each[0].partition(":")[0], int(each[1], 0), each[3]) for each in syn] == [
        ("host", 1, str(PUBLISHED)),  # in by the uplink
        ("host", 2, str(PORT)),  # translated, out by the bridge
        ("host", 2, str(PORT)),  # and by the pair
        ("web", 1, str(PORT)),
    ]
    assert syn[-1][0] == "web:eth0"
    moments = [float(each[4]) for each in packets]
    assert moments == sorted(moments)


def test_a_container_that_starts_again_is_followed(site: Site, tmp_path: Path) -> None:
    engine = site.engine
    site.network("pynet", "back", 60)
    site.container("web", "back")
    file = tmp_path / "web.pcapng"
    with capturing(engine, file, "web", "icmp", "or", "arp") as running:
        for _ in range(3):
            before = file.stat().st_size
            engine.docker("restart", "--time=0", "web")
            assert running.poll() is None
            engine.docker("exec", "web", "ping", "-c1", "-w5", "10.60.0.1")
            wait_until(lambda size=before: file.stat().st_size > size, 10, "its packets")  # type: ignore[misc]
    names = {each[0] for each in read(file, "frame.interface_name")}
    assert names == {"web:eth0"}


def test_a_networks_pairs_and_what_is_not_there(site: Site) -> None:
    engine = site.engine
    site.network("pynet", "back", 60)
    for name in ("web", "near"):
        site.container(name, "back")
    command, env = pynet_command("capture", "back", "--count", "4", "--json", "icmp")
    running = engine.popen(*command, env=env, stderr=PIPE, stdout=PIPE, stdin=PIPE)
    target = site.address("near", "back", 4)
    wait_until(
        lambda: (
            engine.docker("exec", "web", "ping", "-c1", target).returncode == 0
            and running.poll() is not None
        ),
        20,
        "four packets",
    )
    packets = [json.loads(line) for line in running.result().stdout.splitlines()]
    ends = {f"host:{name}" for name in host_ends(engine)}
    assert len(packets) == 4
    assert {each["interface"] for each in packets} == ends
    refused = pynet(engine, "capture", "wbe", check=False)
    assert (refused.returncode, "did you mean web?" in refused.stderr) == (1, True)
    engine.docker("stop", "--time=0", "web")
    done = pynet(engine, "capture", "web", "--for", "0.5")
    assert done.stdout == ""
    assert "web does not run; waiting for it" in done.stderr


def host_ends(engine: Engine) -> set[str]:
    found = json.loads(pynet(engine, "inspect", "back").stdout)
    return {each["host_end"] for each in found["endpoints"]}
