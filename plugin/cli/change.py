"""`pynet set`: change a network's options while it exists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from driver.options import PRIORITY
from plugin.cli.client import tell_driver
from plugin.cli.output import json_option, print_json, print_line
from plugin.cli.resolve import complete_networks, complete_parameters, look_around, socket_path

if TYPE_CHECKING:
    from collections.abc import Mapping


@click.command("set")
@click.argument("network", shell_complete=complete_networks)
@click.argument(
    "assignments", metavar="[KEY=VALUE]...", nargs=-1, shell_complete=complete_parameters
)
@click.option("--unset", metavar="KEY", multiple=True, help="Give it its default; can be repeated.")
@json_option
def change(
    network: str, assignments: tuple[str, ...], unset: tuple[str, ...], *, as_json: bool
) -> None:
    """Change a network's options while it exists.

    Kernel parameters are written into every running container that has them from the network;
    what a container set itself stays. The other options that can be changed are those that
    docs/options.md marks so, such as MTU, enable_icc, enable_ip_masquerade, pynet.guard,
    pynet.sysctl.inherit and pynet.sysctl.priority. All of it is done, or none.

    Connections that exist keep what they were opened with. `docker network inspect` goes on
    showing what the network was made with; `pynet inspect` shows what it is.

    \b
    Examples:
      pynet set back net.ipv4.tcp_keepalive_time=300
      pynet set back --unset net.core.somaxconn
      pynet set back com.docker.network.bridge.enable_icc=false
    """
    given = _parse(assignments)
    inventory = look_around()
    found = inventory.find_network(network)
    names = {each["sandbox"]: inventory.container_name(each) for each in found["endpoints"]}
    wanted = {"set": given, "unset": list(unset)}
    answer = tell_driver(socket_path(), f"/networks/{found['id']}/options", wanted)
    kept = {names.get(sandbox, sandbox): keys for sandbox, keys in answer["kept"].items()}
    known = {each["id"]: inventory.network_name(each) for each in inventory.networks}
    overruled = {
        names.get(sandbox, sandbox): [
            {**each, "network": known.get(each["network"], each["network"])} for each in overruling
        ]
        for sandbox, overruling in answer["overruled"].items()
    }
    if as_json:
        name = inventory.network_name(found)
        print_json({"network": name, **answer, "kept": kept, "overruled": overruled})
        return
    touched = {*given, *unset}
    touches_sysctls = any(key.startswith("net.") or key == PRIORITY for key in touched)
    _tell(answer, kept, overruled, touches_sysctls=touches_sysctls)


def _parse(assignments: tuple[str, ...]) -> dict[str, str]:
    given: dict[str, str] = {}
    for word in assignments:
        key, separator, value = word.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"{word!r} is not KEY=VALUE")
        if key in given:
            raise click.BadParameter(f"{key} is there twice")
        given[key] = value
    return given


def _tell(
    answer: Mapping[str, Any],
    kept: Mapping[str, list[str]],
    overruled: Mapping[str, list[dict[str, Any]]],
    *,
    touches_sysctls: bool,
) -> None:
    if not touches_sysctls:
        print_line("changed")
        return
    print_line(f"changed, in {_count(answer['changed'])} that run{'s' * (answer['changed'] == 1)}")
    if answer["awaited"]:
        print_line(f"{_count(answer['awaited'])} just starting will have it")
    for name, keys in sorted(kept.items()):
        print_line(f"{name} keeps its own {', '.join(keys)}")
    for name, overruling in sorted(overruled.items()):
        for each in overruling:
            whose = "of its endpoint on" if each["by"] == "endpoint" else "of"
            has = f"{each['parameter']}={' '.join(each['value'].split())}"
            print_line(f"{name} keeps {has} {whose} {each['network']}")
    if answer["changed"]:
        print_line("connections that exist keep what they were opened with")


def _count(number: int) -> str:
    return f"{number} container{'s' * (number != 1)}"
