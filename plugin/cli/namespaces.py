"""`pynet netns`: every network namespace of this machine, whose it is and what is in it."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from driver.diagnosis.facts import HOST
from driver.errors import DriverError
from driver.linux import netns, sysctl
from driver.linux.namespaces import find_namespaces, name_of
from driver.linux.view import read_view
from plugin.cli import Failure
from plugin.cli.engine import DockerSilent, inspect_running, open_docker
from plugin.cli.output import json_option, print_json, print_line, print_table
from plugin.cli.sandboxes import NAMED_NAMESPACES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from driver.diagnosis.facts import View
    from driver.linux.namespaces import Namespace


@dataclass(frozen=True, slots=True)
class Shown:
    """A namespace with its name, its kind, and what it shows; `view` is None if it has ended."""

    namespace: Namespace
    name: str
    kind: str
    view: View | None
    sysctls: Mapping[str, str]


@click.command
@click.option("--sysctls", "with_sysctls", is_flag=True, help="With parameters that differ.")
@json_option
def list_namespaces(*, with_sysctls: bool, as_json: bool) -> None:
    """List every network namespace: containers', those of `ip netns`, of processes, of nobody.

    `ip netns` shows none of Docker's. Namespaces are only looked at, never written to. With
    --sysctls also the kernel parameters that differ from those of a namespace made now.

    \b
    Examples:
      pynet netns
      pynet netns --sysctls --json

    Needs root.
    """
    if os.geteuid() != 0:
        raise Failure("look into network namespaces: you must be root")
    names, silence = _ask_docker()
    pristine = sysctl.read_pristine() if with_sysctls else {}
    found = [_look(each, names, pristine) for each in find_namespaces()]
    if as_json:
        print_json([_encode(each) for each in found])
    else:
        rows = [
            (
                str(each.namespace.inode),
                each.kind,
                each.name,
                _processes(each.namespace),
                _links(each.view),
            )
            for each in found
        ]
        print_table(("INODE", "OF", "NAME", "PROCESSES", "INTERFACES"), rows)
        if with_sysctls:
            for each in found:
                for key, value in sorted(each.sysctls.items()):
                    print_line(f"{each.name}: {key}={value} (a new one has {pristine.get(key)})")
    if silence:
        print_line(f"not seen: names of containers ({silence})", err=True)


def _ask_docker() -> tuple[dict[str, str], str]:
    """Return containers' names by the paths of their sandboxes, and why there are none."""
    try:
        with open_docker() as client:
            shown = list(inspect_running(client))
    except DockerSilent as error:
        return {}, str(error)
    names = {each["NetworkSettings"]["SandboxKey"]: each["Name"].lstrip("/") for each in shown}
    return names, ""


def _look(namespace: Namespace, names: Mapping[str, str], pristine: Mapping[str, str]) -> Shown:
    name, kind = _name(namespace, names)
    view, values = None, {}
    if kind == HOST:
        view = read_view()
    else:
        with suppress(DriverError), netns.open_namespace(namespace.path) as opened:
            view = netns.run_in(opened, read_view)
            if pristine:
                values = netns.run_in(opened, sysctl.read_settable)
    differing = {key: value for key, value in values.items() if pristine.get(key) != value}
    return Shown(namespace, name, kind, view, differing)


def _name(namespace: Namespace, names: Mapping[str, str]) -> tuple[str, str]:
    """Return what a namespace is called, and by whom."""
    if namespace.inode == netns.OWN_NAMESPACE.stat().st_ino:
        return HOST, HOST
    for path in namespace.mounts:
        # /var/run is a link to /run: Docker's path is either.
        for known in (path, path.removeprefix("/var"), f"/var{path}"):
            if known in names:
                return names[known], "container"
    for path in namespace.mounts:
        if path.startswith(f"{NAMED_NAMESPACES}/"):
            return path.rpartition("/")[2], "ip netns"
    if namespace.processes:
        return name_of(namespace.processes[0]), "process"
    return namespace.path, "mount"


def _processes(namespace: Namespace) -> str:
    """Return the first processes in it, for people."""
    shown = [f"{name_of(pid)} ({pid})" for pid in namespace.processes[:2]]
    more = len(namespace.processes) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _links(view: View | None) -> str:
    if view is None:
        return "has ended"
    return " ".join(
        f"{link.name}{'' if link.is_up else '(down)'}"
        for link in view.interfaces.values()
        if link.name != "lo"
    )


def _encode(shown: Shown) -> dict[str, Any]:
    namespace = shown.namespace
    links = shown.view.interfaces.values() if shown.view else ()
    return {
        "inode": namespace.inode,
        "name": shown.name,
        "kind": shown.kind,
        "path": namespace.path,
        "mounts": list(namespace.mounts),
        "processes": list(namespace.processes),
        "interfaces": [
            {
                "name": link.name,
                "kind": link.kind,
                "up": link.is_up,
                "mac": link.mac,
                "mtu": link.mtu,
                "bridge": link.master,
                "other_end": link.other_end or None,
                "addresses": sorted(map(str, link.addresses)),
            }
            for link in links
        ],
        "sysctls": dict(shown.sysctls),
    }
