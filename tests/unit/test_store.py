"""The state file: what goes in comes out, all of it or nothing, and only for root's eyes."""

from __future__ import annotations

import sqlite3
import stat
from dataclasses import fields, replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from driver.driver import NewJoin
from driver.errors import StoreError
from driver.model import (
    Attach,
    Attachment,
    Endpoint,
    EndpointOptions,
    GatewayMode,
    Guard,
    GuardAlso,
    MacAddress,
    Network,
    NetworkOptions,
    Publish,
    Trace,
)
from driver.state import store as module
from driver.state.store import COPY_NAME, FEW_PORTS, FILE_NAME, MIGRATIONS, Store
from tests.samples import (
    KEEPALIVE,
    binding,
    endpoint_id,
    network,
    network_id,
    new_endpoint,
    one_of_many,
    place,
    pool,
    sandbox_key,
    sysctl,
)

if TYPE_CHECKING:
    from pathlib import Path

    from driver.driver import BridgeDriver
    from driver.model import EndpointId, NetworkId

VRRP = "00:00:5e:00:01:07"
PLAIN = network(1)
FULL = network(
    2,
    f"{KEEPALIVE}=600",
    "net.ipv4.tcp_rmem=1\t2 3",
    pools=(
        pool("10.2.0.1/24", "LocalDefault"),
        replace(pool("10.3.0.1/24"), gateway=None, default_gateway=IPv4Address("10.3.0.9")),
        pool("fd00::1/64"),
        pool("0.0.0.0/0"),
    ),
    bridge_name="br0",
    mtu=9000,
    ifname_prefix="front",
    without_effect=("com.docker.network.bridge.default_bridge",),
    internal=True,
    masquerade=False,
    icc=False,
    gateway_mode_ipv4=GatewayMode.ISOLATED,
    gateway_mode_ipv6=GatewayMode.NAT_UNPROTECTED,
    host_binding_ipv4=IPv4Address("127.0.0.1"),
    host_binding_ipv6=IPv6Address("::1"),
    host_ipv4=IPv4Address("192.0.2.7"),
    host_ipv6=IPv6Address("2001:db8::7"),
    inhibit_ipv4=True,
    inherit=("net.ipv4.tcp_*", "net.core.somaxconn"),
    priority=-5,
    trusted_host_interfaces=("eth1", "wg0"),
    attach=Attach.DIRECT,
    publish=Publish.DOCKER,
    proxy_protocol=True,
    guard=Guard.ADDRESS,
    guard_also=GuardAlso(
        (IPv4Address("10.2.0.100"),), (IPv6Address("fd00::100"),), (MacAddress(VRRP),)
    ),
    connections=1000,
)
BARE = Endpoint(endpoint_id(1), network_id(2), None, None, MacAddress("02:42:0a:02:00:02"))
ENDPOINT = Endpoint(
    endpoint_id(2),
    network_id(2),
    IPv4Interface("10.2.0.2/24"),
    IPv6Interface("fd00::2/64"),
    MacAddress("02:42:0a:02:00:03"),
    sysctls=(sysctl(f"{KEEPALIVE}=300"),),
    engine_keys=frozenset({"net.ipv4.conf.IFNAME.rp_filter", "net.ipv6.conf.IFNAME.accept_ra"}),
    ifname="front0",
    options=EndpointOptions(
        Guard.OFF, GuardAlso((IPv4Address("10.2.0.101"),)), connections=7, recovered=True
    ),
    attachment=Attachment(sandbox_key(1), configured=True),
)
BINDINGS = (
    binding("0.0.0.0:8080", "10.2.0.2:80"),
    binding("[::1]:8080", "[fd00::2]:80"),
    binding("127.0.0.1:53/udp", "10.2.0.2:53/udp"),
    binding(None, "[fd00::2]:53/sctp"),
)


@pytest.mark.parametrize("each", [PLAIN, FULL], ids=["plain", "full"])
def test_a_network_comes_back_as_it_was(store: Store, each: Network) -> None:
    with store.transaction():
        store.add_network(each, each.gateways[:1])
    with store.transaction():
        assert store.find_network(each.id) == each
        assert store.networks() == (each,)
        assert store.added_addresses(each.id) == each.gateways[:1]


@pytest.mark.parametrize(
    "each", [BARE, ENDPOINT, BARE.joined(sandbox_key(3)), ENDPOINT.left()], ids=range(4)
)
def test_an_endpoint_comes_back_as_it_was(store: Store, each: Endpoint) -> None:
    with store.transaction():
        store.add_network(FULL, ())
        store.put_endpoint(each)
        store.put_endpoint(each)
        assert store.find_endpoint(each.id) == each
        assert store.endpoints() == store.endpoints(FULL.id) == (each,)
        assert store.endpoints(PLAIN.id) == ()


def test_a_bridge_of_others_is_remembered(store: Store) -> None:
    with store.transaction():
        store.add_network(replace(PLAIN, shared=True), ())
        store.add_network(FULL, ())
        assert [each.shared for each in store.networks()] == [True, False]
        found = store.find_network(PLAIN.id)
        assert found is not None
        assert found.shared


def test_every_option_is_tried_with_another_value() -> None:
    plain = NetworkOptions()
    same = {
        each.name
        for each in fields(plain)
        if getattr(plain, each.name) == getattr(FULL.options, each.name)
    }
    assert same == set()


@pytest.mark.parametrize(("count", "kept"), [(FEW_PORTS, 1), (FEW_PORTS + 1, 0)])
def test_an_endpoint_is_kept_decoded_unless_it_has_many_ports(
    store: Store, count: int, kept: int
) -> None:
    bindings = tuple(binding(f"0.0.0.0:{8000 + number}") for number in range(count))
    module._endpoint.cache_clear()
    with store.transaction():
        store.add_network(FULL, ())
        store.put_endpoint(ENDPOINT)
        store.put_bindings(ENDPOINT.id, bindings)
        for _ in range(2):
            assert store.find_endpoint(ENDPOINT.id) == ENDPOINT.published(bindings)
    assert module._endpoint.cache_info().currsize == kept


def test_bindings_come_back_in_their_order_and_go_with_their_endpoint(store: Store) -> None:
    with store.transaction():
        store.add_network(FULL, ())
        store.put_endpoint(ENDPOINT)
        for bindings in (BINDINGS, BINDINGS[:1], (), BINDINGS):
            store.put_bindings(ENDPOINT.id, bindings)
            assert store.endpoints() == (ENDPOINT.published(bindings),)
        store.put_endpoint(ENDPOINT.left())
        assert store.endpoints() == (ENDPOINT.left().published(BINDINGS),)
        store.delete_endpoint(ENDPOINT.id)
        assert store._db.execute("SELECT * FROM binding").fetchall() == []


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("0.0.0.0:8080", True),
        ("127.0.0.1:8080", True),
        ("192.0.2.1:8080", True),
        ("0.0.0.0:8080/udp", False),
        ("0.0.0.0:8081", False),
        ("[::]:8080", True),
        ("[::1]:8080", True),
        ("[fd00::1]:8080", False),
        ("127.0.0.1:53/udp", True),
        ("127.0.0.2:53/udp", False),
        ("[::]:53/sctp", False),
    ],
)
def test_who_published_a_port_is_known(store: Store, where: str, *, expected: bool) -> None:
    with store.transaction():
        store.add_network(FULL, ())
        store.put_endpoint(ENDPOINT)
        store.put_bindings(ENDPOINT.id, BINDINGS)
        found = store.find_publisher(place(where))
        assert (found is not None and found.id == ENDPOINT.id) is expected


def test_what_is_not_there_is_none(store: Store) -> None:
    with store.transaction():
        assert store.find_network(PLAIN.id) is None
        assert store.find_endpoint(BARE.id) is None
        assert store.added_addresses(PLAIN.id) == ()
        assert store.traces(sandbox_key(1)) == {}
        store.delete_network(PLAIN.id)
        store.delete_endpoint(BARE.id)


def test_endpoints_come_in_the_order_of_their_joins(store: Store) -> None:
    sandbox = sandbox_key(1)
    endpoints = [replace(BARE, id=endpoint_id(number)) for number in (3, 1, 2)]
    with store.transaction():
        store.add_network(FULL, ())
        for each in endpoints:
            store.put_endpoint(each)
        for each in endpoints:
            store.put_endpoint(each.joined(sandbox))
        store.put_endpoint(endpoints[0].joined(sandbox).configured())
        assert [each.id for each in store.endpoints_in(sandbox)] == [each.id for each in endpoints]
        store.put_endpoint(endpoints[0])
        store.put_endpoint(endpoints[0].joined(sandbox))
        assert [each.id for each in store.endpoints_in(sandbox)][-1] == endpoints[0].id


def test_a_networks_end_is_its_endpoints_end(store: Store) -> None:
    with store.transaction():
        store.add_network(FULL, ())
        store.put_endpoint(ENDPOINT)
        store.delete_network(FULL.id)
        assert store.endpoints() == ()


def test_an_endpoint_needs_its_network(store: Store) -> None:
    with pytest.raises(StoreError, match="FOREIGN KEY"), store.transaction():
        store.put_endpoint(BARE)


def test_a_trace_keeps_what_was_there_first(store: Store) -> None:
    sandbox, other = sandbox_key(1), sandbox_key(2)
    with store.transaction():
        store.put_traces(sandbox, [Trace(KEEPALIVE, "7200", "600")])
        store.put_traces(
            sandbox, [Trace(KEEPALIVE, "600", "900"), Trace("net.core.x", "a\tb", "c")]
        )
        store.put_traces(other, [Trace(KEEPALIVE, "7200", "1")])
        assert store.traces(sandbox)[KEEPALIVE] == Trace(KEEPALIVE, "7200", "900")
        assert store.sandboxes() == (sandbox, other)
        store.delete_traces(sandbox, [KEEPALIVE, "net.core.x"])
        assert store.sandboxes() == (other,)


def test_the_boot_is_remembered(store: Store) -> None:
    with store.transaction():
        assert store.boot_id() is None
        for boot in ("one", "two"):
            store.set_boot_id(boot)
            assert store.boot_id() == boot


def test_a_failed_block_leaves_nothing(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.transaction():
        1 // (store.add_network(FULL, ()) or 0)  # type: ignore[func-returns-value]
    with store.transaction():
        assert store.networks() == ()


def test_blocks_do_not_nest(store: Store) -> None:
    with (
        pytest.raises(StoreError, match="inside a transaction"),
        store.transaction(),
        store.transaction(),
    ):
        pytest.fail("nested")


def test_state_outlives_the_process(tmp_path: Path) -> None:
    first = Store(tmp_path)
    with first.transaction():
        first.add_network(FULL, ())
    first.close()
    second = Store(tmp_path)
    with second.transaction():
        assert second.networks() == (FULL,)
    second.close()


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "var" / "pynet"
    store = Store(folder)
    with store.transaction():
        store.set_boot_id("x")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in folder.iterdir():
        assert not file.stat().st_mode & 0o077, file
    assert len(list(folder.iterdir())) == 4  # the file, its log, the log's index, the reserve
    store.close()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_what_others_may_read_is_closed_to_them(tmp_path: Path, mode: int) -> None:
    """As an earlier version, or a copy by hand, has left it."""
    Store(tmp_path).close()
    file = tmp_path / FILE_NAME
    file.chmod(mode)
    Store(tmp_path).close()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_file_of_an_older_version_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIGRATIONS", ())
    Store(tmp_path).close()
    monkeypatch.undo()
    store = Store(tmp_path)
    assert store._db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    with store.transaction():
        store.add_network(FULL, ())
    store.close()
    with_one_more = (*MIGRATIONS, "ALTER TABLE network ADD COLUMN added_later TEXT;")
    monkeypatch.setattr(module, "MIGRATIONS", with_one_more)
    store = Store(tmp_path)
    with store.transaction():
        assert store.networks() == (FULL,)
    store.close()


def test_who_attached_is_known_of_a_file_that_did_not_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIGRATIONS", MIGRATIONS[:6])
    old = Store(tmp_path)
    with old.transaction():
        for number, attach in ((1, "handover"), (2, "direct")):
            options = f'{{"attach": "{attach}", "sysctls": []}}'
            row = f"('{network_id(number)}', '{options}', '', 0)"
            old._run(f"INSERT INTO network (id, options, added, shared) VALUES {row}")
            row = f"'{endpoint_id(number)}', '{network_id(number)}', '02:42:0a:02:00:02', '[]', ''"
            old._run(
                "INSERT INTO endpoint (id, network_id, mac, sysctls, engine_keys, sandbox, "
                f"configured) VALUES ({row}, '/run/{number}', 1)"
            )
    old.close()
    monkeypatch.undo()
    store = Store(tmp_path)
    with store.transaction():
        found = {each.id: each.is_direct for each in store.endpoints()}
        assert found == {endpoint_id(1): False, endpoint_id(2): True}
        chosen = {each.id: each.options.attach for each in store.networks()}
        assert chosen == {network_id(1): None, network_id(2): Attach.DIRECT}
    store.close()


def test_the_copy_is_a_backup_that_can_be_had_at_any_moment(tmp_path: Path) -> None:
    """As docs/operations.md has it; the file itself is not whole without its log."""
    running = Store(tmp_path / "state")
    with running.transaction(durable=True):
        running.add_network(FULL, ())
    changed = replace(FULL, options=replace(FULL.options, mtu=1400))
    with running.transaction(durable=True):
        running.change_options(changed)
    (tmp_path / "restored").mkdir()
    backup = tmp_path / "restored" / FILE_NAME
    backup.write_bytes((tmp_path / "state" / COPY_NAME).read_bytes())
    running.close()
    restored = Store(tmp_path / "restored")
    restored.verify()
    with restored.transaction():
        assert restored.networks() == (changed,)
    restored.close()


def test_ports_taken_are_counted_through_all_that_becomes_of_an_endpoint(store: Store) -> None:
    def taken() -> dict[int, int]:
        with store.transaction():
            return {number: ports for number, ports in store.count_ports(FULL.id).items() if ports}

    def put(endpoint: Endpoint) -> dict[int, int]:
        with store.transaction():
            store.put_endpoint(endpoint)
        return taken()

    other = replace(BARE, id=endpoint_id(3))
    with store.transaction():
        store.add_network(FULL, ())
    assert put(BARE) == {}
    assert put(BARE.joined(sandbox_key(1))) == {0: 1}
    assert put(BARE.joined(sandbox_key(1)).configured()) == {0: 1}
    assert put(BARE.joined(sandbox_key(2))) == {0: 1}
    assert put(other.joined(sandbox_key(3)).on_bridge(2)) == {0: 1, 2: 1}
    assert put(BARE.joined(sandbox_key(2)).on_bridge(2)) == {2: 2}
    assert put(BARE.left()) == {2: 1}
    assert put(BARE.joined(sandbox_key(1)).on_bridge(1)) == {1: 1, 2: 1}
    with store.transaction():
        store.delete_endpoint(other.id)
    assert taken() == {1: 1}
    with store.transaction():
        store.delete_network(FULL.id)
    assert taken() == {}


def test_ports_taken_before_they_were_counted_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIGRATIONS", MIGRATIONS[:3])
    store = Store(tmp_path)
    with store.transaction():
        store._run("INSERT INTO network VALUES (?, '{}', '', NULL)", FULL.id)
        for endpoint, sandbox, bridge in (
            (ENDPOINT, sandbox_key(1), 0),
            (BARE, sandbox_key(3), 1),
            (replace(BARE, id=endpoint_id(3)), None, 0),
        ):
            store._run(
                """INSERT INTO endpoint (id, network_id, mac, sysctls, engine_keys, sandbox,
                                         configured, bridge) VALUES (?, ?, ?, '[]', '', ?, 0, ?)""",
                endpoint.id,
                FULL.id,
                endpoint.mac,
                sandbox,
                bridge,
            )
    store.close()
    monkeypatch.undo()
    store = Store(tmp_path)
    with store.transaction():
        assert store.count_ports(FULL.id) == {0: 1, 1: 1}
        store.put_endpoint(ENDPOINT.left())
        assert store.count_ports(FULL.id) == {0: 0, 1: 1}
    store.close()


def test_a_life_asks_as_much_of_the_state_file_beside_many_as_beside_one(
    store: Store, driver: BridgeDriver
) -> None:
    """Counted in SQLite's own instructions, which no machine makes faster."""
    wide = network(1, pools=(pool("10.1.0.1/16"),))
    driver.create_network(wide)

    def begin(number: int) -> tuple[NetworkId, EndpointId]:
        new = one_of_many(number)
        driver.create_endpoint(new)
        driver.join(NewJoin(wide.id, new.id, sandbox_key(number), has_ports=False))
        return wide.id, new.id

    def instructions(number: int) -> int:
        steps = count()
        store._db.set_progress_handler(lambda: next(steps) < 0, 1)
        of = begin(number)
        driver.endpoint_info(*of)
        driver.leave(*of)
        driver.delete_endpoint(*of)
        store._db.set_progress_handler(None, 0)
        return next(steps)

    begin(1)
    beside_one = instructions(2)
    for number in range(3, 400):
        begin(number)
    assert instructions(400) == pytest.approx(beside_one, rel=0.01)


def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(tmp_path).close()
    broken = (*MIGRATIONS, "CREATE TABLE half (id TEXT); CREATE NONSENSE;")
    monkeypatch.setattr(module, "MIGRATIONS", broken)
    with pytest.raises(StoreError, match="syntax error"):
        Store(tmp_path)
    monkeypatch.undo()
    store = Store(tmp_path)
    assert not store._db.execute("SELECT * FROM sqlite_master WHERE name = 'half'").fetchall()
    store.close()


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).close()
    db = sqlite3.connect(tmp_path / FILE_NAME)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(StoreError, match="start the newer pynet"):
        Store(tmp_path)


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("this is no database, and it is long enough to be read")
    with pytest.raises(StoreError, match=r"open the state file in .*: file is not a database"):
        Store(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=str(tmp_path)):
        Store(tmp_path / "file" / "state")


@pytest.mark.parametrize(("durable", "level"), [(True, 2), (False, 1)], ids=["FULL", "NORMAL"])
def test_only_a_durable_transaction_waits_for_the_disk(
    store: Store, *, durable: bool, level: int
) -> None:
    with store.transaction(durable=durable):
        assert store._one("PRAGMA synchronous") == (level,)


def test_networks_outlive_a_power_failure_and_endpoints_need_not(
    driver: BridgeDriver, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels: dict[str, tuple[object, ...] | None] = {}
    for name in ("add_network", "put_endpoint", "delete_endpoint", "delete_network"):
        write = getattr(store, name)

        def watched(*words: Any, name: str = name, write: Any = write) -> None:
            levels[name] = store._one("PRAGMA synchronous")
            write(*words)

        monkeypatch.setattr(store, name, watched)
    driver.create_network(network(1))
    driver.create_endpoint(new_endpoint(1, 1))
    driver.delete_endpoint(network_id(1), endpoint_id(1))
    driver.delete_network(network_id(1))
    assert levels == {
        "add_network": (2,),
        "put_endpoint": (1,),
        "delete_endpoint": (1,),
        "delete_network": (2,),
    }
