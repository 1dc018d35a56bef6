"""Which kernel parameters containers get, from whom, when, and that nobody else's change."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.engine.site import major
from tests.engine.steps import (
    KEEPALIVE,
    create_network,
    execute,
    first_value,
    host_value,
    kernel_value,
    proc_path,
    run,
    run_once,
    settings,
    stop,
    sysctl_options,
)
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from tests.engine.engine import Engine

pytestmark = pytest.mark.managed

INTERVAL = "net.ipv4.tcp_keepalive_intvl"
BUFFERS = "net.ipv4.tcp_rmem"
PORT_START = "net.ipv4.ip_unprivileged_port_start"
STARTS = 3
KERNEL_DEFAULT = "7200"  # of KEEPALIVE
ARP_NOTIFY = "net.ipv4.conf.{}.arp_notify"

# What counts or follows what happens on a host, and what belongs to an interface that comes and
# goes, says nothing about who wrote parameters.
LIST_PARAMETERS = """
find /proc/sys/net -type f -perm -400 \
    ! -name nf_conntrack_count ! -path '*/conf/*' ! -path '*/neigh/*' |
    sort | while read -r file; do
        echo "$file = $(cat "$file" 2>/dev/null)"
    done
"""


def keepalive(value: int) -> list[str]:
    """Return the option of a network that wants this keepalive time."""
    return sysctl_options({KEEPALIVE: str(value)})


def networks(engine: Engine, **values: int) -> None:
    """Create networks, each with its keepalive time."""
    for name, value in values.items():
        create_network(engine, name, *keepalive(value))


def create(engine: Engine, name: str, *words: str) -> None:
    """Create a container that does nothing, without starting it."""
    engine.docker("create", "--name", name, *words, "bb", "sleep", "1000")


def connect(engine: Engine, container: str, network: str, *driver_opts: str) -> None:
    """Connect a container to a network."""
    words = [word for option in driver_opts for word in ("--driver-opt", option)]
    engine.docker("network", "connect", *words, network, container)


def disconnect(engine: Engine, container: str, network: str) -> None:
    """Disconnect a container from a network."""
    engine.docker("network", "disconnect", network, container)


@pytest.mark.managed("always")
def test_parameters_of_several_kinds_are_there_before_the_first_process(engine: Engine) -> None:
    wanted = {
        KEEPALIVE: "600",
        BUFFERS: "4096 65536 1048576",
        "net.ipv4.tcp_congestion_control": "reno",
        "net.ipv6.conf.default.hop_limit": "32",
        "net.core.somaxconn": "1024",
    }
    create_network(engine, "back", *sysctl_options(wanted))
    files = [f"/proc/sys/{key.replace('.', '/')}" for key in wanted]
    seen = run_once(engine, "back", "cat", *files).replace("\t", " ").splitlines()
    assert seen == list(wanted.values())


@pytest.mark.managed("always")
def test_parameters_of_the_interface(engine: Engine) -> None:
    key = "net.ipv4.conf.{}.{}"
    wanted = {"IFNAME": "arp_notify", "ifname": "arp_accept", "IfName": "arp_announce"}
    options = sysctl_options({key.format(*pair): "1" for pair in wanted.items()})
    prefix = ("-o", "com.docker.network.container_iface_prefix=lan")
    create_network(engine, "back", *options, *prefix)
    for name, value in (("lan0", "1"), ("lo", "0")):
        files = [proc_path(key.format(name, parameter)) for parameter in wanted.values()]
        assert run_once(engine, "back", "cat", *files).split() == [value] * len(wanted)


def test_parameters_of_an_interface_that_is_connected_later(engine: Engine) -> None:
    create_network(engine, "plain")
    create_network(engine, "back", *sysctl_options({ARP_NOTIFY.format("IFNAME"): "1"}))
    run(engine, "box", "plain")
    connect(engine, "box", "back")
    assert kernel_value(engine, "box", ARP_NOTIFY.format("eth1")) == "1"
    assert kernel_value(engine, "box", ARP_NOTIFY.format("eth0")) == "0"


def test_the_value_is_there_after_stop_start_and_restart(engine: Engine) -> None:
    networks(engine, back=600)
    run(engine, "box", "back")
    stop(engine, "box")
    for again in (("start",), ("restart", "-t", "0")):
        engine.docker(*again, "box")
        assert kernel_value(engine, "box", KEEPALIVE) == "600"


@pytest.mark.managed("always")
def test_the_containers_own_value_beats_the_networks(engine: Engine) -> None:
    networks(engine, back=600)
    assert first_value(engine, "back", KEEPALIVE, "--sysctl", f"{KEEPALIVE}=900") == "900"


def test_the_containers_own_value_stays_over_connect_and_disconnect(engine: Engine) -> None:
    networks(engine, front=600, back=700)
    run(engine, "box", "front", "--sysctl", f"{KEEPALIVE}=900")
    connect(engine, "box", "back")
    assert kernel_value(engine, "box", KEEPALIVE) == "900"
    disconnect(engine, "box", "back")
    assert kernel_value(engine, "box", KEEPALIVE) == "900"


def test_an_endpoints_option_beats_the_networks(engine: Engine) -> None:
    create_network(engine, "back", *sysctl_options({KEEPALIVE: "600", INTERVAL: "60"}))
    place = f"name=back,driver-opt={KEEPALIVE}=800"
    assert first_value(engine, place, KEEPALIVE) == "800"
    assert first_value(engine, place, INTERVAL) == "60"
    own = ("--sysctl", f"{KEEPALIVE}=900")
    assert first_value(engine, place, KEEPALIVE, *own) == "900"


def test_an_endpoints_option_of_a_created_container(engine: Engine) -> None:
    networks(engine, back=600)
    create(engine, "box", "--network", "none")
    disconnect(engine, "box", "none")
    connect(engine, "box", "back", f"{KEEPALIVE}=800")
    for _ in range(2):
        engine.docker("start", "box")
        assert kernel_value(engine, "box", KEEPALIVE) == "800"
        stop(engine, "box")


def test_an_endpoints_option_of_a_running_container(engine: Engine) -> None:
    create_network(engine, "plain")
    networks(engine, back=600)
    run(engine, "box", "plain")
    connect(engine, "box", "back", f"{KEEPALIVE}=800")
    assert kernel_value(engine, "box", KEEPALIVE) == "800"


def test_connect_and_disconnect_while_running(engine: Engine) -> None:
    create_network(engine, "plain")
    networks(engine, back=600)
    run(engine, "box", "plain")
    for _ in range(2):
        connect(engine, "box", "back")
        assert kernel_value(engine, "box", KEEPALIVE) == "600"
        disconnect(engine, "box", "back")
        assert kernel_value(engine, "box", KEEPALIVE) == KERNEL_DEFAULT


def test_the_network_made_first_wins_and_what_is_still_asked_for_stays(engine: Engine) -> None:
    networks(engine, front=600, back=700)
    run(engine, "box", "back")
    assert kernel_value(engine, "box", KEEPALIVE) == "700"
    connect(engine, "box", "front")
    assert kernel_value(engine, "box", KEEPALIVE) == "600"
    assert contests(engine, "box") == [f"{KEEPALIVE}=600 over 700"]
    disconnect(engine, "box", "front")
    assert kernel_value(engine, "box", KEEPALIVE) == "700"
    disconnect(engine, "box", "back")
    assert kernel_value(engine, "box", KEEPALIVE) == KERNEL_DEFAULT


def test_leaving_the_network_that_lost_changes_nothing(engine: Engine) -> None:
    networks(engine, front=600, back=700)
    run(engine, "box", "front")
    connect(engine, "box", "back")
    disconnect(engine, "box", "back")
    assert kernel_value(engine, "box", KEEPALIVE) == "600"
    disconnect(engine, "box", "front")
    assert kernel_value(engine, "box", KEEPALIVE) == KERNEL_DEFAULT


@pytest.mark.parametrize("priority", [(), ("-o", "pynet.sysctl.priority=1")], ids=["", "priority"])
def test_who_wins_at_the_start_does_not_depend_on_dockers_order(
    engine: Engine, priority: tuple[str, ...]
) -> None:
    networks(engine, front=600)
    create_network(engine, "back", *keepalive(700), *priority)
    value, other = ("700", "600") if priority else ("600", "700")
    for name, first, second in (("one", "front", "back"), ("two", "back", "front")):
        create(engine, name, "--network", first)
        connect(engine, name, second)
        for _ in range(STARTS):
            engine.docker("start", name)
            assert kernel_value(engine, name, KEEPALIVE) == value
            assert contests(engine, name) == [f"{KEEPALIVE}={value} over {other}"]
            stop(engine, name)


def contests(engine: Engine, container: str) -> list[str]:
    """Return which contested parameters the driver names for a container's endpoints."""
    places = settings(engine, container)["Networks"].values()
    said = re.compile(r"endpoint (\w+) of network \w+ sets (.+) of endpoint (\w+) of network")
    ids = {place["EndpointID"][:12] for place in places}

    def named() -> list[str]:
        found = said.findall(engine.log("driver"))
        return [contest for winner, contest, loser in found if {winner, loser} <= ids]

    return wait_until(named, 5, "a contested parameter in the log")


def test_a_value_that_somebody_changed_since_is_left_alone(engine: Engine) -> None:
    create_network(engine, "plain")
    networks(engine, back=600)
    run(engine, "box", "plain")
    connect(engine, "box", "back")
    sandbox = settings(engine, "box")["SandboxKey"]
    engine.run("nsenter", f"--net={sandbox}", "tee", proc_path(KEEPALIVE), stdin="650")
    disconnect(engine, "box", "back")
    assert kernel_value(engine, "box", KEEPALIVE) == "650"


def test_the_hosts_and_other_containers_values_never_change(engine: Engine) -> None:
    create_network(engine, "plain")
    run(engine, "other", "plain")
    before = all_parameters(engine)
    wanted = {KEEPALIVE: "600", "net.core.somaxconn": "1024", ARP_NOTIFY.format("IFNAME"): "1"}
    create_network(engine, "back", *sysctl_options(wanted))
    run(engine, "box", "back")
    connect(engine, "box", "plain")
    during = all_parameters(engine)
    disconnect(engine, "box", "back")
    engine.docker("rm", "-f", "box")
    assert during == before
    assert all_parameters(engine) == before
    assert host_value(engine, ARP_NOTIFY.format("all")) == "0"


def all_parameters(engine: Engine) -> tuple[str, str]:
    """Return every parameter of the host and of the container `other`."""
    on_host = engine.run("sh", "-c", LIST_PARAMETERS).stdout
    assert f"{KERNEL_DEFAULT}\n" in on_host
    return on_host, execute(engine, "other", "sh", "-c", LIST_PARAMETERS)


def test_dockers_own_default(engine: Engine) -> None:
    """Show a limit: up to 27 runc writes Docker's default after the driver, and it stands."""
    create_network(engine, "back", *sysctl_options({PORT_START: "500"}))
    is_oldfashioned = major(engine) < 28
    assert first_value(engine, "back", PORT_START) == ("0" if is_oldfashioned else "500")
    create_network(engine, "plain")
    run(engine, "box", "plain")
    connect(engine, "box", "back")
    assert kernel_value(engine, "box", PORT_START) == "500"
    disconnect(engine, "box", "back")
    assert kernel_value(engine, "box", PORT_START) == "0"
