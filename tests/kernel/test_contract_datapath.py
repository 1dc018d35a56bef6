"""The verbs of the data path: the fake is held to what the real kernel does."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from driver.errors import Conflict, KernelError, NotFound
from driver.firewall import ruleset
from driver.model import DirectInterface, PortInUse, SandboxKey, veth_of
from driver.observed import find_uplinks
from tests.kernel.host import parse
from tests.samples import binding, endpoint, network, place, pool, sandbox_key

if TYPE_CHECKING:
    from driver.firewall.elements import Changes
    from tests.kernel.host import Host

DUAL = network(1, pools=(pool("10.1.0.1/24"), pool("fd00:1::1/64")))
OURS = DUAL.bridge
VETH = veth_of(endpoint(), DUAL)
ADDRESSES = parse(["10.1.0.2/24", "fd00:1::2/64"])
UNNAMED = DirectInterface(None, "eth", ADDRESSES)
BASE = ruleset.render_ruleset([], [], [])


def with_bridge(host: Host) -> Host:
    host.kernel.ensure_bridge(OURS)
    return host


def test_a_port_reflects_if_it_is_to(host: Host) -> None:
    with_bridge(host).kernel.create_veth(replace(VETH, hairpin=True))
    host.kernel.create_veth(veth_of(endpoint(2), DUAL))
    assert host.links()[VETH.host_end].hairpin
    assert not host.links()[veth_of(endpoint(2), DUAL).host_end].hairpin


def test_a_port_that_comes_back_reflects_again(host: Host) -> None:
    veth = replace(VETH, hairpin=True)
    with_bridge(host).kernel.create_veth(veth)
    host.kernel.delete_bridge(OURS, ())
    with_bridge(host).kernel.ensure_port(veth)
    assert host.links()[veth.host_end].hairpin


def test_uplinks_are_bridges_of_others_but_for_dockers(host: Host) -> None:
    assert find_uplinks(with_bridge(host).kernel.observe_links()) == frozenset()
    dockers = ("docker0", "docker_gwbridge", "br-0123456789ab", "named")
    others = ("br-lan", "lxcbr0", "incusbr0", "virbr0", "podman1", "br-empty")
    for bridge in (*dockers, *others, "br$(x)"):
        host.add_foreign(bridge)
    for port, kind, bridge in (
        ("vx0", "vxlan", "br-lan"),
        ("eth0", "veth", "br-empty"),
        ("vethAbCdEf", "veth", "lxcbr0"),
        ("veth01234567", "veth", "incusbr0"),
        ("veth9", "veth", "podman1"),
        ("veth0a1b2c3", "veth", "named"),
        ("if0", "ifb", OURS.name),
        ("if1", "ifb", "br$(x)"),
    ):
        host.add_foreign(port, kind)
        host.enslave(port, bridge)
    assert find_uplinks(host.kernel.observe_links()) == set(others)


def test_a_bridge_of_dockers_that_has_a_card_leads_out(host: Host) -> None:
    host.add_foreign("named")
    for port, kind in (("veth0a1b2c3", "veth"), ("vx0", "vxlan")):
        host.add_foreign(port, kind)
        host.enslave(port, "named")
    assert find_uplinks(host.kernel.observe_links()) == {"named"}


def test_forwarding_is_turned_on_by_family(host: Host) -> None:
    for version in (4, 6):
        assert not host.forwards(version)
        for _ in range(2):
            host.kernel.ensure_forwarding(version)
        assert host.forwards(version)


@pytest.mark.parametrize(
    ("everywhere", "here", "in_force"), [(0, 0, 0), (0, 2, 2), (1, 0, 1), (2, 1, 2), (1, 2, 2)]
)
def test_the_stricter_check_of_sources_is_in_force(
    host: Host, everywhere: int, here: int, in_force: int
) -> None:
    host.add_foreign("eth0.1", "vxlan")
    host.weaken(4, "DROP", {"all": everywhere, "eth0.1": here})
    assert host.kernel.observe_host(["eth0.1", "nowhere"]).source_checks == {"eth0.1": in_force}


def test_policies_and_forwarding_are_told_by_family(host: Host) -> None:
    host.weaken(4, "ACCEPT", {})
    host.weaken(6, "DROP", {})
    seen = host.kernel.observe_host([])
    assert (seen.forward_policies, seen.forwards) == ({4: "ACCEPT", 6: "DROP"}, frozenset())
    host.kernel.ensure_forwarding(4)
    host.weaken(6, "ACCEPT", {})
    seen = host.kernel.observe_host([])
    assert (seen.forward_policies, set(seen.forwards)) == ({4: "DROP", 6: "ACCEPT"}, {4})
    host.kernel.ensure_forwarding(6)
    host.weaken(6, "ACCEPT", {})
    host.kernel.ensure_forwarding(6)
    seen = host.kernel.observe_host([])
    assert (seen.forward_policies, set(seen.forwards)) == ({4: "DROP", 6: "ACCEPT"}, {4, 6})


def test_ports_to_choose_from_are_a_range(host: Host) -> None:
    chosen = host.kernel.ephemeral_ports()
    assert 0 < chosen.start < chosen.stop <= 65536


COLLISIONS = [
    ("0.0.0.0:8080", "0.0.0.0:8080", True),
    ("0.0.0.0:8080", "127.0.0.1:8080", True),
    ("127.0.0.1:8080", "0.0.0.0:8080", True),
    ("127.0.0.1:8080", "127.0.0.1:8080", True),
    ("[::]:8080", "[::1]:8080", True),
    ("[::1]:8080", "[::]:8080", True),
    ("0.0.0.0:8080/udp", "127.0.0.1:8080/udp", True),
    ("127.0.0.1:8080", "127.0.0.2:8080", False),
    ("0.0.0.0:8080", "0.0.0.0:8081", False),
    ("0.0.0.0:8080", "0.0.0.0:8080/udp", False),
    ("0.0.0.0:8080", "[::]:8080", False),
    ("127.0.0.1:8080", "[::1]:8080", False),
]


@pytest.mark.parametrize(("one", "other", "collides"), COLLISIONS)
@pytest.mark.parametrize("theirs", [False, True], ids=["ours", "theirs"])
def test_places_collide_as_bind_has_it(
    host: Host, one: str, other: str, *, collides: bool, theirs: bool
) -> None:
    if theirs:
        host.take(place(one))
    else:
        host.kernel.reserve_ports([place(one)])
    if not collides:
        host.kernel.reserve_ports([place(other)])
        return
    with pytest.raises(PortInUse, match="port is in use") as refusal:
        host.kernel.reserve_ports([place(other)])
    assert refusal.value.place == place(other)


def test_places_are_reserved_all_or_none(host: Host) -> None:
    several = [place(f"0.0.0.0:{port}") for port in (8080, 8081, 8082)]
    host.take(several[1])
    with pytest.raises(PortInUse, match="8081"):
        host.kernel.reserve_ports(several)
    host.kernel.reserve_ports([several[0], several[2]])
    with pytest.raises(PortInUse, match="8083"):
        host.kernel.reserve_ports([place("0.0.0.0:8083"), place("127.0.0.1:8083")])
    host.kernel.reserve_ports([place("127.0.0.1:8083")])


def test_a_place_that_was_let_go_is_free(host: Host) -> None:
    places = [place("0.0.0.0:8080"), place("[::]:8080"), place("0.0.0.0:53/udp")]
    for _ in range(2):
        host.kernel.reserve_ports(places)
        for _ in range(2):
            host.kernel.release_ports(places)


@pytest.mark.parametrize("where", ["198.51.100.1:80", "[2001:db8::1]:80", "198.51.100.1:80/udp"])
def test_an_address_of_another_host_is_refused(host: Host, where: str) -> None:
    with pytest.raises(KernelError, match="this host has no such address"):
        host.kernel.reserve_ports([place("127.0.0.1:80"), place(where)])
    host.kernel.reserve_ports([place("127.0.0.1:80")])


def test_an_address_of_a_bridge_is_this_hosts(host: Host) -> None:
    with_bridge(host).kernel.reserve_ports([place("10.1.0.1:80"), place("[fd00:1::1]:80")])


@pytest.mark.parametrize("where", ["0.0.0.0:8080", "127.0.0.1:8080", "[::]:53/udp"])
def test_who_has_a_port_is_said(host: Host, where: str) -> None:
    assert host.kernel.find_port_owner(place(where)) == "another process"
    host.take(place(where))
    owner = host.kernel.find_port_owner(place(where))
    assert owner.startswith(("python", "pytest")), owner
    assert owner.endswith(")")


FLOWS = tuple(
    place(text)
    for text in (
        "192.0.2.1:53/udp",
        "192.0.2.1:54/udp",
        "192.0.2.2:53/udp",
        "192.0.2.1:53/tcp",
        "[2001:db8::1]:53/udp",
        "[2001:db8::1]:53/tcp",
    )
)
V4, V6 = "10.1.0.2:53/udp", "[fd00:1::2]:53/udp"


@pytest.mark.parametrize(
    ("host_port", "container", "gone"),
    [
        ("192.0.2.1:53/udp", V4, {0}),
        ("0.0.0.0:53/udp", V4, {0, 2}),
        ("[2001:db8::1]:53/udp", V6, {4}),
        ("[::]:53/udp", V6, {4}),
        ("0.0.0.0:53/tcp", V4, set()),
        ("0.0.0.0:55/udp", V4, set()),
        (None, "192.0.2.1:53/udp", set()),
    ],
)
def test_only_udp_flows_to_the_published_port_are_forgotten(
    host: Host, host_port: str | None, container: str, gone: set[int]
) -> None:
    host.track(*FLOWS)
    host.kernel.forget_flows([binding(host_port, container)])
    assert host.flows() == {flow for number, flow in enumerate(FLOWS) if number not in gone}


def test_flows_that_are_not_there_are_forgotten(host: Host) -> None:
    host.kernel.forget_flows([binding("0.0.0.0:53/udp", V4)])
    host.kernel.forget_flows([])


def test_an_interface_is_made_in_the_sandbox_complete(host: Host) -> None:
    sandbox = host.add_sandbox(1)
    with_bridge(host).kernel.create_veth_in(replace(VETH, mtu=1400), sandbox, UNNAMED)
    outer = host.links()[VETH.host_end]
    assert host.links().keys() == {OURS.name, VETH.host_end}
    assert (outer.bridge, outer.alias, outer.mtu, outer.up) == (OURS.name, VETH.alias, 1400, True)
    (inner,) = host.inside(sandbox).values()
    assert (inner.mac, inner.mtu, inner.up) == (VETH.mac, 1400, True)
    assert set(inner.addresses) == set(ADDRESSES)
    assert host.kernel.find_interface(sandbox, VETH.host_end) == "eth0"
    host.kernel.delete_links([VETH.host_end])
    assert host.inside(sandbox) == {}


def test_an_interface_takes_the_next_name_or_the_one_asked_for(host: Host) -> None:
    sandbox = host.add_sandbox(1)
    with_bridge(host)
    for number, name in ((1, None), (2, "front"), (3, None), (4, "eth2"), (5, None)):
        veth = veth_of(endpoint(number), DUAL)
        host.kernel.create_veth_in(veth, sandbox, DirectInterface(name, "eth", ()))
    assert host.inside(sandbox).keys() == {"eth0", "front", "eth1", "eth2", "eth3"}


def test_an_interface_whose_name_is_taken_leaves_nothing(host: Host) -> None:
    sandbox = host.add_sandbox(1)
    with_bridge(host).kernel.create_veth_in(VETH, sandbox, UNNAMED)
    before = host.links(), host.inside(sandbox)
    other = veth_of(endpoint(2), DUAL)
    with pytest.raises(Conflict, match=other.host_end):
        host.kernel.create_veth_in(other, sandbox, replace(UNNAMED, name="eth0"))
    with pytest.raises(Conflict, match=VETH.host_end):
        host.kernel.create_veth_in(VETH, sandbox, UNNAMED)
    assert (host.links(), host.inside(sandbox)) == before


def test_an_interface_needs_its_sandbox_and_its_bridge(host: Host) -> None:
    with pytest.raises(NotFound):
        with_bridge(host).kernel.create_veth_in(VETH, sandbox_key(9), UNNAMED)
    with pytest.raises(KernelError, match="bridge br9 is gone"):
        host.kernel.create_veth_in(replace(VETH, bridge="br9"), host.add_sandbox(1), UNNAMED)
    assert host.links().keys() == {OURS.name}


def test_an_interface_is_found_once_it_is_in_its_sandbox(host: Host) -> None:
    sandbox = host.add_sandbox(1)
    with pytest.raises(NotFound):
        host.kernel.find_interface(sandbox, VETH.host_end)
    with_bridge(host).kernel.create_veth(VETH)
    assert host.kernel.find_interface(sandbox, VETH.host_end) is None
    host.move(VETH.host_end, sandbox)
    assert host.kernel.find_interface(sandbox, VETH.host_end) in {"eth0", VETH.sandbox_end}


PUBLISHED = ruleset.add_bindings(endpoint().id, [binding("0.0.0.0:8080")])


def test_maps_have_values(host: Host) -> None:
    host.kernel.apply_rules(BASE)
    host.kernel.change_elements(PUBLISHED)
    assert host.elements("everywhere4") == {"tcp . 8080 : 10.1.0.2 . 80"}
    host.kernel.change_elements(PUBLISHED)
    assert host.elements("everywhere4") == {"tcp . 8080 : 10.1.0.2 . 80"}


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(
            ruleset.add_bindings(endpoint().id, [binding("0.0.0.0:8080", "10.1.0.3:80")]),
            id="another value",
        ),
        pytest.param(
            ruleset.add_network(network(1, pools=(pool("10.1.0.1/25"),))), id="an overlap"
        ),
        pytest.param(ruleset.delete_bindings([binding("0.0.0.0:8081")]), id="what is not there"),
    ],
)
def test_what_contradicts_what_is_there_changes_nothing(host: Host, wrong: Changes) -> None:
    host.kernel.apply_rules(BASE)
    host.kernel.change_elements(PUBLISHED + ruleset.add_network(DUAL))
    with pytest.raises(KernelError, match="change the firewall"):
        host.kernel.change_elements(ruleset.add_network(network(2)) + wrong)
    assert host.elements("bridges") == {DUAL.bridge_name}
    assert host.elements("everywhere4") == {"tcp . 8080 : 10.1.0.2 . 80"}


def test_uplinks_are_set_anew(host: Host) -> None:
    host.kernel.apply_rules(ruleset.render_ruleset([], [], ["br-lan", "br-old"]))
    assert host.elements("uplinks") == {"br-lan", "br-old"}
    host.kernel.change_elements(ruleset.set_uplinks(["br-lan", "virbr0"]))
    assert host.elements("uplinks") == {"br-lan", "virbr0"}


def test_where_the_default_route_of_a_sandbox_goes(host: Host) -> None:
    with_bridge(host)
    sandbox = host.add_sandbox(1)
    host.kernel.create_veth(VETH)
    first = VETH.host_end
    host.move(first, sandbox)
    assert not host.kernel.leaves_elsewhere(sandbox, first), "there is none"
    host.leave_by(sandbox, first)
    assert not host.kernel.leaves_elsewhere(sandbox, first)
    host.leave_by(sandbox, None)
    assert host.kernel.leaves_elsewhere(sandbox, first)
    for where, which in ((SandboxKey("/nowhere"), first), (sandbox, "pnh0")):
        with pytest.raises(NotFound):
            host.kernel.leaves_elsewhere(where, which)
