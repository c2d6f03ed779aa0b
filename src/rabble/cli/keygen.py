"""`rabble keygen`: make the key of a cluster."""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path

from rabble.cli.output import print_line
from rabble.cli.status import USAGE_ERROR
from rabble.cluster.io import keys
from rabble.errors import KeyFileError

__all__ = ["add_command", "run"]


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """What `rabble keygen` understands."""
    key = commands.add_parser(
        "keygen",
        help="make the key that the nodes of a cluster share",
        description="Write a new key of 32 random bytes, as hexadecimal text, to a file that only "
        "you may read. All nodes of a cluster need the same.",
    )
    key.add_argument("file", type=Path, metavar="FILE", help="must not exist yet")


def run(options: argparse.Namespace) -> int:
    """Make a key file.

    :returns: the exit status: 0, or 2 if the file cannot be made.
    """
    key = keys.new_key(secrets.token_bytes)
    try:
        keys.write_key(options.file, key)
    except KeyFileError as error:
        print(f"rabble keygen: {error}", file=sys.stderr)
        return USAGE_ERROR
    print_line(
        f"{options.file}: a new key, {keys.key_id(key)} for short. Give each node of the cluster a "
        f"copy, with mode 0600."
    )
    return 0
