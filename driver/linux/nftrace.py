"""Trace packets through all tables of nftables: which rules they met, and which dropped them.

A table of our own marks the packets that are asked for (`meta nftrace`), at most so many a second,
and the kernel tells of each rule that applies to them (nf_tables_trace.c). The table is owned by a
process that ends with the trace. What iptables-legacy does is not seen, nor conntrack's own drops.
"""

from __future__ import annotations

import os
import re
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple, Self

from driver.diagnosis.facts import Verdict
from driver.errors import KernelError
from driver.linux.nfnetlink import BUFFER, NETFILTER, parse_attributes, parse_messages, parse_text
from driver.linux.nft_apart import NftApart
from driver.linux.tables import HEAD

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from driver.model import IPAddress, Protocol

PACKETS_A_SECOND = 50  # that are traced, at most, by each condition
_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP = 270, 1, 9  # NFNLGRP_NFTRACE
_TRACE = 10 << 8 | 17  # NFT_MSG_TRACE
# NFTA_TRACE_…
_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID, _POLICY = 1, 2, 3, 4, 5, 6, 16
_NETWORK, _TRANSPORT, _MARK = 8, 9, 14
_OF_POLICY = 1  # NFT_TRACETYPE_POLICY
_CODE, _CODE_CHAIN = 1, 2  # NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN
# NF_DROP, NF_ACCEPT; NFT_JUMP, NFT_GOTO, NFT_RETURN; whatever else goes on with the next rule.
_WORDS = {0: "drop", 1: "accept", -3: "jump", -4: "goto", -5: "return"}
_TERMINAL = frozenset({"drop", "accept"})
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_SETTLE_SECONDS = 0.05  # for what the kernel has yet to tell
_READ_SECONDS = 0.3  # at most, beside a flow that never rests
_HOOK = re.compile(r"hook (\w+)")
_OURS = "pynet"
_TRANSLATING = frozenset({"prerouting", "output"})
_IS_TRANSLATION = re.compile(r"\bdnat\b|\bredirect\b|DNAT|REDIRECT")
_IS_RULE = re.compile(r".* # handle \d+$")


class Event(NamedTuple):
    """A rule that applied to a packet, or a base chain's policy (`handle` 0).

    `hook` is that of the base chain by which the packet came to this one, `verdict` one of accept,
    drop, jump, goto, return, continue, `target` the chain that is gone to. `headers` are the first
    bytes of the packet at this hook, from its network header on and from its transport header on.
    """

    id: bytes
    hook: str
    family: str
    table: str
    chain: str
    handle: int
    verdict: str
    target: str
    mark: int
    headers: tuple[bytes, bytes]

    @property
    def is_policy(self) -> bool:
        """Whether no rule decided, but the chain's policy."""
        return not self.handle


def both_ways(ip: IPAddress, protocol: Protocol, port: int) -> tuple[str, str]:
    """Return the conditions for what goes to an address and port, and for what comes from it."""
    version = "ip" if ip.version == 4 else "ip6"  # noqa: PLR2004
    return (
        f"{version} daddr {ip} {protocol.value} dport {port}",
        f"{version} saddr {ip} {protocol.value} sport {port}",
    )


class Trace:
    """A trace of the packets for which one of several conditions holds; for a `with` block.

    `lost` tells whether the kernel had more to tell than was taken.
    """

    def __init__(self, conditions: Sequence[str]) -> None:
        self._conditions = conditions
        self._hooks: dict[tuple[str, str, str], str] = {}
        self._bases: dict[tuple[bytes, str, str], str] = {}
        self._heads: dict[bytes, tuple[bytes, bytes]] = {}
        self.lost = False

    def __enter__(self) -> Self:
        """Begin. Raises KernelError if the kernel, or libnftables, refuses."""
        with ExitStack() as stack:
            self._events = stack.enter_context(
                socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER)
            )
            try:
                self._events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
                # A socket without a port of its own is told of nothing (do_one_broadcast()).
                self._events.bind((0, 0))
                self._events.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP)
            except OSError as error:
                raise KernelError(f"trace rules: {error.strerror}") from error
            self._nft = stack.enter_context(NftApart())
            self._nft.run(self._text())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End; nothing of it is left in the kernel."""
        self._stack.close()

    def fileno(self) -> int:
        """Return the descriptor that can be read when there is something to read."""
        return self._events.fileno()

    def read(self) -> list[Event]:
        """Return what the kernel has told by now, but for the rules that mark the packets."""
        found: list[Event] = []
        self._events.settimeout(_SETTLE_SECONDS)
        end = time.monotonic() + _READ_SECONDS
        while time.monotonic() < end:
            try:
                datagram = self._events.recv(BUFFER)
            except TimeoutError:
                break
            except OSError:  # ENOBUFS, and more is there
                self.lost = True
                continue
            messages = parse_messages(datagram)
            told = [self._parse(each.body) for each in messages if each.kind == _TRACE]
            found += [each for each in told if each is not None]
        return [each for each in found if each.table != self._name]

    def find_drop(self, events: Iterable[Event]) -> Verdict | None:
        """Return what dropped a packet, None if nothing has been seen to."""
        drop = next((each for each in events if each.verdict == "drop"), None)
        if drop is None:
            return None
        rule = None if drop.is_policy else self.describe_rule(drop)
        return Verdict(drop.family, drop.table, drop.chain, drop.hook, rule)

    def find_translation(self, events: Iterable[Event]) -> str | None:
        """Return another program's rule that has sent a packet elsewhere, None if none has.

        Docker's own are in its chain DOCKER.
        """
        for each in events:
            is_first = each.hook in _TRANSLATING and each.verdict == "accept"
            if is_first and not each.is_policy and each.table != _OURS and each.chain != "DOCKER":
                rule = self.describe_rule(each)
                if _IS_TRANSLATION.search(rule):
                    return f"{each.family} {each.table} {each.chain}, {rule}"
        return None

    def describe_rule(self, event: Event) -> str:
        """Return the rule of an event, with its number in its chain, as nft shows it."""
        listing = self._list(event.family, event.table, event.chain)
        lines = (line.strip() for line in listing.splitlines())
        rules = [each for each in lines if _IS_RULE.match(each) and "{ #" not in each]
        for number, line in enumerate(rules, start=1):
            text, _, handle = line.rpartition(" # handle ")
            if handle == str(event.handle):
                return f"rule {number}: {text.strip()}"
        return f"rule with handle {event.handle}"

    @property
    def _name(self) -> str:
        return f"pynet-trace-{os.getpid()}"  # another trace may be at work

    def _text(self) -> str:
        marks = "".join(
            f"{condition} limit rate {PACKETS_A_SECOND}/second meta nftrace set 1\n"
            for condition in self._conditions
        )
        chains = {"inet": ("prerouting", "output"), "bridge": ("prerouting",)}
        return "".join(_table(family, self._name, hooks, marks) for family, hooks in chains.items())

    def _parse(self, body: bytes) -> Event | None:
        found = parse_attributes(body, HEAD.size)
        verdict = parse_attributes(found.get(_VERDICT, b""))
        identity, family = found.get(_ID, b""), _FAMILIES.get(body[0], "?")
        table, chain = parse_text(found.get(_TABLE, b"")), parse_text(found.get(_CHAIN, b""))
        is_policy = int.from_bytes(found.get(_TYPE, b""), "big") == _OF_POLICY
        code = (found.get(_POLICY) if is_policy else verdict.get(_CODE)) or b"\xff" * 4
        word = _WORDS.get(int.from_bytes(code, "big", signed=True), "continue")
        # Of a packet's headers the kernel tells once a hook, with the first rule.
        if _NETWORK in found:
            self._heads[identity] = found[_NETWORK], found.get(_TRANSPORT, b"")
        if not is_policy and _HANDLE not in found:
            return None  # the end of a chain that had no verdict
        place = identity, family, table
        base = self._bases.setdefault(place, chain)
        if is_policy or word in _TERMINAL:
            del self._bases[place]
        return Event(
            identity,
            self._hook(family, table, base),
            family,
            table,
            chain,
            int.from_bytes(found.get(_HANDLE, b""), "big") if not is_policy else 0,
            word,
            parse_text(verdict.get(_CODE_CHAIN, b"")),
            int.from_bytes(found.get(_MARK, b""), "big"),
            self._heads.get(identity, (b"", b"")),
        )

    def _hook(self, family: str, table: str, chain: str) -> str:
        if table == self._name:
            return chain
        key = family, table, chain
        if key not in self._hooks:
            match = _HOOK.search(self._list(*key))
            self._hooks[key] = match[1] if match else "unknown"
        return self._hooks[key]

    def _list(self, family: str, table: str, chain: str) -> str:
        try:
            return self._nft.run(f"list chain {family} {table} {chain}")
        except KernelError:
            return ""  # it is gone by now, or cannot be read


def _table(family: str, name: str, hooks: Iterable[str], marks: str) -> str:
    chains = "".join(
        f"chain {hook} {{ type filter hook {hook} priority -450\n{marks}}}\n" for hook in hooks
    )
    return f"table {family} {name} {{ flags owner\n{chains}}}\n"
