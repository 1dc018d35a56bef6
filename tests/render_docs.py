"""Render docs/options.md, docs/causes.md and README's figures from the code and what was measured.

    python -m tests.render_docs

`tests/unit/test_docs.py` fails when the file and the code differ.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import place_figures
from driver.diagnosis.causes import CAUSES
from driver.options import ENDPOINT_OPTIONS, NETWORK_OPTIONS
from plugin.settings import LOG_LEVELS, Settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from driver.options import Option

README = Path(__file__).parents[1] / "README.md"
OPTIONS_FILE = README.parent / "docs" / "options.md"
CAUSES_FILE = README.parent / "docs" / "causes.md"
CAUSES_HEAD = """\
# Causes

<!-- Made by `python -m tests.render_docs` from driver/diagnosis/causes.py. -->

What [`pynet doctor`](troubleshooting.md) finds: why packets do not arrive, and what helps. The ids
are those of `--json`, and stay.

"""

_LEVELS = ", ".join(f"`{level}`" for level in LOG_LEVELS)

# Field of Settings: its meaning, and what is refused.
SETTINGS = {
    "socket": (
        (
            "The socket that Docker finds the driver by, mode 0600. The file's name without "
            "`.sock` is the driver's name. Its folder is made if missing."
        ),
        "a relative path; a socket on which somebody answers",
    ),
    "second_socket": (
        (
            "A second socket, for a second name. The managed plugin, which Docker knows by its "
            "full reference, opens `pynet.sock` with it. It is left alone if another driver "
            "answers on it: then this one refuses every request, since two cannot share a host."
        ),
        "a relative path",
    ),
    "state_dir": (
        "The folder with the driver's state. Made if missing, with mode 0700.",
        (
            "a relative path. While another pynet is using the folder, every request is refused "
            "with these words"
        ),
    ),
    "relay_socket": (
        (
            "Where a service manager holds the relay's control socket, and starts the relay when "
            "the driver connects. Without, the driver starts it, with `relay.sock` in the state "
            "folder."
        ),
        "a relative path",
    ),
    "default_sysctls": (
        (
            "Kernel parameters of all networks: `net.….…=value`, with commas in between. Tried "
            "when the driver starts; one that this kernel does not take is logged, and no "
            "network is made while it stands there."
        ),
        "what `network create -o` refuses; a parameter twice",
    ),
    "sysctl_allow": (
        (
            "The kernel parameters that networks and endpoints may set: patterns of names with "
            "commas in between, as `net.ipv4.tcp_*,net.core.somaxconn`; `*` takes dots in. "
            "Networks that exist are not touched, nor are a container's own `--sysctl` and the "
            "defaults above."
        ),
        "a pattern that does not begin with `net.`",
    ),
    "ip_forward_no_drop": (
        (
            "Whether the policy of iptables' `FORWARD` is left alone where pynet turns forwarding "
            "on. It is set to drop otherwise, as Docker does, since a host that forwards and "
            "accepts is an open router; `dockerd --ip-forward-no-drop` is Docker's word for it."
        ),
        "anything but true or false",
    ),
    "log_level": (f"What is logged: {_LEVELS}, in either case.", "anything else"),
}

PAGE = """\
# Options

<!-- Made by `python -m tests.render_docs` from driver/options.py and plugin/settings.py. -->

## Of a network

`docker network create -d pynet -o NAME=VALUE …`, or `driver_opts` in a Compose file.

{network}

Every other option is refused, with the nearest known one named. Nothing has been made then.

The last column is what `pynet set` makes of the option while the network exists:
`pynet set back net.ipv4.tcp_keepalive_time=300`, `pynet set back --unset net.core.somaxconn`. The
change is kept over restarts, and `pynet inspect` shows it; `docker network inspect` goes on showing
what the network was made with. Connections that exist keep what they were opened with.

Of Docker's own flags, `--subnet`, `--gateway`, `--ip-range`, `--aux-address`, `--ipv6` and `--ipv4`
(engine 28 and later) act as with the built-in bridge: the bridge has the gateway address of every
subnet. With `--internal` containers get no gateway.

## Of an endpoint

One container's place in a network: `docker run --network name=back,driver-opt=NAME=VALUE …`,
`docker network connect --driver-opt NAME=VALUE …`, or `driver_opts` below the service's network in
a Compose file.

{endpoint}

Other driver options of an endpoint are left alone unless they begin with `pynet.`: the engine sends
the driver all of them, and they may be meant for the engine itself.

## Kernel parameters

**Names.** As with `docker run --sysctl`: `net.ipv4.tcp_keepalive_time`, `net.core.somaxconn`. For
those that belong to an interface the component `IFNAME`, in any case, stands for the container's
interface on the network: `net.ipv4.conf.IFNAME.rp_filter`, `net.ipv6.neigh.IFNAME.gc_stale_time`.
`all`, `default` and `lo` may stand there too; another interface's name may not, since the interface
has its name only in the container.

**Precedence**, strongest first: the container's own `--sysctl`; the endpoint's driver option; the
network's option; what the network inherits from the host (`pynet.sysctl.inherit`); the host's
default for all networks (`PYNET_DEFAULT_SYSCTLS`); the kernel's default. When two networks of one
container ask for different values, the one with the greater `pynet.sysctl.priority` wins, then the
one that was made first: not the order in which Docker joins them, which changes from start to
start. The driver's log says who won over whom and why, `pynet set` names the containers that keep
another network's value, and `pynet sysctl CONTAINER` shows what there is.

**Defaults of dockerd's own.** `dockerd --default-network-opt=pynet=net.ipv4.tcp_retries2=8` (engine
24 and later), or `default-network-opts` in `daemon.json`, gives every new network of pynet's that
option, as if it had been typed. Networks that exist are not touched, and `pynet set` has the last
word. `PYNET_DEFAULT_SYSCTLS` is weaker than any network's option and holds for networks that exist.

**When.** Before the container's first process runs. On `docker network connect` to a running
container, at once. On `docker network disconnect` what the network wrote is put back to what it
was, unless another network of the container asks for it or somebody has changed it since.

**Check.** Each parameter and value is tried in a throw-away network namespace at `network create`
(an endpoint's when the container starts). Refused are, by name and reason: a parameter that this
kernel does not have, one that is the whole machine's rather than a namespace's, one that is
read-only or cannot be read, and a value that the kernel does not take.

**Engines 20.10 to 27** write two parameters of their own into every container, after the driver:
`net.ipv4.ip_unprivileged_port_start=0` and `net.ipv4.ping_group_range=0 2147483647`. A network's
values for these two have no effect there; use the container's `--sysctl`.

## Settings of the driver

Environment variables of `pynet serve`. The service reads them from `/etc/default/pynet`; the
managed plugin takes them by `docker plugin set`. An empty one means the default.

{settings}
"""


def render_options() -> str:
    """Return the text of docs/options.md."""
    return PAGE.format(
        network=_live_table(NETWORK_OPTIONS),
        endpoint=_table(ENDPOINT_OPTIONS),
        settings=_settings(),
    )


def render_causes() -> str:
    """Return docs/causes.md."""
    rows = [(f"`{each.id}`", each.layer, _shown(each.text), _shown(each.remedy)) for each in CAUSES]
    return CAUSES_HEAD + _rows(("id", "layer", "cause", "remedy"), rows) + "\n"


def _shown(template: str) -> str:
    """Return a template with its words in capitals; what is not always there is left out."""
    words = re.sub(r"\{(others|why|where|from_where)\}", "", template)
    return re.sub(r"\{(\w+)\}", lambda word: word[1].upper(), words)


def variable(field: str) -> str:
    """Return the environment variable of a setting."""
    return f"PYNET_{field.upper()}"


def _table(options: Iterable[Option]) -> str:
    rows = [(f"`{each.name}`", each.meaning, each.default, each.refused) for each in options]
    return _rows(("option", "meaning", "default", "refused"), rows)


def _live_table(options: Iterable[Option]) -> str:
    rows = [
        (f"`{each.name}`", each.meaning, each.default, each.refused, each.live) for each in options
    ]
    return _rows(("option", "meaning", "default", "refused", "changed"), rows)


def _settings() -> str:
    defaults = Settings()
    rows = [
        (f"`{variable(field)}`", meaning, _default(getattr(defaults, field)), refused)
        for field, (meaning, refused) in SETTINGS.items()
    ]
    return _rows(("variable", "meaning", "default", "refused"), rows)


def _default(value: object) -> str:
    return f"`{value}`" if value else "none"


def _rows(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    OPTIONS_FILE.write_text(render_options())
    CAUSES_FILE.write_text(render_causes())
    README.write_text(place_figures(README.read_text()))
