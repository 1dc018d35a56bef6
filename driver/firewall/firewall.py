"""Keep the kernel's firewall equal to the stored networks: install, update, remove.

What the rules say is `driver.firewall.ruleset`. The caller holds the driver's lock.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import chain
from typing import TYPE_CHECKING

from driver.errors import Conflict, DriverError
from driver.firewall import ruleset
from driver.firewall.base import list_chains
from driver.model import RuleCount
from driver.observed import find_exits, find_uplinks
from driver.undo import Rollback, attempt_all

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from driver.firewall.base import Chain
    from driver.firewall.elements import Changes
    from driver.linux import Kernel
    from driver.model import Count, Endpoint, Network
    from driver.observed import Link


def find_zone(networks: Iterable[Network], exits: Collection[str] = ()) -> frozenset[str]:
    """Return the bridges that firewalld is to let be, for pynet's own tables judge them.

    Not one that leads out of the host, which the operator has made: all that comes from there would
    reach the host's services. In which zone it is, is the operator's to say.
    """
    return frozenset(bridge.name for network in networks for bridge in network.bridges).difference(
        exits
    )


def _count(chain: Chain, counts: Mapping[tuple[str, str], Sequence[Count]]) -> Iterator[RuleCount]:
    found = counts.get((chain.family, chain.name), ())
    if len(found) != len(chain.rules):
        raise Conflict(
            f"read the counters of chain {chain.family} pynet {chain.name}: it has {len(found)} "
            f"rules in place of {len(chain.rules)}; pynet check --repair mends it"
        )
    for rule, count in zip(chain.rules, found, strict=True):
        yield RuleCount(f"{chain.family} pynet", chain.name, rule, count)


class Firewall:
    """The firewall of all networks: the tables, the foreign rules, forwarding."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def add_network(self, network: Network, undo: Rollback, *, is_first: bool) -> None:
        """Add a network's elements; the first one brings the tables along."""
        if is_first:
            undo.push(self._remove_for_good)
            self._ensure_forwarding([network])
            self.install([network], [])
            return
        self._ensure_forwarding([network])
        links = self._kernel.observe_links()
        uplinks = ruleset.set_uplinks(find_uplinks(links))
        self._kernel.change_elements(uplinks + ruleset.add_network(network))
        undo.push(self._kernel.change_elements, ruleset.delete_network(network))
        self._kernel.change_zone(add=find_zone([network], find_exits(links)))
        undo.push(partial(self._kernel.change_zone, remove=find_zone([network])))

    def change_network(
        self, old: Network, new: Network, endpoints: Iterable[Endpoint], undo: Rollback
    ) -> None:
        """Bring a network with its joined endpoints to other options, in one transaction."""
        joined = tuple(endpoints)
        if changes := ruleset.change_network(old, new, joined):
            self._kernel.change_elements(changes)
            undo.push(self._kernel.change_elements, ruleset.change_network(new, old, joined))

    def add_part(self, network: Network, number: int, undo: Rollback) -> None:
        """Add the elements of an extra bridge of a network."""
        self._kernel.change_elements(ruleset.add_part(network, number))
        undo.push(self._kernel.change_elements, ruleset.delete_part(network, number))
        bridge = [network.bridge_at(number)]
        self._kernel.change_zone(add=bridge)
        undo.push(partial(self._kernel.change_zone, remove=bridge))

    def drop_network(self, network: Network, *, is_last: bool) -> None:
        """Take a network's elements out; the last one takes everything along."""
        if is_last:
            self._remove_for_good()
        else:
            self._kernel.change_zone(remove=find_zone([network]))
            self._kernel.change_elements(ruleset.delete_network(network))

    def join(self, endpoint: Endpoint, network: Network, undo: Rollback) -> None:
        """Add what an endpoint needs from its join on."""
        self._ensure_forwarding([network])
        self._kernel.change_elements(ruleset.add_endpoint(endpoint, network))
        undo.push(self._kernel.change_elements, ruleset.delete_endpoint(endpoint, network))

    def change_endpoint(self, old: Endpoint, new: Endpoint, network: Network) -> None:
        """Bring a joined endpoint's elements to what it is now."""
        if changes := ruleset.change_endpoint(old, new, network):
            self._kernel.change_elements(changes)

    def leave(self, endpoint: Endpoint, network: Network) -> None:
        """Take it out again."""
        self._kernel.change_elements(ruleset.delete_endpoint(endpoint, network))

    def install(
        self,
        networks: Iterable[Network],
        endpoints: Iterable[Endpoint],
        links: Callable[[], Mapping[str, Link]] | None = None,
    ) -> None:
        """Install the complete ruleset of these networks and endpoints; without networks remove it.

        `links` lists the host's interfaces, for who has done so already. A network without
        containers does not turn on forwarding: see `_ensure_forwarding`. What fails is raised when
        all the rest has been made.
        """
        networks, endpoints = tuple(networks), tuple(endpoints)
        if not networks:
            self.remove()
            return
        joined = {each.network_id for each in endpoints if each.attachment is not None}
        links = links or cache(self._kernel.observe_links)  # once, unless it is refused
        attempt_all(
            [
                partial(self._ensure_forwarding, [each for each in networks if each.id in joined]),
                partial(self._render, networks, endpoints, links),
                partial(self._set_zone, networks, links),
                self.accept,
            ]
        )

    def _render(
        self,
        networks: Sequence[Network],
        endpoints: Sequence[Endpoint],
        links: Callable[[], Mapping[str, Link]],
    ) -> None:
        """Create the tables in one transaction; if that is refused, all of them that is not."""
        uplinks = find_uplinks(links())
        try:
            self._kernel.apply_rules(ruleset.render_ruleset(networks, endpoints, uplinks))
        except DriverError:
            groups = ruleset.list_changes(networks, endpoints)
            if len(groups) == 1:
                raise
            self._kernel.apply_rules(ruleset.render_ruleset((), (), uplinks))
            self._change_each(groups)

    def _change_each(self, groups: Sequence[Changes]) -> None:
        """Make what is not refused of several changes, halving them; then raise what was."""
        try:
            self._kernel.change_elements(tuple(chain.from_iterable(groups)))
        except DriverError:
            if len(groups) == 1:
                raise
            middle = len(groups) // 2
            halves = groups[:middle], groups[middle:]
            attempt_all([partial(self._change_each, half) for half in halves])

    def _set_zone(
        self, networks: Sequence[Network], links: Callable[[], Mapping[str, Link]]
    ) -> None:
        self._kernel.set_zone(find_zone(networks, find_exits(links())))

    def accept(self) -> None:
        """Accept in iptables what our own chains have accepted."""
        self._kernel.ensure_forward_accept(ruleset.ACCEPTED_MARK)

    def remove(self) -> None:
        """Remove every rule of ours, wherever it is; forwarding stays on, as Docker leaves it."""
        attempt_all(
            [
                partial(self._kernel.delete_forward_accept, ruleset.ACCEPTED_MARK),
                partial(self._kernel.apply_rules, ruleset.render_no_ruleset()),
                partial(self._kernel.set_zone, ()),
            ]
        )

    def _remove_for_good(self) -> None:
        """Do so where no network is left that `install` might be asked for."""
        attempt_all([self.remove, self._kernel.delete_zone])

    def set_uplinks(self) -> None:
        """Update the set of bridges that lead out of the host."""
        self._kernel.change_elements(ruleset.set_uplinks(self._uplinks()))

    def _uplinks(self) -> frozenset[str]:
        return find_uplinks(self._kernel.observe_links())

    def read_rules(self) -> tuple[RuleCount, ...]:
        """Return the rules of our tables as `base.nft` has them, with what each has counted.

        None without networks. Raises Conflict while a chain is not as the file has it: what its
        rules are is then not known.
        """
        counts = self._kernel.read_rule_counts()
        if not counts:
            return ()
        return tuple(chain.from_iterable(_count(each, counts) for each in list_chains()))

    def _ensure_forwarding(self, networks: Iterable[Network]) -> None:
        """Turn on the forwarding that these networks need; it stays on.

        Only once Docker has asked for something, never because a machine boots: a dockerd that
        finds forwarding off turns it on and sets the policy of FORWARD to DROP (moby,
        setupIPForwarding() in libnetwork/drivers/bridge), which a driver that is there before it
        must not keep it from.
        """
        networks = tuple(networks)
        attempt_all(
            partial(self._kernel.ensure_forwarding, version)
            for version in (4, 6)
            if any(network.forwards(version) for network in networks)
        )
