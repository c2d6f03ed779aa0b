"""A request that is passed on is answered by who gets it in the end, over three nodes and back."""

from __future__ import annotations

import contextlib

import pytest

import rabble
from rabble import EncodeError, Envelope, NoProcess, NotConnected, Pid, Process
from tests.cluster.mesh import Told, rouse
from tests.support import PATIENCE_S


class Answers(Process):
    def receive(self, msg, sender, correlation_id):
        return Envelope(sender, [self.pid.name, msg, sender], correlation_id=correlation_id)


class PassesOn(Process):
    def __init__(self, to: Pid) -> None:
        self.to = to

    def receive(self, msg, sender, correlation_id):
        return Envelope(self.to, msg, sender, correlation_id)


class Asks(Process):
    """Sends what it is told to, in its own name, and hands the answer to who told it."""

    def __init__(self, to: Pid) -> None:
        self.to = to
        self.waiting: tuple[Pid, object] | None = None

    def receive(self, msg, sender, correlation_id):
        if self.waiting is None:
            self.waiting = sender, correlation_id
            return Envelope(self.to, msg, correlation_id=rabble.CorrelationId(self.pid, None, 7))
        to, of = self.waiting
        self.waiting = None
        return Envelope(to, [msg, correlation_id.request, sender], correlation_id=of)


@pytest.fixture(scope="module", params=["plain", "authenticated"])
def nodes(request):
    mesh = {"authenticate_loopback": request.param == "authenticated"}
    with contextlib.ExitStack() as stack:
        a, b, c = (stack.enter_context(rouse(name, mesh=mesh)) for name in "abc")
        told = [Told(node) for node in (a, b, c)]
        for node in (b, c):
            node.join(a.node_id.addr)
        for one, others in zip(told, ((b, c), (a, c), (a, b)), strict=True):
            one.up(*others)
        yield a, b, c
        del told


@pytest.mark.parametrize("msg", ["x", "y" * 100_000, b"z" * 300_000])
def test_the_answer_goes_to_who_asked(nodes, msg):
    a, b, c = nodes
    for number, (end, via) in enumerate(((c, b), (a, b), (b, b))):
        name = f"{len(msg)}-{number}"
        to = end.spawn(Answers(), f"end-{name}")
        through = via.spawn(PassesOn(to), f"through-{name}")
        answer = a.call(through, msg, PATIENCE_S)
        assert answer[:2] == [to.name, msg]
        assert answer[2].node == a.node_id
        asks = a.spawn(Asks(through), f"asks-{name}")
        answer, request, sender = a.call(asks, msg, PATIENCE_S)
        assert (answer, request, sender) == ([to.name, msg, asks], 7, to)


def test_it_may_be_passed_on_more_than_once(nodes):
    a, b, c = nodes
    end = a.spawn(Answers(), "last")
    third = c.spawn(PassesOn(end), "third")
    second = b.spawn(PassesOn(third), "second")
    first = c.spawn(PassesOn(second), "first")
    assert a.call(first, "round", PATIENCE_S)[:2] == ["last", "round"]


def test_who_asked_is_told_that_nobody_can_answer(nodes):
    a, b, c = nodes
    through = b.spawn(PassesOn(Pid("nobody", c.node_id)), "to-nobody")
    with pytest.raises(NoProcess):
        a.call(through, "x", PATIENCE_S)


def test_a_request_that_could_go_no_further_fails_with_the_reason(nodes):
    """And not as if who passed it on did not run."""
    a, b, _ = nodes
    nowhere = Pid("nobody", rabble.NodeId("nowhere", "127.0.0.1:1"))
    via = b.spawn(PassesOn(nowhere), "to-nowhere")
    with pytest.raises(NotConnected):
        a.call(via, "x", PATIENCE_S)

    class Unencodable(PassesOn):
        def receive(self, msg, sender, correlation_id):
            return Envelope(self.to, object(), sender, correlation_id)

    far = a.spawn(Answers(), "far")
    via = b.spawn(Unencodable(far), "unencodable")
    with pytest.raises(EncodeError):
        a.call(via, "x", PATIENCE_S)
