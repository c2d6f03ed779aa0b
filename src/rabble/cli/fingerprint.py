"""`rabble fingerprint`: by what a key can be banned."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rabble.cli.output import print_line
from rabble.cli.status import USAGE_ERROR
from rabble.cluster.decide.node_keys import NodeKey
from rabble.cluster.io.keys import is_cluster_key_file, is_node_key_file, read_key_file
from rabble.cluster.io.tls import certificate_fingerprint
from rabble.errors import KeyFileError

__all__ = ["add_command", "run"]


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """What `rabble fingerprint` understands."""
    parser = commands.add_parser(
        "fingerprint",
        help="print the fingerprint of a node's key, by which it can be banned",
        description="Print 64 hexadecimal digits, as Node.ban takes them: the SHA-256 of the "
        "public key in a certificate, or the fingerprint of a node's own key.",
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="a certificate in PEM, or the key file of a node"
    )


def run(options: argparse.Namespace) -> int:
    """Print a fingerprint.

    :returns: the exit status: 0, or 2 if the file cannot be used.
    """
    try:
        print_line(fingerprint_of(options.file).hex())
    except KeyFileError as error:
        print(f"rabble fingerprint: {error}", file=sys.stderr)
        return USAGE_ERROR
    return 0


def fingerprint_of(path: Path) -> bytes:
    """The fingerprint of what a file holds; raises `KeyFileError`."""
    if is_cluster_key_file(path):
        raise KeyFileError(
            f"{path}: the key of a cluster, which all its nodes have: by it no node can be banned; "
            f"ban a name, or give each node a key of its own (`rabble keygen --node`)"
        )
    if not is_node_key_file(path):
        return certificate_fingerprint(path)
    key = read_key_file(path)
    if not isinstance(key, NodeKey):
        raise KeyFileError(f"{path}: has become another key just now")
    return key.fingerprint
