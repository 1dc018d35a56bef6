"""Look at what a probe met on its way: firewalls, translations, queues; no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from driver.diagnosis.facts import (
    HOST,
    NO_ROOM,
    NO_TRANSLATION,
    REFUSED,
    SILENT,
    WRONG_SUM,
    bridge_of,
)
from driver.diagnosis.steps import IPV4, Step, fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from driver.diagnosis.facts import Facts, Probe, Verdict

_OURS = "pynet"
_OF_PASSING = frozenset({"forward accept", "rules"})  # kinds of drift


def look_at_firewall(facts: Facts) -> Iterator[Step]:
    """Say what has stopped the probe, or would stop it as far as the driver knows."""
    probe = facts.probe
    if probe is not None and probe.drop is not None:
        if probe.drop_in is not None:
            text = f"dropped in hook {probe.drop.hook} by {probe.drop.place}, in {probe.drop_in}"
            words = {"name": probe.drop_in, "place": probe.drop.place}
            yield fault("firewall", "own-firewall", text, **words)
        else:
            yield _from_drop(facts, probe.drop)
        return
    if probe is not None and (probe.passes or probe.outcome == REFUSED):
        if probe.translation is not None and not probe.passes:
            yield fault("NAT", "translated-elsewhere", rule=probe.translation)
        return
    if probe is not None:
        yield from _from_evidence(facts, probe)
    for each in facts.drift:
        if each.kind == "filter":
            place = f"{each.subject}, policy drop,"
            yield fault("firewall", "foreign-firewall", place=place, remedy=each.text)
            return
        if each.kind in _OF_PASSING:
            where = f": {each.subject} {each.text}"
            yield fault("firewall", "accept-gone", from_where=where)
            return


def _from_evidence(facts: Facts, probe: Probe) -> Iterator[Step]:
    """Say what else has stopped a probe that no rule of nftables has."""
    if probe.translation is not None:
        yield fault("NAT", "translated-elsewhere", rule=probe.translation)
    for (what, where), number in sorted(_split(probe).items()):
        if what == NO_TRANSLATION:
            yield fault("NAT", "no-free-translation", number=number)
        elif what == NO_ROOM:
            yield fault("queue", "queue-drops", interface=where, number=number)
        elif what == WRONG_SUM:
            yield fault("sandbox", "wrong-checksum", name=where)
    is_routed = facts.passing is not None and probe.outcome == SILENT and bool(probe.seen)
    if facts.legacy and is_routed and not _has_gone_on(facts, probe):
        yield fault("firewall", "legacy-iptables", tables=", ".join(facts.legacy))


def _split(probe: Probe) -> dict[tuple[str, str], int]:
    """Return the counters that have risen, by what and where."""
    parted = ((each.partition(" at "), number) for each, number in probe.risen.items())
    return {(what, where): number for (what, _, where), number in parted}


def _has_gone_on(facts: Facts, probe: Probe) -> bool:
    """Return whether the probe was seen behind the host's hooks."""
    way, destination = facts.passing, facts.flow.destination
    if destination.is_container:
        return any(each.startswith(f"{destination.name}:") for each in probe.seen)
    return way is not None and not way.is_local and f"{HOST}:{way.interface}" in probe.seen


def _from_drop(facts: Facts, drop: Verdict) -> Step:
    text = f"dropped in hook {drop.hook} by {drop.place}"
    flow = facts.flow
    here = bridge_of(facts.sandbox, flow.source.address, facts.host)
    there = bridge_of(facts.other, flow.destination.address, facts.host)
    version = flow.destination.address.version if flow.destination.address else 4
    key = f"net.bridge.bridge-nf-call-{'iptables' if version == IPV4 else 'ip6tables'}"
    if drop.table == _OURS:
        reason, remedy = _explain_own(drop, same=here is not None and here == there)
        return fault("firewall", "own-policy", text, reason=reason, remedy=remedy)
    if _is_dockers(drop):
        return fault("firewall", "docker-policy", text, place=drop.place)
    if drop.hook == "input":
        rule = f'iifname "{here}" accept' if here else "accept what comes by the bridge"
        return fault("firewall", "host-firewall", text, place=drop.place, remedy=rule)
    if here is not None and here == there and facts.host.sysctls.get(key) == "1":
        return fault("firewall", "bridged-through-iptables", text, place=drop.place, key=key)
    if any(each.kind in _OF_PASSING for each in facts.drift):
        return fault("firewall", "accept-gone", text, from_where=f": {drop.place}")
    chain = f"{drop.family} {drop.table} {drop.chain}"
    mark = f"nft insert rule {chain} meta mark and 0x20000000 != 0 accept"
    return fault("firewall", "foreign-firewall", text, place=drop.place, remedy=mark)


def _is_dockers(drop: Verdict) -> bool:
    """Return whether a rule is one by which Docker isolates its networks."""
    of_raw = (drop.table, drop.chain) == ("raw", "PREROUTING") and drop.rule is not None
    return (drop.chain.startswith("DOCKER") and drop.chain != "DOCKER-USER") or of_raw


def _explain_own(drop: Verdict, *, same: bool) -> tuple[str, str]:
    """Return why pynet's own chain drops, and what helps; docs/ruleset.md has the chains."""
    if drop.chain == "drop_internal":
        return "a network is internal", "use a network that is not internal"
    if drop.chain == "between_closed" or same:
        return (
            "the network has enable_icc=false",
            "publish the port, or make the network without enable_icc=false",
        )
    if drop.chain in {"inbound", "open", "drop"}:
        return (
            "they are on different networks, and the port is not published",
            "connect both to one network, or publish the port and ask the host's address",
        )
    if drop.chain.startswith("drop_"):
        reason = drop.chain.removeprefix("drop_")
        return f"its guard drops it, reason {reason}", "docs/security.md says what each guard stops"
    return f"chain {drop.chain}", "docs/ruleset.md says what each chain is for"
