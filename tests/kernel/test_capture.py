"""Packets taken at a container's hops, on the real kernel, and read back by tcpdump."""

from __future__ import annotations

import socket
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from driver.linux import netns
from driver.model import host_end_name
from plugin.capture.filters import compile_filter
from plugin.capture.output import CaptureFile
from plugin.capture.places import Sandbox, find_host_places, find_places
from plugin.capture.taps import NOT_READY, Taps
from tests.kernel.container import sandbox_of, socket_in, start
from tests.kernel.host import descriptors, ip, run
from tests.samples import network, new_endpoint, pool

if TYPE_CHECKING:
    from pathlib import Path

    from driver.driver import BridgeDriver
    from driver.model import Endpoint
    from plugin.capture.taps import Packet, Place
    from tests.kernel.host import RealHost

NETWORK = network(1, pools=(pool("10.1.0.1/24"),))
PORT = 9999
GATEWAY = "10.1.0.1"
UDP = f"udp port {PORT}"
MANY, BURST = 20_000, 500


@pytest.fixture
def web(driver: BridgeDriver, real: RealHost) -> Endpoint:
    """Lend a container on a network."""
    driver.create_network(NETWORK)
    return start(driver, real, 2, new_endpoint(1))


def sandbox(endpoint: Endpoint) -> Sandbox:
    return Sandbox("web", str(sandbox_of(endpoint)))


def taps(text: str = UDP, length: int = 262_144) -> Taps:
    return Taps(lambda place: compile_filter(text, length, is_raw=place.is_raw))


def send(endpoint: Endpoint, *payloads: bytes) -> None:
    """Send datagrams from the container to its gateway."""
    with closing(socket_in(endpoint, socket.AF_INET, socket.SOCK_DGRAM)) as outlet:
        for payload in payloads:
            outlet.sendto(payload, (GATEWAY, PORT))


def take(at: Taps, count: int) -> list[Packet]:
    """Return so many packets, waiting for each at most 5 s."""
    found: list[Packet] = []
    while len(found) < count:
        more = at.read(5)
        # Nothing at once is what is held back for a moment, or the end of the five seconds.
        assert more or at._held or not found, f"{len(found)} of {count} came"
        found += more
    return found


def test_a_packet_is_seen_at_every_hop_in_the_order_of_its_way(web: Endpoint) -> None:
    places = find_places([sandbox(web)], "all")
    assert labels(places) == [
        "web:eth0",
        f"host:{host_end_name(web.id)}",
        f"host:{NETWORK.bridge_name}",
    ]
    with closing(taps()) as at:
        at.tap(places)
        send(web, b"hello")
        found = take(at, 3)
    hops = [(each.place.label, each.is_outgoing) for each in found]
    assert hops == [(label, label == "web:eth0") for label in labels(places)]
    assert [each.nanoseconds for each in found] == sorted(each.nanoseconds for each in found)
    assert {each.data[-5:] for each in found} == {b"hello"}
    assert found[0].comment == NOT_READY, "a veth leaves the sum to whoever needs it"


def labels(places: list[Place]) -> list[str]:
    return [each.label for each in places if not each.label.endswith(":lo")]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("sandbox", {"web:eth0"}),
        ("pair", {"host:pnhe1e1e1e1e1e1"}),
        ("bridge", {f"host:{NETWORK.bridge_name}"}),
        ("uplink", {"host:ens3"}),
    ],
)
def test_each_hop_can_be_asked_for_alone(
    web: Endpoint, real: RealHost, where: str, expected: set[str]
) -> None:
    real.add_foreign("ens3", "ifb", "192.0.2.1/24")
    ip("link", "set", "ens3", "up")
    ip("route", "add", "default", "via", "192.0.2.254", "dev", "ens3")
    assert set(labels(find_places([sandbox(web)], where))) == expected
    assert {"host:ens3", f"host:{NETWORK.bridge_name}"} <= set(labels(find_host_places()))


def test_what_the_filter_does_not_ask_for_is_not_taken_and_the_rest_is_cut(web: Endpoint) -> None:
    places = find_places([sandbox(web)], "sandbox")
    with closing(taps(f"{UDP} and udp[8] = 0x79", 60)) as at:  # a y
        at.tap(places)
        send(web, b"n" * 100, b"y" * 100)
        (found,) = take(at, 1)
    assert (len(found.data), found.length) == (60, 14 + 20 + 8 + 100)
    assert found.data[42:] == b"y" * 18


def test_a_file_is_read_by_tcpdump_and_by_root_alone(web: Endpoint, tmp_path: Path) -> None:
    file = tmp_path / "web.pcapng"
    places = find_places([sandbox(web)], "all")
    with closing(taps()) as at, closing(CaptureFile(str(file), UDP, 262_144)) as keep:
        at.tap(places)
        send(web, b"12345", b"123")
        for packet in take(at, 6):
            keep.write(packet)
    assert file.stat().st_mode & 0o777 == 0o600
    shown = run("tcpdump", "-n", "-tt", "-r", str(file)).splitlines()
    assert len(shown) == 6
    assert sum("UDP, length 5" in line for line in shown) == 3
    moments = [float(line.split()[0]) for line in shown]
    assert moments == sorted(moments)


def test_a_ring_keeps_the_last_files_each_whole(web: Endpoint, tmp_path: Path) -> None:
    places = find_places([sandbox(web)], "sandbox")
    keep = CaptureFile(str(tmp_path / "ring.pcapng"), UDP, 262_144, size=2_000, files=2)
    with closing(taps()) as at, closing(keep):
        at.tap(places)
        send(web, *[bytes([each]) * 400 for each in range(20)])
        for packet in take(at, 20):
            keep.write(packet)
    files = sorted(each.name for each in tmp_path.glob("ring*"))
    assert files == ["ring_00004.pcapng", "ring_00005.pcapng"]
    counts = [len(run("tcpdump", "-r", str(tmp_path / each)).splitlines()) for each in files]
    assert counts == [4, 4]


def test_a_burst_is_taken_whole(web: Endpoint) -> None:
    places = find_places([sandbox(web)], "all")
    with closing(taps()) as at:
        at.tap(places)
        found: list[Packet] = []
        for number in range(MANY // BURST):
            send(web, *[number.to_bytes(4, "big") + bytes(1000)] * BURST)
            found += at.read(0)
        found += take(at, 3 * MANY - len(found))
        assert at.lost == 0
    moments = [each.nanoseconds for each in found]
    assert moments == sorted(moments), "of all three hops, in one order"


def test_a_sandbox_that_goes_is_let_go_and_the_next_is_taken(
    driver: BridgeDriver, real: RealHost, web: Endpoint
) -> None:
    """A socket keeps its namespace alive, and with it the container's interfaces."""
    before = descriptors()
    with closing(taps()) as at:
        at.tap(find_places([sandbox(web)], "sandbox"))
        send(web, b"first")
        assert take(at, 1)[0].data.endswith(b"first")
        driver.leave(web.network_id, web.id)
        subprocess.run(["umount", sandbox_of(web)], check=True)
        assert find_places([sandbox(web)], "all") == []
        at.tap([])
        assert not netns.is_namespace(sandbox_of(web))
        other = start(driver, real, 3, new_endpoint(2))
        at.tap(find_places([sandbox(other)], "sandbox"))
        send(other, b"second")
        assert take(at, 1)[0].data.endswith(b"second")
    assert descriptors() == before


def test_what_is_queued_is_taken_whole_at_the_end(web: Endpoint) -> None:
    with closing(taps()) as at:
        at.tap(find_places([sandbox(web)], "sandbox"))
        send(web, *[bytes(100)] * 6000)
        assert len(at.finish()) == 6000
        assert at.lost == 0


def test_an_interface_may_have_any_name(real: RealHost) -> None:
    """A container that may make interfaces gives them names that are no text."""
    real.add_foreign("\udcff\udcfe", "ifb")
    ip("link", "set", "\udcff\udcfe", "up")
    with closing(taps()) as at:
        at.tap(find_host_places())
        assert at.lost == 0
