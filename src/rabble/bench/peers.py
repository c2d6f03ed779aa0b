"""The same workloads on other systems that are installed: pingpong on all of them, and what else
fits each. Slow ones do fewer turns; a rate is what is compared."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rabble.bench import erlang
from rabble.bench.model import Case, Sample, expect

__all__ = ["DISTRIBUTIONS", "Peers"]

DISTRIBUTIONS = (
    *("pykka", "thespian", "xoscar", "lapinbeam", "pyzmq"),
    *("fastapi", "uvicorn", "httptools", "granian"),
)
PATIENCE_S = 120.0
#: The frame that pyzmq carries: as long as a small envelope.
FRAME = bytes(48)

Workload = Callable[[Mapping[str, Any]], Sample]


class Peers:
    """What of them is here. A context manager: Erlang's compiled module is a temporary file."""

    def __init__(self) -> None:
        self.erlang = erlang.Erlang() if erlang.found() else None

    def versions(self) -> dict[str, str]:
        """Of what is no Python distribution."""
        return {} if self.erlang is None else {"erlang": self.erlang.version()}

    def runs(self, case: Case) -> dict[str, Callable[[], Sample]]:
        """By the peer's name, the same workload on it."""
        chosen: dict[str, Callable[[], Sample]] = {}
        if self.erlang is not None and case.name in erlang.PARAMS:
            emulator = self.erlang
            chosen["Erlang"] = lambda: emulator.run(case.name, case.params)
        for peer, module, workloads in PYTHON_PEERS:
            if case.name in workloads and importlib.util.find_spec(module) is not None:
                chosen[peer] = bound(workloads[case.name], case.params)
        return chosen

    def __enter__(self) -> Peers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.erlang is not None:
            self.erlang.close()


def bound(workload: Workload, params: Mapping[str, Any]) -> Callable[[], Sample]:
    """The workload with its parameters."""
    return lambda: workload(params)


# asyncio.Queue: a task for each process, which waits for its own queue.


def asyncio_pingpong(params: Mapping[str, Any]) -> Sample:
    """Two tasks, two queues."""
    turns = min(params["turns"], 100_000)

    async def run() -> Sample:
        pings: asyncio.Queue[str] = asyncio.Queue()
        pongs: asyncio.Queue[str] = asyncio.Queue()
        delivered = [0, 0]

        async def pong() -> None:
            for _ in range(turns):
                msg = await pings.get()
                delivered[0] += 1
                pongs.put_nowait(msg)

        task = asyncio.create_task(pong())
        start = time.perf_counter()
        for _ in range(turns):
            pings.put_nowait("ball")
            await pongs.get()
            delivered[1] += 1
        seconds = time.perf_counter() - start
        await task
        expect("pingpong on asyncio.Queue", sum(delivered), 2 * turns)
        return Sample(2 * turns, seconds)

    return asyncio.run(run())


def asyncio_ring(params: Mapping[str, Any]) -> Sample:
    """A task and a queue for each process."""
    processes, hops = params["processes"], min(params["hops"], 100_000)

    async def run() -> Sample:
        queues: list[asyncio.Queue[int]] = [asyncio.Queue() for _ in range(processes)]
        seen = [0] * processes
        done = asyncio.Event()

        async def link(n: int) -> None:
            mine, following = queues[n], queues[(n + 1) % processes]
            while True:
                left = await mine.get()
                seen[n] += 1
                if left > 1:
                    following.put_nowait(left - 1)
                else:
                    done.set()

        tasks = [asyncio.create_task(link(n)) for n in range(processes)]
        start = time.perf_counter()
        queues[0].put_nowait(hops)
        await done.wait()
        seconds = time.perf_counter() - start
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        expect("ring on asyncio.Queue", sum(seen), hops)
        return Sample(hops, seconds)

    return asyncio.run(run())


def asyncio_count(params: Mapping[str, Any]) -> Sample:
    """A producer that gives way after each batch, and a consumer."""
    increments, batch = min(params["increments"], 200_000), params["batch"]

    async def run() -> Sample:
        queue: asyncio.Queue[int | None] = asyncio.Queue()

        async def count() -> int:
            total = 0
            while (msg := await queue.get()) is not None:
                total += msg
            return total

        counter = asyncio.create_task(count())
        start = time.perf_counter()
        for first in range(0, increments, batch):
            for _ in range(min(batch, increments - first)):
                queue.put_nowait(1)
            await asyncio.sleep(0)
        queue.put_nowait(None)
        total = await counter
        seconds = time.perf_counter() - start
        expect("count on asyncio.Queue", total, increments)
        return Sample(total, seconds)

    return asyncio.run(run())


# Pykka: a thread for each actor.


def pykka_pingpong(params: Mapping[str, Any]) -> Sample:
    """Two actors that `tell` each other."""
    pykka: Any = importlib.import_module("pykka")
    turns = min(params["turns"], 5_000)
    done = threading.Event()

    class Pong(pykka.ThreadingActor):  # type: ignore[misc]
        pings = 0

        def on_receive(self, message: Any) -> None:
            self.pings += 1
            message.tell(self.actor_ref)

    class Ping(pykka.ThreadingActor):  # type: ignore[misc]
        pongs = 0

        def on_receive(self, message: Any) -> None:
            self.pongs += 1
            if self.pongs < turns:
                message.tell(self.actor_ref)
            else:
                done.set()

    ping, pong = Ping.start(), Pong.start()
    try:
        start = time.perf_counter()
        pong.tell(ping)
        done.wait(PATIENCE_S)
        seconds = time.perf_counter() - start
        delivered = ping.proxy().pongs.get() + pong.proxy().pings.get()
    finally:
        ping.stop()
        pong.stop()
    expect("pingpong on Pykka", delivered, 2 * turns)
    return Sample(2 * turns, seconds)


# Thespian, with the base that needs no other operating-system process.


def thespian_pingpong(params: Mapping[str, Any]) -> Sample:
    """Two actors in the `simpleSystemBase`."""
    actors: Any = importlib.import_module("thespian.actors")
    turns = min(params["turns"], 20_000)
    delivered = [0, 0]

    class Pong(actors.Actor):  # type: ignore[misc]
        def receiveMessage(self, message: Any, sender: Any) -> None:
            if message == "ball":
                delivered[0] += 1
                self.send(sender, message)

    class Ping(actors.Actor):  # type: ignore[misc]
        def receiveMessage(self, message: Any, sender: Any) -> None:
            if isinstance(message, tuple):
                self.asked_by = sender
                self.send(message[0], "ball")
            elif message == "ball":
                delivered[1] += 1
                if delivered[1] < turns:
                    self.send(sender, message)
                else:
                    self.send(self.asked_by, delivered[1])

    system = actors.ActorSystem("simpleSystemBase", transientUnique=True)
    try:
        ping, pong = system.createActor(Ping), system.createActor(Pong)
        start = time.perf_counter()
        system.ask(ping, (pong,), PATIENCE_S)
        seconds = time.perf_counter() - start
    finally:
        system.shutdown()
    expect("pingpong on Thespian", sum(delivered), 2 * turns)
    return Sample(2 * turns, seconds)


# xoscar: a call, which waits for the answer, is one message each way.


def xoscar_pingpong(params: Mapping[str, Any]) -> Sample:
    """One actor that awaits the answer of another."""
    xoscar: Any = importlib.import_module("xoscar")
    turns = min(params["turns"], 5_000)
    delivered = [0, 0]

    class Pong(xoscar.Actor):  # type: ignore[misc]
        async def ping(self, msg: Any) -> Any:
            delivered[0] += 1
            return msg

    class Ping(xoscar.Actor):  # type: ignore[misc]
        async def play(self, pong: Any) -> None:
            for _ in range(turns):
                await pong.ping("ball")
                delivered[1] += 1

    async def run() -> Sample:
        pool = await xoscar.create_actor_pool("127.0.0.1", n_process=0)
        async with pool:
            address = pool.external_address
            pong = await xoscar.create_actor(Pong, address=address, uid="pong")
            ping = await xoscar.create_actor(Ping, address=address, uid="ping")
            start = time.perf_counter()
            await ping.play(pong)
            seconds = time.perf_counter() - start
        expect("pingpong on xoscar", sum(delivered), 2 * turns)
        return Sample(2 * turns, seconds)

    return asyncio.run(run())


# lapinbeam: local actors are tasks of asyncio; the node's core runs beside them.


def lapinbeam_play(play: Callable[[Any, Any, asyncio.Event], Any]) -> Any:
    """Run `play(lapinbeam, supervisor, done)` on a node of its own."""
    lapinbeam: Any = importlib.import_module("lapinbeam")

    async def run() -> Any:
        async with lapinbeam.Node("bench@127.0.0.1:0") as node:
            return await play(lapinbeam, lapinbeam.Supervisor(node=node), asyncio.Event())

    return asyncio.run(run())


def lapinbeam_pingpong(params: Mapping[str, Any]) -> Sample:
    """Two actors."""
    turns = min(params["turns"], 20_000)
    delivered = [0, 0]
    refs: dict[str, Any] = {}

    async def play(lapinbeam: Any, supervisor: Any, done: asyncio.Event) -> Sample:
        class Pong:
            async def receive(self, msg: Any) -> None:
                delivered[0] += 1
                await refs["ping"].send(msg)

        class Ping:
            async def receive(self, msg: Any) -> None:
                delivered[1] += 1
                if delivered[1] < turns:
                    await refs["pong"].send(msg)
                else:
                    done.set()

        refs["ping"] = supervisor.spawn(lapinbeam.actor(name="ping")(Ping))
        refs["pong"] = supervisor.spawn(lapinbeam.actor(name="pong")(Pong))
        start = time.perf_counter()
        await refs["pong"].send("ball")
        await asyncio.wait_for(done.wait(), PATIENCE_S)
        seconds = time.perf_counter() - start
        expect("pingpong on lapinbeam", sum(delivered), 2 * turns)
        return Sample(2 * turns, seconds)

    sample: Sample = lapinbeam_play(play)
    return sample


# pyzmq: raw frames between two threads; it has no actors.


def zmq_pingpong(params: Mapping[str, Any]) -> Sample:
    """Two threads, a PAIR of sockets within one process, frames of 48 bytes."""
    zmq: Any = importlib.import_module("zmq")
    turns = min(params["turns"], 10_000)
    pings = 0
    pongs = 0
    with zmq.Context() as context, context.socket(zmq.PAIR) as mine:
        mine.bind("inproc://bench")

        def pong() -> None:
            nonlocal pings
            with context.socket(zmq.PAIR) as other:
                other.connect("inproc://bench")
                for _ in range(turns):
                    frame = other.recv()
                    pings += 1
                    other.send(frame)

        thread = threading.Thread(target=pong, name="rabble:bench:zmq")
        thread.start()
        start = time.perf_counter()
        for _ in range(turns):
            mine.send(FRAME)
            mine.recv()
            pongs += 1
        seconds = time.perf_counter() - start
        thread.join()
    expect("pingpong on pyzmq", pings + pongs, 2 * turns)
    return Sample(2 * turns, seconds)


#: (the column's name, the module that must be there, the workloads)
PYTHON_PEERS: tuple[tuple[str, str, Mapping[str, Workload]], ...] = (
    (
        "asyncio.Queue",
        "asyncio",
        {"pingpong": asyncio_pingpong, "ring": asyncio_ring, "count": asyncio_count},
    ),
    ("Pykka", "pykka", {"pingpong": pykka_pingpong}),
    ("Thespian", "thespian", {"pingpong": thespian_pingpong}),
    ("xoscar", "xoscar", {"pingpong": xoscar_pingpong}),
    ("lapinbeam", "lapinbeam", {"pingpong": lapinbeam_pingpong}),
    ("pyzmq", "zmq", {"pingpong": zmq_pingpong}),
)
