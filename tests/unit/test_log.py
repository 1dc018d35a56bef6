"""Who logs does not wait for who reads the log."""

from __future__ import annotations

import logging
import os
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from plugin.log import LINES, QueuedHandler

if TYPE_CHECKING:
    from pathlib import Path

PIPE_BYTES = 65536


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("pynet", logging.INFO, "", 0, text, (), None)


def test_lines_come_out_in_order_and_are_there_after_a_flush() -> None:
    reader, writer = os.pipe()
    handler = QueuedHandler(writer)
    for number in range(100):
        handler.emit(record(f"line {number}"))
    handler.flush()
    assert os.read(reader, PIPE_BYTES).decode().splitlines() == [f"line {n}" for n in range(100)]


def test_nobody_waits_for_a_reader_and_what_is_lost_is_told_of() -> None:
    reader, writer = os.pipe()
    handler = QueuedHandler(writer)

    def log_much() -> None:
        for number in range(2 * LINES):
            handler.emit(record(f"{number:100}"))

    logging_thread = Thread(target=log_much, daemon=True)
    logging_thread.start()
    logging_thread.join(20)
    assert not logging_thread.is_alive()
    handler.flush()  # gives up
    with os.fdopen(reader, "rb", buffering=0) as source:
        told = b""
        while b"were lost" not in told:
            told += source.read(PIPE_BYTES)
    kept = [line for line in told.splitlines() if b"lost" not in line]
    assert kept[0].strip() == b"0"
    assert len(kept) < 2 * LINES


def test_it_goes_on_in_a_process_that_was_forked(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("ab") as file:
        handler = QueuedHandler(file.fileno())
        handler.emit(record("parent"))
        handler.flush()
        child = os.fork()
        if child == 0:
            handler.emit(record("child"))
            handler.flush()
            os._exit(0)
        os.waitpid(child, 0)
    assert path.read_text() == "parent\nchild\n"


@pytest.mark.filterwarnings("error")
def test_a_log_that_cannot_be_written_is_nobodys_trouble() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    handler = QueuedHandler(writer)
    for _ in range(3):
        handler.emit(record("line"))
        handler.flush()
