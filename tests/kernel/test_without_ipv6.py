"""A host whose operator has turned IPv6 off loses what needs it, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from driver.driver import BridgeDriver
from driver.firewall.ruleset import ACCEPTED_MARK
from tests.kernel.container import reaches, serving, start
from tests.kernel.test_published import DUAL, host_reaches, publish
from tests.samples import endpoint_id, network, network_id, new_endpoint, ports

if TYPE_CHECKING:
    from driver.linux.linux import LinuxKernel
    from tests.kernel.host import RealHost

CONF = Path("/proc/sys/net/ipv6/conf")
# What operators turn off, in the order in which a file of sysctl.d has it.
OFF = {"everything": ("all", "default", "lo"), "what comes later": ("default",)}


def turn_off(*names: str) -> None:
    for name in names:
        (CONF / name / "disable_ipv6").write_text("1")


@pytest.mark.parametrize("names", OFF.values(), ids=OFF)
@pytest.mark.usefixtures("as_docker_leaves_it")
def test_a_network_with_ipv6_works_by_ipv4_and_among_its_containers(
    driver: BridgeDriver, real: RealHost, names: tuple[str, ...]
) -> None:
    turn_off(*names)
    server, client = publish(driver, real)
    assert driver.check() == ()
    assert reaches(client, server, 6)
    with serving(server):
        assert host_reaches(4, "127.0.0.1")
    with serving(server, 6):
        assert host_reaches(6, "fd00:1::1")


@pytest.mark.usefixtures("as_docker_leaves_it")
def test_it_takes_no_other_network_along_at_a_start(
    driver: BridgeDriver, real: RealHost, linux: LinuxKernel
) -> None:
    driver.create_network(DUAL)
    driver.create_network(network(2))
    server = start(driver, real, 1, new_endpoint(1, 2), has_ports=True)
    turn_off("all", "default", "lo")
    again = BridgeDriver(driver._store, linux)
    again.restore()
    assert again.check() == ()
    again.program_external_connectivity(network_id(2), endpoint_id(1), ports("80:8080"))
    with serving(server):
        assert host_reaches(4, "127.0.0.1")


@pytest.mark.parametrize(("name", "text"), [("all", "but no other host"), ("lo", "no ::1")])
def test_who_makes_the_network_is_told_why(
    driver: BridgeDriver, caplog: pytest.LogCaptureFixture, name: str, text: str
) -> None:
    turn_off(name)
    driver.create_network(network(2))
    assert not caplog.records
    assert driver.advise() == ()
    driver.create_network(DUAL)
    (advice,) = driver.advise()
    assert advice.setting == f"net.ipv6.conf.{name}.disable_ipv6"
    assert text in advice.text
    (line,) = caplog.messages
    assert advice.setting in line
    assert text in line


@pytest.mark.usefixtures("as_docker_leaves_it")
def test_ip6tables_that_fails_closes_no_port_of_ipv4(
    driver: BridgeDriver,
    real: RealHost,
    linux: LinuxKernel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver.create_network(network(2))
    server = start(driver, real, 1, new_endpoint(1, 2), has_ports=True)
    driver.program_external_connectivity(network_id(2), endpoint_id(1), ports("80:8080"))
    linux.delete_forward_accept(ACCEPTED_MARK)
    broken = tmp_path / "ip6tables"
    broken.write_text("#!/bin/sh\necho broken >&2\nexit 4\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    driver.restore()
    with serving(server):
        assert host_reaches(4, "10.2.0.1")
    (found,) = driver.check()
    assert str(found).startswith("forward accept FORWARD: cannot be looked at: run ")
    assert str(found).endswith("/ip6tables -S FORWARD: broken")
