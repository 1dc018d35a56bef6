"""Render pynet's nftables table as text: values in, text out; never talks to the kernel.

The chains are constant. What grows with networks are set elements, so that a packet's lookup and
an update cost the same for one network and for a hundred. Every value that reaches the text is
typed and validated (interface names by `driver.options`), never a string that somebody else wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from driver.model import short

if TYPE_CHECKING:
    from collections.abc import Iterable

    from driver.model import Network

TABLE = "inet pynet"

# One bit of the packet mark says "pynet's own chain has accepted this packet". Docker sets the
# iptables FORWARD policy to DROP, and a packet has to pass every base chain of the hook, so an
# accept in our table is not enough; a rule in Docker's chain lets through what carries the bit.
# The bit is none of those that Kubernetes (0x4000, 0x8000), Tailscale (0xff0000) or swarm's
# small numbers use, and it is gone when the packet enters another namespace (skb_scrub_packet()).
ACCEPTED_MARK = 0x20000000

_BASE = f"""\
table {TABLE} {{
\tcomment "pynet, the Docker network driver; rebuilt from its state file at every start"

\tset same_bridge {{
\t\ttypeof iifname . oifname
\t\tcomment "bridges whose containers may talk to each other"
\t}}

\tchain forward {{
\t\ttype filter hook forward priority filter - 10; policy accept;
\t\tiifname . oifname @same_bridge meta mark set meta mark | {ACCEPTED_MARK:#x} accept
\t}}
}}
"""


def render_ruleset(networks: Iterable[Network]) -> str:
    """Return the whole table for these networks, replacing what is there in one transaction."""
    elements = "".join(render_network(network) for network in networks)
    return f"{render_no_ruleset()}{_BASE}{elements}"


def render_no_ruleset() -> str:
    """Return the text that removes the table, whether it exists or not."""
    return f"table {TABLE} {{}}\ndelete table {TABLE}\n"


def render_network(network: Network) -> str:
    """Return the elements that a network adds to the table's sets."""
    return f"add element {TABLE} same_bridge {{ {_bridge_pair(network)} {_comment(network)} }}\n"


def render_no_network(network: Network) -> str:
    """Return the text that takes the network's elements out again."""
    return f"delete element {TABLE} same_bridge {{ {_bridge_pair(network)} }}\n"


def _bridge_pair(network: Network) -> str:
    return f'"{network.bridge_name}" . "{network.bridge_name}"'


def _comment(network: Network) -> str:
    return f'comment "network {short(network.id)}"'
