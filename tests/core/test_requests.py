"""Which life has the request of a call: against a slow model, on random scripts.

Processes answer, pass on, crash and are stopped in any order, while other requests wait in the
queue; each call ends exactly once, in the way that the model says.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rabble import (
    CorrelationId,
    Envelope,
    NoProcess,
    Output,
    Pid,
    Process,
    ProcessCrashed,
    Stop,
)
from rabble._core.inbox import Inbox
from rabble._core.messages import DownReason
from rabble._core.requests import Requests
from rabble.calls import Calls
from tests.core.peers import Hub
from tests.support import BARE, bare_executor
from tests.support import settle as settle_all

CALLS = Pid("calls", BARE, "rabble")
NAMES = ["a", "b", "c"]


@dataclasses.dataclass
class Answer:
    cid: CorrelationId


@dataclasses.dataclass
class PassOn:
    cid: CorrelationId
    to: Pid


class Crash:
    pass


class Obeys(Process):
    """Does what it is told; a request it keeps to itself."""

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        match msg:
            case Answer(cid):
                return Envelope(cid.pid, "answer", correlation_id=cid)
            case PassOn(cid, to):
                return Envelope(to, "request", cid.pid, cid)
            case Crash():
                raise ValueError("as told")
        return None


class Ended:
    """How one call ended."""

    to: Pid
    number: int

    def __init__(self) -> None:
        self.how: str | None = None

    def set_result(self, value: Any) -> bool:
        assert value == "answer"
        return self.end(value)

    def set_exception(self, error: Exception) -> bool:
        if isinstance(error, ProcessCrashed):
            assert "ValueError: as told (crash " in str(error)
            return self.end("crashed")
        assert isinstance(error, NoProcess)
        return self.end("stopped" if "stopped before it replied" in str(error) else "nobody")

    def end(self, how: str) -> bool:
        assert self.how is None, "a call ends once"
        self.how = how
        return True


class Slow:
    """The same, short and slow: one queue, who lives under a name, and who has which request."""

    def __init__(self) -> None:
        self.queue: deque[tuple[Any, ...]] = deque()
        self.lives: dict[str, int] = {}
        self.born = 0
        self.holders: dict[int, int] = {}
        self.how: dict[int, str | None] = {}

    def spawn(self, name: str) -> None:
        self.born += 1
        self.lives[name] = self.born

    def end(self, call: int, how: str) -> None:
        if self.how[call] is None:
            self.how[call] = how

    def end_life(self, name: str, how: str) -> None:
        life = self.lives.pop(name)
        calls = [call for call, holder in self.holders.items() if holder == life]
        self.queue.append(("unanswered", life, calls, how))

    def settle(self) -> None:
        while self.queue:
            what, *fields = self.queue.popleft()
            getattr(self, what)(*fields)

    def request(self, name: str, call: int) -> None:
        if name in self.lives:
            self.holders[call] = self.lives[name]
        else:
            self.holders.pop(call, None)
            self.queue.append(("reply", call, "nobody"))

    def reply(self, call: int, how: str) -> None:
        self.end(call, how)

    def answer(self, name: str, call: int) -> None:
        if name in self.lives:
            self.queue.append(("reply", call, "answer"))

    def pass_on(self, name: str, call: int, to: str) -> None:
        if name in self.lives:
            self.queue.append(("request", to, call))

    def crash(self, name: str) -> None:
        if name in self.lives:
            self.end_life(name, "crashed")

    def stop(self, name: str) -> None:
        if name in self.lives:
            self.end_life(name, "stopped")

    def unanswered(self, life: int, calls: list[int], how: str) -> None:
        for call in calls:
            if self.holders.get(call) == life and self.how[call] is None:
                self.queue.append(("reply", call, how))
                del self.holders[call]


some_name = st.sampled_from(NAMES)
some_call = st.integers(0, 7)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("call"), some_name),
        st.tuples(st.just("answer"), some_name, some_call),
        st.tuples(st.just("pass_on"), some_name, some_call, some_name),
        st.tuples(st.just("crash"), some_name),
        st.tuples(st.just("stop"), some_name),
        st.tuples(st.just("spawn"), some_name),
        st.tuples(st.just("give_up"), some_call),
        st.tuples(st.just("settle")),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(steps)
def test_each_call_ends_once_and_as_the_slow_model_says(script: list[tuple[Any, ...]]) -> None:
    slow = Slow()
    calls = Calls(CALLS, 1_000)
    endings: list[Ended] = []
    cids: list[CorrelationId] = []
    with bare_executor() as executor:
        executor.add_calls(calls.requests, calls.deliver)

        def spawn(name: str) -> None:
            executor.spawn(Obeys(), name)
            slow.spawn(name)

        def settle() -> None:
            settle_all(executor)
            slow.settle()
            assert [each.how for each in endings] == [
                None if how == "given up" else how for how in slow.how.values()
            ]

        for name in NAMES:
            spawn(name)
        for what, *fields in script:
            pid = Pid(fields[0], BARE) if fields and fields[0] in NAMES else None
            if what == "settle":
                settle()
            elif what == "spawn":
                # A name that is in use is taken in both, or in neither: nothing waits.
                settle()
                if fields[0] not in slow.lives:
                    spawn(fields[0])
            elif what == "call":
                assert pid is not None
                endings.append(Ended())
                cids.append(calls.begin(endings[-1], pid))
                executor.send(pid, "request", sender=CALLS, correlation_id=cids[-1])
                slow.how[len(endings) - 1] = None
                slow.queue.append(("request", fields[0], len(endings) - 1))
            elif what == "crash":
                assert pid is not None
                executor.send(pid, Crash())
                slow.queue.append((what, *fields))
            elif what == "stop":
                assert pid is not None
                executor.send(executor.pid, Stop(pid))
                slow.queue.append((what, *fields))
            elif what == "give_up":
                if fields[0] < len(endings):
                    calls.give_up(cids[fields[0]])
                    slow.end(fields[0], "given up")
            elif fields[1] < len(endings):
                assert pid is not None
                cid = cids[fields[1]]
                msg = Answer(cid) if what == "answer" else PassOn(cid, Pid(fields[2], BARE))
                executor.send(pid, msg)
                slow.queue.append((what, *fields))
        settle()
        # Nothing is kept but for what waits and is with somebody.
        waiting = [call for call, how in slow.how.items() if how is None]
        assert len(calls) == len(waiting)
        assert len(calls.requests) <= len(waiting)
        for call in waiting:
            assert calls.give_up(cids[call])
        assert len(calls.requests) == 0


def test_the_request_of_a_peer_is_known_until_it_is_answered_or_its_node_goes() -> None:
    with Hub() as hub:
        peer = hub.connect()
        requests = Requests(CALLS, {})
        hub.executor.add_calls(requests, lambda envelope: None)
        asker = Pid("calls", peer.node, "rabble")
        pid = hub.executor.spawn(Obeys(), "obeys")
        cids = [CorrelationId(asker, None, n) for n in range(3)]
        for cid in cids:
            peer.send(pid, "request", asker, cid)
        hub.settle()
        assert len(requests) == 3
        hub.executor.send(pid, Answer(cids[0]))
        hub.settle()
        assert len(requests) == 2
        hub.executor.send(pid, Crash())
        hub.settle()
        assert len(requests) == 0
        assert [event[:4] for event in peer.events if event[0] == "undelivered"] == [
            ("undelivered", asker, cid, 18) for cid in cids[1:]
        ]
        assert {event[4:] for event in peer.events if event[0] == "undelivered"} == {
            (1, pid, "ValueError: as told")
        }
        pid = hub.executor.spawn(Obeys(), "obeys")
        peer.send(pid, "request", asker, cids[0])
        hub.settle()
        assert len(requests) == 1
        peer.close()
        hub.settle()
        assert len(requests) == 0


def test_of_too_many_requests_of_peers_the_first_is_forgotten() -> None:
    with Hub(peer_monitors_max=2) as hub:
        peer = hub.connect()
        requests = Requests(CALLS, {})
        hub.executor.add_calls(requests, lambda envelope: None)
        asker = Pid("calls", peer.node, "rabble")
        pid = hub.executor.spawn(Obeys(), "obeys")
        for n in range(4):
            peer.send(pid, "request", asker, CorrelationId(asker, None, n))
        hub.settle()
        hub.executor.send(pid, Crash())
        hub.settle()
        told = [event[2].request for event in peer.events if event[0] == "undelivered"]
        assert told == [2, 3] and len(requests) == 0


def test_the_requests_of_peers_and_those_of_this_node_are_bounded_apart() -> None:
    with Hub(peer_monitors_max=2) as hub:
        peer = hub.connect()
        calls, endings = Calls(Pid("calls", hub.executor.node, "rabble"), 10), [Ended(), Ended()]
        hub.executor.add_calls(calls.requests, calls.deliver)
        asker = Pid("calls", peer.node, "rabble")
        pid = hub.executor.spawn(Obeys(), "obeys")
        for ended in endings:
            cid = calls.begin(ended, pid)
            hub.executor.send(pid, "request", sender=calls.pid, correlation_id=cid)
        for n in range(4):
            peer.send(pid, "request", asker, CorrelationId(asker, None, n))
        hub.settle()
        assert len(calls.requests) == 4
        hub.executor.send(pid, Crash())
        hub.settle()
        told = [event[2].request for event in peer.events if event[0] == "undelivered"]
        assert told == [2, 3] and len(calls.requests) == 0
        assert [ended.how for ended in endings] == ["crashed", "crashed"]


def test_a_service_or_mailbox_that_is_closed_has_not_answered() -> None:
    calls, ended = Calls(CALLS, 10), Ended()
    with bare_executor() as executor:
        executor.add_calls(calls.requests, calls.deliver)
        box, inbox = Pid("box", BARE), Inbox(5)
        executor.add_inbox(box, inbox)
        cid = calls.begin(ended, box)
        executor.send(box, "request", sender=CALLS, correlation_id=cid)
        executor.step()
        assert len(inbox.take(1)) == 1
        executor.discard(box, inbox, DownReason("stopped"))
        while executor.step():
            pass
    assert ended.how == "stopped"
