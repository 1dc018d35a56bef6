"""What an operator says of all networks' kernel parameters, to the driver and to Docker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.managed import ManagedPlugin
from tests.engine.plugin_image import NAME
from tests.engine.rootfs import SUITES
from tests.engine.steps import KEEPALIVE, create_network, first_value, sysctl_options

if TYPE_CHECKING:
    from tests.engine.engine import Engine

pytestmark = pytest.mark.managed("always")

SACK = "net.ipv4.tcp_sack"
PER_DRIVER = "--default-network-opt={}=" + f"{KEEPALIVE}=600"


def settle(engine: Engine, **env: str) -> None:
    """Have a driver with these settings."""
    assert engine.driver is not None
    engine.driver.terminate()
    engine.start_driver(env=env)


def test_the_drivers_defaults_reach_every_network(engine: Engine) -> None:
    create_network(engine, "older")
    settle(engine, PYNET_DEFAULT_SYSCTLS=f"{KEEPALIVE}=600,{SACK}=0")
    create_network(engine, "plain")
    create_network(engine, "own", *sysctl_options({KEEPALIVE: "300"}))
    for network, value in (("older", "600"), ("plain", "600"), ("own", "300")):
        assert first_value(engine, network, KEEPALIVE) == value
        assert first_value(engine, network, SACK) == "0"


def test_an_operator_says_what_networks_may_set(engine: Engine) -> None:
    settle(engine, PYNET_SYSCTL_ALLOW="net.ipv4.tcp_keepalive_*")
    create_network(engine, "fine", *sysctl_options({KEEPALIVE: "300"}))
    create = ("network", "create", "-d", "pynet", *sysctl_options({SACK: "0"}), "not")
    refused = engine.docker(*create, check=False)
    assert refused.returncode != 0
    assert SACK in refused.stderr


def test_dockers_defaults_for_a_driver_are_options_of_its_networks(engine: Engine) -> None:
    names = ("pynet", NAME) if engine.drivers is ManagedPlugin else ("pynet",)
    engine.stop_dockerd()
    flags = [PER_DRIVER.format(name) for name in names]
    if SUITES[engine.suite].engine < "24":
        with pytest.raises(ChildProcessError, match="unknown flag: --default-network-opt"):
            engine.start_dockerd(*flags)
        return
    engine.start_dockerd(*flags)
    for number, name in enumerate(names):
        network = f"plain{number}"
        engine.docker("network", "create", "-d", name, network)
        assert engine.client.networks.get(network).attrs["Options"] == {KEEPALIVE: "600"}
        assert first_value(engine, network, KEEPALIVE) == "600"
    create_network(engine, "own", *sysctl_options({KEEPALIVE: "300"}))
    assert first_value(engine, "own", KEEPALIVE) == "300"
