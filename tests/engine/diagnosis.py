"""Break a network in known ways, ask `pynet doctor` why, and say what is wrong with its answer."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

from tests.engine.steps import pynet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.engine.site import Site

TIMEOUT = "0.5"


def ask(site: Site, *words: str) -> dict[str, Any]:
    """Return what the doctor says, and what it exits with, which agree."""
    done = pynet(site.engine, "doctor", "--json", "--timeout", TIMEOUT, *words, check=False)
    assert done.returncode in {0, 4}, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found["cause"] is None else 4)
    return found


@contextmanager
def running(site: Site, *words: str, undo: tuple[str, ...]) -> Iterator[None]:
    """Run a command of the host's, and another after the block."""
    site.engine.run(*words)
    try:
        yield
    finally:
        site.engine.run(*undo)


def parameter(site: Site, key: str, value: str) -> AbstractContextManager[None]:
    """Have a kernel parameter of the host's changed for the block."""
    before = site.engine.run("sysctl", "-n", key).stdout.strip()
    return running(site, "sysctl", "-w", f"{key}={value}", undo=("sysctl", "-w", f"{key}={before}"))


@contextmanager
def listening(site: Site, where: str, address: str, port: int) -> Iterator[None]:
    """Have something listen at one address of a place."""
    code = (
        "import socket, sys; s = socket.create_server((sys.argv[1], int(sys.argv[2])));"
        "print(flush=True); sys.stdin.read()"
    )
    argv = (*site.enter(where), sys.executable, "-c", code, address, str(port))
    server = site.engine.popen(*argv, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == "\n"
    yield
    server.result()


@contextmanager
def nothing(site: Site) -> Iterator[None]:
    """Break nothing: what is asked is wrong by itself."""
    del site
    yield


@dataclass(frozen=True)
class Case:
    """What is broken, what is asked, the cause and words of it; `bridge` is Docker's cause."""

    cause: str
    source: str
    target: str
    breaking: Callable[[Site], AbstractContextManager[None]] = nothing
    words: str = ""
    verdict: str = "dropped"
    bridge: str | None = None


def tried(site: Site, driver: str, case: Case) -> str | None:
    """Return what was wrong with what the doctor said of a case, None if nothing was."""
    try:
        with case.breaking(site):
            found = ask(site, case.source, case.target)
    except Exception as error:  # noqa: BLE001 - of the other cases something is to be learned as well
        return f"{case.source} > {case.target}, {case.cause}: {error}"
    expected = case.cause if driver == "pynet" else case.bridge or case.cause
    cause = found["cause"] or {"id": None, "text": ""}
    told = [*cause.values(), *(step["text"] for step in found["steps"])]
    is_said = driver != "pynet" or any(case.words in str(each) for each in told)
    verdicts = {case.verdict, "unanswered"} if case.verdict == "dropped" else {case.verdict}
    if (
        cause["id"] == expected
        and is_said
        and found["verdict"] in verdicts
        and not found["not_seen"]
    ):
        return None
    return f"{case.source} > {case.target}: not {expected}, {case.words!r}, {case.verdict}: {found}"


def host_end(site: Site, name: str) -> str:
    """Return the host's end of a container's first interface."""
    inside = json.loads(pynet(site.engine, "exec", name, "ip", "-json", "link").stdout)
    (index,) = (each["link_index"] for each in inside if each["ifname"] == "eth0")
    links = json.loads(site.engine.run("ip", "-json", "link").stdout)
    (end,) = (each["ifname"] for each in links if each["ifindex"] == index)
    return str(end)


def bridge_name(site: Site, network: str) -> str:
    shown = pynet(site.engine, "exec", network, "--", "sh", "-c", "echo $PYNET_BRIDGE")
    return shown.stdout.strip()
