"""`rabble cert`: make the certificates of a cluster."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import sys
from pathlib import Path

from rabble.cli.output import print_line
from rabble.cli.status import USAGE_ERROR

__all__ = ["add_command", "run"]


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """What `rabble cert` understands."""
    parser = commands.add_parser("cert", help="make the certificates of a cluster, for TLS")
    parser.description = (
        "Make a private authority and the certificates of its nodes (needs rabble[cert])."
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    authority = kinds.add_parser(
        "ca",
        help="the authority: ca.pem for all nodes, ca.key for none",
        description="Make an authority, valid for ten years. Each node needs its ca.pem. Keep "
        "ca.key: who has it can make nodes.",
    )
    node = kinds.add_parser(
        "node",
        help="a node: NAME.pem and NAME.key",
        description="Make the certificate of a node, valid for 398 days.",
    )
    authority.add_argument("folder", type=Path, metavar="DIR", help="made if there is none")
    node.add_argument("folder", type=Path, metavar="DIR", help="where the authority is")
    node.add_argument("name", metavar="NAME", help="the node's; it goes in as URI:rabble://NAME")
    node.add_argument(
        "--host",
        nargs="+",
        action="extend",
        default=[],
        metavar="HOST",
        help="goes in too, for clients that check the host; nodes do not",
    )


def run(options: argparse.Namespace) -> int:
    """Make an authority, or the certificate of a node.

    :returns: the exit status: 0, or 2 if cryptography is missing or a file cannot be used or made.
    """
    if importlib.util.find_spec("cryptography") is None:
        print(
            "rabble cert needs cryptography; install rabble with its extra: rabble[cert].",
            file=sys.stderr,
        )
        return USAGE_ERROR
    # Needs the extra `cert`.
    from rabble.cluster.io import certificates

    now = datetime.datetime.now(datetime.UTC)
    try:
        if options.kind == "ca":
            made, key = certificates.make_authority(options.folder, now)
            print_line(f"{made}: the authority's certificate. Give each node a copy.")
            print_line(f"{key}: its key. No node needs it; who has it can make nodes.")
        else:
            made, key = certificates.make_node_certificate(
                options.folder, options.name, now, options.host
            )
            print_line(f"{made}: the certificate of {ascii(options.name)[1:-1]}.")
            print_line(f"{key}: its key. Give both to that node alone, the key with mode 0600.")
    except ValueError as error:
        print(f"rabble cert: {error}", file=sys.stderr)
        return USAGE_ERROR
    return 0
