"""The verbs of the kernel are all or nothing: each is failed at every single step that it takes.

The steps are those of a recording: every request to the kernel, every parameter read or written,
every socket and thread. What a create had done is taken back; a delete may be done or not; either
says so by an error of the driver's own, and succeeds when it is asked again.
"""

from __future__ import annotations

import errno
import json
import threading
from dataclasses import dataclass, replace
from ipaddress import ip_interface
from itertools import count
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from driver.errors import DriverError, KernelError
from driver.firewall import ruleset
from driver.linux import iptables, sysctl
from driver.linux.session import NetlinkError
from driver.model import Bridge, DirectInterface, MacAddress, SandboxKey, SysctlWrite, Veth
from tests.kernel import seams
from tests.kernel.host import add_loopback_pair, descriptors, ip, run
from tests.samples import KEEPALIVE, RP_FILTER, SOMAXCONN, binding, place
from tests.samples import sysctl as parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kernel.host import RealHost

    Act = Callable[["Stage"], object]

BRIDGE = Bridge(
    name="pn-010101010101",
    alias="pynet network " + "01" * 32,
    mac=MacAddress("02:42:0a:01:00:01"),
    mtu=1400,
    addresses=(ip_interface("10.1.0.1/24"), ip_interface("fd00:1::1/64")),
    must_be_ours=True,
    routes_loopback=True,
)
FOREIGN = replace(BRIDGE, name="br0", must_be_ours=False)
VETH = Veth(
    host_end="pnhe1e1e1e1e1e1",
    sandbox_end="pnce1e1e1e1e1e1",
    alias="pynet endpoint 1 network 1",
    bridge=BRIDGE.name,
    mac=MacAddress("02:42:0a:01:00:02"),
    mtu=1400,
    hairpin=True,
)
OTHER = replace(VETH, host_end="pnhe2e2e2e2e2e2", sandbox_end="pnce2e2e2e2e2e2")
ADDRESSES = ip_interface("10.1.0.2/24"), ip_interface("fd00:1::2/64")
INSIDE = DirectInterface(None, "eth", ADDRESSES, announced=True)
MARK = ruleset.ACCEPTED_MARK
PLACES = [place(each) for each in ("0.0.0.0:8080", "[::]:8080", "127.0.0.1:5353/udp")]
WRITES = {KEEPALIVE: "600", SOMAXCONN: "99"}
OF_INTERFACE = [parameter(f"{RP_FILTER}=2"), parameter("net.ipv4.conf.IFNAME.arp_notify=1")]


@dataclass
class Stage:
    """The real host, with a sandbox."""

    real: RealHost
    sandbox: SandboxKey

    @property
    def kernel(self) -> Any:
        return self.real.kernel

    def state(self) -> dict[str, Any]:
        """Return all that a verb can change, here and in the sandbox, and what we hold."""
        return {
            "here": look(None),
            "inside": look(self.sandbox),
            "rules": run("nft", "-s", "list", "ruleset"),
            "reserved": self.kernel.list_reserved(),
            "descriptors": descriptors(),
            "threads": {each.name for each in threading.enumerate()},
        }


def look(sandbox: SandboxKey | None) -> dict[str, Any]:
    """Return links, routing rules and parameters of a namespace."""
    enter = () if sandbox is None else ("nsenter", f"--net={sandbox}")
    links = json.loads(ip("-json", "-details", "addr", sandbox=sandbox))
    return {
        "links": {link["ifname"]: outline(link) for link in links},
        "rules": ip("-6", "rule", sandbox=sandbox),
        "parameters": run(*enter, "sysctl", "-a", "--pattern", PATTERN),
    }


PATTERN = (
    r"net\.(ipv[46]\.conf\..*\.(forwarding|route_localnet|disable_ipv6|accept_ra|arp_notify|rp_filter)"
    r"|ipv4\.ip_forward|ipv4\.tcp_keepalive_time|core\.somaxconn)$"
)


def outline(link: dict[str, Any]) -> dict[str, Any]:
    """Return what matters of a link: not its number, nor what the kernel does by and by."""
    slave = link.get("linkinfo", {}).get("info_slave_data", {})
    addresses = [each for each in link["addr_info"] if each["scope"] != "link"]
    kept = ("ifalias", "mtu", "master", "group")
    return {
        **{key: link.get(key) for key in kept},
        "address": None if link["ifname"].startswith("pnh") else link["address"],  # random
        "up": "UP" in link["flags"],
        "hairpin": slave.get("hairpin"),
        "addresses": sorted(f"{each['local']}/{each['prefixlen']}" for each in addresses),
    }


@dataclass(frozen=True)
class Verb:
    """A verb, what is there before it, and whether it unmakes; what `mends` may do half of it."""

    name: str
    act: Act
    before: tuple[Act, ...] = ()
    deletes: bool = False
    mends: bool = False


def has_bridge(stage: Stage) -> None:
    stage.kernel.ensure_bridge(BRIDGE)


def has_foreign(stage: Stage) -> None:
    if "br0" not in stage.real.links():
        stage.real.add_foreign("br0")


def is_damaged(stage: Stage) -> None:
    run("ip", "link", "set", BRIDGE.name, "down", "mtu", "1300")
    run("ip", "address", "flush", "dev", BRIDGE.name)


def has_pair(stage: Stage) -> None:
    if VETH.host_end not in stage.real.links():
        stage.kernel.create_veth(VETH)


def has_other(stage: Stage) -> None:
    stage.kernel.create_veth(OTHER)


def is_moved(stage: Stage) -> None:
    stage.real.move(VETH.host_end, stage.sandbox)


def is_off(stage: Stage) -> None:
    run("ip", "link", "set", VETH.host_end, "nomaster", "down")


def writes(stage: Stage) -> None:
    (found,) = stage.kernel.read_sysctls([stage.sandbox], WRITES).values()
    writes = [SysctlWrite(key, WRITES[key], frozenset({found[key]})) for key in WRITES]
    stage.kernel.write_sysctls({stage.sandbox: writes})


def accepts(stage: Stage) -> None:
    stage.kernel.ensure_forward_accept(MARK)


def accepts_no_more(stage: Stage) -> None:
    stage.kernel.delete_forward_accept(MARK)


def without_iptables(stage: Stage, act: Act) -> None:
    """Act as in the managed plugin."""
    with patch.object(iptables, "is_installed", lambda: False):
        act(stage)


VERBS = (
    Verb("make a bridge", has_bridge),
    Verb("a bridge again", has_bridge, (has_bridge,)),
    Verb("mend a bridge", has_bridge, (has_bridge, is_damaged), mends=True),
    Verb("use a bridge", lambda stage: stage.kernel.ensure_bridge(FOREIGN), (has_foreign,)),
    Verb(
        "delete a bridge",
        lambda stage: stage.kernel.delete_bridge(BRIDGE, ()),
        (has_bridge,),
        deletes=True,
    ),
    Verb(
        "leave a bridge",
        lambda stage: stage.kernel.delete_bridge(FOREIGN, FOREIGN.addresses),
        (has_foreign, lambda stage: stage.kernel.ensure_bridge(FOREIGN)),
        deletes=True,
    ),
    Verb("make a pair", has_pair, (has_bridge,)),
    Verb(
        "make a pair in a sandbox",
        lambda stage: stage.kernel.create_veth_in(VETH, stage.sandbox, INSIDE),
        (has_bridge,),
    ),
    Verb(
        "put a port back",
        lambda stage: stage.kernel.ensure_port(VETH),
        (has_bridge, has_pair, is_off),
        mends=True,
    ),
    Verb(
        "delete links",
        lambda stage: stage.kernel.delete_links([VETH.host_end, OTHER.host_end]),
        (has_bridge, has_pair, has_other),
        deletes=True,
    ),
    Verb("accept what is marked", accepts, (accepts_no_more,), mends=True),
    Verb("accept it no more", accepts_no_more, (accepts,), deletes=True),
    Verb(
        "accept it without iptables",
        lambda stage: without_iptables(stage, accepts),
        (lambda stage: without_iptables(stage, accepts_no_more),),
        mends=True,
    ),
    Verb(
        "accept it no more without iptables",
        lambda stage: without_iptables(stage, accepts_no_more),
        (lambda stage: without_iptables(stage, accepts),),
        deletes=True,
    ),
    Verb("forward IPv4", lambda stage: stage.kernel.ensure_forwarding(4)),
    Verb("forward IPv6", lambda stage: stage.kernel.ensure_forwarding(6)),
    Verb(
        "remove what earlier versions made for loopback",
        lambda stage: stage.kernel.delete_loopback_pair(),
        (lambda _: add_loopback_pair(),),
        deletes=True,
    ),
    Verb("reserve ports", lambda stage: stage.kernel.reserve_ports(PLACES)),
    Verb(
        "forget flows",
        lambda stage: stage.kernel.forget_flows([binding("0.0.0.0:5353/udp", "10.1.0.2:53/udp")]),
        (lambda stage: stage.real.track(place("127.0.0.1:5353/udp")),),
        deletes=True,
    ),
    Verb(
        "try parameters",
        lambda stage: stage.kernel.check_sysctls([parameter(f"{KEEPALIVE}=600")]),
    ),
    Verb("change parameters", writes),
    Verb(
        "change an interface's parameters",
        lambda stage: stage.kernel.set_interface_sysctls(
            stage.sandbox, VETH.host_end, OF_INTERFACE
        ),
        (has_bridge, has_pair, is_moved),
    ),
    Verb("look at links", lambda stage: stage.kernel.observe_links(), (has_bridge, has_pair)),
    Verb("look at the rule", lambda stage: stage.kernel.has_forward_accept(MARK)),
)

ERRORS: dict[str, Callable[[], Exception]] = {
    seams.ROUTE: lambda: NetlinkError(errno.EBUSY),
    seams.OPEN: lambda: OSError(errno.EMFILE, "Too many open files"),
    seams.THREAD: lambda: RuntimeError("can't start new thread"),
}


def error_of(step: str) -> Exception:
    """Return how a step fails: as what it calls would, before any adapter has seen it."""
    made = next((make for seam, make in ERRORS.items() if step.startswith(seam)), None)
    return made() if made else KernelError("injected")


class Breaker:
    """Counts the steps; fails one."""

    def __init__(self, at: int | None = None) -> None:
        self.steps: list[str] = []
        self._at = at

    def before(self, step: str) -> None:
        self.steps.append(step)
        if len(self.steps) - 1 == self._at:
            raise error_of(step)


@pytest.fixture
def stage(real: RealHost, as_docker_leaves_it: None) -> Stage:
    return Stage(real, real.add_sandbox(1))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_all_or_nothing(
    verb: Verb, stage: Stage, record_property: Callable[[str, object], None]
) -> None:
    sysctl.read(KEEPALIVE)  # the driver's own procfs is made once, and stays
    for prepare in verb.before:
        prepare(stage)
    before = stage.state()
    wrong: list[str] = []
    for at in count():
        breaker = Breaker(at)
        failure = failure_of(verb, stage, breaker)
        if len(breaker.steps) <= at:
            break  # there is no such step
        step = f"step {at} of {verb.name}, {breaker.steps[at]}"
        if not isinstance(failure, DriverError):
            wrong.append(f"{step}: {failure!r} is no error of the driver's")
        if verb.deletes or verb.mends:
            verb.act(stage)  # asked again
            for prepare in verb.before:
                prepare(stage)
        wrong += [f"{step}: {each}" for each in differences("", before, stage.state())]
    record_property("verbs: failed steps", at)
    assert not wrong, "\n".join(wrong)
    assert failure is None


def failure_of(verb: Verb, stage: Stage, breaker: Breaker) -> Exception | None:
    """Run a verb with one step failing; return what it raises."""
    try:
        with seams.stepping_in(breaker.before, reads=True):
            verb.act(stage)
    except Exception as failure:  # noqa: BLE001 - whatever it is, it is looked at
        return failure
    return None


def differences(where: str, one: Any, other: Any) -> Iterator[str]:
    """Yield what differs between two states, and where in them."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            yield from differences(f"{where} {key}".strip(), one.get(key), other.get(key))
    elif isinstance(one, str) and isinstance(other, str):
        lines, lines_too = set(one.splitlines()), set(other.splitlines())
        if lines != lines_too:
            yield f"{where}: -{sorted(lines - lines_too)} +{sorted(lines_too - lines)}"
    elif one != other:
        yield f"{where}: {one} -> {other}"
