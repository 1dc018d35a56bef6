"""Speak to the driver as strangers do: requests nearly right, in nearly the right order.

A talk is a list of requests, begun as an engine would and then bent: values of wrong shapes,
hostile and huge ones, calls left out, repeated, exchanged. All of it follows from a `Random`.
"""

from __future__ import annotations

import io
import json
import os
import secrets
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from coverage import Coverage

from driver.driver import BridgeDriver
from plugin.api import create_app
from plugin.api.docker import BODILESS, OPERATIONS, STATELESS
from plugin.api.protocol import GENERIC, INTERNAL, PORT_MAP
from tests.samples import endpoint_id, network_id, sandbox_key
from tests.unit.faults import TABLES
from tests.unit.test_hostile import SNIPPETS, USUAL, WORDS, Watched, strange_lines, strange_names

if TYPE_CHECKING:
    from random import Random

    from driver.model import SandboxKey
    from driver.state.store import Store

    Talk = list["Request"]

STRANGE_METHODS = ("NetworkDriver.AllocateNetwork", "IpamDriver.RequestPool", "networks", "", "a/b")
METHODS = (*BODILESS, *STATELESS, *OPERATIONS)
QUESTIONS = ("/networks", f"/endpoints/{endpoint_id(1)}/interface", "/endpoints/x/interface", "/x")
DEPTH = 3000  # deeper than Python's stack
ATOMS: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 65536, 2**63, -(2**70), 10**400, 1e308, [], {}, [[]], [{}]),
    *("x" * 300, "x" * 70_000, "é" * 5000, "\ud800", "\0", "0" * 64, "-1", "NaN"),
    *SNIPPETS,
    *WORDS,
)
RAW = (
    b"",
    b"null",
    b"[]",
    b"{",
    b"\xff\xfe",
    b'{"NetworkID": NaN}',
    b'"' + b"x" * 100_000,
    b"[" * DEPTH + b"]" * DEPTH,
    b'{"NetworkID": "x", "EndpointID": "x", "Options": ' + b'{"x": ' * DEPTH + b"0" + b"}" * DEPTH,
    b'{"NetworkID": "a", "NetworkID": "b"}',
)


@dataclass(frozen=True)
class Request:
    """One request: a method of the protocol and the value that its body encodes, or a raw body."""

    method: str
    value: Any

    @property
    def body(self) -> bytes:
        """The body as it is sent."""
        return self.value if isinstance(self.value, bytes) else json.dumps(self.value).encode()


@dataclass
class Line:
    """A connection to a driver on a kernel in memory: what is sent must be answered in order."""

    store: Store
    sent: int = 0
    outcomes: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kernel = Watched()
        self.driver = BridgeDriver(self.store, self.kernel)
        self.driver.restore()
        self._app = create_app(lambda: self.driver)

    def talk(self, talk: Talk) -> None:
        """Have a whole talk, and Docker delete everything afterwards; nothing may be left."""
        for request in talk:
            self.send(f"/{request.method}", request.body)
        for question in QUESTIONS:
            self.send(question)
        self.end()

    def send(self, path: str, body: bytes | None = None) -> tuple[int, Any]:
        """Send a request, a question if it has no body; check the form of its answer."""
        self.sent += 1
        began: list[str] = []
        environ = {
            "REQUEST_METHOD": "GET" if body is None else "POST",
            "PATH_INFO": path,
            "CONTENT_LENGTH": str(len(body or b"")),
            "SERVER_NAME": "pynet",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body or b""),
        }
        chunks = self._app(environ, lambda status, *_: began.append(status))  # type: ignore[arg-type]
        status, answer = int(began[0].split()[0]), json.loads(b"".join(chunks))
        self.outcomes[status] = self.outcomes.get(status, 0) + 1
        self._check(path, body, status, answer)
        return status, answer

    def _check(self, path: str, body: bytes | None, status: int, answer: Any) -> None:
        said = f"{path} {(body or b'')[:2000]!r} -> {status} {answer}"
        if status == 200:
            assert body is None or "Err" not in answer, said
            return
        assert isinstance(answer["Err"], str), said
        assert answer["Err"], said
        assert "defect" not in answer["Err"], said
        assert status in ({400, 409} if path[1:] in METHODS else {400, 404, 405}), said

    def end(self, *sandboxes: SandboxKey) -> None:
        """Have Docker delete every network; nothing may be left, in these sandboxes neither."""
        for network, _ in self.driver.describe():
            gone = json.dumps({"NetworkID": network.id}).encode()
            assert self.send("/NetworkDriver.DeleteNetwork", gone)[0] == 200
        rows = {
            table: self.store._db.execute(f"SELECT * FROM {table}").fetchall()
            for table in TABLES
            if table != "boot"
        }
        assert not any(rows.values()), rows
        untouched = Watched()
        for sandbox in self.kernel.sandboxes.keys() & set(sandboxes):
            untouched.add_sandbox(sandbox)
        assert self.kernel.state() == untouched.state()
        assert list(strange_lines(self.kernel.texts)) == []
        assert list(strange_names(self.kernel)) == []
        self.kernel.texts.clear()


class Branches:
    """Counts the branches of the driver that have been taken so far, from all talks together."""

    def __init__(self) -> None:
        folders = [f"{Path(__file__).parents[2]}/{name}/*" for name in ("driver", "plugin")]
        self._coverage = Coverage(data_file=None, branch=True, include=folders)

    def __enter__(self) -> Self:
        self._coverage.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._coverage.stop()

    def taken(self) -> int:
        """Return how many different ones there are."""
        data = self._coverage.get_data()
        return sum(len(data.arcs(file) or ()) for file in data.measured_files())


def random_seed() -> int:
    """Return what everything random follows from: given in the environment, or new each time."""
    return int(os.environ.get("PYNET_SEED") or secrets.randbelow(2**32))


def make_talk(random: Random) -> Talk:
    """Return a talk as an engine has it, of a few networks and endpoints, out of order at times."""
    talk: Talk = []
    numbers = [random.randrange(1, 4) for _ in range(random.randrange(1, 3))]
    talk += [Request("NetworkDriver.CreateNetwork", network(random, number)) for number in numbers]
    for _ in range(random.randrange(1, 4)):
        talk += life(random, random.choice(numbers), random.randrange(1, 6))
    talk += [_on(each, "DeleteNetwork", {"NetworkID": network_id(each)}) for each in numbers]
    return talk


def life(random: Random, net: int, number: int) -> Talk:
    """Return the calls of an endpoint's life."""
    ids = {"NetworkID": network_id(net), "EndpointID": endpoint_id(number)}
    key = sandbox_key(random.randrange(1, 3))
    place = random.randrange(2, 6)
    interface = {"Address": f"10.{net}.0.{place}/24", "AddressIPv6": "", "MacAddress": ""}
    if random.random() < 0.5:
        interface |= {"AddressIPv6": f"fd00:{net}::{place}/64"}
    published = {PORT_MAP: [port(random) for _ in range(random.randrange(3))]}
    calls: list[tuple[str, dict[str, Any]]] = [
        ("CreateEndpoint", {"Interface": interface, "Options": {"net.core.somaxconn": "99"}}),
        ("Join", {"SandboxKey": key, "Options": published}),
        ("ProgramExternalConnectivity", {"Options": published}),
        ("EndpointOperInfo", {}),
        ("RevokeExternalConnectivity", {}),
        ("Leave", {}),
        ("DeleteEndpoint", {}),
    ]
    return [_on(net, name, ids | rest) for name, rest in calls]


def network(random: Random, number: int) -> dict[str, Any]:
    """Return what CreateNetwork is sent with."""
    keys = random.sample(sorted(USUAL), random.randrange(4))
    generic = {key: random.choice(USUAL[key]) for key in keys}
    pool = {"Pool": f"10.{number}.0.0/24", "Gateway": f"10.{number}.0.1/24"}
    pool6 = {"Pool": f"fd00:{number}::/64", "Gateway": f"fd00:{number}::1/64"}
    space = {"AddressSpace": "LocalDefault"}
    return {
        "NetworkID": network_id(random.choice((number, number, 4))),
        "Options": {GENERIC: generic, INTERNAL: random.random() < 0.1},
        "IPv4Data": [pool | space],
        "IPv6Data": random.choice(([], [pool6 | space])),
    }


def port(random: Random) -> dict[str, Any]:
    """Return an entry of a port map."""
    first = random.choice((0, 80, 8080, 40000))
    return {
        "Proto": random.choice((6, 17, 132)),
        "Port": random.randrange(1, 4),
        "HostIP": random.choice(("", "", "127.0.0.1", "::1")),
        "HostPort": first,
        "HostPortEnd": first and first + random.randrange(3),
    }


def bend(random: Random, talk: Talk) -> Talk:
    """Return a talk with one thing changed: an order, a call or a value."""
    talk = list(talk) or make_talk(random)
    at = random.randrange(len(talk))
    match random.randrange(8):
        case 0:
            del talk[at]
        case 1:
            talk.insert(random.randrange(len(talk) + 1), talk[at])
        case 2:
            other = random.randrange(len(talk))
            talk[at], talk[other] = talk[other], talk[at]
        case 3:
            talk[at] = Request(random.choice((*METHODS, *STRANGE_METHODS)), talk[at].value)
        case 4:
            talk[at] = Request(talk[at].method, _spoil(random, talk[at].body))
        case _:
            talk[at] = Request(talk[at].method, _bend_value(random, talk[at].value))
    return talk


def _spoil(random: Random, body: bytes) -> bytes:
    """Return a body that is no longer what was encoded."""
    at = random.randrange(len(body) + 1)
    cut = (body[:at], body[:at] + bytes([random.randrange(256)]) + body[at + 1 :], body + body)
    return random.choice((*RAW, *cut, *cut, *cut))


def _bend_value(random: Random, value: Any) -> Any:
    """Return a value with one of its parts replaced, removed, wrapped or added to."""
    if isinstance(value, bytes):
        return random.choice(ATOMS)
    whole = {"": deepcopy(value)}
    holder, key = random.choice(list(_places(whole, "")))
    match random.randrange(8):
        case 0 if key != "" or holder is not whole:
            del holder[key]
        case 1:
            holder[key] = [holder[key]] * random.randrange(4)
        case 2:
            holder[key] = {random.choice(WORDS): holder[key]}
        case 3 if isinstance(holder[key], dict):
            name = random.choice((*holder[key], *WORDS, *SNIPPETS, *USUAL))
            holder[key][name] = random.choice(ATOMS)
        case 4 | 5 | 6 if isinstance(holder[key], str):
            text = holder[key]
            at = random.choice((0, len(text), random.randrange(len(text) + 1)))
            holder[key] = text[:at] + random.choice(SNIPPETS) + text[at:]
        case _:
            holder[key] = random.choice(ATOMS)
    return whole[""]


def _places(holder: Any, key: Any) -> list[tuple[Any, Any]]:
    """Return every place of a value, as what holds it and under which key."""
    found, value = [(holder, key)], holder[key]
    parts = value if isinstance(value, dict) else range(len(value)) if _is_list(value) else ()
    for part in parts:
        found += _places(value, part)
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _on(_: int, name: str, value: dict[str, Any]) -> Request:
    return Request(f"NetworkDriver.{name}", value)
