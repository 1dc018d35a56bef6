"""Print how many files and functions of the product one Join enters, from HTTP to the answer.

    python -m bench.join

Needs root. The driver is a process of its own, in namespaces of its own; the sandbox is there, as
on engine 28 and later, and gets a parameter of its own and one of the interface.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from tests.engine.wait import wait_until
from tests.kernel.host import mount_namespace, unmount_namespace
from tests.kernel.server import Server, endpoint, ids, join, network

REPOSITORY = Path(__file__).parents[1]
INSIDE = "PYNET_JOIN_INSIDE"
MOST_FILES, MOST_FUNCTIONS = 18, 120
SYSCTLS = {"net.ipv4.tcp_keepalive_time": "600", "net.ipv4.conf.IFNAME.arp_notify": "1"}


def main() -> int:
    """Return 1 if it enters more than it may."""
    if INSIDE not in os.environ:
        command = ["unshare", "--net", "--mount", sys.executable, "-m", "bench.join"]
        return subprocess.run(command, check=False, env={**os.environ, INSIDE: "1"}).returncode
    with tempfile.TemporaryDirectory() as folder:
        functions = enter(Path(folder))
    for file, names in sorted(functions.items()):
        print(f"{file}: {', '.join(sorted(names))}")
    count = sum(map(len, functions.values()))
    print(f"\n{len(functions)} files (at most {MOST_FILES}), {count} functions ({MOST_FUNCTIONS})")
    return int(len(functions) > MOST_FILES or count > MOST_FUNCTIONS)


def enter(folder: Path) -> dict[str, set[str]]:
    """Make a Join, and return the functions that it entered, by file."""
    record, sandbox = folder / "calls", folder / "sandbox"
    sandbox.touch()
    mount_namespace(str(sandbox))
    instrumented = f"{REPOSITORY}/bench/instrument:{REPOSITORY}"
    created = network(1) | {"Options": {"com.docker.network.generic": SYSCTLS}}
    with Server(folder / "server", PYTHONPATH=instrumented, PYNET_CALLS=str(record)) as server:
        for name, call in (("CreateNetwork", created), ("CreateEndpoint", endpoint(1))):
            status, answer = server.call(name, call)
            assert status == 200, answer
        wait_until(lambda: "CreateEndpoint network=" in server.log(), 10, "the end of that")
        record.write_text("")
        status, answer = server.call("Join", join(1, str(sandbox)))
        assert status == 200, answer
        lines = record.read_text().splitlines()
        assert server.call("Leave", ids(1))[0] == 200
    unmount_namespace(str(sandbox))
    functions: defaultdict[str, set[str]] = defaultdict(set)
    for line in lines:
        file, _, name = line.partition("\t")
        functions[str(Path(file).relative_to(REPOSITORY))].add(name)
    return functions


if __name__ == "__main__":
    sys.exit(main())
