"""The promise the driver is for: the very first process of a container reads the value."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.engine.soak import repetitions
from tests.engine.steps import KEEPALIVE, create_network, proc_path, run_once, sysctl_options

if TYPE_CHECKING:
    from tests.engine.engine import Engine

pytestmark = pytest.mark.managed

STARTS = {"bookworm": 200, "trixie": 200, "forky": 500}
AT_A_TIME = 10
WANTED = {KEEPALIVE: "600", "net.ipv4.conf.IFNAME.arp_notify": "1"}
FILES = (proc_path(KEEPALIVE), proc_path("net.ipv4.conf.eth0.arp_notify"))


@pytest.mark.managed("always")
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_first_process_reads_the_value(engine: Engine) -> None:
    create_network(engine, "back", *sysctl_options(WANTED))
    half = repetitions(STARTS[engine.suite]) // 2

    def start(_: int) -> str:
        return run_once(engine, "back", "cat", *FILES)

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for manner, seen in (
            ("one by one", list(map(start, range(half)))),
            (f"{AT_A_TIME} at a time", list(pool.map(start, range(half)))),
        ):
            right = seen.count("600\n1\n")
            print(f"\n{engine.version}: {right} of {half} starts {manner} read the value")
            assert right == half, Counter(seen)
