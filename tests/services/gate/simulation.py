"""A server with one executor, its clients, and a gate between them, on a virtual clock.

The executor takes one thing after the other from one queue, requests and canaries alike. What it
can do may change in the middle; what is asked of it is given as a multiple of that. Whoever is
refused comes again when he is told to, for as long as his patience lasts. `plots.py` draws it.
"""

from __future__ import annotations

import bisect
import dataclasses
import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from rabble.services.gate import NEVER, Gate, GateChanged

__all__ = ["Outcome", "Request", "Scenario", "Simulation"]

MS = 1_000_000
S = 1_000_000_000
#: What a canary costs the executor.
CANARY_NS = 2_000
#: Who waits longer than that for an answer has no use for it.
USEFUL_S = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
    """What happens. The load is `usual` of what the server can do, but for the overload."""

    #: Seconds of the executor's work that a request takes on average, and how that varies.
    service_s: float = 0.002
    service: str = "exponential"
    usual: float = 0.5
    overload: float = 3.0
    #: When the overload begins and ends, and the simulation.
    begins_s: float = 2.0
    ends_s: float = 12.0
    until_s: float = 20.0
    #: What is left of the executor's speed from when on.
    slower: tuple[tuple[float, float], ...] = ()
    #: `open`: requests come however the others fare. `closed`: each connection pipelines so many,
    #: and sends the next one when one has ended, after a pause.
    clients: str = "open"
    connections: int = 20
    pipelined: int = 8
    #: For how long a client that is refused tries again.
    patience_s: float = 3.0
    #: `thread`: whoever comes is looked at at once. `executor`: when a turn of the executor ends.
    front: str = "thread"
    turn_s: float = 0.001
    #: When the whole process is stopped, and for how long.
    pauses: tuple[tuple[float, float], ...] = ()
    priorities: tuple[int, ...] = (0,)

    def speed(self, at_s: float) -> float:
        """How fast the executor is then, of 1."""
        place = bisect.bisect(self.slower, (at_s, float("inf")))
        return self.slower[place - 1][1] if place else 1.0

    def work_s(self, begin_s: float, end_s: float) -> float:
        """Seconds of work at full speed that it can do between two times."""
        cuts = [begin_s, *(at for at, _ in self.slower if begin_s < at < end_s), end_s]
        return sum(
            (end - begin) * self.speed(begin) for begin, end in zip(cuts, cuts[1:], strict=False)
        )


@dataclasses.dataclass(slots=True, eq=False)
class Request:
    """One of a client; it stays the same when it is tried again."""

    connection: int
    priority: int
    work_ns: int
    first_ns: int
    sent_ns: int = 0
    begun_ns: int = 0


@dataclasses.dataclass(slots=True)
class Outcome:
    """What came of it. All times are seconds."""

    #: Of each request that was answered: when, how long it took since it was last sent.
    answered: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    #: Of each refusal: when, how long that took, and what was said of when to come again.
    refused: list[tuple[float, float, float]] = dataclasses.field(default_factory=list)
    #: The priorities of those that were refused, in the same order, and of those answered.
    refused_priorities: list[int] = dataclasses.field(default_factory=list)
    answered_priorities: list[int] = dataclasses.field(default_factory=list)
    #: Clients that gave up.
    given_up: int = 0
    changes: list[tuple[float, GateChanged]] = dataclasses.field(default_factory=list)
    #: Every so often: when, requests in flight, the limit, the latency in seconds.
    samples: list[tuple[float, int, float, float]] = dataclasses.field(default_factory=list)

    def goodput(self, scenario: Scenario, begin_s: float, end_s: float) -> float:
        """Of what the server can do between two times, how much came of use to clients."""
        useful = sum(begin_s <= at < end_s and took <= USEFUL_S for at, took in self.answered)
        return useful * scenario.service_s / scenario.work_s(begin_s, end_s)

    def recovery_s(self, scenario: Scenario) -> float:
        """How long after the overload until whoever comes is served as usual.

        That is the end of the last second in which more than 10 % were refused, or answered slowly.
        """
        end_s = scenario.ends_s
        slow_s = 0.1 + 20 * scenario.service_s / scenario.speed(end_s)
        counts: dict[int, list[int]] = {}
        for at, took in [(at, 1e9) for at, _, _ in self.refused] + self.answered:
            if at >= end_s:
                count = counts.setdefault(int(at - end_s), [0, 0])
                count[took > slow_s] += 1
        late = [n for n, (well, badly) in counts.items() if badly > 0.1 * (well + badly)]
        return max(late, default=-1) + 1.0

    def latency_s(self, quantile: float, begin_s: float, end_s: float) -> float:
        """A quantile of the latencies of what was answered between two times."""
        took = sorted(took for at, took in self.answered if begin_s <= at < end_s)
        return took[int(quantile * (len(took) - 1))] if took else 0.0


class Simulation:
    """One run.

    :param gate: what decides.
    :param scenario: what happens.
    :param seed: of all chance that is not the gate's.
    """

    def __init__(self, gate: Gate, scenario: Scenario, seed: int) -> None:
        self.gate = gate
        self.scenario = scenario
        self.random = random.Random(seed)
        self.outcome = Outcome()
        self.now = 0
        self._events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        #: What waits for the executor: requests, and the numbers of canaries.
        self._queue: deque[Request | int] = deque()
        #: What came while a turn goes on, where the executor looks at it itself.
        self._came: deque[Request] = deque()
        self._is_working = False
        self._canaries = 0
        self._tick_at = NEVER
        self._pauses = [(int(at * S), int((at + length) * S)) for at, length in scenario.pauses]

    def run(self) -> Outcome:
        """Run it to its end."""
        scenario = self.scenario
        if scenario.clients == "open":
            self._arrive()
        else:
            for connection in range(scenario.connections):
                for _ in range(scenario.pipelined):
                    self._at(self.now, self._think, connection)
        self._at(0, self._sample)
        end = int(scenario.until_s * S)
        while self._events and self._events[0][0] <= end:
            at, _, what, args = heapq.heappop(self._events)
            stop = next((stop for start, stop in self._pauses if start <= at < stop), at)
            self.now = max(self.now, stop)
            what(*args)
            if not (self._is_working and scenario.front == "executor"):
                self._look_at_gate()
        return self.outcome

    def load(self, at_s: float) -> float:
        """What is asked of the server then, as a multiple of what it can do at full speed."""
        scenario = self.scenario
        if scenario.begins_s <= at_s < scenario.ends_s:
            return scenario.overload
        # Who can do less is asked for less, but for the overload.
        return scenario.usual * scenario.speed(at_s)

    def _at(self, at: int, what: Callable[..., None], *args: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (at, self._count, what, args))

    def _new(self, connection: int) -> Request:
        work_s = self.scenario.service_s
        if self.scenario.service == "exponential":
            work_s = self.random.expovariate(1 / work_s)
        elif self.scenario.service == "mixed":
            # One of ten takes nine times as long as each of the others.
            work_s *= 5.0 if self.random.random() < 0.1 else 5 / 9
        return Request(
            connection, self.random.choice(self.scenario.priorities), int(work_s * S), self.now
        )

    # The clients.

    def _arrive(self) -> None:
        """One comes, and the next one is on its way."""
        scenario = self.scenario
        per_s = self.load(self.now / S) / scenario.service_s
        self._at(self.now + int(self.random.expovariate(per_s) * S), self._arrive)
        self._send(self._new(self.random.randrange(scenario.connections)))

    def _think(self, connection: int) -> None:
        """The pause before the next one, of which there are so many that the load is as asked."""
        scenario = self.scenario
        places = scenario.connections * scenario.pipelined
        mean_s = places * scenario.service_s / self.load(self.now / S)
        pause = int(self.random.expovariate(1 / mean_s) * S)
        # Nobody sleeps through the beginning or the end of the overload.
        changes = [int(at * S) for at in (scenario.begins_s, scenario.ends_s)]
        if (change := next((c for c in changes if self.now < c < self.now + pause), None)) is None:
            self._at(self.now + pause, self._send_next, connection)
        else:
            self._at(change, self._think, connection)

    def _send_next(self, connection: int) -> None:
        self._send(self._new(connection))

    def _send(self, request: Request) -> None:
        request.sent_ns = self.now
        if self.scenario.front == "executor":
            self._came.append(request)
            self._work()
        else:
            self._handle(request)

    def _refused(self, request: Request, retry_after_ms: int) -> None:
        took = (self.now - request.sent_ns) / S
        self.outcome.refused.append((self.now / S, took, retry_after_ms / 1000))
        self.outcome.refused_priorities.append(request.priority)
        again = self.now + retry_after_ms * MS
        if again - request.first_ns <= self.scenario.patience_s * S:
            self._at(again, self._send, request)
        else:
            self.outcome.given_up += 1
            self._over(request)

    def _over(self, request: Request) -> None:
        if self.scenario.clients == "closed":
            self._think(request.connection)

    # The server.

    def _handle(self, request: Request) -> None:
        retry_after_ms = self.gate.admit(self.now, request.priority)
        if retry_after_ms:
            self._refused(request, retry_after_ms)
        else:
            self._begin(request)

    def _begin(self, request: Request) -> None:
        self.gate.began(self.now)
        request.begun_ns = self.now
        self._queue.append(request)
        self._work()

    def _answered(self, request: Request) -> None:
        self.gate.ended(self.now, request.begun_ns, True)
        self.outcome.answered.append((self.now / S, (self.now - request.sent_ns) / S))
        self.outcome.answered_priorities.append(request.priority)
        self._over(request)

    def _look_at_gate(self) -> None:
        """What a server does after whatever happened."""
        gate = self.gate
        if gate.next_tick(self.now) <= self.now:
            if (change := gate.tick(self.now)) is not None:
                self.outcome.changes.append((self.now / S, change))
            if gate.canary_due(self.now):
                self._canaries += 1
                gate.canary_sent(self.now, self._canaries)
                self._queue.append(self._canaries)
                self._work()
        due = gate.next_tick(self.now)
        assert due > self.now, "what is due has been done"
        if due < NEVER and (due < self._tick_at or self._tick_at <= self.now):
            self._tick_at = due
            self._at(due, self._nothing)

    def _nothing(self) -> None:
        """Somebody looks at the gate after each event."""

    def _work(self) -> None:
        """The executor begins, unless it is at work."""
        if not self._is_working and (self._queue or self._came):
            self._is_working = True
            self._turn()

    def _turn(self) -> None:
        """The next thing of the queue; where the executor is the front, also what has come."""
        if self.scenario.front == "executor":
            while self._came:
                self._handle(self._came.popleft())
            self._look_at_gate()
        done: list[Request | int] = []
        end = self.now
        while self._queue and (
            not done
            or (self.scenario.front == "executor" and end - self.now < self.scenario.turn_s * S)
        ):
            item = self._queue.popleft()
            done.append(item)
            work_ns = item.work_ns if isinstance(item, Request) else CANARY_NS
            end = self._end_of(end, work_ns)
            self._at(end, self._done, item)
        if done:
            self._at(end, self._turn)
        else:
            self._is_working = False

    def _end_of(self, begin: int, work_ns: int) -> int:
        """When work that begins then is done, whatever becomes of the executor's speed."""
        left, at = float(work_ns), begin
        for change in [int(change_s * S) for change_s, _ in self.scenario.slower]:
            speed = self.scenario.speed(at / S)
            if at < change < at + left / speed:
                left, at = left - (change - at) * speed, change
        return at + int(left / self.scenario.speed(at / S))

    def _done(self, item: Request | int) -> None:
        if isinstance(item, Request):
            self._answered(item)
        else:
            self.gate.canary_back(self.now, item)

    def _sample(self) -> None:
        status = self.gate.status()
        sample = (self.now / S, status.in_flight, status.limit, status.latency_us / 1e6)
        self.outcome.samples.append(sample)
        self._at(self.now + 50 * MS, self._sample)
