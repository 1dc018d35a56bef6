"""Say which functions of the driver are measured, and write down when each began and ended.

Runs inside the driver's process (see `bench.instrument`). A span is one line of JSON in the file
that PYNET_SPANS names: what, thread, begin and end in nanoseconds of CLOCK_MONOTONIC, which all
processes share.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

PATH = os.environ.get("PYNET_SPANS", "")

# Module, then what is measured in it and what it is called.
SPANS: dict[str, dict[str, str]] = {
    "plugin.worker": {"Worker.handle": "connection"},
    "plugin.api.deadline": {"Deadline.run": "call"},
    "plugin.api.protocol": {
        "decode_create_endpoint": "decode",
        "decode_endpoint_call": "decode",
        "decode_join": "decode",
        "decode_external_connectivity": "decode",
    },
    "driver.state.store": {"Store._run": "state file", "Store._all": "state file"},
    "driver.linux.session": {"Session.request": "netlink"},
    "driver.linux.netns": {"_run_in_thread": "thread in the sandbox"},
    "driver.linux.elements": {"Elements.change": "nftables: elements"},
    "driver.linux.nft": {"Nft.run": "libnftables"},
    "driver.linux.ports": {"Reservations.reserve": "reserve ports"},
}

_file = os.open(PATH, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if PATH else -1


def wrap_module(module: ModuleType) -> None:
    """Replace what is to be measured in a module by the same with a clock around it."""
    for path, name in SPANS[module.__name__].items():
        owner: Any = module
        *owners, last = path.split(".")
        for each in owners:
            owner = getattr(owner, each)
        setattr(owner, last, _measured(name, getattr(owner, last)))


def _measured(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def measured(*args: Any, **kwargs: Any) -> Any:
        began = time.monotonic_ns()
        try:
            return original(*args, **kwargs)
        finally:
            method = next((each for each in args if isinstance(each, str)), "")
            _write(f"call {method}" if name == "call" else name, began)

    return measured


def _write(name: str, began: int) -> None:
    span = [name, threading.get_native_id(), began, time.monotonic_ns()]
    os.write(_file, json.dumps(span).encode() + b"\n")
