"""Keep pynet's bridges in a firewalld zone, where firewalld runs.

firewalld rejects what is forwarded from or to an interface that it knows nothing of, in a table of
its own, so an accept in ours is not enough. It is told what Docker tells it of its own bridges
(moby, libnetwork/iptables/firewalld.go): a zone that accepts, with every bridge in it, and a policy
that accepts what goes to that zone from anywhere. Who reaches whom is decided in our own tables.

The zone has to be in firewalld's permanent configuration, for it makes none at runtime; which
interfaces are in it never is. A thread of its own does all of it: firewalld answers within
milliseconds, but may take seconds to reload, and forgets interfaces when it does or is restarted.
Where there is no system bus there is no thread.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from driver.errors import KernelError
from driver.linux.dbus import RefusedError, Service
from driver.linux.waiting import wait_readable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

ZONE, POLICY = "pynet", "pynet-forwarding"
NAME = "org.fedoraproject.FirewallD1"
RELOAD_SECONDS = 30.0
RETRY_SECONDS = 10.0  # after a failure
CLOSE_SECONDS = 2.0  # how long the end waits for what was asked last
# The managed plugin has a `/run` of its own, and sees the host's processes.
BUSES = tuple(Path(root) / "run/dbus/system_bus_socket" for root in ("/", "/proc/1/root"))

_PATH, _CONFIG = "/org/fedoraproject/FirewallD1", "/org/fedoraproject/FirewallD1/config"
_TEXT = "made by pynet, the Docker network driver, which removes it with its last network"
_ZONE_SETTINGS = {"description": ("s", _TEXT), "target": ("s", "ACCEPT")}
_POLICY_SETTINGS = {
    "description": ("s", _TEXT),
    "ingress_zones": ("as", ["ANY"]),
    "egress_zones": ("as", [ZONE]),
    "target": ("s", "ACCEPT"),
}
# What may have taken interfaces out of the zone.
_RELOADED = frozenset({"Reloaded", "NameOwnerChanged"})

log = logging.getLogger(__name__)


def find_bus() -> Path | None:
    """Return the socket of the host's system bus, None if it has none."""
    return next((each for each in BUSES if _is_socket(each)), None)


def _is_socket(path: Path) -> bool:
    """Return whether there is a visible socket: the first process may be another user's."""
    try:
        return path.is_socket()
    except PermissionError:
        return False


class Zone:
    """The interfaces that are to be in the zone, and the thread that sees to it. Thread-safe."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._wanted: frozenset[str] = frozenset()
        self._is_kept = True
        self._asked = self._answered = 0
        self._problem: str | None = None
        self._complaint = ""
        self._closing = False
        self._thread: threading.Thread | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._reloaded: Callable[[], None] = lambda: None
        self._report: Callable[[str | None], None] = lambda _: None

    def watch_reloads(self, then: Callable[[], None]) -> None:
        """Call `then`, in the thread, when firewalld may have flushed others' rules."""
        self._reloaded = then

    def watch(self, report: Callable[[str | None], None]) -> None:
        """Call `report`, in the thread, with what is wrong with the zone; None if nothing is."""
        self._report = report

    def set(self, interfaces: Collection[str]) -> None:
        """Request that the zone has these interfaces and no others; returns at once."""
        self._ask(frozenset(interfaces), is_kept=True)

    def change(self, *, add: Collection[str] = (), remove: Collection[str] = ()) -> None:
        """Request that interfaces are added to the zone or removed; returns at once."""
        with self._condition:
            self._ask((self._wanted | frozenset(add)) - frozenset(remove), is_kept=True)

    def delete(self) -> None:
        """Request that the zone is removed; returns at once."""
        self._ask(frozenset(), is_kept=False)

    def settle(self, seconds: float) -> bool:
        """Wait until what was asked for is done, or has failed, or so long; tell whether it is."""
        with self._condition:
            asked = self._asked
            return self._condition.wait_for(
                lambda: self._thread is None or self._answered >= asked, seconds
            )

    def problem(self) -> str | None:
        """Return what is wrong, None if nothing is or firewalld does not run."""
        with self._condition:
            return self._problem

    def close(self) -> None:
        """Finish what was asked for, within a while, and end the thread; the zone stays."""
        self.settle(CLOSE_SECONDS)
        with self._condition:
            self._closing = True
            thread = self._thread
        os.eventfd_write(self._wake, 1)
        if thread is not None:
            thread.join(CLOSE_SECONDS)
        if thread is None or not thread.is_alive():  # else it ends with the process
            os.close(self._wake)

    def _ask(self, wanted: frozenset[str], *, is_kept: bool) -> None:
        with self._condition:
            if (wanted, is_kept) == (self._wanted, self._is_kept) and self._problem is None:
                return
            self._wanted, self._is_kept = wanted, is_kept
            self._asked += 1
            if self._thread is None and not self._closing and find_bus() is not None:
                self._thread = threading.Thread(target=self._run, name="firewalld", daemon=True)
                self._thread.start()
        os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        """Keep a connection to the bus, reconnecting after failures, until the end."""
        while True:
            try:
                with Service(find_bus() or BUSES[0], NAME) as service:
                    self._complaint = ""
                    service.watch(_PATH, NAME)
                    service.watch(_PATH, f"{NAME}.zone")
                    self._keep(service)
            except Exception as error:  # noqa: BLE001 - logged, once
                # Whether firewalld runs is not known, so this is no fault of the networks'.
                self._complain(error)
                self._answer(self._asked, None)
            if self._closing:
                return
            self._read_wake(RETRY_SECONDS)

    def _complain(self, error: Exception) -> None:
        """Log what is wrong with the bus, once."""
        if self._complaint != (complaint := str(error)):
            self._complaint = complaint
            trace = None if isinstance(error, KernelError) else error
            text = "firewalld, if it runs, is told nothing of pynet: %s"
            log.warning(text, complaint, exc_info=trace)

    def _keep(self, service: Service) -> None:
        """Bring the zone to what is wanted, at every change, until the end."""
        while not self._closing:
            with self._condition:
                asked, wanted, is_kept = self._asked, self._wanted, self._is_kept
            problem = None
            if _is_of_this_host(service.find_process()):
                try:
                    _bring(service, wanted, is_kept=is_kept)
                except KernelError as error:
                    problem = f"firewalld rejects what passes pynet's networks: {error}"
            self._answer(asked, problem)
            signals = service.wait(self._wake, None if problem is None else RETRY_SECONDS)
            self._read_wake(0)
            if signals & _RELOADED:
                self._reloaded()

    def _answer(self, asked: int, problem: str | None) -> None:
        with self._condition:
            has_changed = self._problem != problem
            self._problem = problem
            self._answered = asked
            self._condition.notify_all()
        if has_changed:
            self._report(problem)

    def _read_wake(self, seconds: float) -> None:
        """Wait that long for a request."""
        if wait_readable([self._wake], seconds):
            os.eventfd_read(self._wake)


def _is_of_this_host(process: int | None) -> bool:
    """Return whether firewalld runs, in our network: a bus may be another host's, as in a test."""
    if process is None:
        return False
    try:
        theirs, ours = (Path(f"/proc/{each}/ns/net").stat() for each in (process, "self"))
    except OSError:  # not to be seen from here, which is no sign of another network
        return True
    return theirs.st_ino == ours.st_ino


def _bring(service: Service, wanted: frozenset[str], *, is_kept: bool) -> None:
    """Bring the zone to what is wanted; nothing wanted makes nothing.

    Raises KernelError.
    """
    (zones,) = service.call(_PATH, f"{NAME}.zone.getZones")
    if wanted and _define(service, zones):
        service.call(_PATH, f"{NAME}.reload", seconds=RELOAD_SECONDS)
    if wanted or ZONE in zones:
        _place(service, wanted)
    if not wanted and not is_kept:
        _forget(service)


def _define(service: Service, zones: Collection[str]) -> bool:
    """Write zone and policy to the permanent configuration; return whether a reload is due.

    What is there already stays as it is: it may be the operator's.
    """
    (known,) = service.call(_CONFIG, f"{NAME}.config.getZoneNames")
    if ZONE not in known:
        service.call(_CONFIG, f"{NAME}.config.addZone2", "sa{sv}", ZONE, _ZONE_SETTINGS)
    (known,) = service.call(_CONFIG, f"{NAME}.config.getPolicyNames")
    if POLICY not in known:
        service.call(_CONFIG, f"{NAME}.config.addPolicy", "sa{sv}", POLICY, _POLICY_SETTINGS)
    (policies,) = service.call(_PATH, f"{NAME}.policy.getPolicies")
    return ZONE not in zones or POLICY not in policies


def _place(service: Service, wanted: frozenset[str]) -> None:
    """Set the zone's interfaces, but for those that an operator put into another zone.

    As Docker respects that (moby, AddInterfaceFirewalld()).
    """
    (present,) = service.call(_PATH, f"{NAME}.zone.getInterfaces", "s", ZONE)
    for interface in sorted(wanted - set(present)):
        try:
            service.call(_PATH, f"{NAME}.zone.addInterface", "ss", ZONE, interface)
        except RefusedError as refusal:
            if refusal.code not in ("ZONE_CONFLICT", "ZONE_ALREADY_SET"):
                raise
    for interface in sorted(set(present) - wanted):
        service.call(_PATH, f"{NAME}.zone.removeInterface", "ss", ZONE, interface)


def _forget(service: Service) -> None:
    """Remove zone and policy from the permanent configuration if they are as we made them.

    Empty, they are of no effect until firewalld is loaded the next time, without them.
    """
    for kind, name, read in (("Policy", POLICY, "getSettings"), ("Zone", ZONE, "getSettings2")):
        (known,) = service.call(_CONFIG, f"{NAME}.config.get{kind}Names")
        if name in known:
            (path,) = service.call(_CONFIG, f"{NAME}.config.get{kind}ByName", "s", name)
            (settings,) = service.call(path, f"{NAME}.config.{kind.lower()}.{read}")
            if settings.get("description") == ("s", _TEXT):
                service.call(path, f"{NAME}.config.{kind.lower()}.remove")
