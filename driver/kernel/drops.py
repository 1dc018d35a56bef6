"""Read what pynet's tables have dropped, by reason and by interface; knows no reason itself."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from driver.model import Drops

if TYPE_CHECKING:
    from collections.abc import Iterator

    from driver.kernel.nft import Nft

FAMILIES = ("inet", "bridge")
_SET = "dropped_"


def read_drops(nft: Nft) -> Drops:
    """Return the counters of both tables; nothing of a table that is not there.

    Only the counters and the sets named after them are listed: the tables hold elements by the
    thousand. Raises KernelError if nftables cannot be read.
    """
    totals: Counter[str] = Counter()
    by_interface: dict[str, Counter[str]] = {}
    for family in FAMILIES:
        for reason, packets in _totals(nft, family):
            totals[reason] += packets
            if packets:
                for interface, number in _interfaces(nft, family, reason):
                    by_interface.setdefault(interface, Counter())[reason] += number
    return Drops(dict(totals), {name: dict(each) for name, each in by_interface.items()})


def _totals(nft: Nft, family: str) -> Iterator[tuple[str, int]]:
    shown = nft.show(f"list counters table {family} pynet")
    for entry in msgspec.json.decode(shown)["nftables"] if shown else ():
        if counter := entry.get("counter"):
            yield counter["name"], counter["packets"]


def _interfaces(nft: Nft, family: str, reason: str) -> Iterator[tuple[str, int]]:
    shown = nft.show(f"list set {family} pynet {_SET}{reason}")
    for entry in msgspec.json.decode(shown)["nftables"] if shown else ():
        for element in entry.get("set", {}).get("elem", ()):
            yield element["elem"]["val"], element["elem"]["counter"]["packets"]
