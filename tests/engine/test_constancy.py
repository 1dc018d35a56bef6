"""What the host holds does not grow with ports and networks, and is as before after the last."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tests.engine.remains import await_nothing_left
from tests.engine.site import HOST_ADDRESS, LAN, LAN_ADDRESS, Question, Site, check

if TYPE_CHECKING:
    from tests.engine.engine import Engine

COMMANDS = ("iptables-save", "ip6tables-save")
MANY_NETWORKS, MANY_PORTS = 100, 1000


def chains_and_rules(engine: Engine) -> tuple[int, int]:
    """Return how many chains and rules there are in all tables, those of iptables included."""
    found = json.loads(engine.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
    return sum("chain" in each for each in found), sum("rule" in each for each in found)


def call_create(engine: Engine, number: int) -> str:
    """Have the driver make a network, as Docker would; return its id."""
    assert engine.driver is not None
    identity = f"{number:012x}".ljust(64, "0")
    subnet, subnet6 = f"10.200.{number}", f"fd77:{number:x}:"
    pools = {
        "IPv4Data": [{"AddressSpace": "", "Pool": f"{subnet}.0/24", "Gateway": f"{subnet}.1/24"}],
        "IPv6Data": [{"AddressSpace": "", "Pool": f"{subnet6}:/64", "Gateway": f"{subnet6}:1/64"}],
    }
    call = {"NetworkID": identity, "Options": {}, **pools}
    assert engine.driver.call("NetworkDriver.CreateNetwork", call) == {}
    return identity


def test_a_thousand_ports_and_a_hundred_networks_add_no_rule(engine28: Engine) -> None:
    engine = engine28
    last = 20000 + MANY_PORTS - 1
    with Site(engine) as site:
        site.network("pynet", "a", 60)
        site.container("one", "a", "-p", "8080:80")
        counted = chains_and_rules(engine)
        assert engine.driver is not None
        made = [call_create(engine, number) for number in range(MANY_NETWORKS)]
        site.container("many", "a", "-p", f"20000-{last}:20000-{last}")
        assert chains_and_rules(engine) == counted
        site.serve("many", "tcp", 20000, last)
        site.serve("one", "tcp", 80)
        ports = (8080, 20000, last)
        check(site, [Question(LAN, HOST_ADDRESS[4], port, LAN_ADDRESS[4]) for port in ports])
        for identity in made:
            engine.driver.call("NetworkDriver.DeleteNetwork", {"NetworkID": identity})
        assert chains_and_rules(engine) == counted


@dataclass(frozen=True, slots=True)
class Footprint:
    """What is on the host that anybody could leave something in."""

    nft: str
    iptables: tuple[str, ...]
    sockets: list[str]
    policy: str
    links: str

    @classmethod
    def of(cls, engine: Engine) -> Self:
        """Return it as it is now."""
        return cls(
            nft=engine.run("nft", "-s", "list", "ruleset").stdout,
            iptables=tuple(_saved(engine, command) for command in COMMANDS),
            sockets=sorted(engine.run("ss", "-Haltun").stdout.splitlines()),
            policy=engine.run("ip", "rule").stdout + engine.run("ip", "-6", "rule").stdout,
            links=engine.run("ip", "-br", "link").stdout,
        )


def _saved(engine: Engine, command: str) -> str:
    """Return what iptables has, without comments, which hold the time, and without counters."""
    lines = engine.run(command).stdout.splitlines()
    return "\n".join(line.partition(" [")[0] for line in lines if not line.startswith("#"))


def test_nothing_is_left_after_the_last_network(engine: Engine) -> None:
    _use_and_remove(engine)  # forwarding is turned on for the first network, and stays on
    before = Footprint.of(engine)
    _use_and_remove(engine)
    assert Footprint.of(engine) == before


def _use_and_remove(engine: Engine) -> None:
    """Have two networks of every kind of rule, with published ports, and remove them."""
    bridge = "com.docker.network.bridge"
    with Site(engine) as site:
        site.network("pynet", "a", 60, "-o", f"{bridge}.enable_icc=false")
        routed = ("-o", f"{bridge}.gateway_mode_ipv4=routed")
        trusted = ("-o", f"{bridge}.trusted_host_interfaces=uplink")
        site.network("pynet", "b", 61, *routed, *trusted)
        site.containers(
            {
                "web": (
                    "a",
                    "-p",
                    "8080:80",
                    "-p",
                    "127.0.0.1:5353:53/udp",
                    "-p",
                    "7000:7000/sctp",
                ),
                "far": ("b", "-p", "8081:80"),
            }
        )
        engine.docker("rm", "-f", "web", "far")
        engine.docker("network", "rm", "a", "b")
    await_nothing_left(engine)
