"""Kernel parameters, tried and written in real namespaces; the host's own never change."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from driver.errors import InvalidRequest, KernelError
from driver.linux import netns, sysctl
from driver.linux.linux import LinuxKernel
from driver.model import SysctlWrite, Trace
from driver.sysctl.host import HostSysctls
from driver.sysctl.policy import DOCKER_DEFAULTS, NO_POLICY, plan_restores, plan_undo
from tests.kernel.host import run
from tests.samples import KEEPALIVE, RP_FILTER
from tests.samples import sysctl as parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from driver.model import SandboxKey
    from tests.kernel.host import RealHost

T = TypeVar("T")
NET = Path("/proc/sys/net")


def keys(root: Path = NET) -> dict[str, int]:
    """Return the parameters of the thread's namespace that are files, with their modes."""
    found = (path for path in root.rglob("*") if path.is_file())
    return {f"net.{'.'.join(path.relative_to(NET).parts)}": path.stat().st_mode for path in found}


def on_machine(work: Callable[[], T]) -> T:
    """Return what `work` returns in the machine's own namespace: where the driver would be."""
    with Path(f"/proc/{os.getppid()}/ns/net").open() as machine:
        return netns.run_in(machine.fileno(), work)


@pytest.fixture(autouse=True)
def _untouched() -> Iterator[None]:
    """Fail the test if a value of the test's own host has changed, whatever else it shows."""
    before = sysctl.read_all([KEEPALIVE, "net.core.somaxconn", "net.ipv4.ip_forward"])
    yield
    assert sysctl.read_all(before) == before


def test_an_unknown_parameter_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidRequest, match=r"did you mean net\.ipv4\.tcp_keepalive_time\?"):
        sysctl.check([parse("net.ipv4.tcp_keepalive_tim=600")])
    with pytest.raises(InvalidRequest, match=r"no such parameter$"):
        sysctl.check([parse("net.nowhere.at_all=600")])


def test_a_parameter_of_the_whole_machine_is_refused() -> None:
    core = NET / "core"
    key = min(on_machine(lambda: keys(core)).keys() - keys(core).keys())
    value = on_machine(lambda: sysctl.read(key))
    with pytest.raises(InvalidRequest, match=f"{key}: is not per network namespace"):
        on_machine(lambda: sysctl.check([parse(f"{key}={value}")]))


def test_what_the_whole_machine_has_is_not_inherited() -> None:
    inherited = HostSysctls(LinuxKernel(), NO_POLICY)
    words = "not per network namespace; set on the host, it holds for every container"
    with pytest.raises(InvalidRequest, match=rf"inherit net\.core\.rmem_\*: .*rmem_max: {words}"):
        on_machine(lambda: inherited.check(["net.core.rmem_*"]))
    on_machine(lambda: inherited.check(["net.core.somaxconn"]))


def test_what_can_be_set_is_what_a_namespace_has_but_no_secrets_that_are_not_there() -> None:
    found = sysctl.read_pristine()
    assert found[KEEPALIVE] == "7200"
    assert {f"net.ipv4.conf.{name}.rp_filter" for name in ("all", "default", "lo")} <= found.keys()
    assert not [key for key in found if "stable_secret" in key or key.endswith(".flush")]
    on_host = on_machine(sysctl.read_settable)
    assert "net.core.rmem_max" in on_host
    assert "net.core.rmem_max" not in found
    interfaces = {name for _, name in on_machine(socket.if_nameindex)} - {"lo"}
    assert not [key for key in on_host if interfaces & set(key.split("."))]


def test_a_read_only_parameter_is_refused() -> None:
    key = min(key for key, mode in keys().items() if not mode & 0o222)
    with pytest.raises(InvalidRequest, match=f"{key}: is read-only"):
        sysctl.check([parse(f"{key}=1")])


def test_a_parameter_that_cannot_be_read_is_refused() -> None:
    key = min(key for key, mode in keys().items() if not mode & 0o444)
    with pytest.raises(InvalidRequest, match=f"{key}: cannot be read"):
        sysctl.check([parse(f"{key}=1")])


@pytest.mark.parametrize("value", ["70000", "-1", "many"])
def test_a_value_out_of_range_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest, match="malformed or out of range"):
        sysctl.check([parse(f"net.ipv4.ip_default_ttl={value}")])


def test_an_interface_itself_is_no_parameter() -> None:
    with pytest.raises(InvalidRequest, match="no such parameter"):
        sysctl.check([parse("net.ipv4.conf=1")])


def test_pristine_values_are_those_before_anything_is_tried() -> None:
    # The first turns the second on, too (devinet_sysctl_forward()).
    wanted = [parse("net.ipv4.ip_forward=1"), parse("net.ipv4.conf.all.forwarding=1")]
    before = sysctl.read_pristine([each.key for each in wanted])
    assert sysctl.check(wanted) == before


def test_what_docker_writes_by_default_is_known() -> None:
    # An engine writes them by default because a namespace has them otherwise.
    pristine = sysctl.read_pristine(DOCKER_DEFAULTS)
    assert pristine.keys() == DOCKER_DEFAULTS.keys()
    assert all(pristine[key] != value for key, value in DOCKER_DEFAULTS.items())


def test_a_failed_write_puts_the_earlier_ones_back(real: RealHost) -> None:
    sandbox = real.add_sandbox(1)
    wanted = {KEEPALIVE: "600", "net.core.somaxconn": "9", "net.ipv4.ip_default_ttl": "0"}
    before = {key: real.value(sandbox, key) for key in wanted}
    writes = [SysctlWrite(key, wanted[key], frozenset({str(before[key])})) for key in wanted]
    with pytest.raises(KernelError, match=r"net\.ipv4\.ip_default_ttl=0: Invalid argument"):
        real.kernel.write_sysctls({sandbox: writes})
    assert {key: real.value(sandbox, key) for key in wanted} == before


def test_what_was_before_can_be_put_back(real: RealHost) -> None:
    sandbox = real.add_sandbox(1)
    key = "net.ipv4.tcp_rmem"
    before = str(real.value(sandbox, key))
    write = SysctlWrite(key, "1 2 3", frozenset({before}))
    traces = real.kernel.write_sysctls({sandbox: [write]})[sandbox]
    assert real.value(sandbox, key) == "1\t2\t3"
    real.kernel.write_sysctls({sandbox: plan_undo(traces)})
    assert real.value(sandbox, key) == before


def test_parameters_that_change_one_another_are_compared_before_any_is_written(
    real: RealHost,
) -> None:
    """The first turns the second on, too (devinet_sysctl_forward())."""
    sandbox = real.add_sandbox(1)
    keys = ["net.ipv4.ip_forward", "net.ipv4.conf.all.forwarding"]
    writes = [SysctlWrite(key, "1", frozenset({"0"})) for key in keys]
    traces = real.kernel.write_sysctls({sandbox: writes})[sandbox]
    assert traces == tuple(Trace(key, before="0", written="1") for key in keys)
    real.kernel.write_sysctls({sandbox: plan_undo(traces)})
    assert [real.value(sandbox, key) for key in keys] == ["0", "0"]


@pytest.mark.parametrize("plan", [plan_undo, lambda traces: plan_restores({}, by_key(traces))])
def test_what_the_kernel_takes_beside_another_value_only_is_restored_in_reverse(
    real: RealHost, plan: Callable[[Iterable[Trace]], list[SysctlWrite]]
) -> None:
    """Ports that need a privilege end below those that are chosen, whatever is written first."""
    sandbox = real.add_sandbox(1)
    values = {
        "net.ipv4.ip_local_port_range": "40000\t60000",
        "net.ipv4.ip_unprivileged_port_start": "35000",
    }
    before = {key: real.value(sandbox, key) or "" for key in values}
    writes = [SysctlWrite(key, value, frozenset({before[key]})) for key, value in values.items()]
    traces = real.kernel.write_sysctls({sandbox: writes})[sandbox]
    assert {key: real.value(sandbox, key) for key in values} == values
    real.kernel.write_sysctls({sandbox: plan(traces)})
    assert {key: real.value(sandbox, key) for key in values} == before


def by_key(traces: Iterable[Trace]) -> dict[str, Trace]:
    return {trace.key: trace for trace in traces}


def test_interfaces_are_found_whatever_their_names(real: RealHost) -> None:
    sandbox: SandboxKey = real.add_sandbox(1)
    with netns.open_namespace(sandbox) as namespace:
        netns.run_in(namespace, lambda: sysctl.write(RP_FILTER, "2", "lo"))
    assert real.value(sandbox, "net.ipv4.conf.lo.rp_filter") == "2"


def test_how_many_neighbours_there_may_be_is_the_whole_machines(linux: LinuxKernel) -> None:
    seen = on_machine(lambda: linux.observe_host([])).neighbours
    for version in (4, 6):
        limit = f"net.ipv{version}.neigh.default.gc_thresh3"
        shown = run("nsenter", f"--net=/proc/{os.getppid()}/ns/net", "sysctl", "-n", limit)
        assert shown == f"{seen[version]}\n"
    assert linux.observe_host([]).neighbours == {}, "another namespace has no such parameters"


@pytest.mark.parametrize(
    ("number", "text", "words"),
    [
        (errno.EPERM, "net.ipv4.tcp_congestion_control=vegas", "allowed_congestion_control does"),
        (errno.EPERM, "net.core.somaxconn=1", "permits this value to the host alone"),
        (errno.ENOENT, "net.ipv4.tcp_congestion_control=none", "knows nothing of that name"),
        (errno.EINVAL, "net.core.somaxconn=x", "malformed or out of range"),
        (errno.EBUSY, "net.core.somaxconn=1", "busy: the kernel does not take this value"),
    ],
)
def test_the_kernels_own_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, number: int, text: str, words: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", refuse)

    with pytest.raises(InvalidRequest, match=f"set {text}: .*{words}"):
        sysctl.check([parse(text)])


def test_a_congestion_control_that_there_is_not_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"nothing: .*knows nothing of that name"):
        sysctl.check([parse("net.ipv4.tcp_congestion_control=nothing")])
