"""Recover a damaged or lost state file from a copy and from the kernel.

Docker never repeats what it once told, so nothing is thrown away: the damaged file is set aside.
Its copy takes its place, which is made whenever a network comes or goes, and what the kernel shows
besides, by the aliases of our links, is added.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from typing import TYPE_CHECKING

from driver.errors import StateDamaged
from driver.firewall.ruleset import TABLES, render_ruleset
from driver.model import (
    PARTS,
    Endpoint,
    EndpointId,
    EndpointOptions,
    Guard,
    Network,
    NetworkId,
    NetworkOptions,
    Pool,
    hash_mac,
    short,
)
from driver.state.store import COPY_NAME, FILE_NAME, Store

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from driver.health import Health
    from driver.linux import Kernel
    from driver.observed import Link

DAMAGED = f"{FILE_NAME}.damaged-"
STATE = "state"  # the key of that in what health tells
ALIAS = re.compile(r"pynet (?:endpoint (?P<endpoint>[0-9a-z]+) )?network (?P<network>[0-9a-z]+)")

log = logging.getLogger(__name__)


def open_state(folder: Path, kernel: Kernel, health: Health) -> Store:
    """Open the state file, or put it back together as well as that goes, and report what is lost.

    Raises StoreError where nothing can be done about it here: the file is of a newer version, the
    folder cannot be written, the disk is full.
    """
    losses: tuple[str, ...] = ()
    try:
        store = _open_whole(folder, health)
    except StateDamaged as damage:
        store, losses = _replace(folder, damage, health)
    try:
        if store.is_new or losses:
            losses = (*losses, *_recover(store, kernel))
    except BaseException:
        store.close()
        raise
    if losses:
        words = "; ".join(losses)
        log.error("%s", words)
        health.report(STATE, words)
    elif damaged := sorted(path.name for path in folder.glob(f"{DAMAGED}*")):
        health.report(
            STATE,
            f"the state file was damaged once, and set aside in {folder} as {', '.join(damaged)}; "
            "compare the networks with Docker's (pynet gc), then remove it",
        )
    return store


def _open_whole(folder: Path, health: Health) -> Store:
    store = Store(folder, health)
    try:
        store.verify()
    except BaseException:
        store.close()
        raise
    return store


def _replace(folder: Path, damage: StateDamaged, health: Health) -> tuple[Store, tuple[str, ...]]:
    """Set the damaged file aside and go on with its copy, or with nothing; say which."""
    aside = _set_aside(folder)
    what = f"the state file was damaged ({damage}) and is set aside as {aside}"
    copy = folder / COPY_NAME
    if not copy.exists() or copy.stat().st_size == 0:
        return _open_whole(folder, health), (what, "there is no copy of it")
    (folder / FILE_NAME).touch(mode=0o600)  # else it were readable to everybody
    shutil.copyfile(copy, folder / FILE_NAME)
    try:
        store = _open_whole(folder, health)
    except StateDamaged as error:
        aside = _set_aside(folder)
        why = f"its copy, now {aside}, is damaged, too ({error})"
        return _open_whole(folder, health), (what, why)
    since = time.strftime("%F %T", time.localtime(copy.stat().st_mtime))
    return store, (what, f"its copy of {since} is used, when a network last came or went")


def _set_aside(folder: Path) -> Path:
    """Rename the state file and its log, with the date; return its new name."""
    name = f"{DAMAGED}{time.strftime('%FT%H-%M-%S')}"
    aside = folder / name
    while aside.exists():
        aside = aside.with_name(f"{aside.name}-more")
    (folder / f"{FILE_NAME}-shm").unlink(missing_ok=True)
    for suffix in ("-wal", ""):
        file = folder / f"{FILE_NAME}{suffix}"
        if file.exists():
            file.rename(aside.with_name(aside.name + suffix))
    return aside


def _recover(store: Store, kernel: Kernel) -> tuple[str, ...]:
    """Add what the kernel shows and the state file does not have; say what, and what it lacks.

    Without that the links would be taken for leftovers and deleted, under running containers.
    """
    links = kernel.observe_links()
    kernel.preview_rules(render_ruleset((), (), ()), TABLES)  # by which ours are known
    rules = kernel.list_rules(TABLES)
    with store.transaction(durable=True):
        _forget_last_boot(store, kernel.boot_id())
        networks = list(_recover_networks(store, links, rules))
        endpoints = list(_recover_endpoints(store, links))
    losses = []
    if networks:
        losses.append(
            f"networks {', '.join(networks)} are known from their bridges and rules alone: "
            "addresses, whether they are internal and whether their containers may talk; no other "
            "option and no kernel parameter: remove them from Docker and create them again"
        )
    if endpoints:
        losses.append(
            f"endpoints {', '.join(endpoints)} are known from their links alone, without addresses "
            "and published ports; restart their containers"
        )
    return tuple(losses)


def _forget_last_boot(store: Store, boot_id: str) -> None:
    """Drop endpoints from before a reboot, which the links that there are have outlived."""
    if store.boot_id() != boot_id:
        for endpoint in store.endpoints():
            store.delete_endpoint(endpoint.id)
        store.set_boot_id(boot_id)


def _recover_networks(
    store: Store, links: Mapping[str, Link], rules: Collection[str]
) -> Iterator[str]:
    for name, link in sorted(links.items()):
        alias = ALIAS.fullmatch(link.alias)
        if link.kind != "bridge" or alias is None or alias["endpoint"] or not link.addresses:
            continue
        network_id = NetworkId(alias["network"])
        if store.find_network(network_id) is not None:
            continue
        network = Network(
            id=network_id,
            pools=tuple(
                Pool(address.network, address, "")
                for address in sorted(link.addresses, key=lambda each: (each.version, each))
                if not address.ip.is_link_local
            ),
            options=NetworkOptions(
                bridge_name=None if name == f"pn-{short(network_id)}" else name,
                mtu=link.mtu,
                # What keeps others out, or in, must not be lost with the rest.
                internal=_is_in("internal", name, rules),
                icc=not _is_in("no_icc", name, rules),
            ),
        )
        store.add_network(network, ())
        for number in PARTS:
            if network.bridge_at(number) in links:
                store.add_part(network_id, number)
        yield short(network_id)


def _recover_endpoints(store: Store, links: Mapping[str, Link]) -> Iterator[str]:
    for link in links.values():
        alias = ALIAS.fullmatch(link.alias)
        if alias is None or not alias["endpoint"]:
            continue
        endpoint_id, network_id = EndpointId(alias["endpoint"]), NetworkId(alias["network"])
        if store.find_endpoint(endpoint_id) is None and store.find_network(network_id) is not None:
            store.put_endpoint(
                Endpoint(
                    endpoint_id,
                    network_id,
                    None,
                    None,
                    hash_mac(endpoint_id),
                    # Its addresses are not known, so they cannot be insisted on.
                    options=EndpointOptions(guard=Guard.NETWORK, recovered=True),
                )
            )
            yield short(endpoint_id)


def _is_in(element_set: str, bridge: str, rules: Collection[str]) -> bool:
    """Return whether a bridge is an element of a set, by the lines that the kernel shows."""
    return any(f" set {element_set}, element " in line and f'"{bridge}"' in line for line in rules)
