"""Attackers and listeners in the places of a site: what they send, and what they hear of it.

Nothing waits for time to pass. A `Mark` is in all that one attempt sends; afterwards something goes
that must arrive, and what has not been heard by then does not come any more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING, Any, Self

from tests.engine import frames, steps
from tests.engine.site import HOST, LAN, LONG, Site

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from tests.engine.command import Command
    from tests.engine.engine import Engine

ATTACKER = str(Path(__file__).with_name("attacker.py"))
UPLINK = "uplink"
SPARE_PORT = 9
_numbers = count(1)


def new_mark() -> bytes:
    """Return bytes that nothing else carries."""
    return b"mark%04d" % next(_numbers)


@dataclass(frozen=True)
class Heard:
    """One thing that was heard: where, and the frame or the data."""

    where: str
    data: bytes


class Actor:
    """A process in a place's network that sends whatever it is told, and hears everything."""

    def __init__(self, name: str, process: Command) -> None:
        self.name = name
        self._process = process

    def do(self, verb: str, **words: Any) -> Any:
        """Have it do something; return what it answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": verb, **words}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise ChildProcessError(f"{self.name}: the attacker ended at {verb}")
        said = json.loads(line)
        if "error" in said:
            raise TimeoutError(f"{self.name} {verb}: {said['error']}")
        return said["answer"]

    def listen(self, *interfaces: str) -> None:
        """Hear what comes in there."""
        self.do("listen", interfaces=interfaces)

    def serve(self, address: str, port: int) -> None:
        """Answer there by TCP and UDP."""
        self.do("serve", address=address, port=port)

    def send(self, interface: str, *sent: bytes) -> None:
        """Send frames."""
        self.do("send", frames=[(interface, frame.hex()) for frame in sent])

    def say(self, address: str, port: int, data: bytes) -> None:
        """Send a datagram as any program does."""
        self.do("say", address=address, port=port, data=data.hex())

    def hear(self, *until: bytes) -> list[Heard]:
        """Return what was heard since the last time, once these have been."""
        got = self.do("hear", until=[each.hex() for each in until], timeout=LONG)
        return [Heard(where, bytes.fromhex(data)) for where, data in got]

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@dataclass(frozen=True)
class Port:
    """An interface that an attacker has, and what is beyond it."""

    actor: Actor
    interface: str
    mac: str
    addresses: dict[int, str]
    gateway_mac: str
    gateways: dict[int, str]

    def send(self, *packets: bytes, to: str = "") -> None:
        """Send IP packets in frames of the attacker's own, to the gateway or to another MAC."""
        target = to or self.gateway_mac
        self.frames(*(frames.carry(target, self.mac, packet) for packet in packets))

    def frames(self, *sent: bytes) -> None:
        """Send frames."""
        self.actor.send(self.interface, *sent)

    def claim(self, address: str) -> None:
        """Have the gateway know an address, anybody's, by the attacker's MAC."""
        gateway = self.gateways[6 if ":" in address else 4]
        if ":" in address:
            asking = frames.neighbour_solicitation(address, gateway, self.mac, gateway)
            self.send(asking)
        else:
            zero = "00:00:00:00:00:00"
            asking = frames.arp(frames.REQUEST, self.mac, address, zero, gateway)
            self.frames(frames.ethernet(frames.BROADCAST, self.mac, frames.ARP, asking))


class Attack:
    """The attackers of a site, by the names of its places; each hears all that comes in there."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.engine = site.engine
        self._actors: dict[str, Actor] = {}
        self._served: tuple[str, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for actor in self._actors.values():
            actor.close()

    def actor(self, place: str) -> Actor:
        """Return the attacker of a place."""
        if place not in self._actors:
            process = self.site.start(place, ATTACKER, stdin=PIPE, stdout=PIPE)
            actor = self._actors[place] = Actor(place, process)
            if place != HOST:
                actor.listen(*(link["ifname"] for link in self._links(place)))
        return self._actors[place]

    def serve(self, address: str, port: int) -> None:
        """Answer on the host there, as a program of the host's would."""
        self.actor(HOST).serve(address, port)
        self._served = self._served or (address, port)

    def port(self, place: str, network: str = "") -> Port:
        """Return a container's interface on a network, or the neighbour's way to the host."""
        if place == LAN:
            name, bridge = UPLINK, UPLINK
        else:
            joined = steps.settings(self.engine, place)["Networks"]
            network = network or next(iter(joined))
            name, bridge = "", bridge_of(self.engine, network)
            wanted = {joined[network]["IPAddress"], joined[network]["GlobalIPv6Address"]} - {""}
        for link in self._links(place):
            addresses = _addresses(link)
            if link["ifname"] == name or (place != LAN and wanted & set(addresses.values())):
                beyond = next(each for each in self._links(HOST) if each["ifname"] == bridge)
                return Port(
                    self.actor(place),
                    link["ifname"],
                    link["address"],
                    addresses,
                    beyond["address"],
                    _addresses(beyond),
                )
        raise LookupError(f"{place} has no interface on {network}")

    def settle(self, *senders: Port, listeners: Iterable[Port] = ()) -> dict[str, list[Heard]]:
        """Return what was heard at each place, when all that was sent has arrived or never will.

        Every sender hears the answer to a ping of its own; a program of the host answers what came
        to it; then the host says something to every listener, behind all that it had to deliver.
        """
        heard: dict[str, list[Heard]] = {}
        for sender in senders:
            mark = new_mark()
            version = 4 if 4 in sender.addresses and 4 in sender.gateways else 6
            sender.send(frames.ping(sender.addresses[version], sender.gateways[version], mark))
            heard.setdefault(sender.actor.name, []).extend(sender.actor.hear(mark))
        host = self.actor(HOST)
        if self._served:
            mark = new_mark()
            host.say(*self._served, mark)
            heard[HOST] = host.hear(mark)
        for port in (*senders, *listeners):
            # By each family: a packet may wait until its neighbour is found, the next behind it.
            marks = {version: new_mark() for version in port.addresses}
            for version, mark in marks.items():
                host.say(port.addresses[version], SPARE_PORT, mark)
            heard.setdefault(port.actor.name, []).extend(port.actor.hear(*marks.values()))
        return heard

    def _links(self, place: str) -> list[dict[str, Any]]:
        """Return the interfaces of a place that are up, with their addresses."""
        command = ("ip", "-json", "address", "show", "up")
        if place == LAN:
            shown = self.engine.lan_run(*command).stdout
        else:
            shown = self.engine.run(*self.site.enter(place), *command).stdout
        return [link for link in json.loads(shown) if link and link["ifname"] != "lo"]


def was_heard(heard: Mapping[str, Sequence[Heard]], place: str, mark: bytes) -> bool:
    """Tell whether a mark was heard at a place, other than in an error that quotes its packet."""
    found = (each for each in heard.get(place, ()) if mark in each.data)
    return any(" " in each.where or not frames.is_error(each.data) for each in found)


def bridge_of(engine: Engine, network: str) -> str:
    """Return the name of a network's bridge on the host."""
    found = engine.client.networks.get(network)
    named = (found.attrs["Options"] or {}).get("com.docker.network.bridge.name")
    prefix = "pn" if found.attrs["Driver"].startswith("pynet") else "br"
    return str(named or f"{prefix}-{str(found.id)[:12]}")


def _addresses(link: dict[str, Any]) -> dict[int, str]:
    """Return an interface's first address of each family, its own: no router has told it."""
    found: dict[int, str] = {}
    for entry in link["addr_info"]:
        if entry["scope"] == "global" and not entry.get("dynamic"):
            found.setdefault(4 if entry["family"] == "inet" else 6, entry["local"])
    return found
