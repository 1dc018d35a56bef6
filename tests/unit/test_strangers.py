"""Whatever strangers send, in whatever order: an answer, no traceback, and nothing left over."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from tests.unit.strangers import Line, bend, make_talk, random_seed

if TYPE_CHECKING:
    from collections.abc import Callable

    from driver.store import Store
    from tests.unit.conftest import Unexpected

REQUESTS = 100_000
BENDS = 6  # at most, of one talk


def test_a_hundred_thousand_requests(
    store: Store, quiet: Unexpected, record_property: Callable[[str, object], None]
) -> None:
    start = random_seed()
    record_property("strangers' seed, PYNET_SEED", str(start))
    random, line = Random(start), Line(store)
    while line.sent < REQUESTS:
        talk = make_talk(random)
        for _ in range(random.randrange(BENDS + 1)):
            talk = bend(random, talk)
        try:
            line.talk(talk)
        except Exception as error:
            error.add_note(f"after {line.sent} requests with PYNET_SEED={start}, in {talk}")
            raise
        assert quiet.records == [], f"PYNET_SEED={start}"
    record_property("strangers' requests", line.sent)
    assert {200, 400, 409} <= line.outcomes.keys()
    print(line.outcomes)
