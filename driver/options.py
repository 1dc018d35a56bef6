"""Turn the free-form options of `docker network create` into values; performs no I/O.

Whatever is not known is refused by name, with the nearest known one, since an option that is
silently ignored is found out at 3 a.m.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from driver.errors import InvalidRequest
from driver.model import DEFAULT_MTU, DEFAULT_PREFIX, IFNAME_LENGTH, NetworkOptions, Sysctl
from driver.sysctls import is_sysctl, merge, parse_endpoint_label, parse_sysctl

if TYPE_CHECKING:
    from collections.abc import Mapping

MIN_MTU = 68  # RFC 791; also ETH_MIN_MTU, which the kernel enforces
MIN_IPV6_MTU = 1280  # RFC 8200 section 5; below it the kernel takes IPv6 off the interface
MAX_MTU = 65535  # ETH_MAX_MTU, include/uapi/linux/if_ether.h
PREFIX_LENGTH = IFNAME_LENGTH - 3  # room for the number that libnetwork appends

MTU = "com.docker.network.driver.mtu"
BRIDGE_NAME = "com.docker.network.bridge.name"
IFACE_PREFIX = "com.docker.network.container_iface_prefix"
ENABLE_IPV4 = "com.docker.network.enable_ipv4"
ENABLE_IPV6 = "com.docker.network.enable_ipv6"
ENDPOINT_SYSCTLS = "com.docker.network.endpoint.sysctls"

_IFNAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Option:
    """One option as the documentation lists it."""

    name: str
    meaning: str
    default: str
    refused: str


NETWORK_OPTIONS = (
    Option(
        "net.*",
        "A kernel parameter of every sandbox on the network, under its own name; the component "
        "`IFNAME` (any case) stands for the container's interface.",
        "the kernel's",
        "a parameter that does not exist, is not per namespace, is read-only, or a value the "
        "kernel does not take",
    ),
    Option(
        MTU,
        "MTU of the bridge and of the containers' interfaces, in bytes; 0 means the default.",
        str(DEFAULT_MTU),
        f"anything but a number from {MIN_MTU} to {MAX_MTU}; below {MIN_IPV6_MTU} with IPv6",
    ),
    Option(
        BRIDGE_NAME,
        "Name of the bridge on the host. A bridge that exists already is used and never deleted.",
        "`pn-` and 12 digits of the network's id",
        f"more than {IFNAME_LENGTH} characters, or the name of something that is no bridge",
    ),
    Option(
        IFACE_PREFIX,
        "What the interface is called in the container, before its number.",
        f"`{DEFAULT_PREFIX}`",
        f"more than {PREFIX_LENGTH} characters, or characters an interface name cannot have",
    ),
    Option(
        ENABLE_IPV4,
        "The same as `--ipv4`; the engine acts on it.",
        "`true`",
        "a value that contradicts what the engine did",
    ),
    Option(
        ENABLE_IPV6,
        "The same as `--ipv6`; the engine acts on it.",
        "`false`",
        "a value that contradicts what the engine did",
    ),
)

ENDPOINT_OPTIONS = (
    Option(
        "net.*",
        "A kernel parameter of this container's sandbox, over the network's.",
        "the network's",
        "the same as for the network",
    ),
    Option(
        ENDPOINT_SYSCTLS,
        "Per-interface parameters that the engine (27 and later) writes itself; pynet leaves "
        "them to it.",
        "none",
        "nothing",
    ),
)


def parse_network_options(
    generic: Mapping[str, str], *, internal: bool, has_ipv4: bool, has_ipv6: bool
) -> NetworkOptions:
    """Return the options of a network; raises InvalidRequest with words for who typed them."""
    _refuse_unknown(generic, NETWORK_OPTIONS)
    _check_agrees(generic, ENABLE_IPV4, has=has_ipv4)
    _check_agrees(generic, ENABLE_IPV6, has=has_ipv6)
    return NetworkOptions(
        bridge_name=_parse_bridge_name(generic[BRIDGE_NAME]) if BRIDGE_NAME in generic else None,
        mtu=_parse_mtu(generic.get(MTU, "0"), has_ipv6=has_ipv6),
        ifname_prefix=_parse_prefix(generic.get(IFACE_PREFIX, DEFAULT_PREFIX)),
        internal=internal,
        sysctls=_parse_sysctls(generic),
    )


def parse_endpoint_sysctls(options: Mapping[str, object]) -> tuple[Sysctl, ...]:
    """Return the parameters that an endpoint asks for by driver option.

    Unknown driver options pass: they may be meant for the engine, which sends them all.
    """
    texts = {key: value for key, value in options.items() if isinstance(value, str)}
    return _parse_sysctls(texts)


def parse_engine_sysctls(options: Mapping[str, object]) -> frozenset[str]:
    """Return the keys that the engine itself will write into this endpoint's sandbox."""
    label = options.get(ENDPOINT_SYSCTLS)
    return parse_endpoint_label(label) if isinstance(label, str) else frozenset()


def parse_bool(name: str, text: str) -> bool:
    """Return the truth value of an option, in the spellings that Docker takes (Go's ParseBool)."""
    if text in {"1", "t", "T", "TRUE", "true", "True"}:
        return True
    if text in {"0", "f", "F", "FALSE", "false", "False"}:
        return False
    raise InvalidRequest(f"option {name}={text[:80]!r}: expected true or false")


def _refuse_unknown(generic: Mapping[str, str], known: tuple[Option, ...]) -> None:
    names = [option.name for option in known]
    for key in generic:
        if key in names or is_sysctl(key):
            continue
        near = get_close_matches(key, names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InvalidRequest(f"unknown option {key[:200]!r}{hint}")


def _check_agrees(generic: Mapping[str, str], name: str, *, has: bool) -> None:
    if name in generic and parse_bool(name, generic[name]) != has:
        flag = f"--{name.rpartition('enable_')[2]}"
        raise InvalidRequest(
            f"option {name}={generic[name]}: this engine has not acted on it; use {flag} instead"
        )


def _parse_sysctls(options: Mapping[str, str]) -> tuple[Sysctl, ...]:
    parsed = [parse_sysctl(key, value) for key, value in options.items() if is_sysctl(key)]
    counts = Counter(sysctl.key for sysctl in parsed)
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        raise InvalidRequest(f"kernel parameter given twice: {', '.join(twice)}")
    return merge(parsed)


def _parse_mtu(text: str, *, has_ipv6: bool) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise InvalidRequest(f"option {MTU}={text[:80]!r}: expected a number of bytes")
    mtu = int(text) or DEFAULT_MTU
    if not MIN_MTU <= mtu <= MAX_MTU:
        raise InvalidRequest(f"option {MTU}={mtu}: expected {MIN_MTU} to {MAX_MTU}")
    if has_ipv6 and mtu < MIN_IPV6_MTU:
        raise InvalidRequest(f"option {MTU}={mtu}: IPv6 needs at least {MIN_IPV6_MTU} (RFC 8200)")
    return mtu


def _parse_bridge_name(text: str) -> str:
    _check_ifname(BRIDGE_NAME, text, IFNAME_LENGTH)
    return text


def _parse_prefix(text: str) -> str:
    _check_ifname(IFACE_PREFIX, text, PREFIX_LENGTH)
    return text


def _check_ifname(option: str, text: str, longest: int) -> None:
    if len(text) > longest:
        raise InvalidRequest(
            f"option {option}={text[:80]!r}: {len(text)} characters; at most {longest} fit"
        )
    if not _IFNAME.fullmatch(text) or text in {".", ".."}:
        raise InvalidRequest(
            f"option {option}={text!r}: an interface name is letters, digits, '_', '-' and '.'"
        )
