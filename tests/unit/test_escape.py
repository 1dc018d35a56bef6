"""What others have named is made visible, for people and in the log: no line but our own."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import Client

from plugin.api import create_app
from plugin.escape import escape, escape_lines
from plugin.server import log_config

if TYPE_CHECKING:
    from driver.driver import BridgeDriver


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("web_1.back-end", "web_1.back-end"),
        ("büro 東京 مكتب 🐳 [red]x[/red] \\n", "büro 東京 مكتب 🐳 [red]x[/red] \\n"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31m\x00\x07\x7f\x9b2J", r"\x1b[31m\x00\x07\x7f\x9b2J"),
        ("\u202a\u202b\u202c\u202d\u202e", r"\u202a\u202b\u202c\u202d\u202e"),
        (
            "\u2066\u2067\u2068\u2069\u200e\u200f\u061c",
            r"\u2066\u2067\u2068\u2069\u200e\u200f\u061c",
        ),
        ("\u200b\u200c\u200d\u2060\ufeff\xad", r"\u200b\u200c\u200d\u2060\ufeff\xad"),
        ("\u2028\u2029\x85\x0b\x0c", r"\u2028\u2029\x85\x0b\x0c"),
        ("\xa0\u2003\u3000", r"\xa0\u2003\u3000"),
        ("\u034f\u115f\u3164\ufe0f\uffa0\u2800", r"\u034f\u115f\u3164\ufe0f\uffa0\u2800"),
        ("\U000e0041\U000e0100", r"\U000e0041\U000e0100"),
        (b"eth\xff".decode(errors="surrogateescape"), r"eth\udcff"),
    ],
)
def test_what_is_not_seen_is_named(text: str, escaped: str) -> None:
    assert escape(text) == escaped


@given(st.text())
def test_nothing_is_left_that_is_not_seen(text: str) -> None:
    assert escape(text).isprintable()
    assert escape(escape(text)) == escape(text)
    assert not text.isascii() or not text.isprintable() or escape(text) == text


@given(st.text())
def test_no_line_but_the_first_begins_at_the_margin(text: str) -> None:
    first, *more = escape_lines(text).split("\n")
    assert first.isprintable()
    assert all(line.startswith("    ") and line.isprintable() for line in more)


FORGED = "2026-11-24 06:43:34,843 INFO Join ok"


def test_a_request_forges_no_line_of_the_log(driver: BridgeDriver) -> None:
    (words,) = log_config("INFO")["formatters"].values()
    formatter = words["()"](words["fmt"])
    seen: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(formatter.format(record))

    handler, logger = Lines(), logging.getLogger("pynet")
    logger.addHandler(handler)
    try:
        client = Client(create_app(lambda: driver))
        client.post("/x%0A" + FORGED.replace(" ", "%20") + "%1B[2J")
        client.get("/networks%0A" + FORGED.replace(" ", "%20"))
        client.post(
            "/NetworkDriver.CreateNetwork",
            json={
                "NetworkID": 64 * "1",
                "Options": {"com.docker.network.generic": {f"x\n{FORGED}\x1b[2J\u202e": "y"}},
                "IPv4Data": [{"Pool": "10.9.0.0/24", "Gateway": "10.9.0.1/24"}],
                "IPv6Data": [],
            },
        )
        logger.error("a request failed", exc_info=ValueError(f"x\n{FORGED}\x1b[2J"))
    finally:
        logger.removeHandler(handler)
    assert len(seen) == 4
    assert all(FORGED in record for record in seen)
    for line in "\n".join(seen).split("\n"):
        assert line.isprintable()
        assert not line.startswith(FORGED)
