"""Read `base.nft`, the constant part of the tables."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def read_base() -> str:
    """Return the file's text, as nft reads it."""
    return Path(__file__).with_name("base.nft").read_text()
