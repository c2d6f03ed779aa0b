"""Requests of clients over sockets: `TcpServer`, and what a good engineer writes with asyncio."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rabble.bench.api_load import Load
from rabble.bench.model import Case, Limit, Sample, Target, expect
from rabble.bench.sides import Side

__all__ = ["LOAD", "api", "processor_s", "served"]

CONNECTIONS = 64
PIPELINED = 16
API_SIDE = "rabble.bench.api_side"
LOAD = str(Path(__file__).with_name("api_load.py"))
RAW_SIDE = str(Path(__file__).with_name("api_raw_side.py"))
#: Of the clock of the time that another process uses of the processors: see clock_getcpuclockid(3).
CPUCLOCK_SCHED = 2


def processor_s(pid: int) -> float:
    """Seconds of the processor that a process and its children have used, by the kernel's clock."""
    used = time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED)
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        used += sum(processor_s(int(child)) for child in children.read_text().split())
    return used


@dataclasses.dataclass(frozen=True)
class Server:
    """One that is held against another: who it is, and how to start it."""

    #: What its clients speak: see `api_load`.
    protocol: str
    start: Callable[[], Side]


def rabble_server(role: str, protocol: str) -> Server:
    """One with rabble in it."""
    return Server(protocol, lambda: Side(role, module=API_SIDE))


def loop_server(kind: str, protocol: str) -> Server:
    """One of asyncio, on a loop of that kind."""
    return Server(protocol, lambda: Side(kind, protocol, file=RAW_SIDE))


class Sides(contextlib.AbstractContextManager["Sides"]):
    """Some servers, and the clients of all of them: operating-system processes each."""

    def __init__(self, servers: Mapping[str, Server]) -> None:
        self._servers = servers
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Sides:
        with contextlib.ExitStack() as stack:
            self._load = stack.enter_context(Side(file=LOAD))
            self._sides = {
                name: stack.enter_context(server.start()) for name, server in self._servers.items()
            }
            self._addresses = {name: side.read() for name, side in self._sides.items()}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, name: str, requests: int, connections: int = CONNECTIONS) -> Sample:
        """So many requests, rounded up to whole batches, to one of the servers."""
        return served(
            self._load,
            Load(
                self._addresses[name],
                self._servers[name].protocol,
                connections,
                PIPELINED,
                -(-requests // PIPELINED),
            ),
            self._sides[name].pid,
        )


def served(load_side: Side, load: Load, pid: int) -> Sample:
    """What the clients counted, and what the server, of that process id, used of the processor."""
    load_side.write(json.dumps(dataclasses.asdict(load)))
    load_side.expect("ready")
    used = processor_s(pid)
    load_side.write("go")
    said = json.loads(load_side.read())
    used = processor_s(pid) - used
    requests = int(said["requests"])
    expect("api", requests, load.batches * load.pipelined)
    return Sample(
        requests,
        said["seconds"],
        details={
            "server_us": used / requests * 1e6,
            "clients_us": said["processor_s"] / requests * 1e6,
        },
    )


def best_loop() -> str:
    """The loop that a server of asyncio runs on."""
    return "uvloop" if importlib.util.find_spec("uvloop") is not None else "asyncio"


def case_of(
    name: str, protocol: str, requests: int, target: Target | None, beside: Mapping[str, Server]
) -> Case:
    """`TcpServer` held against asyncio with the same codec."""
    loop = best_loop()
    if loop == "uvloop":
        beside = {"asyncio": loop_server("asyncio", protocol), **beside}
    sides = Sides(
        {"rabble": rabble_server(protocol, protocol), loop: loop_server(loop, protocol), **beside}
    )
    return Case(
        name,
        {"requests": requests, "connections": CONNECTIONS, "pipelined": PIPELINED},
        "requests/s",
        lambda: sides.run("rabble", requests),
        Limit(f"{loop}, the same codec", lambda: sides.run(loop, requests)),
        target,
        session=sides,
        beside={name: bound(sides, name, requests) for name in beside},
    )


def bound(sides: Sides, name: str, requests: int) -> Callable[[], Sample]:
    """A run of one of them."""
    return lambda: sides.run(name, requests)


def http_case(requests: int) -> list[Case]:
    """`TcpServer` held against the recipe for HTTP, where that can run."""
    servers = [
        name for name in ("uvicorn", "granian") if importlib.util.find_spec(name) is not None
    ]
    if not servers or importlib.util.find_spec("fastapi") is None:
        return []
    limit, *beside = servers
    sides = Sides(
        {
            "rabble": rabble_server("msgpack", "msgpack"),
            **{name: rabble_server(name, "http") for name in servers},
        }
    )
    return [
        Case(
            "api-http",
            {"requests": requests, "connections": CONNECTIONS, "pipelined": PIPELINED},
            "requests/s",
            lambda: sides.run("rabble", requests),
            Limit(f"FastAPI on {limit}", lambda: sides.run(limit, requests)),
            session=sides,
            beside={f"FastAPI on {name}": bound(sides, name, requests) for name in beside},
        )
    ]


def api(requests: int = 800_000, http_requests: int = 20_000) -> list[Case]:
    """64 connections with 16 small requests each under way, answered by one process.

    The limit answers them by a plain function, within its own thread.
    """
    return [
        case_of("api", "msgpack", requests, Target(1.5), {}),
        case_of("api-json", "json", requests // 4, None, {}),
        *http_case(http_requests),
    ]
