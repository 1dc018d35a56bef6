"""The server process: settings, objects, gunicorn, logging.

The only place where objects are made. gunicorn forks one worker that owns all state and serves
with threads; its parent holds the sockets, so that requests wait while a worker starts.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import logging
import os
import resource
import signal
import time
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, cast

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from driver.counts import Counts
from driver.errors import Busy, Conflict, DriverError, KernelError, StoreError
from driver.health import Health
from driver.lock import Request
from plugin.log import LineFormatter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from wsgiref.types import WSGIApplication

    from gunicorn.workers.base import Worker

    from driver.driver import BridgeDriver
    from driver.linux.linux import LinuxKernel
    from plugin.settings import Settings
    from plugin.sockets import Names

THREADS = 64
CONNECTIONS = 4096  # served or waiting for a thread; more wait in the socket
STARTING_SECONDS = 5.0  # after which requests wait no longer for a driver that is restoring
STAND_DOWN_SECONDS = 2.0  # how long the end waits for what is still under way
GRACE_SECONDS = 8  # a managed plugin is killed 10 s after SIGTERM
STARTING = "starting"  # the key of that in what health tells
LOCK_NAME = "lock"
RELAY_NAME = "relay.sock"
STDOUT = 1
LOCK_SECONDS = 3.0
PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
M_ARENA_MAX = -8  # malloc/malloc.h of glibc

log = logging.getLogger("pynet")


def serve(settings: Settings, names: Names) -> None:
    """Serve on the open sockets until SIGTERM.

    Two drivers cannot share the host's links and rules. One that finds another at work answers
    every request with that, rather than end: Docker and systemd would start it again at once, for
    ever, and the words would be in no answer to a user.
    """
    _raise_descriptor_limit()
    _log_what_is_shown()
    _share_memory()
    with _only_one(settings.state_dir) as other:
        refusal = other or _open_second(settings.second_socket, names)
        if refusal is not None:
            log.error("every request is refused: %s", refusal)
        Server(settings, names, refusal).run()


def _open_second(path: Path | None, names: Names) -> str | None:
    """Open the driver's second name; return why the driver cannot work if it is taken."""
    if path is None:
        return None
    try:
        names.open(path)
    except Conflict:
        return (
            f"another driver answers on {path}, which is left to it; two drivers cannot share this "
            "host's networks: stop that one, then start this one again"
        )
    except KernelError as error:
        log.error("going on without a second name: %s", error)  # noqa: TRY400 - the words say it
    return None


class Server(BaseApplication):
    """gunicorn with pynet's settings in place of a file's."""

    def __init__(self, settings: Settings, names: Names, refusal: str | None) -> None:
        self._settings = settings
        self._names = names
        self._refusal = refusal
        self.starting: Future[BridgeDriver] | None = None
        super().__init__()

    def run(self) -> None:
        """Run gunicorn's master until it is told to end."""
        Master(self, self._names).run()

    def load_config(self) -> None:
        """Set what differs from gunicorn's defaults."""
        for name, value in {
            "bind": [f"fd://{descriptor}" for descriptor in self._names.descriptors],
            "workers": 1,
            "worker_class": "plugin.worker.Worker",
            "threads": THREADS,
            "worker_connections": CONNECTIONS,
            "keepalive": 0,  # a kept connection that breaks is retried with an empty body
            "graceful_timeout": GRACE_SECONDS,
            "timeout": 0,  # the worker owns the state: killing it for being busy does not help
            "worker_tmp_dir": _scratch(self._settings.state_dir),
            "control_socket_disable": True,  # gunicorn 25 and later would open one of its own
            "logconfig_dict": log_config(self._settings.log_level),
            "post_fork": _die_with_parent,
            "worker_exit": _end,
        }.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> WSGIApplication:  # type: ignore[override]  # gunicorn's is of its own kind
        """Return the application at once; the driver starts beside it, and requests wait for it."""
        from plugin.api import create_app  # noqa: PLC0415 - heavy: imported when the socket is open

        health, counts = Health(), Counts()
        if self._refusal is not None:
            health.report("refusal", self._refusal)
            return create_app(partial(_refuse, self._refusal), health)
        health.report(STARTING, "the driver is starting and restores its networks")
        starting: Future[BridgeDriver] = Future()
        self.starting = starting
        give_up_at = time.monotonic() + STARTING_SECONDS
        start = partial(_start_driver, self._settings, starting, counts, health)
        Thread(target=start, daemon=True).start()
        return create_app(partial(_await, starting, give_up_at), health, counts)


class Master(Arbiter):
    """gunicorn's master, with one worker for ever: two would own one state.

    The process that made the sockets' files removes them.
    """

    def __init__(self, app: Server, names: Names) -> None:
        super().__init__(app)
        self.systemd = True  # gunicorn's word for "the names are systemd's"
        self._names = names

    def stop(self, graceful: bool = True) -> None:  # noqa: FBT001, FBT002 - gunicorn's signature
        """Let no more requests in, then wait for those that are."""
        self._names.remove()
        super().stop(graceful)

    def handle_hup(self) -> None:
        """Ignore what has gunicorn start its worker anew, beside the one that still serves."""
        self._ignore(signal.SIGHUP)

    def handle_ttin(self) -> None:
        """Ignore what has gunicorn start one more worker."""
        self._ignore(signal.SIGTTIN)

    def handle_ttou(self) -> None:
        """Ignore what has gunicorn end a worker."""
        self._ignore(signal.SIGTTOU)

    def handle_usr2(self) -> None:
        """Ignore what has gunicorn start a second master with a worker of its own."""
        self._ignore(signal.SIGUSR2)

    def handle_winch(self) -> None:
        """Ignore what has gunicorn end all workers."""
        self._ignore(signal.SIGWINCH)

    def _ignore(self, number: signal.Signals) -> None:
        log.warning("%s is ignored: the driver has one process that owns its state", number.name)


def _scratch(state_dir: Path) -> str | None:
    """Return where gunicorn makes a file that it needs; None leaves it to gunicorn."""
    return str(state_dir) if os.access(state_dir, os.W_OK | os.X_OK) else None


def _refuse(reason: str) -> BridgeDriver:
    raise Conflict(reason)


def _await(starting: Future[BridgeDriver], give_up_at: float) -> BridgeDriver:
    """Return the driver as soon as it has restored the networks; raises Busy if that takes long."""
    try:
        return starting.result(max(give_up_at - time.monotonic(), 0))
    except TimeoutError:
        raise Busy("the driver is starting and restores its networks; try again") from None


def _start_driver(
    settings: Settings, starting: Future[BridgeDriver], counts: Counts, health: Health
) -> None:
    """Build the driver and restore the networks.

    A state file that cannot be used has every request refused with that. Whatever else makes a
    start impossible ends the process.
    """
    from driver.linux.linux import LinuxKernel  # noqa: PLC0415 - heavy, and not needed to answer
    from driver.linux.relay import RelayClient  # noqa: PLC0415 - the same

    gc.freeze()  # see below: what was imported stays, too
    try:
        relay = RelayClient(
            settings.relay_socket or settings.state_dir / RELAY_NAME,
            health,
            starts=settings.relay_socket is None,
        )
        kernel = LinuxKernel(health, drops_forwarded=not settings.ip_forward_no_drop, relay=relay)
        driver = _build(settings, kernel, counts, health)
    except StoreError as error:
        refusal = StoreError(f"{error}; mend that, then restart the driver")
        log.error("every request is refused: %s", refusal)  # noqa: TRY400 - the words say it all
        health.report(STARTING, str(refusal))
        starting.set_exception(refusal)
        return
    except Exception as error:
        if isinstance(error, DriverError):
            log.error("cannot start: %s", error)  # noqa: TRY400 - the words say it all
        else:
            log.exception("cannot start, in a way that pynet does not expect")
        logging.shutdown()
        os._exit(Arbiter.WORKER_BOOT_ERROR)
    # What is there by now stays: each full collection would walk through all of it, 50 ms, and what
    # pyroute2 decodes brings one every few calls.
    gc.freeze()
    health.clear(STARTING)
    starting.set_result(driver)


def _build(settings: Settings, kernel: LinuxKernel, counts: Counts, health: Health) -> BridgeDriver:
    from driver.driver import BridgeDriver  # noqa: PLC0415
    from driver.state.recovery import open_state  # noqa: PLC0415
    from driver.sysctl.policy import SysctlPolicy  # noqa: PLC0415

    policy = SysctlPolicy(settings.default_sysctls, settings.sysctl_allow)
    store = open_state(settings.state_dir, kernel, health)
    driver = BridgeDriver(store, kernel, policy, counts, health)
    driver.start()
    return driver


def log_config(level: str) -> dict[str, Any]:
    """Return the configuration of logging: plain lines on standard output."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {"()": LineFormatter, "fmt": "%(asctime)s %(levelname)s %(message)s"},
        },
        "handlers": {
            "stdout": {
                # By factory: from Python 3.12 on a queue handler by class is made otherwise.
                "()": "plugin.log.QueuedHandler",
                "descriptor": STDOUT,
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


def _log_what_is_shown() -> None:
    """Look nothing up for a line of the log that no line shows: logging's HOWTO, Optimization."""
    logging._srcfile = None  # noqa: SLF001 - as documented
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def _raise_descriptor_limit() -> None:
    """Allow as many descriptors as the hard limit does: a published port is a bound socket."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _share_memory() -> None:
    """Use one malloc arena for all threads, which the interpreter's lock serialises anyway.

    glibc gives each a place of its own, up to eight a core. What is free in one is of no use to the
    others: 4 MB of 46, and 2 more after 10,000 lives. See mallopt(3); other C libraries have none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


def _die_with_parent(_: Arbiter, worker: Worker) -> None:
    """Kill the worker when its parent dies: alone it would keep the socket and the state."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != worker.ppid:  # killed before we asked: prctl(2) tells nothing of that
        os._exit(0)


def _end(_: Arbiter, worker: Worker) -> None:
    """Leave in the kernel what running containers need, and finish background work."""
    server = cast("Server", worker.app)
    starting = server.starting
    if starting is None or (starting.done() and starting.exception() is not None):
        return
    driver = starting.result()
    end = Request("the end of the driver", begin_by=time.monotonic() + STAND_DOWN_SECONDS)
    with driver.serving(end):
        driver.shutdown()
    driver.close()


@contextmanager
def _only_one(state_dir: Path) -> Iterator[str | None]:
    """Hold the state folder's lock, so that two drivers never work on one state.

    Yields why that is not possible: another driver has it, or the folder is of no use.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(state_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        reason = f"use the state folder {state_dir}: {error.strerror}"
        yield f"{reason}; mend that, then restart the driver"
        return
    try:
        if _lock(descriptor):
            yield None
        else:
            yield (
                f"another pynet is using the state folder {state_dir}: stop that one, then start "
                "this one again"
            )
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Take the lock, leaving a predecessor that is just ending the time to do so."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True
