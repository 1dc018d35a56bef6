"""Find the hops of a container: its interfaces, the host's ends, their bridges, the uplink."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from driver.errors import NotFound
from driver.linux import netns
from driver.linux.links import default_route_interfaces, list_links
from plugin.capture.taps import Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from driver.linux.rtnetlink import LinkInfo

SANDBOX, PAIR, BRIDGE, UPLINK, ALL = "sandbox", "pair", "bridge", "uplink", "all"
_ETHERNET_COLONS = 5  # in an address of six bytes
WHERE = (SANDBOX, PAIR, BRIDGE, UPLINK, ALL)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A network namespace with the name that people know it by."""

    name: str
    path: str


def find_places(sandboxes: Iterable[Sandbox], where: str) -> list[Place]:
    """Return the interfaces of these sandboxes, each once; of one that has gone there are none."""
    inside = {each: found for each in sandboxes if (found := _list_inside(each)) is not None}
    if where == SANDBOX:
        return [place for each, links in inside.items() for place in _inside(each, links)]
    host = {link.index: link for link in list_links()}
    places: dict[Place, None] = {}
    for sandbox, links in inside.items():
        if where == ALL:
            places |= dict.fromkeys(_inside(sandbox, links))
        places |= dict.fromkeys(_outside(sandbox, links, host, where))
    if where in {UPLINK, ALL}:
        places |= dict.fromkeys(_uplinks(host))
    return list(places)


def find_host_places() -> list[Place]:
    """Return every interface of the host that is up."""
    return [_host_place(link, "of the host") for link in list_links() if link.is_up]


def _list_inside(sandbox: Sandbox) -> tuple[LinkInfo, ...] | None:
    try:
        with netns.open_namespace(sandbox.path) as namespace:
            return netns.run_in(namespace, list_links)
    except NotFound:
        return None


def _inside(sandbox: Sandbox, links: Iterable[LinkInfo]) -> Iterator[Place]:
    for link in links:
        if link.is_up:
            label = f"{sandbox.name}:{link.name}"
            words = f"in the sandbox of {sandbox.name}"
            yield Place(label, words, sandbox.path, link.index, is_raw=_is_raw(link))


def _outside(
    sandbox: Sandbox, links: Iterable[LinkInfo], host: Mapping[int, LinkInfo], where: str
) -> Iterator[Place]:
    """Yield the host's ends of what is in a sandbox, and their bridges."""
    for link in links:
        end = host.get(link.other_end)
        if end is None or end.other_end != link.index or not link.other_end_moved:
            continue
        if where in {PAIR, ALL}:
            yield _host_place(end, f"host end of {sandbox.name}:{link.name}")
        bridge = host.get(end.master)
        if bridge is not None and where in {BRIDGE, ALL}:
            yield _host_place(bridge, "bridge")


def _uplinks(host: Mapping[int, LinkInfo]) -> Iterator[Place]:
    leading = default_route_interfaces()
    return (_host_place(link, "uplink") for link in host.values() if link.name in leading)


def _host_place(link: LinkInfo, words: str) -> Place:
    return Place(f"host:{link.name}", words, None, link.index, is_raw=_is_raw(link))


def _is_raw(link: LinkInfo) -> bool:
    """Return whether packets have no Ethernet header: tunnels have addresses of IP, or none."""
    return link.mac.count(":") != _ETHERNET_COLONS
