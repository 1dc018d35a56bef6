"""Steps that the tests take through Docker's own client; each one that fails says what Docker said.

Knows Docker and the wire names of nothing. What is left on the host is in `remains.py`.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from tests.engine.driver import REPOSITORY
from tests.engine.engine import DOCKER_SOCKET

if TYPE_CHECKING:
    from subprocess import CompletedProcess

    from tests.engine.driver import Driver
    from tests.engine.engine import Engine

IPV4 = "10.77.0.0/24"
IPV6 = "fd77::/64"
DUAL_STACK = ("--subnet", IPV4, "--ipv6", "--subnet", IPV6)
KEEPALIVE = "net.ipv4.tcp_keepalive_time"


def sysctl_options(values: dict[str, str]) -> list[str]:
    """Return the `-o` words of a network that has these kernel parameters."""
    return [word for key, value in values.items() for word in ("-o", f"{key}={value}")]


def create_network(engine: Engine, name: str, *words: str) -> str:
    """Create a network of the driver; return its id."""
    return engine.docker("network", "create", "-d", "pynet", *words, name).stdout.strip()


def run(engine: Engine, name: str, network: str, *words: str) -> None:
    """Run a container that does nothing until it is stopped."""
    engine.docker("run", "-d", "--name", name, "--network", network, *words, "bb", "sleep", "1000")


def run_once(engine: Engine, network: str, *argv: str, options: tuple[str, ...] = ()) -> str:
    """Run a container whose first and only process is the command; return what it wrote."""
    return engine.docker("run", "--rm", "--network", network, *options, "bb", *argv).stdout


def stop(engine: Engine, *names: str) -> None:
    """Stop containers at once; their process has no handler that SIGTERM could reach."""
    engine.docker("stop", "-t", "0", *names)


def execute(engine: Engine, container: str, *argv: str) -> str:
    """Run a command in a container; return what it wrote."""
    return engine.docker("exec", container, *argv).stdout


def ping(engine: Engine, container: str, target: str) -> None:
    """Have a container reach a name or address, within seconds."""
    execute(engine, container, "ping", "-c1", "-w10", target)


def can_ping(engine: Engine, container: str, target: str) -> bool:
    """Tell whether a container reaches an address within two seconds."""
    done = engine.docker("exec", container, "ping", "-c1", "-w2", target, check=False)
    return done.returncode == 0


def revive_driver(engine: Engine) -> Driver:
    """Kill the driver, if it runs, and start it again with the same settings."""
    env = engine.driver.env if engine.driver else {}
    if engine.driver and engine.driver.running:
        engine.driver.kill()
    return engine.start_driver(env=env)


def pynet(engine: Engine, *words: str, check: bool = True) -> CompletedProcess[str]:
    """Run the `pynet` command on the engine's host."""
    command, env = pynet_command(*words)
    return engine.run(*command, check=check, env=env)


def pynet_command(*words: str) -> tuple[list[str], dict[str, str]]:
    """Return the words that run the `pynet` command there, and its environment."""
    command = ["env", f"--chdir={REPOSITORY}", sys.executable, "-m", "plugin.cli", *words]
    return command, {"DOCKER_HOST": f"unix://{DOCKER_SOCKET}", "PYTHONPATH": str(REPOSITORY)}


def published(engine: Engine) -> list[dict[str, Any]]:
    """Return what `pynet ports` lists."""
    found: list[dict[str, Any]] = json.loads(pynet(engine, "ports", "--json").stdout)
    return found


def proc_path(key: str) -> str:
    """Return the file of a kernel parameter whose components hold no dot."""
    return f"/proc/sys/{key.replace('.', '/')}"


def kernel_value(engine: Engine, container: str, key: str) -> str:
    """Return a kernel parameter as a container sees it."""
    return execute(engine, container, "cat", proc_path(key)).strip()


def host_value(engine: Engine, key: str) -> str:
    """Return a kernel parameter as the host sees it."""
    return engine.run("cat", proc_path(key)).stdout.strip()


def first_value(engine: Engine, network: str, key: str, *options: str) -> str:
    """Return a kernel parameter as a container's first process sees it."""
    return run_once(engine, network, "cat", proc_path(key), options=options).strip()


def settings(engine: Engine, container: str) -> dict[str, Any]:
    """Return what Docker says about a container's network."""
    attributes: dict[str, Any] = engine.client.containers.get(container).attrs["NetworkSettings"]
    return attributes


def endpoint(engine: Engine, container: str, network: str) -> dict[str, Any]:
    """Return what Docker says about a container's place in one network."""
    place: dict[str, Any] = settings(engine, container)["Networks"][network]
    return place


def address(engine: Engine, container: str, network: str) -> str:
    """Return the IPv4 address that Docker gave a container in a network."""
    return str(endpoint(engine, container, network)["IPAddress"])


def interfaces(engine: Engine, container: str) -> dict[str, Any]:
    """Return a container's interfaces by name, as `ip` describes them, without the loopback."""
    return _links(engine, "nsenter", f"--net={settings(engine, container)['SandboxKey']}")


def host_link(engine: Engine, name: str) -> dict[str, Any] | None:
    """Return a link of the host as `ip` describes it, None if it is not there."""
    link: dict[str, Any] | None = _links(engine).get(name)
    return link


def _links(engine: Engine, *enter: str) -> dict[str, Any]:
    found = json.loads(engine.run(*enter, "ip", "-json", "-details", "address", "show").stdout)
    return {link["ifname"]: link for link in found if link and link["ifname"] != "lo"}


def global_addresses(link: dict[str, Any]) -> set[str]:
    """Return the addresses of a link that are not link-local."""
    return {
        f"{entry['local']}/{entry['prefixlen']}"
        for entry in link["addr_info"]
        if entry["scope"] == "global"
    }
