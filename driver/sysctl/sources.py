"""Gather what the endpoints of a sandbox ask for, out of the state file; decides no rank itself.

Every method runs in a transaction of the caller's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from driver.sysctl.policy import NO_POLICY, Asker, is_of_interface, merge, rank, strongest

if TYPE_CHECKING:
    from collections.abc import Collection

    from driver.model import Endpoint, Network, SandboxKey, Sysctl
    from driver.state.store import Store
    from driver.sysctl.policy import SysctlPolicy, Wish


class Wishes:
    """What every sandbox and every interface in one is to have, and on whose behalf."""

    def __init__(self, store: Store, policy: SysctlPolicy = NO_POLICY) -> None:
        self._store = store
        self._policy = policy

    def of_sandbox(self, sandbox: SandboxKey) -> dict[str, Wish]:
        """Return the same for the endpoints that are in a sandbox."""
        return self.of_endpoints(self._store.endpoints_in(sandbox))

    def of_endpoints(self, endpoints: Collection[Endpoint]) -> dict[str, Wish]:
        """Return who gets their way in a sandbox with these endpoints, by key; interfaces apart."""
        return strongest(self.rank(endpoints))

    def rank(self, endpoints: Collection[Endpoint]) -> tuple[Wish, ...]:
        """Return all that a sandbox with these endpoints is asked for, the weakest first.

        Interfaces apart. In a sandbox without endpoints nobody asks, not even the operator.
        """
        if not endpoints:
            return ()
        if len(endpoints) > 1:
            by_age = self._store.sort_by_age([endpoint.network_id for endpoint in endpoints])
            endpoints = sorted(endpoints, key=lambda each: by_age.index(each.network_id))
        askers = [self._asker(endpoint) for endpoint in endpoints]
        wishes = rank(self._policy.defaults, askers)
        return tuple(wish for wish in wishes if not is_of_interface(wish.sysctl.key))

    def of_interface(self, endpoint: Endpoint, network: Network | None = None) -> dict[str, Wish]:
        """Return the same for an endpoint's interface, on its network as stored or as given.

        Without what the engine itself writes.
        """
        asker = self._asker(endpoint)
        if network is not None:
            asker = replace(asker, network=network.options.sysctls)
        wishes = strongest(rank(self._policy.defaults, [asker]))
        return {
            key: wish
            for key, wish in sorted(wishes.items())
            if is_of_interface(key) and key not in endpoint.engine_keys
        }

    def _asker(self, endpoint: Endpoint) -> Asker:
        options = self._store.find_options(endpoint.network_id)
        attachment = endpoint.attachment
        return Asker(
            endpoint.id,
            own=endpoint.sysctls,
            network=options.sysctls if options else (),
            inherited=attachment.inherited if attachment else (),
            network_id=endpoint.network_id,
            priority=options.priority if options else 0,
        )


def values_of(wishes: dict[str, Wish]) -> tuple[Sysctl, ...]:
    """Return the parameters alone, sorted by their names."""
    return merge(wish.sysctl for wish in wishes.values())
