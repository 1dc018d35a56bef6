"""Let `python -m plugin.cli` be the `pynet` command, where it is not installed."""

from plugin.cli import main

main(prog_name="pynet")
