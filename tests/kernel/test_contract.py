"""The verbs of the kernel: the fake is held to what the real one does."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from driver.errors import Conflict, DriverError, InvalidRequest, KernelError
from driver.firewall import ruleset
from driver.firewall.elements import Element, Family, Interface, SetName, add
from driver.model import (
    Bridge,
    Endpoint,
    MacAddress,
    SysctlWrite,
    Trace,
    Veth,
    endpoint_alias,
    veth_of,
)
from tests.engine.wait import wait_until
from tests.kernel.host import parse
from tests.samples import (
    KEEPALIVE,
    RP_FILTER,
    endpoint_id,
    network,
    network_id,
    pool,
    sandbox_key,
    sysctl,
)

if TYPE_CHECKING:
    from driver.firewall.elements import Changes
    from tests.kernel.host import Host

DUAL = network(1, pools=(pool("10.1.0.1/24"), pool("10.9.0.1/24"), pool("fd00:1::1/64")))
OURS = DUAL.bridge
FOREIGN = replace(OURS, name="br0", must_be_ours=False)
MAC = MacAddress("02:42:0a:01:00:02")
RMEM = "net.ipv4.tcp_rmem"


def veth(number: int = 1, bridge: str = OURS.name) -> Veth:
    endpoint = Endpoint(endpoint_id(number), DUAL.id, None, None, MAC)
    return replace(veth_of(endpoint, DUAL), bridge=bridge)


def test_a_bridge_keeps_its_mtu_when_its_last_port_goes(host: Host) -> None:
    host.kernel.ensure_bridge(replace(OURS, mtu=9000))
    host.kernel.create_veth(replace(veth(), mtu=9000))
    host.kernel.delete_links([veth().host_end])
    assert host.links()[OURS.name].mtu == 9000


def test_a_link_that_is_made_again_under_its_name_is_seen(host: Host) -> None:
    for _ in range(2):
        host.kernel.delete_links([veth().host_end, OURS.name])
        host.kernel.ensure_bridge(OURS)
        host.kernel.create_veth(veth())
    assert {veth().host_end, OURS.name} <= host.kernel.observe_links().keys()


def test_a_bridge_is_made_as_described(host: Host) -> None:
    assert host.kernel.ensure_bridge(replace(OURS, mtu=9000)) == OURS.addresses
    link = host.links()[OURS.name]
    assert (link.kind, link.alias, link.mac, link.mtu) == ("bridge", OURS.alias, OURS.mac, 9000)
    assert link.up
    assert set(link.addresses) == set(OURS.addresses)


def test_a_bridge_of_ours_is_completed(host: Host) -> None:
    host.kernel.ensure_bridge(replace(OURS, addresses=OURS.addresses[:1]))
    assert host.kernel.ensure_bridge(OURS) == OURS.addresses[1:]
    assert host.kernel.ensure_bridge(OURS) == ()
    assert set(host.links()[OURS.name].addresses) == set(OURS.addresses)


def test_somebodys_bridge_is_used_and_stays(host: Host) -> None:
    host.add_foreign("br0", "bridge", "10.1.0.1/24", "192.0.2.1/24")
    host.set_alias("br0", "somebody's")
    before = set(host.links()["br0"].addresses)
    added = host.kernel.ensure_bridge(FOREIGN)
    assert added == OURS.addresses[1:]
    used = host.links()["br0"]
    assert used.up
    assert used.alias == "somebody's"
    host.kernel.delete_bridge(FOREIGN, added)
    assert set(host.links()["br0"].addresses) == before


@pytest.mark.parametrize(
    ("kind", "alias", "bridge"),
    [
        pytest.param("vxlan", "", FOREIGN, id="no bridge"),
        pytest.param("bridge", "pynet network 99", FOREIGN, id="of another network"),
        pytest.param("bridge", "", replace(FOREIGN, must_be_ours=True), id="our name, not ours"),
    ],
)
def test_what_may_not_be_used_is_left_alone(
    host: Host, kind: str, alias: str, bridge: Bridge
) -> None:
    host.add_foreign("br0", kind)
    if alias:
        host.set_alias("br0", alias)
    before = host.links()
    with pytest.raises(Conflict, match="br0"):
        host.kernel.ensure_bridge(bridge)
    host.kernel.delete_bridge(bridge, ())
    assert host.links() == before


@pytest.mark.parametrize("is_known", [False, True], ids=["from the start", "since"])
def test_nothing_is_put_on_somebodys_bridge_with_our_name(host: Host, *, is_known: bool) -> None:
    host.kernel.ensure_bridge(replace(OURS, name="br1"))
    host.kernel.create_veth(replace(veth(2), bridge="br1"))
    if is_known:
        host.kernel.ensure_bridge(OURS)
        host.kernel.delete_links([OURS.name])
    host.add_foreign(OURS.name)
    with pytest.raises(Conflict, match=f"{OURS.name}.*another program"):
        host.kernel.create_veth(veth())
    with pytest.raises(Conflict, match=f"{OURS.name}.*another program"):
        host.kernel.ensure_port(veth(2))
    assert host.links()[veth(2).host_end].bridge == "br1"
    assert veth().host_end not in host.links()


def test_something_is_put_on_somebodys_bridge_that_its_operator_named(host: Host) -> None:
    host.add_foreign("br0")
    host.kernel.ensure_bridge(FOREIGN)
    shared = replace(veth(bridge="br0"), bridge_alias=None)
    host.kernel.create_veth(shared)
    assert host.kernel.ensure_port(shared)
    assert host.links()[shared.host_end].bridge == "br0"


def test_deleting_a_bridge_twice_is_deleting_it(host: Host) -> None:
    host.kernel.ensure_bridge(OURS)
    for _ in range(2):
        host.kernel.delete_bridge(OURS, OURS.addresses)
        assert host.links() == {}


def test_a_pair_is_made_as_described(host: Host) -> None:
    host.kernel.ensure_bridge(replace(OURS, mtu=1400))
    host.kernel.create_veth(replace(veth(), mtu=1400))
    made = host.links()
    outer, inner = made[veth().host_end], made[veth().sandbox_end]
    assert (outer.bridge, outer.alias, outer.mtu, outer.up) == (OURS.name, veth().alias, 1400, True)
    assert (inner.bridge, inner.mac, inner.mtu, inner.up) == (None, MAC, 1400, False)
    assert made[OURS.name].mac == OURS.mac, "a bridge keeps the MAC that it was given"
    assert ours(host) == {OURS.name: OURS.alias, veth().host_end: veth().alias}


def ours(host: Host) -> dict[str, str]:
    links = host.kernel.observe_links()
    return {name: link.alias for name, link in links.items() if link.is_ours}


@pytest.mark.parametrize("taken", [veth().host_end, veth().sandbox_end])
def test_a_pair_whose_name_is_taken_leaves_nothing(host: Host, taken: str) -> None:
    host.kernel.ensure_bridge(OURS)
    host.add_foreign(taken, "vxlan")
    before = host.links()
    with pytest.raises(Conflict, match=veth().host_end):
        host.kernel.create_veth(veth())
    assert host.links() == before


def test_a_pair_without_its_bridge_leaves_nothing(host: Host) -> None:
    with pytest.raises(KernelError, match="bridge br9 is gone"):
        host.kernel.create_veth(veth(bridge="br9"))
    assert host.links() == {}


def test_a_pair_whose_alias_is_refused_leaves_nothing(host: Host) -> None:
    host.kernel.ensure_bridge(OURS)
    before = host.links()
    with pytest.raises(KernelError):
        host.kernel.create_veth(replace(veth(), alias="x" * 256))
    assert host.links() == before


def test_a_bridge_that_fails_half_way_leaves_nothing(host: Host) -> None:
    with pytest.raises(KernelError):
        host.kernel.ensure_bridge(replace(OURS, alias="x" * 256))
    assert host.links() == {}


def test_somebodys_bridge_that_fails_half_way_is_as_before(host: Host) -> None:
    host.add_foreign("br0", "bridge", "fd00:1::1/80")
    before = host.links()
    with pytest.raises(KernelError, match=r"add address.*: File exists"):
        host.kernel.ensure_bridge(FOREIGN)
    assert host.links() == before


def test_a_port_comes_back_to_its_bridge(host: Host) -> None:
    assert not host.kernel.ensure_port(veth())
    host.kernel.ensure_bridge(OURS)
    assert not host.kernel.ensure_port(veth())
    host.kernel.create_veth(veth())
    host.kernel.delete_bridge(OURS, ())
    assert host.links()[veth().host_end].bridge is None
    host.kernel.ensure_bridge(OURS)
    for _ in range(2):
        assert host.kernel.ensure_port(veth())
        assert host.links()[veth().host_end].bridge == OURS.name


@pytest.mark.parametrize(("present", "becomes"), [(1400, 1500), (9000, 9000)])
def test_a_port_has_the_networks_mtu_at_least(host: Host, present: int, becomes: int) -> None:
    host.kernel.ensure_bridge(OURS)
    host.kernel.create_veth(replace(veth(), mtu=present))
    assert host.kernel.ensure_port(veth())
    assert host.links()[veth().host_end].mtu == becomes


def test_only_links_of_ours_are_deleted(host: Host) -> None:
    host.kernel.ensure_bridge(OURS)
    host.kernel.create_veth(veth(1))
    host.kernel.create_veth(veth(2))
    host.add_foreign("other", "vxlan")
    host.kernel.delete_links([veth(1).host_end, "other", "not-there"])
    left = {OURS.name, veth(2).host_end, veth(2).sandbox_end, "other"}
    assert host.links().keys() == left
    host.kernel.release_links([veth(2).host_end, "other", "not-there"])
    wait_until(lambda: host.links().keys() == {OURS.name, "other"}, 5, "the released link is gone")


def test_an_alias_says_whose_a_link_is(host: Host) -> None:
    host.kernel.ensure_bridge(OURS)
    host.kernel.create_veth(veth())
    assert host.links()[veth().host_end].alias == endpoint_alias(network_id(1), endpoint_id(1))


def test_elements_come_and_go_with_their_networks(host: Host) -> None:
    first, second = network(1), network(2)
    host.kernel.apply_rules(ruleset.render_ruleset([first], [], []))
    host.kernel.change_elements(ruleset.add_network(second))
    assert host.elements() == {
        f"{each.bridge_name} . {each.bridge_name}" for each in (first, second)
    }
    host.kernel.change_elements(ruleset.delete_network(first))
    assert len(host.elements()) == 1
    host.kernel.apply_rules(ruleset.render_ruleset([first], [], []))
    assert host.elements() == {f"{first.bridge_name} . {first.bridge_name}"}
    for _ in range(2):
        host.kernel.apply_rules(ruleset.render_no_ruleset())


@pytest.mark.parametrize(
    "wrong",
    [
        ruleset.delete_network(network(9)),
        add([Element(SetName(Family.INET, "no_such_set"), (Interface("br0"),))], "network 9"),
    ],
    ids=["what is not there", "into no set"],
)
def test_elements_are_changed_all_or_not_at_all(host: Host, wrong: Changes) -> None:
    host.kernel.apply_rules(ruleset.render_ruleset([network(1)], [], []))
    before = host.elements()
    with pytest.raises(KernelError, match="change the firewall"):
        host.kernel.change_elements(ruleset.add_network(network(2)) + wrong)
    assert host.elements() == before


def test_rules_for_no_table_are_refused(host: Host) -> None:
    with pytest.raises(KernelError):
        host.kernel.change_elements(ruleset.add_network(network(1)))


def test_checking_returns_what_a_new_namespace_has(host: Host) -> None:
    wanted = [sysctl(f"{KEEPALIVE}=600"), sysctl(f"{RP_FILTER}=2")]
    found = host.kernel.check_sysctls(wanted)
    assert found.keys() == {KEEPALIVE, RP_FILTER}
    assert found[KEEPALIVE] == "7200"
    keys = [KEEPALIVE, RP_FILTER, "net.ipv4.no_such"]
    assert host.kernel.read_pristine(keys) == found


@pytest.mark.parametrize("wrong", [f"{KEEPALIVE}=ten", "net.ipv4.no_such=1", "net.ipv4.tcp_rmem=x"])
def test_a_check_names_what_is_wrong(host: Host, wrong: str) -> None:
    with pytest.raises(InvalidRequest, match=wrong.partition("=")[0]):
        host.kernel.check_sysctls([sysctl("net.core.somaxconn=128"), sysctl(wrong)])


def test_parameters_are_read_as_far_as_there_are_any(host: Host) -> None:
    sandboxes, gone = [host.add_sandbox(number) for number in (1, 2)], sandbox_key(9)
    assert host.kernel.has_sandbox(sandboxes[0])
    assert not host.kernel.has_sandbox(gone)
    found = host.kernel.read_sysctls([gone, *sandboxes], [KEEPALIVE, "net.nowhere.at_all"])
    assert found == {sandbox: {KEEPALIVE: "7200"} for sandbox in sandboxes}


def write(key: str, value: str, *expected: str) -> SysctlWrite:
    return SysctlWrite(key, value, frozenset(expected))


def test_parameters_are_written_with_a_trace(host: Host) -> None:
    sandboxes, gone = [host.add_sandbox(number) for number in (1, 2)], sandbox_key(9)
    before = str(host.value(sandboxes[0], RMEM))
    writes = [write(KEEPALIVE, "600", "7200"), write(RMEM, "4096 5000 6000", before)]
    plans = {gone: writes, sandboxes[0]: writes, sandboxes[1]: writes[:1]}
    keepalive = Trace(KEEPALIVE, before="7200", written="600")
    assert host.kernel.write_sysctls(plans) == {
        sandboxes[0]: (keepalive, Trace(RMEM, before, written="4096\t5000\t6000")),
        sandboxes[1]: (keepalive,),
    }
    assert [host.value(sandbox, KEEPALIVE) for sandbox in sandboxes] == ["600", "600"]


@pytest.mark.parametrize(
    ("expected", "is_written"),
    [(("42",), False), ((), False), (("42", "4096 5000\t6000"), True)],
    ids=["another", "none", "one of two, however it is spaced"],
)
def test_a_value_that_is_not_expected_is_left_alone(
    host: Host, expected: tuple[str, ...], *, is_written: bool
) -> None:
    """Between the reading and the writing a process of the container may have set its own."""
    sandbox = host.add_sandbox(1)
    here = write(RMEM, "4096 5000 6000", str(host.value(sandbox, RMEM)))
    host.kernel.write_sysctls({sandbox: [here]})
    writes = [
        write(KEEPALIVE, "600", "7200"),
        write(RMEM, "1 2 3", *expected),
        write("net.nowhere.at_all", "1", "0"),
    ]
    traces = host.kernel.write_sysctls({sandbox: writes})[sandbox]
    assert [each.key for each in traces] == [KEEPALIVE, RMEM][: 1 + is_written]
    assert host.value(sandbox, RMEM) == ("1\t2\t3" if is_written else "4096\t5000\t6000")


def test_parameters_are_written_all_or_not_at_all(host: Host) -> None:
    sandboxes = [host.add_sandbox(number) for number in (1, 2)]
    good = [write(KEEPALIVE, "600", "7200")]
    bad = [*good, write("net.core.somaxconn", "many", "4096")]
    with pytest.raises(KernelError, match=r"net\.core\.somaxconn=many"):
        host.kernel.write_sysctls(dict(zip(sandboxes, (good, bad), strict=True)))
    assert [host.value(sandbox, KEEPALIVE) for sandbox in sandboxes] == ["7200", "7200"]


def test_an_interface_is_configured_once_it_is_in_its_sandbox(host: Host) -> None:
    sandbox = host.add_sandbox(1)
    wanted = [sysctl(f"{RP_FILTER}=2")]
    with pytest.raises(DriverError):
        host.kernel.set_interface_sysctls(sandbox, veth().host_end, wanted)
    host.kernel.ensure_bridge(OURS)
    host.kernel.create_veth(veth())
    assert not host.kernel.set_interface_sysctls(sandbox, veth().host_end, wanted)
    index = host.kernel.find_index(veth().sandbox_end)
    assert index not in {None, host.kernel.find_index(veth().host_end)}
    host.move(veth().host_end, sandbox)
    assert host.kernel.find_index(veth().sandbox_end) is None
    assert host.kernel.set_interface_sysctls(sandbox, veth().host_end, wanted)
    assert host.value(sandbox, "net.ipv4.conf.eth0.rp_filter") == "2"
    host.kernel.await_interface_sysctls(sandbox, veth().host_end, [sysctl(f"{RP_FILTER}=1")])
    assert host.value(sandbox, "net.ipv4.conf.eth0.rp_filter") == "1"
    host.kernel.await_interface_sysctls(sandbox, veth().host_end, wanted, index)
    assert host.value(sandbox, "net.ipv4.conf.eth0.rp_filter") == "2"


def test_sandboxes_are_read_by_the_host_ends_that_lead_there(host: Host) -> None:
    sandbox = host.add_sandbox(1)
    host_end, other = veth().host_end, veth(2).host_end
    host.kernel.ensure_bridge(OURS)
    host.kernel.create_veth(veth())
    keys, ends = [KEEPALIVE, RP_FILTER], {host_end: sandbox, other: sandbox_key(9)}
    assert host.kernel.read_sandboxes(ends, keys) == {host_end: {KEEPALIVE: "7200"}}
    host.move(host_end, sandbox)
    host.kernel.set_interface_sysctls(sandbox, host_end, [sysctl(f"{RP_FILTER}=2")])
    found = host.kernel.read_sandboxes(ends, keys)
    assert found == {host_end: {KEEPALIVE: "7200", RP_FILTER: "2"}}
    everything = host.kernel.read_sandboxes(ends)[host_end]
    assert everything[KEEPALIVE] == "7200"
    assert RP_FILTER not in everything


def test_a_sandbox_is_read_for_every_host_end_that_leads_there(host: Host) -> None:
    """A container may be on several networks."""
    sandbox = host.add_sandbox(1)
    host.kernel.ensure_bridge(OURS)
    for number in (1, 2):
        host.kernel.create_veth(veth(number))
    host.move(veth(1).host_end, sandbox)
    ends = {veth(number).host_end: sandbox for number in (1, 2)}
    found = host.kernel.read_sandboxes(ends, [KEEPALIVE, RP_FILTER])
    assert found == {
        veth(1).host_end: {KEEPALIVE: "7200", RP_FILTER: "0"},
        veth(2).host_end: {KEEPALIVE: "7200"},
    }
    assert host.kernel.read_sandboxes(ends).keys() == ends.keys()


def test_what_host_and_new_namespaces_have_is_read(host: Host) -> None:
    for read in (host.kernel.read_host, host.kernel.read_pristine):
        assert read([KEEPALIVE, "net.nowhere.at_all"]) == {KEEPALIVE: "7200"}
        assert read()[KEEPALIVE] == "7200"


def test_an_interface_is_given_what_a_new_one_would_have(host: Host) -> None:
    sandbox = host.add_sandbox(1)
    host.kernel.ensure_bridge(OURS)
    host.kernel.create_veth(veth())
    host.move(veth().host_end, sandbox)
    key = "net.ipv4.conf.eth0.rp_filter"
    before = host.value(sandbox, key)
    host.kernel.set_interface_sysctls(sandbox, veth().host_end, [sysctl(f"{RP_FILTER}=2")])
    assert host.value(sandbox, key) == "2"
    assert host.kernel.set_interface_sysctls(sandbox, veth().host_end, [], [RP_FILTER])
    assert host.value(sandbox, key) == before


def test_a_bridge_of_ours_gets_another_mtu(host: Host) -> None:
    host.kernel.ensure_bridge(OURS)
    host.kernel.ensure_bridge(replace(OURS, mtu=1400))
    assert host.links()[OURS.name].mtu == 1400


def test_a_boot_has_one_name(host: Host) -> None:
    assert host.kernel.boot_id() == host.kernel.boot_id() != ""


def test_parse_is_what_a_link_shows(host: Host) -> None:
    host.add_foreign("br0", "bridge", "192.0.2.1/24")
    assert host.links()["br0"].addresses == parse(["192.0.2.1/24"])
