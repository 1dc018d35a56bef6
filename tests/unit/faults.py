"""How every call of an operation fails, and what may then be left; the scenarios are elsewhere.

The calls are those that a recording of the operation made, and how each can fail is said here for
every verb of `Kernel`: one that is added without a word about it fails the test of completeness.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from driver.driver import BridgeDriver
from driver.errors import Conflict, DriverError, InvalidRequest, KernelError, StoreError
from driver.linux import Kernel
from driver.model import Veth
from driver.state.store import Store
from tests.fakes import Calls, FakeKernel, counted_kernel, counted_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Operation = Callable[[BridgeDriver], object]
    Prepare = Callable[["World"], None]

TABLES = ("network", "pool", "endpoint", "binding", "trace", "boot")
SOMEBODY = "nginx (pid 4711)"


class Fault(Enum):
    """What can go wrong when a verb is called."""

    REFUSED = auto()  # by the kernel, in its own words
    TAKEN = auto()  # a name that another program has
    MALFORMED = auto()  # a value that this kernel does not take, a sandbox that is the host's own
    GONE = auto()  # the sandbox, with every interface in it, a moment before
    PORT_TAKEN = auto()  # by another process, a moment before
    UNWRITTEN = auto()  # the state file's disk is full, or broken

    @property
    def is_passing(self) -> bool:
        """Whether the world is as it was once the call has failed."""
        return self is not Fault.GONE

    def happen(self, world: World, *args: Any) -> None:
        """Raise what the call would, or do to the world what makes the call itself fail."""
        if self is Fault.GONE:
            named = args[:2] if isinstance(args[0], str | Veth) else args[0]
            for sandbox in [each for each in named if each in world.kernel.sandboxes]:
                world.kernel.die(sandbox)
        elif self is Fault.PORT_TAKEN:
            world.kernel.taken = dict.fromkeys(args[0], SOMEBODY) | world.kernel.taken
        else:
            raise _ERRORS[self]("injected")

    def heal(self, world: World) -> None:
        """Have it pass."""
        taken = world.kernel.taken
        world.kernel.taken = {place: who for place, who in taken.items() if who != SOMEBODY}


_ERRORS: dict[Fault, type[DriverError]] = {
    Fault.REFUSED: KernelError,
    Fault.TAKEN: Conflict,
    Fault.MALFORMED: InvalidRequest,
    Fault.UNWRITTEN: StoreError,
}
_ONLY_REFUSED = (Fault.REFUSED,)
_IN_SANDBOX = (Fault.REFUSED, Fault.MALFORMED, Fault.GONE)
# Every verb, and every error that its words in `Kernel` speak of.
FAULTS: dict[str, tuple[Fault, ...]] = {
    "ensure_bridge": (Fault.REFUSED, Fault.TAKEN),
    "delete_bridge": _ONLY_REFUSED,
    "create_veth": (Fault.REFUSED, Fault.TAKEN),
    "create_veth_in": (*_IN_SANDBOX, Fault.TAKEN),
    "ensure_port": _ONLY_REFUSED,
    "delete_links": _ONLY_REFUSED,
    "release_links": _ONLY_REFUSED,
    "observe_links": _ONLY_REFUSED,
    "apply_rules": _ONLY_REFUSED,
    "change_elements": _ONLY_REFUSED,
    "list_rules": _ONLY_REFUSED,
    "preview_rules": _ONLY_REFUSED,
    "ensure_forward_accept": _ONLY_REFUSED,
    "has_forward_accept": _ONLY_REFUSED,
    "delete_forward_accept": _ONLY_REFUSED,
    "set_zone": (),  # these only ask; what comes of it is told elsewhere
    "change_zone": (),
    "delete_zone": (),
    "settle_zone": (),
    "zone_problem": (),
    "watch_zone": (),
    "ensure_forwarding": _ONLY_REFUSED,
    "delete_loopback_pair": _ONLY_REFUSED,
    "ephemeral_ports": _ONLY_REFUSED,
    "reserve_ports": (Fault.REFUSED, Fault.PORT_TAKEN),
    "release_ports": _ONLY_REFUSED,
    "list_reserved": _ONLY_REFUSED,
    "relay_ports": _ONLY_REFUSED,
    "list_relayed": (),  # only looks
    "find_port_owner": _ONLY_REFUSED,
    "forget_flows": _ONLY_REFUSED,
    "check_sysctls": (Fault.REFUSED, Fault.MALFORMED),
    "read_pristine": _ONLY_REFUSED,
    "read_host": _ONLY_REFUSED,
    "read_sandboxes": (),  # only looks, and belongs to no operation
    "observe_host": _ONLY_REFUSED,
    "observe_passage": (),  # only looks, and belongs to no operation
    "has_sandbox": _ONLY_REFUSED,
    "hold_sandbox": (Fault.REFUSED, Fault.MALFORMED),
    "leaves_elsewhere": _ONLY_REFUSED,
    "read_macs": (),  # only looks, and belongs to no operation
    "read_sysctls": _IN_SANDBOX,
    "write_sysctls": _IN_SANDBOX,
    "find_index": (),  # only looks
    "find_interface": _IN_SANDBOX,
    "set_interface_sysctls": _IN_SANDBOX,
    "await_interface_sysctls": _IN_SANDBOX,
    "watch_sandbox": _ONLY_REFUSED,
    "unwatch_sandbox": _ONLY_REFUSED,
    "watch_damage": (),  # begins and ends with the process, and belongs to no operation
    "read_drops": _ONLY_REFUSED,
    "read_rule_counts": _ONLY_REFUSED,
    "read_published": _ONLY_REFUSED,
    "count_connections": _ONLY_REFUSED,
    "read_traffic": _ONLY_REFUSED,
    "boot_id": _ONLY_REFUSED,
    "close": (),  # the same
}
VERBS = frozenset(name for name in vars(Kernel) if not name.startswith("_"))
STORE_CALLS = frozenset(
    {f"Store.{name}" for name in vars(Store) if not name.startswith("_")}
    - {"Store.transaction", "Store.close", "Store.verify"}  # the last is of no operation
    | {"Store.BEGIN", "Store.COMMIT"}
)


class World:
    """A driver with its store and kernel, and everything that it can leave behind."""

    def __init__(self, store: Store, prepare: Prepare) -> None:
        self.store = store
        self.kernel = FakeKernel()
        self.driver = BridgeDriver(store, self.kernel)
        for table in reversed(TABLES):
            store._db.execute(f"DELETE FROM {table}")
        self.driver.restore()
        prepare(self)

    def state(self) -> dict[str, Any]:
        """Return all links, rules, reservations, sandboxes, watches and rows.

        But for forwarding, which stays on once a network needed it, as Docker leaves it.
        """
        rows = {"intent": self.intent(), "memory": self.rows("trace", "boot")}
        stays = {"forwarding": None, "forward_policies": None}
        return self.kernel.state() | stays | rows

    def intent(self) -> list[list[Any]]:
        """Return the rows of what Docker has asked for."""
        return self.rows("network", "pool", "endpoint", "binding")

    def rows(self, *tables: str) -> list[list[Any]]:
        """Return the rows of some tables."""
        found = (self.store._db.execute(f"SELECT * FROM {table}") for table in tables)
        return [sorted(each, key=str) for each in found]

    def run(self, operation: Operation, calls: Calls) -> None:
        """Run an operation on a driver whose calls are counted."""
        operation(
            BridgeDriver(counted_store(self.store, calls), counted_kernel(self.kernel, calls))
        )

    def fails(self, operation: Operation, at: int, fault: Fault) -> bool:
        """Run an operation, one call of which fails; tell whether it reports that."""
        try:
            self.run(operation, Calls(at, lambda *args: fault.happen(self, *args)))
        except DriverError:
            return True
        finally:
            fault.heal(self)
        return False

    def restart(self) -> None:
        """Start the driver anew."""
        self.kernel.restart()
        self.driver = BridgeDriver(self.store, self.kernel)
        self.driver.restore()
        self.kernel.look()

    def end(self) -> None:
        """Have Docker delete all that there is."""
        for network, endpoints in self.driver.describe():
            for endpoint in endpoints:
                self.driver.leave(network.id, endpoint.id)
                self.driver.delete_endpoint(network.id, endpoint.id)
            self.driver.delete_network(network.id)


class After(Enum):
    """What becomes of an operation when one of its calls fails."""

    TAKEN_BACK = auto()  # creates, joins, reports: everything is as it was
    CARRIED_ON = auto()  # deletes: the row has gone or nothing has, the rest does what it can
    FINISHED_LATER = auto()  # what nobody asked for by a request: the next start finishes it


@dataclass(frozen=True)
class Scenario:
    """An operation, what has been before it, and what becomes of it when a call fails.

    `may_log`: some failures concern what is left over, and are logged instead of reported.
    `harmless`: what a failure may leave done, because it is right whatever follows.
    `unfinished`: a call whose failure nothing makes good.
    `may_forget`: a sandbox keeps its parameters when the state file cannot take what they were
    before; for a container that is about to start with them.
    """

    name: str
    operation: Operation
    before: tuple[Prepare, ...] = ()
    after: After = After.TAKEN_BACK
    may_log: bool = False
    harmless: Prepare | None = None
    unfinished: str = ""
    may_forget: bool = False

    def prepare(self, world: World) -> None:
        for step in self.before:
            step(world)

    def record(self, store: Store) -> tuple[list[str], World]:
        """Return the calls that the operation makes and the world that it leads to."""
        world, calls = World(store, self.prepare), Calls()
        world.run(self.operation, calls)
        return calls.made, world


def cases(calls: list[str]) -> Iterator[tuple[int, Fault]]:
    """Yield every failure of a recording: which call, and how."""
    for index, call in enumerate(calls):
        owner, _, verb = call.partition(".")
        for fault in (Fault.UNWRITTEN,) if owner == "Store" else FAULTS[verb]:
            yield index, fault


@dataclass
class Check:
    """All failures of a scenario, tried one by one against what may be left by them."""

    scenario: Scenario
    store: Store
    count: int = 0
    calls: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Try them all; raises AssertionError that says which call failed and how."""
        scenario = self.scenario
        self.calls, good = scenario.record(self.store)
        self.done = good.state()
        good.restart()
        self.restarted = good.state()
        good.end()
        self.ended = good.state()
        self.before = {
            each.is_passing: self._acceptable(each) for each in (Fault.GONE, Fault.TAKEN)
        }
        for at, fault in cases(self.calls):
            if self.calls[at] == scenario.unfinished:
                continue
            self.count += 1
            try:
                self._try(at, fault)
            except (AssertionError, DriverError) as error:
                error.add_note(f"{self.calls[at]} fails, call {at} of {len(self.calls)}: {fault}")
                raise

    def _try(self, at: int, fault: Fault) -> None:
        world = World(self.store, self.scenario.prepare)
        reported = world.fails(self.scenario.operation, at, fault)
        assert reported or self.scenario.may_log or fault in {Fault.GONE, Fault.PORT_TAKEN}
        self._check_left(world, at, fault, reported=reported)
        if fault.is_passing:
            self._repeat(world, fault, reported=reported)
        world.restart()
        if fault is Fault.PORT_TAKEN and not reported:
            settled = world.state()
            world.restart()
            assert world.state() == settled
        elif fault.is_passing:
            self._compare(world, self.restarted, fault)
        assert world.driver.check() == ()
        world.end()
        self._compare(world, self.ended, fault)

    def _compare(self, world: World, expected: dict[str, Any], fault: Fault) -> None:
        """Compare the world, but for sandboxes that are gone or keep what they were given."""
        aside = {}
        if not fault.is_passing or (fault is Fault.UNWRITTEN and self.scenario.may_forget):
            aside = {"sandboxes": None, "memory": None}
        assert world.state() | aside == expected | aside

    def _check_left(self, world: World, at: int, fault: Fault, *, reported: bool) -> None:
        """Check what is left right after the failure."""
        before = self.before[fault.is_passing]
        if reported and self.scenario.after is After.TAKEN_BACK:
            assert world.state() in before
        if self.scenario.after is not After.CARRIED_ON:
            return
        if self.calls[at].startswith("FakeKernel."):
            harmless = [each["intent"] for each in before if self.scenario.harmless]
            assert world.intent() in [self.done["intent"], *harmless]
        elif world.intent() != self.done["intent"]:
            assert world.state() in before

    def _acceptable(self, fault: Fault) -> list[dict[str, Any]]:
        """Return the states that a reported failure may leave."""
        world = World(self.store, self.scenario.prepare)
        if fault is Fault.GONE:
            for sandbox in tuple(world.kernel.sandboxes):
                world.kernel.die(sandbox)
        states = [world.state()]
        if self.scenario.harmless is not None:
            self.scenario.harmless(world)
            states.append(world.state())
        return states

    def _repeat(self, world: World, fault: Fault, *, reported: bool) -> None:
        """Have the request come again, which must succeed."""
        world.run(self.scenario.operation, Calls())
        if self.scenario.after is After.TAKEN_BACK and reported:
            assert world.state() == self.done
