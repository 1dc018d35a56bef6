"""`pynet sysctl`: kernel parameters of networks and containers, and their sources.

The driver looks, for it alone may enter a container's namespace; here it is put into words.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from plugin.cli import DIFFERS
from plugin.cli.client import ask_driver
from plugin.cli.errors import AskError, DriverDown
from plugin.cli.explain import (
    Audit,
    Finding,
    Line,
    audit,
    explain_container,
    explain_network,
    find_differing,
    suggest_compose,
    suggest_inherit,
    suggest_options,
    summarise,
)
from plugin.cli.names import Container, ask_own_sysctls
from plugin.cli.output import (
    json_option,
    print_json,
    print_line,
    print_lines,
    print_table,
    print_title,
)
from plugin.cli.resolve import complete_names, complete_networks, look_around, socket_path
from plugin.cli.sysctl_d import find_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from plugin.cli.names import Inventory

NOT_AS_ASKED, LOST = "!", "*"
LEGEND = f"""\
{NOT_AS_ASKED} is not what was asked for   {LOST} the host's value does not arrive, nobody asked\
"""


class ShowByDefault(click.Group):
    """A group in which a word that is no command is what to show."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `show` in front unless a command or a question for help is there."""
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=ShowByDefault)
def sysctl() -> None:
    """Show kernel parameters: who asked for them, who has them, what gets lost.

    `pynet sysctl NAME` is short for `pynet sysctl show NAME`.

    \b
    Examples:
      pynet sysctl back
      pynet sysctl web --all
      pynet sysctl audit
      pynet sysctl watch web
    """


@sysctl.command
@click.argument("name", metavar="NETWORK|CONTAINER", shell_complete=complete_names)
@click.option("--all", "everything", is_flag=True, help="Every parameter a namespace has.")
@json_option
def show(name: str, *, everything: bool, as_json: bool) -> None:
    """Show a network's or a container's parameters.

    Those that somebody asked for, and those that host, new namespace and container have otherwise.
    PRISTINE is what a namespace made now has. BY is who asked: container (--sysctl), endpoint,
    network, inherit, default, or docker; kernel if nobody did; other for who does not ask.
    Exit code 4 if a container has not what was asked for.

    \b
    Examples:
      pynet sysctl back
      pynet sysctl show web --all
      pynet sysctl web --json
    """
    inventory = look_around()
    found = inventory.find(name)
    if isinstance(found, Container):
        lines = list(_container_lines(inventory, found, everything=everything))
    else:
        lines = _network_lines(inventory, found, everything=everything)
    if not everything:
        lines = [line for line in lines if not line.is_nobodys]
    if as_json:
        print_json([_report(line) for line in lines])
    else:
        _print_parameters(lines)
    if any(line.differs for line in lines):
        raise click.exceptions.Exit(DIFFERS)


@sysctl.command("audit")
@click.argument("network", required=False, shell_complete=complete_networks)
@click.option(
    "--all", "everything", is_flag=True, help="Also what arrives, or is the host's alone."
)
@click.option("--compose", is_flag=True, help="Print a Compose file to use besides one's own.")
@json_option
def audit_host(network: str | None, *, everything: bool, compose: bool, as_json: bool) -> None:
    """Find values of the host's that do not arrive in new containers.

    In those of NETWORK, or of a network without options. What the network itself sets is no
    finding. What makes the host a router, secrets and the loopback interface are left out. Exit
    code 4 if something does not arrive.

    \b
    Examples:
      pynet sysctl audit
      pynet sysctl audit back
      pynet sysctl audit --compose > sysctls.yaml
    """
    driver = socket_path()
    asked: dict[str, str] = {}
    if network is not None:
        identity = look_around().find_network(network)["id"]
        rows = _rows("networks", identity, everything=False)
        asked = {row["key"]: row["asked"] for row in rows if row["asked"] is not None}
    report = ask_driver(driver, "/sysctls")
    found = audit(report, asked, find_settings(report["host"]))
    if as_json:
        print_json(asdict(found) | {"options": suggest_options(found.portable)})
    elif compose:
        print_lines(suggest_compose(found.portable))
    else:
        _print_audit(found, network, everything=everything)
    if found.reset:
        raise click.exceptions.Exit(DIFFERS)


@sysctl.command
@click.argument("name", metavar="CONTAINER", shell_complete=complete_names)
@click.option("--interval", default=1.0, show_default=True, help="Seconds between two looks.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
def watch(name: str, *, interval: float, as_json: bool) -> None:
    """Tell which parameters of a running container change, until it ends or Ctrl-C.

    \b
    Examples:
      pynet sysctl watch web
      pynet sysctl watch web --interval 0.1 --json
    """
    inventory = look_around()
    container = inventory.find(name)
    if not isinstance(container, Container):
        raise AskError(f"{name} is a network; only a container's parameters can be watched")
    endpoints = inventory.endpoints_of(container)
    if not endpoints:
        raise AskError(f"{container.label} does not run")
    what = f"/endpoints/{endpoints[0][1]['id']}/sysctls/actual"
    before = ask_driver(socket_path(), what)
    print_line(f"watching {len(before)} parameters of {container.name}", err=True)
    while True:
        time.sleep(max(interval, 0.01))
        try:
            now = ask_driver(socket_path(), what)
        except DriverDown:
            raise
        except AskError:
            print_line(f"{container.name} has ended", err=True)
            return
        for change in _changes(before, now):
            _print_change(change, as_json=as_json)
        before = now


def _rows(kind: str, identity: str, *, everything: bool) -> list[dict[str, Any]]:
    what = f"/{kind}/{identity}/sysctls{'?all=1' if everything else ''}"
    rows: list[dict[str, Any]] = ask_driver(socket_path(), what)["rows"]
    return rows


def _network_lines(
    inventory: Inventory, network: Mapping[str, Any], *, everything: bool
) -> list[Line]:
    rows = _rows("networks", network["id"], everything=everything)
    names = {each["id"]: inventory.container_name(each) for each in network["endpoints"]}
    own: dict[str, set[str]] = {}
    for identity in find_differing(rows):
        container = inventory.find(identity)
        says = ask_own_sysctls(container) if isinstance(container, Container) else None
        own[identity] = set(says or ())
    for endpoint in network["endpoints"]:
        own.setdefault(endpoint["id"], set()).update(endpoint["sysctls"])
    return explain_network(rows, names, own)


def _container_lines(
    inventory: Inventory, container: Container, *, everything: bool
) -> Iterator[Line]:
    """Yield the lines of a container; of one that does not run, what it would get."""
    own = None if inventory.docker_failure else ask_own_sysctls(container)
    endpoints = inventory.endpoints_of(container)
    if not endpoints:
        print_line(f"{container.name} does not run: this is what it would get", err=True)
        ours = container.networks & {each["id"] for each in inventory.networks}
        rows = _rows("networks", ",".join(sorted(ours)), everything=everything)
        yield from explain_container([row | {"actual": {}} for row in rows], container.name, own)
        return
    for number, (_, endpoint) in enumerate(endpoints):
        rows_of_endpoint = [
            row
            for row in _rows("endpoints", endpoint["id"], everything=everything)
            # The sandbox is the same for all of them; an interface is each endpoint's own.
            if number == 0 or ".IFNAME." in row["key"]
        ]
        yield from explain_container(rows_of_endpoint, container.name, own)


def _report(line: Line) -> dict[str, Any]:
    return asdict(line) | {"lost": line.is_lost}


def _print_parameters(lines: Sequence[Line]) -> None:
    if not lines:
        print_line("nobody asks for a parameter, and no value of the host's gets lost")
        return
    rows = [
        (
            NOT_AS_ASKED if line.differs else LOST if line.is_lost else "",
            line.parameter,
            *map(_cell, (line.host, line.pristine, line.asked)),
            line.by,
            summarise(line.actual),
        )
        for line in lines
    ]
    marked = [number for number, row in enumerate(rows) if row[0]]
    head = ("", "PARAMETER", "HOST", "PRISTINE", "ASKED", "BY", "ACTUAL")
    print_table(head, rows, marked, whole=(0, 1, 5))
    if marked:
        print_line(LEGEND)


def _cell(value: str | None) -> str:
    return "-" if value is None else " ".join(value.split())


def _print_audit(found: Audit, network: str | None, *, everything: bool) -> None:
    where = f"a new container of {network}" if network else "a new container"
    if found.reset:
        print_title(f"Reset by the kernel: the host's value does not arrive in {where}")
        _print_findings(found.reset, ("HOST", "CONTAINER"))
    else:
        print_line(f"Every value of the host's that a namespace can have arrives in {where}.")
    if found.chosen:
        print_line()
        print_title(f"Set otherwise by {network}, as it asks for")
        _print_findings(found.chosen, ("HOST", "CONTAINER"))
    for title, findings in (
        ("Copied by the kernel, or the same everywhere; arrive", found.copied),
        ("Not per network namespace; the host's hold for everyone", found.host_wide),
    ):
        shown = [each for each in findings if everything or each.set_in]
        if not findings:
            continue
        print_line()
        print_title(f"{title}: {len(findings)}")
        if shown:
            _print_findings(shown, ("VALUE",))
        if len(shown) < len(findings):
            print_line(f"{len(findings) - len(shown)} that no file of sysctl.d sets: see --all")
    if found.portable:
        _print_suggestions(found.portable, network)


def _print_findings(findings: Sequence[Finding], head: tuple[str, ...]) -> None:
    rows = [
        (
            each.parameter,
            *map(_cell, (each.host, each.container)[: len(head)]),
            each.set_in or "-",
        )
        for each in findings
    ]
    print_table(("PARAMETER", *head, "SET IN"), rows, whole=(0,))
    for each in findings:
        if each.refused:
            print_line(f"{each.parameter} cannot be carried over: {each.refused}")


def _print_suggestions(findings: Sequence[Finding], network: str | None) -> None:
    options = suggest_options(findings)
    print_line()
    print_title("To carry the values over as they are now, or in Compose (--compose):")
    _print_command("docker network create -d pynet", *options, "NAME")
    if network:
        words = [option.removeprefix("-o ") for option in options]
        _print_command(f"pynet set {shlex.quote(network)}", *words)
    print_line()
    print_title("Or as they are on the host whenever a container starts:")
    _print_command("docker network create -d pynet", suggest_inherit(findings), "NAME")


def _print_command(*words: str) -> None:
    """Print a command for a shell, a line a word."""
    first, *more = words
    lines = [first, *(f"    {word}" for word in more)]
    print_lines([*(f"{line} \\" for line in lines[:-1]), lines[-1]])


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    moment = datetime.now().astimezone().isoformat(timespec="milliseconds")
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            yield {"time": moment, "parameter": key, "was": before.get(key), "is": now.get(key)}


def _print_change(change: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(change, indent=None)
        return
    moment = change["time"][11:23]
    print_line(f"{moment}  {change['parameter']}  {_cell(change['was'])} -> {_cell(change['is'])}")
