"""Make a network's bridges, and join the further ones to the first; decides nothing.

A Linux bridge has 1,023 ports. A network that needs more gets further bridges, each joined to the
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
    """Have all bridges of the network, joined; what fails is raised when the rest has been made."""
    attempt_all(
        [
            partial(kernel.ensure_bridge, network.bridge),
            *(partial(_ensure_part, kernel, network, number) for number in network.parts),
        ]
    )


def add_part(kernel: Kernel, network: Network, number: int, undo: Rollback) -> None:
    """Make a further bridge and join it to the first."""
    undo.push(kernel.delete_bridge, network.part(number), ())
    undo.push(kernel.delete_links, [network.joint(number).host_end])
    _ensure_part(kernel, network, number)


def delete_bridges(
    kernel: Kernel, network: Network, added: Sequence[IPInterface]
) -> Iterator[Callable[[], object]]:
    """Yield the steps that delete the network's bridges, or of the first what was added to it."""
    if network.parts:
        yield partial(kernel.delete_links, [joint.host_end for joint in network.joints])
    for number in network.parts:
        yield partial(kernel.delete_bridge, network.part(number), ())
    yield partial(kernel.delete_bridge, network.bridge, added)


def _ensure_part(kernel: Kernel, network: Network, number: int) -> None:
    part, joint = network.part(number), network.joint(number)
    kernel.ensure_bridge(part)
    if not kernel.ensure_port(joint):
        kernel.create_veth(joint)
    # Its other end has no alias: it goes and comes with the first. Frames may go back at one end
    # only, or they would go round for ever.
    lower = replace(
        joint,
        host_end=joint.sandbox_end,
        bridge=part.name,
        hairpin=False,
        bridge_alias=part.required_alias,
    )
    kernel.ensure_port(lower)
