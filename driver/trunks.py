"""Create a network's bridges and the trunks between them.

A Linux bridge has 1,023 ports. A network that needs more gets extra bridges, each joined to the
first by a veth pair with an end on either: for the containers it is one network. `driver.model`
says which endpoint goes on which. The caller holds the driver's lock.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from driver.undo import attempt_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from driver.linux import Kernel
    from driver.model import IPInterface, Network
    from driver.undo import Rollback


def ensure_bridges(kernel: Kernel, network: Network) -> None:
    """Ensure all bridges of the network and their trunks; raise failures when the rest is made."""
    attempt_all(
        [
            partial(kernel.ensure_bridge, network.bridge),
            *(partial(_ensure_part, kernel, network, number) for number in network.parts),
        ]
    )


def add_part(kernel: Kernel, network: Network, number: int, undo: Rollback) -> None:
    """Create an extra bridge and join it to the first."""
    undo.push(kernel.delete_bridge, network.part(number), ())
    undo.push(kernel.delete_links, [network.trunk(number).host_end])
    _ensure_part(kernel, network, number)


def delete_bridges(
    kernel: Kernel, network: Network, added: Sequence[IPInterface]
) -> Iterator[Callable[[], object]]:
    """Yield the steps that delete the network's bridges, or of the first what was added to it."""
    if network.parts:
        yield partial(kernel.delete_links, [trunk.host_end for trunk in network.trunks])
    for number in network.parts:
        yield partial(kernel.delete_bridge, network.part(number), ())
    yield partial(kernel.delete_bridge, network.bridge, added)


def _ensure_part(kernel: Kernel, network: Network, number: int) -> None:
    part, trunk = network.part(number), network.trunk(number)
    kernel.ensure_bridge(part)
    if not kernel.ensure_port(trunk):
        kernel.create_veth(trunk)
    # Its other end has no alias: it goes and comes with the first. Frames may go back at one end
    # only, or they would go round for ever.
    lower = replace(
        trunk,
        host_end=trunk.sandbox_end,
        bridge=part.name,
        hairpin=False,
        bridge_alias=part.required_alias,
    )
    kernel.ensure_port(lower)
