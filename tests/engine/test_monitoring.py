"""examples/monitoring by Prometheus itself: every query and every alert is of metrics there are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from subprocess import DEVNULL
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest

from tests.engine.driver import REPOSITORY
from tests.engine.rootfs import MONITOR, ensure_root, program
from tests.engine.site import HOST_ADDRESS, LAN, Question, Site, check
from tests.engine.steps import revive_driver
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.engine.engine import Engine

FOLDER = REPOSITORY / "examples/monitoring"
DASHBOARD = FOLDER / "grafana/dashboards/pynet.json"
SERVER, PROXY = "http://127.0.0.1:9090", "http://127.0.0.1:9700"
PORT, PUBLISHED = 80, 8080
# Asks whatever is in its input, a request a line; in the host's network, without a library.
ASK = """
import json, sys, urllib.error, urllib.request
def ask(method, url):
    try:
        request = urllib.request.Request(url, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)
print(json.dumps([ask(*each) for each in json.load(sys.stdin)]))
"""
# Prometheus looks up its own name, which takes 10 s where no name server answers.
NAMED = ("unshare", "--uts", "sh", "-c", 'hostname localhost && exec "$@"', "sh")
# What Grafana puts in place of its variables, for everything and a minute.
VARIABLES = {"$__rate_interval": "1m", "$instance": ".*", "$network": ".*"}
SPOOF = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller:
    caller.bind(("10.99.0.1", 0))
    caller.sendto(b"x", ("10.60.0.1", 9))
"""


@dataclass(frozen=True)
class Monitoring:
    """A Prometheus that scrapes the driver of a host through the example's proxy."""

    engine: Engine

    def ask(self, *requests: tuple[str, str]) -> list[tuple[int, str]]:
        """Send requests; return each one's status and body, 0 if nobody answers."""
        argv = (sys.executable, "-I", "-c", ASK)
        done = self.engine.run(*argv, stdin=json.dumps(requests))
        return [(status, body) for status, body in json.loads(done.stdout)]

    def evaluate(self, *queries: str) -> list[list[Any]]:
        """Return the series of each query; fails for one that Prometheus does not understand."""
        urls = [f"{SERVER}/api/v1/query?{urlencode({'query': each})}" for each in queries]
        found: list[list[Any]] = []
        for query, (status, body) in zip(
            queries, self.ask(*(("GET", url) for url in urls)), strict=True
        ):
            assert status == 200, f"{query}: {body}"
            answer = json.loads(body)["data"]
            assert answer["resultType"] == "vector", query
            found.append(answer["result"])
        return found


@pytest.fixture
def site(engine28: Engine) -> Iterator[Site]:
    """Lend a network whose container publishes a port."""
    with Site(engine28) as site:
        site.network("pynet", "back", 60, "-o", "pynet.guard=address")
        site.container("web", "back", "-p", f"{PUBLISHED}:{PORT}")
        site.serve("web", "tcp", PORT)
        yield site


@pytest.fixture
def monitoring(site: Site, tmp_path: Path) -> Iterator[Monitoring]:
    """Run the example's proxy and Prometheus on the host, in seconds what it does in minutes."""
    engine, root = site.engine, ensure_root(MONITOR.name)
    config = (FOLDER / "prometheus.yml").read_text()
    for old, new in {"proxy:9700": "127.0.0.1:9700", "_interval: 15s": "_interval: 1s"}.items():
        assert old in config
        config = config.replace(old, new)
    (tmp_path / "prometheus.yml").write_text(config)
    (tmp_path / "alerts.yml").write_text((FOLDER / "alerts.yml").read_text())
    commands = {
        "../sbin/haproxy": ("-db", "-f", str(FOLDER / "proxy.cfg")),
        "prometheus": (
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address={SERVER.partition('//')[2]}",
        ),
    }
    env = {"PYNET_SOCKET": "/run/docker/plugins/pynet.sock"}
    with ExitStack() as stack:
        for name, words in commands.items():
            with (tmp_path / "log").open("ab") as log:
                command = (*NAMED, *program(root, name), *words)
                started = engine.popen(*command, env=env, stdin=DEVNULL, stdout=log, stderr=log)
            stack.callback(started.kill_group)
        running = Monitoring(engine)
        try:
            wait_until(lambda: running.ask(("GET", f"{SERVER}/-/ready"))[0][0] == 200, 20, "it")
            yield running
        finally:
            print((tmp_path / "log").read_text())


def dashboard_queries() -> dict[str, str]:
    """Return what each panel asks, with Grafana's variables replaced."""
    found: dict[str, str] = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            query = target["expr"]
            for variable, text in VARIABLES.items():
                query = query.replace(variable, text)
            assert "$" not in query
            found[f"{panel['title']} {target['refId']}"] = query
    return found


def alert_expressions(text: str) -> list[str]:
    """Return the expressions that Prometheus says it has, of all rules."""
    groups = json.loads(text)["data"]["groups"]
    return [rule["query"] for group in groups for rule in group["rules"]]


def test_files_are_well_formed(tmp_path: Path) -> None:
    """By Prometheus' own tool."""
    promtool = program(ensure_root(MONITOR.name), "promtool")
    for words in (("rules", "alerts.yml"), ("config", "prometheus.yml")):
        command = [*promtool, "check", words[0], "--lint-fatal", str(FOLDER / words[1])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_compose_mounts_what_is_there(engine28: Engine) -> None:
    words = ("--project-directory", "/monitoring", "--file", "-", "config", "--format", "json")
    command = engine28.chroot("docker", "compose", *words)
    text = (FOLDER / "compose.yaml").read_text()
    services = json.loads(engine28.run(*command, stdin=text).stdout)["services"]
    volumes = [volume for each in services.values() for volume in each["volumes"]]
    sources = [each["source"] for each in volumes if each["type"] == "bind"]
    ours = [each.removeprefix("/monitoring/") for each in sources if each.startswith("/monitoring")]
    assert [each for each in ours if not (FOLDER / each).exists()] == []
    assert set(sources) - {f"/monitoring/{each}" for each in ours} == {"/run/docker/plugins"}
    targets = re.findall(r'targets: \["(\w+):', (FOLDER / "prometheus.yml").read_text())
    assert set(targets) <= services.keys()


def test_every_query_has_an_answer_and_every_alert_is_of_metrics_there_are(
    site: Site, monitoring: Monitoring
) -> None:
    engine = site.engine
    # Something for every panel: a repair, a connection, a packet that a guard drops.
    engine.run("nft", "flush", "chain", "inet", "pynet", "hairpin")
    repaired = 'pynet_repairs_total{kind="rules"} > 0'
    wait_until(lambda: monitoring.evaluate(repaired)[0], 20, "the repair")
    check(site, [Question(LAN, HOST_ADDRESS[4], PUBLISHED, "*")])
    site.run("web", "ip", "address", "add", "10.99.0.1/32", "dev", "lo")
    site.run("web", sys.executable, "-I", "-c", SPOOF)
    queries = dashboard_queries()
    assert len(queries) > 20

    def silent() -> list[str]:
        found = monitoring.evaluate(*queries.values())
        return [title for title, series in zip(queries, found, strict=True) if not series]

    try:
        wait_until(lambda: not silent(), 20, "series for every panel")
    except TimeoutError:
        assert silent() == []
    begun = 'pynet_published_port_new_connections_total{host_ip="0.0.0.0"} == 1'
    dropped = 'pynet_endpoint_guard_dropped_packets_total{reason="source"} == 1'
    told = monitoring.evaluate('up{job="pynet"} == 1', begun, dropped)
    assert [len(each) for each in told] == [1, 1, 1]

    ((_, rules),) = monitoring.ask(("GET", f"{SERVER}/api/v1/rules"))
    alerts = alert_expressions(rules)
    assert len(alerts) == (FOLDER / "alerts.yml").read_text().count("- alert: ")
    monitoring.evaluate(*alerts)
    ((_, names),) = monitoring.ask(("GET", f"{SERVER}/api/v1/label/__name__/values"))
    asked = set(re.findall(r"\bpynet_[a-z_]+", " ".join([*alerts, *queries.values()])))
    assert asked - set(json.loads(names)["data"]) == set()


def test_alerts_fire_for_what_has_begun_to_exist(monitoring: Monitoring) -> None:
    """A counter with labels is not there before its first event, and nothing has increased then."""
    ((_, rules),) = monitoring.ask(("GET", f"{SERVER}/api/v1/rules"))
    (expression,) = (
        each for each in alert_expressions(rules) if "pynet_repairs_total unless" in each
    )
    soon = expression.replace("10m", "2s")
    revive_driver(monitoring.engine)  # with counters that have counted nothing yet
    before = 'up{job="pynet"} offset 3s == 1 and on () absent(pynet_repairs_total offset 3s)'
    wait_until(lambda: monitoring.evaluate(before)[0], 20, "scrapes")
    monitoring.engine.run("nft", "flush", "chain", "inet", "pynet", "hairpin")
    wait_until(lambda: monitoring.evaluate(soon)[0], 20, "the alert")


def test_the_proxy_lets_nothing_else_through(monitoring: Monitoring) -> None:
    asked = (
        ("GET", f"{PROXY}/metrics"),
        ("GET", f"{PROXY}/networks"),
        ("POST", f"{PROXY}/repair"),
        ("POST", f"{PROXY}/metrics"),
        ("POST", f"{PROXY}/NetworkDriver.DeleteNetwork"),
        ("GET", f"{PROXY}/metrics/../networks"),
    )
    statuses = [status for status, _ in monitoring.ask(*asked)]
    assert statuses == [200, *([403] * 5)]
