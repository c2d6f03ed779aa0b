"""What `rabble node` is told: by the command line, and by a file in TOML."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rabble._core.ids import NodeId
from rabble.addresses import parse_target
from rabble.cluster.config import Mesh
from rabble.cluster.io.tls import TlsConfig
from rabble.errors import RabbleError
from rabble.limits import Limits

__all__ = ["Settings", "SettingsError", "add_arguments", "settings_of"]

LOG_LEVELS = ("debug", "info", "warning", "error")
#: Of the file's keys, those that name a file; a relative one is meant from the file's own folder.
PATHS = ("seed-file", "key", "tls-cert", "tls-key", "tls-ca")
#: Those that are either true or false.
SWITCHES = ("authenticate-loopback", "guest")
#: Those that have several values.
LISTS = ("join", "label")
KEYS = ("node", "app", *LISTS, "cluster", "bind", "log-level", *SWITCHES, *PATHS)


class SettingsError(RabbleError, ValueError):
    """What was given cannot be used; says what, and what is allowed."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a node is started with.

    :param node: its id; of a guest the name may do, see `rouse`.
    :param app: `module:function`, or `None`.
    :param join: addresses of nodes to join.
    :param seed_file: a file of more of them, which is watched.
    :param log_level: `None` is the application's own, or warning.
    """

    node: NodeId | str
    mesh: Mesh
    limits: Limits
    app: str | None = None
    join: tuple[str, ...] = ()
    seed_file: Path | None = None
    log_level: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `rabble node` understands."""
    parser.description = (
        "Run a node until SIGTERM or SIGINT. What --config has too is taken from here, if given."
    )
    parser.add_argument("node", nargs="?", metavar="NAME@HOST:PORT", help="its name and address")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a TOML file with these keys")
    parser.add_argument(
        "--app",
        metavar="MODULE:FUNCTION",
        help="is called with the node before it joins; what it returns is called at the end, or "
        "entered and left. The current directory is searched for the module",
    )
    parser.add_argument(
        "--join", nargs="+", action="extend", metavar="ADDR", help="nodes to join: HOST:PORT"
    )
    parser.add_argument(
        "--guest",
        action="store_true",
        default=None,
        help="no member: it listens nowhere, and nobody remembers it. NAME will do then",
    )
    parser.add_argument(
        "--label", nargs="+", action="extend", metavar="LABEL", help="what the node is for"
    )
    parser.add_argument("--seed-file", metavar="FILE", help="more of them, a line each; watched")
    parser.add_argument("--key", metavar="FILE", help="the cluster's, of rabble keygen")
    parser.add_argument(
        "--authenticate-loopback",
        action="store_true",
        default=None,
        help="with a key: authenticate what is said on loopback, too, as between machines",
    )
    parser.add_argument("--tls-cert", metavar="FILE", help="the node's, of rabble cert")
    parser.add_argument("--tls-key", metavar="FILE", help="the key of that certificate")
    parser.add_argument("--tls-ca", metavar="FILE", help="the authority's certificate")
    parser.add_argument("--cluster", metavar="ID", help="nodes of another one are refused")
    parser.add_argument("--bind", metavar="HOST:PORT", help="listen here, not on its own address")
    parser.add_argument(
        "--log-level",
        choices=LOG_LEVELS,
        help="of what the node logs; info logs nodes that come and go",
    )


def settings_of(options: argparse.Namespace) -> Settings:
    """What the command line and the file it names say.

    :raises SettingsError: if they, or the file, cannot be used.
    """
    values: dict[str, Any] = {}
    limits: Mapping[str, Any] = {}
    if options.config is not None:
        values, limits = read_config(options.config)
    for key in KEYS:
        argument = getattr(options, key.replace("-", "_"))
        if argument is not None:
            values[key] = argument
    if "node" not in values:
        raise SettingsError("which node? Give NAME@HOST:PORT, here or as `node` in --config FILE")
    seed_file = values.get("seed-file")
    if seed_file is not None and os.path.exists(seed_file) and not os.path.isfile(seed_file):
        raise SettingsError(
            f"{seed_file}: a file of seeds must be a regular file, which can be read again and "
            "again"
        )
    try:
        for addr in values.get("join", ()):
            parse_target(addr)
        is_guest = values.get("guest", False)
        return Settings(
            node=values["node"] if is_guest else NodeId.parse(values["node"]),
            mesh=Mesh(
                cluster=values.get("cluster", ""),
                key=values.get("key"),
                tls=tls_of(values),
                bind=values.get("bind"),
                authenticate_loopback=values.get("authenticate-loopback", False),
                labels=tuple(values.get("label", ())),
                guest=is_guest,
            ),
            limits=Limits(**limits),
            app=values.get("app"),
            join=tuple(values.get("join", ())),
            seed_file=None if seed_file is None else Path(seed_file),
            log_level=values.get("log-level"),
        )
    except ValueError as error:
        raise SettingsError(str(error)) from error


def tls_of(values: Mapping[str, Any]) -> TlsConfig | None:
    """The files for TLS; all three or none."""
    files = {key: values[f"tls-{key}"] for key in ("cert", "key", "ca") if f"tls-{key}" in values}
    if not files:
        return None
    if len(files) < 3:
        raise SettingsError("TLS needs all three: tls-cert, tls-key and tls-ca")
    return TlsConfig(**files)


def read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of a file, and its limits."""
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"{path}: not TOML: {error}") from error
    except RecursionError:
        raise SettingsError(f"{path}: its arrays or tables are nested too deeply") from None
    limits = found.pop("limits", {})
    if not isinstance(limits, dict):
        raise SettingsError(f"{path}: limits must be a table, [limits]")
    check_keys(path, found, (*KEYS, "limits"))
    check_keys(path, limits, [field.name for field in dataclasses.fields(Limits)], "[limits] ")
    for key, value in found.items():
        if key in LISTS:
            if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
                raise SettingsError(f"{path}: {key} must be an array of strings, not {value!r}")
        elif key in SWITCHES:
            if not isinstance(value, bool):
                raise SettingsError(f"{path}: {key} must be true or false, not {value!r}")
        elif not isinstance(value, str):
            raise SettingsError(f"{path}: {key} must be a string, not {value!r}")
        elif key in PATHS:
            found[key] = str(path.parent / value)
    if found.get("log-level", "info") not in LOG_LEVELS:
        raise SettingsError(
            f"{path}: log-level must be one of {', '.join(LOG_LEVELS)}, not {found['log-level']!r}"
        )
    return found, limits


def check_keys(path: Path, found: Iterable[str], allowed: Iterable[str], where: str = "") -> None:
    """A key that means nothing is a mistake of somebody's."""
    known = list(allowed)
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise SettingsError(
                f"{path}: {where}{key} is unknown.{hint} There are: {', '.join(sorted(known))}."
            )
