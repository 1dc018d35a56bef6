"""Right after a success nothing differs, on the real kernel: `check` is asked after every call."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface
from itertools import chain
from typing import TYPE_CHECKING

import pytest

from driver import model
from driver.driver import BridgeDriver
from driver.errors import KernelError
from driver.health import Health
from driver.linux import sysctl
from driver.linux.nft import Nft
from driver.model import Attach, SysctlWrite, host_end_name
from driver.options import GUARD, ICC, MTU, parse_change
from driver.state.recovery import open_state
from tests.engine.wait import wait_until
from tests.kernel.host import ip, run
from tests.samples import (
    KEEPALIVE,
    SOMAXCONN,
    endpoint_id,
    network,
    network_id,
    new_endpoint,
    new_join,
    pool,
    ports,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from driver.linux.linux import LinuxKernel
    from driver.model import Network
    from tests.kernel.host import RealHost

    Call = Callable[[BridgeDriver], object]

POOLS = (pool("10.1.0.1/24"), pool("fd00:1::1/64"))
NETWORKS = {
    "IPv4": network(1, f"{KEEPALIVE}=600"),
    "dual": network(1, f"{KEEPALIVE}=600", pools=POOLS),
    "IPv6": network(1, pools=POOLS[1:]),
    "internal": network(1, pools=POOLS, internal=True),
    "closed": network(1, pools=POOLS, icc=False),
    "direct": network(1, pools=POOLS, attach=Attach.DIRECT),
    "somebody's": network(1, pools=POOLS, bridge_name="br-lan"),
}


def life(real: RealHost, net: Network, number: int) -> Iterator[Call]:
    """Yield what Docker calls for a container, up to its running, and what it does itself."""
    of, sandbox = (net.id, endpoint_id(number)), real.add_sandbox(number)
    addresses = {each.subnet.version: each.subnet[number + 1] for each in net.pools}
    ipv4 = IPv4Interface(f"{addresses[4]}/24") if 4 in addresses else None
    ipv6 = IPv6Interface(f"{addresses[6]}/64") if 6 in addresses else None
    new = replace(new_endpoint(number), ipv4=ipv4, ipv6=ipv6)
    texts = (f"{8080 + number}:80", f"{5353 + number}:53/udp", "90")
    yield lambda driver: driver.create_endpoint(new)
    yield lambda driver: driver.join(new_join(number, 1, sandbox, has_ports=True))
    if net.options.attach is Attach.HANDOVER:
        yield lambda driver: real.move(host_end_name(new.id), sandbox)
    yield lambda driver: driver.endpoint_info(*of)
    yield lambda driver: driver.program_external_connectivity(*of, ports(*texts))


def end(net: Network, number: int) -> Iterator[Call]:
    """Yield what Docker calls when a container ends."""
    of = net.id, endpoint_id(number)
    yield lambda driver: driver.revoke_external_connectivity(*of)
    yield lambda driver: driver.leave(*of)
    yield lambda driver: driver.delete_endpoint(*of)


CHANGE = parse_change({ICC: "false", GUARD: "address", MTU: "1400", SOMAXCONN: "99"}, ())


@pytest.mark.parametrize("net", NETWORKS.values(), ids=NETWORKS)
def test_nothing_differs_after_any_call_of_two_containers_lives(
    driver: BridgeDriver,
    real: RealHost,
    net: Network,
    monkeypatch: pytest.MonkeyPatch,
    as_docker_leaves_it: None,
) -> None:
    """The second is on an extra bridge, and the network is not the first."""
    monkeypatch.setattr(model, "BRIDGE_PORTS", 1)
    ip("link", "add", "br-lan", "type", "bridge")
    calls: tuple[Iterable[Call], ...] = (
        [lambda driver: driver.create_network(network(9))],
        [lambda driver: driver.create_network(net)],
        life(real, net, 1),
        life(real, net, 2),
        [lambda driver: driver.change_network(net.id, CHANGE)],
        [BridgeDriver.restore, BridgeDriver.repair_all],
        end(net, 1),
        end(net, 2),
        [lambda driver: driver.delete_network(net.id)],
        [lambda driver: driver.delete_network(network_id(9))],
    )
    for number, call in enumerate(chain.from_iterable(calls)):
        call(driver)
        assert driver.check() == (), number
    wait_until(lambda: real.links().keys() == {"br-lan"}, 10, "all links are deleted")
    assert "pynet" not in run("nft", "list", "ruleset")


def test_a_recovered_network_has_its_own_pools_and_its_further_bridge(
    driver: BridgeDriver,
    real: RealHost,
    linux: LinuxKernel,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Every bridge with IPv6 has an address of fe80::/64, too."""
    monkeypatch.setattr(model, "BRIDGE_PORTS", 1)
    net = network(1, pools=POOLS)
    driver.create_network(net)
    for call in chain(life(real, net, 1), life(real, net, 2)):
        call(driver)
    before = real.links()
    health = Health()
    again = BridgeDriver(open_state(tmp_path / "lost", linux, health), linux, health=health)
    again.restore()
    ((found, _),) = again.describe()
    assert [each.subnet for each in found.pools] == [each.subnet for each in POOLS]
    assert len(found.bridges) == 2
    assert real.links() == before
    again.create_network(network(2, pools=(pool("10.2.0.1/24"), pool("fd00:2::1/64"))))
    assert again.check() == ()


# Addresses, and values that are put back.


def addresses(name: str) -> list[dict[str, object]]:
    """Return the IPv4 addresses of a link as `ip` shows them."""
    (shown,) = json.loads(ip("-json", "-4", "address", "show", name))
    return [each for each in shown["addr_info"] if each]


def test_a_bridge_has_the_broadcast_address_of_its_subnet(linux: LinuxKernel) -> None:
    """Without it 10.1.0.255 is an address like any other, and is asked for by ARP."""
    linux.ensure_bridge(network(1).bridge)
    ((shown),) = addresses(network(1).bridge_name)
    assert (shown["local"], shown["broadcast"]) == ("10.1.0.1", "10.1.0.255")


def test_an_address_that_was_given_with_its_other_side_is_known_by_its_own(
    linux: LinuxKernel,
) -> None:
    """As of a point-to-point link, whose address is not the one that names it."""
    ip("link", "add", "br0", "type", "bridge")
    ip("address", "add", "10.1.0.1", "peer", "10.1.0.9/24", "dev", "br0")
    assert {str(each.ip) for each in linux.observe_links()["br0"].addresses} == {"10.1.0.1"}


def test_parameters_are_put_back_from_the_last_to_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To write one may change another, as `all` does `default`."""
    everywhere, here = "net.ipv4.conf.all.forwarding", "net.ipv4.ip_forward"
    write, before = sysctl.write, [sysctl.read(key) for key in (everywhere, here)]
    written: list[str] = []

    def refuse_the_last(key: str, *value: object, **opened: object) -> None:
        if key == SOMAXCONN:
            raise KernelError("no")
        written.append(key)
        write(key, *value, **opened)  # type: ignore[arg-type]

    monkeypatch.setattr(sysctl, "write", refuse_the_last)
    expected = frozenset(sysctl.read_all([everywhere, here, SOMAXCONN]).values())
    writes = [SysctlWrite(key, "1", expected) for key in (everywhere, here, SOMAXCONN)]
    with pytest.raises(KernelError):
        sysctl.compare_and_write(writes)
    assert written == [everywhere, here, here, everywhere]
    assert [sysctl.read(key) for key in (everywhere, here)] == before


def test_what_a_change_showed_is_not_in_the_next_look() -> None:
    """The library keeps what it has to say until somebody takes it."""
    nft = Nft()
    nft.run("add table inet theirs\nlist tables\n")
    shown = nft.show_table("inet theirs")
    assert shown is not None
    assert [next(iter(each)) for each in json.loads(shown)["nftables"]] == ["metainfo", "table"]
    nft.close()
