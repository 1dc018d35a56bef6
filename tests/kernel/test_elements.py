"""Elements put into the kernel by pynet's own messages are what nft would have put there."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

import pytest

from driver.errors import KernelError
from driver.firewall import ruleset
from driver.firewall.elements import render_changes
from driver.linux.elements import Elements
from driver.linux.nft import Nft
from driver.model import EndpointOptions, Guard, connections_of
from tests.kernel.host import run
from tests.samples import binding, endpoint_id, network, pool
from tests.typical import ENDPOINTS, NETWORKS

if TYPE_CHECKING:
    from collections.abc import Iterator

BY_ID = {network.id: network for network in NETWORKS}
UNLIMITED = [each for each in ENDPOINTS if connections_of(each, BY_ID[each.network_id]) is None]
COMES = [
    ruleset.add_endpoint(each, BY_ID[each.network_id])
    + ruleset.add_bindings(each.id, each.bindings)
    for each in UNLIMITED
]
GOES = [
    ruleset.delete_endpoint(each, BY_ID[each.network_id]) + ruleset.delete_bindings(each.bindings)
    for each in UNLIMITED
]
GUARDED = replace(UNLIMITED[0], id=endpoint_id(30), options=EndpointOptions(guard=Guard.ADDRESS))
COMES.append(ruleset.add_endpoint(GUARDED, BY_ID[GUARDED.network_id]))
GOES.append(ruleset.delete_endpoint(GUARDED, BY_ID[GUARDED.network_id]))
ONE = ruleset.add_bindings("e1" * 32, [binding("0.0.0.0:8080/tcp")])
NOT_ONE = ruleset.delete_bindings([binding("0.0.0.0:8080/tcp")])


@pytest.fixture
def nft() -> Iterator[Nft]:
    lent = Nft()
    lent.run(ruleset.render_ruleset(NETWORKS, [], []))
    yield lent
    lent.close()


@pytest.fixture
def elements() -> Iterator[Elements]:
    lent = Elements()
    yield lent
    lent.close()


def shown() -> str:
    return run("nft", "-s", "list", "ruleset")


def test_they_are_what_nft_puts_there_comments_included(nft: Nft, elements: Elements) -> None:
    before = shown()
    for changes in COMES:
        nft.run(render_changes(changes))
    expected = shown()
    for changes in GOES:
        elements.change(changes)
    assert shown() == before
    for changes in COMES:
        elements.change(changes)
    assert shown() == expected != before


def test_one_that_cannot_be_changed_keeps_all_from_it(nft: Nft, elements: Elements) -> None:
    before = shown()
    for changes in (ONE + GOES[0], GOES[0] + ONE):
        with pytest.raises(KernelError, match=r"delete elements of \w+ pynet \w+: No such file"):
            elements.change(changes)
        assert shown() == before
    elements.change(ONE)
    assert shown() != before, "a refusal is forgotten by the next change"


def test_adding_twice_is_adding(nft: Nft, elements: Elements) -> None:
    elements.change(ONE)
    once = shown()
    elements.change(ONE)
    assert shown() == once
    elements.change(NOT_ONE)


def test_a_port_that_is_translated_otherwise_is_refused(nft: Nft, elements: Elements) -> None:
    elements.change(ONE)
    with pytest.raises(KernelError, match="add elements of inet pynet everywhere4: "):
        elements.change(ruleset.add_bindings("e1" * 32, [binding("0.0.0.0:8080", "10.1.0.3:80")]))


def test_without_the_table_nothing_is_changed(elements: Elements) -> None:
    with pytest.raises(KernelError, match="No such file"):
        elements.change(ONE)


def test_networks_and_limits_are_what_nft_puts_there(nft: Nft, elements: Elements) -> None:
    """Intervals, which have an end, also of the last address, and counts of connections."""
    last = network(9, pools=(pool("255.255.255.1/24"), pool("ffff:ffff::1/32")))
    for net in (*NETWORKS, last):
        nft.run(ruleset.render_ruleset([], [], []))
        empty = shown()
        joined = [each for each in ENDPOINTS if each.network_id == net.id]
        comes = ruleset.add_network(net) + ruleset.set_uplinks(["br0", "br1"])
        comes += tuple(chain.from_iterable(ruleset.add_endpoint(each, net) for each in joined))
        goes = tuple(chain.from_iterable(ruleset.delete_endpoint(each, net) for each in joined))
        goes += ruleset.delete_network(net) + ruleset.set_uplinks([])
        nft.run(render_changes(comes))
        expected = shown()
        elements.change(goes)
        assert shown() == empty
        elements.change(comes)
        assert shown() == expected


def test_many_are_changed_at_once(nft: Nft, elements: Elements) -> None:
    many = [binding(f"0.0.0.0:{port}/tcp") for port in range(1, 10001)]
    elements.change(ruleset.add_bindings("e1" * 32, many))
    assert shown().count("endpoint e1e1e1e1e1e1") == 10001


def test_nothing_to_change_is_no_change(elements: Elements) -> None:
    elements.change(())
