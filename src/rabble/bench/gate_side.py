"""The two operating-system processes of `gate`: a server behind a gate, and all of its clients.

`main(STRATEGY, HALVES, IS_BUSY, SERVICE_US, USUAL_S, OVERLOAD_S, SETTLE_S)` prints what its clients
saw, as JSON. It forks the server's process before it has any thread.
"""

from __future__ import annotations

import collections
import dataclasses
import gc
import heapq
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgpack

from rabble._core.envelope import reply
from rabble.bench.model import percentile
from rabble.node import rouse
from rabble.process import Output, Process
from rabble.services.gate import (
    CanaryGate,
    CanaryPolicy,
    Gate,
    GateChanged,
    GradientGate,
    GradientPolicy,
    NoGate,
)
from rabble.services.server import ConnectionHandler, RequestId, ServerOutput, TcpServer, ask

__all__ = ["PATIENCE_S", "Faced", "Overload", "face", "main"]

PATIENCE_S = 120.0
CONNECTIONS = 64
#: Of what the server can do: what is asked of it before and after, and during the overload.
USUAL, OVERLOAD = 0.5, 3.0
#: How many requests wait for the server at any moment while it is measured what it can do.
SATURATING = 64
#: Who is refused tries again when he is told to, for so long; an answer is of use for so long.
TRIES_S, USEFUL_S = 3.0, 1.0
#: A step in which more than that part is refused or slow is not as usual; so long all has to be as
#: usual for it to be over.
TROUBLED = 0.1
STEP_S = 0.5
CALM_STEPS = 4
#: Of the work of a request, around its mean.
SPREAD = 1 / 3
SEED = 1
WORDS = struct.Struct(">I")


# The server.


def work(loops: int) -> int:
    """Keep the interpreter busy."""
    number = 1
    for _ in range(loops):
        number = number * 1_103_515_245 + 12_345 & 0x7FFFFFFF
    return number


def calibrated(service_us: float) -> int:
    """So many loops take that long here, when nothing else is to be done."""
    best_s = min(timed(20_000) for _ in range(5))
    return max(int(20_000 * service_us / 1e6 / best_s), 1)


def timed(loops: int) -> float:
    begun = time.perf_counter()
    work(loops)
    return time.perf_counter() - begun


class Worker(Process):
    """Takes its time for each request; for all that follow twice of it, once it is told `slower`.

    :param loops: of work, on average; or 0: it sleeps instead, as if somebody else did the work.
    """

    def __init__(self, loops: int, service_us: float) -> None:
        self.loops = loops
        self.service_us = service_us
        self.slowness = 1

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
        if msg == "slower":
            self.slowness *= 2
            return None
        share = self.slowness * self.random.uniform(1 - SPREAD, 1 + SPREAD)
        if self.loops:
            work(int(self.loops * share))
        else:
            time.sleep(self.service_us * share / 1e6)
        return reply(None, sender, correlation_id)


class Watcher(Process):
    """Keeps when the gate closed and opened, and in which thread processes run."""

    def __init__(self) -> None:
        self.changes: list[tuple[float, bool, str]] = []
        self.thread = 0

    def init(self) -> None:
        self.thread = threading.get_native_id()

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> None:
        if type(msg) is GateChanged:
            self.changes.append((time.monotonic(), msg.is_open, msg.reason))


def waited_s(thread: int) -> float:
    """How long a thread of this process was ready to run, and others did; 0 if nobody counts."""
    try:
        return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def make_gate(strategy: str) -> Gate:
    """A gate of that name."""
    uniform = random.Random(SEED).uniform
    if strategy == "canary":
        return CanaryGate(CanaryPolicy(), uniform)
    if strategy == "gradient":
        return GradientGate(GradientPolicy(), uniform)
    return NoGate(uniform)


def server_side(overload: Overload, lines: Lines) -> None:
    """Two servers before one worker, of which the second has the gate."""
    with rouse("served@127.0.0.1:0", seed=SEED) as node:
        loops = calibrated(overload.service_us) if overload.is_busy else 0
        pid = node.spawn(Worker(loops, overload.service_us), "worker")
        watcher = Watcher()
        before = 0.0

        class Client(ConnectionHandler):
            def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
                return None if request is None else ask(pid, msg, request)

        with (
            TcpServer(node, Client, name="open") as unguarded,
            TcpServer(node, Client, name="guarded", gate=make_gate(overload.strategy)) as guarded,
        ):
            guarded.subscribe_gate(node.spawn(watcher, "watcher"))
            lines.write([unguarded.address, guarded.address])
            while (said := lines.read()) != "end":
                if said == "begins":
                    before = waited_s(watcher.thread)
                elif said == "ends":
                    lines.write(waited_s(watcher.thread) - before)
                else:
                    node.send(pid, said)
            lines.write(watcher.changes)
    os._exit(0)


class Lines:
    """One end of a conversation by lines."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE_S)
        self._sock = sock
        self._lines = sock.makefile("r", encoding="utf-8")

    def write(self, what: object) -> None:
        self._sock.sendall(f"{json.dumps(what)}\n".encode())

    def read(self) -> Any:
        line = self._lines.readline()
        if not line:
            raise RuntimeError("the server's process has ended")
        return json.loads(line)


# The clients.


@dataclasses.dataclass(slots=True)
class Asked:
    """A request of a client, which stays the same when it is tried again."""

    first_s: float
    sent_s: float = 0.0
    connection: int = 0
    #: How often it was refused.
    tries: int = 0


class Clients:
    """Many connections, which pipeline; and all of what is under way on them.

    :param address: of the server.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._poll = select.epoll()
        self._socks = [socket.create_connection((host, int(port))) for _ in range(CONNECTIONS)]
        self._by_fd = {sock.fileno(): number for number, sock in enumerate(self._socks)}
        self._received = [b""] * CONNECTIONS
        self._staged: dict[int, bytearray] = {}
        for sock in self._socks:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            self._poll.register(sock.fileno(), select.EPOLLIN)
        self.under_way: dict[int, Asked] = {}
        self._numbers = 0

    def close(self) -> None:
        for sock in self._socks:
            sock.close()
        self._poll.close()

    def ask(self, request: Asked, connection: int) -> None:
        """Have it sent with the others of this round."""
        number = self._numbers = self._numbers + 1
        priority = -1 if request.tries else 0
        frame = msgpack.packb([0, number, None, priority])
        staged = self._staged.setdefault(connection, bytearray())
        staged += WORDS.pack(len(frame)) + frame
        request.connection = connection
        self.under_way[number] = request

    def flush(self) -> None:
        """Send what was asked; the clock of these requests begins."""
        now = time.monotonic()
        for connection, staged in list(self._staged.items()):
            try:
                sent = self._socks[connection].send(staged)
            except BlockingIOError:
                continue
            if sent == len(staged):
                del self._staged[connection]
            else:
                del staged[:sent]
        for request in reversed(self.under_way.values()):
            if request.sent_s:
                break
            request.sent_s = now

    def take(self, timeout_s: float) -> list[tuple[Asked, list[Any]]]:
        """What came within that time, if nothing does sooner: each with the request that ended."""
        ended = []
        for fd, _ in self._poll.poll(timeout_s):
            connection = self._by_fd[fd]
            data = self._received[connection] + self._socks[connection].recv(1 << 18)
            at = 0
            while len(data) - at >= 4:
                end = at + 4 + WORDS.unpack_from(data, at)[0]
                if end > len(data):
                    break
                frame = msgpack.unpackb(data[at + 4 : end])
                if frame[0] > 2:
                    raise RuntimeError(f"the server says {frame}")
                ended.append((self.under_way.pop(frame[1]), frame))
                at = end
            self._received[connection] = data[at:]
        return ended


@dataclasses.dataclass(frozen=True)
class Overload:
    """What is done to the server. Times are seconds.

    :param strategy: `canary`, `gradient` or `none`.
    :param halves: in the middle of the overload each request begins to take twice as long.
    :param is_busy: the process works for each request; else it sleeps, so that on a machine with
        much else to do the gate is seen and not the scheduler.
    :param service_us: microseconds that a request takes it, on average.
    :param usual_s: before the overload, at half of what it can do.
    :param settle_s: after it, as before.
    """

    strategy: str = "canary"
    halves: bool = False
    is_busy: bool = True
    service_us: float = 1_500.0
    usual_s: float = 2.0
    overload_s: float = 10.0
    settle_s: float = 6.0

    @property
    def ends_s(self) -> float:
        return self.usual_s + self.overload_s

    @property
    def halves_s(self) -> float:
        return self.usual_s + self.overload_s / 2


@dataclasses.dataclass
class Faced:
    """What came of it; times are seconds since the beginning."""

    #: Requests a second that the server can do.
    saturation_per_s: float
    #: Of each answer: when, and how long it took since that was last asked.
    answered: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    #: Of each refusal: when, how long that took, and what was said of when to come again.
    refused: list[tuple[float, float, float]] = dataclasses.field(default_factory=list)
    #: When the gate closed, and why, and when it opened.
    changes: list[tuple[float, bool, str]] = dataclasses.field(default_factory=list)
    failed: int = 0
    given_up: int = 0
    #: By how much what was due was asked too late, by the clients' own fault.
    late: list[float] = dataclasses.field(default_factory=list)
    #: Of the overload, how much the clients used of a processor, and how long they, and the
    #: server's executor, waited for one, as the machine had others to run.
    clients_s: float = 0.0
    clients_waited_s: float = 0.0
    server_waited_s: float = 0.0

    def goodput_per_s(self, overload: Overload) -> float:
        """Answers of use during the overload."""
        begin, end = overload.usual_s, overload.ends_s
        useful = sum(begin <= at < end and took <= USEFUL_S for at, took in self.answered)
        return useful / (end - begin)

    def possible_per_s(self, overload: Overload) -> float:
        """What the server could do in that time."""
        return self.saturation_per_s * (0.75 if overload.halves else 1.0)

    def refusals_s(self) -> list[float]:
        """How long they took."""
        return [took for _, took, _ in self.refused]

    def latency_s(self, percent: float, begin: float, end: float) -> float:
        """A percentile of what answers took between two times."""
        took = [took for at, took in self.answered if begin <= at < end]
        return percentile(took, percent) if took else 0.0

    def recovery_s(self, overload: Overload) -> float:
        """After the overload, when all began to be as usual for some steps.

        What comes later, as the machine stood still for a moment, has nothing to do with it.
        """
        service_s = (2.0 if overload.halves else 1.0) / self.saturation_per_s
        slow_s = 0.1 + 20 * service_s
        steps: collections.defaultdict[int, list[bool]] = collections.defaultdict(list)
        for at, took in [*((at, 1e9) for at, _, _ in self.refused), *self.answered]:
            if at >= overload.ends_s:
                steps[int((at - overload.ends_s) / STEP_S)].append(took > slow_s)
        calm_from = 0
        for step in range(int(overload.settle_s / STEP_S)):
            bad = steps[step]
            if not bad or sum(bad) > TROUBLED * len(bad):
                calm_from = step + 1
            elif step + 1 - calm_from >= CALM_STEPS:
                return calm_from * STEP_S
        # As far as it was looked at.
        return calm_from * STEP_S if calm_from == 0 else overload.settle_s


def saturate(address: str, seconds: float) -> float:
    """Requests a second, of a server that always has some before it, in the best of some steps.

    Of all of them it would be less wherever the machine has others to run for a moment; and then
    three times that is asked of it is less, too.
    """
    clients = Clients(address)
    counted, best_per_s, done = 0, 0.0, 0
    begun = time.monotonic()
    steps = max(int(seconds / STEP_S), 1)
    try:
        for n in range(SATURATING):
            clients.ask(Asked(begun), n % CONNECTIONS)
        clients.flush()
        while done < steps:
            for request, _ in clients.take(STEP_S):
                counted += 1
                clients.ask(Asked(begun), request.connection)
            clients.flush()
            now = time.monotonic()
            # On a machine that stands still for so long, until there is something to divide.
            if now - begun >= seconds / steps and counted >= SATURATING // 2:
                best_per_s = max(best_per_s, counted / (now - begun))
                begun, counted, done = now, 0, done + 1
    finally:
        clients.close()
    return best_per_s


def run_load(overload: Overload, address: str, per_s: float, lines: Lines, begun: float) -> Faced:
    """Ask as much as is to be asked, whatever comes of it: open loop, Poisson arrivals."""
    faced = Faced(per_s)
    chance = random.Random(SEED)
    clients = Clients(address)
    again: list[tuple[float, int, Asked]] = []
    serial = 0
    half = 0.5 if overload.halves else 1.0
    until_s = overload.ends_s + overload.settle_s
    next_s, waited, is_slow = 0.0, 0.0, not overload.halves
    own = threading.get_native_id()
    used: float | None = None
    try:
        while (now := time.monotonic() - begun) < until_s:
            if not is_slow and now >= overload.halves_s:
                lines.write("slower")
                is_slow = True
            if used is None and now >= overload.usual_s:
                lines.write("begins")
                used, waited = time.process_time(), waited_s(own)
            elif used is not None and now >= overload.ends_s and not faced.clients_s:
                faced.clients_s = time.process_time() - used
                faced.clients_waited_s = waited_s(own) - waited
                lines.write("ends")
                faced.server_waited_s = lines.read()
            while next_s <= now:
                faced.late.append(now - next_s)
                clients.ask(Asked(next_s), chance.randrange(CONNECTIONS))
                load = OVERLOAD if overload.usual_s <= next_s < overload.ends_s else USUAL
                if next_s >= overload.ends_s:
                    load *= half
                next_s += chance.expovariate(load * per_s)
            while again and again[0][0] <= now:
                request = heapq.heappop(again)[2]
                request.sent_s = 0.0
                clients.ask(request, request.connection)
            clients.flush()
            due = min(next_s, again[0][0] if again else next_s)
            ended = clients.take(max(due - now, 0.0))
            at = time.monotonic()
            for request, frame in ended:
                took = at - request.sent_s
                if frame[0] == 0:
                    faced.answered.append((at - begun, took))
                elif frame[0] == 1:
                    faced.failed += 1
                else:
                    faced.refused.append((at - begun, took, frame[2] / 1e3))
                    request.tries += 1
                    serial += 1
                    again_s = at - begun + frame[2] / 1e3
                    if again_s - request.first_s <= TRIES_S:
                        heapq.heappush(again, (again_s, serial, request))
                    else:
                        faced.given_up += 1
    finally:
        clients.close()
    return faced


def face(overload: Overload) -> Faced:
    """Do it to a server in a process of its own."""
    here, there = socket.socketpair()
    gc.collect()
    gc.freeze()
    child = os.fork()
    if not child:
        here.close()
        try:
            server_side(overload, Lines(there))
        except BaseException as error:
            print(f"the server's process failed: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)
    there.close()
    lines = Lines(here)
    try:
        unguarded, guarded = lines.read()
        per_s = saturate(unguarded, max(min(overload.overload_s / 4, 2.0), 0.4))
        begun = time.monotonic()
        faced = run_load(overload, guarded, per_s, lines, begun)
        lines.write("end")
        faced.changes = [(at - begun, is_open, reason) for at, is_open, reason in lines.read()]
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.waitpid(child, 0)
    return faced


def main(
    strategy: str,
    halves: str,
    is_busy: str,
    service_us: str,
    usual_s: str,
    overload_s: str,
    settle_s: str,
) -> None:
    """Print what was seen."""
    numbers = map(float, (service_us, usual_s, overload_s, settle_s))
    overload = Overload(strategy, halves == "True", is_busy == "True", *numbers)
    print(json.dumps(dataclasses.asdict(face(overload))))
