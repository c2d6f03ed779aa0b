"""`rabble keygen`: make the key of a cluster, or that of one node."""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path

from rabble.cli.output import print_line
from rabble.cli.status import USAGE_ERROR
from rabble.cluster.io import keys

__all__ = ["add_command", "run"]


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """What `rabble keygen` understands."""
    key = commands.add_parser(
        "keygen",
        help="make the key that the nodes of a cluster share, or that one node alone has",
        description="Write a new key of 32 random bytes, as hexadecimal text, to a file that only "
        "you may read. All nodes of a cluster need the same. Or, with --node, one that is good "
        "for that node only: then all need such a key, made from one file, which no node has.",
    )
    key.add_argument("file", type=Path, metavar="FILE", help="must not exist yet")
    key.add_argument("--node", metavar="NAME", help="the node that is to have the key alone")
    key.add_argument(
        "--from",
        dest="authority",
        type=Path,
        metavar="FILE",
        help="with --node: what rabble keygen has made; who has it can make the key of any node",
    )


def run(options: argparse.Namespace) -> int:
    """Make a key file.

    :returns: the exit status: 0, or 2 if the file cannot be made.
    """
    if (options.node is None) != (options.authority is None):
        print("rabble keygen: --node NAME and --from FILE go together", file=sys.stderr)
        return USAGE_ERROR
    key = keys.new_key(secrets.token_bytes)
    try:
        if options.node is not None:
            return make_node_key(options)
        keys.write_key(options.file, key)
    except ValueError as error:
        # `KeyFileError` is one.
        print(f"rabble keygen: {error}", file=sys.stderr)
        return USAGE_ERROR
    print_line(
        f"{options.file}: a new key, {keys.key_id(key)} for short. Give each node of the cluster a "
        f"copy, with mode 0600."
    )
    return 0


def make_node_key(options: argparse.Namespace) -> int:
    """Make the key file of one node; returns the exit status."""
    authority = keys.read_key(options.authority)
    key = keys.new_node_key(authority, options.node, secrets.token_bytes)
    keys.write_node_key(options.file, key)
    print_line(f"{options.file}: a new key of the node {ascii(options.node)[1:-1]}.")
    print_line(f"Give it to that node alone, with mode 0600. Fingerprint: {key.fingerprint.hex()}")
    return 0
