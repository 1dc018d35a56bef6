"""Elements put into the kernel by pynet's own messages are what nft would have put there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from driver.errors import KernelError
from driver.firewall import ruleset
from driver.linux.elements import Elements, parse_changes
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
    ruleset.render_join(each, BY_ID[each.network_id])
    + ruleset.render_bindings(each.id, each.bindings)
    for each in UNLIMITED
]
GOES = [
    ruleset.render_leave(each, BY_ID[each.network_id]) + ruleset.render_no_bindings(each.bindings)
    for each in UNLIMITED
]
GUARDED = replace(UNLIMITED[0], id=endpoint_id(30), options=EndpointOptions(guard=Guard.ADDRESS))
COMES.append(ruleset.render_join(GUARDED, BY_ID[GUARDED.network_id]))
GOES.append(ruleset.render_leave(GUARDED, BY_ID[GUARDED.network_id]))
ONE = ruleset.render_bindings("e1" * 32, [binding("0.0.0.0:8080/tcp")])
NOT_ONE = ruleset.render_no_bindings([binding("0.0.0.0:8080/tcp")])


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


def change(elements: Elements, text: str) -> None:
    """Make the changes of a text, which must be one that this knows."""
    changes = parse_changes(text)
    assert changes is not None, text
    elements.change(changes)


def shown() -> str:
    return run("nft", "list", "ruleset")


def test_they_are_what_nft_puts_there_comments_included(nft: Nft, elements: Elements) -> None:
    before = shown()
    for text in COMES:
        nft.run(text)
    expected = shown()
    for text in GOES:
        change(elements, text)
    assert shown() == before
    for text in COMES:
        change(elements, text)
    assert shown() == expected != before


def test_one_that_cannot_be_changed_keeps_all_from_it(nft: Nft, elements: Elements) -> None:
    before = shown()
    for text in (ONE + GOES[0], GOES[0] + ONE):
        with pytest.raises(KernelError, match=r"delete elements of \w+ pynet \w+: No such file"):
            change(elements, text)
        assert shown() == before
    change(elements, ONE)
    assert shown() != before, "a refusal is forgotten by the next change"


def test_adding_twice_is_adding(nft: Nft, elements: Elements) -> None:
    change(elements, ONE)
    once = shown()
    change(elements, ONE)
    assert shown() == once
    change(elements, NOT_ONE)


def test_a_port_that_is_translated_otherwise_is_refused(nft: Nft, elements: Elements) -> None:
    change(elements, ONE)
    with pytest.raises(KernelError, match="add elements of inet pynet everywhere4: "):
        change(elements, ONE.replace(": 10.1.0.2 . 80", ": 10.1.0.3 . 80"))


def test_without_the_table_nothing_is_changed(elements: Elements) -> None:
    with pytest.raises(KernelError, match="No such file"):
        change(elements, ONE)


@pytest.mark.parametrize(
    "text",
    [
        ruleset.render_no_ruleset(),
        "add element inet pynet open4 {\n",
        "nonsense\n",
        ONE + "nonsense\n",
        ONE.replace("10.1.0.2", "10.1.0.0/24"),
    ],
)
def test_what_is_not_known_is_left_to_nft(text: str) -> None:
    assert parse_changes(text) is None


def test_networks_and_limits_are_what_nft_puts_there(nft: Nft, elements: Elements) -> None:
    """Intervals, which have an end, also of the last address, and counts of connections."""
    last = network(9, pools=(pool("255.255.255.1/24"), pool("ffff:ffff::1/32")))
    for net in (*NETWORKS, last):
        nft.run(ruleset.render_ruleset([], [], []))
        empty = shown()
        joined = [each for each in ENDPOINTS if each.network_id == net.id]
        comes = ruleset.render_network(net) + ruleset.render_uplinks(["br0", "br1"])
        comes += "".join(ruleset.render_join(each, net) for each in joined)
        goes = "".join(ruleset.render_leave(each, net) for each in joined)
        goes += ruleset.render_no_network(net) + ruleset.render_uplinks([])
        nft.run(comes)
        expected = shown()
        change(elements, goes)
        assert shown() == empty
        change(elements, comes)
        assert shown() == expected


def test_many_are_changed_at_once(nft: Nft, elements: Elements) -> None:
    many = "".join(ONE.replace("8080", str(port)) for port in range(1, 10001))
    change(elements, many)
    assert shown().count("endpoint e1e1e1e1e1e1") == 10001


def test_nothing_to_change_is_no_change(elements: Elements) -> None:
    assert parse_changes("") == ()
    elements.change(())
