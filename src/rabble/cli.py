"""The command `rabble`."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import difflib
import importlib.util
import platform
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

import rabble
from rabble import node_settings

__all__ = ["main"]

#: What `rabble bench --help` names; a test holds it together with what there is.
WORKLOAD_NAMES = (
    "pingpong, ring, count, inject, big, skynet, spawn, timers, wake, codec, "
    "remote, remote-typed, remote-large, rtt, mesh"
)

USAGE_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    :param arguments: those of the command line if left out.
    :returns: the exit status: 0 if all was done, 1 if a benchmark or node failed, 2 if the
        arguments, or a file that they name, cannot be used. A ratio that misses its target is no
        failure.
    """
    parser = make_parser()
    given = parser.parse_args(arguments)
    if given.command is None:
        parser.print_help(sys.stderr)
        return USAGE_ERROR
    if given.command == "version":
        print(f"rabble {rabble.__version__} (Python {platform.python_version()})")
        return 0
    try:
        if given.command == "node":
            from rabble.run_node import run

            return run(given)
        if given.command == "keygen":
            return keygen(given)
        if given.command == "cert":
            return cert(given)
        return bench(given)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED


def make_parser() -> argparse.ArgumentParser:
    """What the command understands."""
    parser = argparse.ArgumentParser(prog="rabble", description="Actors in plain Python.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    measure = commands.add_parser(
        "bench",
        help="measure this machine: each figure next to its limit",
        description="Measure what rabble does on this machine, each figure next to its limit, "
        "which is taken in turn with it.",
    )
    measure.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {WORKLOAD_NAMES}; all if left out"
    )
    measure.add_argument("--quick", action="store_true", help="smaller workloads, under 30 s")
    measure.add_argument("--json", type=Path, metavar="FILE", help="write the results here, too")
    measure.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw them here: .svg or .png (needs matplotlib)"
    )
    measure.add_argument(
        "--peers",
        action="store_true",
        help="run the same workloads on what is installed of other systems, and on Erlang",
    )
    node_settings.add_arguments(commands.add_parser("node", help="run a node of a mesh"))
    key = commands.add_parser(
        "keygen",
        help="make the key that the nodes of a cluster share",
        description="Write a new key of 32 random bytes, as hexadecimal text, to a file that only "
        "you may read. All nodes of a cluster need the same.",
    )
    key.add_argument("file", type=Path, metavar="FILE", help="must not exist yet")
    add_cert(commands.add_parser("cert", help="make the certificates of a cluster, for TLS"))
    commands.add_parser("version", help="print the versions of rabble and Python")
    return parser


def add_cert(parser: argparse.ArgumentParser) -> None:
    """What `rabble cert` understands."""
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


def keygen(given: argparse.Namespace) -> int:
    """Make a key file."""
    from rabble.cluster.io import keys

    try:
        keys.write_key(given.file, keys.new_key(secrets.token_bytes))
    except rabble.KeyFileError as error:
        print(f"rabble keygen: {error}", file=sys.stderr)
        return USAGE_ERROR
    print(f"{given.file}: a new key. Give each node of the cluster a copy, with mode 0600.")
    return 0


def cert(given: argparse.Namespace) -> int:
    """Make an authority, or the certificate of a node."""
    if importlib.util.find_spec("cryptography") is None:
        print(
            "rabble cert needs cryptography; install rabble with its extra: rabble[cert].",
            file=sys.stderr,
        )
        return USAGE_ERROR
    from rabble.cluster.io import certificates

    now = datetime.datetime.now(datetime.UTC)
    try:
        if given.kind == "ca":
            made, key = certificates.make_authority(given.folder, now)
            print(f"{made}: the authority's certificate. Give each node a copy.")
            print(f"{key}: its key. No node needs it; who has it can make nodes.")
        else:
            made, key = certificates.make_node_certificate(
                given.folder, given.name, now, given.host
            )
            print(f"{made}: the certificate of {ascii(given.name)[1:-1]}.")
            print(f"{key}: its key. Give both to that node alone, the key with mode 0600.")
    except ValueError as error:
        print(f"rabble cert: {error}", file=sys.stderr)
        return USAGE_ERROR
    return 0


def refusal(given: argparse.Namespace, known: Sequence[str]) -> str | None:
    """Why the arguments of `bench` cannot be used, or `None`."""
    from rabble.bench.report import PLOT_SUFFIXES

    for name in given.names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            return f"there is no workload {name!r}.{hint} There are: {', '.join(known)}."
    for option, path in (("--json", given.json), ("--plot", given.plot)):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            return f"{option} {path}: there is no folder for that file, or it is a folder itself."
    if given.plot is not None:
        if given.plot.suffix not in PLOT_SUFFIXES:
            return f"--plot {given.plot}: the name must end in {' or '.join(PLOT_SUFFIXES)}."
        if importlib.util.find_spec("matplotlib") is None:
            return "--plot needs matplotlib; install rabble with its extra: rabble[plot]."
    return None


def bench(given: argparse.Namespace) -> int:
    """Run the workloads that were asked for."""
    # Imported here, so that `rabble version` needs none of it.
    from rabble.bench import WORKLOADS, peers, report
    from rabble.bench.model import SPREAD_S, Result, machine, measure

    wrong = refusal(given, list(WORKLOADS))
    if wrong is not None:
        print(f"rabble bench: {wrong}", file=sys.stderr)
        return USAGE_ERROR
    progress = report.Progress()
    results: list[Result] = []
    failures: list[str] = []
    with contextlib.ExitStack() as stack:
        others = stack.enter_context(peers.Peers()) if given.peers else None
        about = machine(peers.DISTRIBUTIONS if others is not None else ())
        if others is not None:
            about["versions"].update(others.versions())
        report.show_machine(about)
        for name in dict.fromkeys(given.names or WORKLOADS):
            for case in WORKLOADS[name].cases(given.quick):
                beside = others.runs(case) if others is not None else {}
                try:
                    results.append(
                        measure(
                            case,
                            spread_s=0.0 if given.quick else SPREAD_S,
                            peers=beside,
                            progress=progress,
                        )
                    )
                except Exception as error:
                    failures.append(f"{case.name} failed: {type(error).__name__}: {error}")
    progress.clear()
    print()
    report.print_table(results)
    if given.json is not None:
        report.write_json(given.json, about, results)
    if given.plot is not None:
        report.plot(given.plot, results)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
