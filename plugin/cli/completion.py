"""`pynet completion`: shell completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from plugin.cli.output import print_lines

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_PYNET_COMPLETE"  # click's own rule for a program called pynet


@click.command
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def print_completion(ctx: click.Context, shell: str) -> None:
    """Print what makes a shell complete commands, options and names.

    An installation of pynet has put it where the shells look for it.

    \b
    Examples:
      pynet completion bash > /usr/share/bash-completion/completions/pynet
      pynet completion zsh > /usr/share/zsh/vendor-completions/_pynet
      pynet completion fish > /usr/share/fish/vendor_completions.d/pynet.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click has these three
    print_lines(kind(ctx.find_root().command, {}, "pynet", VARIABLE).source().split("\n"))
