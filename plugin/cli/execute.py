"""`pynet exec`: run a program of this machine in the network namespace of a container."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import click

from driver.errors import NotFound
from driver.linux import netns
from plugin.cli import Failure
from plugin.cli.errors import AskError
from plugin.cli.resolve import complete_names, socket_path
from plugin.cli.sandboxes import find_sandboxes

if TYPE_CHECKING:
    from typing import NoReturn

BRIDGE = "PYNET_BRIDGE"


class _NoProgram(Failure):
    exit_code = 127  # as a shell says it


class _NotRun(Failure):
    exit_code = 126


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name", metavar="CONTAINER|NETWORK|NAMESPACE", shell_complete=complete_names)
@click.argument("command", metavar="[--] COMMAND...", nargs=-1, required=True)
def execute(name: str, command: tuple[str, ...]) -> NoReturn:
    """Run a program of this machine in a container's network namespace, and in nothing else of it.

    As `nsenter --net` with names: tcpdump, ss, ip or curl of the host see the container's
    interfaces, routes and sockets, whatever its image holds. A NAMESPACE is one of `ip netns`, or
    `pid:N`. For a NETWORK it is the host's own namespace, with the bridge's name in $PYNET_BRIDGE.

    \b
    Examples:
      pynet exec web -- ss -tlnp
      pynet exec web -- curl --max-time 2 http://172.18.0.3:8080
      pynet exec back -- sh -c 'bridge fdb show br $PYNET_BRIDGE'

    The exit code is the program's. Needs root.
    """
    if os.geteuid() != 0:
        raise Failure("enter a network namespace: you must be root")
    words = command[1:] if command[0] == "--" else command
    if not words:
        raise click.UsageError("what is to be run?")
    found = find_sandboxes(name, socket_path())
    environment = dict(os.environ)
    if found.bridge is not None:
        environment[BRIDGE] = found.bridge
    else:
        paths = {sandbox.path for sandbox in found.sandboxes}
        if not paths:
            raise AskError(f"{name} does not run: it has no network namespace")
        (path,) = paths
        try:
            with netns.open_namespace(path) as namespace:
                netns.enter(namespace)  # this thread, which is all that the program gets
        except NotFound as error:
            raise AskError(f"{name} has no network namespace: {error}") from error
    for each in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and exec hands on
        signal.signal(each, signal.SIG_DFL)
    try:
        os.execvpe(words[0], words, environment)  # noqa: S606 - that is what it is for
    except FileNotFoundError as error:
        raise _NoProgram(f"run {words[0]}: no such program on this machine") from error
    except OSError as error:
        raise _NotRun(f"run {words[0]}: {error.strerror}") from error
