"""The command `rabble`: a module for each command, which adds its arguments and runs it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rabble.cli import bench, cert, keygen, node, version
from rabble.cli.status import INTERRUPTED, USAGE_ERROR

__all__ = ["main", "make_parser"]

#: In the order of the help.
COMMANDS = {"bench": bench, "node": node, "keygen": keygen, "cert": cert, "version": version}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    :param arguments: those of the command line if left out.
    :returns: the exit status: 0 if all was done, 1 if a benchmark or node failed, 2 if the
        arguments, or a file that they name, cannot be used. A ratio that misses its target is no
        failure.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help(sys.stderr)
        return USAGE_ERROR
    try:
        status: int = COMMANDS[options.command].run(options)
        return status
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED


def make_parser() -> argparse.ArgumentParser:
    """What the command understands."""
    parser = argparse.ArgumentParser(prog="rabble", description="Actors in plain Python.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for module in COMMANDS.values():
        module.add_command(commands)
    return parser
