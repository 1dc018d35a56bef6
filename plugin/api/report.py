"""Encode the admin API's answers: networks, endpoints, drops, drift, warnings.

Names are Docker's to know: here everything goes by its id.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import msgspec

from driver.model import GuardAlso, guard_of, host_end_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from driver.model import Drops, Endpoint, Network, NetworkOptions, PortBinding, RuleCount
    from driver.reconcile.advice import Advice
    from driver.reconcile.diff import Drift
    from driver.sysctl.report import Row
    from driver.sysctl.sandbox import ChangeOutcome


def report_networks(state: Iterable[tuple[Network, tuple[Endpoint, ...]]]) -> dict[str, Any]:
    """Return the answer to GET /networks."""
    return {"networks": [_report_network(network, endpoints) for network, endpoints in state]}


def report_drops(drops: Drops) -> dict[str, Any]:
    """Return the answer to GET /drops: packets that the firewall has dropped, by reason."""
    return {"totals": drops.totals, "interfaces": drops.by_interface}


def report_rules(rules: Iterable[RuleCount]) -> dict[str, Any]:
    """Return the answer to GET /rules: the firewall's rules and what each has counted."""
    return {
        "rules": [
            {
                "table": each.table,
                "chain": each.chain,
                "rule": each.rule,
                "packets": each.count.packets,
                "bytes": each.count.bytes,
            }
            for each in rules
        ]
    }


def report_differences(differences: Iterable[Drift]) -> dict[str, Any]:
    """Return the answer to GET /differences and POST /repair: what is not as it should be."""
    return {
        "differences": [
            {"kind": str(each.kind), "subject": each.subject, "text": each.text}
            for each in differences
        ]
    }


def report_advice(advice: Iterable[Advice]) -> dict[str, Any]:
    """Return the answer to GET /warnings: what the host's operator might think about."""
    return {"warnings": [{"setting": each.setting, "text": each.text} for each in advice]}


def report_rows(rows: Iterable[Row]) -> dict[str, Any]:
    """Return the answer to GET /networks/ID/sysctls and GET /endpoints/ID/sysctls."""
    return {"rows": msgspec.to_builtins(tuple(rows))}


def report_change(outcome: ChangeOutcome) -> dict[str, Any]:
    """Return the answer to POST /networks/ID/options: what came of it in running containers."""
    return {
        "changed": len(outcome.changed),
        "awaited": len(outcome.awaited),
        "kept": dict(outcome.kept),
        "overruled": {
            sandbox: [
                {
                    "parameter": each.sysctl.key,
                    "value": each.sysctl.value,
                    "by": each.source,
                    "network": each.network,
                }
                for each in overruling
            ]
            for sandbox, overruling in outcome.overruled.items()
        },
    }


def _report_network(network: Network, endpoints: tuple[Endpoint, ...]) -> dict[str, Any]:
    return {
        "id": network.id,
        "bridge": network.bridge_name,
        "further_bridges": [network.bridge_at(number) for number in network.parts],
        "pools": [
            {"subnet": str(pool.subnet), "gateway": _text(pool.gateway and pool.gateway.ip)}
            for pool in network.pools
        ],
        "options": _report_options(network.options),
        "sysctls": {sysctl.key: sysctl.value for sysctl in network.options.sysctls},
        "endpoints": [_report_endpoint(endpoint, network) for endpoint in endpoints],
    }


def _report_options(options: NetworkOptions) -> dict[str, Any]:
    """Return the options that differ from their defaults, under the names of the code."""
    values = {
        field.name: (getattr(options, field.name), field.default)
        for field in fields(options)
        if field.name != "sysctls"
    }
    return {
        name: _option_value(value) for name, (value, default) in values.items() if value != default
    }


def _option_value(value: object) -> object:
    if isinstance(value, GuardAlso):
        return [*map(str, value.ipv4), *map(str, value.ipv6), *value.macs]
    return value if isinstance(value, bool | int | tuple) else str(value)


def _report_endpoint(endpoint: Endpoint, network: Network) -> dict[str, Any]:
    attachment = endpoint.attachment
    return {
        "id": endpoint.id,
        "ipv4": _text(endpoint.ipv4),
        "ipv6": _text(endpoint.ipv6),
        "mac": endpoint.mac,
        "bridge": None if attachment is None else network.bridge_at(attachment.bridge),
        "host_end": host_end_name(endpoint.id),
        "sandbox": None if attachment is None else attachment.sandbox,
        "guard": str(guard_of(endpoint, network)),
        "sysctls": {sysctl.key: sysctl.value for sysctl in endpoint.sysctls},
        "unpublished": network.options.internal
        and attachment is not None
        and attachment.wants_ports,
        "ports": [_report_port(binding) for binding in endpoint.bindings],
    }


def _report_port(binding: PortBinding) -> dict[str, Any]:
    return {
        "protocol": str(binding.protocol),
        "host_ip": None if binding.host is None else str(binding.host.ip),
        "host_port": None if binding.host is None else binding.host.port,
        "container_ip": str(binding.container_ip),
        "container_port": binding.container_port,
    }


def _text(value: object) -> str | None:
    return None if value is None else str(value)
