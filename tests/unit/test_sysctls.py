"""Which kernel parameters a sandbox gets, from whom, and what is put back."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.errors import InvalidRequest
from driver.model import SysctlWrite, Trace
from driver.sysctl import policy
from tests.samples import KEEPALIVE, RP_FILTER, SOMAXCONN, sysctl

RMEM = "net.ipv4.tcp_rmem"
PORTS = "net.ipv4.ip_unprivileged_port_start"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (KEEPALIVE, KEEPALIVE),
        ("net.ipv4.conf.ifname.rp_filter", RP_FILTER),
        ("net.ipv4.conf.IfName.rp_filter", RP_FILTER),
        ("net.ipv6.neigh.IFNAME.gc_stale_time", "net.ipv6.neigh.IFNAME.gc_stale_time"),
        ("net.mpls.conf.IFNAME.input", "net.mpls.conf.IFNAME.input"),
        ("net.ipv4.conf.all.rp_filter", "net.ipv4.conf.all.rp_filter"),
        ("net.netfilter.nf_log.2", "net.netfilter.nf_log.2"),
        ("net.ipv4.vs.sync-threshold", "net.ipv4.vs.sync-threshold"),
    ],
)
def test_a_key_is_read(key: str, expected: str) -> None:
    assert policy.parse_sysctl(key, "1").key == expected


@pytest.mark.parametrize(
    "key",
    [
        "net.ipv4",
        "net.",
        "net..x",
        "net.ipv4.",
        "net.ipv4..x",
        "net.ipv4.../../kernel.x",
        "net.ipv4.a/b",
        "net.ipv4./etc/passwd",
        "net.ipv4.TCP_keepalive_time",
        "net.ipv4.tcp\0x",
        "net.ipv4.tcp\nx",
        "net.ipv4.tcp x",
        "net.ipv4.tcp_kéy",
        "net.ipv4.ⅳ",
        "net.ipv4.%2e",
        "kernel.shm.max",
        "net.ipv4\\x.y",
    ],
)
def test_a_hostile_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequest, match="is no kernel parameter of a network"):
        policy.parse_sysctl(key, "1")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("net.ipv4.IFNAME.x", "stands for an interface only"),
        ("net.core.IFNAME", "stands for an interface only"),
        ("net.ipv4.conf.IFNAME", "stands for an interface only"),
        ("net.ipv4.conf.all.IFNAME", "stands for an interface only"),
        ("net.ipv4.conf.eth0.rp_filter", "write IFNAME instead of 'eth0'"),
    ],
)
def test_an_interface_is_ifname_and_nothing_else(key: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        policy.parse_sysctl(key, "1")


@pytest.mark.parametrize("value", ["", " ", "\t\n", "1\n2", "1\0", "1\x7f", "1\u20282", "x" * 4097])
def test_a_hostile_value_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest, match="empty or no plain text"):
        policy.parse_sysctl(KEEPALIVE, value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("600", "600"), (" 4096\t5 6 ", "4096\t5 6"), ("0\n", "0"), ("-1", "-1")],
)
def test_a_value_is_stripped(value: str, expected: str) -> None:
    assert policy.parse_sysctl(KEEPALIVE, value).value == expected


@given(st.text(max_size=40), st.text(alphabet=string.printable, max_size=10))
def test_whatever_passes_stays_below_net(rest: str, value: str) -> None:
    try:
        parsed = policy.parse_sysctl(f"net.{rest}", value)
    except InvalidRequest:
        return
    parts = policy.path_components(parsed.key, "eth0.100")
    assert parts[0] == "net"
    assert all(part not in {"", ".", ".."} and "/" not in part for part in parts)


def test_an_interfaces_name_may_hold_a_dot() -> None:
    expected = ("net", "ipv4", "conf", "eth0.100", "rp_filter")
    assert policy.path_components(RP_FILTER, "eth0.100") == expected


def test_a_later_source_is_the_stronger() -> None:
    network = (sysctl(f"{KEEPALIVE}=600"), sysctl(f"{SOMAXCONN}=1"))
    endpoint = (sysctl(f"{KEEPALIVE}=300"),)
    assert policy.merge(network, endpoint) == (
        sysctl(f"{SOMAXCONN}=1"),
        sysctl(f"{KEEPALIVE}=300"),
    )
    assert policy.merge() == ()


@pytest.mark.parametrize(
    ("key", "current", "trace", "written"),
    [
        pytest.param(KEEPALIVE, "7200", None, True, id="as the kernel made it"),
        pytest.param(KEEPALIVE, "500", None, False, id="set by the user"),
        pytest.param(KEEPALIVE, "900", "900", True, id="ours, of another network"),
        pytest.param(KEEPALIVE, "500", "900", False, id="changed since by another program"),
        pytest.param(KEEPALIVE, None, None, False, id="not in this namespace"),
        pytest.param(PORTS, "0", None, True, id="docker's default"),
        pytest.param(PORTS, "1024", None, True, id="docker's default not applied"),
        pytest.param(PORTS, "80", None, False, id="not docker's default"),
    ],
)
def test_only_what_nobody_else_set_is_written(
    key: str, current: str | None, trace: str | None, *, written: bool
) -> None:
    pristine = {KEEPALIVE: "7200", PORTS: "1024"}
    present = {} if current is None else {key: current}
    traces = {} if trace is None else {key: Trace(key, "7200", trace)}
    plan = policy.plan_writes([sysctl(f"{key}=600")], present, pristine, traces)
    expected = frozenset({str(current)})
    assert plan == ([SysctlWrite(key, "600", expected)] if written else [])


@pytest.mark.parametrize(
    ("staying", "written", "over"),
    [
        pytest.param(None, "1 2 3", {"4\t5\t6"}, id="nobody asks for it"),
        # The second: written, but the trace was lost in a crash.
        pytest.param("7 8 9", "7 8 9", {"4\t5\t6", "7 8 9"}, id="another asks for another value"),
        pytest.param("4 5 6", None, None, id="another asks for the same"),
    ],
)
def test_what_is_put_back(staying: str | None, written: str | None, over: set[str] | None) -> None:
    traces = {RMEM: Trace(RMEM, before="1 2 3", written="4\t5\t6")}
    plan = policy.plan_restores({} if staying is None else {RMEM: staying}, traces)
    expected = [] if written is None or over is None else [(RMEM, written, over)]
    assert [(each.key, each.value, set(each.expected)) for each in plan] == expected


def test_an_undo_spares_what_others_have_changed_since() -> None:
    traces = [Trace(KEEPALIVE, before="7200", written="600")]
    assert policy.plan_undo(traces) == [SysctlWrite(KEEPALIVE, "7200", frozenset({"600"}))]
