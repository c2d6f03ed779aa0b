"""The servers of `api` that have rabble in them: `TcpServer`, and the recipe for HTTP.

`main(ROLE)` prints the address, serves until its standard input ends, and returns.
"""

from __future__ import annotations

import importlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from rabble._core.envelope import reply
from rabble._core.ids import CorrelationId, Pid
from rabble.bench.remote_side import ready
from rabble.node import rouse
from rabble.process import Output, Process
from rabble.services.server import (
    ConnectionHandler,
    JsonLines,
    MsgpackCodec,
    RequestId,
    ServerCodec,
    ServerOutput,
    TcpServer,
    ask,
)

__all__ = ["Answerer", "main"]


class Answerer(Process):
    """Answers with what it was asked."""

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        return reply(msg, sender, correlation_id)


class Asker(ConnectionHandler):
    """Passes each request on."""

    def __init__(self, to: Pid) -> None:
        self.to = to

    def handle_message(self, msg: Any, request: RequestId | None, /) -> ServerOutput:
        return None if request is None else ask(self.to, msg, request)


def tcp(codec: ServerCodec) -> None:
    """A `TcpServer` in front of one process."""
    with rouse("api@127.0.0.1:0") as node:
        to = node.spawn(Answerer(), "answerer")
        with TcpServer(node, lambda: Asker(to), codec=codec) as server:
            ready(server.address)
            sys.stdin.read()


# HTTP, by the recipe.


def uvicorn_side() -> None:
    """FastAPI on uvicorn, with the loop and the parser that it finds."""
    uvicorn: Any = importlib.import_module("uvicorn")
    app: Any = importlib.import_module("rabble.bench.api_http").app
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))

    def stop_at_end() -> None:
        sys.stdin.read()
        server.should_exit = True

    with socket.create_server(("127.0.0.1", 0), backlog=1_024) as listener:
        host, port = listener.getsockname()
        ready(f"{host}:{port}")
        threading.Thread(target=stop_at_end, name="rabble:bench:stop").start()
        server.run(sockets=[listener])


def granian_side() -> None:
    """FastAPI on granian: one worker, in an operating-system process below this one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
    # It takes no socket, but a port; nobody else asks for one just now.
    options = ["--interface", "asgi", "--host", host, "--port", str(port), "--log-level", "error"]
    command = [sys.executable, "-m", "granian", *options, "rabble.bench.api_http:app"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as server:
        try:
            wait_for(host, port, server)
            ready(f"{host}:{port}")
            sys.stdin.read()
        finally:
            server.terminate()


def wait_for(host: str, port: int, server: subprocess.Popen[bytes]) -> None:
    """Until somebody listens there.

    :raises RuntimeError: if the server has ended instead.
    """
    while server.poll() is None:
        try:
            socket.create_connection((host, port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise RuntimeError(f"granian has ended with status {server.returncode}")


ROLES: dict[str, Callable[[], None]] = {
    "msgpack": lambda: tcp(MsgpackCodec()),
    "json": lambda: tcp(JsonLines),
    "uvicorn": uvicorn_side,
    "granian": granian_side,
}


def main(role: str) -> None:
    """Play a role."""
    ROLES[role]()
