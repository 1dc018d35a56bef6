"""What the command line is told of a network that has outgrown its bridge."""

from __future__ import annotations

from dataclasses import replace

from plugin.api.report import report_networks
from tests.samples import endpoint, network, sandbox_key


def test_each_endpoint_is_shown_on_its_own_bridge() -> None:
    grown = replace(network(1), parts=(1,))
    first, other = endpoint(1).joined(sandbox_key(1)), endpoint(2).joined(sandbox_key(2))
    (shown,) = report_networks([(grown, (first, other.on_bridge(1), endpoint(3)))])["networks"]
    assert shown["bridge"] == grown.bridge_name
    assert shown["further_bridges"] == ["pn1010101010101"]
    bridges = [each["bridge"] for each in shown["endpoints"]]
    assert bridges == [grown.bridge_name, "pn1010101010101", None]
