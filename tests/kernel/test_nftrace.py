"""The trace of nftables, and the process that libnftables runs in."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from driver.errors import KernelError
from driver.linux.nft_apart import NftApart
from driver.linux.nftrace import Trace
from tests.kernel.host import ip, run

if TYPE_CHECKING:
    from pathlib import Path

PORT = 9999


def test_a_dropped_packet_is_told_with_its_rule_and_nothing_is_left() -> None:
    ip("link", "set", "lo", "up")
    run("nft", "add", "table", "inet", "fw")
    run("nft", "add", "chain", "inet", "fw", "i", "{ type filter hook input priority 0; }")
    run("nft", "add", "rule", "inet", "fw", "i", "udp", "dport", str(PORT), "drop")
    before = run("nft", "list", "tables")
    with Trace([f"udp dport {PORT}"]) as trace:
        send(1)
        drop = trace.find_drop(trace.read())
    assert drop is not None
    assert (drop.table, drop.chain, drop.hook) == ("fw", "i", "input")
    assert drop.rule == f"rule 1: udp dport {PORT} drop"
    assert run("nft", "list", "tables") == before


def test_a_flow_that_never_rests_is_read_for_a_moment() -> None:
    ip("link", "set", "lo", "up")
    run("nft", "add", "table", "inet", "fw")
    run("nft", "add", "chain", "inet", "fw", "i", "{ type filter hook input priority 0; }")
    is_over = threading.Event()

    def pour() -> None:
        while not is_over.wait(0.005):
            send(1)

    pouring = threading.Thread(target=pour)
    with Trace([f"udp dport {PORT}"]) as trace:
        pouring.start()
        began = time.monotonic()
        found = trace.read()
        took = time.monotonic() - began
        is_over.set()
        pouring.join()
    assert found
    assert took < 5, "it is read for 0.3 s"


def send(count: int) -> None:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as outlet:
        for _ in range(count):
            outlet.sendto(b"", ("127.0.0.1", PORT))


def test_nothing_is_imported_from_where_root_happens_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    with NftApart() as nft:
        assert nft.run("list tables") == ""


def test_what_nft_refuses_is_told_and_the_process_goes_on() -> None:
    with NftApart() as nft:
        with pytest.raises(KernelError, match="syntax error"):
            nft.run("nonsense")
        assert nft.run("list tables") == ""
