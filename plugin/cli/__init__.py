"""The `pynet` command: its subcommands, errors and exit codes.

What a command does is in a module of its own, imported when the command is asked for: `pynet serve`
must open its socket before anything heavy is there, and the managed plugin has no libraries for the
others.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from driver.errors import DriverError
from plugin.cli.errors import AskError, DriverDown
from plugin.escape import escape

if TYPE_CHECKING:
    from collections.abc import Iterator

# Name: the module that has it, and what it is called there.
COMMANDS = {
    "capture": ("plugin.cli.capture", "capture"),
    "check": ("plugin.cli.check", "check"),
    "completion": ("plugin.cli.completion", "print_completion"),
    "doctor": ("plugin.cli.doctor", "doctor"),
    "exec": ("plugin.cli.execute", "execute"),
    "gc": ("plugin.cli.gc", "collect_garbage"),
    "inspect": ("plugin.cli.networks", "inspect"),
    "ls": ("plugin.cli.networks", "list_networks"),
    "map": ("plugin.cli.map", "show_map"),
    "netns": ("plugin.cli.namespaces", "list_namespaces"),
    "ports": ("plugin.cli.networks", "list_ports"),
    "serve": ("plugin.cli.serve", "serve"),
    "set": ("plugin.cli.change", "change"),
    "sysctl": ("plugin.cli.sysctl", "sysctl"),
    "top": ("plugin.cli.top", "top"),
    "trace": ("plugin.cli.trace", "trace"),
    "version": ("plugin.cli.version", "show_version"),
}

FAILED, MISUSED, DRIVER_DOWN, DIFFERS = 1, 2, 3, 4
INTERRUPTED = 130  # as a shell says it of SIGINT

EPILOG = f"""\b
Exit codes:
  0  done
  {FAILED}  not done; the reason is on standard error
  {MISUSED}  not understood: an unknown command, option or argument
  {DRIVER_DOWN}  the driver does not answer
  {DIFFERS}  done, and something is not as it is meant to be

A NETWORK or CONTAINER is a name or the beginning of an id, if only one begins so. While Docker is
down, ids stand in for names.
"""


class Failure(click.ClickException):
    """A command could not do what it was asked: one line on standard error, and an exit code."""

    exit_code = FAILED

    def __init__(self, text: str) -> None:
        super().__init__(escape(text.strip()))


class Misused(Failure):
    """The command line is wrong."""

    exit_code = MISUSED


class Unanswered(Failure):
    """The driver does not answer."""

    exit_code = DRIVER_DOWN


class Commands(click.Group):
    """The group of all commands, which imports each when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, without importing anything."""
        del ctx
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; None if there is none of this name."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), name)
        return command

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the words before the command."""
        with _failing_in_one_line():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Parse the command's words and run it."""
        with _failing_in_one_line():
            return super().invoke(ctx)


@contextmanager
def _failing_in_one_line() -> Iterator[None]:
    """Turn every exception into one line and an exit code, never a traceback."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise  # not in one line: it is the help
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "pynet"
        words = " ".join(error.format_message().split()).rstrip(".")  # a list of choices has lines
        raise Misused(f"{words}; see {command} --help") from error
    except DriverDown as error:
        raise Unanswered(str(error)) from error
    except (AskError, DriverError) as error:
        raise Failure(str(error)) from error
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
        raise  # click's own
    except Exception as error:
        if os.environ.get("PYNET_LOG_LEVEL", "").upper() == "DEBUG":
            raise
        raise Failure(
            f"this is a defect of pynet: {error!r}; with PYNET_LOG_LEVEL=DEBUG it says where"
        ) from error


main = Commands(
    name="pynet",
    help="Drive Docker networks that have their own kernel parameters.",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
