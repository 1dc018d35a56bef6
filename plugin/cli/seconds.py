"""Take a time on the command line, in seconds: a number that a clock can count to."""

from __future__ import annotations

import math
from typing import Any

import click


class Seconds(click.FloatRange):
    """A number of seconds between two; `nan` is between none, and click lets it through."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number; what is none, or none that a clock can count to, is refused."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no time that could be waited", param, ctx)
        return number
