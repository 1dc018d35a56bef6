"""What `pynet ls`, `pynet ports` and `pynet inspect` say about a real engine's networks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.engine import steps
from tests.engine.steps import KEEPALIVE, create_network, pynet, run

if TYPE_CHECKING:
    from tests.engine.engine import Engine

pytestmark = pytest.mark.managed

SUBNETS = ("--subnet", "10.77.0.0/24", "--ipv6", "--subnet", "fd77::/64")


@pytest.fixture
def web(engine: Engine) -> Engine:
    """Have a network `front` with a container `web` that publishes two ports."""
    mtu = ("-o", "com.docker.network.driver.mtu=1400")
    create_network(engine, "front", *SUBNETS, "-o", f"{KEEPALIVE}=600", *mtu)
    ports = ("-p", "8080:80", "-p", "127.0.0.1:9000-9001:9000-9001/udp")
    # A dockerd that comes back asks it to end, and it has no handler for any other signal.
    run(engine, "web", "front", *ports, "--stop-signal", "KILL")
    return engine


def table(text: str) -> list[list[str]]:
    """Return the words of a table whose columns are two spaces or more apart."""
    return [line.split() for line in text.splitlines()]


def test_ls_lists_the_networks(web: Engine) -> None:
    identity = web.client.networks.get("front").id
    assert identity is not None
    head, row = table(pynet(web, "ls").stdout)
    assert head == ["NETWORK", "ID", "BRIDGE", "POOLS", "ENDPOINTS", "SYSCTLS"]
    short = identity[:12]
    assert row == ["front", short, f"pn-{short}", "10.77.0.0/24", "fd77::/64", "1", "1"]
    (network,) = json.loads(pynet(web, "ls", "--json").stdout)
    assert (network["name"], network["id"]) == ("front", identity)
    assert network["sysctls"] == {KEEPALIVE: "600"}
    assert network["options"] == {"mtu": 1400}


def test_ports_lists_what_docker_ps_cannot(web: Engine) -> None:
    place = steps.endpoint(web, "web", "front")
    ipv4, ipv6 = place["IPAddress"], place["GlobalIPv6Address"]
    rows = table(pynet(web, "ports").stdout)
    assert rows[0] == ["NETWORK", "CONTAINER", "HOST", "CONTAINER", "PORT", "PROTOCOL"]
    assert sorted(rows[1:]) == sorted(
        [
            ["front", "web", "0.0.0.0:8080", f"{ipv4}:80", "tcp"],
            ["front", "web", "[::]:8080", f"[{ipv6}]:80", "tcp"],
            ["front", "web", "127.0.0.1:9000", f"{ipv4}:9000", "udp"],
            ["front", "web", "127.0.0.1:9001", f"{ipv4}:9001", "udp"],
        ]
    )
    assert {
        "network": "front",
        "container": "web",
        "protocol": "udp",
        "host_ip": "127.0.0.1",
        "host_port": 9000,
        "container_ip": ipv4,
        "container_port": 9000,
    } in steps.published(web)


def test_inspect_shows_a_network_and_a_container(web: Engine) -> None:
    place = steps.endpoint(web, "web", "front")
    network = json.loads(pynet(web, "inspect", "front").stdout)
    assert network["name"] == "front"
    assert [pool["gateway"] for pool in network["pools"]] == ["10.77.0.1", "fd77::1"]
    (endpoint,) = network["endpoints"]
    assert (endpoint["container"], endpoint["mac"]) == ("web", place["MacAddress"])
    (endpoint,) = json.loads(pynet(web, "inspect", "web").stdout)
    assert endpoint["network"] == "front"
    assert endpoint["ipv4"] == f"{place['IPAddress']}/24"
    assert endpoint["sandbox_end"] == "eth0"
    assert steps.host_link(web, endpoint["host_end"]) is not None
    assert len(endpoint["ports"]) == 4
    refused = pynet(web, "inspect", "nobody", check=False)
    assert refused.returncode == 1
    assert "no network and no container of pynet's is called nobody" in refused.stderr


def test_ids_stand_in_for_names_without_docker(web: Engine) -> None:
    identity = web.client.networks.get("front").id
    assert identity is not None
    web.kill_dockerd()
    done = pynet(web, "ls")
    assert identity[:12] in done.stdout
    assert "ids instead of names" in done.stderr
