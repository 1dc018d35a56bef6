"""Remember which MAC addresses neighbours may have in their ARP and NDP caches, in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from driver.model import derive_mac
from driver.recent import LENGTH

if TYPE_CHECKING:
    from driver.model import Endpoint, IPInterface, MacAddress, NetworkId


class Neighbours:
    """What those who talk to an address may have in their ARP and NDP caches.

    To announce an address costs every container on the network a packet: 5 ms of processor time
    beside 1,000. As an address has its MAC from us, the caches are mostly right without. Safe to
    use while the driver's lock is held.
    """

    def __init__(self, length: int = LENGTH) -> None:
        """Remember the last `length` addresses."""
        self._macs: dict[tuple[NetworkId, IPInterface], MacAddress] = {}
        self._length = length

    def remember(self, endpoint: Endpoint) -> None:
        """Record that the neighbours know the endpoint."""
        for address in endpoint.addresses:
            key = endpoint.network_id, address
            self._macs.pop(key, None)
            self._macs[key] = endpoint.mac
        while len(self._macs) > self._length:
            del self._macs[next(iter(self._macs))]

    def may_be_wrong_about(self, endpoint: Endpoint) -> bool:
        """Return whether they may know one of its addresses by another MAC.

        Who had an address before this driver started is not remembered; with a MAC that somebody
        chose, an endpoint is taken to come after another.
        """
        is_ours = endpoint.mac in {derive_mac(address.ip) for address in endpoint.addresses}
        unknown = endpoint.mac if is_ours else None
        return any(
            self._macs.get((endpoint.network_id, address), unknown) != endpoint.mac
            for address in endpoint.addresses
        )
