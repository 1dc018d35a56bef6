"""Be `pynet`, with one kernel verb that hangs while a test wants it to.

PYNET_STALL is a named pipe; while there is one, making a veth waits in open(2) for a writer, which
is not there. PYNET_STALL_SYSCTL does the same for trying parameters, which takes no lock.
"""

from __future__ import annotations

import os
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from driver.linux import links, sysctl
from plugin.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


def stalling(verb: Callable[P, T], pipe: str) -> Callable[P, T]:
    """Return the verb, waiting for the pipe first if there is one."""

    @wraps(verb)
    def wait(*args: P.args, **kwargs: P.kwargs) -> T:
        if Path(pipe).is_fifo():
            print("a verb hangs", flush=True)
            with Path(pipe).open("rb"):
                pass
        return verb(*args, **kwargs)

    return wait


if __name__ == "__main__":
    links.create_veth = stalling(links.create_veth, os.environ.get("PYNET_STALL", ""))
    sysctl.check = stalling(sysctl.check, os.environ.get("PYNET_STALL_SYSCTL", ""))
    main()
