"""Answers that only a busy kernel gives: what is gone already, half a listing, none at all."""

from __future__ import annotations

import struct
import subprocess
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import pytest
from pyroute2.netlink import NLM_F_DUMP_INTR, NLM_F_MULTI
from pyroute2.netlink.core import AsyncCoreSocket
from pyroute2.netlink.marshal import Marshal

from driver.errors import KernelError
from driver.firewall import ruleset
from driver.linux import elements, links, loopback, monitor, session
from driver.linux.linux import INTERFACE_TIMEOUT, LinuxKernel
from driver.linux.rtnetlink import Rtnetlink
from driver.model import Endpoint, MacAddress, veth_of
from tests.kernel import seams
from tests.kernel.host import add_loopback_pair, ip, run
from tests.samples import binding, endpoint_id, network, pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pyroute2.netlink import nlmsg

    from tests.kernel.host import RealHost

DUAL = network(1, pools=(pool("10.1.0.1/24"), pool("fd00:1::1/64")))
MAC = MacAddress("02:42:0a:01:00:02")
VETH, OTHER = (
    veth_of(Endpoint(endpoint_id(number), DUAL.id, None, None, MAC), DUAL) for number in (1, 2)
)
PUBLISHED = [binding("0.0.0.0:53/udp", "10.1.0.2:53/udp")]
FOREIGN = replace(network(1, bridge_name="br0", pools=DUAL.pools), shared=True).bridge
SECONDS = 20  # in which what comes at once must have come, on however busy a machine


def command(*words: str) -> None:
    """Run a command of another program's that may find nothing to do."""
    subprocess.run(words, check=False, capture_output=True)


@dataclass(frozen=True)
class Removal:
    """A verb that removes something, what makes it first, and how it goes by itself.

    It may go until the verb takes the step `before`, if that says one: later it is another.
    """

    make: Callable[[LinuxKernel], object]
    verb: Callable[[LinuxKernel], object]
    goes: tuple[str, ...]
    before: str = ""


def two_pairs(kernel: LinuxKernel) -> None:
    kernel.ensure_bridge(DUAL.bridge)
    for veth in (VETH, OTHER):
        kernel.create_veth(veth)


def an_idle_pair(kernel: LinuxKernel) -> None:
    two_pairs(kernel)
    ip("link", "set", VETH.host_end, "nomaster", "down")


def a_bridge_of_somebodys(kernel: LinuxKernel) -> None:
    ip("link", "add", FOREIGN.name, "type", "bridge")
    kernel.ensure_bridge(FOREIGN)


def half_a_bridge(kernel: LinuxKernel) -> None:
    ip("link", "add", DUAL.bridge_name, "group", str(links.HALF_MADE), "type", "bridge")


def make_and_delete_the_bridge(kernel: LinuxKernel) -> None:
    kernel.ensure_bridge(DUAL.bridge)
    kernel.delete_bridge(DUAL.bridge, ())


def flows(kernel: LinuxKernel) -> None:
    ends = ("-s", "192.0.2.99", "-d", "192.0.2.1", "-p", "udp")
    run("conntrack", "-I", *ends, "--sport", "4321", "--dport", "53", "-t", "60")


REMOVALS = {
    "a link": Removal(
        two_pairs, lambda kernel: kernel.delete_links([VETH.host_end]), ("link", VETH.host_end)
    ),
    "one of two links": Removal(
        two_pairs,
        lambda kernel: kernel.delete_links([VETH.host_end, OTHER.host_end]),
        ("link", OTHER.host_end),
    ),
    "two links": Removal(
        two_pairs,
        lambda kernel: kernel.delete_links([VETH.host_end, OTHER.host_end]),
        ("link", VETH.host_end, OTHER.host_end),
    ),
    "a bridge": Removal(
        two_pairs,
        lambda kernel: kernel.delete_bridge(DUAL.bridge, ()),
        ("link", DUAL.bridge_name),
    ),
    "somebody's bridge": Removal(
        a_bridge_of_somebodys,
        lambda kernel: kernel.delete_bridge(FOREIGN, FOREIGN.addresses),
        ("link", FOREIGN.name),
    ),
    "an address of somebody's bridge": Removal(
        a_bridge_of_somebodys,
        lambda kernel: kernel.delete_bridge(FOREIGN, FOREIGN.addresses),
        ("address", str(FOREIGN.addresses[0])),
    ),
    "what earlier versions made for loopback": Removal(
        lambda _: add_loopback_pair(),
        lambda kernel: kernel.delete_loopback_pair(),
        ("link", loopback.NAME),
    ),
    "their rule for it": Removal(
        lambda _: add_loopback_pair(),
        lambda kernel: kernel.delete_loopback_pair(),
        ("rule", str(loopback.TABLE)),
    ),
    "a half made bridge": Removal(
        half_a_bridge,
        make_and_delete_the_bridge,
        ("link", DUAL.bridge_name),
        f"{seams.ROUTE} delete_link",
    ),
    "a link that is only looked at": Removal(
        two_pairs, lambda kernel: kernel.observe_links(), ("link", VETH.host_end)
    ),
    "the only bridge, which is only looked at": Removal(
        two_pairs, lambda kernel: kernel.observe_links(), ("link", DUAL.bridge_name)
    ),
    "a link that is put on its bridge": Removal(
        an_idle_pair, lambda kernel: kernel.ensure_port(VETH), ("link", VETH.host_end)
    ),
    "a flow": Removal(flows, lambda kernel: kernel.forget_flows(PUBLISHED), ("flow", "192.0.2.1")),
}


def go(kind: str, *names: str) -> None:
    """Have it go by itself, or by another program's doing."""
    for name in names:
        match kind:
            case "link":
                command("ip", "link", "delete", name)
            case "address":
                command("ip", "address", "delete", name, "dev", FOREIGN.name)
            case "rule":
                command("ip", "-6", "rule", "delete", "table", name)
            case "flow":
                command("conntrack", "-D", "-d", name)


@pytest.mark.parametrize("removal", REMOVALS.values(), ids=REMOVALS)
def test_what_goes_by_itself_at_any_step_of_its_removal_is_removed(
    real: RealHost, removal: Removal
) -> None:
    """A container's end takes its links along, and flows expire."""
    steps: list[str] = []
    at, last = -1, 0

    def go_before(step: str) -> None:
        steps.append(step)
        if len(steps) == at + 1:
            go(*removal.goes)

    while at <= last:
        removal.make(real.kernel)
        steps.clear()
        with seams.stepping_in(go_before, reads=True):
            removal.verb(real.kernel)
        if at < 0:  # nothing has gone: how many steps there are
            last = steps.index(removal.before) if removal.before else len(steps) - 1
        left = real.links().keys() & {loopback.NAME, *removal.goes}
        assert left <= {FOREIGN.name} or at < 0
        assert str(loopback.TABLE) not in ip("-6", "rule")
        assert not real.flows()
        for name in (DUAL.bridge_name, FOREIGN.name, VETH.host_end, OTHER.host_end):
            go("link", name)
        at += 1
    assert at


# No answer at all.


@pytest.mark.parametrize("module", [session, elements], ids=["links", "elements of a set"])
def test_an_answer_that_never_comes_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    """Whoever waits for it has the driver's lock: nothing of Docker's would be answered again."""
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.2)
    kernel = LinuxKernel()
    kernel.apply_rules(ruleset.render_ruleset([DUAL], [], []))
    kernel.ensure_bridge(DUAL.bridge)
    if module is session:
        monkeypatch.setattr(AsyncCoreSocket, "send", lambda _, data: len(data))  # and lose it
    else:
        monkeypatch.setattr(module, "ACK", 0)  # what the kernel is not asked for it does not send
    verbs: dict[Any, Callable[[], object]] = {
        session: lambda: kernel.delete_bridge(DUAL.bridge, ()),
        elements: lambda: kernel.change_elements(ruleset.add_bindings("e1" * 32, PUBLISHED)),
    }
    with pytest.raises(KernelError, match="timed out"):
        verbs[module]()
    monkeypatch.undo()
    # What comes after it is answered again.
    again = ruleset.add_bindings("e1" * 32, [binding("0.0.0.0:54/udp", "10.1.0.2:54/udp")])
    kernel.change_elements(again)
    kernel.ensure_bridge(DUAL.bridge)
    assert "udp . 54" in run("nft", "list", "map", "inet", "pynet", "everywhere4")
    kernel.close()


def test_an_answer_that_comes_too_late_is_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    ip("link", "add", "eth0", "type", "ifb")
    with Rtnetlink() as route:
        with monkeypatch.context() as hurried:
            hurried.setattr(session, "ANSWER_SECONDS", 0)
            with pytest.raises(TimeoutError, match="timed out"):
                route.find_link("eth0")
        for name in ("lo", "eth0"):
            link = route.find_link(name)
            assert link is not None
            assert link.name == name


# Half a listing, or more than can be listened to.


def headers(datagram: bytes) -> Iterator[tuple[int, int]]:
    """Yield the lengths and flags of the messages in a datagram (struct nlmsghdr)."""
    while datagram:
        length, _, flags = struct.unpack_from("=IHH", datagram)
        yield length, flags
        datagram = datagram[length + 3 & ~3 :]


def test_a_listing_that_was_torn_is_made_again(
    linux: LinuxKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link came or went meanwhile, so that others may be missing (NLM_F_DUMP_INTR)."""
    two_pairs(linux)
    whole = linux.observe_links()
    parse = Marshal.parse
    torn: list[int] = []

    def tear(self: Marshal, data: bytes, *args: Any) -> Iterable[nlmsg]:
        """Leave one message of a listing, and have the next or the last say that it was torn."""
        lengths = [length for length, flags in headers(data) if flags & NLM_F_MULTI]
        if len(lengths) > 1 and len(torn) < 2:
            torn.append(len(lengths))
            rest = bytearray(data[: lengths[0]] + data[-lengths[-1] :])
            rest[6 if len(torn) == 1 else lengths[0] + 6] |= NLM_F_DUMP_INTR
            data = bytes(rest)
        return cast("Iterable[nlmsg]", parse(self, data, *args))

    monkeypatch.setattr(Marshal, "parse", tear)
    assert linux.observe_links() == whole
    assert len(torn) == 2


def test_more_than_could_be_listened_to_may_have_been_damage(
    linux: LinuxKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who does not know what happened has to look."""
    monkeypatch.setattr(monitor, "BUFFER_BYTES", 4096)
    told, go_on = threading.Semaphore(0), threading.Event()

    def look() -> None:
        told.release()
        go_on.wait(SECONDS)

    ip("link", "add", "theirs", "up", "type", "bridge")
    linux.watch_damage(look)
    ip("link", "set", "theirs", "down")
    assert told.acquire(timeout=SECONDS)
    # Nobody listens now; none of this is damage, and there is no more room to tell of any.
    for mtu in range(1300, 1360):
        command("ip", "link", "set", "lo", "mtu", str(mtu))
    go_on.set()
    assert told.acquire(timeout=SECONDS)


# What fails once, and what happens in between.


def test_a_link_that_could_not_be_deleted_is_seen_like_any_other(
    linux: LinuxKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_pairs(linux)

    def refuse(_: object) -> None:
        raise KernelError("delete: no buffer space")

    monkeypatch.setattr(links, "delete_links", refuse)
    with pytest.raises(KernelError):
        linux.delete_links([VETH.host_end])
    monkeypatch.undo()
    assert VETH.host_end in linux.observe_links()
    linux.delete_links([VETH.host_end])
    assert VETH.host_end not in linux.observe_links()


def test_a_link_that_is_on_its_way_out_is_not_seen_any_more(
    linux: LinuxKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be named by a check, and deleted as somebody's leftover."""
    two_pairs(linux)
    go_on = threading.Event()
    original = links.delete_links

    def behind(which: Iterable[str | int]) -> None:
        go_on.wait(SECONDS)
        original(which)

    monkeypatch.setattr(links, "delete_links", behind)
    linux.release_links([VETH.host_end])
    assert links.find_index(VETH.host_end) is not None
    assert VETH.host_end not in linux.observe_links()
    assert OTHER.host_end in linux.observe_links()
    go_on.set()


@pytest.mark.parametrize("is_idle", [True, False])
def test_the_end_comes_behind_all_that_was_released(
    linux: LinuxKernel, monkeypatch: pytest.MonkeyPatch, *, is_idle: bool
) -> None:
    two_pairs(linux)
    taken, go_on = threading.Event(), threading.Event()
    original = links.delete_links

    def behind(which: Iterable[str | int]) -> None:
        taken.set()
        go_on.wait(SECONDS)
        original(which)

    monkeypatch.setattr(links, "delete_links", behind)
    if not is_idle:
        linux.release_links([VETH.host_end])
        assert taken.wait(SECONDS)
    linux.release_links([OTHER.host_end])
    closing = threading.Thread(target=linux._reaper.close, daemon=True)
    closing.start()
    go_on.set()
    closing.join(SECONDS)
    assert not closing.is_alive()
    assert links.find_index(OTHER.host_end) is None
    assert (links.find_index(VETH.host_end) is None) is not is_idle


def test_an_interface_that_comes_up_between_looking_and_listening_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On engines up to 27 the parameters would be written 30 s later, or never."""
    ip("link", "add", "eth0", "type", "ifb")
    index = links.find_index("eth0")
    assert index is not None
    look = links._name_if_up
    looks: list[str | None] = []

    def come_up_after_the_first_look(index: int) -> str | None:
        looks.append(look(index))
        if len(looks) == 1:
            ip("link", "set", "eth0", "up")
        return looks[-1]

    monkeypatch.setattr(links, "_name_if_up", come_up_after_the_first_look)
    found: list[str | None] = []
    waiting = threading.Thread(
        target=lambda: found.append(links.await_up(index, INTERFACE_TIMEOUT)), daemon=True
    )
    waiting.start()
    waiting.join(SECONDS)
    assert (looks[0], found) == (None, ["eth0"])


def test_a_rule_that_was_doubled_goes_with_its_double(linux: LinuxKernel) -> None:
    """Two drivers, of which one was about to end, may each have put it there."""
    mark = ruleset.ACCEPTED_MARK
    linux.ensure_forward_accept(mark)
    ours = ("-m", "mark", "--mark", f"{mark:#x}/{mark:#x}", "-m", "comment", "--comment", "pynet")
    for tool in ("iptables", "ip6tables"):
        run(tool, "-w", "-N", "DOCKER-USER")
        for chain in ("FORWARD", "DOCKER-USER"):
            for _ in range(2):
                run(tool, "-w", "-A", chain, *ours, "-j", "ACCEPT")
    assert not linux.has_forward_accept(mark)
    linux.delete_forward_accept(mark)
    for tool in ("iptables", "ip6tables"):
        assert "pynet" not in run(tool, "-w", "-S")
