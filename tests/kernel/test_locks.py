"""The state file stays locked, so that no reader takes the driver for gone and drops its log."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from driver.state.store import FILE_NAME
from tests.kernel.libnetwork import network_call
from tests.samples import network_id

if TYPE_CHECKING:
    from tests.kernel.daemon import Daemon


def networks_seen(daemon: Daemon) -> list[str]:
    """Look into the state file as anybody would, and close it: the last to do so drops the log."""
    database = sqlite3.connect(daemon.state / FILE_NAME)
    try:
        return [row[0] for row in database.execute("SELECT id FROM network")]
    finally:
        database.close()


def test_what_is_committed_is_seen_by_others_and_outlives_their_looks(daemon: Daemon) -> None:
    daemon.start()
    assert networks_seen(daemon) == []
    daemon.call("CreateNetwork", network_call(1))
    assert networks_seen(daemon) == [network_id(1)]
    daemon.kill()
    daemon.start()
    assert networks_seen(daemon) == [network_id(1)]
