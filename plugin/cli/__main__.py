"""Run `pynet` as `python -m plugin.cli`, where it is not installed."""

from plugin.cli import main

main(prog_name="pynet")
