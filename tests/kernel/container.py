"""Be the engine: bring an endpoint's interface into a sandbox, as libnetwork does."""

from __future__ import annotations

import errno
import select
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from driver.driver import NewJoin
from driver.linux import netns
from driver.model import host_end_name
from tests.kernel.host import ip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from driver.driver import BridgeDriver, NewEndpoint
    from driver.model import Endpoint, SandboxKey
    from tests.kernel.host import RealHost

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
PORT = 8080
REACHED_SECONDS = 5


def start(
    driver: BridgeDriver, real: RealHost, number: int, new: NewEndpoint, *, has_ports: bool = False
) -> Endpoint:
    """Start a container as engine 28 does; return its endpoint."""
    sandbox = real.add_sandbox(number)
    endpoint = driver.create_endpoint(new)
    driver.join(NewJoin(new.network_id, new.id, sandbox, has_ports=has_ports))
    real.move(host_end_name(new.id), sandbox)
    for address in endpoint.addresses:
        ip("addr", "add", str(address), "dev", "eth0", *no_dad(address.version), sandbox=sandbox)
    driver.endpoint_info(new.network_id, new.id)
    return endpoint.joined(sandbox)


def no_dad(version: int) -> tuple[str, ...]:
    """Return how to have an address be of use at once."""
    return ("nodad",) if version == 6 else ()


def sandbox_of(endpoint: Endpoint) -> SandboxKey:
    """Return the sandbox of a started container."""
    assert endpoint.attachment is not None
    return endpoint.attachment.sandbox


def socket_in(endpoint: Endpoint, family: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Return a socket of the container; it stays there whoever uses it."""
    with netns.open_namespace(sandbox_of(endpoint)) as namespace:
        return netns.run_in(namespace, lambda: socket.socket(family, kind))


@contextmanager
def calling(client: Endpoint, server: Endpoint, version: int = 4) -> Iterator[socket.socket]:
    """Have one container open a TCP connection to another; yields the caller's end."""
    family = FAMILIES[version]
    (address,) = (str(each.ip) for each in server.addresses if each.version == version)
    with socket_in(server, family) as listener, socket_in(client, family) as caller:
        listener.bind((address, PORT))
        listener.listen()
        caller.settimeout(0)
        assert caller.connect_ex((address, PORT)) == errno.EINPROGRESS
        yield caller


@contextmanager
def serving(server: Endpoint, version: int = 4, port: int = PORT) -> Iterator[None]:
    """Have a container listen on all its addresses of a family."""
    with socket_in(server, FAMILIES[version]) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", port))
        listener.listen()
        yield


def arrives(caller: socket.socket, address: str, port: int) -> bool:
    """Tell whether a connection to the address comes about; closes the caller."""
    with caller:
        caller.settimeout(0)
        started = caller.connect_ex((address, port))
        return started in {0, errno.EINPROGRESS} and is_connected(caller, REACHED_SECONDS)


def is_connected(caller: socket.socket, seconds: float = 0) -> bool:
    """Tell whether a connection comes about in so many seconds."""
    _, connected, _ = select.select([], [caller], [], seconds)  # noqa: TID251 - few are open
    return bool(connected) and caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def reaches(client: Endpoint, server: Endpoint, version: int = 4) -> bool:
    """Tell whether one container can open a connection to another."""
    with calling(client, server, version) as caller:
        return is_connected(caller, REACHED_SECONDS)
