"""The same workloads in Erlang: compiled once into a temporary folder, run by `erl`."""

from __future__ import annotations

import importlib.resources
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rabble.bench import api
from rabble.bench.api_load import Load
from rabble.bench.model import Sample, expect
from rabble.bench.sides import Side

__all__ = ["Erlang", "found"]

SOURCE = "rabble_bench.erl"
PATIENCE_S = 300

#: The arguments of each workload, and what it has to have delivered.
PARAMS: Mapping[str, tuple[str, ...]] = {
    "pingpong": ("turns",),
    "ring": ("processes", "hops"),
    "count": ("increments", "batch"),
    "spawn": ("processes",),
    "api": ("requests", "connections", "pipelined"),
}


def found() -> bool:
    """Whether Erlang is on the PATH, and its source in the package."""
    tools = shutil.which("erl") and shutil.which("erlc")
    return bool(tools) and importlib.resources.files("rabble.bench").joinpath(SOURCE).is_file()


class Erlang:
    """The compiled module, in a folder that is removed with it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rabble-bench-")
        source = Path(self._folder.name, SOURCE)
        shipped = importlib.resources.files("rabble.bench").joinpath(SOURCE)
        source.write_bytes(shipped.read_bytes())
        command(["erlc", "-o", self._folder.name, str(source)])

    def version(self) -> str:
        """The release of OTP, and whether it compiles to machine code."""
        code = (
            'io:format("OTP ~s ~s", [erlang:system_info(otp_release), '
            "erlang:system_info(emu_flavor)]), halt()."
        )
        return command(["erl", "-noshell", "-eval", code])

    def run(self, name: str, params: Mapping[str, Any]) -> Sample:
        """One run, in an emulator of its own; its start is not counted."""
        if name == "api":
            return self.serve(**params)
        numbers = [str(params[key]) for key in PARAMS[name]]
        options = ["+P", str(max(262_144, 2 * params["processes"]))] if name == "spawn" else []
        said = command(
            ["erl", *options, "-noshell", "-pa", self._folder.name]
            + ["-run", "rabble_bench", "main", name, *numbers]
        )
        delivered, nanoseconds = map(int, said.split())
        expect(f"{name} in Erlang", delivered, expected(name, params))
        return Sample(delivered, nanoseconds / 1e9)

    def serve(self, requests: int, connections: int, pipelined: int) -> Sample:
        """A run of `api`: the server in Erlang, the clients those of all servers."""
        arguments = ["-noshell", "-pa", self._folder.name, "-run", "rabble_bench", "main", "api"]
        with Side(program=["erl", *arguments]) as server, Side(file=api.LOAD) as clients:
            load = Load(server.read(), "msgpack", connections, pipelined, -(-requests // pipelined))
            return api.served(clients, load, server.pid)

    def close(self) -> None:
        """Remove the folder."""
        self._folder.cleanup()


def expected(name: str, params: Mapping[str, Any]) -> int:
    """What has to be delivered."""
    counts = {
        "pingpong": lambda: 2 * params["turns"],
        "ring": lambda: params["hops"],
        "count": lambda: params["increments"],
        "spawn": lambda: params["processes"],
    }
    return int(counts[name]())


def command(words: list[str]) -> str:
    """What a command prints."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S)
    if done.returncode:
        raise RuntimeError(f"{words[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()
