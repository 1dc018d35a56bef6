"""What keeps packets from passing the host, though nothing of ours is missing, is named."""

from __future__ import annotations

import subprocess
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from driver.firewall.filters import Interface, Lookup, describe_packet
from driver.firewall.ruleset import ACCEPTED_MARK, FORWARD_PRIORITY
from driver.linux import filters as filters_module
from driver.linux.filters import read_filters
from driver.linux.links import find_index
from driver.linux.nfnetlink import Connection
from driver.reconcile.diff import Kind
from tests.engine.wait import wait_until
from tests.kernel.container import start
from tests.kernel.host import ip, run
from tests.kernel.test_published import DUAL, dual_endpoint
from tests.samples import network, new_endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from driver.driver import BridgeDriver
    from driver.firewall.filters import BaseChain
    from driver.model import Endpoint
    from tests.kernel.host import RealHost

BRIDGE = DUAL.bridge_name
SECONDS = 1.0
HOOK = "type filter hook forward priority 0; policy drop;"
ACCEPT = f"meta mark and {ACCEPTED_MARK:#x} != 0 accept"
OTHERS = "iifname eth1 oifname eth0 accept"
# What operators write: what is done with a packet from the bridge, and with one to it.
DROPS, PASSES, PERHAPS = True, False, False
RULES = {
    "nothing": ("", DROPS, DROPS),
    "what pynet says": (ACCEPT, PASSES, PASSES),
    "the mark, all of it": (f"meta mark {ACCEPTED_MARK:#x} accept", PASSES, PASSES),
    "another mark": ("meta mark and 0x1 != 0 accept", DROPS, DROPS),
    "its name": (f'iifname "{BRIDGE}" accept', PASSES, PERHAPS),
    "both its names": (f'iifname "{BRIDGE}" accept; oifname "{BRIDGE}" accept', PASSES, PASSES),
    "a name with a star": ('iifname "pn-*" accept; oifname "pn-*" accept', PASSES, PASSES),
    "another name": (OTHERS, DROPS, DROPS),
    "a set of names": (f'iifname {{ "eth1", "{BRIDGE}" }} accept', PASSES, PERHAPS),
    "a set of other names": ('oifname { "eth1", "eth2" } accept', PERHAPS, DROPS),
    "a named set": ("iifname @inside accept", DROPS, PERHAPS),
    "a concatenation": (f'iifname . oifname {{ "{BRIDGE}" . "eth0" }} accept', PERHAPS, PERHAPS),
    "what is established": ("ct state established,related accept", DROPS, DROPS),
    "a map of states": (
        "ct state vmap { established : accept, related : accept, invalid : drop }",
        DROPS,
        DROPS,
    ),
    "a map with what is new": ("ct state vmap { new : accept, invalid : drop }", PASSES, PASSES),
    "a map to a chain": (f'iifname vmap {{ "{BRIDGE}" : goto back }}', DROPS, PERHAPS),
    "a map to a chain that accepts": (
        f'iifname vmap {{ "{BRIDGE}" : jump more }}',
        PASSES,
        PERHAPS,
    ),
    # In the register that the name was in.
    "a name and a hash": (f'iifname "{BRIDGE}" symhash mod 2 == 0 accept', PERHAPS, PERHAPS),
    "a name and IPsec": (f'iifname "{BRIDGE}" ipsec in reqid 1 accept', PERHAPS, PERHAPS),
    "pings": ("meta l4proto { icmp, ipv6-icmp } accept", DROPS, DROPS),
    "a port": ("tcp dport 443 accept", PERHAPS, PERHAPS),
    "an address": ("ip saddr 10.0.0.0/8 accept", PERHAPS, PERHAPS),
    "a limit": ("limit rate 10/second accept", PERHAPS, PERHAPS),
    "a jump": ("jump more", PASSES, PERHAPS),
    "a jump there and no further": ("goto more", PASSES, PERHAPS),
    "back at once": (f"goto back; {ACCEPT}", DROPS, PERHAPS),
    "back to behind the jump": (f"jump back; {ACCEPT}", PASSES, PASSES),
    "a drop before": (f'iifname "{BRIDGE}" drop; {ACCEPT}', DROPS, PERHAPS),
    "a reject before": (f'iifname "{BRIDGE}" reject; {ACCEPT}', DROPS, PERHAPS),
    "what is counted and logged": (f'counter; log prefix "x"; {ACCEPT}', PASSES, PASSES),
    "everything": ("accept", PASSES, PASSES),
}


@pytest.fixture
def server(driver: BridgeDriver, real: RealHost, as_docker_leaves_it: None) -> Endpoint:
    """Lend a container on a host where nothing is wrong, and a network without one."""
    for net in (DUAL, network(2)):
        driver.create_network(net)
    server = start(driver, real, 1, dual_endpoint(1))
    assert driver.check() == ()
    return server


@pytest.fixture
def watched(driver: BridgeDriver, server: Endpoint) -> Iterator[Endpoint]:
    driver.start_watching()
    yield server
    driver._stop_watching()


def filters() -> tuple[BaseChain, ...]:
    with closing(Connection()) as netfilter:
        return read_filters(netfilter)


def nft(text: str) -> None:
    done = subprocess.run(
        ["nft", "-f", "-"], input=text, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, f"{done.stderr} in {text}"


def table(rules: str, hook: str = HOOK, family: str = "inet") -> None:
    """Write a table as an operator would."""
    text = f"""
        table {family} guard {{
            set inside {{ type ifname; elements = {{ "eth1" }}
            }}
            chain more {{ iifname "{BRIDGE}" accept; return;
            }}
            chain back {{ iifname "nobody" accept; return;
            }}
            chain forward {{ {hook} {rules};
            }}
        }}
        """
    nft(text)


@pytest.mark.parametrize(("rules", "from_bridge", "to_bridge"), RULES.values(), ids=RULES)
def test_what_becomes_of_a_packet_in_a_chain_of_others(
    rules: str, *, from_bridge: bool, to_bridge: bool
) -> None:
    ip("link", "add", BRIDGE, "type", "bridge")
    table(rules or "counter")
    (chain,) = filters()
    bridge = Interface(BRIDGE, find_index(BRIDGE) or 0)
    packets = (
        describe_packet(4, source=bridge, mark=ACCEPTED_MARK),
        describe_packet(4, target=bridge, mark=ACCEPTED_MARK),
    )
    assert [chain.surely_drops(packet) for packet in packets] == [from_bridge, to_bridge]


CLOSED = {
    "no forwarding": ("sysctl -w net.ipv4.ip_forward=0", Kind.FORWARDING),
    "no forwarding of IPv6": ("sysctl -w net.ipv6.conf.all.forwarding=0", Kind.FORWARDING),
    "no forwarding from a bridge": (
        f"sysctl -w net.ipv4.conf.{BRIDGE}.forwarding=0",
        Kind.FORWARDING,
    ),
    "no route": ("ip route delete 10.1.0.0/24", Kind.ROUTE),
    "no route of IPv6": (f"ip -6 route delete fd00:1::/64 dev {BRIDGE}", Kind.ROUTE),
    "a stronger rule": ("ip rule add to 10.1.0.0/24 prohibit", Kind.ROUTE),
    "a route that leads nowhere": ("ip route replace blackhole 10.1.0.0/24", Kind.ROUTE),
}


@pytest.mark.parametrize(("command", "kind"), CLOSED.values(), ids=CLOSED)
def test_what_closes_the_way_is_named_with_what_opens_it(
    driver: BridgeDriver, server: Endpoint, command: str, kind: Kind
) -> None:
    run(*command.split())
    (found,) = driver.check()
    assert found.kind is kind
    run(*found.text.rpartition("; ")[2].split())
    if "rule" in command:
        run("ip", "rule", "delete", "to", "10.1.0.0/24", "prohibit")
    assert driver.check() == ()


@pytest.mark.parametrize("priority", [FORWARD_PRIORITY - 10, FORWARD_PRIORITY, 0, 10])
@pytest.mark.parametrize("family", ["inet", "ip", "ip6"])
def test_a_chain_that_drops_is_named_with_the_rule_that_would_help(
    driver: BridgeDriver, server: Endpoint, priority: int, family: str
) -> None:
    table("counter", HOOK.replace("priority 0", f"priority {priority}"), family)
    (found,) = driver.check()
    assert (found.kind, found.subject) == (Kind.FILTER, f"{family} guard forward")
    assert f"from and to containers on {BRIDGE}" in found.text
    for rule in found.text.split("; ")[1:]:
        nft(rule.removeprefix("nft ") + "\n")
    assert driver.check() == ()


# Whoever adds or replaces a rule or a route tells of no route that goes.
EVENTS = {
    name: command
    for name, (command, _) in CLOSED.items()
    if "rule" not in name and "replace" not in command
}


@pytest.mark.parametrize("command", EVENTS.values(), ids=EVENTS)
def test_health_says_so_at_once(driver: BridgeDriver, watched: Endpoint, command: str) -> None:
    run(*command.split())
    (problem,) = wait_until(driver.health.problems, SECONDS, "health says so")
    run(*problem.rpartition("; ")[2].split())
    driver._watcher.on_damage() if driver._watcher else None
    wait_until(lambda: not driver.health.problems(), SECONDS, "all is well")


def test_health_says_of_a_chain_that_drops_at_once(driver: BridgeDriver, watched: Endpoint) -> None:
    table("counter")
    (problem,) = wait_until(driver.health.problems, SECONDS, "health says so")
    assert problem.startswith("filter inet guard forward: drops by its policy")
    run("nft", "delete", "table", "inet", "guard")
    wait_until(lambda: not driver.health.problems(), SECONDS, "all is well")


@pytest.mark.parametrize(
    ("hook", "rule", "text"),
    [
        ("input", "iif lo accept", "containers reach no service of this host"),
        ("output", "oif lo accept", "this host does not reach containers"),
    ],
)
def test_who_keeps_containers_from_the_host_is_warned_of_it(
    driver: BridgeDriver, server: Endpoint, hook: str, rule: str, text: str
) -> None:
    before = driver.advise()
    table(
        f"ct state established,related accept; {rule}", HOOK.replace("hook forward", f"hook {hook}")
    )
    (advice,) = (each for each in driver.advise() if each not in before)
    assert advice.setting == "inet guard forward"
    assert text in advice.text
    assert driver.check() == ()
    nft(advice.text.rpartition("nft ")[2] + "\n")
    assert driver.advise() == before


def test_without_containers_nothing_has_to_pass(driver: BridgeDriver, real: RealHost) -> None:
    driver.create_network(DUAL)
    table("counter")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
    assert driver.check() == ()


def test_an_internal_network_needs_no_way_out(
    driver: BridgeDriver, real: RealHost, as_docker_leaves_it: None
) -> None:
    driver.create_network(network(1, internal=True))
    start(driver, real, 1, new_endpoint(1))
    table("counter")
    assert driver.check() == ()


def test_a_table_of_others_is_read_as_far_as_packets_go_and_no_further(
    driver: BridgeDriver, server: Endpoint
) -> None:
    """Sets of addresses may be large, and only what is known of a packet is looked up in them."""
    addresses = ", ".join(f"10.9.{high}.{low}" for high in range(40) for low in range(250))
    many = f"table inet big {{ set bad {{ type ipv4_addr; elements = {{ {addresses} }}\n}}\n"
    many += f"chain forward {{ {HOOK} ip saddr @bad drop; {ACCEPT}; }}\n}}\n"
    nft(many)
    assert driver.check() == ()
    (chain,) = filters()
    steps = (step for rule in chain.chains["forward"] or () for step in rule)
    lookups = [step for step in steps if isinstance(step, Lookup)]
    assert [step.members for step in lookups] == [None]


@pytest.mark.parametrize(
    ("name", "most", "drops"),
    [
        ("MOST_CHAINS", 3, True),
        ("MOST_CHAINS", 2, False),
        ("MOST_RULES", 5, True),
        ("MOST_RULES", 2, False),
    ],
)
def test_what_is_not_read_of_many_chains_is_a_doubt(
    monkeypatch: pytest.MonkeyPatch, name: str, most: int, *, drops: bool
) -> None:
    monkeypatch.setattr(filters_module, name, most)
    ip("link", "add", BRIDGE, "type", "bridge")
    table("jump back; jump more")
    (chain,) = filters()
    assert chain.surely_drops(describe_packet(4, source=Interface("eth9", 9))) == drops


def test_a_bridge_without_an_address_needs_no_route(
    driver: BridgeDriver, real: RealHost, as_docker_leaves_it: None
) -> None:
    """As with an external gateway."""
    driver.create_network(network(1, inhibit_ipv4=True))
    start(driver, real, 1, new_endpoint(1))
    assert driver.check() == ()
