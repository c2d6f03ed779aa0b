"""`rabble version`, and `rabble --version`: print the versions of rabble and Python."""

from __future__ import annotations

import argparse
import platform

import rabble
from rabble.cli.output import print_line

__all__ = ["add_command", "run"]


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """What `rabble version` understands."""
    commands.add_parser("version", help="print the versions of rabble and Python")


def run(options: argparse.Namespace) -> int:
    """Print them.

    :returns: the exit status, 0.
    """
    print_line(f"rabble {rabble.__version__} (Python {platform.python_version()})")
    return 0
