"""Who asked for a parameter, what disagrees, what of the host's does not arrive."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import pytest

from driver.options import parse_network_options
from plugin.cli.explain import (
    audit,
    explain_container,
    explain_network,
    find_differing,
    suggest_compose,
    suggest_inherit,
    suggest_options,
    summarise,
)
from plugin.cli.sysctl_d import find_settings
from tests.samples import KEEPALIVE, SOMAXCONN

if TYPE_CHECKING:
    from pathlib import Path

PORT_START = "net.ipv4.ip_unprivileged_port_start"
RMEM = "net.ipv4.tcp_rmem"


def row(key: str = KEEPALIVE, *, host: str = "7200", pristine: str = "7200", **rest: Any) -> Any:
    return {"key": key, "host": host, "pristine": pristine, "asked": None, "by": None} | rest


@pytest.mark.parametrize(
    ("actual", "asked", "own", "expected"),
    [
        ("7200", None, {}, (None, "kernel", False)),
        ("600", "600", {}, ("600", "network", False)),
        ("600", "600", None, ("600", "network", False)),
        ("42", "600", {KEEPALIVE: "42"}, ("42", "container", False)),
        ("42", None, {KEEPALIVE: "42"}, ("42", "container", False)),
        ("600", "600", {KEEPALIVE: "7200"}, ("7200", "container", True)),
        ("42", "600", None, ("42", "container", False)),
        ("42", None, None, ("42", "container", False)),
        ("42", "600", {}, ("600", "network", True)),
        ("42", None, {}, (None, "other", False)),
        ("7200", "600", {}, ("600", "network", True)),
        ("7200", "600", None, ("600", "network", True)),
        (None, "600", {}, ("600", "network", False)),
        (None, None, {}, (None, "kernel", False)),
    ],
)
def test_who_asked_in_a_container(
    actual: str | None, asked: str | None, own: dict[str, str] | None, expected: Any
) -> None:
    has = {} if actual is None else {"endpoint": actual}
    by = None if asked is None else "network"
    (line,) = explain_container([row(asked=asked, by=by, actual=has)], "web", own)
    assert (line.asked, line.by, line.differs) == expected
    assert line.actual == ({} if actual is None else {"web": actual})


def test_dockers_own_defaults_are_dockers() -> None:
    given = row(PORT_START, host="1024", pristine="1024", actual={"e": "0"})
    (line,) = explain_container([given], "web", {})
    assert (line.by, line.differs, line.is_nobodys) == ("docker", False, True)


def test_tabs_and_spaces_are_the_same() -> None:
    given = row(RMEM, asked="1 2  3", by="network", actual={"e": "1\t2\t3"})
    (line,) = explain_container([given], "web", {})
    assert not line.differs


def test_a_network_is_told_of_the_containers_that_differ() -> None:
    rows = [row(asked="600", by="network", actual={"a": "600", "b": "42", "c": "9"})]
    assert find_differing(rows) == {"b", "c"}
    names = {"a": "web", "b": "db", "c": "own"}
    (line,) = explain_network(rows, names, {"b": [KEEPALIVE]})
    assert line.differs
    (line,) = explain_network(rows, names, {"b": [KEEPALIVE], "c": [KEEPALIVE]})
    assert not line.differs
    assert line.actual == {"web": "600", "db": "42", "own": "9"}


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ({}, "-"),
        ({"a": "1"}, "1"),
        ({"a": "1\t2", "b": "1 2"}, "1 2"),
        ({"a": "1", "b": "2", "c": "2"}, "2 (2), 1 (1)"),
    ],
)
def test_what_many_have_is_said_in_few_words(actual: dict[str, str], expected: str) -> None:
    assert summarise(actual) == expected


@pytest.mark.parametrize(
    ("key", "host", "actual", "is_lost"),
    [
        (KEEPALIVE, "600", {"e": "7200"}, True),
        (KEEPALIVE, "600", {}, True),
        (KEEPALIVE, "600", {"e": "7200", "f": "600"}, True),
        (KEEPALIVE, "600", {"e": "600", "f": "600"}, False),
        (KEEPALIVE, "7200", {"e": "7200"}, False),
        ("net.ipv4.ip_forward", "1", {"e": "0"}, False),
        ("net.ipv6.conf.all.forwarding", "1", {"e": "0"}, False),
        ("net.ipv4.conf.lo.rp_filter", "1", {"e": "0"}, False),
    ],
)
def test_what_is_lost(key: str, host: str, actual: dict[str, str], *, is_lost: bool) -> None:
    (line,) = explain_network([row(key, host=host, actual=actual)], {}, {})
    assert line.is_lost is is_lost


SURVEY: dict[str, dict[str, str]] = {
    "host": {
        KEEPALIVE: "600",
        SOMAXCONN: "65535",
        RMEM: "4096\t1\t2",
        "net.ipv4.tcp_congestion_control": "bbr",
        "net.core.rmem_max": "1",
        "net.ipv4.ip_forward": "1",
        "net.ipv4.tcp_fastopen_key": "1-2-3-4",
        "net.ipv4.tcp_fin_timeout": "61",
    },
    "pristine": {
        KEEPALIVE: "7200",
        SOMAXCONN: "4096",
        RMEM: "4096\t9\t9",
        "net.ipv4.tcp_congestion_control": "bbr",
        "net.ipv4.ip_forward": "0",
        "net.ipv4.tcp_fastopen_key": "0-0-0-0",
        "net.ipv4.tcp_fin_timeout": "60",
    },
    "refused": {"net.ipv4.tcp_fin_timeout": "the operator says no"},
}


def test_an_audit_sorts_by_what_becomes_of_the_value() -> None:
    found = audit(SURVEY, {}, {SOMAXCONN: "/etc/sysctl.d/60.conf:1"})
    names = [each.parameter for each in found.reset]
    assert names == [SOMAXCONN, "net.ipv4.tcp_fin_timeout", KEEPALIVE, RMEM]
    assert [each.parameter for each in found.portable] == [SOMAXCONN, KEEPALIVE, RMEM]
    assert [each.parameter for each in found.copied] == ["net.ipv4.tcp_congestion_control"]
    assert [each.parameter for each in found.host_wide] == ["net.core.rmem_max"]
    assert found.reset[0].set_in == "/etc/sysctl.d/60.conf:1"


def test_a_network_that_carries_the_values_over_is_clean() -> None:
    asked = {
        KEEPALIVE: "600",
        SOMAXCONN: "65535",
        RMEM: "4096 1 2",
        "net.ipv4.tcp_fin_timeout": "61",
    }
    assert audit(SURVEY, asked, {}).reset == ()
    found = audit(SURVEY, {KEEPALIVE: "1"}, {})
    assert [each.parameter for each in found.chosen] == [KEEPALIVE]
    assert KEEPALIVE not in {each.parameter for each in found.reset}


def test_the_suggestions_are_options_that_a_network_takes() -> None:
    found = audit(SURVEY, {}, {}).portable
    words = [word for line in suggest_options(found) for word in shlex.split(line)]
    given = dict(word.split("=", 1) for word in words if word != "-o")
    assert given == {KEEPALIVE: "600", SOMAXCONN: "65535", RMEM: "4096 1 2"}
    _, inherit = shlex.split(suggest_inherit(found))
    given |= dict([inherit.split("=", 1)])
    parse_network_options(given, internal=False, has_ipv4=True, has_ipv6=False)
    assert f'      {RMEM}: "4096 1 2"' in suggest_compose(found)


FILES = {
    "usr/lib/sysctl.d/50-default.conf": "net.ipv4.conf.*.rp_filter = 2\n-net.core.somaxconn=1\n",
    "etc/sysctl.d/60-tuned.conf": (
        "# a comment = 1\n; another = 1\n\nnet/core/somaxconn = 65535\n"
        "net.ipv4.tcp_rmem = 4096 1 2\nnet.ipv4.conf.all.rp_filter=1\nno assignment\n"
    ),
    "run/sysctl.d/60-tuned.conf": "net.core.somaxconn = 3\n",
    "etc/sysctl.conf": "net.ipv4.tcp_keepalive_time=600\n",
    "etc/sysctl.d/README": "net.ipv4.tcp_keepalive_time=601\n",
}


def test_where_a_value_was_set_is_found(tmp_path: Path) -> None:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "etc/sysctl.d/99-sysctl.conf").symlink_to("../sysctl.conf")
    values = {
        SOMAXCONN: "65535",
        RMEM: "4096\t1\t2",
        KEEPALIVE: "600",
        "net.ipv4.conf.all.rp_filter": "1",
        "net.ipv4.conf.default.rp_filter": "2",
        "net.ipv4.tcp_fin_timeout": "60",
    }
    tuned = "/etc/sysctl.d/60-tuned.conf"
    assert find_settings(values, tmp_path) == {
        SOMAXCONN: f"{tuned}:4",
        RMEM: f"{tuned}:5",
        KEEPALIVE: "/etc/sysctl.conf:1",
        "net.ipv4.conf.all.rp_filter": f"{tuned}:6",
        "net.ipv4.conf.default.rp_filter": "/usr/lib/sysctl.d/50-default.conf:1",
    }
    values[SOMAXCONN] = "1"  # set by hand since
    assert SOMAXCONN not in find_settings(values, tmp_path)


@pytest.mark.parametrize("named", ["10-named.conf", "90-named.conf"])
def test_a_pattern_spares_what_is_named_wherever_that_is(tmp_path: Path, named: str) -> None:
    folder = tmp_path / "etc/sysctl.d"
    folder.mkdir(parents=True)
    (folder / named).write_text("net.ipv4.conf.all.rp_filter = 1\n")
    (folder / "50-pattern.conf").write_text("net.ipv4.conf.*.rp_filter = 2\n")
    values = {
        f"net.ipv4.conf.{name}.rp_filter": value for name, value in (("all", "1"), ("lo", "2"))
    }
    assert find_settings(values, tmp_path) == {
        "net.ipv4.conf.all.rp_filter": f"/etc/sysctl.d/{named}:1",
        "net.ipv4.conf.lo.rp_filter": "/etc/sysctl.d/50-pattern.conf:1",
    }


def test_a_host_without_such_files_has_nothing_to_tell(tmp_path: Path) -> None:
    assert find_settings({KEEPALIVE: "600"}, tmp_path) == {}
