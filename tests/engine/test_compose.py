"""Compose, with the files that the examples show to people, on pynet and on Docker's own bridge."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Self

import pytest

from tests.engine import steps
from tests.engine.driver import REPOSITORY
from tests.engine.image import busybox_tar
from tests.engine.remains import await_nothing_left
from tests.engine.site import HOST, HOST_ADDRESS, LAN, LAN_ADDRESS, LOOPBACK, Question, Site, check
from tests.engine.steps import KEEPALIVE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine

pytestmark = pytest.mark.managed

IMAGES = ("IMAGE", "WEB_IMAGE", "DATABASE_IMAGE", "CLIENT_IMAGE", "RELAY_IMAGE")
VARIABLES = (*(f"{name}=idle" for name in IMAGES), "PULL_POLICY=never")
EXAMPLES = sorted(path.name for path in (REPOSITORY / "examples").glob("*.yaml"))


class Project:
    """A project that is up; of an example in place of its images one that does nothing."""

    def __init__(self, site: Site, driver: str, text: str) -> None:
        self.site = site
        self.engine = site.engine
        self._driver = driver
        self._text = text
        self.compose("up", "--detach")

    @classmethod
    def of_example(cls, site: Site, driver: str, example: str) -> Self:
        """Bring up one of the examples."""
        return cls(site, driver, (REPOSITORY / "examples" / f"compose-{example}.yaml").read_text())

    def compose(self, *words: str) -> str:
        """Run Compose on the example, which it reads from standard input."""
        line = ("docker", "compose", "--project-name", "example", "--file", "-", *words)
        command = self.engine.chroot("env", *VARIABLES, f"DRIVER={self._driver}", *line)
        return self.engine.run(*command, stdin=self._text).stdout

    def read(self, service: str, key: str) -> str:
        """Return a kernel parameter as a service sees it."""
        path = f"/proc/sys/{key.replace('.', '/')}"
        return self.compose("exec", "--no-TTY", service, "cat", path).strip()

    def container(self, service: str) -> str:
        """Return the container of a service."""
        return f"example-{service}-1"

    def address(self, service: str, network: str, version: int = 4) -> str:
        """Return the address of a service."""
        return self.site.address(self.container(service), f"example_{network}", version)

    def down(self) -> None:
        """Take it down; nothing may be left."""
        self.compose("down", "--timeout", "0")
        await_nothing_left(self.engine)


@pytest.fixture
def site(engine28: Engine) -> Iterator[Site]:
    engine28.import_image("idle", busybox_tar(engine28.lower), "CMD sleep 1000")
    with Site(engine28) as site:
        yield site


drivers = pytest.mark.parametrize("driver", ["pynet", "bridge"])


def test_every_example_is_run_here() -> None:
    tested = ("ipv6", "ports", "sysctls", "web")
    assert [f"compose-{name}.yaml" for name in tested] == EXAMPLES


@pytest.mark.managed("always")
@drivers
def test_kernel_parameters(site: Site, driver: str) -> None:
    project = Project.of_example(site, driver, "sysctls")
    is_ours = driver == "pynet"  # Docker's bridge ignores what it does not know
    assert project.read("web", KEEPALIVE) == ("60" if is_ours else "7200")
    assert project.read("database", KEEPALIVE) == ("30" if is_ours else "7200")
    assert project.read("database", "net.ipv4.conf.eth0.arp_notify") == ("1" if is_ours else "0")
    for service, other in (("web", "database"), ("database", "web")):
        project.compose("exec", "--no-TTY", service, "ping", "-c1", "-w10", other)
    project.compose("restart", "--timeout", "0", "web")
    assert project.read("web", KEEPALIVE) == ("60" if is_ours else "7200")
    project.down()
    project.compose("up", "--detach")  # the same again, on a host that it has been on
    project.down()


@pytest.mark.managed("always")
@drivers
def test_a_web_application_with_a_database_behind(site: Site, driver: str) -> None:
    project = Project.of_example(site, driver, "web")
    web, database = project.container("web"), project.container("database")
    site.serve(web, "tcp", 80)
    site.serve(database, "tcp", 5432)
    site.serve(LAN, "tcp", 443)
    behind = project.address("database", "back")
    site.engine.lan_run("ip", "route", "replace", f"{behind}/32", "via", HOST_ADDRESS[4])
    check(
        site,
        [
            Question(LAN, HOST_ADDRESS[4], 8080, LAN_ADDRESS[4]),
            Question(HOST, LOOPBACK[4], 8080, "*"),
            Question(web, behind, 5432, project.address("web", "back")),
            Question(web, LAN_ADDRESS[4], 443, HOST_ADDRESS[4]),
            Question(database, LAN_ADDRESS[4], 443, None),
            Question(LAN, behind, 5432, None),
        ],
    )
    project.compose("exec", "--no-TTY", "web", "ping", "-c1", "-w10", "database")
    project.down()


@drivers
def test_both_families(site: Site, driver: str) -> None:
    project = Project.of_example(site, driver, "ipv6")
    web, client = project.container("web"), project.container("client")
    site.serve(web, "tcp", 80)
    site.serve(LAN, "tcp", 443)
    questions = []
    for version in (4, 6):
        outside, neighbour = HOST_ADDRESS[version], LAN_ADDRESS[version]
        own = project.address("client", "dual", version)
        questions += [
            Question(LAN, outside, 8080, neighbour),
            Question(HOST, LOOPBACK[version], 8080, "*"),
            Question(client, project.address("web", "dual", version), 80, own),
            Question(client, neighbour, 443, outside),
        ]
    check(site, questions)
    project.down()


@drivers
def test_published_ranges(site: Site, driver: str) -> None:
    project = Project.of_example(site, driver, "ports")
    relay = project.container("relay")
    site.serve(relay, "tcp", 3478, 9641)
    site.serve(relay, "udp", 3478, 49160, 49200, 49259)
    outside, neighbour = HOST_ADDRESS[4], LAN_ADDRESS[4]
    check(
        site,
        [
            Question(LAN, outside, 3478, neighbour),
            *(
                Question(LAN, outside, port, neighbour, "udp")
                for port in (3478, 49160, 49200, 49259)
            ),
            Question(LAN, outside, 9641, None),
            Question(HOST, LOOPBACK[4], 9641, "*"),
        ],
    )
    project.down()


# The odd sections that files of other projects have: the same on both drivers.


def up(site: Site, driver: str, text: str) -> Project:
    """Bring up a project whose services do nothing, `IDLE` in the text stands for how."""
    return Project(site, driver, text.replace("IDLE", "image: idle\n    pull_policy: never"))


def inside(project: Project, service: str, *words: str) -> str:
    """Run a command in a service's container; return what it wrote."""
    return project.compose("exec", "--no-TTY", service, *words)


def addresses(project: Project, service: str) -> dict[str, set[str]]:
    """Return the IPv4 addresses of a service, by interface."""
    links = steps.interfaces(project.engine, project.container(service))
    return {
        name: {each["local"] for each in link["addr_info"] if each["family"] == "inet"}
        for name, link in links.items()
    }


@drivers
def test_a_service_in_the_namespace_of_another(site: Site, driver: str) -> None:
    project = up(
        site,
        driver,
        """
services:
  web:
    IDLE
    ports: ["8080:80"]
    networks: {back: {ipv4_address: 10.60.0.10}}
  sidecar:
    IDLE
    network_mode: service:web
  database:
    IDLE
    networks: [back]
networks:
  back:
    driver: ${DRIVER}
    ipam: {config: [{subnet: 10.60.0.0/24}]}
""",
    )
    assert "inet 10.60.0.10/24" in inside(project, "sidecar", "ip", "address", "show", "eth0")
    inside(project, "sidecar", "ping", "-c1", "-w10", "database")
    site.serve(project.container("web"), "tcp", 80)
    check(site, [Question(LAN, HOST_ADDRESS[4], 8080, LAN_ADDRESS[4])])
    project.down()


@drivers
def test_several_networks_by_priority(site: Site, driver: str) -> None:
    project = up(
        site,
        driver,
        """
services:
  web:
    IDLE
    networks:
      one: {priority: 10}
      two: {priority: 1000, gw_priority: 1}
      three: {priority: 100, gw_priority: 100}
networks:
  one: {driver: "${DRIVER}", ipam: {config: [{subnet: 10.60.0.0/24}]}}
  two: {driver: "${DRIVER}", ipam: {config: [{subnet: 10.61.0.0/24}]}}
  three: {driver: "${DRIVER}", ipam: {config: [{subnet: 10.62.0.0/24}]}}
""",
    )
    for _ in range(2):
        routes = json.loads(
            project.engine.docker(
                "inspect", "-f", "{{json .NetworkSettings.Networks}}", project.container("web")
            ).stdout
        )
        assert {name.removeprefix("example_") for name in routes} == {"one", "two", "three"}
        assert inside(project, "web", "ip", "route", "show", "default").split()[2] == "10.62.0.1"
        project.compose("restart", "--timeout", "0")
    project.down()


@drivers
def test_addresses_that_are_chosen(site: Site, driver: str) -> None:
    project = up(
        site,
        driver,
        """
services:
  fixed:
    IDLE
    networks:
      back:
        ipv4_address: 10.60.0.10
        link_local_ips: [169.254.8.8]
        mac_address: 02:00:00:00:00:aa
        aliases: [nick, other]
  free:
    IDLE
    networks: [back]
networks:
  back:
    driver: ${DRIVER}
    ipam:
      config:
        - subnet: 10.60.0.0/24
          ip_range: 10.60.0.64/30
          gateway: 10.60.0.254
          aux_addresses: {router: 10.60.0.64, printer: 10.60.0.65}
""",
    )
    assert addresses(project, "fixed") == {"eth0": {"10.60.0.10", "169.254.8.8"}}
    links = steps.interfaces(project.engine, project.container("fixed"))
    assert links["eth0"]["address"] == "02:00:00:00:00:aa"
    ((free,),) = addresses(project, "free").values()
    assert ip_address(free) in ip_network("10.60.0.66/31")
    for name in ("nick", "other", "fixed"):
        inside(project, "free", "ping", "-c1", "-w10", name)
    assert inside(project, "free", "ip", "route", "show", "default").split()[2] == "10.60.0.254"
    project.down()


@drivers
def test_interfaces_by_name_and_options_at_both_places(site: Site, driver: str) -> None:
    project = up(
        site,
        driver,
        """
services:
  web:
    IDLE
    networks:
      front: {interface_name: wan}
      back:
        driver_opts:
          com.docker.network.endpoint.sysctls: net.ipv4.conf.IFNAME.rp_filter=2
  database:
    IDLE
    networks: [front, back]
networks:
  front:
    driver: ${DRIVER}
    driver_opts: {com.docker.network.driver.mtu: "1400"}
  back:
    driver: ${DRIVER}
    driver_opts: {com.docker.network.container_iface_prefix: lan}
""",
    )
    for _ in range(2):
        assert set(addresses(project, "web")) == {"wan", "lan0"}
        assert set(addresses(project, "database")) == {"eth0", "lan0"}
        links = steps.interfaces(project.engine, project.container("web"))
        assert (links["wan"]["mtu"], links["lan0"]["mtu"]) == (1400, 1500)
        assert project.read("web", "net.ipv4.conf.lan0.rp_filter") == "2"
        inside(project, "web", "ping", "-c1", "-w10", "database")
        project.compose("restart", "--timeout", "0")
    project.down()


@drivers
def test_networks_that_are_there_already(site: Site, driver: str) -> None:
    engine = site.engine
    subnet = ("--subnet", "10.60.0.0/24")
    engine.docker("network", "create", "--config-only", *subnet, "pattern")
    engine.docker("network", "create", "-d", driver, "--config-from", "pattern", "ready")
    project = up(
        site,
        driver,
        """
services:
  web:
    IDLE
    networks: [ready]
networks:
  ready: {external: true}
""",
    )
    (found,) = addresses(project, "web").values()
    assert {ip_address(each) in ip_network("10.60.0.0/24") for each in found} == {True}
    project.compose("down", "--timeout", "0")
    engine.docker("network", "rm", "ready", "pattern")
    await_nothing_left(engine)


@drivers
def test_a_scaled_service_with_a_range_of_ports(site: Site, driver: str) -> None:
    project = up(
        site,
        driver,
        """
services:
  web:
    IDLE
    deploy: {replicas: 3}
    ports: ["8000-8002:80"]
networks:
  default: {driver: "${DRIVER}"}
""",
    )
    for number in (1, 2, 3):
        site.serve(f"example-web-{number}", "tcp", 80)
    check(
        site,
        [Question(LAN, HOST_ADDRESS[4], port, LAN_ADDRESS[4]) for port in (8000, 8001, 8002)],
    )
    project.compose("up", "--detach", "--scale", "web=1")
    answers = [Question(LAN, HOST_ADDRESS[4], port, None) for port in (8000, 8001, 8002)]
    got = site.ask(answers)
    assert sum(answer is not None for _, answer in got) == 1
    project.compose("up", "--detach", "--scale", "web=3")
    project.down()


def test_an_audit_prints_a_file_to_use_besides_ones_own(site: Site) -> None:
    engine = site.engine
    before = steps.host_value(engine, KEEPALIVE)
    engine.run("sysctl", "-w", f"{KEEPALIVE}=610")
    try:
        printed = steps.pynet(engine, "sysctl", "audit", "--compose", check=False).stdout
    finally:
        engine.run("sysctl", "-w", f"{KEEPALIVE}={before}")
    own = """
services:
  web: {image: idle, pull_policy: never, networks: [back]}
networks:
  back: {driver: pynet}
"""
    for name, text in (("own", own), ("audited", printed.replace("NAME:", "back:"))):
        engine.run(*engine.chroot("tee", f"/tmp/{name}.yaml"), stdin=text)
    files = ("--file", "/tmp/own.yaml", "--file", "/tmp/audited.yaml")
    engine.docker("compose", "--project-name", "example", *files, "up", "--detach")
    assert steps.kernel_value(engine, "example-web-1", KEEPALIVE) == "610"
    engine.docker("compose", "--project-name", "example", *files, "down", "--timeout", "0")
    await_nothing_left(engine)
