"""`rabble.client` and `TcpServer` together, with the strategies of the gate between them."""

from __future__ import annotations

import asyncio
import collections
import datetime
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import rabble
from rabble import CallTimeout, Envelope, Node, Pid, Process
from rabble.client import (
    AsyncClient,
    Client,
    ConnectionLost,
    JsonLines,
    Nack,
    PlainLines,
    RequestFailed,
)
from rabble.services import server as servers
from rabble.services.gate import (
    CanaryGate,
    CanaryPolicy,
    GateChanged,
    GradientGate,
    GradientPolicy,
)
from rabble.services.server import (
    ConnectionHandler,
    RequestId,
    ServerLimits,
    ServerOutput,
    TcpServer,
    ask,
)
from tests.clients import Adder, Asking, adding
from tests.clients import Client as Raw
from tests.support import PATIENCE_S, Echo, until


@pytest.fixture
def node() -> Iterator[Node]:
    with rabble.rouse("served@127.0.0.1:0") as node:
        yield node


def echoing(node: Node, **options: Any) -> TcpServer:
    pid = node.spawn(Echo(), "echo")
    return TcpServer(node, lambda: Asking(pid), **options)


def test_answers_failures_and_pushes_arrive_as_what_they_are(node: Node) -> None:
    with adding(node) as server, Client(server.address) as client:
        assert client.call(40) == 40
        assert client.call(2) == 42
        client.send({"a": "push"})
        assert next(client.pushes(PATIENCE_S)) == {"a": "push"}
        for expected in ("crashed", "no_process"):
            with pytest.raises(RequestFailed) as failed:
                client.call("boom", PATIENCE_S)
            assert failed.value.code == expected


def test_values_come_back_as_they_were(node: Node) -> None:
    values = [
        (1, "two", b"three", None),
        {"at": datetime.datetime(2026, 11, 30, 12, 0, tzinfo=datetime.UTC)},
        {1, 2, 3},
        [1.5, [True, {}]],
    ]
    with echoing(node) as server, Client(server.address) as client:
        assert [client.call(value) for value in values] == values


def test_many_threads_and_tasks_each_get_their_own_answers(node: Node) -> None:
    got: list[bool] = []

    async def tasks(address: str) -> None:
        async with AsyncClient(address) as client:

            async def work(who: int) -> bool:
                return all([await client.call((who, n)) == (who, n) for n in range(20)])

            got.extend(await asyncio.gather(*(work(who) for who in range(50))))

    def thread(client: Client, who: int) -> None:
        got.append(all(client.call((who, n)) == (who, n) for n in range(50)))

    with echoing(node) as server, Client(server.address) as client:
        threads = [threading.Thread(target=thread, args=(client, who)) for who in range(8)]
        for each in threads:
            each.start()
        asyncio.run(tasks(server.address))
        for each in threads:
            each.join()
    assert got == [True] * 58


@pytest.mark.parametrize(
    ("codec", "framing", "msg"),
    [
        (servers.JsonLines, JsonLines, {"a": [1, None]}),
        (servers.PlainLines, PlainLines, "a line"),
    ],
)
def test_lines_are_spoken_by_both(node: Node, codec: Any, framing: Any, msg: Any) -> None:
    with (
        echoing(node, codec=codec) as server,
        Client(server.address, framing=framing) as client,
    ):
        assert [client.call(msg) for _ in range(3)] == [msg] * 3


def test_a_unix_socket_is_reached_by_the_address_that_the_server_says(
    node: Node, tmp_path: Path
) -> None:
    with echoing(node, bind=f"unix:{tmp_path}/api") as server:
        assert server.address == f"unix:{tmp_path}/api"
        with Client(server.address) as client:
            assert client.call("hello") == "hello"


def canary_gate() -> CanaryGate:
    return CanaryGate(CanaryPolicy(), random.Random(1).uniform)


def gradient_gate() -> GradientGate:
    return GradientGate(GradientPolicy(), random.Random(1).uniform)


@pytest.mark.parametrize("make", [canary_gate, gradient_gate])
def test_a_gate_lets_in_what_can_be_done_and_sees_it(node: Node, make: Callable[[], Any]) -> None:
    gate = make()
    with echoing(node, gate=gate) as server, Client(server.address) as client:
        assert [client.call(n) for n in range(200)] == list(range(200))
        until(lambda: gate.status().in_flight == 0)
        status = gate.status()
        assert status.admitted == 200 and status.in_flight == 0 and status.is_open


class Told(Process):
    """Keeps the changes of a gate."""

    def __init__(self) -> None:
        self.changes: list[Any] = []

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> None:
        self.changes.append(msg)


@pytest.mark.parametrize("strict", [False, True])
def test_what_a_closed_gate_refuses_has_not_begun_and_says_when_to_come_again(
    strict: bool,
) -> None:
    gate, told, adder = canary_gate(), Told(), Adder()
    with rabble.rouse("served@127.0.0.1:0", strict=strict) as node:
        pid = node.spawn(adder, "adder")
        with TcpServer(node, lambda: Asking(pid), gate=gate) as server:
            server.subscribe_gate(node.spawn(told, "told"))
            with Client(server.address) as client:
                assert client.call(1) == 1
                # A queue of the user's that is full, as the executor sees it.
                node.spawn(Pressing(gate, 1.0), "pressing")
                until(lambda: told.changes)
                with pytest.raises(Nack) as refused:
                    client.call(10)
                assert 0 < refused.value.retry_after < PATIENCE_S
                assert adder.total == 1
                node.spawn(Pressing(gate, 0.0), "relieving")
                until(lambda: len(told.changes) == 2)
                assert client.call(1) == 2
        assert all(isinstance(change, GateChanged) for change in told.changes)
        assert [change.is_open for change in told.changes] == [False, True]


class Pressing(Process):
    """Reports the pressure of a queue, in the executor's thread, as who watches one does."""

    def __init__(self, gate: CanaryGate, fraction: float) -> None:
        self.gate = gate
        self.fraction = fraction

    def init(self) -> None:
        self.gate.pressure(int(self.now * 1e9), "a queue", self.fraction)

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> None:
        pass


class Fragile(Process):
    """Answers, or crashes, or says nothing, as it is told; its successor has the same name."""

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Any:
        if msg == "crash":
            raise ValueError("as told")
        return None if msg == "nothing" else rabble.reply(msg, sender, correlation_id)


class Restarting(ConnectionHandler):
    """Asks the process, and has a new one for that if it has crashed."""

    def __init__(self, to: Pid) -> None:
        self.to = to

    def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
        if request is None:
            return Envelope(self.server, "nobody waits")
        return ask(self.to, msg, request, timeout_ms=200)

    def handle_envelope(self, msg: Any, sender: Any, correlation_id: Any, /) -> ServerOutput:
        return None


def test_each_request_ends_once_whatever_ends_meanwhile(node: Node) -> None:
    """Clients are closed at random, processes crash, say nothing, and come again."""
    ends: collections.Counter[str] = collections.Counter()
    rng = random.Random(7)
    stop = threading.Event()
    pid = node.pid("fragile")

    def keep_alive() -> None:
        while not stop.wait(0.005):
            try:
                node.spawn(Fragile(), "fragile")
            except rabble.NameTaken:
                pass

    def work(seed: int, address: str) -> None:
        chance = random.Random(seed)
        done = 0
        while done < 60:
            with Client(address) as client:
                for n in range(chance.randint(1, 15)):
                    done += 1
                    msg = chance.choice([n] * 8 + ["crash", "nothing"])
                    try:
                        value = client.call(msg, PATIENCE_S)
                        ends["answered" if value == n else "wrong"] += 1
                    except RequestFailed as failed:
                        ends[failed.code] += 1
                    except (ConnectionLost, CallTimeout, Nack) as error:
                        ends[type(error).__name__] += 1

    def cut(address: str) -> None:
        """Ask much, and go away without having read the answers."""
        for _ in range(30):
            with Client(address) as client:
                threads = [
                    threading.Thread(target=call_and_forget, args=(client, n)) for n in range(4)
                ]
                for each in threads:
                    each.start()
                stop.wait(rng.random() * 0.003)
            for each in threads:
                each.join()

    def call_and_forget(client: Client, n: int) -> None:
        try:
            client.call(n, PATIENCE_S)
            ends["answered"] += 1
        except rabble.RabbleError as error:
            ends[type(error).__name__] += 1

    node.spawn(Fragile(), "fragile")
    with TcpServer(node, lambda: Restarting(pid)) as server:
        with Client(server.address) as client:
            # Each end by itself, while nobody else makes the process crash.
            assert client.call(1, PATIENCE_S) == 1
            for msg, code in (("nothing", "timeout"), ("crash", "crashed")):
                with pytest.raises(RequestFailed) as failed:
                    client.call(msg, PATIENCE_S)
                assert failed.value.code == code
        spawner = threading.Thread(target=keep_alive)
        workers = [threading.Thread(target=work, args=(n, server.address)) for n in range(4)]
        workers.append(threading.Thread(target=cut, args=(server.address,)))
        spawner.start()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        stop.set()
        spawner.join()
        until(lambda: server.status().connections == 0)
        status = server.status()
        assert status.in_flight == 0, status
    assert not ends["wrong"] and not ends["CallTimeout"], ends
    assert ends["answered"] and ends["crashed"], ends


def test_a_last_frame_that_cannot_be_written_ends_that_connection_alone(node: Node) -> None:
    """What is answered behind it has no length, by which nothing may be divided.

    Of one client as many requests are begun as may wait, though none is answered.
    """
    most = ServerLimits().requests_per_connection_max

    def encode(out: servers.Outgoing) -> bytes:
        if out.kind == "failure":
            raise ValueError("it has no failures")
        return servers.JsonLines.encode(out)

    codec = servers.FunctionCodec(servers.JsonLines.decode, encode, servers.LineFraming())

    class Collecting(ConnectionHandler):
        def init(self) -> ServerOutput:
            self.requests: list[RequestId] = []
            return None

        def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
            assert request is not None
            if msg == "at once":
                return servers.Answer(request, msg)
            self.requests.append(request)
            if len(self.requests) < most:
                return None
            first, *others = self.requests
            return [servers.Fail(first, "x"), *(servers.Answer(each, 0) for each in others)]

    async def pipeline(address: str) -> list[Any]:
        async with AsyncClient(address, framing=JsonLines) as client:
            calls = (client.call("collected", PATIENCE_S) for _ in range(most))
            return await asyncio.gather(*calls, return_exceptions=True)

    with TcpServer(node, Collecting, codec=codec) as server:
        ends = asyncio.run(pipeline(server.address))
        assert [type(end) for end in ends] == [ConnectionLost] * most
        with Client(server.address, framing=JsonLines) as client:
            assert client.call("at once") == "at once"


def test_what_somebody_makes_up_for_a_server_does_nothing(node: Node) -> None:
    """Answers of the runtime, and envelopes for connections that have not begun."""
    pid = node.spawn(Echo(), "echo")
    with TcpServer(node, lambda: Restarting(pid)) as server:
        for tag in (None, 1, "tag", rabble.CorrelationId(server.pid, None, None)):
            node.send(server.pid, rabble.Reply(tag, 1), sender=node.pid("executor", "rabble"))
        stop = threading.Event()

        def guess() -> None:
            while not stop.is_set():
                for number in range(60):
                    cid = rabble.CorrelationId(server.pid, number)
                    node.send(server.pid, "guessed", correlation_id=cid)
                stop.wait(0.0005)

        guessing = threading.Thread(target=guess)
        guessing.start()
        try:
            for number in range(40):
                with Client(server.address) as client:
                    assert client.call(number) == number
        finally:
            stop.set()
            guessing.join()


def test_who_goes_away_leaves_nothing_that_is_waited_for(node: Node) -> None:
    """Else who asks slow processes, and goes, again and again, would take all that may wait."""
    pid = node.spawn(Fragile(), "silent")

    class Patient(ConnectionHandler):
        def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
            assert request is not None
            return ask(pid, "nothing", request)

    def waiting() -> float:
        return node.metrics().gauges["asks_waiting"]

    with TcpServer(node, Patient) as server:
        for _ in range(5):
            client = Raw(server.address)
            client.send(*([0, number, "x"] for number in range(10)))
            until(lambda: waiting() == 10)
            client.reset()
            until(lambda: waiting() == 0)
