"""`Supervisor`: a process that starts others, and starts them anew when they end."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from rabble._core.envelope import Envelope, reply
from rabble._core.errors import Interrupted
from rabble._core.ids import CorrelationId, Pid
from rabble._core.messages import (
    CancelTimer,
    Down,
    DownReason,
    Exit,
    Monitor,
    Shutdown,
    Spawn,
    SpawnFailed,
    StartTimer,
    Stop,
)
from rabble._core.texts import bounded_repr
from rabble.errors import SupervisorFailed
from rabble.families.actions import (
    ALIVE,
    Action,
    Answer,
    Cancel,
    Child,
    End,
    Finish,
    Kill,
    Start,
    Started,
    Wait,
)
from rabble.families.children import (
    SHUTDOWN_MS,
    Backoff,
    ChildCounts,
    ChildError,
    ChildInfo,
    ChildSpec,
    Strategy,
    class_of,
    milliseconds,
)
from rabble.families.stand_ins import Note, StandIn, stand_in_of
from rabble.families.supervision import Supervision
from rabble.process import Output, Process
from rabble.texts import cut, described

__all__ = ["Supervisor"]

#: Ranges of the bounds of a supervisor.
INTENSITY_MAX = 1_000_000
CHILDREN_MAX = 2**24
REQUESTS_MAX = 2**20
PERIOD_MS_MAX = 366 * 24 * 3_600_000

#: What nobody waits for an answer to, or is one.
ANSWERS = (ChildCounts, ChildError, ChildInfo, tuple)

#: What a note becomes when it is sent on: so what the executor has to say comes first. When
#: `spawned` comes a child's `init` is the next in the queue, or `SpawnFailed` is. At `initialised`
#: `init` has run, and if it raised, its `Exit` is the next.
HOPS = {"spawned": "initialised", "initialised": "up"}


@dataclasses.dataclass(frozen=True, slots=True)
class Alarm:
    """A timer of a supervisor: a child is to be started again, or has had its time to end."""

    is_overdue: bool
    id: str
    number: int


def made_for(child: Child) -> Process:
    """A fresh process for a child: that, or its stand-in. `TypeError` if `start` makes none."""
    spec, start = child.spec, child.spec.start
    if spec.has_stand_in or isinstance(start, str):
        return stand_in_of(spec, child.args, child.shown)
    made: object = start(*child.args)
    if not isinstance(made, Process) or not issubclass(class_of(made), Process):
        raise TypeError(f"start must make a Process, and it made {bounded_repr(made, 200)}")
    return made


class Supervisor(Process):
    """A process that starts its children, and starts them anew when they end.

    Children are processes of the same node, supervisors too. They are started in order, each when
    the one before is up, and ended in the reverse order. `StartChild`, `TerminateChild`,
    `RestartChild`, `DeleteChild`, `WhichChildren` and `CountChildren` are its requests. It ends in
    order when it is sent `Shutdown`, as at the end of its node, and abnormally when it
    restarted too often or a child of the beginning did not start; its children end first then.
    They are owned by it (`Spawn`), so none outlives it, however it ends. The end of another process
    that it is linked with ends it in order, unless that is `stopped`.

    :param children: those of the beginning, in the order of their start; of a simple supervisor the
        one that its children are made from.
    :param strategy: whom to restart with a child.
    :param intensity: how many restarts there may be within `period_ms`, 0 to 1,000,000. One more,
        and the supervisor ends its children and crashes with `SupervisorFailed`.
    :param period_ms: milliseconds.
    :param backoff: how long to wait before a restart; `None`: not at all.
    :param children_max: how many children there may be, 1 to 2**24. Of more `StartChild` is
        answered `ChildError` with the code `full`.
    :param requests_max: how many requests may wait while a child ends or starts, 1 to 2**20. More
        are answered in the same way.
    :raises TypeError, ValueError: if one of them is none of those allowed; it says which.
    """

    #: So it is told of its children's ends, and not ended by them.
    traps_exits = True

    __slots__ = (
        "_above",
        "_deadlines",
        "_given",
        "_supervision",
        "_unsure",
    )

    _supervision: Supervision

    def __init__(
        self,
        children: Iterable[ChildSpec] = (),
        *,
        strategy: Strategy | str = Strategy.ONE_FOR_ONE,
        intensity: int = 1,
        period_ms: float = 5_000,
        backoff: Backoff | None = None,
        children_max: int = 100_000,
        requests_max: int = 1_024,
    ) -> None:
        specs = tuple(children)
        for spec in specs:
            if type(spec) is not ChildSpec:
                raise TypeError(
                    f"Supervisor: children must be ChildSpecs, not {bounded_repr(spec, 200)}"
                )
        known: set[object] = set()
        for spec in specs:
            name = spec.id if spec.name is None else spec.name
            if spec.id in known or (spec.node, spec.group, name) in known:
                raise ValueError(f"Supervisor: two children have the id or name of {spec.id!r}")
            known |= {spec.id, (spec.node, spec.group, name)}
        strategy = Strategy(strategy)
        if strategy is Strategy.SIMPLE_ONE_FOR_ONE and len(specs) != 1:
            raise ValueError(
                "Supervisor: with simple_one_for_one children is the one ChildSpec that all are "
                f"made from, not {len(specs)}"
            )
        if backoff is not None and type(backoff) is not Backoff:
            raise TypeError(
                f"Supervisor: backoff must be a Backoff or None, not {bounded_repr(backoff, 200)}"
            )
        for name, value, least, most in (
            ("intensity", intensity, 0, INTENSITY_MAX),
            ("children_max", children_max, 1, CHILDREN_MAX),
            ("requests_max", requests_max, 1, REQUESTS_MAX),
        ):
            if type(value) is not int or not least <= value <= most:
                raise ValueError(
                    f"Supervisor: {name} must be {least} to {most}, not {bounded_repr(value, 200)}"
                )
        milliseconds(period_ms, "Supervisor: period_ms", 1, PERIOD_MS_MAX)
        if len(specs) > children_max:
            raise ValueError(
                f"Supervisor: {len(specs)} children are more than children_max, {children_max}"
            )
        self._given = (
            strategy, specs, intensity, period_ms, backoff, children_max, requests_max
        )  # fmt: skip
        #: Who started this one: a supervisor, under which id, and which start it is.
        self._above: tuple[Pid, str, int] | None = None
        #: The ids of children that are told to end by a time.
        self._deadlines: set[str] = set()
        #: The ids of children of which it is not known yet whether there is a process, each with
        #: the reason to end it for as soon as that is known.
        self._unsure: dict[str, str | None] = {}

    def init(self) -> Output:
        strategy, specs, intensity, period_ms, backoff, children_max, requests_max = self._given
        self._supervision = Supervision(
            self.pid,
            strategy,
            specs,
            intensity=intensity,
            period_s=period_ms / 1000,
            backoff=backoff,
            uniform=self.random.uniform,
            children_max=children_max,
            requests_max=requests_max,
        )
        out = self._act(self._supervision.begin(self.now))
        if self._above is None:
            # Whoever is the highest is told when the node ends, and ends those below it.
            out.append(Envelope(self.executor, Monitor(self.executor)))
        return out

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        supervision = self._supervision
        cls = class_of(msg)
        if cls is Exit:
            return self._exit(msg)
        if cls is Note:
            return self._note(msg, sender)
        if cls is SpawnFailed:
            return self._spawn_failed(msg)
        if cls is Alarm:
            child = supervision.children.get(msg.id)
            if child is None:
                return None
            if msg.is_overdue:
                return self._act(supervision.overdue(child, msg.number, self.now))
            return self._act(supervision.due(child, msg.number, self.now))
        if cls is Down:
            # Of what a subclass monitors. It is the executor's word, and asks nothing.
            return None
        if cls is Shutdown:
            return self._act(supervision.end(DownReason("shutdown", msg.reason), self.now))
        if any(cls is each for each in ANSWERS):
            # Two supervisors, or one and an echo, must not answer each other for ever.
            text = "that is an answer of a supervisor, which asks nothing"
            return reply(ChildError(None, "not_understood", text), None, correlation_id)
        return self._act(supervision.request(msg, (sender, correlation_id), self.now))

    def terminate(self, reason: DownReason) -> Output:
        # It was stopped, or its node has no more time: its children go with it.
        children = reversed(self._supervision.children.values())
        return [self._stop(child, reason.detail) for child in children if child.state in ALIVE]

    def _exit(self, msg: Exit) -> Output:
        pid, reason = msg.pid, msg.reason
        child = self._supervision.pids.get(pid)
        if child is None:
            return self._end_with(pid, reason)
        # no_process: somebody asked for another link with it.
        if reason.kind == "no_process":
            return None
        self._unsure.pop(child.id, None)
        out = self._act(self._supervision.down(child, reason, self.now))
        if child.id in self._deadlines:
            self._deadlines.discard(child.id)
            out.append(Envelope(self.executor, CancelTimer(("overdue", child.id))))
        return out

    def _end_with(self, pid: Pid, reason: DownReason) -> Output:
        """Somebody else has ended that it is linked with: as if it did not trap exits."""
        if reason.kind == "stopped":
            return None
        if reason.kind != "shutdown":
            reason = DownReason("crashed", cut(f"linked with {pid}: {reason.kind} {reason.detail}"))
        return self._act(self._supervision.end(reason, self.now))

    def _spawn_failed(self, msg: SpawnFailed) -> Output:
        # Whoever has that name is none of this supervisor's, and not linked with it.
        child = self._supervision.pids.get(msg.pid)
        if child is None or child.id not in self._unsure:
            return None
        return self._failed(child, msg.reason)

    def _failed(self, child: Child, text: str) -> Output:
        """It is known that there is no process of a child."""
        self._unsure.pop(child.id, None)
        return self._act(self._supervision.failed(child, child.number, text, self.now))

    def _note(self, msg: Note, sender: Pid | None) -> Output:
        supervision = self._supervision
        if msg.what == "finish" and sender == self.pid and supervision.reason is not None:
            raise SupervisorFailed(supervision.reason.detail)
        child = supervision.children.get(msg.id)
        if child is None or child.number != msg.number or sender not in (self.pid, child.pid):
            return None
        if msg.what == "up":
            return self._act(supervision.arrived(child, msg.number, self.now))
        if msg.what == "away":
            return self._act(supervision.away(child, msg.number, self.now))
        if msg.what == "failed":
            return self._failed(child, msg.text)
        out: list[Envelope] = []
        if msg.what == "initialised":
            reason = self._unsure.pop(child.id, None)
            if reason is not None:
                self._end(child, reason, out)
            if child.is_supervisor or child.spec.has_stand_in:
                # It says itself when it is up.
                return out
        out.append(Envelope(self.pid, Note(HOPS[msg.what], msg.id, msg.number, msg.text)))
        return out

    def _act(self, actions: Iterable[Action]) -> list[Envelope]:
        """Turn what was decided into what is sent."""
        out: list[Envelope] = []
        for action in actions:
            if isinstance(action, Start):
                self._start(action.child, out)
            elif isinstance(action, End):
                self._end(action.child, action.reason, out)
            elif isinstance(action, Kill):
                out.append(self._stop(action.child, "it did not end in time"))
            elif isinstance(action, Wait):
                child = action.child
                alarm = Alarm(False, child.id, child.number)
                timer = StartTimer(("due", child.id), action.seconds * 1000, alarm)
                out.append(Envelope(self.executor, timer))
            elif isinstance(action, Cancel):
                out.append(Envelope(self.executor, CancelTimer(("due", action.child.id))))
            elif isinstance(action, Answer):
                sender, correlation_id = action.ticket
                out.append(reply(action.answer, sender, correlation_id))
            elif isinstance(action, Started):
                if self._above is not None:
                    above, id, number = self._above
                    out.append(Envelope(above, Note("up", id, number)))
            else:
                out.append(self._finish(action))
        return out

    def _start(self, child: Child, out: list[Envelope]) -> None:
        self._unsure[child.id] = None
        try:
            process = made_for(child)
            if isinstance(process, Supervisor) and hasattr(process, "_supervision"):
                raise ValueError("start must make a new Supervisor, and this one has run before")
        except Interrupted:
            raise
        except BaseException as error:
            # Whatever it raises is its failure, not that of the supervisor. Without the traceback,
            # which would hold what was made so far.
            text = cut(described(BaseException.with_traceback(error, None)))
            out.append(Envelope(self.pid, Note("failed", child.id, child.number, text)))
            return
        spec, pid = child.spec, child.pid
        child.is_supervisor = isinstance(process, Supervisor)
        spawn = Spawn(process, pid.name, pid.group, spec.mailbox_max, owned=True)
        out.append(Envelope(self.executor, spawn))
        if isinstance(process, Supervisor | StandIn):
            # So it tells this one when it is up, and is ended by it.
            process._above = (self.pid, child.id, child.number)
        out.append(Envelope(self.pid, Note("spawned", child.id, child.number)))

    def _end(self, child: Child, reason: str, out: list[Envelope]) -> None:
        if child.id in self._unsure:
            # The name may be that of somebody else.
            self._unsure[child.id] = reason
            return
        shutdown_ms = child.spec.shutdown_ms
        if child.spec.has_stand_in and shutdown_ms is None:
            shutdown_ms = SHUTDOWN_MS
        if shutdown_ms == 0 or not (child.is_supervisor or child.spec.has_stand_in):
            out.append(self._stop(child, reason))
            return
        out.append(Envelope(child.pid, Shutdown(reason)))
        if shutdown_ms is not None and shutdown_ms < math.inf:
            self._deadlines.add(child.id)
            alarm = Alarm(True, child.id, child.number)
            timer = StartTimer(("overdue", child.id), shutdown_ms, alarm)
            out.append(Envelope(self.executor, timer))

    def _stop(self, child: Child, reason: str) -> Envelope:
        return Envelope(self.executor, Stop(child.pid, DownReason("shutdown", reason)))

    def _finish(self, action: Finish) -> Envelope:
        if action.reason.kind in ("stopped", "shutdown"):
            return Envelope(self.executor, Stop(self.pid, action.reason))
        # Raised alone: with an exception all that was to be sent besides is lost.
        return Envelope(self.pid, Note("finish"))
