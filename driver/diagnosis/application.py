"""Look at the ends of a flow: its name, whether it runs, its port, who listens; no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from driver.diagnosis.facts import HOST, NO_SERVER, NO_SUCH_NAME, place_of
from driver.diagnosis.steps import IPV4, OK, RESOLVER, UNKNOWN, WARNING, Step, fault
from driver.model import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from driver.diagnosis.facts import Facts, Listener, View
    from driver.model import IPAddress


def look_up(facts: Facts) -> Iterator[Step]:
    """Say what became of the name that the flow goes to, if it was looked up."""
    lookup, name = facts.lookup, facts.flow.source.name
    if lookup is None:
        return
    servers = ", ".join(lookup.servers)
    if lookup.upstreams:
        servers += f" (which asks {', '.join(lookup.upstreams)})"
    if lookup.error is None:
        after = f"{lookup.seconds * 1000:.0f} ms"
        yield Step("name", OK, f"{lookup.name} is {lookup.address}, from {servers}, {after}")
        return
    words = {"name": name, "host": lookup.name, "servers": servers}
    if lookup.error == NO_SUCH_NAME:
        yield fault("name", "name-unknown", **words)
    elif lookup.error == NO_SERVER:
        yield fault("name", "no-name-server", **words)
    elif any(each.startswith("127.") and each != RESOLVER for each in lookup.servers):
        yield fault("name", "name-server-loopback", **words)
    else:
        asked = "nor do they answer this host"
        if lookup.answering:
            asked = f"though {', '.join(lookup.answering)} answers this host"
        yield fault("name", "name-server-silent", asked=asked, **words)


def look_whether_it_runs(facts: Facts) -> Iterator[Step]:
    """Say why the container that is asked for does not run."""
    if facts.stopped is None:
        return
    name, taken = facts.flow.destination.name, facts.stopped.taken
    if taken:
        place, owner = taken[0]
        yield fault("publish", "port-taken", name=name, place=place, owner=owner)
        return
    why = f": {facts.stopped.error}" if facts.stopped.error else ""
    yield fault("sandbox", "not-running", name=name, why=why)


def look_at_socket(facts: Facts) -> Iterator[Step]:
    """Say who takes what comes to the port, and how many wait there."""
    flow, port, ip = facts.flow, facts.flow.port, facts.flow.destination.address
    view = facts.other
    if flow.destination.name == HOST and not flow.destination.is_container:
        view = facts.host
    is_itself = ip is not None and ip.is_loopback and facts.sandbox is not None
    if is_itself and str(ip) != RESOLVER:
        view = facts.sandbox
    if view is None or port is None or ip is None:
        return
    of_protocol = [
        each
        for each in view.listeners
        if each.protocol is flow.protocol and str(each.ip) != RESOLVER
    ]
    taking = [each for each in of_protocol if each.port == port and each.takes(ip)]
    if taking:
        yield Step("socket", OK, f"{taking[0].owner} listens on {taking[0].place}")
        yield from _look_at_queue(taking[0])
    elif is_itself:
        host = _loopback_answer(facts.host, port, flow.protocol)
        yield fault("socket", "loopback-target", name=flow.source.name, ip=ip, port=port, host=host)
    else:
        yield _no_listener(facts, of_protocol, port, ip)


def _loopback_answer(host: View, port: int, protocol: Protocol) -> str:
    """Return what helps: whom of the host's one may have meant."""
    found = [each for each in host.listeners if (each.port, each.protocol) == (port, protocol)]
    if not found:
        return "ask a container by its name"
    return f"{found[0].owner} listens on {found[0].place} of this host: ask the network's gateway"


def _look_at_queue(listener: Listener) -> Iterator[Step]:
    """Say whether what comes finds room: a queue is full above its limit (sk_acceptq_is_full())."""
    words = {"owner": listener.owner, "waiting": listener.waiting, "most": listener.backlog}
    if listener.protocol is Protocol.TCP:
        if listener.waiting > listener.backlog:
            yield fault("socket", "backlog-full", **words)
        return
    # A datagram is counted with what the kernel adds: a buffer is full before it is full of data.
    if listener.lost and listener.waiting * 2 > listener.backlog:
        yield fault("socket", "receive-buffer-full", lost=listener.lost, **words)
    elif listener.lost:
        text = f"{listener.owner} has lost {listener.lost} datagrams for want of room"
        yield Step("socket", WARNING, text)


def _no_listener(facts: Facts, known: Sequence[Listener], port: int, ip: IPAddress) -> Step:
    everywhere = "0.0.0.0" if ip.version == IPV4 else "[::]"  # noqa: S104 - a word
    protocol, name = facts.flow.protocol.value, facts.flow.destination.name
    words = {"port": port, "protocol": protocol, "name": name, "all": everywhere}
    if elsewhere := [each for each in known if each.port == port]:
        there = ", ".join(each.place for each in elsewhere)
        wanted = place_of(ip, port)
        owners = ", ".join(f"{each.owner} listens on {each.place}" for each in elsewhere)
        text = f"{owners}; nothing on {wanted}"
        return fault("socket", "listens-elsewhere", text, there=there, wanted=wanted, **words)
    others = ", ".join(f"{each.owner} on {each.place}" for each in known[:3])
    told = f"; there listen {others}" if others else ""
    text = f"nothing listens on port {port}{told}"
    return fault("socket", "not-listening", text, others=told, **words)


def look_at_published(facts: Facts) -> Iterator[Step]:
    """Say where the port is published, for who comes from outside."""
    flow = facts.flow
    is_outside = not flow.source.is_container and flow.source.name != HOST
    if not is_outside or not flow.destination.is_container or flow.port is None:
        return
    if facts.published is None:
        yield Step("publish", UNKNOWN, f"what is published of {flow.destination.name}")
        return
    of_port = [
        each
        for each in facts.published
        if each.container_port == flow.port and each.protocol is flow.protocol
    ]
    words = {
        "port": flow.port,
        "protocol": flow.protocol.value,
        "name": flow.destination.name,
    }
    if not of_port:
        others = sorted(
            {f"{each.container_port}/{each.protocol.value}" for each in facts.published}
        )
        told = f"; published are {', '.join(others)}" if others else ""
        yield fault("publish", "not-published", others=told, **words)
        return
    open_ones = [each for each in of_port if not each.host_ip.is_loopback]
    places = ", ".join(place_of(each.host_ip, each.host_port) for each in (open_ones or of_port))
    if not open_ones:
        yield fault("publish", "published-elsewhere", there=places, **words)
        return
    target = f"{of_port[0].container_ip}:{flow.port}/{flow.protocol.value}"
    yield Step("publish", OK, f"{places} leads to {target}")
    if facts.stale:
        there = ", ".join(map(str, facts.stale))
        yield fault("publish", "stale-flow", there=there, **words)
