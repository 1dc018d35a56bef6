"""At the very edge: the longest, the largest, the last one; and that what happens is counted."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from concurrent.futures import Future
from threading import Thread
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from gunicorn.config import Config
from werkzeug.test import Client

from driver.counts import Counts
from driver.driver import BridgeDriver
from driver.errors import Busy, InvalidRequest, KernelError
from driver.health import Health
from driver.model import SysctlWrite, Trace, host_end_name
from driver.sysctl.policy import VALUE_LENGTH, foresee_traces, parse_sysctl
from plugin import server, worker
from plugin.api import MAX_BODY, create_app
from plugin.api.docker import BODILESS
from plugin.api.metrics import Metrics
from plugin.cli.explain import Finding, suggest_compose
from plugin.sockets import Names, answers
from tests.samples import (
    KEEPALIVE,
    RP_FILTER,
    SOMAXCONN,
    counted,
    endpoint_id,
    network,
    network_id,
    new_endpoint,
    new_join,
    ports,
    sandbox_key,
)
from tests.unit.test_app import CALLS, post, refused

if TYPE_CHECKING:
    from pathlib import Path

    from driver.state.store import Store
    from tests.fakes import FakeKernel

# Limits.


def test_the_longest_value_is_taken_and_no_longer_one() -> None:
    text = "1" * VALUE_LENGTH
    assert parse_sysctl(KEEPALIVE, f"  {text}\n").value == text
    with pytest.raises(InvalidRequest, match="empty or no plain text"):
        parse_sysctl(KEEPALIVE, f"{text}1")


@pytest.mark.parametrize(
    "number",
    [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN, errno.ECONNABORTED],
    ids=errno.errorcode.get,
)
def test_a_connection_that_cannot_be_had_at_the_moment_is_no_reason_to_end(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Whoever lacks what for it: this process, or the host."""
    monkeypatch.setattr(worker, "EXHAUSTED_SECONDS", 0)

    def refuse() -> None:
        raise OSError(number, os.strerror(number))

    listener = cast("socket.socket", SimpleNamespace(accept=refuse))
    accepting = worker.Worker.__new__(worker.Worker)
    accepting._is_exhausted = False
    accepting.accept(listener)
    number = errno.EBADF
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        accepting.accept(listener)


def test_connections_that_cannot_be_had_are_told_of_once_until_there_are_some(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "EXHAUSTED_SECONDS", 0)
    near, far = socket.socketpair()
    outcomes = iter([errno.EMFILE, errno.EMFILE, None, errno.EMFILE])

    def accept() -> tuple[socket.socket, str]:
        if number := next(outcomes):
            raise OSError(number, os.strerror(number))
        return near, ""

    accepting = worker.Worker.__new__(worker.Worker)
    accepting._is_exhausted, accepting._connections, accepting.nr_conns = False, [], 0
    accepting.cfg = Config()
    monkeypatch.setattr(accepting, "enqueue_req", lambda _: None)
    for lines in (1, 1, 1, 2):
        accepting.accept(cast("socket.socket", SimpleNamespace(accept=accept)))
        assert len(caplog.messages) == lines
    for each in (near, far):
        each.close()


def test_the_largest_body_is_read_and_no_larger_one(driver: BridgeDriver) -> None:
    client = Client(create_app(lambda: driver))
    body = json.dumps(CALLS["DeleteEndpoint"]).encode().ljust(MAX_BODY)
    assert post(client, "NetworkDriver.DeleteEndpoint", body).status_code == 200
    refused(post(client, "NetworkDriver.DeleteEndpoint", body + b" "), 413)


@pytest.mark.parametrize(
    ("value", "shown"),
    [("600", "600"), ("1 2 3", "1\t2\t3"), ("1  2\t 3", "1\t2\t3"), ("", "")],
)
def test_a_trace_is_foreseen_as_the_kernel_will_show_the_value(value: str, shown: str) -> None:
    write = SysctlWrite(KEEPALIVE, value, frozenset({"7200"}))
    (trace,) = foresee_traces({KEEPALIVE: "7200"}, [write])
    assert trace == Trace(KEEPALIVE, "7200", shown)


# Who need not wait for the driver, and what its metrics say of who had to.


@pytest.mark.parametrize(
    "method",
    [*BODILESS, *(f"NetworkDriver.{each}" for each in CALLS)],
)
def test_while_the_driver_starts_only_what_needs_it_is_put_off(method: str) -> None:
    """An engine creates no network at all if nobody answers GwAllocCheck."""

    def starting() -> BridgeDriver:
        raise Busy("the driver is starting")

    client = Client(create_app(starting))
    call = CALLS.get(method.rpartition(".")[2])
    response = post(client, method, b"" if call is None else json.dumps(call).encode())
    needs_none = method in BODILESS or method.endswith(("GwAllocCheck", "New", "Delete"))
    needs_none &= not method.endswith(("DeleteNetwork", "DeleteEndpoint"))
    assert response.status_code == (200 if needs_none else 503)


def test_who_needs_a_driver_that_does_not_come_to_its_start_is_put_off() -> None:
    put_off: list[Busy] = []

    def wait() -> None:
        try:
            server._await(Future(), time.monotonic() + 0.1)
        except Busy as error:
            put_off.append(error)

    waiting = Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(20)
    assert [str(each) for each in put_off] == [
        "the driver is starting and restores its networks; try again"
    ]


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, "ok"),
        (400, "invalid"),
        (409, "conflict"),
        (503, "busy"),
        (500, "failed"),
        (413, "failed"),
    ],
)
def test_every_outcome_has_its_name(status: int, outcome: str) -> None:
    metrics = Metrics(Counts(), Health())
    metrics.observe_call("Join", status, 0.1)
    text, _ = metrics.render(None)
    labels = f'{{method="Join",outcome="{outcome}"}}'
    assert f"pynet_request_duration_seconds_count{labels} 1.0" in text.decode()
    assert f"pynet_request_duration_seconds_sum{labels} 0.1" in text.decode()


# What the driver counts, by what it does.


def test_nothing_is_counted_of_an_ordinary_life(driver: BridgeDriver, kernel: FakeKernel) -> None:
    driver.restore()
    driver.create_network(network(1))
    kernel.add_sandbox(sandbox_key(1))
    driver.create_endpoint(new_endpoint())
    driver.join(new_join())
    driver.leave(network_id(1), endpoint_id(1))
    driver.delete_endpoint(network_id(1), endpoint_id(1))
    driver.delete_network(network_id(1))
    counts = driver.counts
    by_kind = (counts.repairs, counts.evictions, counts.leftovers)
    assert not any(number for each in by_kind for number in counted(each).values())
    assert counted(counts.sysctl_writes) == counted(counts.watch_misses) == {"": 0}


def test_leftovers_are_counted_one_by_one(store: Store, kernel: FakeKernel) -> None:
    for number in (7, 8):
        kernel.add_foreign(f"pnh{number:012x}", "veth", alias=f"pynet endpoint {number} network 9")
    driver = BridgeDriver(store, kernel)
    driver.restore()
    assert counted(driver.counts.leftovers) == {"link": 2}
    driver.restore()
    assert counted(driver.counts.leftovers) == {"link": 2}


def test_a_dead_container_that_had_a_port_is_an_eviction(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    driver.create_network(network(1))
    for number in (1, 2):
        kernel.add_sandbox(sandbox_key(number))
        driver.create_endpoint(new_endpoint(number))
        driver.join(new_join(number, 1, sandbox_key(number), has_ports=True))
        kernel.move(host_end_name(endpoint_id(number)), sandbox_key(number))
        if number == 1:
            driver.program_external_connectivity(network_id(1), endpoint_id(1), ports("80:80"))
            kernel.die(sandbox_key(1))
    driver.program_external_connectivity(network_id(1), endpoint_id(2), ports("80:80"))
    assert counted(driver.counts.evictions) == {"endpoint": 1}


@pytest.mark.parametrize("meanwhile", ["nothing", "left", "is elsewhere", "gone"])
def test_an_interface_that_never_came_up_is_a_miss_unless_it_had_left(
    driver: BridgeDriver,
    kernel: FakeKernel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    meanwhile: str,
) -> None:
    has_left = meanwhile != "nothing"

    def wait_in_vain(*_: object) -> None:
        if has_left:
            driver.leave(network_id(1), endpoint_id(1))
        if meanwhile == "is elsewhere":
            driver.join(new_join(1, 1, sandbox_key(2)))
        if meanwhile == "gone":
            driver.delete_endpoint(network_id(1), endpoint_id(1))
        raise KernelError("it was not up")

    monkeypatch.setattr(kernel, "await_interface_sysctls", wait_in_vain)
    driver.create_network(network(1, f"{RP_FILTER}=2"))
    driver.create_endpoint(new_endpoint())
    driver.join(new_join())
    if has_left:
        kernel.arrive(sandbox_key(1))
    else:
        with pytest.raises(KernelError, match="it was not up"):
            kernel.arrive(sandbox_key(1))
    assert counted(driver.counts.watch_misses)[""] == (0 if has_left else 1)
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


@pytest.mark.parametrize("has_come", [True, False])
def test_a_sandbox_that_never_came_is_a_miss(
    driver: BridgeDriver, kernel: FakeKernel, *, has_come: bool
) -> None:
    driver.create_network(network(1, f"{KEEPALIVE}=600"))
    driver.create_endpoint(new_endpoint())
    driver.join(new_join())
    if has_come:
        kernel.arrive(sandbox_key(1))
    driver.leave(network_id(1), endpoint_id(1))
    assert counted(driver.counts.watch_misses)[""] == (0 if has_come else 1)


@pytest.mark.parametrize("left", ["before it came", "as it came", "while it was there"])
def test_a_sandbox_may_have_the_name_of_one_that_has_ended(
    driver: BridgeDriver, kernel: FakeKernel, left: str
) -> None:
    """A container that is restarted has it again on engines up to 27: it is yet to come, not dead.

    Else the watcher would drop its endpoint before it has begun.
    """
    driver.create_network(network(1, f"{KEEPALIVE}=600"))
    driver.create_endpoint(new_endpoint())
    if left == "while it was there":
        kernel.add_sandbox(sandbox_key(1))
    driver.join(new_join())
    if left == "before it came":
        driver.leave(network_id(1), endpoint_id(1))
    if left == "as it came":
        come = kernel.watches[sandbox_key(1)]
        driver.leave(network_id(1), endpoint_id(1))
        kernel.add_sandbox(sandbox_key(1))
        come()
    if left == "while it was there":
        assert driver.check() == ()
        driver.leave(network_id(1), endpoint_id(1))
    kernel.sandboxes.pop(sandbox_key(1), None)
    driver.join(new_join())
    assert driver.check() == ()


def test_parameters_are_counted_as_they_are_written(
    driver: BridgeDriver, kernel: FakeKernel
) -> None:
    kernel.add_sandbox(sandbox_key(1), **{SOMAXCONN: "1"})
    driver.create_network(network(1, f"{KEEPALIVE}=600", f"{SOMAXCONN}=9"))
    driver.create_endpoint(new_endpoint())
    driver.join(new_join())
    assert counted(driver.counts.sysctl_writes)[""] == 1, "the other one is the container's own"
    driver.leave(network_id(1), endpoint_id(1))
    assert counted(driver.counts.sysctl_writes)[""] == 2, "what was there before is written, too"


@pytest.mark.parametrize("sandbox_first", [True, False], ids=["28", "20.10 to 27"])
def test_so_are_those_of_interfaces(
    driver: BridgeDriver, kernel: FakeKernel, *, sandbox_first: bool
) -> None:
    if sandbox_first:
        kernel.add_sandbox(sandbox_key(1))
    driver.create_network(network(1, f"{RP_FILTER}=2"))
    driver.create_endpoint(new_endpoint())
    driver.join(new_join())
    end = host_end_name(endpoint_id(1))
    if sandbox_first:
        kernel.move(end, sandbox_key(1))
    else:
        kernel.arrive(sandbox_key(1), [end])
    driver.endpoint_info(network_id(1), endpoint_id(1))
    assert counted(driver.counts.sysctl_writes)[""] == 1


# What is not done twice, and what is not undone.


def test_a_port_that_is_held_is_not_asked_for_again(
    driver: BridgeDriver, kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    driver.create_network(network(1))
    driver.create_endpoint(new_endpoint())
    kernel.add_sandbox(sandbox_key(1))
    driver.join(new_join(has_ports=True))
    driver.program_external_connectivity(network_id(1), endpoint_id(1), ports("80:80", "81:81"))
    lost = min(kernel.reserved, key=str)
    kernel.reserved.discard(lost)
    assert driver.repair_all() == ()
    assert "publish" not in caplog.text


def test_a_socket_that_somebody_has_put_in_its_place_stays(tmp_path: Path) -> None:
    """A driver that was started anew may listen there before the last one has ended."""
    path = tmp_path / "pynet.sock"
    names = Names()
    names.open(path)
    (descriptor,) = names.descriptors
    own = path.stat().st_ino
    path.rename(tmp_path / "aside")  # so that its inode is not used again
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen()
        assert path.stat().st_ino != own
        names.remove()
        assert answers(path)
    socket.socket(fileno=descriptor).close()


def test_a_socket_of_its_own_is_removed(tmp_path: Path) -> None:
    names = Names()
    names.open(tmp_path / "pynet.sock")
    for _ in range(2):
        names.remove()
        assert not (tmp_path / "pynet.sock").exists()
    socket.socket(fileno=names.descriptors[0]).close()


def test_what_compose_would_replace_is_written_for_it() -> None:
    (line,) = [each for each in suggest_compose([Finding(KEEPALIVE, "$A 1", "")]) if "net." in each]
    assert line.strip() == f'{KEEPALIVE}: "$$A 1"'
