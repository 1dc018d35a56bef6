"""What a map shows of the inside of a namespace is what iproute2 shows of it."""

from __future__ import annotations

import os
import re
import socket
import threading
from pathlib import Path

from driver.linux import sysctl
from driver.linux.inside import Parameter, read_inside
from driver.linux.link_news import LinkNews
from driver.linux.view import find_all_owners, find_owners
from tests.kernel.host import run

ROUTES = (
    "default via 10.9.0.1 dev d0",
    "10.20.0.0/16 via 10.9.0.9 dev d0 metric 7",
    "blackhole 10.21.0.0/16",
    "unreachable 10.22.0.0/16 metric 9",
    "10.23.0.0/16 dev d0 table 100",
    "2001:db8:5::/48 via fd09::9 dev d0 metric 1024",
)


def set_up() -> None:
    """Give this namespace two interfaces and every kind of route."""
    for name in ("d0", "d1"):
        run("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}-peer")
        for end in (name, f"{name}-peer"):
            run("ip", "link", "set", end, "up")
    run("ip", "address", "add", "10.9.0.2/24", "dev", "d0")
    run("ip", "address", "add", "fd09::2/64", "dev", "d0", "nodad")
    run("ip", "address", "add", "10.10.0.2/24", "dev", "d1")
    for route in ROUTES:
        run("ip", "-6" if "2001" in route else "-4", "route", "add", *route.split())
    hops = ("nexthop", "via", "10.9.0.7", "nexthop", "via", "10.10.0.7")
    run("ip", "route", "add", "10.30.0.0/16", *hops)


def test_routes_are_those_of_iproute2() -> None:
    set_up()
    found = read_inside({}, {}).routes
    assert set(ROUTES) <= set(found), found
    assert "10.30.0.0/16 via 10.9.0.7 dev d0 via 10.10.0.7 dev d1" in found
    assert found[0] == ROUTES[0], "the way out comes first"
    assert not [each for each in found if each.startswith(("local", "broadcast", "multicast"))]
    listed = run("ip", "-4", "route", "show", "table", "all").splitlines()
    others = [each for each in listed if not re.match("local|broadcast|\tnexthop", each)]
    assert len([each for each in found if ":" not in each]) == len(others)


def test_neighbours_are_named_with_what_is_known_of_them() -> None:
    set_up()
    place = ("dev", "d0", "nud")
    run("ip", "neigh", "add", "10.9.0.5", "lladdr", "02:00:00:00:00:05", *place, "reachable")
    run("ip", "neigh", "add", "10.9.0.6", *place, "failed")
    found = read_inside({}, {}).neighbours
    assert "10.9.0.5 dev d0 02:00:00:00:00:05" in found
    assert "10.9.0.6 dev d0 does not answer" in found


def test_sockets_have_their_process() -> None:
    run("ip", "link", "set", "lo", "up")
    name = Path("/proc/self/comm").read_text().strip()
    with socket.create_server(("127.0.0.1", 0)) as server:
        inode = os.stat(server.fileno()).st_ino  # noqa: PTH116 - of a descriptor
        own = f"{name} (pid {os.getpid()})"
        owners = find_all_owners()
        assert owners[inode] == own == find_owners({inode})[inode]
        port = server.getsockname()[1]
        assert read_inside({}, owners).sockets == (f"127.0.0.1:{port}/tcp  {own}",)


def test_parameters_are_those_that_a_new_namespace_has_not() -> None:
    pristine = sysctl.read_pristine()
    key = "net.ipv4.tcp_keepalive_time"
    sysctl.write(key, "600")
    found = read_inside(pristine, {}).parameters
    assert Parameter(key, "600", "7200") in found


def test_news_of_a_link_wake_who_waits() -> None:
    news = LinkNews()
    woken = threading.Event()

    def wait() -> None:
        news.wait()
        woken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not woken.is_set()
    run("ip", "link", "add", "d9", "type", "bridge")
    assert woken.wait(10)
    thread.join()
    news.close()
