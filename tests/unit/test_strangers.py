"""Whatever strangers send, in whatever order: an answer, no traceback, and nothing left over."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from tests.unit.strangers import Branches, Line, bend, make_talk, random_seed

if TYPE_CHECKING:
    from collections.abc import Callable

    from driver.state.store import Store
    from tests.unit.conftest import Unexpected

REQUESTS, GUIDED = 100_000, 20_000
BENDS = 6  # at most, of one talk
NEW = 0.2  # of the guided talks


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


def test_guided_by_coverage(
    store: Store, quiet: Unexpected, record_property: Callable[[str, object], None]
) -> None:
    start = random_seed()
    record_property("guided strangers' seed, PYNET_SEED", str(start))
    random, line = Random(start), Line(store)
    kept = [make_talk(random)]  # talks that went where none had gone before: those are bent further
    with Branches() as branches:
        taken = 0
        while line.sent < GUIDED:
            talk = make_talk(random) if random.random() < NEW else random.choice(kept)
            for _ in range(random.randrange(1, BENDS + 1)):
                talk = bend(random, talk)
            line.talk(talk)
            assert quiet.records == [], f"PYNET_SEED={start}"
            if (now := branches.taken()) > taken:
                kept.append(talk)
                taken = now
    record_property("guided strangers' requests", line.sent)
    record_property("guided strangers' talks kept", len(kept))
    record_property("guided strangers' branches", taken)
    assert len(kept) > 1
