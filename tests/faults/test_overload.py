"""Clients ask for more than a server can do, and what stands behind it stands still.

What is refused is told so, nothing is lost in silence, and all is as before when it is over. The
short forms judge no time: the machine may be slow. The long ones do.
"""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

import rabble
from rabble import Envelope, Node, Output, Process, ServiceHandler
from rabble.bench import gate as bench
from rabble.bench.gate_side import Overload
from rabble.bench.model import percentile
from rabble.services.gate import CanaryGate, CanaryPolicy, GradientGate, GradientPolicy
from rabble.services.server import TcpServer
from tests.clients import Asking, Client, adding
from tests.faults.meshes import figures
from tests.support import PATIENCE_S, until

WORK_S = 0.1
MAILBOX_MAX = 20


@pytest.fixture
def node() -> Iterator[Node]:
    with rabble.rouse("served@127.0.0.1:0") as node:
        yield node


class Slow(Process):
    """Takes 100 ms for each message."""

    def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Output:
        time.sleep(WORK_S)
        return rabble.reply(msg, sender, correlation_id)


def canary() -> CanaryGate:
    return CanaryGate(CanaryPolicy(), random.Random(1).uniform)


def gradient() -> GradientGate:
    return GradientGate(GradientPolicy(), random.Random(1).uniform)


@pytest.mark.parametrize("make", [canary, gradient])
@pytest.mark.parametrize(
    "seconds", [pytest.param(1, id="quick"), pytest.param(20, id="long", marks=pytest.mark.soak)]
)
def test_a_process_that_takes_100_ms_for_each_message(node: Node, make: Any, seconds: int) -> None:
    """Row 92: its mailbox has a bound, canaries are slow, requests are refused; then no more."""
    gate = make()
    pid = node.spawn(Slow(), "slow", mailbox_max=MAILBOX_MAX)
    kinds = {0: 0, 1: 0, 2: 0}
    with (
        TcpServer(node, lambda: Asking(pid), gate=gate) as server,
        Client(server.address) as client,
    ):
        begun, asked = time.monotonic(), 0
        reasons: set[str] = set()

        def ask_next() -> None:
            nonlocal asked
            client.send([0, asked, asked])
            asked += 1

        # Twice as many as may wait, at any time: for each that ends another one is asked.
        for _ in range(2 * MAILBOX_MAX):
            ask_next()
        while time.monotonic() - begun < seconds or not reasons or not kinds[2] or not kinds[0]:
            kinds[client.receive()[0]] += 1
            ask_next()
            if reason := gate.status().reason:
                reasons.add(reason)
        while sum(kinds.values()) < asked:
            kinds[client.receive()[0]] += 1
        overload_s, closed = time.monotonic() - begun, time.monotonic()
        until(lambda: gate.status().is_open)
        assert client.ask(asked, asked) == [0, asked, asked]
        recovery_s = time.monotonic() - closed
        figures("100 ms a message", overload_s=overload_s, recovery_s=recovery_s)
        # Each has its end, and none of them came twice.
        assert sum(kinds.values()) == asked
        assert all(
            each.startswith(("canaries", "limit", "pressure of mailbox")) for each in reasons
        )
        # What a full mailbox turned away was told, too; nothing was lost in silence.
        assert node.executor_status().dead_letters.get("mailbox_full", 0) == kinds[1]
        if seconds > 1:
            assert recovery_s <= 2 * overload_s


class Holding(ServiceHandler):
    """Keeps the interpreter for itself, as a C function that forgets to release it."""

    def handle_envelope(self, envelope: Envelope, service: Any) -> Envelope:
        # PyDLL keeps it.
        ctypes.PyDLL(None).usleep(int(envelope.msg * 1e6))
        assert envelope.sender is not None
        return Envelope(envelope.sender, "released", correlation_id=envelope.correlation_id)


@pytest.mark.parametrize(
    "seconds", [pytest.param(0.5, id="quick"), pytest.param(5.0, id="long", marks=pytest.mark.soak)]
)
def test_a_service_holds_the_interpreter(node: Node, seconds: float) -> None:
    """Row 94, of clients: their connections stay, and the gate takes it for one pause.

    What peers see of it is in test_slow_peers.
    """
    gate = canary()
    service = node.register_service(Holding(), "holding")
    with adding(node, gate=gate) as server, Client(server.address) as client:
        assert client.ask(0, 1) == [0, 0, 1]
        # Canaries are under way.
        until(lambda: gate.status().canaries_back)
        client.send(*([0, number, 1] for number in range(1, 20)))
        assert node.call(service.pid, seconds, PATIENCE_S) == "released"
        assert [client.receive()[:2] for _ in range(1, 20)] == [[0, n] for n in range(1, 20)]
        assert client.ask(20, 0) == [0, 20, 20]
        until(lambda: gate.status().is_open)
        assert server.status().connections == 1
        assert server.status().failed == 0


@pytest.mark.parametrize("strategy", ["canary", "gradient"])
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize(
    "overload_s",
    [pytest.param(1.0, id="quick"), pytest.param(30.0, id="long", marks=pytest.mark.soak)],
)
def test_three_times_what_a_server_can_do(strategy: str, halves: bool, overload_s: float) -> None:
    """Row 95: clients in one process, the server in another one.

    The process behind it sleeps: what is judged is the gate, and not what else the machine does.
    """
    is_long = overload_s > 1
    overload = Overload(
        strategy,
        halves,
        is_busy=False,
        usual_s=2.0 if is_long else 0.2,
        overload_s=overload_s,
        settle_s=6.0 if is_long else 0.3,
    )
    seen = bench.Overloads(overload).next("test")
    assert seen.answered and seen.refused
    assert not seen.failed
    assert all(10 <= again_s * 1_000 <= 2_000 for _, _, again_s in seen.refused)
    goodput = seen.goodput_per_s(overload) / seen.possible_per_s(overload)
    refusal_ms = 1_000 * percentile(seen.refusals_s(), 99)
    late_ms = 1_000 * percentile(seen.late, 99)
    recovery_s = seen.recovery_s(overload)
    figures(
        f"three times, {strategy}",
        goodput=goodput,
        refusal_ms=refusal_ms,
        recovery_s=recovery_s,
        clients_late_ms=late_ms,
    )
    if is_long:
        assert goodput >= bench.GOODPUT_MIN
        assert recovery_s <= bench.RECOVERY_S_MAX
        # By as much as the clients' own process was held up the server's may be, too.
        assert refusal_ms <= bench.REFUSED_MS_MAX + 2 * late_ms
