"""How measurements take turns: nothing may always come behind the same."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import islice, pairwise, permutations

import pytest

from bench.measure import interleave_some, orders


@pytest.mark.parametrize("count", range(2, 9))
def test_each_comes_behind_each_other_equally_often_and_first_too(count: int) -> None:
    names = [str(number) for number in range(count)]
    rounds = list(islice(orders(names), 2 * count))
    assert all(sorted(order) == names for order in rounds)
    behind = Counter(pair for order in rounds for pair in pairwise(order))
    assert behind == dict.fromkeys(permutations(names, 2), 2)
    assert Counter(order[0] for order in rounds) == dict.fromkeys(names, 2)


def test_what_runs_less_often_is_spread_over_the_rounds_of_the_rest() -> None:
    ran: list[str] = []

    def run(name: str) -> float:
        ran.append(name)
        return float(len(ran))

    taken = interleave_some(
        {"often": 6, "seldom": 2}, {name: partial(run, name) for name in ("often", "seldom")}
    )
    assert [len(taken[name].values) for name in ("often", "seldom")] == [6, 2]
    assert [place for place, name in enumerate(ran) if name == "seldom"] == [1, 5]
