"""Read the drop counters of pynet's tables, by reason and by interface."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from driver.linux.nfnetlink import parse_attributes, parse_nested, parse_text
from driver.linux.tables import read_counters, read_elements
from driver.model import Drops

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from driver.linux.nfnetlink import Connection

_SET = "dropped_"
_KEY, _EXPRESSION, _EXPRESSIONS, _VALUE = 1, 7, 11, 1  # NFTA_SET_ELEM_…, NFTA_DATA_VALUE
_DATA, _PACKETS = 2, 2  # NFTA_EXPR_DATA, NFTA_COUNTER_PACKETS


def read_drops(netfilter: Connection) -> Drops:
    """Return the counters of both tables; nothing of a table that is not there.

    Only the counters and the sets named after them are listed: the tables hold elements by the
    thousand. Raises NetlinkError if nftables cannot be read.
    """
    totals: Counter[str] = Counter()
    by_interface: dict[str, Counter[str]] = {}
    for family, reason, counted in tuple(read_counters(netfilter)):
        packets = _packets(counted)
        totals[reason] += packets
        if packets:
            for interface, number in _interfaces(netfilter, family, reason):
                by_interface.setdefault(interface, Counter())[reason] += number
    return Drops(dict(totals), {name: dict(each) for name, each in by_interface.items()})


def _interfaces(netfilter: Connection, family: str, reason: str) -> Iterator[tuple[str, int]]:
    for element in read_elements(netfilter, family, f"{_SET}{reason}"):
        interface = parse_text(parse_attributes(element[_KEY])[_VALUE])
        yield interface, _packets(parse_attributes(parse_attributes(_expression(element))[_DATA]))


def _expression(element: Mapping[int, bytes]) -> bytes:
    """Return what an element counts by: kernels tell of one and of several in other ways."""
    several = next(parse_nested(element.get(_EXPRESSIONS, b"")), b"")
    return element.get(_EXPRESSION, several)


def _packets(counter: Mapping[int, bytes]) -> int:
    return int.from_bytes(counter.get(_PACKETS, b""), "big")
