"""Names and envelopes against the frozen dataclasses that one would write instead."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, NodeId, Pid

NODE = NodeId("local", "127.0.0.1:4000")
COUNTER, CLIENT = Pid("counter", NODE), Pid("client", NODE)


@dataclasses.dataclass(frozen=True, slots=True)
class PlainPid:
    name: str
    node: Any
    group: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class PlainEnvelope:
    to: Any
    msg: Any
    sender: Any = None
    correlation_id: Any = None


@pytest.mark.parametrize("cls", [Envelope, PlainEnvelope])
def test_make_an_envelope(benchmark, cls):
    benchmark.group = "make an envelope"
    assert benchmark(cls, COUNTER, 1, CLIENT).msg == 1


@pytest.mark.parametrize("cls", [Pid, PlainPid])
def test_make_a_pid(benchmark, cls):
    """Checking the name is part of it, for a `Pid`."""
    benchmark.group = "make a pid"
    assert benchmark(cls, "counter", NODE).name == "counter"


@pytest.mark.parametrize("cls", [Pid, PlainPid])
@pytest.mark.parametrize("same", [True, False], ids=["the same object", "an equal one"])
def test_look_a_pid_up(benchmark, cls, same):
    benchmark.group = f"look a pid up in a dict, by {'the same object' if same else 'an equal one'}"
    pids = [cls(f"process-{n}", NODE) for n in range(1_000)]
    table = {pid: n for n, pid in enumerate(pids)}
    wanted = pids if same else [cls(pid.name, NODE) for pid in pids]

    def all_of_them():
        for pid in wanted:
            table[pid]

    benchmark(all_of_them)


def test_parse_a_pid(benchmark):
    benchmark.group = "parse"
    assert benchmark(Pid.parse, "tenant::counter::local@127.0.0.1:4000").group == "tenant"


def test_next_request(benchmark):
    benchmark.group = "next request"
    first = CorrelationId(COUNTER, request=1)
    assert benchmark(first.next_request).request == 2


def test_pickle(benchmark):
    benchmark.group = "pickle and back"
    envelope = Envelope(COUNTER, 1, CLIENT)
    assert benchmark(lambda: pickle.loads(pickle.dumps(envelope))) == envelope
