"""Run the driver as a process: open the socket, build the objects once, restore, serve.

The only place where objects are made. gunicorn forks one worker that owns all state and serves
with threads; its parent holds the socket, so that requests wait while a worker starts.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import resource
import signal
import socket
import time
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from driver.errors import Conflict, DriverError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flask import Flask
    from gunicorn.workers.base import Worker

    from driver.bridge import BridgeDriver
    from plugin.settings import Settings

THREADS = 32
GRACE_SECONDS = 8  # a managed plugin is killed 10 s after SIGTERM
LOCK_NAME = "lock"
LOCK_SECONDS = 3.0
PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h

log = logging.getLogger("pynet")


def serve(settings: Settings) -> None:
    """Serve until SIGTERM; raises Conflict if another pynet has the socket or the state."""
    _raise_descriptor_limit()
    with _only_one(settings.state_dir):
        _clear_socket(settings.socket)
        Server(settings).run()


class Server(BaseApplication):
    """gunicorn with pynet's settings in place of a file's."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        """Set what differs from gunicorn's defaults."""
        for name, value in {
            "bind": f"unix:{self._settings.socket}",
            "umask": 0o177,  # the socket is 0600: whoever opens it is root on this host
            "workers": 1,
            "worker_class": "gthread",
            "threads": THREADS,
            "keepalive": 0,  # a kept connection that breaks is retried with an empty body
            "graceful_timeout": GRACE_SECONDS,
            "timeout": 0,  # the worker owns the state: killing it for being busy helps nobody
            "control_socket_disable": True,  # gunicorn 25 and later would open one of its own
            "logconfig_dict": log_config(self._settings.log_level),
            "post_fork": _die_with_parent,
            "worker_exit": _close,
        }.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Flask:  # type: ignore[override]  # Flask is a WSGI application
        """Return the application at once; the driver starts beside it, and requests wait for it."""
        from plugin.app import create_app  # noqa: PLC0415 - imported when the socket is open

        starting: Future[BridgeDriver] = Future()
        Thread(target=_start_driver, args=(self._settings, starting), daemon=True).start()
        app = create_app(starting.result)
        app.extensions["pynet"] = starting
        return app


def _start_driver(settings: Settings, starting: Future[BridgeDriver]) -> None:
    """Build the driver and restore the networks; what makes that impossible ends the process."""
    from driver.bridge import BridgeDriver  # noqa: PLC0415 - heavy, and not needed to answer
    from driver.kernel.linux import LinuxKernel  # noqa: PLC0415
    from driver.store import Store  # noqa: PLC0415

    try:
        driver = BridgeDriver(Store(settings.state_dir), LinuxKernel())
        driver.restore()
    except Exception as error:
        if isinstance(error, DriverError):
            log.error("cannot start: %s", error)  # noqa: TRY400 - the words say it all
        else:
            log.exception("cannot start, in a way that pynet does not expect")
        logging.shutdown()
        os._exit(Arbiter.WORKER_BOOT_ERROR)
    starting.set_result(driver)


def log_config(level: str) -> dict[str, Any]:
    """Return the configuration of logging: plain lines on standard output."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(message)s"}},
        "handlers": {
            "stdout": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stdout",
                "formatter": "line",
            }
        },
        "root": {"level": "WARNING", "handlers": ["stdout"]},
        "loggers": {
            **{name: {"level": level} for name in ("pynet", "driver", "plugin")},
            "gunicorn.error": {"level": "WARNING", "propagate": True, "handlers": []},
            "gunicorn.access": {"level": "CRITICAL", "propagate": False, "handlers": []},
        },
    }


def _raise_descriptor_limit() -> None:
    """Allow as many descriptors as the hard limit does: a published port is a bound socket."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _die_with_parent(_: Arbiter, __: Worker) -> None:
    """Have the worker killed when its parent is: alone it would keep the socket and the state."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _close(_: Arbiter, worker: Worker) -> None:
    """Finish background work when the worker ends."""
    app = getattr(worker, "wsgi", None)
    if app is not None:
        app.extensions["pynet"].result().close()


@contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """Hold the state folder's lock, so that two drivers never work on one state."""
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(state_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"use the state folder {state_dir}: {error.strerror}") from error
    try:
        _lock(descriptor, state_dir)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, state_dir: Path) -> None:
    """Take the lock, leaving a predecessor that is just ending the time to do so."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                attempt = f"use the state folder {state_dir}"
                raise Conflict(f"{attempt}: another pynet is using it") from error
            time.sleep(0.02)
        else:
            return


def _clear_socket(path: Path) -> None:
    """Make room for the socket: its folder, and away with one that a killed server left."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            logging.getLogger("pynet").info("removing the stale socket %s", path)
            path.unlink(missing_ok=True)
            return
    raise Conflict(f"open the socket {path}: another driver is answering on it")
