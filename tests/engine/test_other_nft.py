"""Tables that an nft of another release has written, beside a driver with this machine's library.

libnftables 1.0.6 crashes when it reads some of what 1.1 writes, and it reads all that there is
before it changes anything.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine import steps
from tests.engine.driver import REPOSITORY
from tests.engine.rootfs import SUITES, ensure_root, program
from tests.engine.site import HOST_ADDRESS, LAN, LAN_ADDRESS, Question, Site, check
from tests.engine.soak import at_rest, processes
from tests.engine.unixhttp import request
from tests.engine.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.engine import Engine

PORT, PUBLISHED = 80, 8080
# Each of them has made a release crash that is older than the one that wrote it.
CRASHING = """
    map policies {
        typeof ipsec in reqid : verdict
    }
    chain maps {
        meta mark set ip saddr . meta l4proto map { 192.0.2.99 . tcp : 1, 192.0.2.98 . udp : 2 }
    }
    chain marks {
        ct mark set meta mark | ct mark
    }
    chain translates {
        type nat hook prerouting priority dstnat + 50;
        dnat ip to ip saddr . tcp dport map { 192.0.2.99 . 80 : 192.0.2.98 . 90 }
    }
"""
DIES = """
import sys
from driver.linux.nft import Nft
Nft().run("add table inet probe; add chain inet probe forward; delete table inet probe\\n")
"""
each_suite = pytest.mark.parametrize("suite", SUITES)


@pytest.fixture
def site(engine28: Engine) -> Iterator[Site]:
    with Site(engine28) as site:
        yield site


def nft(engine: Engine, *words: str, suite: str = "forky", **how: Any) -> Any:
    """Run the nft of a Debian suite; this machine's own may crash on what is there."""
    return engine.run(*program(ensure_root(suite), "../sbin/nft"), *words, **how)


def write(engine: Engine, suite: str, table: str) -> None:
    """Have the nft of a suite write all that it can of the crashing parts into a table."""
    done = [
        nft(
            engine,
            *("-f", "-"),
            suite=suite,
            stdin=f"table {table} {{\n{part}\n    }}\n}}\n",
            check=False,
        )
        for part in CRASHING.split("\n    }\n")[:-1]
    ]
    assert any(each.returncode == 0 for each in done)


@contextmanager
def others(engine: Engine, suite: str) -> Iterator[None]:
    """Have a table of others in the block."""
    write(engine, suite, "inet others")
    try:
        yield
    finally:
        nft(engine, "delete", "table", "inet", "others")


def works(site: Site) -> None:
    check(site, [Question(LAN, HOST_ADDRESS[4], PUBLISHED, LAN_ADDRESS[4])])
    assert site.engine.driver is not None
    assert site.engine.driver.running
    told = json.loads(request(site.engine.driver.socket, "GET", "/health")[1])
    assert told["problems"] == []
    done = steps.pynet(site.engine, "check", "--json")
    assert json.loads(done.stdout)["differences"] == []


@each_suite
def test_tables_of_others_do_no_harm(site: Site, suite: str) -> None:
    engine = site.engine
    assert engine.driver is not None
    workers = at_rest(lambda: processes(engine))
    with others(engine, suite):
        before = nft(engine, "list", "tables").stdout
        site.network("pynet", "a", 60)
        site.network("pynet", "b", 61, "-o", "pynet.limit.connections=100", ipv6=False)
        for name, network, port in (("web", "a", PUBLISHED), ("near", "b", PUBLISHED + 1)):
            site.container(name, network, "-p", f"{port}:{PORT}")
        site.serve("web", "tcp", PORT)
        works(site)
        assert request(engine.driver.socket, "GET", "/drops")[0] == 200
        steps.pynet(engine, "set", "a", "com.docker.network.bridge.enable_icc=false")
        nft(engine, "delete", "table", "bridge", "pynet")
        wait_until(lambda: not differences(engine), 5, "it is back")
        works(site)
        assert processes(engine) >= workers, "no process has died meanwhile"
        steps.revive_driver(engine)
        works(site)
        engine.docker("rm", "-f", "web", "near")
        engine.docker("network", "rm", "a", "b")
        assert nft(engine, "list", "tables").stdout == before


@each_suite
def test_a_table_with_our_name_is_replaced_without_being_read(site: Site, suite: str) -> None:
    engine = site.engine
    assert engine.driver is not None
    engine.driver.terminate()
    write(engine, suite, "inet pynet")
    engine.start_driver()
    site.network("pynet", "a", 60)
    site.container("web", "a", "-p", f"{PUBLISHED}:{PORT}")
    site.serve("web", "tcp", PORT)
    works(site)
    workers = at_rest(lambda: processes(engine))
    write(engine, suite, "inet pynet")
    wait_until(lambda: not differences(engine), 5, "it is ours again")
    works(site)
    assert processes(engine) >= workers, "no process has died meanwhile"


def differences(engine: Engine) -> list[object]:
    done = steps.pynet(engine, "check", "--json", check=False)
    found: list[object] = json.loads(done.stdout)["differences"]
    return found


def test_the_library_itself_would_have_crashed(site: Site) -> None:
    """Else the tests above tell nothing. With 1.1 and later it does not."""
    engine = site.engine
    version = engine.run("nft", "--version").stdout
    with others(engine, "forky"):
        command = ("env", f"--chdir={REPOSITORY}", sys.executable, "-c", DIES)
        done = engine.run(*command, check=False, env={"PYTHONPATH": str(REPOSITORY)})
    assert (done.returncode != 0) == ("v1.0" in version)
