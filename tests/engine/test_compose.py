"""Compose, with the files that the examples show to people, on pynet and on Docker's own bridge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

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
EXAMPLES = sorted(path.name for path in (REPOSITORY / "examples").iterdir())


class Project:
    """An example that is up, in place of its images one that does nothing."""

    def __init__(self, site: Site, driver: str, example: str) -> None:
        self.site = site
        self.engine = site.engine
        self._driver = driver
        self._text = (REPOSITORY / "examples" / f"compose-{example}.yaml").read_text()
        self.compose("up", "--detach")

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
    project = Project(site, driver, "sysctls")
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
    project = Project(site, driver, "web")
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
    project = Project(site, driver, "ipv6")
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
    project = Project(site, driver, "ports")
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
