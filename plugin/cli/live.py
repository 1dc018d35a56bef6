"""Keep a map of this host current for who watches it, at a small cost.

The kernel's counters are read whenever somebody asks. The rest is looked at when Docker or the
kernel tells of a change, and besides so seldom that it takes a hundredth of a core; while nobody
asks, never.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import docker
import msgspec
from docker.errors import DockerException
from requests.exceptions import RequestException

from driver.errors import DriverError, KernelError
from driver.linux import sysctl
from driver.linux.link_news import LinkNews
from driver.linux.traffic import read_traffic
from driver.linux.view import find_all_owners
from plugin.cli.client import ask_drift
from plugin.cli.described import describe, find_faults, list_traffic, look_into
from plugin.cli.errors import AskError
from plugin.cli.resolve import socket_path
from plugin.cli.topology import ask, read_topology
from plugin.cli.webpage import make_visible
from plugin.escape import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from driver.linux.inside import Inside
    from plugin.cli.topology import Bridge, Known, Topology

    Choose = Callable[[Iterable[Bridge]], Sequence[Bridge]]

OFTEN_SECONDS = 10.0  # between two looks that nobody has told to take
SHARE = 0.01  # of a core, for those
TOLD_SHARE = 0.2  # of a core, while Docker tells of changes all the time
NEWS_SHARE = 0.05  # of a core, while the kernel does
SOON_SECONDS = 0.3  # after what Docker tells: a start is several events
AWAY_SECONDS = 30.0  # without a question nobody watches any more
STOP_SECONDS = 5.0  # for a look that is under way, at the end
IDLE_SECONDS = 10**6  # for as long Docker may have nothing to tell
EVENTS = ["start", "die", "rename", "create", "destroy", "connect", "disconnect"]


@dataclass(frozen=True, slots=True)
class Shown:
    """A map as it was at a moment; `text` is all of it in JSON, made once."""

    version: str
    moment: float
    topology: Topology
    bridges: tuple[Bridge, ...]
    text: msgspec.Raw


@dataclass(slots=True)
class _State:
    """What the threads share."""

    shown: Shown | None = None
    error: str | None = None
    asked: float = field(default_factory=time.monotonic)
    told: bool = False  # by Docker
    news: bool = False  # of the kernel's


class LiveMap:
    """A map that is looked at again by a thread of its own, within the block.

    `choose` says which bridges are shown of all.
    """

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self._state = _State()
        self._known: Known | None = None
        self._pristine: Mapping[str, str] | None = None
        self._ended = False
        self._cost = 0.0  # of the last look, in seconds of a core
        self._wake = threading.Condition()
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._run, name="map", daemon=True)

    def __enter__(self) -> Self:
        self._cost = self._look()
        if self._state.shown is None:
            raise AskError(self._state.error or "look at this host: nothing was found")
        self._thread.start()
        for listen in (self._listen, self._listen_to_kernel):
            threading.Thread(target=listen, name="events", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._wake:
            self._ended = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def current(self) -> tuple[Shown, str | None]:
        """Return what was found last, and why nothing newer is there if something has failed."""
        with self._wake:
            self._state.asked = time.monotonic()
            self._wake.notify_all()
            shown, error = self._state.shown, self._state.error
        assert shown is not None  # noqa: S101 - seen to by __enter__
        return shown, error

    def answer(self, have: str) -> bytes:
        """Return the counters now, and the map unless the asker has it already, as JSON."""
        shown, error = self.current()
        traffic = list_traffic(shown.topology, shown.bridges, read_traffic())
        now = time.monotonic()
        found: dict[str, Any] = {
            "version": shown.version,
            "at": now,
            "age": now - shown.moment,
            "error": None if error is None else escape(error),
            "traffic": {escape(name): counted for name, counted in traffic.items()},
        }
        if have != shown.version:
            found["map"] = shown.text
        return msgspec.json.encode(found)

    def look_into(self, name: str) -> Inside | None:
        """Return what the sandbox of a container that is shown holds now, None if there is none."""
        shown = self._state.shown
        containers = shown.topology.containers.values() if shown else ()
        for each in containers:
            if escape(each.name) == name:
                if self._pristine is None:
                    self._pristine = sysctl.read_pristine()
                return look_into(each, self._pristine, find_all_owners())
        return None

    def _run(self) -> None:
        """Look again when there is reason to."""
        while True:
            with self._wake:
                began = time.monotonic()
                while not (self._ended or self._is_due(time.monotonic() - began)):
                    self._wake.wait(SOON_SECONDS if self._state.news else OFTEN_SECONDS)
                self._wake.wait_for(lambda: self._ended, self._rest())
                if self._ended:
                    return
                is_told, self._state.told, self._state.news = self._state.told, False, False
            self._cost = self._look(ask_docker=is_told or not self._listens.is_set())

    def _is_due(self, seconds: float) -> bool:
        """Return whether to look again, so long after the last look."""
        if time.monotonic() - self._state.asked >= AWAY_SECONDS:
            return False
        if self._state.told:
            return True
        share = NEWS_SHARE if self._state.news else SHARE
        least = 0 if self._state.news else OFTEN_SECONDS
        return seconds >= max(least, self._cost / share)

    def _rest(self) -> float:
        """Return how long to wait once there is reason to look: a start is several events."""
        if not (self._state.told or self._state.news):
            return 0
        return max(SOON_SECONDS, self._cost / TOLD_SHARE)

    def _look(self, *, ask_docker: bool = True) -> float:
        """Look at everything; return what it has cost."""
        before = time.process_time()
        try:
            if ask_docker or self._known is None:
                self._known = _ask_again(self._known)
            shown = self._read(self._known)
        except (AskError, DriverError, OSError) as error:
            with self._wake:
                self._state.error = str(error)
        else:
            with self._wake:
                self._state.shown, self._state.error = shown, None
        return time.process_time() - before

    def _read(self, known: Known) -> Shown:
        topology = read_topology(known)
        drift, silence = ask_drift(socket_path())
        bridges = tuple(self._choose(topology.bridges))
        found = describe(topology, bridges, find_faults(topology, bridges, drift))
        found["not_seen"] = [*topology.not_seen, *(() if topology.not_seen else silence)]
        moment = found.pop("time")
        text = msgspec.json.encode(make_visible(found))
        before = self._state.shown
        # What is as it was has the same version, so that it is not sent again.
        if before is not None and bytes(before.text) == text:
            version = before.version
        else:
            version = f"{moment}-{time.monotonic_ns()}"
        return Shown(version, time.monotonic(), topology, bridges, msgspec.Raw(text))

    def _listen(self) -> None:
        """Have Docker tell of changes, for as long as it does; then each look asks it."""
        while not self._ended:
            try:
                with closing(docker.from_env(timeout=IDLE_SECONDS)) as client:
                    stream = client.events(filters={"event": EVENTS})
                    self._listens.set()
                    self._tell()  # of what has changed before there was a stream
                    for _ in stream:
                        self._tell()
            except (DockerException, RequestException, OSError):
                pass  # it is started again, or gone: looked for again below
            self._listens.clear()
            self._tell()
            with self._wake:
                self._wake.wait_for(lambda: self._ended, OFTEN_SECONDS)

    def _tell(self) -> None:
        with self._wake:
            self._state.told = True
            self._wake.notify_all()

    def _listen_to_kernel(self) -> None:
        """Have the kernel tell of links; without that they are looked at now and then."""
        with suppress(KernelError), closing(LinkNews()) as news:
            while not self._ended:
                news.wait()
                with self._wake:
                    self._state.news = True
                    self._wake.notify_all()


def _ask_again(before: Known | None) -> Known:
    """Return what Docker and the driver tell now; raises AskError if Docker no longer does.

    Without its names a map says little: then the last one is worth more.
    """
    known = ask()
    if before is not None and before.networks and not known.networks:
        raise AskError(f"what is shown is old; not seen: {'; '.join(known.not_seen)}")
    return known
