"""Give a benchmark its stage: a private engine with pynet, and the peers' programs beside it."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack, contextmanager
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

from tests.engine.driver import REPOSITORY
from tests.engine.engine import Engine
from tests.engine.rootfs import ensure_root

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Steps = list[tuple[str, float]]

SUITE = "forky"
PEERS = "peers"


@contextmanager
def private_engine(env: Mapping[str, str] | None = None) -> Iterator[Engine]:
    """Lend an engine with pynet running and the peers' programs in /run/peers."""
    peers = ensure_root(PEERS)
    with Engine(SUITE) as engine:
        engine.run("mkdir", "/run/peers")
        engine.run("mount", "--bind", "-o", "ro", str(peers), "/run/peers")
        engine.start_driver(env=env)
        yield engine


class Worker:
    """The program that joins and leaves networks on the engine's host; see `bench.worker`."""

    def __init__(self, engine: Engine) -> None:
        self._lives = 0
        self._command = engine.popen(
            sys.executable,
            "-I",
            str(REPOSITORY / "bench/worker.py"),
            f"{engine.folder}/mnt",
            stdin=PIPE,
            stdout=PIPE,
        )

    def ask(self, do: str, **what: Any) -> Steps:
        """Have something done; return the steps with the seconds of each."""
        assert self._command.stdin is not None
        assert self._command.stdout is not None
        self._command.stdin.write(json.dumps({"do": do, **what}) + "\n")
        self._command.stdin.flush()
        answer = self._command.stdout.readline()
        if not answer:
            raise ChildProcessError(f"{do} {what}: the worker ended; see what it wrote")
        return [(name, seconds) for name, seconds in json.loads(answer)]

    def life(self, kind: str, number: int = 0) -> Steps:
        """Have a container join and leave, with one published port."""
        self._lives += 1
        return self._at("life", kind, number, self._lives)

    def begin(self, kind: str, number: int) -> Steps:
        """Have a container join and stay."""
        return self._at("begin", kind, number, 0)

    def end(self, kind: str, number: int) -> Steps:
        """Have it leave."""
        return self._at("end", kind, number, 0)

    def idle(self, kind: str, number: int) -> Steps:
        """Make a call about one that stays, for which there is nothing to do."""
        return self._at("idle", kind, number, 0)

    def _at(self, do: str, kind: str, number: int, life: int) -> Steps:
        return self.ask(do, kind=kind, number=number, ports=1, life=life)

    def close(self) -> None:
        """End it."""
        self._command.communicate()


@contextmanager
def worker_on(engine: Engine) -> Iterator[Worker]:
    """Lend a worker on the engine's host."""
    with ExitStack() as stack:
        worker = Worker(engine)
        stack.callback(worker.close)
        yield worker
