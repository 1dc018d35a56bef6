"""Any order of calls, repeats and crashes included, against a model of what Docker may expect.

The model knows no kernel and no rows: only which calls must succeed, which may not, and what
answers stay the same. What the driver holds must be what the model says, at every step.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from driver.driver import BridgeDriver
from driver.model import host_end_name
from driver.state.store import Store
from plugin.api.protocol import GENERIC, PORT_MAP
from tests.samples import KEEPALIVE, endpoint_id, network_id, sandbox_key
from tests.unit.strangers import Line, random_seed

if TYPE_CHECKING:
    from collections.abc import Callable

NETWORKS, ENDPOINTS, SANDBOXES = (1, 2, 3), (1, 2, 3, 4), (1, 2)
ADDRESSES = (2, 3)
PORTS = (0, 80, 81)
OK, WRONG, CONFLICT = 200, 400, 409
EXAMPLES, STEPS = 300, 40


@dataclass
class Place:
    """An endpoint as Docker knows it."""

    net: int
    address: int | None  # None once it was given to another
    sandbox: int | None = None
    ports: frozenset[int] = frozenset()
    answer: Any = None


@dataclass
class Model:
    """What Docker asked for and was granted."""

    networks: set[int] = field(default_factory=set)
    endpoints: dict[int, Place] = field(default_factory=dict)

    def on(self, net: int) -> list[int]:
        """Return the endpoints of a network."""
        return [number for number, place in self.endpoints.items() if place.net == net]

    def holder(self, port: int, but: int) -> int | None:
        """Return the other endpoint that has a host port."""
        others = [number for number, each in self.endpoints.items() if port in each.ports]
        return next((number for number in others if number != but), None)


nets, numbers, keys = map(st.sampled_from, (NETWORKS, ENDPOINTS, SANDBOXES))
addresses = st.sampled_from(ADDRESSES)
port_sets = st.frozensets(st.sampled_from(PORTS), max_size=2)


class Reordering(RuleBasedStateMachine):
    """The calls of the protocol as rules, each possible at any time."""

    requests = 0

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.line = Line(Store(Path(self._folder.name)))
        self.model = Model()

    def call(self, name: str, net: int, number: int | None = None, **rest: Any) -> int:
        """Make a call; return its status."""
        ids: dict[str, str] = {"NetworkID": network_id(net)}
        if number is not None:
            ids |= {"EndpointID": endpoint_id(number)}
        status, self.answer = self.line.send(
            f"/NetworkDriver.{name}", json.dumps(ids | rest).encode()
        )
        return status

    @initialize()
    def begin(self) -> None:
        self.line.kernel.add_sandbox(sandbox_key(1))

    @rule(net=nets)
    def create_network(self, net: int) -> None:
        pool = {"Pool": f"10.{net}.0.0/24", "Gateway": f"10.{net}.0.1/24"}
        pool6 = {"Pool": f"fd00:{net}::/64", "Gateway": f"fd00:{net}::1/64"}
        options = {GENERIC: {KEEPALIVE: f"{net}00"}}
        status = self.call("CreateNetwork", net, IPv4Data=[pool], IPv6Data=[pool6], Options=options)
        assert status == OK
        self.model.networks.add(net)

    @rule(net=nets)
    def create_it_otherwise(self, net: int) -> None:
        pool = {"Pool": f"10.{net}.0.0/16", "Gateway": f"10.{net}.0.1/16"}
        if net in self.model.networks:
            assert self.call("CreateNetwork", net, IPv4Data=[pool]) == CONFLICT

    @rule(net=nets)
    def delete_network(self, net: int) -> None:
        assert self.call("DeleteNetwork", net) == OK
        self.model.networks.discard(net)
        for number in self.model.on(net):
            del self.model.endpoints[number]

    @rule(number=numbers, net=nets, address=addresses)
    def create_endpoint(self, number: int, net: int, address: int) -> None:
        interface = {"Address": f"10.{net}.0.{address}/24"}
        status = self.call("CreateEndpoint", net, number, Interface=interface)
        known = self.model.endpoints.get(number)
        if net not in self.model.networks:
            assert status == WRONG
        elif known is not None and (known.net, known.address) != (net, address):
            assert status == CONFLICT
        elif known is not None:
            assert (status, self.answer) == (OK, known.answer)
        else:
            assert status == OK
            for other in self.model.on(net):
                self._give_away(other, address)
            self.model.endpoints[number] = Place(net, address, answer=self.answer)

    def _give_away(self, number: int, address: int) -> None:
        """Take an address from an endpoint that has it, as Docker gives it to another.

        Docker has forgotten the first then; but one that runs is never evicted: engine 29 does so
        when the container's own parameters turn a family off.
        """
        place = self.model.endpoints[number]
        if place.address != address:
            return
        if place.sandbox and sandbox_key(place.sandbox) in self.line.kernel.sandboxes:
            place.address, place.ports = None, frozenset()
        else:
            del self.model.endpoints[number]

    @rule(number=numbers, net=nets)
    def delete_endpoint(self, number: int, net: int) -> None:
        status = self.call("DeleteEndpoint", net, number)
        assert status == (CONFLICT if self._is_elsewhere(number, net) else OK)
        if status == OK:
            self.model.endpoints.pop(number, None)

    @rule(number=numbers, net=nets, key=keys)
    def join(self, number: int, net: int, key: int) -> None:
        status = self.call("Join", net, number, SandboxKey=sandbox_key(key))
        place = self.model.endpoints.get(number)
        if place is None or net not in self.model.networks:
            assert status in ({WRONG, CONFLICT} if self._is_elsewhere(number, net) else {WRONG})
        elif place.net != net or place.sandbox not in {None, key}:
            assert status == CONFLICT
        else:
            assert status == OK
            assert self.answer["Gateway"] == f"10.{net}.0.1"
            place.sandbox = key

    @rule(number=numbers, net=nets)
    def leave(self, number: int, net: int) -> None:
        status = self.call("Leave", net, number)
        assert status == (CONFLICT if self._is_elsewhere(number, net) else OK)
        if status == OK and number in self.model.endpoints:
            place = self.model.endpoints[number]
            place.ports = frozenset() if place.sandbox else place.ports
            place.sandbox = None

    @rule(number=numbers, net=nets)
    def report(self, number: int, net: int) -> None:
        status = self.call("EndpointOperInfo", net, number)
        assert status == (CONFLICT if self._is_elsewhere(number, net) else OK)

    @rule(number=numbers, net=nets, ports=port_sets)
    def program(self, number: int, net: int, ports: frozenset[int]) -> None:
        entries = [{"Proto": 6, "Port": 7, "HostPort": port} for port in sorted(ports)]
        status = self.call("ProgramExternalConnectivity", net, number, Options={PORT_MAP: entries})
        place = self.model.endpoints.get(number)
        if place is None or net not in self.model.networks:
            assert status in ({WRONG, CONFLICT} if self._is_elsewhere(number, net) else {WRONG})
        elif place.net != net:
            assert status == CONFLICT
        elif any(self.model.holder(port, number) for port in ports - {0}):
            assert status == CONFLICT
            place.ports = frozenset()
        else:
            assert status == OK
            place.ports = ports

    @rule(number=numbers, net=nets)
    def revoke(self, number: int, net: int) -> None:
        status = self.call("RevokeExternalConnectivity", net, number)
        assert status == (CONFLICT if self._is_elsewhere(number, net) else OK)
        if status == OK and number in self.model.endpoints:
            self.model.endpoints[number].ports = frozenset()

    @rule()
    def crash(self) -> None:
        """Have the driver killed and started again."""
        self.line.kernel.restart()
        self.line.driver = BridgeDriver(self.line.store, self.line.kernel)
        self.line.driver.restore()
        self.line.kernel.look()

    @precondition(lambda self: sandbox_key(2) not in self.line.kernel.sandboxes)
    @rule()
    def a_sandbox_comes(self) -> None:
        self.line.kernel.arrive(sandbox_key(2))

    @precondition(lambda self: sandbox_key(2) in self.line.kernel.sandboxes)
    @rule()
    def a_sandbox_goes(self) -> None:
        """Have a container die without a word from Docker, and what it had be found and removed."""
        self.line.kernel.die(sandbox_key(2))
        self.line.driver.repair_all()
        places = self.model.endpoints
        for number in [number for number, place in places.items() if place.sandbox == 2]:
            del places[number]

    def _is_elsewhere(self, number: int, net: int) -> bool:
        place = self.model.endpoints.get(number)
        return place is not None and place.net != net

    @invariant()
    def the_driver_holds_what_docker_asked_for(self) -> None:
        kernel, held = self.line.kernel, dict(self.line.driver.describe())
        assert {int(each.id[:2], 16) for each in held} == self.model.networks
        endpoints = {each.id: each for all_ in held.values() for each in all_}
        assert endpoints.keys() == {endpoint_id(number) for number in self.model.endpoints}
        bridges = {f"pn-{network_id(net)[:12]}" for net in self.model.networks}
        assert {name for name in kernel.links if name.startswith("pn-")} == bridges
        assert len(kernel.elements("bridges")) == len(self.model.networks)
        taken = set()
        for number, place in self.model.endpoints.items():
            attachment = endpoints[endpoint_id(number)].attachment
            key = sandbox_key(place.sandbox) if place.sandbox else None
            assert (attachment.sandbox if attachment else None) == key
            assert (host_end_name(endpoint_id(number)) in kernel.links) >= (key is not None)
            bound = {each.host for each in endpoints[endpoint_id(number)].bindings}
            assert len(bound) == 2 * len(place.ports)
            taken |= bound
        assert kernel.reserved == taken
        assert {each.port for each in taken if each} >= {
            port for place in self.model.endpoints.values() for port in place.ports - {0}
        }

    @invariant()
    def nothing_differs(self) -> None:
        assert self.line.driver.check() == ()

    def teardown(self) -> None:
        """Have everything deleted; the sandboxes must have what they began with."""
        self.line.end(sandbox_key(2))
        Reordering.requests += self.line.sent
        self.line.store.close()
        self._folder.cleanup()


def test_any_order(record_property: Callable[[str, object], None], quiet: object) -> None:
    start = random_seed()
    record_property("reorderings' seed, PYNET_SEED", str(start))
    seed(start)(Reordering)
    limits = settings(max_examples=EXAMPLES, stateful_step_count=STEPS)
    run_state_machine_as_test(Reordering, settings=limits)
    record_property("strangers' requests", Reordering.requests)
