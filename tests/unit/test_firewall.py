"""What is rendered for nft, against golden files; PYNET_GOLDEN=write makes them anew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from driver import firewall
from tests.samples import network

if TYPE_CHECKING:
    from driver.model import Network

GOLDEN = Path(__file__).parent.parent / "golden"
NETWORKS = (network(1), network(2, bridge_name="br0"), network(3, internal=True))
FILES = {
    "none": firewall.render_ruleset([]),
    "one": firewall.render_ruleset(NETWORKS[:1]),
    "three": firewall.render_ruleset(NETWORKS),
    "another": firewall.render_ruleset(NETWORKS[:1]) + firewall.render_network(NETWORKS[1]),
    "one_less": firewall.render_ruleset(NETWORKS) + firewall.render_no_network(NETWORKS[0]),
    "gone": firewall.render_no_ruleset(),
}


@pytest.mark.parametrize("name", FILES)
def test_the_text_is_the_golden_file(name: str) -> None:
    path = GOLDEN / f"{name}.nft"
    if os.environ.get("PYNET_GOLDEN") == "write":
        path.write_text(FILES[name])
    assert FILES[name] == path.read_text()


def test_there_is_no_other_golden_file() -> None:
    assert {path.stem for path in GOLDEN.glob("*.nft")} == FILES.keys()


def test_chains_do_not_grow_with_networks() -> None:
    one, three = (
        "".join(line for line in FILES[name].splitlines() if "add element" not in line)
        for name in ("one", "three")
    )
    assert one == three


@pytest.mark.parametrize("each", NETWORKS, ids=lambda each: each.bridge_name)
def test_what_a_network_adds_it_takes_out(each: Network) -> None:
    added, taken = firewall.render_network(each), firewall.render_no_network(each)
    assert added.count("\n") == taken.count("\n") == 1
    element = taken.partition("{ ")[2].removesuffix(" }\n")
    assert f"{{ {element} comment" in added


def test_the_mark_is_one_bit() -> None:
    assert firewall.ACCEPTED_MARK.bit_count() == 1
