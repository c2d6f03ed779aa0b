"""The command `rabble`: a module for each command, which adds its arguments and runs it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rabble.cli import bench, cert, fingerprint, keygen, node, version
from rabble.cli.output import OutputError, cannot_write, finish_output
from rabble.cli.status import FAILED, INTERRUPTED, USAGE_ERROR

__all__ = ["main", "make_parser"]

#: In the order of the help.
COMMANDS = {
    "bench": bench,
    "node": node,
    "keygen": keygen,
    "cert": cert,
    "fingerprint": fingerprint,
    "version": version,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    :param arguments: those of the command line if left out.
    :returns: the exit status: 0 if all was done, 1 if a benchmark or node failed or what was to be
        printed cannot be, 2 if the arguments, or a file that they name, cannot be used. A ratio
        that misses its target is no failure.
    """
    try:
        status = run(arguments)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        status = INTERRUPTED
    except OutputError as error:
        status = cannot_write(error.__cause__)
    except BrokenPipeError as error:
        # Of standard output: the commands have no other pipe, and a node catches its own.
        status = cannot_write(error)
    except SystemExit as end:
        # Of argparse, which has said why, or printed the help that it was asked for.
        if finish_output() and not end.code:
            end.code = FAILED
        raise
    return finish_output() or status


def run(arguments: Sequence[str] | None) -> int:
    """Run the command that the arguments name; returns the exit status."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    # The arguments are the process's own: then so is its end.
    options.ends_process = arguments is None
    if options.version:
        return version.run(options)
    if options.command is None:
        parser.print_help(sys.stderr)
        return USAGE_ERROR
    status: int = COMMANDS[options.command].run(options)
    return status


def make_parser() -> argparse.ArgumentParser:
    """What the command understands."""
    parser = argparse.ArgumentParser(prog="rabble", description="Actors in plain Python.")
    parser.add_argument(
        "--version", action="store_true", help="print the versions of rabble and Python"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for module in COMMANDS.values():
        module.add_command(commands)
    return parser
