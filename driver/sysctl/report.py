"""Look at the kernel parameters of host and sandboxes, for people; changes nothing.

Reading takes its time, so the driver's lock is held only while the state file is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from driver.errors import InvalidRequest, NotFound
from driver.model import Sysctl, host_end_name, short
from driver.sysctl.policy import NO_POLICY, Asker, Source, is_same, rank, strongest
from driver.sysctl.sandbox import sandbox_of
from driver.sysctl.sources import Wishes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from driver.linux import Kernel
    from driver.lock import Lock
    from driver.model import Endpoint, EndpointId, Network, NetworkId
    from driver.state.store import Store
    from driver.sysctl.host import Heritage
    from driver.sysctl.policy import SysctlPolicy, Wish


@dataclass(frozen=True, slots=True)
class HostSurvey:
    """What the host has, what a namespace made now has, and what no network can carry over.

    `refused` holds parameters that a namespace has with another value than the host, and why a
    network may not set the host's.
    """

    host: Mapping[str, str]
    pristine: Mapping[str, str]
    refused: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """One parameter: what the host has, a new namespace, who asks for what, what endpoints have.

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
    """What there is to look at: who asks for what, and who has it."""

    wishes: Mapping[str, Wish]
    joined: tuple[Endpoint, ...]


class Survey:
    """The parameters of the host, of networks and of endpoints' sandboxes."""

    def __init__(
        self,
        store: Store,
        kernel: Kernel,
        lock: Lock,
        heritage: Heritage,
        policy: SysctlPolicy = NO_POLICY,
    ) -> None:
        self._store = store
        self._kernel = kernel
        self._lock = lock
        self._heritage = heritage
        self._policy = policy
        self._wishes = Wishes(store, policy)

    def of_host(self) -> HostSurvey:
        """Return what host and new namespaces have."""
        host, pristine = self._kernel.read_host(), self._kernel.read_pristine()
        refused = {
            key: reason
            for key in _differing(host, pristine)
            if (reason := self._why_refused(Sysctl(key, host[key])))
        }
        return HostSurvey(host, pristine, refused)

    def of_networks(self, *ids: NetworkId, everything: bool) -> tuple[Row, ...]:
        """Return what containers that join these networks now get, and what those that run have.

        Of every parameter, or of those that somebody asks for or that host and new namespaces
        have otherwise. Raises NotFound.
        """
        with self._lock, self._store.transaction():
            by_id = {each: self._network(each) for each in ids}
            networks = [by_id[each] for each in self._store.sort_by_age(ids)]
            endpoints = [each for identity in ids for each in self._store.endpoints(identity)]
        wishes = strongest(rank(self._policy.defaults, [*map(self._asker, networks)]))
        joined = tuple(each for each in endpoints if each.attachment is not None)
        return self._look(_Subject(wishes, joined), everything=everything, deep=everything)

    def _network(self, network_id: NetworkId) -> Network:
        network = self._store.find_network(network_id)
        if network is None:
            raise NotFound(f"network {short(network_id)} is not known to pynet")
        return network

    def _asker(self, network: Network) -> Asker:
        """Return what an endpoint of the network that comes now asks for."""
        options = network.options
        inherited = self._heritage.read(options.inherit)
        return Asker(None, (), options.sysctls, inherited, network.id, options.priority)

    def of_endpoint(self, endpoint_id: EndpointId, *, everything: bool) -> tuple[Row, ...]:
        """Return the same for the sandbox that an endpoint is in, whatever its networks.

        Also of what its sandbox has otherwise than a new one. Raises NotFound.
        """
        return self._look(self._find(endpoint_id), everything=everything, deep=True)

    def read_endpoint(self, endpoint_id: EndpointId) -> Mapping[str, str]:
        """Return all that the sandbox of an endpoint has at this moment; raises NotFound."""
        found = self._read(self._find(endpoint_id).joined, None)
        if endpoint_id not in found:
            raise NotFound(f"endpoint {short(endpoint_id)} has left its sandbox")
        return found[endpoint_id]

    def _find(self, endpoint_id: EndpointId) -> _Subject:
        """Return an endpoint, with what it and the others in its sandbox ask for."""
        with self._lock, self._store.transaction():
            endpoint = self._store.find_endpoint(endpoint_id)
            if endpoint is None or endpoint.attachment is None:
                raise NotFound(f"endpoint {short(endpoint_id)} is in no sandbox")
            sandbox = sandbox_of(endpoint)
            wishes = self._wishes.of_sandbox(sandbox)
            interface = self._wishes.of_interface(endpoint)
        if not self._kernel.has_sandbox(sandbox):
            raise NotFound(f"look at sandbox {sandbox}: there is no network namespace")
        return _Subject({**wishes, **interface}, (endpoint,))

    def _look(self, subject: _Subject, *, everything: bool, deep: bool) -> tuple[Row, ...]:
        host, pristine = self._kernel.read_host(), self._kernel.read_pristine()
        keys = {*subject.wishes, *_differing(host, pristine)}
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
                wish.sysctl.value if wish else None,
                wish.source if wish else None,
                {identity: values[key] for identity, values in actual.items() if key in values},
            )
            for key in sorted(keys)
            for wish in [subject.wishes.get(key)]
        )

    def _read(
        self, joined: Iterable[Endpoint], keys: Collection[str] | None
    ) -> dict[EndpointId, Mapping[str, str]]:
        """Return what each sandbox has, by endpoint; those that are not there are left out."""
        host_ends = {host_end_name(endpoint.id): endpoint for endpoint in joined}
        found = self._kernel.read_sandboxes(
            {host_end: sandbox_of(endpoint) for host_end, endpoint in host_ends.items()}, keys
        )
        return {host_ends[host_end].id: values for host_end, values in found.items()}

    def _why_refused(self, sysctl: Sysctl) -> str:
        """Return why no network may set a parameter to the host's value, "" if one may."""
        try:
            self._policy.check([sysctl])
            self._kernel.check_sysctls([sysctl])
        except InvalidRequest as error:
            return str(error)
        return ""


def _differing(host: Mapping[str, str], pristine: Mapping[str, str]) -> list[str]:
    both = sorted(host.keys() & pristine.keys())
    return [key for key in both if not is_same(host[key], pristine[key])]
