"""Look at what a host holds, so that a test can say that nothing is left; changes nothing."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine

LINK_PREFIXES = ("pn-", "pnh", "pnc")
TABLES = ("network", "pool", "endpoint", "trace")


def links(engine: Engine) -> list[str]:
    """List the links on the host."""
    found = json.loads(engine.run("ip", "-json", "link", "show").stdout)
    return sorted(link["ifname"] for link in found)


def driver_links(engine: Engine) -> list[str]:
    """List the links on the host that have a name of the driver's making."""
    return [name for name in links(engine) if name.startswith(LINK_PREFIXES)]


def rules(engine: Engine) -> str:
    """Return the whole firewall without its counters; iptables' rules are in nft's tables too."""
    return engine.run("nft", "-s", "list", "ruleset").stdout


def rows(engine: Engine) -> dict[str, int]:
    """Return how many rows each table of the driver's state file has."""
    state = f"file:{engine.state}/pynet.db?mode=ro"
    with closing(sqlite3.connect(state, uri=True)) as database:
        counts = ((table, f"SELECT count(*) FROM {table}") for table in TABLES)
        return {table: database.execute(query).fetchone()[0] for table, query in counts}


def driver_remains(engine: Engine) -> list[str]:
    """List what there is of the driver's, in words; nothing when no network is left."""
    table = [line for line in rules(engine).splitlines() if "pynet" in line]
    counts = [f"{count} rows in {name}" for name, count in rows(engine).items() if count]
    return driver_links(engine) + table + counts


def await_nothing_left(engine: Engine) -> None:
    """Wait until nothing of the driver's is left; it may answer Docker first and delete later."""
    try:
        wait_until(lambda: not driver_remains(engine), 10, "nothing left of the driver's networks")
    except TimeoutError as error:
        raise AssertionError(f"left behind: {driver_remains(engine)}") from error


@dataclass(frozen=True, slots=True)
class Holdings:
    """All that a network could leave behind, on the host and with Docker."""

    links: list[str]
    rules: str
    rows: dict[str, int]
    networks: list[str]

    @classmethod
    def of(cls, engine: Engine) -> Self:
        """Return what there is now."""
        names = engine.docker("network", "ls", "--format", "{{.Name}}").stdout.split()
        return cls(links(engine), rules(engine), rows(engine), sorted(names))


@dataclass(frozen=True, slots=True)
class Presence:
    """Everything by which a driver can be seen on a host, but for its state."""

    links: list[str]
    rules: str
    routing: str
    listening: str
    names: list[str]
    processes: list[str]

    @classmethod
    def of(cls, engine: Engine) -> Self:
        """Return what there is now."""
        plugins = engine.outside / "run/docker/plugins"
        return cls(
            links=links(engine),
            rules=rules(engine),
            routing="".join(engine.run("ip", family, "rule").stdout for family in ("-4", "-6")),
            listening=engine.run("ss", "-Hltnu").stdout,
            names=sorted(path.name for path in plugins.iterdir()) if plugins.is_dir() else [],
            processes=sorted(_command_lines(engine)),
        )


def _command_lines(engine: Engine) -> Iterator[str]:
    """Yield what runs on a host."""
    space = Path(f"/proc/{engine.init_pid}/ns/pid").readlink()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # Gone, or the machine's.
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if (entry / "ns/pid").readlink() == space:
                    yield b" ".join(words).decode()


@dataclass(frozen=True, slots=True)
class Usage:
    """What the driver's processes hold of the machine."""

    descriptors: int
    threads: int

    @classmethod
    def of(cls, engine: Engine) -> Self:
        """Return what they hold now."""
        assert engine.driver is not None
        processes = [Path(f"/proc/{pid}") for pid in engine.driver.pids]
        return cls(
            descriptors=sum(_entries(process / "fd") for process in processes),
            threads=sum(_entries(process / "task") for process in processes),
        )


def _entries(folder: Path) -> int:
    """Count what is in a process's folder; one that has just ended, iptables say, holds nothing."""
    try:
        return sum(1 for _ in folder.iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return 0
