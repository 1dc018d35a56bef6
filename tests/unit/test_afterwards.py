"""What an operation leads to is right at once: nothing differs, and a restart finds nothing to do.

The fault matrix compares states with one another; what all of them lack it cannot see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes import Calls
from tests.unit.faults import World
from tests.unit.test_fault_matrix import SCENARIOS, stands_down

if TYPE_CHECKING:
    from driver.state.store import Store
    from tests.unit.faults import Scenario

# But for the driver's end, which takes down what a start makes again.
GOING_ON = [each for each in SCENARIOS if each.operation is not stands_down]
EVERY = pytest.mark.parametrize("scenario", GOING_ON, ids=lambda scenario: scenario.name)


def done(scenario: Scenario, store: Store) -> World:
    """Return the world after the operation, which has succeeded, and what it has set going."""
    world = World(store, scenario.prepare)
    world.run(scenario.operation, Calls())
    world.kernel.look()
    return world


@EVERY
def test_nothing_differs_right_after(scenario: Scenario, store: Store) -> None:
    world = done(scenario, store)
    before = world.state()
    found = world.driver.check()
    assert world.state() == before
    assert found == ()


@EVERY
def test_a_restart_right_after_changes_nothing(scenario: Scenario, store: Store) -> None:
    world = done(scenario, store)
    expected: dict[str, Any] = world.state()
    world.restart()
    assert world.state() == expected
