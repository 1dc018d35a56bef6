"""Compose, with the file that the examples show to people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.engine.driver import REPOSITORY
from tests.engine.remains import await_nothing_left
from tests.engine.steps import KEEPALIVE

if TYPE_CHECKING:
    from tests.engine.engine import Engine

EXAMPLE = REPOSITORY / "examples/compose-sysctls.yaml"
VARIABLES = ("IMAGE=bb", "PULL_POLICY=never")


def compose(engine: Engine, *words: str) -> str:
    """Run Compose on the example, which it reads from standard input."""
    line = ("docker", "compose", "--project-name", "example", "--file", "-", *words)
    command = engine.chroot("env", *VARIABLES, *line)
    return engine.run(*command, stdin=EXAMPLE.read_text()).stdout


def read(engine: Engine, service: str, key: str) -> str:
    """Return a kernel parameter as a service sees it."""
    path = f"/proc/sys/{key.replace('.', '/')}"
    return compose(engine, "exec", "--no-TTY", service, "cat", path).strip()


def test_up_and_down(engine28: Engine) -> None:
    assert "2.40" in engine28.docker("compose", "version").stdout
    for _ in range(2):
        compose(engine28, "up", "--detach")
        assert engine28.client.networks.get("example_back").attrs["Driver"] == "pynet"
        assert read(engine28, "web", KEEPALIVE) == "60"
        assert read(engine28, "database", KEEPALIVE) == "30"
        assert read(engine28, "database", "net.ipv4.conf.eth0.arp_notify") == "1"
        for service, other in (("web", "database"), ("database", "web")):
            compose(engine28, "exec", "--no-TTY", service, "ping", "-c1", "-w10", other)
        compose(engine28, "restart", "web")
        assert read(engine28, "web", KEEPALIVE) == "60"
        compose(engine28, "down")
        await_nothing_left(engine28)
