"""The causes of broken flows: what each is, in a sentence, and what helps, in another.

One table; docs/causes.md is made from it. The ids are for programs and bug reports: they stay.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cause:
    """Why packets do not arrive. Text and remedy are templates, filled by `Found`."""

    id: str
    layer: str
    text: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Found:
    """A cause with what it was found at."""

    cause: Cause
    text: str
    remedy: str


CAUSES = (
    Cause(
        "name-unknown",
        "name",
        "{name} asks {servers} for {host}, and there is no such name",
        "check the spelling; containers are known by their names on networks that have one, not on "
        "Docker's default bridge",
    ),
    Cause(
        "no-name-server",
        "name",
        "{name} cannot look {host} up: it has no name server",
        "give it one: --dns, or `dns` in /etc/docker/daemon.json",
    ),
    Cause(
        "name-server-loopback",
        "name",
        "{name} cannot look {host} up: its name server {servers} is an address of its own loopback",
        "give dockerd name servers that containers reach: `dns` in /etc/docker/daemon.json",
    ),
    Cause(
        "name-server-silent",
        "name",
        "{name} cannot look {host} up: {servers} does not answer it, {asked}",
        "give dockerd name servers that containers reach: `dns` in /etc/docker/daemon.json",
    ),
    Cause(
        "not-running",
        "sandbox",
        "{name} does not run{why}",
        "docker start {name}, and docker logs {name}",
    ),
    Cause(
        "port-taken",
        "publish",
        "{name} cannot start: {place} is taken by {owner}",
        "stop {owner}, or publish another port",
    ),
    Cause(
        "loopback-target",
        "socket",
        "{ip} is {name} itself, and nothing listens there on port {port}: a container has a "
        "loopback of its own",
        "{host}",
    ),
    Cause(
        "listens-elsewhere",
        "socket",
        "the application listens on {there}, and not on {wanted}",
        "have it listen on {all}:{port}",
    ),
    Cause(
        "not-listening",
        "socket",
        "nothing listens on {protocol} port {port} of {name}{others}",
        "start what is to listen there, or ask the port that it has",
    ),
    Cause(
        "backlog-full",
        "socket",
        "{owner} does not accept what comes: {waiting} connections wait, of at most {most}",
        "have it accept faster, or raise its listen() backlog and the network's net.core.somaxconn",
    ),
    Cause(
        "receive-buffer-full",
        "socket",
        "{owner} does not read what comes: {waiting} of {most} bytes wait, {lost} packets are lost",
        "have it read faster, or ask for more by SO_RCVBUF, or raise net.core.rmem_default",
    ),
    Cause(
        "no-route",
        "sandbox",
        "{name} has no route to {ip}",
        "connect it to a network that leads out: one that is not internal, and has that family",
    ),
    Cause(
        "forbidden-route",
        "sandbox or host",
        "a route of {name} keeps what goes to {ip} from going: {error}",
        "find it by `{command}`, and delete it",
    ),
    Cause(
        "ipv6-off",
        "sandbox",
        "{name} has IPv6 turned off on {interface}",
        "make the network with --ipv6, or unset net.ipv6.conf.{interface}.disable_ipv6",
    ),
    Cause(
        "hops-spent",
        "sandbox",
        "{name} sends packets that no host may pass on: net.ipv4.ip_default_ttl is 1 in it",
        "set net.ipv4.ip_default_ttl of the network to 64",
    ),
    Cause(
        "interface-down",
        "sandbox, pair or bridge",
        "{interface} is down",
        "{command}",
    ),
    Cause(
        "severed",
        "pair",
        "the host's end of {interface} in {name} is gone: it was deleted",
        "connect {name} to the network anew, or restart it",
    ),
    Cause(
        "off-bridge",
        "pair",
        "{interface}, the host's end of {name}, is on no bridge{why}",
        "pynet check --repair, after telling {manager} to leave pn* and veth* alone",
    ),
    Cause(
        "stale-neighbour",
        "pair",
        "{where} knows {ip} by {mac}, which it does not have: it has {own}",
        "{command}",
    ),
    Cause(
        "arp-ignored",
        "bridge",
        "{bridge} does not answer ARP: its arp_ignore is {value}",
        "sysctl -w net.ipv4.conf.{key}.arp_ignore=0",
    ),
    Cause(
        "address-twice",
        "network",
        "{first} and {second} of network {network} have the same address {what}",
        "start one of them anew without a fixed address",
    ),
    Cause(
        "mac-twice",
        "network",
        "{first} and {second} of network {network} have the same MAC address {what}",
        "start one of them anew without a fixed MAC address",
    ),
    Cause(
        "conntrack-full",
        "host",
        "the host tracks {count} connections of at most {most}: new ones are dropped",
        "sysctl -w net.netfilter.nf_conntrack_max={more}",
    ),
    Cause(
        "neighbours-full",
        "host",
        "the host keeps {count} neighbours, of all its namespaces, of at most {most}: it can ask "
        "for no new one",
        "sysctl -w net.ipv4.neigh.default.gc_thresh3={more}, and gc_thresh2 to half of it",
    ),
    Cause(
        "ports-used-up",
        "sandbox",
        "{name} has no port of its own left to call {ip} from",
        "widen net.ipv4.ip_local_port_range of the network, or reuse connections",
    ),
    Cause(
        "forwarding-off",
        "host",
        "this host does not forward: {key} is 0",
        "sysctl -w {key}=1, and correct what sets it to 0{where}",
    ),
    Cause(
        "reverse-path",
        "host",
        "the host takes packets from {ip} by {interface} for forged: rp_filter is 1, and it would "
        "answer by another way",
        "sysctl -w net.ipv4.conf.{interface}.rp_filter=2, or route {ip} by {interface}",
    ),
    Cause(
        "no-way-out",
        "uplink",
        "the host itself has no route to {ip}",
        "mend the host's own network first: ip route get {ip}",
    ),
    Cause(
        "routers-ignored",
        "uplink",
        "the host has no way out by IPv6: it hears no router on {interface}, for it forwards and "
        "accept_ra is 1 there",
        "sysctl -w net.ipv6.conf.{interface}.accept_ra=2",
    ),
    Cause(
        "subnet-overlaps",
        "host",
        "{ip} is looked for among the containers of {subnet}, which overlaps {prefix} on "
        "{interface}",
        "make the network with another --subnet, and set default-address-pools in "
        "/etc/docker/daemon.json",
    ),
    Cause(
        "nobody-there",
        "host",
        "nobody has {ip}: it is of {subnet} on {bridge}, and no one answers there",
        "look the address up: pynet map, or ask by the container's name",
    ),
    Cause(
        "mtu-too-large",
        "host",
        "{interface} of {name} sends up to {mtu} bytes, {out} takes {most}, and {name} is not told "
        "that larger ones are lost",
        "pynet set NETWORK mtu={most} and start its containers anew, or let ICMP pass",
    ),
    Cause(
        "accept-gone",
        "firewall",
        "the rule that lets pynet's packets pass is gone{from_where}",
        "pynet check --repair",
    ),
    Cause(
        "foreign-firewall",
        "firewall",
        "{place} drops what is forwarded",
        "{remedy}",
    ),
    Cause(
        "host-firewall",
        "firewall",
        "{place} drops what containers send to the host itself",
        "let the bridge in there: {remedy}",
    ),
    Cause(
        "bridged-through-iptables",
        "firewall",
        "{place} drops frames within one bridge: {key} is 1",
        "sysctl -w {key}=0, or accept in that chain what carries the mark 0x20000000",
    ),
    Cause(
        "own-policy",
        "firewall",
        "pynet keeps them apart: {reason}",
        "{remedy}",
    ),
    Cause(
        "docker-policy",
        "firewall",
        "Docker keeps them apart: {place}",
        "connect both to one network, or publish the port and ask the host's address",
    ),
    Cause(
        "own-firewall",
        "firewall",
        "{place} drops it, in the container {name} itself",
        "change that rule in {name}: pynet exec {name} -- nft list ruleset",
    ),
    Cause(
        "legacy-iptables",
        "firewall",
        "the last rule of nftables lets it pass and it does not go on: rules of iptables-legacy "
        "drop it, in {tables}",
        "move these rules to nftables: iptables-legacy -S",
    ),
    Cause(
        "translated-elsewhere",
        "NAT",
        "another program's rule sends it elsewhere before its translation: {rule}",
        "remove that rule, or publish another port",
    ),
    Cause(
        "no-free-translation",
        "NAT",
        "the host has found no free port to translate it to: {number} connections were dropped",
        "widen the ports that it is translated to, or add an address to translate to",
    ),
    Cause(
        "not-masqueraded",
        "NAT",
        "it leaves this host by {interface} as {ip}, which nobody outside knows the way to",
        "masquerade the network (enable_ip_masquerade=true), or route {ip} to this host out there",
    ),
    Cause(
        "queue-drops",
        "queue",
        "the queue of {interface} has no room: {number} packets were dropped",
        "tc -s qdisc show dev {interface}, and remove or widen it",
    ),
    Cause(
        "wrong-checksum",
        "sandbox",
        "what arrives in {name} has a wrong checksum, and is dropped",
        "ethtool -K IFNAME tx-checksum-ip-generic off, at the end that it comes from",
    ),
    Cause(
        "not-published",
        "publish",
        "port {port}/{protocol} of {name} is not published{others}",
        "publish it: -p HOSTPORT:{port}, or ask from a container of the same network",
    ),
    Cause(
        "published-elsewhere",
        "publish",
        "port {port}/{protocol} of {name} is published on {there} only",
        "publish it on 0.0.0.0, or ask {there} on this host",
    ),
    Cause(
        "stale-flow",
        "publish",
        "a flow that began before leads port {port}/{protocol} of {name} to {there}",
        "conntrack -D -p {protocol} -r {there}",
    ),
    Cause(
        "answer-elsewhere",
        "host",
        "{name} answers by {interface}, on another network than {ip} is of, and the host takes "
        "that for forged: rp_filter of {bridge} is 1",
        "connect that network with a higher --gw-priority, or sysctl -w "
        "net.ipv4.conf.{bridge}.rp_filter=2",
    ),
    Cause(
        "drift",
        "any",
        "what pynet made is not as it was: {kind} {subject} {text}",
        "pynet check --repair, and find who changes it",
    ),
    Cause(
        "uplink-down",
        "uplink",
        "{interface}, by which the host goes out, is down or its next hop does not answer",
        "mend the host's own network first",
    ),
    Cause(
        "beyond",
        "beyond",
        "it left this host by {interface}, and nothing came back",
        "look beyond this host: a remote firewall, a cloud's security group, or no way back",
    ),
    Cause(
        "unexplained",
        "beyond",
        "nothing came back, and everything that was looked at is in order",
        "pynet capture {name} --where all shows how far it goes",
    ),
)
_BY_ID = {cause.id: cause for cause in CAUSES}


def found(identity: str, **words: object) -> Found:
    """Return a cause with its words filled in."""
    cause = _BY_ID[identity]
    return Found(cause, cause.text.format(**words), cause.remedy.format(**words))
