"""The process as systemd sees it: `Type=notify`, and SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.engine.unixhttp import accepts

REPOSITORY = Path(__file__).parents[2]


def test_it_is_ready_when_its_socket_is_open_and_leaves_none_behind(tmp_path: Path) -> None:
    driver_socket = tmp_path / "pynet.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.bind(str(tmp_path / "notify"))
        notifications.settimeout(20)
        with subprocess.Popen(
            # A network of its own: a driver without networks removes rules of pynet's.
            ["unshare", "--net", sys.executable, "-m", "plugin.cli", "serve"],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "NOTIFY_SOCKET": str(tmp_path / "notify"),
                "PYNET_SOCKET": str(driver_socket),
                "PYNET_STATE_DIR": str(tmp_path / "state"),
            },
        ) as server:
            try:
                assert b"READY=1" in notifications.recv(4096)
                assert accepts(driver_socket)
                server.send_signal(signal.SIGTERM)
                assert server.wait(20) == 0
            finally:
                server.kill()
    assert not driver_socket.exists()
