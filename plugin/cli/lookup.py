"""Look names up as a container would: by the servers of its resolv.conf, from its namespace."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import dns.exception
import dns.message
import dns.query
import dns.resolver

from driver.diagnosis.facts import NO_ANSWER, NO_SERVER, NO_SUCH_NAME, Lookup
from plugin.cli.errors import AskError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    from driver.model import IPAddress

    T = TypeVar("T")

OF_HOST = Path("/etc/resolv.conf")
_SECONDS = 2.0  # for an answer
_HOST_SECONDS = 1.0  # for one that only says whether a server is there
# What Docker writes of the servers that its own resolver asks; `host(…)` from the host's namespace.
_UPSTREAMS = re.compile(r"^# ExtServers: \[(.*)\]$", re.MULTILINE)
_ADDRESS = re.compile(r"[0-9a-fA-F.:]+")


def look_up(
    name: str, settings: Path, run: Callable[[Callable[[], Lookup]], Lookup], *, is_ipv6: bool
) -> Lookup:
    """Return what a name is where `run` runs things, by the servers of a resolv.conf(5).

    Of two families the one that is asked for, and the other if there is none of it. Raises AskError
    if the file cannot be read.
    """
    try:
        text = settings.read_text(errors="replace")
    except OSError as error:
        raise AskError(f"read {settings}: {error.strerror}") from error
    match = _UPSTREAMS.search(text)
    upstreams = tuple(_ADDRESS.findall(match[1].replace("host(", ""))) if match else ()
    try:
        resolver = dns.resolver.Resolver(filename=str(settings))
    except dns.resolver.NoResolverConfiguration:
        return Lookup(name, (), error=NO_SERVER)
    resolver.lifetime = _SECONDS
    servers = tuple(map(str, resolver.nameservers))
    began = time.monotonic()
    found = run(lambda: _resolve(name, resolver, ("AAAA", "A") if is_ipv6 else ("A", "AAAA")))
    seconds = time.monotonic() - began
    answering: tuple[str, ...] = ()
    if found.error == NO_ANSWER:
        answering = tuple(_find_answering(name, upstreams or servers))
    return Lookup(name, servers, seconds, found.address, found.error, answering, upstreams)


def _resolve(name: str, resolver: dns.resolver.Resolver, kinds: Iterable[str]) -> Lookup:
    for kind in kinds:
        try:
            answer = resolver.resolve(name, kind, search=True)
        except dns.resolver.NXDOMAIN:
            return Lookup(name, (), error=NO_SUCH_NAME)
        except dns.resolver.NoAnswer:
            continue
        except (dns.exception.DNSException, OSError):  # silence, or a server that has failed
            return Lookup(name, (), error=NO_ANSWER)
        return Lookup(name, (), address=_first(answer))
    return Lookup(name, (), error=NO_SUCH_NAME)


def _first(answer: dns.resolver.Answer) -> IPAddress:
    return ip_address(next(iter(answer)).to_text())


def _find_answering(name: str, servers: Iterable[str]) -> Iterable[str]:
    """Yield the servers that answer the host itself, whatever they answer."""
    question = dns.message.make_query(name, "A")
    for server in servers:
        with suppress(dns.exception.DNSException, OSError):
            dns.query.udp(question, server, timeout=_HOST_SECONDS)
            yield server
