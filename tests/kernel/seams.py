"""Step in before every single thing that `driver.linux` asks of the kernel, and every commit.

The seams are where the driver's own code ends: netlink's messages, nftables' transactions,
/proc/sys, the iptables command, bind(2). A step is named by its seam and what is asked of it.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from functools import wraps
from threading import Thread
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from driver.linux import conntrack, iptables, ports, sysctl
from driver.linux.elements import Elements
from driver.linux.netns import AFTERWARDS
from driver.linux.rtnetlink import Rtnetlink
from driver.linux.session import Session
from driver.state.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    # Gets a step's name before it is taken; may raise in its place.
    Before = Callable[[str], None]

ROUTE = "rtnetlink"
NFT = "nft"
SYSCTL = "sysctl"
IPTABLES = "iptables"
BIND = "bind"
CONNTRACK = "conntrack"
COMMIT = "commit"
OPEN = "open netlink"
THREAD = "start a thread"
READ = "read a sysctl"
_MESSAGES = frozenset(name for name in vars(Rtnetlink) if not name.startswith("_"))
_QUESTIONS = frozenset({"find_link", "find_way", "links", "addresses", "has_route", "has_rule"})
_LOOKS = ("-S", "-C")  # of iptables: no change
_LOOKS_ELSEWHERE: tuple[tuple[Any, str, str], ...] = (
    (Session, "__init__", OPEN),
    (Thread, "start", THREAD),
    (sysctl, "read", READ),
)


@contextmanager
def stepping_in(before: Before, *, reads: bool = False) -> Iterator[None]:
    """Have `before` called before every step that changes something; before the looks as well.

    What a thread does when its caller has got the answer is no step of what the caller did.
    """
    before = _while_waited_for(before)
    with ExitStack() as stack:
        for target, name, seam in (
            (sysctl, "write", SYSCTL),
            (ports, "_bind", BIND),
            (Elements, "make", NFT),
            (conntrack, "_delete", CONNTRACK),
        ):
            wrapped = _wrapped(getattr(target, name), seam, before)
            stack.enter_context(patch.object(target, name, wrapped))
        for name in _MESSAGES if reads else _MESSAGES - _QUESTIONS:
            wrapped = _wrapped(getattr(Rtnetlink, name), f"{ROUTE} {name}", before)
            stack.enter_context(patch.object(Rtnetlink, name, wrapped))
        stack.enter_context(patch.object(iptables, "_execute", _iptables(before, reads=reads)))
        stack.enter_context(patch.object(Store, "transaction", _transaction(before)))
        for target, name, seam in _LOOKS_ELSEWHERE if reads else ():
            wrapped = _wrapped(getattr(target, name), seam, before)
            stack.enter_context(patch.object(target, name, wrapped))
        yield


def _while_waited_for(before: Before) -> Before:
    def of_caller(step: str) -> None:
        if threading.current_thread().name != AFTERWARDS:
            before(step)

    return of_caller


def _wrapped(function: Callable[..., Any], seam: str, before: Before) -> Callable[..., Any]:
    @wraps(function)
    def step(*args: Any, **kwargs: Any) -> Any:
        before(seam)
        return function(*args, **kwargs)

    return step


def _iptables(before: Before, *, reads: bool) -> Callable[..., Any]:
    original = iptables._execute

    def step(command: str, *arguments: str) -> Any:
        if reads or arguments[0] not in _LOOKS:
            before(f"{IPTABLES} {arguments[0]}")
        return original(command, *arguments)

    return step


def _transaction(before: Before) -> Callable[..., Any]:
    original = Store.transaction

    @contextmanager
    def transaction(store: Store, **how: bool) -> Iterator[None]:
        with original(store, **how):
            changes = store._db.total_changes
            yield
            if store._db.total_changes != changes:
                before(COMMIT)

    return transaction
