"""Write down each function of the product that is entered, in a driver that is started for that.

Runs inside the driver's process (see `bench.instrument`), in all its threads, and writes a line a
call, file and function, to the file that PYNET_CALLS names. What the driver does all the time is
left out.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

PATH = os.environ.get("PYNET_CALLS", "")
PRODUCT = tuple(f"{Path(__file__).parents[1] / each}/" for each in ("driver", "plugin"))
BACKGROUND = frozenset({"watcher", "monitor"})  # threads that follow the kernel's news

_file = os.open(PATH, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if PATH else -1


def install() -> None:
    """Follow this thread, and all that are started from now on."""
    threading.setprofile(_note)
    sys.setprofile(_note)


def _note(frame: FrameType, event: str, _: Any) -> None:
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(PRODUCT):
        name = "" if code.co_name == "<module>" else code.co_qualname
        if name and threading.current_thread().name not in BACKGROUND:
            os.write(_file, f"{code.co_filename}\t{name}\n".encode())
