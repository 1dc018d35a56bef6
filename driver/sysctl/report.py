"""Report the sysctls of the host and of sandboxes, for people; changes nothing.

Reading takes its time, so the driver's lock is held only while the state file is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from driver.errors import InvalidRequest, NotFound
from driver.model import Sysctl, host_end_name, short
from driver.sysctl.policy import NO_POLICY, Source, SysctlSources, effective, is_same, rank
from driver.sysctl.presence import sandbox_of
from driver.sysctl.requested import RequestedValues

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from driver.linux import Kernel
    from driver.lock import Lock
    from driver.model import Endpoint, EndpointId, Network, NetworkId
    from driver.state.store import Store
    from driver.sysctl.host import HostSysctls
    from driver.sysctl.policy import RequestedValue, SysctlPolicy


@dataclass(frozen=True, slots=True)
class HostReport:
    """The values of the host, those of a new namespace, and what no network can carry over.

    `refused` holds sysctls that a namespace has with another value than the host, and why a
    network may not set the host's.
    """

    host: Mapping[str, str]
    pristine: Mapping[str, str]
    refused: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """One sysctl: its values in the host, a new namespace and sandboxes, and the requested one.

    `actual` is by endpoint, of those whose sandbox is there and has the parameter.
    """

    key: str
    host: str | None
    pristine: str | None
    asked: str | None
    by: Source | None
    actual: Mapping[EndpointId, str]


@dataclass(frozen=True, slots=True)
class _Subject:
    """What a report is about: the requested values, and the endpoints that have them."""

    requested: Mapping[str, RequestedValue]
    joined: tuple[Endpoint, ...]


class SysctlReport:
    """The sysctls of the host, of networks and of endpoints' sandboxes."""

    def __init__(
        self,
        store: Store,
        kernel: Kernel,
        lock: Lock,
        host: HostSysctls,
        policy: SysctlPolicy = NO_POLICY,
    ) -> None:
        self._store = store
        self._kernel = kernel
        self._lock = lock
        self._host = host
        self._policy = policy
        self._requested = RequestedValues(store, policy)

    def of_host(self) -> HostReport:
        """Return the values of the host and of new namespaces."""
        host, pristine = self._kernel.read_host(), self._kernel.read_pristine()
        refused = {
            key: reason
            for key in _differing(host, pristine)
            if (reason := self._why_refused(Sysctl(key, host[key])))
        }
        return HostReport(host, pristine, refused)

    def of_networks(self, *ids: NetworkId, everything: bool) -> tuple[Row, ...]:
        """Return what containers that join these networks now get, and what those that run have.

        Every sysctl, or those that are requested or that differ between host and new namespaces.
        Raises NotFound.
        """
        with self._lock, self._store.transaction():
            by_id = {each: self._network(each) for each in ids}
            networks = [by_id[each] for each in self._store.sort_by_age(ids)]
            endpoints = [each for identity in ids for each in self._store.endpoints(identity)]
        requested = effective(rank(self._policy.defaults, [*map(self._sources, networks)]))
        joined = tuple(each for each in endpoints if each.attachment is not None)
        return self._rows(_Subject(requested, joined), everything=everything, deep=everything)

    def _network(self, network_id: NetworkId) -> Network:
        network = self._store.find_network(network_id)
        if network is None:
            raise NotFound(f"network {short(network_id)} is not known to pynet")
        return network

    def _sources(self, network: Network) -> SysctlSources:
        """Return the sysctls of an endpoint of the network that joins now."""
        options = network.options
        inherited = self._host.read(options.inherit)
        return SysctlSources(None, (), options.sysctls, inherited, network.id, options.priority)

    def of_endpoint(self, endpoint_id: EndpointId, *, everything: bool) -> tuple[Row, ...]:
        """Return the same for the sandbox that an endpoint is in, with all its networks.

        Also the sysctls that differ between the sandbox and a new one. Raises NotFound.
        """
        return self._rows(self._find(endpoint_id), everything=everything, deep=True)

    def read_endpoint(self, endpoint_id: EndpointId) -> Mapping[str, str]:
        """Return every value in the sandbox of an endpoint at this moment; raises NotFound."""
        found = self._read(self._find(endpoint_id).joined, None)
        if endpoint_id not in found:
            raise NotFound(f"endpoint {short(endpoint_id)} has left its sandbox")
        return found[endpoint_id]

    def _find(self, endpoint_id: EndpointId) -> _Subject:
        """Return an endpoint, with what it and the others in its sandbox request."""
        with self._lock, self._store.transaction():
            endpoint = self._store.find_endpoint(endpoint_id)
            if endpoint is None or endpoint.attachment is None:
                raise NotFound(f"endpoint {short(endpoint_id)} is in no sandbox")
            sandbox = sandbox_of(endpoint)
            requested = self._requested.of_sandbox(sandbox)
            interface = self._requested.of_interface(endpoint)
        if not self._kernel.has_sandbox(sandbox):
            raise NotFound(f"look at sandbox {sandbox}: there is no network namespace")
        return _Subject({**requested, **interface}, (endpoint,))

    def _rows(self, subject: _Subject, *, everything: bool, deep: bool) -> tuple[Row, ...]:
        host, pristine = self._kernel.read_host(), self._kernel.read_pristine()
        keys = {*subject.requested, *_differing(host, pristine)}
        wanted = {*keys, *pristine} if deep else keys
        actual = self._read(subject.joined, sorted(wanted))
        if everything:
            keys = wanted
        elif deep:
            for values in actual.values():
                keys |= {key for key in values if not is_same(values[key], pristine.get(key, ""))}
        return tuple(
            Row(
                key,
                host.get(key),
                pristine.get(key),
                value.sysctl.value if value else None,
                value.source if value else None,
                {identity: values[key] for identity, values in actual.items() if key in values},
            )
            for key in sorted(keys)
            for value in [subject.requested.get(key)]
        )

    def _read(
        self, joined: Iterable[Endpoint], keys: Collection[str] | None
    ) -> dict[EndpointId, Mapping[str, str]]:
        """Return the values of each sandbox, by endpoint; sandboxes that are gone are left out."""
        host_ends = {host_end_name(endpoint.id): endpoint for endpoint in joined}
        found = self._kernel.read_sandboxes(
            {host_end: sandbox_of(endpoint) for host_end, endpoint in host_ends.items()}, keys
        )
        return {host_ends[host_end].id: values for host_end, values in found.items()}

    def _why_refused(self, sysctl: Sysctl) -> str:
        """Return why no network may set a sysctl to the host's value, "" if one may."""
        try:
            self._policy.check([sysctl])
            self._kernel.check_sysctls([sysctl])
        except InvalidRequest as error:
            return str(error)
        return ""


def _differing(host: Mapping[str, str], pristine: Mapping[str, str]) -> list[str]:
    both = sorted(host.keys() & pristine.keys())
    return [key for key in both if not is_same(host[key], pristine[key])]
