"""Clients that mean harm to a server, decided by bytes; and one that means well beside them.

The server is the real one: `ClientServer`, desk and receiver, an executor that is driven by hand,
and socket pairs. One of six codecs reads what the clients say; their handlers answer, ask processes
that answer, crash, keep silent or are not there, raise, say odd things and close. The clients say
the same bytes, cut at other places, go on or go away; some of them read nothing.

Each frame of the server is well-formed, and each answer is one to what its request asked. No
request ends twice, or without having been asked; and on a connection that stays, each that was
asked ends. The client that means well is answered all the time. When all have gone nothing is left:
no request in a table, no timer, no socket, no handler.
"""

from __future__ import annotations

import collections
import contextlib
import socket
import weakref
from collections.abc import Callable
from typing import Any

from rabble import CorrelationId, Envelope, Pid, Process, reply
from rabble._core.client_desk import ClientDesk
from rabble._core.client_receiver import ClientReceiver
from rabble._core.client_server import ClientServer
from rabble._core.errors import EncodeError
from rabble._core.executor import Executor
from rabble._core.poller import Poller
from rabble._core.requests import Requests
from rabble.services.gate import AdmissionQueue
from rabble.services.server_handler import (
    Answer,
    CloseConnection,
    ConnectionHandler,
    Fail,
    Push,
    RequestId,
    ServerOutput,
    ask,
)
from tests.core import sessions
from tests.fuzz.client_speech import SPEECHES, Asked, Malformed, Planned, Speech, Told, Unknown
from tests.fuzz.lying_peer import Spun
from tests.support import BARE, TINY, HandClock, Witness, bare_executor

#: Options, pieces, bounds, two bytes of what happens when, and of what the handlers do.
HEAD = 6
#: Of an input's second byte: sizes of pieces.
SIZES = (1, 2, 3, 5, 9, 40, 300, 4096)
REQUEST_MS = 1_000
NEVER_NS = 1 << 60
#: Of the first byte, besides the codec.
STAYS, READS_NOTHING, HAS_GATE = 0x10, 0x20, 0x40
PIECES_MAX = 3_000
#: In each of them one of the requests that an input asks may end by the clock, if no more go on.
ROUNDS_MAX = 5_000


class Story:
    """What came of an input. `steps`: pieces of bytes that the server was given."""

    def __init__(self) -> None:
        self.steps = 0
        self.happened: collections.Counter[str] = collections.Counter()


class Keeper(Process):
    """Answers, or keeps the request until it is told to answer all of them."""

    def __init__(self) -> None:
        self.kept: list[Envelope] = []

    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Any:
        if sender is None:
            kept, self.kept = self.kept, []
            return kept
        self.kept.append(reply(msg, sender, correlation_id))
        return None


class Answerer(Process):
    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Any:
        return None if sender is None else reply(msg, sender, correlation_id)


class Crasher(Process):
    def receive(self, msg: Any, sender: Pid | None, correlation_id: Any) -> Any:
        raise Planned("as asked")


class Gate:
    """Has no room one time in four, and notes which it has let in; some day it raises."""

    nodes: tuple[str, ...] = ()

    def __init__(self, spun: Spun) -> None:
        self.spun = spun
        self.in_flight = 0
        self.is_broken = False

    def has_room(self, now_ns: int, priority: int) -> bool:
        if self.spun.below(64) == 0:
            self.is_broken = True
            raise Planned("the gate")
        return self.spun.below(4) != 0

    def admit(self, now_ns: int, priority: int) -> int:
        raise AssertionError("the queue in front of it asks for room")

    def refuse(self, now_ns: int, priority: int) -> int:
        return 50

    def began(self, now_ns: int) -> None:
        self.in_flight += 1

    def ended(self, now_ns: int, begun_ns: int, ok: bool) -> None:
        assert begun_ns <= now_ns
        self.in_flight -= 1

    def canary_due(self, now_ns: int) -> bool:
        return self.spun.below(2) == 0

    def canary_sent(self, now_ns: int, number: int) -> None:
        pass

    def canary_back(self, now_ns: int, number: int) -> None:
        pass

    def pressure(self, now_ns: int, name: str, fraction: float) -> None:
        assert 0 <= fraction <= 1, (name, fraction)

    def next_tick(self, now_ns: int) -> int:
        return now_ns + 100_000_000

    def tick(self, now_ns: int) -> None:
        return None


class Handler(ConnectionHandler):
    """Does to each request what the story says, and notes what it was asked."""

    __slots__ = ("called", "has_begun", "is_curt", "kept", "number", "planned", "scene", "whys")

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        #: Which messages came, and whether each was a request.
        self.called: list[tuple[bool, Any]] = []
        self.kept: list[tuple[RequestId, Any]] = []
        self.whys: list[str] = []
        self.has_begun = self.is_curt = self.planned = False

    def init(self) -> ServerOutput:
        assert not self.has_begun
        self.has_begun = True
        self.number = int(self.peer)
        self.scene.clients[self.number].handler = self
        return None

    def handle_message(self, msg: Any, request: RequestId | None) -> ServerOutput:
        assert not self.whys, "asked after its end"
        self.called.append((request is not None, msg))
        tag = f"{self.number}-{len(self.called) - 1}"
        if request is None:
            return Push(self.scene.speech.value(tag, msg)) if self.scene.below(4) == 0 else None
        value = self.scene.speech.value(tag, msg)
        self.scene.requests.append(request)
        if self.number == 0:
            return Answer(request, value)
        return self.act(self.scene.action(), request, value)

    def act(self, action: int, request: RequestId, value: Any) -> ServerOutput:
        scene = self.scene
        match action:
            case 6:
                return ask(scene.answerer, value, request)
            case 7:
                return ask(scene.keeper, value, request)
            case 8:
                return ask(scene.crasher, value, request)
            case 9:
                return ask(Pid("nobody", BARE), value, request)
            case 10:
                return Envelope(scene.answerer, value, correlation_id=request)
            case 11:
                return Fail(request, "odd" * scene.below(20), "why\n " * scene.below(200))
            case 12:
                self.kept.append((request, value))
                return None
            case 13:
                kept, self.kept = self.kept, []
                return [Answer(each, said) for each, said in [*kept, (request, value)] * 2]
            case 14:
                # Of whatever connection, and whether it waits or not.
                other = scene.requests[scene.below(len(scene.requests))]
                mine = other.connection == request.connection and scene.is_mine(self, other)
                return [] if mine else [Answer(other, "not its own"), Answer(request, value)]
            case 15:
                return self.be_odd(scene.below(8), request, value)
        return Answer(request, value)

    def be_odd(self, action: int, request: RequestId, value: Any) -> ServerOutput:
        match action:
            case 0:
                self.planned = True
                raise Planned("a handler")
            case 1:
                self.is_curt = True
                return [CloseConnection("enough"), Answer(request, value)]
            case 2:
                return [Push(self.scene.speech.pushed()), Answer(request, value)]
            case 3:
                return Answer(request, object())
            case 4:
                self.planned = True
                return 7  # type: ignore[return-value]
            case 5:
                self.planned = True
                return (each for each in [Answer(request, value), 1 // 0])
            case 6:
                return ask(self.scene.keeper, value, request, timeout_ms=self.scene.below(50))
        return [Envelope(Pid("nobody", BARE), 1), Push(object()), Answer(request, value)]

    def handle_envelope(self, msg: Any, sender: Pid | None, correlation_id: Any) -> ServerOutput:
        return Answer(correlation_id, msg)

    def closed(self, reason: str) -> ServerOutput:
        assert not self.whys, "told twice of its end"
        self.whys.append(reason)
        return Envelope(self.scene.answerer, "over")


class Peer:
    """A client's end of a connection.

    :param number: 0 is the one that means well.
    """

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.sock = sock
        self.said = b""
        self.heard = b""
        self.is_over = False
        self.was_reset = False
        self.handler: Handler | None = None

    def say(self, data: bytes) -> None:
        """As much of it as the system takes."""
        with contextlib.suppress(ConnectionError, BlockingIOError):
            self.said += data[: self.sock.send(data)]

    def hear(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while not self.is_over:
                data = self.sock.recv(1 << 18)
                self.heard += data
                self.is_over = not data

    def close(self) -> None:
        self.sock.close()
        self.is_over = True


class Scene:
    """A server, and the clients that the story has."""

    def __init__(self, data: bytes, executor: Executor, clock: HandClock, witness: Witness) -> None:
        self.story = Story()
        self.options, self.choice, bounds = data[:3]
        self.palette = data[5]
        self.spun = Spun(data[3] << 16 | data[4] << 8 | data[5])
        self.body = data[HEAD:]
        self.speech: Speech = SPEECHES[(self.options & 15) % len(SPEECHES)]
        self.speech.unsaid = 0
        self.executor, self.clock, self.witness = executor, clock, witness
        self.clients: list[Peer] = []
        self.requests: list[CorrelationId] = []
        self.handlers: weakref.WeakSet[Handler] = weakref.WeakSet()
        self.gate = Gate(self.spun) if self.options & HAS_GATE else None
        self.frame_bytes_max = (64, 4_096, 4_096, 1 << 20)[bounds & 3]
        self.unsent_bytes_max = (1 << 20, 1 << 20, 3_000, 200)[bounds >> 2 & 3]
        self.ending = bounds >> 6
        self.calls = Requests(Pid("calls", BARE, "rabble"), {})
        executor.add_calls(self.calls, self.calls.deliver)
        self.poller = Poller(
            heartbeat_ms=60_000, frame_bytes_max=1 << 16, queue_bytes_max=1 << 20,
            partial_ms_max=60_000,
        )  # fmt: skip
        executor.open_sockets(self.poller)
        desk = ClientDesk(executor)
        self.closed: list[str] = []
        self.server = ClientServer(
            executor,
            self.poller,
            Pid("tcp", BARE),
            make_handler=self.make_handler,
            codec=self.speech.made.compiled(
                sessions.REGISTRY,
                message_bytes_max=self.frame_bytes_max,
                decoded_bytes_max=1 << 20,
            ),
            gate=self.gate,
            front=None if self.gate is None else AdmissionQueue(self.gate),  # type: ignore[arg-type]
            nodes=(),
            pressures=dict,
            changed=lambda changed: (),
            closed=self.closed.append,
            notify=lambda: None,
            frame_bytes_max=self.frame_bytes_max,
            unsent_bytes_max=self.unsent_bytes_max,
            idle_ns_max=NEVER_NS,
            partial_ns_max=NEVER_NS,
            stuck_ns_max=NEVER_NS,
            linger_ns_max=NEVER_NS,
            requests_per_connection_max=(128, 1, 3, 128)[bounds >> 4 & 3],
            requests_max=(1_000, 1_000, 1_000, 2)[bounds >> 4 & 3],
            request_ns_max=REQUEST_MS * 1_000_000,
            retry_ms=70,
        )
        deliver: Callable[[Envelope], None] = ClientReceiver(desk, self.server).deliver
        executor.add_callback(self.server.pid, self.delivering(deliver))
        desk.open(self.server)
        self.answerer = executor.spawn(Answerer(), "answerer")
        self.keeper = executor.spawn(Keeper(), "keeper")
        self.crasher = Pid("crasher", BARE)

    def delivering(self, deliver: Callable[[Envelope], None]) -> Callable[[Envelope], None]:
        """What is given what goes to the server's pid; a planted fault is put here."""
        return deliver

    def make_handler(self) -> Handler:
        handler = Handler(self)
        self.handlers.add(handler)
        return handler

    def below(self, count: int) -> int:
        return self.spun.below(count)

    def action(self) -> int:
        """What is done to a request: to answer it, unless the input's palette has more."""
        return self.below(16) if self.palette & 3 else (0, 6, 7, 10)[self.palette >> 2 & 3]

    def is_mine(self, handler: Handler, request: CorrelationId) -> bool:
        return handler.connection_id.connection == request.connection

    # What happens.

    def play(self) -> None:
        for number in range(2 + (self.choice >> 6 & 1)):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            if number and self.options & READS_NOTHING:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            theirs.setblocking(False)
            self.clients.append(Peer(number, theirs))
            self.server.attach(ours.detach(), str(number), f"host {number}")
        self.settle()
        streams = {peer: self.pieces(peer.number) for peer in self.clients[1:]}
        asked = 0
        while any(streams.values()):
            peer = [each for each in streams if streams[each]][
                self.below(sum(map(bool, streams.values())))
            ]
            self.story.steps += 1
            peer.say(streams[peer].popleft())
            match self.below(16):
                case 0:
                    self.clock.go_on(self.below(REQUEST_MS))
                case 1:
                    self.executor.send(self.keeper, "all")
                case 2:
                    with contextlib.suppress(Exception):
                        self.executor.spawn(Crasher(), "crasher")
                case 3 | 4 | 5:
                    self.clients[0].say(self.speech.request(asked, f"well {asked}"))
                    asked += 1
                case 6:
                    continue
            self.executor.step()
            if not self.options & READS_NOTHING:
                peer.hear()
            self.clients[0].hear()
        self.end(asked)

    def pieces(self, number: int) -> collections.deque[bytes]:
        sizes = SIZES[self.choice & 7], SIZES[(self.choice >> 3) + number & 7]
        found: collections.deque[bytes] = collections.deque()
        at = 0
        while at < len(self.body) and len(found) < PIECES_MAX:
            size = sizes[len(found) & 1]
            found.append(self.body[at : at + size])
            at += size
        return found

    def settle(self) -> None:
        """Until neither side has anything to do; the clients that read have read all."""
        quiet = 0
        while quiet < 3:
            before = self.heard(), self.executor.delivered, self.server.messages
            for _ in range(40 if TINY else 2):
                self.executor.step()
            for peer in self.clients:
                if peer.number == 0 or not self.options & READS_NOTHING:
                    peer.hear()
            now = self.heard(), self.executor.delivered, self.server.messages
            is_busy = before != now or self.executor.queue_depth or self.executor.inbox_depth
            quiet = 0 if is_busy else quiet + 1
        # The one that means well is answered at once.
        is_alone = self.server.open <= 1
        assert not is_alone or self.server.in_flight == 0, "a request outlives its connection"

    def heard(self) -> int:
        return sum(len(peer.heard) + peer.is_over for peer in self.clients)

    def end(self, asked: int) -> None:
        self.settle()
        hostile = self.clients[1:]
        if not self.options & STAYS:
            for peer in hostile:
                if self.below(4) == 0:
                    # What was not read has the other side see a reset.
                    peer.was_reset = True
                    peer.close()
                else:
                    peer.sock.shutdown(socket.SHUT_WR)
            self.settle()
        self.executor.send(self.keeper, "all")
        self.settle()
        # All that nobody will answer; and behind it perhaps more, one at a time.
        for _ in range(ROUNDS_MAX):
            before = self.server.messages
            self.clock.go_on(2 * REQUEST_MS)
            self.executor.send(self.keeper, "all")
            for peer in hostile:
                # Who has read nothing so far: so that what waits for room has its turn.
                peer.hear()
            self.settle()
            if before == self.server.messages and self.server.in_flight == 0:
                break
        assert self.server.in_flight == 0, "a request has not ended"
        assert self.calls.asks_waiting == 0, "who asked still waits"
        assert self.gate is None or self.gate.is_broken or self.gate.in_flight == 0
        total = self.server.answered + self.server.failed + self.server.refused
        requests = sum(self.check(peer) for peer in hostile)
        requests += self.check_well(asked)
        assert total >= requests, (total, requests)
        if self.ending:
            self.server.request_drain()
            self.settle()
            told = self.speech.told(self.clients[0].heard)
            assert told[-1][0] == "goodbye" and told[-1].code == "drain", told[-1]
        for peer in self.clients:
            peer.close()
        self.settle()
        assert (self.server.open, self.server.sockets, self.poller.clients) == (0, 0, 0)
        assert sorted(self.closed) == [f"host {peer.number}" for peer in self.clients]
        for peer in self.clients:
            self.check_end(peer)
            peer.handler = None
        assert not self.handlers, "a handler is held"
        assert self.executor.timers == 0
        for _, error in self.witness.errors:
            assert is_planned(error), error

    # What must hold.

    def check_well(self, asked: int) -> int:
        """The one that means well was given each answer, in order, and nothing else."""
        told = self.speech.told(self.clients[0].heard)
        refusable = self.gate is not None or self.server.refused
        numbers = []
        for each in told:
            assert each.kind == "answer" or (each.kind == "nack" and refusable), each
            numbers.append(each.id)
            if each.kind == "answer":
                _, msg = self.speech.tagged(each.value)
                number = len(numbers) - 1 if each.id is None else each.id
                assert msg == f"well {number}", (each, number)
        assert len(told) == asked, (told, asked)
        if not self.speech.is_ordered:
            # One that waited for the gate may be refused before one is answered that did not.
            ids = numbers if self.gate is None else sorted(numbers)
            assert ids == list(range(asked))
        return asked

    def check(self, peer: Peer) -> int:
        """What one that means harm was told. Returns how many requests it made for certain."""
        handler = peer.handler
        assert handler is not None
        frames, too_large = self.speech.cut(peer.said, self.frame_bytes_max)
        unread = self.options & READS_NOTHING or peer.was_reset
        told = [] if unread else self.speech.told(peer.heard)
        goodbye = told[-1].code if told and told[-1].kind == "goodbye" else None
        assert all(each.kind != "goodbye" for each in told[:-1])
        ends = [each for each in told if each.kind in ("answer", "failure", "nack")]
        asked, is_wrong = self.read(frames, None if unread else ends)
        valid = [each for each in asked if isinstance(each, Asked)]
        self.check_calls(handler, valid)
        self.check_answers(handler, told, valid)
        if self.speech.is_ordered:
            count = sum(each.id is not None for each in asked)
            assert len(ends) <= count
        else:
            most = collections.Counter(each.id for each in asked if each.id is not None)
            ended = collections.Counter(each.id for each in ends)
            assert ended <= most, (ended - most, goodbye)
            count = most.total()
        self.story.happened[goodbye or "none"] += 1
        if unread or handler.planned or handler.is_curt or self.speech.unsaid:
            return 0
        if goodbye in ("slow", "too_large"):
            # What had come by then was not begun.
            assert goodbye == "slow" or too_large
            return 0
        expected = "malformed" if is_wrong else "too_large" if too_large else None
        assert goodbye == expected, (goodbye, expected)
        refused = [each for each in ends if each.kind == "nack" or is_double(each)]
        known = sum(each.id is not None for each in valid)
        begun = sum(is_request for is_request, _ in handler.called)
        # What waited for the gate when it said something wrong was neither.
        left = known - begun - len(refused)
        assert left == 0 or (left > 0 and goodbye and self.gate), (handler.called, refused, valid)
        if goodbye is None:
            assert len(ends) == count, ("not each that was asked has ended", ends, asked)
        return len(ends)

    def read(
        self, frames: list[bytes], ends: list[Told] | None
    ) -> tuple[list[Asked | Unknown], bool]:
        """What frames ask, up to one that is none; and whether there is such a one.

        One whose message is not known here fails for itself. `ends`: how the client was told so;
        `None` if it did not listen.
        """
        soft = collections.Counter(
            each.id for each in ends or () if (each.kind, each.code) == ("failure", "malformed")
        )
        found: list[Asked | Unknown] = []
        for frame in frames:
            try:
                found.append(self.speech.read(frame))
            except Malformed as wrong:
                if wrong.id is None or (ends is not None and not soft[wrong.id]):
                    return found, True
                soft[wrong.id] -= 1
                # Not the exception, whose frames hold the handler.
                found.append(Unknown(wrong.id))
        return found, False

    def check_calls(self, handler: Handler, valid: list[Asked]) -> None:
        """The handler was given nothing else, in this order; some were refused.

        Where there is a gate those that wait for it may come later.
        """
        if self.gate is not None:
            unused = list(valid)
            for is_request, msg in handler.called:
                at = next(
                    place
                    for place, each in enumerate(unused)
                    if (each.id is not None) == is_request and self.speech.same(each.msg, msg)
                )
                del unused[at]
            return
        rest = iter(valid)
        for is_request, msg in handler.called:
            for each in rest:
                if (each.id is not None) == is_request and self.speech.same(each.msg, msg):
                    break
            else:
                raise AssertionError(f"nobody said {msg!r}")

    def check_answers(self, handler: Handler, told: list[Told], valid: list[Asked]) -> None:
        """Each is the answer to what its request asked, once."""
        used: set[str] = set()
        before = -1
        for each in told:
            if each.kind != "answer":
                continue
            tag, msg = self.speech.tagged(each.value)
            assert tag not in used, ("answered twice", each)
            used.add(tag)
            client, _, place = tag.partition("-")
            assert int(client) == handler.number, ("another one's answer", each)
            is_request, asked = handler.called[int(place)]
            assert is_request and self.speech.same(asked, msg), (each, asked)
            if self.speech.is_ordered:
                assert int(place) > before
                before = int(place)
            else:
                assert any(
                    one.id == each.id and self.speech.same(one.msg, asked) for one in valid
                ), ("an answer to another request", each)

    def check_end(self, peer: Peer) -> None:
        handler = peer.handler
        assert handler is not None
        # Who raised is told nothing more.
        assert len(handler.whys) == (not handler.planned), (handler.whys, handler.planned)


def is_double(each: Told) -> bool:
    return each.kind == "failure" and each.code == "duplicate"


def is_planned(error: BaseException) -> bool:
    if isinstance(error, Planned | ZeroDivisionError | EncodeError | UnicodeEncodeError):
        return True
    return isinstance(error, TypeError) and "it may return None" in str(error)


def play(data: bytes) -> Story:
    """Play the story of an input; an `AssertionError` is a finding."""
    if len(data) < HEAD:
        return Story()
    clock, witness = HandClock(1_000_000_000), Witness()
    with bare_executor(clock, witness) as executor:
        scene = Scene(data, executor, clock, witness)
        try:
            scene.play()
        finally:
            for peer in scene.clients:
                peer.close()
            scene.clients.clear()
            scene.server.close()
        return scene.story
