"""Published ports answer where the kernel cannot translate, as with Docker's proxies."""

from __future__ import annotations

import json
import sys
from subprocess import PIPE
from typing import TYPE_CHECKING

import pytest

from tests.engine import steps
from tests.engine.site import (
    ECHO_PORT,
    HOST,
    HOST_ADDRESS,
    LAN,
    LAN_ADDRESS,
    LOOPBACK,
    Question,
    Site,
    check,
    families,
    is_modern,
)
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine

pytestmark = pytest.mark.managed

PORT, PUBLISHED = 80, 8080
DRIVERS = ("pynet", "bridge")
BROADCAST = {"subnet": "192.0.2.255", "everywhere": "255.255.255.255"}
MULTICAST = {4: "224.0.0.1", 6: "ff02::1%uplink"}


@pytest.fixture
def site(engine: Engine) -> Iterator[Site]:
    with Site(engine) as site:
        yield site


def link_local(engine: Engine) -> str:
    """Return the host's link-local address on the LAN, as neighbours ask it."""
    return f"{find_link_local(engine, 'uplink')}%uplink"


def find_link_local(engine: Engine, device: str) -> str:
    words = ("ip", "-json", "-6", "address", "show", "dev", device, "scope", "link")
    links = json.loads(engine.run(*words).stdout)
    (address,) = (each["local"] for link in links if link for each in link["addr_info"] if each)
    return str(address)


def from_ipv6(protocol: str, port: int) -> list[Question]:
    return [
        Question(HOST, LOOPBACK[6], port, "*", protocol),
        Question(HOST, HOST_ADDRESS[6], port, "*", protocol),
        Question(LAN, HOST_ADDRESS[6], port, "*", protocol),
    ]


def from_the_link(engine: Engine, protocol: str, port: int) -> list[Question]:
    address = link_local(engine)
    return [Question(where, address, port, "*", protocol) for where in (LAN, HOST)]


@pytest.mark.managed("always")
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_ipv6_reaches_ports_of_a_network_without_it(site: Site, driver: str, protocol: str) -> None:
    site.network(driver, "a", 60, ipv6=False)
    site.container("web", "a", "-p", f"{PUBLISHED}:{PORT}/{protocol}")
    site.serve("web", protocol, PORT)
    check(
        site,
        [
            *from_ipv6(protocol, PUBLISHED),
            *from_the_link(site.engine, protocol, PUBLISHED),
            Question(LAN, HOST_ADDRESS[4], PUBLISHED, LAN_ADDRESS[4], protocol),
            Question(HOST, LOOPBACK[4], PUBLISHED, "*", protocol),
        ],
    )


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_port_on_one_ipv6_address_of_a_network_without_it(
    site: Site, driver: str, protocol: str
) -> None:
    """`-p '[::]:80:80'` answers by IPv6 alone, `-p '[::1]:…'` there and nowhere else."""
    site.network(driver, "a", 60, ipv6=False)
    site.container(
        "web",
        "a",
        *("-p", f"[::]:{PUBLISHED}:{PORT}/{protocol}"),
        *("-p", f"[::1]:8081:{PORT}/{protocol}"),
        *("-p", f"[{HOST_ADDRESS[6]}]:8082:{PORT}/{protocol}"),
    )
    site.serve("web", protocol, PORT)
    check(
        site,
        [
            *from_ipv6(protocol, PUBLISHED),
            *from_the_link(site.engine, protocol, PUBLISHED),
            Question(HOST, LOOPBACK[4], PUBLISHED, None, protocol),
            Question(LAN, HOST_ADDRESS[4], PUBLISHED, None, protocol),
            Question(HOST, LOOPBACK[6], 8081, "*", protocol),
            Question(LAN, HOST_ADDRESS[6], 8081, None, protocol),
            Question(HOST, LOOPBACK[6], 8082, None, protocol),
            Question(LAN, HOST_ADDRESS[6], 8082, "*", protocol),
        ],
    )


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_link_local_addresses_of_the_host(site: Site, driver: str, protocol: str) -> None:
    """The kernel forwards nothing that has a link-local source."""
    engine = site.engine
    site.network(driver, "a", 60)
    site.container("web", "a", "-p", f"{PUBLISHED}:{PORT}/{protocol}")
    site.serve("web", protocol, PORT)
    check(
        site,
        [
            *from_the_link(engine, protocol, PUBLISHED),
            # What can be translated is: the client is seen.
            Question(LAN, HOST_ADDRESS[4], PUBLISHED, LAN_ADDRESS[4], protocol),
            *(
                [Question(LAN, HOST_ADDRESS[6], PUBLISHED, LAN_ADDRESS[6], protocol)]
                if 6 in families(engine, driver)
                else from_ipv6(protocol, PUBLISHED)
            ),
        ],
    )


@pytest.mark.parametrize("driver", DRIVERS)
def test_ipv4_link_local_addresses_of_the_host(site: Site, driver: str) -> None:
    engine = site.engine
    site.network(driver, "a", 60, ipv6=False)
    site.container("web", "a", "-p", f"{PUBLISHED}:{PORT}")
    site.serve("web", "tcp", PORT)
    engine.run("ip", "address", "add", "169.254.7.1/16", "dev", "uplink")
    engine.lan_run("ip", "address", "add", "169.254.7.2/16", "dev", "uplink")
    try:
        check(
            site,
            [Question(where, "169.254.7.1", PUBLISHED, "*") for where in (LAN, HOST)],
        )
    finally:
        engine.run("ip", "address", "del", "169.254.7.1/16", "dev", "uplink")
        engine.lan_run("ip", "address", "del", "169.254.7.2/16", "dev", "uplink")


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("ipv6", [False, True])
def test_broadcast_and_multicast(site: Site, driver: str, *, ipv6: bool) -> None:
    """What a socket on the host would receive, the container does."""
    engine = site.engine
    if driver == "bridge" and is_modern(engine):
        pytest.skip("Docker's proxies do not answer them from 28 on")
    site.network(driver, "a", 60, ipv6=ipv6)
    site.container("web", "a", "-p", "5353:53/udp")
    site.serve("web", "udp", 53)
    engine.lan_run("ip", "route", "replace", "224.0.0.0/4", "dev", "uplink")
    engine.lan_run("ip", "route", "replace", "255.255.255.255/32", "dev", "uplink")
    groups = (*BROADCAST.values(), *MULTICAST.values())
    check(site, [Question(LAN, group, 5353, "*", "group") for group in groups])


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_port_of_the_host_alone_is_relayed_for_the_host_alone(site: Site, driver: str) -> None:
    """127.0.0.1 and ::1 are out of reach by link-local addresses, broadcast and IPv6."""
    engine = site.engine
    site.network(driver, "a", 60, ipv6=False)
    site.container(
        "web",
        "a",
        *("-p", f"127.0.0.1:{PUBLISHED}:{PORT}"),
        *("-p", "127.0.0.1:5353:53/udp"),
        *("-p", "[::1]:5354:53/udp"),
    )
    site.serve("web", "tcp", PORT)
    site.serve("web", "udp", 53)
    address = link_local(engine)
    check(
        site,
        [
            Question(HOST, LOOPBACK[4], PUBLISHED, "*"),
            Question(HOST, LOOPBACK[6], 5354, "*", "udp"),
            Question(HOST, LOOPBACK[6], PUBLISHED, None),
            *(Question(where, address, PUBLISHED, None) for where in (LAN, HOST)),
            *(Question(LAN, address, port, None, "udp") for port in (5353, 5354)),
            *(Question(LAN, group, 5353, None, "group") for group in BROADCAST.values()),
        ],
    )


def relays(engine: Engine) -> list[int]:
    """List the relay's processes, as the host sees them."""
    shown = engine.run("ps", "-eo", "pid=,args=").stdout.splitlines()
    return [int(line.split()[0]) for line in shown if "driver/relay/__main__.py" in line]


def kill(engine: Engine, process: int) -> None:
    engine.run("kill", "-9", str(process))


def test_one_process_for_all_ports_and_none_without(site: Site) -> None:
    engine = site.engine
    wait_until(lambda: not relays(engine), 20, "the end of the last test's relay")
    site.network("pynet", "a", 60, ipv6=False)
    site.network("pynet", "b", 61)
    site.container("only", "a", "-p", f"127.0.0.1:80:{PORT}", "-p", f"{HOST_ADDRESS[4]}:81:{PORT}")
    assert not relays(engine)
    site.container("web", "a", *(f"-p{port}:{PORT}" for port in range(8000, 8100)))
    site.container("six", "b", *(f"-p{port}:{PORT}/udp" for port in range(8000, 8100)))
    site.serve("web", "tcp", PORT)
    check(site, [*from_ipv6("tcp", 8000), *from_ipv6("tcp", 8099)])
    (process,) = relays(engine)
    # As docs/operations.md says.
    listening = engine.run("ss", "-Htlnp", "sport", "=", "8099").stdout
    assert "[::]:8099" in listening
    assert f"pid={process}," in listening
    memory = engine.run("cat", f"/proc/{process}/smaps_rollup").stdout
    (resident,) = (int(line.split()[1]) for line in memory.splitlines() if line.startswith("Rss:"))
    assert resident < 15 * 1024, f"the relay has {resident} KB"
    engine.docker("rm", "-f", "web", "six", "only")
    wait_until(lambda: not relays(engine), 20, "the end of a relay that has nothing to serve")
    # The next one finds the ports free.
    site.container("web", "a", "-p", f"8000:{PORT}")
    site.serve("web", "tcp", PORT)
    check(site, from_ipv6("tcp", 8000))


@pytest.mark.managed("never")
def test_the_relay_outlives_the_driver(site: Site) -> None:
    """With its connections; a new driver has its ports at once, and can give them away."""
    engine = site.engine
    site.network("pynet", "a", 60, ipv6=False)
    site.container("web", "a", "-p", f"{PUBLISHED}:{PORT}", "-p", f"9999:{ECHO_PORT}")
    site.serve("web", "tcp", PORT)
    site.echo("web", ECHO_PORT)
    check(site, from_ipv6("tcp", PUBLISHED))
    (process,) = relays(engine)
    assert engine.driver is not None
    with site.stream(HOST, LOOPBACK[6], 9999):
        engine.driver.kill()
        check(site, from_ipv6("tcp", PUBLISHED))
        engine.start_driver()
        check(site, from_ipv6("tcp", PUBLISHED))
        engine.driver.terminate()
        check(site, from_ipv6("tcp", PUBLISHED))
        engine.start_driver()
        check(site, from_ipv6("tcp", PUBLISHED))
    assert relays(engine) == [process]
    words = ("run", "--rm", "--network", "a", "-p", f"[::]:{PUBLISHED}:{PORT}", "bb", "true")
    assert "port is in use by endpoint " in engine.docker(*words, check=False).stderr
    assert steps.pynet(engine, "check").returncode == 0
    engine.docker("rm", "-f", "web")
    site.network("bridge", "d", 62, ipv6=False)
    site.container("again", "d", "-p", f"{PUBLISHED}:{PORT}")


def test_what_ended_while_no_driver_ran_is_served_no_longer(site: Site) -> None:
    engine = site.engine
    site.network("pynet", "a", 60, ipv6=False)
    site.container("web", "a", "-p", f"{PUBLISHED}:{PORT}")
    wait_until(lambda: relays(engine), 10, "the relay")
    steps.revive_driver(engine)
    engine.docker("rm", "-f", "web")
    site.network("bridge", "d", 62, ipv6=False)
    site.container("again", "d", "-p", f"{PUBLISHED}:{PORT}")


def test_a_relay_that_dies_is_started_again(site: Site) -> None:
    engine = site.engine
    site.network("pynet", "a", 60, ipv6=False)
    site.container("web", "a", "-p", f"{PUBLISHED}:{PORT}")
    site.serve("web", "tcp", PORT)
    check(site, from_ipv6("tcp", PUBLISHED))
    (process,) = relays(engine)
    kill(engine, process)
    check(site, from_ipv6("tcp", PUBLISHED))  # who comes meanwhile waits
    (another,) = relays(engine)
    assert another != process
    wait_until(lambda: "the relay has ended" in engine.log("driver"), 10, "the log")
    wait_until(lambda: steps.pynet(engine, "check", check=False).returncode == 0, 10, "a check")


def test_a_container_that_goes_takes_its_relayed_connections_along(site: Site) -> None:
    engine = site.engine
    site.network("pynet", "a", 60, ipv6=False)
    site.container("web", "a", "-p", f"{PUBLISHED}:{ECHO_PORT}")
    site.serve("web", "tcp", PORT)
    site.echo("web", ECHO_PORT)
    client = (
        "import socket; s = socket.create_connection(('::1', 8080), 10); s.sendall(b'x');"
        "s.recv(1); print('flowing', flush=True); print(repr(s.recv(1)))"
    )
    with engine.popen(sys.executable, "-c", client, stdout=PIPE, stderr=PIPE) as connected:
        assert connected.stdout is not None
        assert connected.stdout.readline() == "flowing\n"
        engine.docker("rm", "-f", "web")
        assert connected.wait(10) is not None
    site.container("web", "a", "-p", f"{PUBLISHED}:{ECHO_PORT}")


def test_who_the_client_is_said_by_proxy_protocol_if_asked_for(site: Site) -> None:
    engine = site.engine
    site.network("pynet", "a", 60, "-o", "pynet.publish.proxy_protocol=true", ipv6=False)
    site.container("web", "a", "-p", f"{PUBLISHED}:{PORT}")
    server = (
        "import socket; s = socket.create_server(('', 80)); print('ready', flush=True);"
        "c, a = s.accept(); print(a[0]); print(c.recv(200).decode(), flush=True)"
    )
    command = (*site.enter("web"), sys.executable, "-c", server)
    with engine.popen(*command, stdout=PIPE) as serving:
        assert serving.stdout is not None
        assert serving.stdout.readline() == "ready\n"
        ask = f"import socket; socket.create_connection(('{HOST_ADDRESS[6]}', {PUBLISHED}), 10)"
        engine.lan_run(sys.executable, "-c", ask)
        assert serving.stdout.readline() == "10.60.0.1\n"
        words = serving.stdout.readline().split()
    assert words[:4] == ["PROXY", "TCP6", LAN_ADDRESS[6], HOST_ADDRESS[6]]
    assert words[5] == str(PUBLISHED)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_an_internal_network_has_no_way_out_by_the_relay(site: Site, protocol: str) -> None:
    """Containers of others have: a published port is open to them by the host's addresses."""
    engine = site.engine
    site.network("pynet", "a", 60, ipv6=False)
    site.network("pynet", "inner", 61, "--internal")
    site.network("pynet", "other", 62)
    site.containers(
        {
            "web": ("a", "-p", f"{PUBLISHED}:{PORT}/{protocol}"),
            "in": ("inner",),
            "out": ("other",),
        }
    )
    site.serve("web", protocol, PORT)
    check(site, from_ipv6(protocol, PUBLISHED))
    asked = {"in": ("fd61::1", None), "out": ("fd62::1", "*")}
    check(
        site,
        [
            Question(where, gateway, PUBLISHED, seen, protocol)
            for where, (gateway, seen) in asked.items()
        ],
    )
    questions = []
    for where, network in (("in", "inner"), ("out", "other")):
        identity = engine.docker("network", "inspect", "-f", "{{.Id}}", network).stdout
        address = f"{find_link_local(engine, f'pn-{identity[:12]}')}%eth0"
        questions.append(Question(where, address, PUBLISHED, asked[where][1], protocol))
    check(site, questions)
