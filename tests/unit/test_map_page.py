"""The page of the map: who is answered and with what, and that nothing in it is more than text."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import socket
import threading
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from driver.diagnosis.facts import Drift
from driver.linux.inside import Inside, Parameter
from driver.model import Traffic
from plugin.cli import Failure, live, main
from plugin.cli.described import describe, find_faults, list_traffic
from plugin.cli.errors import AskError
from plugin.cli.live import LiveMap
from plugin.cli.rates import Rate, format_rate, rate_between
from plugin.cli.topology import Known
from plugin.cli.webpage import KINDS, make_visible, read_file, render_page
from plugin.cli.webserver import MOST_CONNECTIONS, Guard, create_app, listen, serving
from tests.unit.test_map import HOSTILE, topology

if TYPE_CHECKING:
    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

    from plugin.cli.topology import Topology

PORT, SECRET = 4711, "the-secret"
HOST = f"127.0.0.1:{PORT}"
INSIDE = Inside(
    ("default via 10.0.0.1 dev eth0",),
    ("10.0.0.1 dev eth0 02:00:00:00:00:01",),
    ("0.0.0.0:80/tcp  nginx (pid 7)",),
    (Parameter("net.core.somaxconn", "1", "4096"),),
)
PATHS = ("/", "/map.json", "/container.json?name=c0", "/map.js", "/map.css", "/nosuch", "/../x")


@pytest.fixture
def client() -> FlaskClient:
    def look_into(name: str) -> Inside | None:
        return INSIDE if name == "c0" else None

    app = create_app(
        lambda have: json.dumps({"have": have}).encode(), look_into, Guard(PORT, SECRET)
    )
    app.testing = True
    return app.test_client()


def get(client: FlaskClient, path: str, host: str = HOST, method: str = "GET") -> TestResponse:
    return client.open(path, method=method, headers={"Host": host})


@pytest.fixture
def entered(client: FlaskClient) -> FlaskClient:
    assert get(client, f"/open/{SECRET}").status_code == 303
    return client


@pytest.mark.parametrize("path", PATHS)
def test_nobody_is_answered_without_the_secret(client: FlaskClient, path: str) -> None:
    assert get(client, path).status_code == 403
    client.set_cookie(f"pynet-map-{PORT}", "another", domain="127.0.0.1")
    assert get(client, path).status_code == 403
    client.set_cookie("pynet-map-1", SECRET, domain="127.0.0.1")
    assert get(client, path).status_code == 403


@pytest.mark.parametrize("given", ["", "x", SECRET[:-1], SECRET + "x", "é", "%ff", "%00", "a/b"])
def test_a_wrong_secret_is_none(client: FlaskClient, given: str) -> None:
    answer = get(client, f"/open/{given}")
    assert answer.status_code == 403
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", f"evil.example:{PORT}", "127.0.0.1", f"127.0.0.1:{PORT + 1}", f"{HOST}.x"],
)
@pytest.mark.parametrize("path", ["/", "/map.json", f"/open/{SECRET}", "/nosuch"])
def test_a_host_by_another_name_is_refused(entered: FlaskClient, host: str, path: str) -> None:
    """A page elsewhere may have its own name lead to 127.0.0.1."""
    assert get(entered, path, host).status_code == 403


@pytest.mark.parametrize("name", ["localhost", "[::1]", "LOCALHOST"])
def test_each_name_of_the_loopback_address_will_do(client: FlaskClient, name: str) -> None:
    assert get(client, f"/open/{SECRET}", f"{name}:{PORT}").status_code == 303


def test_a_browser_leaves_out_the_port_of_http() -> None:
    client = create_app(lambda _: b"", lambda _: None, Guard(80, SECRET)).test_client()
    assert get(client, f"/open/{SECRET}", "127.0.0.1").status_code == 303
    assert get(client, f"/open/{SECRET}", "127.0.0.1:80").status_code == 303
    assert get(client, f"/open/{SECRET}", "127.0.0.1:81").status_code == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/", "/map.json", f"/open/{SECRET}", "/nosuch"])
def test_it_is_only_read(entered: FlaskClient, method: str, path: str) -> None:
    answer = get(entered, path, method=method)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_the_secret_becomes_a_cookie_that_no_script_and_no_other_site_has(
    client: FlaskClient,
) -> None:
    answer = get(client, f"/open/{SECRET}")
    assert answer.headers["Location"] == "/"
    cookie = {each.strip() for each in answer.headers["Set-Cookie"].split(";")}
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= cookie
    assert not [each for each in cookie if each.startswith(("Domain", "Expires", "Max-Age"))]


def test_who_has_it_gets_the_page(entered: FlaskClient) -> None:
    for name, kind in KINDS.items():
        answer = get(entered, "/" if name == "map.html" else f"/{name}")
        assert (answer.status_code, answer.mimetype) == (200, kind)
        assert answer.text == read_file(name)
    assert get(entered, "/", method="HEAD").status_code == 200
    assert get(entered, "/map.json?have=3").json == {"have": "3"}
    inside = get(entered, "/container.json?name=c0").json
    assert inside is not None
    assert inside["inside"]["parameters"] == [
        {"key": "net.core.somaxconn", "value": "1", "new": "4096"}
    ]
    assert get(entered, "/container.json?name=gone").json == {"inside": None}
    assert get(entered, "/%2e%2e/webpage.py").status_code == 404


@pytest.mark.parametrize("path", [*PATHS, f"/open/{SECRET}"])
@pytest.mark.parametrize("host", [HOST, "evil.example"])
def test_every_answer_is_kept_to_the_page(entered: FlaskClient, path: str, host: str) -> None:
    headers = get(entered, path, host).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"


# -- the server


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_it_listens_on_the_loopback_address_alone(family: socket.AddressFamily, host: str) -> None:
    with closing(listen(family, 0)) as own:
        address, port = own.getsockname()[:2]
        assert address == host
        app = create_app(lambda _: b"{}", lambda _: None, Guard(port, SECRET))
        with serving(own, app):
            connection = http.client.HTTPConnection(host, port, timeout=10)
            connection.request("GET", f"/open/{SECRET}")
            answer = connection.getresponse()
            assert answer.status == 303
            assert answer.getheader("Server") == "pynet"
            connection.close()
        with pytest.raises(Failure, match=f"listen on {host} port {port}: .*in use"):
            listen(family, port)


def test_a_client_that_says_nothing_does_not_keep_others_out() -> None:
    with closing(listen(socket.AF_INET, 0)) as own:
        port = own.getsockname()[1]
        app = create_app(lambda _: b"{}", lambda _: None, Guard(port, SECRET))
        with serving(own, app):
            silent = [
                socket.create_connection(("127.0.0.1", port)) for _ in range(MOST_CONNECTIONS - 1)
            ]
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/")
            assert connection.getresponse().status == 403
            connection.close()
            for each in silent:
                each.close()


# -- one file


class Reader(HTMLParser):
    """Collects what a browser would run, show and load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {}
        self.loaded: list[str] = []
        self.policy = ""
        self._element: tuple[str, bool] = ("", False)
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        words = dict(attrs)
        self._element = ("data" if words.get("id") == "data" else tag, True)
        self.loaded += [words[each] or "" for each in ("src", "href") if each in words]
        if words.get("http-equiv") == "Content-Security-Policy":
            self.policy = words["content"] or ""

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._element[0], []).append(data)
        self._element = ("", False)


def page_of(shown: Topology) -> str:
    insides = dict.fromkeys(shown.containers, INSIDE)
    return render_page(
        describe(shown, shown.bridges, find_faults(shown, shown.bridges, ()), insides)
    )


def test_the_file_needs_nothing_else_and_runs_nothing_else() -> None:
    read = Reader(page_of(topology(3, 2)))
    assert read.loaded == ["data:,"]
    assert len(read.texts["script"]) == 3
    for kind in ("style", "script"):
        for text in read.texts[kind]:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in read.policy
    assert read.policy.startswith("default-src 'none'")
    assert "unsafe" not in read.policy


@pytest.mark.parametrize("name", [HOSTILE, "</script><script>alert(1)//", "<!--<script>", "&lt;"])
def test_a_name_in_the_file_is_text_and_nothing_else(name: str) -> None:
    text = page_of(topology(2, name=name))
    assert "alert(1)</script>" not in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", text)
    read = Reader(text)
    assert len(read.texts["script"]) == 3
    (data,) = read.texts["data"]
    names = [each["name"] for each in json.loads(data)["containers"]]
    assert names == make_visible([f"{name}0", f"{name}1"])


def test_the_scripts_put_in_text_and_no_markup() -> None:
    for name in KINDS:
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(",
            read_file(name),
        )
        assert not re.search(r"""https?://(?!www\.w3\.org/2000/svg)""", read_file(name))


# -- what is in it


def wrong(shown: Topology, *drift: Drift) -> list[tuple[str | None, tuple[str, ...]]]:
    return [(each.id, each.where) for each in find_faults(shown, shown.bridges, drift)]


def test_a_fault_says_where_it_is() -> None:
    shown = topology(2)
    (bridge,), (uplink,) = shown.bridges, shown.uplinks
    first, second = bridge.pairs
    assert wrong(shown) == []

    def pairs(*changed: Any) -> Topology:
        return replace(shown, bridges=(replace(bridge, pairs=changed),))

    assert wrong(pairs(replace(first, is_up=False), second)) == [
        ("interface-down", ("c0", "pnh0-0"))
    ]
    same = replace(second, addresses=first.addresses)
    assert wrong(pairs(first, same)) == [("address-twice", ("c0", "pnh0-0", "c1", "pnh0-1"))]
    down = replace(shown, bridges=(replace(bridge, is_up=False),))
    assert wrong(down) == [("interface-down", ("pn-0",))]
    lost = replace(shown, loose=(replace(first, end=None),))
    assert wrong(lost) == [("severed", ("c0",))]
    dark = replace(shown, uplinks=(replace(uplink, is_up=False),))
    assert wrong(dark) == [("uplink-down", ("ens3",))]
    assert wrong(shown, Drift("bridge", "pn-0", "is missing")) == [("drift", ("pn-0",))]


def test_every_fault_that_the_doctor_finds_is_there_once() -> None:
    shown = topology(4, 2)
    one, two = shown.bridges
    broken = replace(
        shown,
        bridges=(
            replace(
                one,
                is_up=False,
                pairs=tuple(replace(each, mac="02:00:00:00:00:01") for each in one.pairs),
            ),
            two,
        ),
    )
    found = find_faults(broken, broken.bridges, ())
    assert [each.id for each in found] == ["interface-down", "mac-twice"]


def test_nothing_in_it_is_of_the_containers_own() -> None:
    """No environment, no labels, no payload: what is shown is a list of what there is."""
    shown = topology(1)
    found = describe(shown, shown.bridges, (), {"c0": INSIDE})
    (container,) = found["containers"]
    assert set(container) == {"name", "ports", "sandbox", "capture", "inside"}
    assert container["capture"] == "pynet capture c0 --where all"
    assert set(found) == {
        "host", "time", "uplinks", "bridges", "containers", "loose", "faults", "not_seen"
    }  # fmt: skip


def test_traffic_is_in_and_out_of_the_container_and_of_the_host() -> None:
    shown = topology(1)
    counted = {each: Traffic(1, 0, 2, 0, 0, 0) for each in ("pnh0-0", "ens3", "lo")}
    assert list_traffic(shown, shown.bridges, counted) == {"pnh0-0": (1, 2), "ens3": (2, 1)}
    assert list_traffic(shown, shown.bridges, {}) == {}


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (0, "0 B/s"), (999, "999 B/s"), (999.6, "1.0 kB/s"), (9_940, "9.9 kB/s"),
        (11_900_000, "12 MB/s"), (1.25e9, "1.2 GB/s"), (1e13, "10000 GB/s"),
    ],
)  # fmt: skip
def test_a_rate_is_short(rate: float, expected: str) -> None:
    assert format_rate(rate) == expected


def test_a_counter_that_began_anew_gives_no_rate() -> None:
    before, now = Traffic(100, 0, 50, 0, 0, 0), Traffic(300, 0, 70, 0, 0, 0)
    assert rate_between(before, now, 2) == Rate(100, 10)
    assert rate_between(now, before, 2) == Rate(0, 0)
    assert rate_between(before, now, 0) == Rate(0, 0)


# -- kept current


class Asked:
    """Docker, driver and kernel, as far as a live map asks them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown = topology(2)
        self.known = Known((), ({"Name": "net0"},), (), ())
        self.docker = self.looks = 0
        self.failure: AskError | None = None
        self.looked = threading.Condition()
        self.streams: list[list[object]] = []
        monkeypatch.setattr(live, "ask", self.ask)
        monkeypatch.setattr(live, "read_topology", self.read)
        monkeypatch.setattr(live, "ask_drift", lambda path: ((), ()))
        monkeypatch.setattr(live, "read_traffic", lambda: {"pnh0-0": Traffic(3, 0, 4, 0, 0, 0)})
        monkeypatch.setattr(LiveMap, "_listen", lambda each: each._listens.set())
        monkeypatch.setattr(LiveMap, "_listen_to_kernel", lambda _: None)
        monkeypatch.setattr(live, "SOON_SECONDS", 0)

    def ask(self) -> Known:
        self.docker += 1
        if self.failure:
            raise self.failure
        return self.known

    def read(self, known: Known) -> Topology:
        with self.looked:
            self.looks += 1
            self.looked.notify_all()
        return self.shown

    def wait(self, looks: int) -> None:
        with self.looked:
            assert self.looked.wait_for(lambda: self.looks >= looks, 10)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


def answer(shown: LiveMap, have: str = "") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shown.answer(have))
    return found


def test_the_map_is_sent_once_and_the_counters_each_time(asked: Asked) -> None:
    with LiveMap(tuple) as shown:
        first = answer(shown)
        assert [each["name"] for each in first["map"]["containers"]] == ["c0", "c1"]
        assert first["traffic"] == {"pnh0-0": [3, 4]}
        again = answer(shown, first["version"])
        assert "map" not in again
        assert again["traffic"] == first["traffic"]
        shown._look(ask_docker=False)
        assert "map" not in answer(shown, first["version"]), "it is as it was"
        assert asked.docker == 1
        assert asked.looks == 2


def test_docker_is_asked_when_it_tells_and_the_kernel_now_and_then(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "OFTEN_SECONDS", 0.001)
    with LiveMap(tuple) as shown:
        asked.wait(5)
        assert asked.docker == 1
        before = answer(shown)["version"]
        asked.shown = topology(3)
        shown._tell()
        asked.wait(asked.looks + 2)
        assert asked.docker == 2
        assert shown._cost > 0
        found = answer(shown, before)
        assert len(found["map"]["containers"]) == 3


def test_nothing_is_looked_at_while_nobody_watches(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "OFTEN_SECONDS", 0.001)
    monkeypatch.setattr(live, "AWAY_SECONDS", -1.0)
    with LiveMap(tuple) as shown:
        shown._tell()
    assert asked.looks == 1


def test_a_failure_is_told_and_the_last_map_stays(asked: Asked) -> None:
    with LiveMap(tuple) as shown:
        asked.failure = AskError("Docker is silent")
        shown._look()
        found = answer(shown)
        assert found["error"] == "Docker is silent"
        assert found["map"]["containers"]
        asked.failure, known = None, asked.known
        asked.known = Known((), (), (), ("names and containers",))
        shown._look()
        assert answer(shown)["error"] == "what is shown is old; not seen: names and containers"
        asked.known = known
        shown._look()
        assert answer(shown)["error"] is None
    asked.failure = AskError("Docker is silent")
    with pytest.raises(AskError, match="Docker is silent"), LiveMap(tuple):
        pass


# -- the command


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--html", "x", "--json"), 2, "one of --watch, --serve, --html"),
        (("--serve", "--watch"), 2, "one of --watch, --serve, --html"),
        (("-6",), 2, "-6 is for --serve"),
        (("--serve", "65536"), 2, "65536 is not in the range"),
        (("--serve", "web"), 2, "'web' is not a valid integer"),
        (("--watch",), 2, "--watch is for a terminal"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    words: tuple[str, ...], code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    done = CliRunner().invoke(main, ["map", *words])
    assert done.exit_code == code
    assert said in done.stderr


def test_only_root_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1)
    done = CliRunner().invoke(main, ["map", "--serve"])
    assert (done.exit_code, "you must be root" in done.stderr) == (1, True)


def test_a_file_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("plugin.cli.map.read_topology", lambda: topology(0))
    monkeypatch.setattr("plugin.cli.map._encode", lambda *_, **__: describe(topology(0), (), ()))
    done = CliRunner().invoke(main, ["map", "--html", "/nosuch/map.html"])
    assert done.exit_code == 1
    assert done.stderr == "Error: write /nosuch/map.html: No such file or directory\n"
