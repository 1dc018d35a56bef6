"""`pynet capture`: the packets of a container, hop by hop, on the terminal or for Wireshark."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
import docker
from docker.errors import DockerException
from requests.exceptions import RequestException

from driver.diagnosis.facts import HOST
from driver.errors import KernelError
from plugin.capture.describe import describe
from plugin.capture.filters import compile_filter
from plugin.capture.output import CaptureFile
from plugin.capture.places import PAIR, SANDBOX, UPLINK, WHERE, find_host_places, find_places
from plugin.capture.taps import Taps
from plugin.cli import Failure
from plugin.cli.errors import AskError
from plugin.cli.output import print_json, print_line
from plugin.cli.resolve import complete_names, socket_path
from plugin.cli.sandboxes import UnknownName, find_sandboxes
from plugin.cli.seconds import Seconds
from plugin.cli.signals import ending

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from plugin.capture.filters import PacketFilter
    from plugin.capture.taps import Packet, Place

WHOLE, HEADERS = 262_144, 128  # bytes of a packet that are taken
IDLE_SECONDS = 10**6  # for as long Docker may have nothing to tell
LOOK_SECONDS = 1.0  # how often a sandbox is looked for while Docker tells of nothing
_UNITS = {"k": 10**3, "M": 10**6, "G": 10**9}


class Size(click.ParamType[int]):
    """A number of bytes, with k, M or G for thousands, millions, thousands of millions."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the number; fails for anything else."""
        text = str(value)
        unit = _UNITS.get(text[-1:], 1)
        number = text[:-1] if unit > 1 else text
        if not (number.isascii() and number.isdecimal() and int(number)):
            self.fail(f"{text!r} is no size such as 100M", param, ctx)
        return int(number) * unit


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("name", metavar="CONTAINER|NETWORK|host", shell_complete=complete_names)
@click.argument("words", metavar="[FILTER]...", nargs=-1)
@click.option("-w", "--write", metavar="FILE|-", help="Write pcapng, `-` to standard output.")
@click.option("--where", type=click.Choice(WHERE), help="At which hops; a network: its pairs.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N packets.")
@click.option("--for", "seconds", type=Seconds(0.1), metavar="SECONDS", help="End then.")
@click.option("--size", type=Size(), metavar="SIZE", help="Begin a new FILE at that size: 100M.")
@click.option("--files", type=click.IntRange(1), metavar="N", help="Keep the last N files.")
@click.option("--headers", is_flag=True, help=f"Only the first {HEADERS} bytes of each packet.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a packet.")
def capture(  # noqa: PLR0913 - the options of the command line
    name: str,
    words: tuple[str, ...],
    *,
    write: str | None,
    where: str | None,
    count: int | None,
    seconds: float | None,
    size: int | None,
    files: int | None,
    headers: bool,
    as_json: bool,
) -> None:
    """Capture packets at a container's hops, on this host, whatever network it is on.

    FILTER is in tcpdump's language. By hop: `sandbox`, the interfaces in the container; `pair`, the
    host's end of them; `bridge`; `uplink`, where the host's default route goes; or all of these in
    one file, each an interface of its own. Also a namespace of `ip netns`, or `pid:N`.

    Nothing is put into the container. One that starts again is followed by its name. On a terminal
    a packet is a line, without its payload.

    \b
    Examples:
      pynet capture web tcp port 80
      pynet capture web --where all -w web.pcapng
      ssh server pynet capture web -w - | wireshark -k -i -
      pynet capture back -w back.pcapng --size 100M --files 5
      pynet capture host udp port 53 --count 10

    Needs root.
    """
    if os.geteuid() != 0:
        raise Failure("capture packets: you must be root")
    _refuse(write, size=size, files=files, as_json=as_json)
    find = partial(_find, name, where)
    places = find()
    text = " ".join(words)
    length = HEADERS if headers else WHOLE

    @cache
    def wanted(is_raw: bool, is_hosts: bool) -> PacketFilter | None:  # noqa: FBT001 - by cache
        words = _without_own_connection(text) if is_hosts else text
        return compile_filter(words, length, is_raw=is_raw) if words or headers else None

    if text:
        wanted(False, False)  # noqa: FBT003 - before anything is opened: it may be wrong
    with ExitStack() as stack:
        taps = Taps(lambda place: wanted(place.is_raw, place.namespace is None))
        stack.enter_context(closing(taps))
        show: Callable[[Packet], None] = _print_json if as_json else _print_packet
        keep = None
        if write is not None:
            keep = CaptureFile(write, text, length, size=size, files=files)
            stack.callback(keep.close)
            show = keep.write
        if not places:
            print_line(f"{name} does not run; waiting for it", err=True)
        done = _run(
            taps,
            places,
            find,
            show,
            count=count,
            seconds=seconds,
            flush=keep.flush if keep else None,
        )
        print_line(f"{done} packets, {taps.lost} lost", err=True)


def _refuse(write: str | None, *, size: int | None, files: int | None, as_json: bool) -> None:
    """Raise UsageError for options that cannot be meant together."""
    if write is None and (size or files):
        raise click.UsageError("--size and --files are for --write")
    if write == "-" and (size or files):
        raise click.UsageError("--size and --files need a file to write")
    if write is not None and as_json:
        raise click.UsageError("one of --write and --json")
    if size and not Path(write or "").name:
        raise click.UsageError(f"{write!r} is no name of a file")
    if files and not size:
        raise click.UsageError("--files needs --size")
    if write == "-" and sys.stdout.isatty():
        raise click.UsageError("-w - is for a pipe: pcapng is not for a terminal")


def _find(name: str, where: str | None) -> list[Place]:
    """Return the places that are meant by now; raises AskError if nothing has the name."""
    if name == HOST:
        if where not in {None, UPLINK}:
            raise click.UsageError("the host has no hops: it has its interfaces, or --where uplink")
        return find_places((), UPLINK) if where == UPLINK else find_host_places()
    found = find_sandboxes(name, socket_path())
    return find_places(found.sandboxes, where or (PAIR if found.is_network else SANDBOX))


def _run(  # noqa: PLR0913 - what there is to a run
    taps: Taps,
    places: list[Place],
    find: Callable[[], list[Place]],
    show: Callable[[Packet], None],
    *,
    count: int | None,
    seconds: float | None,
    flush: Callable[[], None] | None,
) -> int:
    """Show packets until there are enough, the time is over or a signal comes; return how many."""
    done = 0
    end = None if seconds is None else time.monotonic() + seconds
    taps.tap(places)
    if flush:
        flush()  # who sees the head knows that it has begun
    with _told_of_changes(taps) as is_changed, ending() as ended:
        try:
            while not ended.is_set():
                left = LOOK_SECONDS if end is None else end - time.monotonic()
                packets = taps.read(max(0.0, min(left, LOOK_SECONDS)))
                if left <= 0:
                    packets += taps.finish()
                for packet in packets[: None if count is None else count - done]:
                    show(packet)
                    done += 1
                if flush and packets:
                    flush()
                if done == count or left <= 0:
                    return done
                if is_changed():
                    _look_again(taps, find)
            for packet in taps.finish():
                show(packet)
                done += 1
        except BrokenPipeError:  # whoever reads has enough
            sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - or Python says so at its end
    return done


def _look_again(taps: Taps, find: Callable[[], list[Place]]) -> None:
    """Take packets where the name is by now; it may have gone, and come again."""
    try:
        taps.tap(find())
    except UnknownName:
        taps.tap(())  # a socket would keep the sandbox alive
    except (AskError, KernelError) as error:  # Docker is silent, or something went just now
        print_line(f"looking for it again: {error}", err=True)


@contextmanager
def _told_of_changes(taps: Taps) -> Iterator[Callable[[], bool]]:
    """Listen to Docker for containers that start, end, connect; lend whether any did since.

    While Docker is down the answer is yes once a second.
    """
    reader, writer = socket.socketpair()
    reader.setblocking(False)  # noqa: FBT003
    listens = threading.Event()
    listens.set()

    def listen() -> None:
        try:
            client = docker.from_env(timeout=IDLE_SECONDS)
            events = ["start", "die", "connect", "disconnect"]
            for _ in client.events(filters={"event": events}):
                writer.send(b"!")
        except (DockerException, RequestException, OSError):
            pass  # then it is looked at each second
        finally:
            listens.clear()

    looked = time.monotonic()

    def is_changed() -> bool:
        nonlocal looked
        with suppress(BlockingIOError):
            if reader.recv(4096):
                return True
        if listens.is_set() or time.monotonic() - looked < LOOK_SECONDS:
            return False
        looked = time.monotonic()
        return True

    threading.Thread(target=listen, name="events", daemon=True).start()
    taps.watch(reader)
    yield is_changed


def _without_own_connection(text: str) -> str:
    """Return the filter without the SSH connection by which the capture itself may go away."""
    match os.environ.get("SSH_CONNECTION", "").split():
        case [client, port, server, own]:
            client, server = client.partition("%")[0], server.partition("%")[0]
            ours = f"not (tcp and host {client} and port {port} and host {server} and port {own})"
            return f"({text}) and {ours}" if text else ours
    return text


def _print_packet(packet: Packet) -> None:
    moment = datetime.fromtimestamp(packet.nanoseconds // 1_000_000_000)  # noqa: DTZ006 - for people
    micros = packet.nanoseconds // 1000 % 1_000_000
    way = "out" if packet.is_outgoing else "in "
    print_line(f"{moment:%H:%M:%S}.{micros:06} {packet.place.label} {way} {describe(packet)}")


def _print_json(packet: Packet) -> None:
    found = describe(packet)
    print_json(
        {
            "time": packet.nanoseconds / 1e9,
            "interface": packet.place.label,
            "direction": "out" if packet.is_outgoing else "in",
            "length": packet.length,
            "protocol": found.protocol,
            "source": found.source or None,
            "source_port": found.source_port,
            "destination": found.destination or None,
            "destination_port": found.destination_port,
            "text": found.text,
        },
        indent=None,
    )
