"""The state file: networks, endpoints, bindings and sysctl traces in SQLite.

Docker never repeats CreateNetwork. What the kernel has is derived from here and never stored.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import contextmanager
from functools import lru_cache
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING, Any

import msgspec

from driver.errors import StateDamaged, StoreError
from driver.health import Health
from driver.model import (
    Attachment,
    Endpoint,
    EndpointId,
    EndpointOptions,
    HostPort,
    MacAddress,
    Network,
    NetworkId,
    NetworkOptions,
    Pool,
    PortBinding,
    Protocol,
    SandboxKey,
    Sysctl,
    Trace,
)
from driver.state.reserve import DiskReserve

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from driver.model import IPInterface

FILE_NAME = "pynet.db"
COPY_NAME = "pynet.db-copy"  # made whenever a network comes or goes
DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
PRIMARY = 0xFF  # the bits of an error's code that are not its details

log = logging.getLogger(__name__)
REMEMBERED = 256  # networks whose options are kept decoded
FEW_PORTS = 32  # of an endpoint that is kept decoded

MIGRATIONS = (
    """
    CREATE TABLE network (
        id TEXT PRIMARY KEY, options TEXT NOT NULL, added TEXT NOT NULL
    ) STRICT;
    CREATE TABLE pool (
        network_id TEXT NOT NULL REFERENCES network ON DELETE CASCADE,
        position INTEGER NOT NULL, subnet TEXT NOT NULL, gateway TEXT, address_space TEXT NOT NULL,
        default_gateway TEXT,
        PRIMARY KEY (network_id, position)
    ) STRICT;
    CREATE TABLE endpoint (
        id TEXT PRIMARY KEY, network_id TEXT NOT NULL REFERENCES network ON DELETE CASCADE,
        ipv4 TEXT, ipv6 TEXT, mac TEXT NOT NULL, sysctls TEXT NOT NULL,
        engine_keys TEXT NOT NULL, ifname TEXT, sandbox TEXT, configured INTEGER NOT NULL,
        joins INTEGER
    ) STRICT;
    CREATE INDEX endpoint_network ON endpoint (network_id);
    CREATE INDEX endpoint_ipv4 ON endpoint (ipv4) WHERE ipv4 IS NOT NULL;
    CREATE INDEX endpoint_ipv6 ON endpoint (ipv6) WHERE ipv6 IS NOT NULL;
    CREATE INDEX endpoint_sandbox ON endpoint (sandbox) WHERE sandbox IS NOT NULL;
    CREATE INDEX endpoint_joins ON endpoint (joins);
    CREATE TABLE binding (
        endpoint_id TEXT NOT NULL REFERENCES endpoint ON DELETE CASCADE,
        protocol TEXT NOT NULL, container_ip TEXT NOT NULL, container_port INTEGER NOT NULL,
        host_ip TEXT, host_port INTEGER
    ) STRICT;
    CREATE INDEX binding_endpoint ON binding (endpoint_id);
    CREATE INDEX binding_host_port ON binding (host_port, protocol);
    CREATE TABLE trace (
        sandbox TEXT NOT NULL, key TEXT NOT NULL, before TEXT NOT NULL, written TEXT NOT NULL,
        PRIMARY KEY (sandbox, key)
    ) STRICT;
    CREATE TABLE boot (id TEXT NOT NULL) STRICT;
    """,
    """
    ALTER TABLE network ADD COLUMN defined TEXT;
    ALTER TABLE endpoint ADD COLUMN inherited TEXT NOT NULL DEFAULT '[]';
    """,
    """
    CREATE TABLE part (
        network_id TEXT NOT NULL REFERENCES network ON DELETE CASCADE, number INTEGER NOT NULL,
        PRIMARY KEY (network_id, number)
    ) STRICT;
    ALTER TABLE endpoint ADD COLUMN bridge INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX endpoint_bridge ON endpoint (network_id, bridge) WHERE sandbox IS NOT NULL;
    """,
    # How many joined endpoints are on each bridge, counted as they come and go: to count them
    # when the next one joins takes as long as there are endpoints.
    """
    CREATE TABLE taken (
        network_id TEXT NOT NULL REFERENCES network ON DELETE CASCADE, bridge INTEGER NOT NULL,
        ports INTEGER NOT NULL, PRIMARY KEY (network_id, bridge)
    ) STRICT;
    INSERT INTO taken SELECT network_id, bridge, count(*) FROM endpoint
        WHERE sandbox IS NOT NULL GROUP BY network_id, bridge;
    DROP INDEX endpoint_bridge;
    CREATE TRIGGER endpoint_added AFTER INSERT ON endpoint WHEN new.sandbox IS NOT NULL
    BEGIN
        INSERT INTO taken VALUES (new.network_id, new.bridge, 1)
            ON CONFLICT DO UPDATE SET ports = ports + 1;
    END;
    CREATE TRIGGER endpoint_moved AFTER UPDATE OF sandbox, bridge ON endpoint
        WHEN (old.sandbox IS NULL) <> (new.sandbox IS NULL) OR old.bridge <> new.bridge
    BEGIN
        UPDATE taken SET ports = ports - 1
            WHERE network_id = old.network_id AND bridge = old.bridge AND old.sandbox IS NOT NULL;
        INSERT INTO taken SELECT new.network_id, new.bridge, 1 WHERE new.sandbox IS NOT NULL
            ON CONFLICT DO UPDATE SET ports = ports + 1;
    END;
    CREATE TRIGGER endpoint_deleted AFTER DELETE ON endpoint WHEN old.sandbox IS NOT NULL
    BEGIN
        UPDATE taken SET ports = ports - 1
            WHERE network_id = old.network_id AND bridge = old.bridge;
    END;
    """,
    """
    ALTER TABLE network ADD COLUMN shared INTEGER NOT NULL DEFAULT 0;
    -- Nobody has written down whether a bridge with a name of its own was there before.
    UPDATE network SET shared = json_extract(options, '$.bridge_name') IS NOT NULL;
    ALTER TABLE endpoint ADD COLUMN options TEXT NOT NULL DEFAULT '{}';
    """,
    """
    CREATE INDEX endpoint_mac ON endpoint (network_id, mac);
    ALTER TABLE endpoint ADD COLUMN wants_ports INTEGER NOT NULL DEFAULT 0;
    """,
    """
    ALTER TABLE endpoint ADD COLUMN direct INTEGER NOT NULL DEFAULT 0;
    UPDATE endpoint SET direct = 1 WHERE sandbox IS NOT NULL AND network_id IN
        (SELECT id FROM network WHERE json_extract(options, '$.attach') = 'direct');
    -- That was the default, and nobody has written down who had asked for it.
    UPDATE network SET options = json_remove(options, '$.attach')
        WHERE json_extract(options, '$.attach') = 'handover';
    UPDATE network SET defined = json_remove(defined, '$.attach')
        WHERE json_extract(defined, '$.attach') = 'handover';
    """,
)

_NETWORK = """id, options, shared,
    (SELECT group_concat(number) FROM part WHERE network_id = network.id)"""


class Store:
    """The state file. Every method but `transaction` must run inside one.

    Raises StoreError for whatever SQLite reports.
    """

    def __init__(self, folder: Path, health: Health | None = None) -> None:
        """Open the file or make it; raises StateDamaged for what is no database."""
        with _translated(f"open the state file in {folder}"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = folder / FILE_NAME
            if _is_emptied(path):
                raise StateDamaged(f"open the state file {path}: it is empty, and its log is not")
            self._copy = folder / COPY_NAME
            self._health = health or Health()
            self._reserve = DiskReserve(folder)
            self._reserve.release()
            # SQLite would make it readable to everybody; its other files take after this one.
            path.touch(mode=0o600)
            _close_to_others(path)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA foreign_keys = ON")
                self._durable = False
                self._db.execute("PRAGMA synchronous = NORMAL")
                self.is_new = self._migrate()
                self._check_writable()
                self._reserve.allocate()
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def verify(self) -> None:
        """Raise StateDamaged unless the file is whole and every row can be read."""
        ((verdict,), *_) = self._all("PRAGMA quick_check(1)")
        if verdict != "ok":
            raise StateDamaged(f"read the state file: {verdict}")
        if self._all("PRAGMA foreign_key_check"):
            raise StateDamaged("read the state file: an endpoint is in no network")
        try:
            with self.transaction():
                self.networks()
                self.endpoints()
        except (ValueError, TypeError, AttributeError, msgspec.MsgspecError) as error:
            raise StateDamaged(f"read the state file: {error}") from error
        except StoreError as error:
            if _code(error.__cause__) == sqlite3.SQLITE_ERROR:  # no such table
                raise StateDamaged(str(error)) from error
            raise

    @contextmanager
    def transaction(self, *, durable: bool = False, frees: bool = False) -> Iterator[None]:
        """Commit what the block did, or nothing of it; `frees` is for blocks that only forget.

        What is committed outlives every crash of ours. Only a durable transaction waits until it
        outlives a power failure, too: Docker never repeats a network, and no endpoint outlives a
        reboot. Waiting costs 1 to 7 ms of disk (SQLite's documentation of PRAGMA synchronous).
        """
        if self._db.in_transaction:
            raise StoreError("write the state file: this is inside a transaction already")
        if frees:
            with _translated("write the state file"):
                self._reserve.release()
        if durable is not self._durable:
            self._run(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._durable = durable
        self._run("BEGIN IMMEDIATE")
        try:
            yield
            self._run("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, StateDamaged):
                remedy = "restart the driver, which puts the state file back together"
                self._health.report(FILE_NAME, f"{error}; {remedy}")
            raise
        if durable:
            self._keep_copy()

    def _keep_copy(self) -> None:
        """Copy the whole file, for the day it is damaged; a copy that fails is only reported.

        Without waiting for the disk, which would cost every network 3 ms: what a power failure
        leaves is the file itself.
        """
        partial = self._copy.with_name(f"{COPY_NAME}-partial")
        try:
            with _translated(f"keep a copy of the state file in {self._copy}"):
                partial.touch(mode=0o600)
                partial.write_bytes(self._db.serialize())
                partial.replace(self._copy)
                self._reserve.allocate()
        except StoreError as error:
            partial.unlink(missing_ok=True)
            log.warning("%s", error)
            self._health.report(COPY_NAME, f"{error}; what it holds is older than the networks")
        else:
            self._health.clear(COPY_NAME)

    def boot_id(self) -> str | None:
        """Return the boot in which the state was last used."""
        row = self._one("SELECT id FROM boot")
        return None if row is None else str(row[0])

    def set_boot_id(self, boot_id: str) -> None:
        """Remember the boot in which the state is used."""
        self._run("DELETE FROM boot")
        self._run("INSERT INTO boot VALUES (?)", boot_id)

    def add_network(self, network: Network, added: Iterable[IPInterface]) -> None:
        """Store a new network and the addresses that its bridge did not have before."""
        self._run(
            "INSERT INTO network (id, options, added, shared) VALUES (?, ?, ?, ?)",
            network.id,
            _encode_options(network.options),
            " ".join(map(str, added)),
            network.shared,
        )
        for position, pool in enumerate(network.pools):
            gateway = None if pool.gateway is None else str(pool.gateway)
            self._run(
                "INSERT INTO pool VALUES (?, ?, ?, ?, ?, ?)",
                network.id,
                position,
                str(pool.subnet),
                gateway,
                pool.address_space,
                _text(pool.default_gateway),
            )

    def change_options(self, network: Network) -> None:
        """Store other options of a network, and go on knowing those it was defined with."""
        self._run(
            "UPDATE network SET defined = coalesce(defined, options), options = ? WHERE id = ?",
            _encode_options(network.options),
            network.id,
        )

    def find_definition(self, network_id: NetworkId) -> Network | None:
        """Return a network as CreateNetwork defined it, None if it is not known."""
        query = "SELECT id, coalesce(defined, options), shared FROM network WHERE id = ?"
        row = self._one(query, network_id)
        return None if row is None else self._network(*row)

    def delete_network(self, network_id: NetworkId) -> None:
        """Forget a network, its pools and its endpoints."""
        self._run("DELETE FROM network WHERE id = ?", network_id)

    def find_network(self, network_id: NetworkId) -> Network | None:
        """Return a network, None if it is not known."""
        row = self._one(f"SELECT {_NETWORK} FROM network WHERE id = ?", network_id)  # noqa: S608
        return None if row is None else self._network(*row)

    def find_options(self, network_id: NetworkId) -> NetworkOptions | None:
        """Return a network's options alone, None if it is not known."""
        row = self._one("SELECT options FROM network WHERE id = ?", network_id)
        return None if row is None else _decode_options(row[0])

    def sort_by_age(self, networks: Sequence[NetworkId]) -> list[NetworkId]:
        """Return networks, the one that was made last first.

        SQLite gives a new row a greater rowid than all that there are (sqlite.org/autoinc.html).
        """
        marks = ", ".join("?" * len(networks))
        query = f"SELECT id FROM network WHERE id IN ({marks}) ORDER BY rowid DESC"  # noqa: S608 - marks
        return [row[0] for row in self._all(query, *networks)]

    def networks(self) -> tuple[Network, ...]:
        """Return all networks."""
        rows = self._all(f"SELECT {_NETWORK} FROM network ORDER BY id")  # noqa: S608 - ours
        return tuple(self._network(*row) for row in rows)

    def add_part(self, network_id: NetworkId, number: int) -> None:
        """Store that a network has an extra bridge."""
        self._run("INSERT INTO part VALUES (?, ?)", network_id, number)

    def delete_parts(self) -> None:
        """Forget the extra bridges of all networks, which no endpoint may be on."""
        self._run("DELETE FROM part")

    def count_ports(self, network_id: NetworkId) -> dict[int, int]:
        """Return how many joined endpoints are on each bridge of a network, by its number."""
        return dict(self._all("SELECT bridge, ports FROM taken WHERE network_id = ?", network_id))

    def added_addresses(self, network_id: NetworkId) -> tuple[IPInterface, ...]:
        """Return the addresses that the network's bridge did not have before."""
        row = self._one("SELECT added FROM network WHERE id = ?", network_id)
        return () if row is None else tuple(map(ip_interface, row[0].split()))

    def put_endpoint(self, endpoint: Endpoint) -> None:
        """Store an endpoint as it is now."""
        self._run(
            """INSERT INTO endpoint (id, network_id, ipv4, ipv6, mac, sysctls, engine_keys, ifname,
                                     options, sandbox, configured, inherited, bridge,
                                     wants_ports, direct)
               VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
               ON CONFLICT (id) DO UPDATE SET
                   joins = CASE WHEN excluded.sandbox IS NULL THEN NULL
                           WHEN excluded.sandbox IS sandbox THEN joins
                           ELSE (SELECT coalesce(max(joins), 0) + 1 FROM endpoint) END,
                   sandbox = excluded.sandbox, configured = excluded.configured,
                   inherited = excluded.inherited, bridge = excluded.bridge,
                   wants_ports = excluded.wants_ports, direct = excluded.direct""",
            endpoint.id,
            endpoint.network_id,
            _text(endpoint.ipv4),
            _text(endpoint.ipv6),
            endpoint.mac,
            _encode_sysctls(endpoint.sysctls),
            " ".join(sorted(endpoint.engine_keys)),
            endpoint.ifname,
            _encode_options(endpoint.options),
            None if endpoint.attachment is None else endpoint.attachment.sandbox,
            endpoint.attachment is not None and endpoint.attachment.configured,
            _encode_sysctls(() if endpoint.attachment is None else endpoint.attachment.inherited),
            0 if endpoint.attachment is None else endpoint.attachment.bridge,
            endpoint.attachment is not None and endpoint.attachment.wants_ports,
            endpoint.is_direct,
        )

    def change_addresses(self, endpoint: Endpoint) -> None:
        """Store that an endpoint has other addresses than it was made with."""
        self._run(
            "UPDATE endpoint SET ipv4 = ?, ipv6 = ? WHERE id = ?",
            _text(endpoint.ipv4),
            _text(endpoint.ipv6),
            endpoint.id,
        )

    def delete_endpoint(self, endpoint_id: EndpointId) -> None:
        """Forget an endpoint."""
        self._run("DELETE FROM endpoint WHERE id = ?", endpoint_id)

    def find_endpoint(self, endpoint_id: EndpointId) -> Endpoint | None:
        """Return an endpoint, None if it is not known."""
        found = self._endpoints("WHERE id = ?", endpoint_id)
        return found[0] if found else None

    def endpoints(self, network_id: NetworkId | None = None) -> tuple[Endpoint, ...]:
        """Return the endpoints of one network, or of all."""
        if network_id is None:
            return self._endpoints("")
        return self._endpoints("WHERE network_id = ?", network_id)

    def endpoints_at(self, addresses: Iterable[IPInterface]) -> tuple[Endpoint, ...]:
        """Return the endpoints, of any network, that have one of the addresses; by index."""
        texts = [str(address) for address in addresses]
        marks = ", ".join("?" * len(texts))
        return self._endpoints(f"WHERE ipv4 IN ({marks}) OR ipv6 IN ({marks})", *texts, *texts)

    def endpoints_with_mac(self, network_id: NetworkId, mac: MacAddress) -> tuple[Endpoint, ...]:
        """Return a network's endpoints with this MAC address; by index."""
        return self._endpoints("WHERE network_id = ? AND mac = ?", network_id, mac)

    def endpoints_in(self, sandbox: SandboxKey) -> tuple[Endpoint, ...]:
        """Return the endpoints in a sandbox, in the order of their joins."""
        return self._endpoints("WHERE sandbox = ?", sandbox)

    def find_publishers_in(self, sandbox: SandboxKey, besides: EndpointId) -> tuple[Endpoint, ...]:
        """Return the endpoints in a sandbox that have published ports, besides one of them."""
        where = "WHERE sandbox = ? AND id <> ? AND id IN (SELECT endpoint_id FROM binding)"
        return self._endpoints(where, sandbox, besides)

    def put_bindings(self, endpoint_id: EndpointId, bindings: Iterable[PortBinding]) -> None:
        """Store an endpoint's published ports in place of those it had."""
        self._run("DELETE FROM binding WHERE endpoint_id = ?", endpoint_id)
        rows = [
            (
                endpoint_id,
                binding.protocol,
                str(binding.container_ip),
                binding.container_port,
                None if binding.host is None else str(binding.host.ip),
                None if binding.host is None else binding.host.port,
            )
            for binding in bindings
        ]
        self._run_many("INSERT INTO binding VALUES (?, ?, ?, ?, ?, ?)", rows)

    def find_publisher(self, place: HostPort) -> Endpoint | None:
        """Return the endpoint that has published a host port, None if it is none of ours.

        All addresses collide with each single one, as bind(2) has it.
        """
        rows = self._all(
            "SELECT endpoint_id, host_ip FROM binding WHERE host_port = ? AND protocol = ?",
            place.port,
            place.protocol,
        )
        for endpoint_id, host_ip in rows:
            if place.collides(HostPort(place.protocol, ip_address(host_ip), place.port)):
                return self.find_endpoint(endpoint_id)
        return None

    def traces(self, sandbox: SandboxKey) -> dict[str, Trace]:
        """Return what was written into a sandbox, by key."""
        rows = self._all("SELECT key, before, written FROM trace WHERE sandbox = ?", sandbox)
        return {row[0]: Trace(*row) for row in rows}

    def put_traces(self, sandbox: SandboxKey, traces: Iterable[Trace]) -> None:
        """Remember what was written into a sandbox, keeping the oldest `before` of each key."""
        self._run_many(
            """INSERT INTO trace VALUES (?, ?, ?, ?)
               ON CONFLICT DO UPDATE SET written = excluded.written""",
            [(sandbox, trace.key, trace.before, trace.written) for trace in traces],
        )

    def delete_traces(self, sandbox: SandboxKey, keys: Iterable[str]) -> None:
        """Forget what was written into a sandbox for these keys."""
        rows = [(sandbox, key) for key in keys]
        self._run_many("DELETE FROM trace WHERE sandbox = ? AND key = ?", rows)

    def sandboxes(self) -> tuple[SandboxKey, ...]:
        """Return the sandboxes into which something was written."""
        rows = self._all("SELECT DISTINCT sandbox FROM trace ORDER BY sandbox")
        return tuple(SandboxKey(row[0]) for row in rows)

    def _check_writable(self) -> None:
        """Fail now, not in Docker's first request, on a file system that takes nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        finally:
            self._db.execute("ROLLBACK")

    def _migrate(self) -> bool:
        """Bring the file up to date; return whether there was nothing in it at all."""
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise StoreError(
                f"open the state file: it is of version {version}, this pynet knows up to "
                f"{len(MIGRATIONS)}; start the newer pynet that wrote it"
            )
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            self._db.executescript(
                f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT"
            )
        return bool(version == 0)

    def _network(
        self, network_id: str, options: str, shared: int, parts: str | None = None
    ) -> Network:
        pools = self._all(
            """SELECT subnet, gateway, address_space, default_gateway FROM pool
               WHERE network_id = ? ORDER BY position""",
            network_id,
        )
        return Network(
            id=NetworkId(network_id),
            pools=tuple(_pool(*pool) for pool in pools),
            options=_decode_options(options),
            parts=tuple(sorted(map(int, parts.split(",")))) if parts else (),
            shared=bool(shared),
        )

    def _endpoints(self, where: str, *values: object) -> tuple[Endpoint, ...]:
        rows = self._all(
            f"""SELECT id, network_id, ipv4, ipv6, mac, sysctls, engine_keys, ifname,
                       options, sandbox, configured, inherited, bridge, wants_ports, direct
                FROM endpoint {where} ORDER BY joins, id""",  # noqa: S608 - `where` is ours
            *values,
        )
        return tuple(_read_endpoint(row, self._bindings(row[0])) for row in rows)

    def _bindings(self, endpoint_id: str) -> tuple[tuple[Any, ...], ...]:
        rows = self._all(
            """SELECT protocol, container_ip, container_port, host_ip, host_port
               FROM binding WHERE endpoint_id = ? ORDER BY rowid""",
            endpoint_id,
        )
        return tuple(rows)

    def _run(self, statement: str, *values: object) -> None:
        try:
            self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise _failure("write the state file", error) from error

    def _run_many(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        with _translated("write the state file"):
            self._db.executemany(statement, rows)

    def _one(self, query: str, *values: object) -> tuple[Any, ...] | None:
        rows = self._all(query, *values)
        return rows[0] if rows else None

    def _all(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise _failure("read the state file", error) from error


# A network never changes, and every call about its endpoints reads it: its texts are read once.
@lru_cache(maxsize=1024)
def _pool(subnet: str, gateway: str | None, space: str, default_gateway: str | None) -> Pool:
    return Pool(
        ip_network(subnet),
        None if gateway is None else ip_interface(gateway),
        space,
        None if default_gateway is None else ip_address(default_gateway),
    )


def _read_endpoint(row: tuple[Any, ...], bindings: tuple[tuple[Any, ...], ...]) -> Endpoint:
    """Return the endpoint that the rows are of; of an ordinary one the same text is read once."""
    read = _endpoint if len(bindings) <= FEW_PORTS else _endpoint.__wrapped__
    return read(row, bindings)


# Every call of a container's life reads its endpoint, most of them as the one before left it.
@lru_cache(maxsize=64)
def _endpoint(row: tuple[Any, ...], bindings: tuple[tuple[Any, ...], ...]) -> Endpoint:
    endpoint_id, network_id, ipv4, ipv6, mac, sysctls, keys, ifname, options, *attachment = row
    sandbox, configured, inherited, bridge, wants_ports, direct = attachment
    return Endpoint(
        id=EndpointId(endpoint_id),
        network_id=NetworkId(network_id),
        ipv4=None if ipv4 is None else IPv4Interface(ipv4),
        ipv6=None if ipv6 is None else IPv6Interface(ipv6),
        mac=MacAddress(mac),
        sysctls=_decode_sysctls(sysctls),
        engine_keys=frozenset(keys.split()),
        ifname=ifname,
        options=_decode_endpoint_options(options),
        bindings=tuple(map(_binding, bindings)),
        attachment=None
        if sandbox is None
        else Attachment(
            SandboxKey(sandbox),
            configured=bool(configured),
            inherited=_decode_sysctls(inherited),
            bridge=bridge,
            wants_ports=bool(wants_ports),
            direct=bool(direct),
        ),
    )


def _binding(row: tuple[Any, ...]) -> PortBinding:
    protocol, container_ip, container_port, host_ip, host_port = row
    return PortBinding(
        protocol=Protocol(protocol),
        container_ip=ip_address(container_ip),
        container_port=container_port,
        host=host_ip and HostPort(Protocol(protocol), ip_address(host_ip), host_port),
    )


def _encode_options(options: NetworkOptions | EndpointOptions) -> str:
    return msgspec.json.encode(options, enc_hook=str).decode()


@lru_cache(maxsize=REMEMBERED)
def _decode_options(text: str) -> NetworkOptions:
    """Read options, once: a network may have hundreds of parameters, and is asked for often."""
    return msgspec.json.decode(text, type=NetworkOptions, dec_hook=_decode_custom)


@lru_cache(maxsize=REMEMBERED)
def _decode_endpoint_options(text: str) -> EndpointOptions:
    return msgspec.json.decode(text, type=EndpointOptions, dec_hook=_decode_custom)


def _encode_sysctls(sysctls: tuple[Sysctl, ...]) -> str:
    return msgspec.json.encode(sysctls).decode()


def _decode_sysctls(text: str) -> tuple[Sysctl, ...]:
    return msgspec.json.decode(text, type=tuple[Sysctl, ...])


def _decode_custom(kind: type[Any], value: object) -> object:
    """Read an address back; the other fields of the options are JSON's own types."""
    return kind(value)


def _text(value: object | None) -> str | None:
    return None if value is None else str(value)


def _failure(attempt: str, error: sqlite3.Error) -> StoreError:
    kind = StateDamaged if _code(error) in DAMAGE else StoreError
    return kind(f"{attempt}: {error}")


def _code(error: BaseException | None) -> int:
    """Return SQLite's code of an error, 0 if it is not SQLite's."""
    return getattr(error, "sqlite_errorcode", 0) & PRIMARY


def _is_emptied(path: Path) -> bool:
    """Return whether the file was cut off entirely: SQLite would take it for new, log and all."""
    wal = path.with_name(f"{path.name}-wal")
    is_empty = path.exists() and path.stat().st_size == 0
    return is_empty and wal.exists() and wal.stat().st_size > 0


def _close_to_others(path: Path) -> None:
    """Take from others what an earlier version, or a copy by hand, left readable to them."""
    for suffix in ("", "-wal", "-shm"):
        file = path.with_name(f"{path.name}{suffix}")
        if file.exists() and file.stat().st_mode & 0o077:
            file.chmod(0o600)


@contextmanager
def _translated(attempt: str) -> Iterator[None]:
    """Turn what SQLite and the file system report into StoreError."""
    try:
        yield
    except sqlite3.Error as error:
        raise _failure(attempt, error) from error
    except OSError as error:
        raise StoreError(f"{attempt}: {error.strerror or error}") from error
