"""Trace a flow through all tables of nftables, and say which rule, or policy, dropped it.

A table of our own marks the flow's packets (`meta nftrace`), at most so many a second, and the
kernel tells of each rule that they meet (nf_tables_trace.c). The table is owned by a process that
ends with the trace. What iptables-legacy does is not seen, nor conntrack's own drops.
"""

from __future__ import annotations

import os
import re
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple, Self

from driver.diagnosis.facts import Verdict
from driver.errors import KernelError
from driver.linux.nfnetlink import BUFFER, NETFILTER, parse_attributes, parse_messages, parse_text
from driver.linux.nft_apart import NftApart
from driver.linux.tables import HEAD

if TYPE_CHECKING:
    from types import TracebackType

    from driver.model import IPAddress, Protocol

_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP = 270, 1, 9  # NFNLGRP_NFTRACE
_TRACE = 10 << 8 | 17  # NFT_MSG_TRACE
# NFTA_TRACE_…
_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID, _POLICY = 1, 2, 3, 4, 5, 6, 16
_OF_POLICY = 1  # NFT_TRACETYPE_POLICY
_CODE = 1  # NFTA_VERDICT_CODE
_DROP = 0  # NF_DROP
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_A_SECOND = 50  # packets that are traced, at most
_SETTLE_SECONDS = 0.05  # for what the kernel has yet to tell
_HOOK = re.compile(r"hook (\w+)")


class _Event(NamedTuple):
    id: bytes
    family: str
    table: str
    chain: str
    handle: int
    is_policy: bool
    is_drop: bool


class Trace:
    """A trace of the packets to an address and port, and of the answers; for a `with` block."""

    def __init__(self, ip: IPAddress, protocol: Protocol, port: int) -> None:
        self._ip, self._protocol, self._port = ip, protocol, port

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

    def find_drop(self) -> Verdict | None:
        """Return what dropped a packet of the flow so far, None if nothing has been seen to."""
        bases: dict[tuple[bytes, str, str], str] = {}
        for event in self._read():
            place = event.id, event.family, event.table
            base = bases.setdefault(place, event.chain)
            if event.is_drop:
                return self._describe(event, base)
            if event.is_policy:
                bases.pop(place)
        return None

    def _text(self) -> str:
        version = "ip" if self._ip.version == 4 else "ip6"  # noqa: PLR2004
        protocol = self._protocol.value
        ways = (
            f"{version} daddr {self._ip} {protocol} dport {self._port}",
            f"{version} saddr {self._ip} {protocol} sport {self._port}",
        )
        # A name of the process's own: another trace may be at work.
        name = f"pynet-trace-{os.getpid()}"
        marks = "".join(f"{way} limit rate {_A_SECOND}/second meta nftrace set 1\n" for way in ways)
        chains = {"inet": ("prerouting", "output"), "bridge": ("prerouting",)}
        return "".join(
            f"table {family} {name} {{ flags owner\n"
            + "".join(
                f"chain {hook} {{ type filter hook {hook} priority -450\n{marks}}}\n"
                for hook in hooks
            )
            + "}\n"
            for family, hooks in chains.items()
        )

    def _read(self) -> list[_Event]:
        found: list[_Event] = []
        self._events.settimeout(_SETTLE_SECONDS)
        while True:
            try:
                datagram = self._events.recv(BUFFER)
            except TimeoutError:
                return found
            except OSError:  # ENOBUFS: some were lost, and more may be there
                continue
            messages = parse_messages(datagram)
            found += [_parse(each.body) for each in messages if each.kind == _TRACE]

    def _describe(self, event: _Event, base: str) -> Verdict:
        listing = self._list(event, base)
        match = _HOOK.search(listing)
        rule = None
        if not event.is_policy:
            rule = self._rule(
                event, listing if base == event.chain else self._list(event, event.chain)
            )
        hook = match[1] if match else "unknown"
        return Verdict(event.family, event.table, event.chain, hook, rule)

    def _list(self, event: _Event, chain: str) -> str:
        try:
            return self._nft.run(f"list chain {event.family} {event.table} {chain}")
        except KernelError:
            return ""  # it is gone by now, or cannot be read

    def _rule(self, event: _Event, listing: str) -> str:
        for number, line in enumerate(_rules_of(listing), start=1):
            text, _, handle = line.rpartition(" # handle ")
            if handle == str(event.handle):
                return f"rule {number}: {text.strip()}"
        return f"rule with handle {event.handle}"


def _rules_of(listing: str) -> list[str]:
    lines = [line.strip() for line in listing.splitlines()]
    is_rule = re.compile(r".* # handle \d+$")
    return [each for each in lines if is_rule.match(each) and "{ #" not in each]


def _parse(body: bytes) -> _Event:
    found = parse_attributes(body, HEAD.size)
    verdict = parse_attributes(found.get(_VERDICT, b""))
    is_policy = int.from_bytes(found.get(_TYPE, b""), "big") == _OF_POLICY
    code = found.get(_POLICY) if is_policy else verdict.get(_CODE)
    return _Event(
        found.get(_ID, b""),
        _FAMILIES.get(body[0], "?"),
        parse_text(found.get(_TABLE, b"")),
        parse_text(found.get(_CHAIN, b"")),
        int.from_bytes(found.get(_HANDLE, b""), "big"),
        is_policy,
        code is not None and int.from_bytes(code, "big") == _DROP,
    )
