"""`pynet check` and `pynet gc` on a real engine, and healing while containers talk."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.site import HOST, HOST_ADDRESS, LAN, LAN_ADDRESS, LOOPBACK, Question, Site, check
from tests.engine.steps import create_network, pynet, revive_driver, run
from tests.engine.unixhttp import request
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.driver import Driver
    from tests.engine.engine import Engine

# In which what others break is mended, beside whatever else the machine does: alone, in one.
SECONDS = 15.0
BRIDGE = "br-heal"
DAMAGES = {
    "Docker's chain flushed": "iptables -w -F DOCKER-USER",
    "bridge deleted": f"ip link delete {BRIDGE}",
    "bridge down": f"ip link set {BRIDGE} down",
    "address removed": f"ip address flush dev {BRIDGE}",
    "all rules flushed, Docker's, too": "nft flush ruleset",
}

POOL = {"AddressSpace": "", "Pool": "10.99.0.0/24", "Gateway": "10.99.0.1/24"}
FORGOTTEN = {"NetworkID": 64 * "f", "Options": {}, "IPv4Data": [POOL], "IPv6Data": []}


@pytest.fixture
def site(engine: Engine) -> Iterator[Site]:
    """Lend a network with a server, a client and a published port, all of which works."""
    with Site(engine) as site:
        name = ("-o", f"com.docker.network.bridge.name={BRIDGE}")
        site.network("pynet", "back", 61, *name)
        # A dockerd that comes back asks them to end, and they have no handler for another signal.
        kill = ("--stop-signal", "KILL")
        site.containers({"web": ("back", "-p", "8080:80", *kill), "other": ("back", *kill)})
        site.serve("web", "tcp", 80)
        works(site)
        yield site


def works(site: Site) -> None:
    check(
        site,
        [
            Question("other", site.address("web", "back", 4), 80, "*"),
            Question("other", site.address("web", "back", 6), 80, "*"),
            Question(HOST, LOOPBACK[4], 8080, "*"),
            Question(LAN, HOST_ADDRESS[4], 8080, LAN_ADDRESS[4]),
            Question(LAN, HOST_ADDRESS[6], 8080, LAN_ADDRESS[6]),
        ],
    )


def differences(engine: Engine) -> list[dict[str, Any]]:
    """Return what `pynet check` finds."""
    return check_host(engine)["differences"]


def check_host(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    """Return all that `pynet check` says."""
    done = pynet(engine, "check", "--json", check=False)
    found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    return found


def garbage(engine: Engine, *words: str) -> dict[str, list[dict[str, Any]]]:
    """Return what `pynet gc` finds."""
    done = pynet(engine, "gc", "--json", *words, check=False)
    found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    return found


def seconds_until_mended(engine: Engine, driver: Driver) -> float:
    """Return how long it takes from now until nothing differs."""
    began = time.monotonic()
    wait_until(
        lambda: request(driver.socket, "GET", "/differences") == (200, b'{"differences":[]}'),
        SECONDS,
        "everything is as it was",
    )
    return time.monotonic() - began


def test_what_others_break_is_mended_at_once(site: Site) -> None:
    engine, driver = site.engine, site.engine.driver
    assert driver is not None
    assert not differences(engine)
    for damage, command in DAMAGES.items():
        engine.run(*command.split())
        print(f"{damage}: mended after {seconds_until_mended(engine, driver):.2f} s")
        works(site)
    engine.reboot()  # for the next test, the firewall of a fresh machine


def test_check_finds_what_was_broken_while_the_driver_was_away(site: Site) -> None:
    engine = site.engine
    assert engine.driver is not None
    engine.driver.kill()
    engine.run("nft", "delete", "table", "inet", "pynet")
    engine.run("ip", "link", "delete", BRIDGE)
    revive_driver(engine)
    assert not differences(engine)
    works(site)


def test_gc_removes_what_docker_forgot_and_nothing_else(site: Site) -> None:
    engine, driver = site.engine, site.engine.driver
    assert driver is not None
    assert not any(garbage(engine).values())
    lost = create_network(engine, "lost")
    # As it is when Docker's calls did not arrive, or an old state file was put back.
    driver.call("NetworkDriver.DeleteNetwork", {"NetworkID": lost})
    driver.call("NetworkDriver.CreateNetwork", FORGOTTEN)
    found = garbage(engine)
    assert [each["id"] for each in found["garbage"]] == [FORGOTTEN["NetworkID"]]
    assert [each["id"] for each in found["unknown_to_the_driver"]] == [lost]
    removed = garbage(engine, "--yes")["removed"]
    assert [each["id"] for each in removed] == [FORGOTTEN["NetworkID"]]
    engine.docker("network", "rm", "lost")
    assert not any(garbage(engine).values())
    works(site)


def test_a_port_is_free_when_its_container_died_with_dockerd(site: Site) -> None:
    engine, driver = site.engine, site.engine.driver
    assert driver is not None
    engine.kill_dockerd()
    engine.start_dockerd()  # without live-restore: it ends the containers, and tells no v1 driver
    seconds_until_mended(engine, driver)
    run(engine, "next", "back", "-p", "8080:80", "--ip", "10.61.0.77")
    assert not any(garbage(engine).values())
    assert not differences(engine)


def test_a_host_that_is_merely_weaker_is_warned_of_and_whole(site: Site) -> None:
    engine = site.engine
    before = engine.run("sysctl", "-n", "net.ipv4.conf.all.rp_filter").stdout.strip()
    try:
        engine.run("sysctl", "-w", "net.ipv4.conf.all.rp_filter=1")
        engine.run("iptables", "-w", "-P", "FORWARD", "DROP")
        engine.run("ip6tables", "-w", "-P", "FORWARD", "DROP")
        assert check_host(engine)["warnings"] == []
        engine.run("sysctl", "-w", "net.ipv4.conf.all.rp_filter=0")
        for command in ("iptables", "ip6tables"):
            engine.run(command, "-w", "-P", "FORWARD", "ACCEPT")
        done = pynet(engine, "check")  # that exits with 0
        said = check_host(engine)
        assert not said["differences"]
        settings = [each["setting"] for each in said["warnings"]]
        assert settings[:2] == ["iptables FORWARD", "ip6tables FORWARD"]
        assert all(each in done.stdout for each in settings)
    finally:
        engine.run("sysctl", "-w", f"net.ipv4.conf.all.rp_filter={before}")
        for command in ("iptables", "ip6tables"):
            engine.run(command, "-w", "-P", "FORWARD", "DROP")


def health(engine: Engine) -> list[str]:
    """Return the problems that health tells of, none when it is well."""
    assert engine.driver is not None
    status, body = request(engine.driver.socket, "GET", "/health")
    told: list[str] = json.loads(body)["problems"]
    assert (status == 503) == bool(told)
    return told


def lines(engine: Engine, text: str) -> list[str]:
    """Return the lines of the driver's log that hold the text."""
    return [line for line in engine.log("driver").splitlines() if text in line]


def test_an_interface_that_is_gone_is_told_until_its_container_has_one_again(site: Site) -> None:
    """It is gone for good: only Docker can give the container another."""
    engine = site.engine
    site.run("other", "ip", "link", "delete", "eth0")
    (problem,) = wait_until(lambda: health(engine), SECONDS, "health says so")
    assert problem.startswith("severed pnh")
    assert "is gone while its container runs" in problem
    # Its thread may not have written it yet, and the driver is killed.
    wait_until(lambda: len(lines(engine, problem)) == 1, SECONDS, "the log says so")
    revive_driver(engine)
    wait_until(lambda: health(engine) == [problem], 5 * SECONDS, "a driver that starts says so")
    wait_until(lambda: len(lines(engine, problem)) == 2, SECONDS, "once by each of two drivers")
    engine.docker("network", "disconnect", "-f", "back", "other")
    engine.docker("network", "connect", "back", "other")
    wait_until(lambda: not health(engine), SECONDS, "all is well")
    works(site)


def test_a_default_that_this_kernel_refuses_is_told_in_a_sentence(engine28: Engine) -> None:
    engine = engine28
    assert engine.driver is not None
    engine.driver.terminate()
    before = len(engine.log("driver"))
    engine.start_driver(env={"PYNET_DEFAULT_SYSCTLS": "net.ipv4.tcp_keepalive_tim=600"})
    (problem,) = wait_until(lambda: health(engine), 5 * SECONDS, "health says so")
    assert problem.startswith(
        "no network can be made: default for all networks of this host, PYNET_"
    )
    assert "did you mean net.ipv4.tcp_keepalive_time?" in problem
    refused = engine.docker("network", "create", "-d", "pynet", "back", check=False)
    assert "PYNET_DEFAULT_SYSCTLS: net.ipv4.tcp_keepalive_tim" in refused.stderr
    wait_until(lambda: "CreateNetwork" in engine.log("driver")[before:], SECONDS, "it is logged")
    assert problem in engine.log("driver")[before:]
    assert "Traceback" not in engine.log("driver")[before:]
