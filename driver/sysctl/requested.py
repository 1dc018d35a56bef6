"""Collect the sysctl values that the endpoints of a sandbox request, from the state file.

Precedence is `driver.sysctl.policy`'s. Every method runs in a transaction of the caller's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from driver.sysctl.policy import NO_POLICY, SysctlSources, effective, is_of_interface, merge, rank

if TYPE_CHECKING:
    from collections.abc import Collection

    from driver.model import Endpoint, Network, SandboxKey, Sysctl
    from driver.state.store import Store
    from driver.sysctl.policy import RequestedValue, SysctlPolicy


class RequestedValues:
    """The values requested for sandboxes and for the interfaces in them, with their sources."""

    def __init__(self, store: Store, policy: SysctlPolicy = NO_POLICY) -> None:
        self._store = store
        self._policy = policy

    def of_sandbox(self, sandbox: SandboxKey) -> dict[str, RequestedValue]:
        """Return the effective values of a sandbox with the endpoints that are in it."""
        return self.of_endpoints(self._store.endpoints_in(sandbox))

    def of_endpoints(self, endpoints: Collection[Endpoint]) -> dict[str, RequestedValue]:
        """Return the effective values of a sandbox with these endpoints, by key.

        Without those of interfaces.
        """
        return effective(self.rank(endpoints))

    def rank(self, endpoints: Collection[Endpoint]) -> tuple[RequestedValue, ...]:
        """Return every value requested for a sandbox with these endpoints, the weakest first.

        Without those of interfaces. A sandbox without endpoints has none, not even the operator's
        defaults.
        """
        if not endpoints:
            return ()
        if len(endpoints) > 1:
            by_age = self._store.sort_by_age([endpoint.network_id for endpoint in endpoints])
            endpoints = sorted(endpoints, key=lambda each: by_age.index(each.network_id))
        ranked = rank(self._policy.defaults, [self._sources(endpoint) for endpoint in endpoints])
        return tuple(each for each in ranked if not is_of_interface(each.sysctl.key))

    def of_interface(
        self, endpoint: Endpoint, network: Network | None = None
    ) -> dict[str, RequestedValue]:
        """Return the effective values of an endpoint's interface, by key.

        `network` replaces the one in the state file. Without the keys that the engine itself
        writes.
        """
        sources = self._sources(endpoint)
        if network is not None:
            sources = replace(sources, network=network.options.sysctls)
        requested = effective(rank(self._policy.defaults, [sources]))
        return {
            key: value
            for key, value in sorted(requested.items())
            if is_of_interface(key) and key not in endpoint.engine_keys
        }

    def _sources(self, endpoint: Endpoint) -> SysctlSources:
        options = self._store.find_options(endpoint.network_id)
        attachment = endpoint.attachment
        return SysctlSources(
            endpoint.id,
            own=endpoint.sysctls,
            network=options.sysctls if options else (),
            inherited=attachment.inherited if attachment else (),
            network_id=endpoint.network_id,
            priority=options.priority if options else 0,
        )


def sysctls_of(requested: dict[str, RequestedValue]) -> tuple[Sysctl, ...]:
    """Return the sysctls alone, sorted by name."""
    return merge(each.sysctl for each in requested.values())
