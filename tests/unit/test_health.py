"""What is reported as wrong, for the operator."""

from __future__ import annotations

from driver.health import Health


def test_a_problem_stays_until_its_key_is_cleared() -> None:
    health = Health()
    health.report("state", "the state file was damaged")
    health.report("bridge", "repaired too often")
    health.report("state", "the state file is gone")
    assert health.problems() == ("the state file is gone", "repaired too often")
    health.clear("state")
    health.clear("never reported")
    assert health.problems() == ("repaired too often",)
