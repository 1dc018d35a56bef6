"""Ask `pynet doctor` about flows that work, many times in one process; print what it finds.

    python -m tests.engine.healthy TIMES FROM TO:PORT [FROM TO:PORT …]

A program of the tests, run on an engine's host. Its only output are answers that are no praise.
"""

from __future__ import annotations

import sys

from driver.diagnosis.diagnose import REACHES, UNKNOWN, diagnose
from driver.diagnosis.steps import OK
from plugin.cli.flows import parse_target
from plugin.cli.gather import gather

SECONDS = 5.0


def main(times: int, flows: list[tuple[str, str]]) -> None:
    """Ask about one flow after the other; what is outside is only looked at."""
    for number in range(times):
        source, target = flows[number % len(flows)]
        facts = gather(source, parse_target(target), timeout=SECONDS, is_ipv6=False)
        found = diagnose(facts)
        expected = UNKNOWN if source == "outside" else REACHES
        is_well = found.verdict == expected and {step.state for step in found.steps} == {OK}
        if not is_well or facts.not_seen:
            print(f"{number}: {source} > {target}: {found} {facts.not_seen} {facts.probe}")


if __name__ == "__main__":
    words = sys.argv[2:]
    main(int(sys.argv[1]), list(zip(words[::2], words[1::2], strict=True)))
