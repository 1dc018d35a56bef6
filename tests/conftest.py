"""Print at the end of a run the figures that its tests have recorded, with `record_property`.

Numbers of one name are added up; texts, such as a seed, stand as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    figures: dict[str, int] = {}
    lines: set[str] = set()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if isinstance(value, int):
                    figures[name] = figures.get(name, 0) + value
                else:
                    lines.add(f"{name}: {value}")
    lines |= {f"{name}: {value:,}" for name, value in figures.items()}
    if lines:
        terminalreporter.section("figures")
        for line in sorted(lines):
            terminalreporter.write_line(line)
