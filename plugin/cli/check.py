"""`pynet check`: drift between the state file and the kernel."""

from __future__ import annotations

import click

from plugin.cli import DIFFERS
from plugin.cli.client import ask_driver, tell_driver
from plugin.cli.output import json_option, print_json, print_line, print_table, print_title
from plugin.cli.resolve import socket_path

_COLUMNS = ("table", "chain", "packets", "bytes", "rule")


@click.command
@click.option("--repair", is_flag=True, help="Mend what differs; print what still does.")
@click.option("--rules", is_flag=True, help="Show every firewall rule and what it has counted.")
@json_option
def check(*, repair: bool, rules: bool, as_json: bool) -> None:
    """Compare what the driver's networks and endpoints need with what the kernel has.

    Looks at bridges, addresses, host ends, firewall rules, reserved ports and kernel parameters,
    and at what else keeps packets from passing: forwarding, routes, others' firewall tables.
    While the driver runs it mends most damage by itself, within a second of it.

    Warns of settings of the host that are no damage and not the driver's to change: tables of
    neighbours too small, an open FORWARD chain, interfaces that take any IPv4 source address, IPv6
    that is turned off beside networks that have it.

    With --rules come the rules of pynet's nftables tables, each with the packets that it applied
    to since the tables were made; a rule that looks into a map counts all that it looked at.

    \b
    Examples:
      pynet check
      pynet check --repair
      pynet check --rules

    Exits with 4 if anything differs. Warnings alone leave it at 0.
    """
    path = socket_path()
    answer = tell_driver(path, "/repair", {}) if repair else ask_driver(path, "/differences")
    differences = answer["differences"]
    warnings = ask_driver(path, "/warnings")["warnings"]
    counted = ask_driver(path, "/rules") if rules else {}
    if as_json:
        print_json({"differences": differences, "warnings": warnings, **counted})
    elif differences:
        rows = [(each["kind"], each["subject"], each["text"]) for each in differences]
        print_table(("WHAT", "WHICH", "DIFFERENCE"), rows)
    else:
        print_line("nothing differs")
    if warnings and not as_json:
        print_line()
        print_title("Warnings: no damage, but settings of this host to think about")
        print_table(("SETTING", "WARNING"), [(each["setting"], each["text"]) for each in warnings])
    if rules and not as_json:
        print_line()
        print_title("Rules: what pynet's nftables tables have counted")
        print_table(
            ("TABLE", "CHAIN", "PACKETS", "BYTES", "RULE"),
            [(*map(str, map(each.get, _COLUMNS)),) for each in counted["rules"]],
        )
    if differences:
        raise click.exceptions.Exit(DIFFERS)
