"""Publish ports: reserve each on the host, translate to the container, withdraw again.

Which host ports may satisfy a request is decided in `driver.firewall.ports`, what the rules say in
`driver.firewall.ruleset`. The caller holds the driver's lock.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from driver.errors import DriverError
from driver.firewall import ruleset
from driver.firewall.ports import find_relays, order_requests, plan_candidates
from driver.model import PortInUse, short
from driver.undo import attempt_all

if TYPE_CHECKING:
    from collections.abc import Iterable

    from driver.linux import Kernel
    from driver.model import Endpoint, HostPort, Network, PortBinding, PortRequest
    from driver.state.store import Store
    from driver.undo import Rollback

ANOTHER = "another process"

log = logging.getLogger(__name__)


class Publisher:
    """The published ports of all endpoints."""

    def __init__(self, store: Store, kernel: Kernel) -> None:
        self._store = store
        self._kernel = kernel
        self._next_port = 0

    def publish(
        self,
        endpoint: Endpoint,
        network: Network,
        requests: Iterable[PortRequest],
        undo: Rollback,
        *,
        relays: bool = False,
    ) -> None:
        """Publish the requested ports of an endpoint that has none; runs in a transaction.

        `relays` tells whether those of one without IPv6 are published on the host's IPv6, too.

        Raises PortInUse that names the port, and its owner if that is an endpoint, before any rule
        is changed; `name_holder` names others.
        """
        ordered = order_requests(requests)
        if not ordered:
            return
        bindings: list[PortBinding] = []
        ephemeral = self._kernel.ephemeral_ports()
        for request in ordered:
            candidates = plan_candidates(
                request, endpoint, network, ephemeral, self._next_port, relays=relays
            )
            try:
                bindings += self._reserve(request, candidates, undo)
            except PortInUse as refusal:
                if twice := _find_twice(request, refusal.place, bindings):
                    raise PortInUse(twice, refusal.place) from refusal
                raise
        if not bindings:
            return
        self._store.put_bindings(endpoint.id, bindings)
        self._kernel.change_elements(ruleset.add_bindings(endpoint.id, bindings))
        undo.push(self._kernel.change_elements, ruleset.delete_bindings(bindings))
        self._kernel.forget_flows(bindings)
        self._relay(bindings, network)

    def name_holder(self, refusal: PortInUse) -> PortInUse:
        """Return the refusal with the process that has the port, if it is none of our endpoints.

        To look for it takes a tenth of a second: not for a transaction, nor under the lock.
        """
        text = str(refusal)
        if not text.endswith(ANOTHER):
            return refusal
        holder = self._kernel.find_port_owner(refusal.place)
        return PortInUse(text.removesuffix(ANOTHER) + holder, refusal.place)

    def withdraw(self, endpoint: Endpoint) -> None:
        """Take an endpoint's ports back, whose rows have gone; does all it can, then raises."""
        bindings = endpoint.bindings
        if not bindings:
            return
        attempt_all(
            [
                partial(self._kernel.change_elements, ruleset.delete_bindings(bindings)),
                partial(self._kernel.release_ports, _host_ports(bindings)),
                partial(self._kernel.forget_flows, bindings),
            ]
        )

    def release_unknown(self, endpoints: Iterable[Endpoint]) -> None:
        """Let go of ports that no endpoint has: a relay may hold some of before a restart."""
        known = {place for each in endpoints for place in _host_ports(each.bindings)}
        self._kernel.release_ports(self._kernel.list_reserved() - known)

    def restore(self, endpoint: Endpoint, network: Network) -> None:
        """Reserve those of an endpoint's host ports that are not, after a restart of the driver.

        One that another program has taken meanwhile stays published: translation comes first.
        """
        held = self._kernel.list_reserved()
        for place in _host_ports(endpoint.bindings):
            if place in held:
                continue
            try:
                self._kernel.reserve_ports([place])
            except DriverError as error:
                log.warning("endpoint %s: %s", short(endpoint.id), error)
            except Exception:
                log.exception("endpoint %s: could not reserve %s", short(endpoint.id), place)
        self._relay(endpoint.bindings, network)

    def _relay(self, bindings: Iterable[PortBinding], network: Network) -> None:
        relays = tuple(find_relays(bindings, network))
        if relays:
            self._kernel.relay_ports(relays)

    def _reserve(
        self,
        request: PortRequest,
        candidates: Iterable[tuple[PortBinding, ...]],
        undo: Rollback,
    ) -> tuple[PortBinding, ...]:
        """Reserve the first candidate that is free; none at all is asked of some networks."""
        refusal: PortInUse | None = None
        for candidate in candidates:
            places = _host_ports(candidate)
            try:
                self._kernel.reserve_ports(places)
            except PortInUse as error:
                refusal = error
                continue
            undo.push(self._kernel.release_ports, places)
            if places and not request.first:
                self._next_port = places[0].port + 1
            return candidate
        if refusal is not None:
            raise PortInUse(self._explain(request, refusal), refusal.place) from refusal
        return ()

    def _explain(self, request: PortRequest, refusal: PortInUse) -> str:
        """Return who holds the port, named as it was requested by `-p`."""
        owner = self._store.find_publisher(refusal.place)
        holder = ANOTHER
        if owner is not None:
            holder = f"endpoint {short(owner.id)} of network {short(owner.network_id)}"
        if request.first == request.last and request.first:
            return f"publish {refusal.place}: port is in use by {holder}"
        span = f"{request.first}-{request.last}" if request.first else "any"
        return (
            f"publish container port {request.container_port}/{request.protocol} on host ports "
            f"{span}: all are in use, {refusal.place} by {holder}"
        )


def _find_twice(
    request: PortRequest, place: HostPort, bindings: Iterable[PortBinding]
) -> str | None:
    """Return in words that the container itself has asked for a place already, if it has."""
    for other in bindings:
        if other.host is not None and other.host.collides(place):
            return (
                f"publish {place}: this container asks for it twice, for its ports "
                f"{other.container_port} and {request.container_port}"
            )
    return None


def _host_ports(bindings: Iterable[PortBinding]) -> list[HostPort]:
    return [binding.host for binding in bindings if binding.host is not None]
