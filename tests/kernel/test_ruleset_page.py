"""docs/ruleset.md shows what a kernel has after the driver made its networks; fails when stale."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from driver.driver import NewJoin
from tests.kernel.host import run
from tests.ruleset_page import COMMAND, PAGE, render_page
from tests.typical import TYPICAL

if TYPE_CHECKING:
    from driver.driver import BridgeDriver
    from tests.kernel.host import RealHost
    from tests.typical import Typical


def make(driver: BridgeDriver, real: RealHost, each: Typical) -> None:
    """Make a network and start its container."""
    driver.create_network(each.network)
    new = each.new_endpoint
    driver.create_endpoint(new)
    sandbox = real.add_sandbox(each.number)
    driver.join(NewJoin(new.network_id, new.id, sandbox, has_ports=bool(each.requests)))
    driver.program_external_connectivity(new.network_id, new.id, each.requests)


def test_the_page_is_what_the_kernel_has(driver: BridgeDriver, real: RealHost) -> None:
    for command in ("iptables", "ip6tables"):
        run(command, "-w", "-N", "DOCKER-USER")
        run(command, "-w", "-A", "FORWARD", "-j", "DOCKER-USER")
    for each in TYPICAL.values():
        make(driver, real, each)
    rules = [run(each, "-w", "-S", "FORWARD") for each in ("iptables", "ip6tables")]
    assert rules[0] == rules[1]
    page = render_page(run("nft", "--stateless", "list", "ruleset"), rules[0].splitlines()[-1])
    if os.environ.get("PYNET_DOCS") == "write":
        PAGE.write_text(page)
    assert page == PAGE.read_text(), f"as root: {COMMAND}"
