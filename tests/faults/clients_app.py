"""The processes of the tests of clients under faults: a node with a server, one behind it, clients.

    python -m tests.faults.clients_app '{"role": "front", ...}'

Each notes in its log what it did, a line of JSON each, written before the next thing happens: so
what a killed one had done is there. `client_history` checks these logs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import sys
import threading
import time
from typing import Any

import rabble
from rabble import (
    ChildSpec,
    DeadLetter,
    DeadLetterReason,
    Envelope,
    NodeId,
    Output,
    Pid,
    Process,
    Supervisor,
    reply,
)
from rabble.client import Client, ConnectionLost, Nack, RequestFailed
from rabble.services.server import (
    Answer,
    CloseConnection,
    ConnectionHandler,
    Fail,
    RequestId,
    ServerLimits,
    ServerOutput,
    TcpServer,
    ask,
)

KEY = bytes(range(32))
#: Of the processes that are asked, on each of the two nodes.
WORKERS = ("w0", "w1", "w2")
#: Of these one that no request has crash.
STEADY = "w2"
#: What a client waits at most: the server has said how a request ends long before.
PATIENCE_S = 25.0
REQUEST_MS = 2_000
#: What a request has be done with it.
ACTIONS = ("answer", "by envelope", "crash", "silent", "close")
#: What a client is told of an envelope of a handler that was not delivered.
NOT_DELIVERED = {
    DeadLetterReason.NO_PROCESS: "no_process",
    DeadLetterReason.PROCESS_CRASHED: "crashed",
}


class Planned(Exception):
    """A worker crashes, as it was told to."""


def digest(token: str) -> str:
    """What is answered to a request, which nobody has by chance."""
    return hashlib.blake2b(token.encode(), digest_size=8).hexdigest()


class Log:
    """Lines of JSON that are in the file when `write` has returned. For any thread."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, event: str, **fields: Any) -> None:
        line = json.dumps({"e": event, "at": time.monotonic(), **fields})
        os.write(self._fd, (line + "\n").encode())


class Worker(Process):
    """Answers, or crashes, or says nothing, as the request says."""

    def __init__(self, log: Log, name: str) -> None:
        self.log = log
        self.name = name

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Output:
        token, action = msg
        self.log.write("handled", token=token, by=self.name, action=action)
        if action == "crash":
            raise Planned(token)
        if action == "silent":
            return None
        return reply([token, digest(token), self.name], sender, correlation_id)


def workers(node: rabble.Node, log: Log) -> None:
    specs = [ChildSpec(name, Worker, (log, f"{node.node_id.name}/{name}")) for name in WORKERS]
    node.spawn(Supervisor(specs, intensity=1_000_000, period_ms=1_000), "workers")


class Handler(ConnectionHandler):
    """Passes a request on to whom it is for: a process of this node, or of the one behind it."""

    __slots__ = ("back", "here", "log")

    def __init__(self, log: Log, here: NodeId, back: NodeId) -> None:
        self.log, self.here, self.back = log, here, back

    def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
        token, where, name, action = msg
        self.log.write("begun", token=token)
        assert request is not None
        if action == "close":
            # All that is in flight on this connection ends with it.
            return CloseConnection("as asked")
        if where == "self":
            return Answer(request, [token, digest(token), "self"])
        to = Pid(name, self.back if where == "back" else self.here)
        if where == "front" and action == "by envelope":
            return Envelope(to, (token, action), correlation_id=request)
        return ask(to, (token, action), request)

    def handle_envelope(self, msg: Any, sender: Pid | None, request: Any) -> ServerOutput:
        if isinstance(msg, DeadLetter):
            return Fail(request, NOT_DELIVERED.get(msg.reason, "disconnected"))
        return Answer(request, msg)


def node_of(spec: dict[str, Any], name: str) -> rabble.Node:
    seeds = [spec[f"{each}_addr"] for each in ("front", "back") if each != name]
    mesh = rabble.Mesh(key=KEY, seeds=seeds)
    limits = rabble.Limits(**spec["limits"])
    return rabble.rouse(NodeId(name, spec[f"{name}_addr"]), mesh=mesh, limits=limits, spin_us=0)


def front(spec: dict[str, Any]) -> None:
    log = Log(spec["log"])
    back = NodeId("back", spec["back_addr"])
    limits = ServerLimits(
        request_ms_max=REQUEST_MS, requests_max=spec["requests_max"], requests_per_connection_max=8
    )
    with node_of(spec, "front") as node:
        workers(node, log)
        with TcpServer(node, lambda: Handler(log, node.node_id, back), limits=limits) as server:
            say(f"ready {server.address}")
            for line in sys.stdin:
                match line.split():
                    case ["crash", name]:
                        node.send(node.pid(name), ("told", "crash"))
                    case ["status"]:
                        status = server.status()
                        asks = node.metrics().gauges["asks_waiting"]
                        counts = {
                            name: getattr(status, name)
                            for name in (
                                *("connections", "in_flight", "messages", "answered"),
                                *("failed", "refused", "late", "accepted"),
                            )
                        }
                        say(f"= {json.dumps({**counts, 'asks': asks})}")


def back(spec: dict[str, Any]) -> None:
    log = Log(spec["log"])
    with node_of(spec, "back") as node:
        workers(node, log)
        say("ready")
        for _ in sys.stdin:
            pass


def client(spec: dict[str, Any]) -> None:
    """Some threads, of one connection, which ask until they are told to end."""
    log, is_over = Log(spec["log"]), threading.Event()

    def work(number: int, client: Client) -> None:
        draw = random.Random(f"{spec['seed']} {spec['life']} {number}")
        for count in range(1_000_000):
            if is_over.is_set():
                return
            token = f"{spec['life']}.{number}.{count}"
            where = draw.choice(("front", "front", "back", "back", "self"))
            name = draw.choice((*WORKERS, "nobody") if draw.random() < 0.05 else WORKERS)
            action = draw.choices(ACTIONS, (80, 15, 4, 0.3, 0.02))[0]
            if name == STEADY and action == "crash":
                # So that what it keeps silent about ends by the clock.
                action = "answer"
            one_of_them(log, client, token, [token, where, name, action])

    with Client(spec["address"]) as connected:
        threads = [
            threading.Thread(target=work, args=(number, connected))
            for number in range(spec["threads"])
        ]
        log.write("start")
        for thread in threads:
            thread.start()
        say("ready")
        sys.stdin.read()
        is_over.set()
        for thread in threads:
            thread.join()
    log.write("stop")


def one_of_them(log: Log, client: Client, token: str, msg: list[str]) -> None:
    _, where, name, action = msg
    log.write("asked", token=token, where=where, name=name, action=action)
    try:
        value = client.call(msg, PATIENCE_S)
    except RequestFailed as failed:
        log.write("ended", token=token, how=failed.code)
    except Nack:
        log.write("ended", token=token, how="nack")
        time.sleep(0.002)
    except ConnectionLost as lost:
        log.write("ended", token=token, how="lost" if lost.sent else "not sent")
        time.sleep(0.02)
    except rabble.CallTimeout:
        log.write("ended", token=token, how="nobody said")
    else:
        log.write("ended", token=token, how="answer", value=value)


def say(line: str) -> None:
    print(line, flush=True)


def main(spec: dict[str, Any]) -> None:
    logging.basicConfig(level=logging.WARNING)
    with contextlib.suppress(BrokenPipeError):
        {"front": front, "back": back, "client": client}[spec["role"]](spec)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
