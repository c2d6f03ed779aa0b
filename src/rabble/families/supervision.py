"""What a supervisor decides: whom to end and to start, in which order, and when it gives up.

No I/O, no clock, no random source of its own: each event is handed in with the time, and what is
to be done is returned as actions. As in Erlang/OTP's `supervisor`, one thing is done at a time:
children are ended one after the other, the last one first, then started one after the other. What
happens meanwhile waits for its turn; only an end of the supervisor itself does not.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from rabble._core.ids import NodeId, Pid
from rabble._core.messages import DownReason
from rabble._core.texts import type_name
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
    State,
    Wait,
)
from rabble.families.children import (
    Backoff,
    ChildCounts,
    ChildError,
    ChildInfo,
    ChildSpec,
    CountChildren,
    DeleteChild,
    Restart,
    RestartChild,
    StartChild,
    Strategy,
    TerminateChild,
    WhichChildren,
    class_of,
)
from rabble.texts import cut

__all__ = ["Supervision"]

#: How a process ends that ends normally: no reason to restart a transient child.
NORMAL = frozenset({"stopped", "shutdown"})
REQUESTS = (
    CountChildren,
    DeleteChild,
    RestartChild,
    StartChild,
    TerminateChild,
    WhichChildren,
)


@dataclasses.dataclass(slots=True)
class Operation:
    """What is being done: children that are ended from the last on, and then started in order."""

    to_end: list[Child]
    #: The next one last.
    to_start: list[Child]
    #: Calls this when all is done, or a child did not start: with that child and why.
    finish: Callable[[float, Child | None, str], None]
    reason: str = "shutdown"
    #: The one that was told to end, or is being started.
    current: Child | None = None
    #: Who asked for it: answered if the supervisor ends before it is done.
    ticket: Any = None
    is_requested: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """An event that waits: a child has ended by itself, or did not start again."""

    child: Child
    number: int
    reason: DownReason | None


@dataclasses.dataclass(frozen=True, slots=True)
class Due:
    """An event that waits: a child is to be started again."""

    child: Child
    number: int


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """An event that waits."""

    msg: Any
    ticket: Any


def problem_of(msg: Any) -> str | None:
    """Why this is no request, if it is none. It may be any object, and is asked nothing."""
    cls = class_of(msg)
    if not any(cls is each for each in REQUESTS):
        return f"a supervisor does not understand {type_name(msg)}"
    if cls is StartChild:
        if msg.spec is not None and type(msg.spec) is not ChildSpec:
            return f"StartChild: spec must be a ChildSpec or None, not {type_name(msg.spec)}"
        if type(msg.args) is not tuple:
            return f"StartChild: args must be a tuple, not {type_name(msg.args)}"
    elif cls is not WhichChildren and cls is not CountChildren and type(msg.id) is not str:
        return f"{type_name(msg)}: id must be a str, not {type_name(msg.id)}"
    return None


class Supervision:
    """The children of one supervisor.

    :param pid: that of the supervisor.
    :param strategy: whom to restart with a child.
    :param specs: the children of the beginning, in the order of their start; of a simple supervisor
        the one that all children are made from.
    :param intensity: how many restarts there may be within `period_s`. One more, and it gives up.
    :param period_s: in seconds.
    :param backoff: how long to wait before a restart; `None`: not at all.
    :param uniform: draws a number between its two arguments.
    :param children_max: how many children there may be.
    :param requests_max: how many requests may wait for their turn.
    """

    def __init__(
        self,
        pid: Pid,
        strategy: Strategy,
        specs: Sequence[ChildSpec],
        *,
        intensity: int,
        period_s: float,
        backoff: Backoff | None,
        uniform: Callable[[float, float], float],
        children_max: int,
        requests_max: int,
    ) -> None:
        self._pid = pid
        self._strategy = strategy
        self._template = specs[0] if strategy is Strategy.SIMPLE_ONE_FOR_ONE else None
        self._intensity = intensity
        self._period_s = period_s
        self._backoff = backoff
        self._uniform = uniform
        self._children_max = children_max
        self._requests_max = requests_max
        #: In the order of their start.
        self.children: dict[str, Child] = {}
        #: The same by their pids.
        self.pids: dict[Pid, Child] = {}
        if self._template is None:
            for spec in specs:
                child = self._child(spec.id, spec, spec.args)
                if child.pid in self.pids:
                    raise ValueError(f"two children of {pid} would both be {child.pid}")
                self._add(child)
        #: How many children a simple supervisor has been asked for.
        self._made = 0
        #: When there were restarts, in seconds: as many as may be.
        self._restarts: deque[float] = deque(maxlen=intensity + 1)
        self._operation: Operation | None = None
        self._events: deque[Ended | Due | Request] = deque()
        self._requests = 0
        self._actions: list[Action] = []
        #: Why the supervisor ends, once it does.
        self.reason: DownReason | None = None

    def _child(self, id: str, spec: ChildSpec, args: tuple[Any, ...], suffix: str = "") -> Child:
        name = (spec.id if spec.name is None else spec.name) + suffix
        group = self._pid.group if spec.group is None else spec.group
        here = self._pid.node
        shown = Pid(name, spec.node if isinstance(spec.node, NodeId) else here, group)
        pid = shown
        if spec.has_stand_in:
            pid = Pid(f"{id} of {self._pid.name}", here, self._pid.group)
        return Child(id, spec, args, pid, shown)

    def _add(self, child: Child) -> None:
        self.children[child.id] = self.pids[child.pid] = child

    def _forget(self, child: Child) -> None:
        self.children.pop(child.id, None)
        self.pids.pop(child.pid, None)

    # Events. Each returns what is to be done.

    def begin(self, now: float) -> list[Action]:
        """The supervisor starts."""
        children = list(self.children.values())
        self._operation = Operation([], children[::-1], self._begun)
        return self._go_on(now)

    def started(self, child: Child, number: int, now: float) -> list[Action]:
        """A child is up."""
        operation = self._operation
        if child.state is State.STARTING and child.number == number:
            child.state = State.RUNNING
            child.since = now
            if operation is not None and operation.current is child:
                operation.current = None
        return self._go_on(now)

    def away(self, child: Child, number: int, now: float) -> list[Action]:
        """The node of a child is not there: it is waited for, and nobody waits with it."""
        if child.number == number and child.state in (State.STARTING, State.RUNNING):
            child.is_away = True
        return self.started(child, number, now)

    def arrived(self, child: Child, number: int, now: float) -> list[Action]:
        """A child that may have been away is up."""
        if child.number == number:
            child.is_away = False
        return self.started(child, number, now)

    def failed(self, child: Child, number: int, why: str, now: float) -> list[Action]:
        """A child could not be started: there is no process."""
        if child.number == number and child.state in ALIVE:
            self._not_alive(child, DownReason("crashed", why), now)
        return self._go_on(now)

    def down(self, child: Child, reason: DownReason, now: float) -> list[Action]:
        """A child's process has ended."""
        if child.state in ALIVE:
            self._not_alive(child, reason, now)
        return self._go_on(now)

    def due(self, child: Child, number: int, now: float) -> list[Action]:
        """A `Wait` is over."""
        self._events.append(Due(child, number))
        return self._go_on(now)

    def overdue(self, child: Child, number: int, now: float) -> list[Action]:
        """A child that was told to end has had its time for that."""
        if child.state is State.ENDING and child.number == number:
            self._actions.append(Kill(child))
        return self._go_on(now)

    def request(self, msg: Any, ticket: Any, now: float) -> list[Action]:
        """Somebody asks; `ticket` comes back in the `Answer`."""
        problem = problem_of(msg)
        if problem is not None:
            self._actions.append(Answer(ticket, ChildError(None, "not_understood", problem)))
        elif self.reason is not None:
            self._actions.append(Answer(ticket, self._ending()))
        elif self._requests >= self._requests_max:
            text = f"{self._requests} requests wait already; requests_max is {self._requests_max}"
            self._actions.append(Answer(ticket, ChildError(None, "full", text)))
        else:
            self._requests += 1
            self._events.append(Request(msg, ticket))
        return self._go_on(now)

    def end(self, reason: DownReason, now: float) -> list[Action]:
        """The supervisor is to end: all its children first, the last one first."""
        self._end(reason)
        return self._go_on(now)

    # What comes of them.

    def _go_on(self, now: float) -> list[Action]:
        """Do what can be done until a child is waited for."""
        while True:
            operation = self._operation
            if operation is None:
                if not self._events:
                    break
                self._take(self._events.popleft(), now)
            elif operation.current is not None:
                break
            elif operation.to_end:
                self._end_next(operation, operation.to_end.pop())
            elif operation.to_start:
                self._start(operation, operation.to_start.pop())
            else:
                self._operation = None
                operation.finish(now, None, "")
        actions, self._actions = self._actions, []
        return actions

    def _start(self, operation: Operation, child: Child) -> None:
        child.number += 1
        child.is_away = False
        child.state = State.STARTING
        operation.current = child
        self._actions.append(Start(child))

    def _end_next(self, operation: Operation, child: Child) -> None:
        if child.state in ALIVE:
            operation.current = child
            if child.state is not State.ENDING:
                child.state = State.ENDING
                self._actions.append(End(child, operation.reason))
        else:
            self._stopped(child)

    def _stopped(self, child: Child) -> None:
        """It does not run any more and is not to be restarted for its own sake."""
        if child.state is State.WAITING:
            self._actions.append(Cancel(child))
        child.state = State.STOPPED
        if child.spec.restart is Restart.TEMPORARY:
            self._forget(child)

    def _not_alive(self, child: Child, reason: DownReason, now: float) -> None:
        operation = self._operation
        was, waited_for = child.state, operation is not None and operation.current is child
        if was is State.ENDING or self.reason is not None:
            self._stopped(child)
        elif was is State.STARTING:
            child.state = State.STOPPED
        else:
            child.state = State.ENDED
            self._events.append(Ended(child, child.number, reason))
        if operation is not None and waited_for:
            operation.current = None
            if was is State.STARTING:
                self._operation = None
                operation.finish(now, child, reason.detail or reason.kind)

    def _take(self, event: Ended | Due | Request, now: float) -> None:
        if isinstance(event, Request):
            self._requests -= 1
            self._follow(event.msg, event.ticket)
        elif event.child.number != event.number:
            # It was ended, or started, meanwhile.
            return
        elif event.child.state not in (State.ENDED, State.WAITING):
            return
        elif isinstance(event, Due):
            self._restart(event.child)
        else:
            self._react(event.child, event.reason, now)

    def _react(self, child: Child, reason: DownReason | None, now: float) -> None:
        """A child has ended by itself, or could not be started again (`None`)."""
        is_normal = reason is not None and reason.kind in NORMAL
        if child.spec.restart is Restart.TEMPORARY or (
            child.spec.restart is Restart.TRANSIENT and is_normal
        ):
            self._stopped(child)
            if self._template is not None:
                self._forget(child)
            return
        self._restarts.append(now)
        first = self._restarts[0]
        if len(self._restarts) > self._intensity and now - first <= self._period_s:
            child.state = State.STOPPED
            why = "it did not start" if reason is None else f"{reason.kind} ({reason.detail})"
            self._give_up(
                f"more than {self._intensity} restarts within {self._period_s:g} s, the last one "
                f"would be that of the child {child.id!r}: {why}"
            )
            return
        wait = self._wait(child, reason, now)
        if wait <= 0:
            child.state = State.STOPPED
            self._restart(child)
            return
        child.state = State.WAITING
        others = [each for each in self._group(child) if each is not child]
        self._operation = Operation(
            others, [], lambda now, failed, why: self._actions.append(Wait(child, wait))
        )

    def _wait(self, child: Child, reason: DownReason | None, now: float) -> float:
        """How many seconds to wait before this restart."""
        if self._backoff is None:
            return 0.0
        if reason is not None and now - child.since >= self._backoff.most_ms / 1000:
            child.restarts = 0
        child.restarts += 1
        return self._uniform(0.0, self._backoff.ceiling_s(child.restarts))

    def _group(self, child: Child) -> list[Child]:
        """Who is restarted with a child, itself included, in the order of their start."""
        if self._strategy is Strategy.ONE_FOR_ALL:
            return list(self.children.values())
        if self._strategy is Strategy.REST_FOR_ONE:
            children = list(self.children.values())
            return children[children.index(child) :]
        return [child]

    def _restart(self, child: Child) -> None:
        group = self._group(child)
        child.state = State.STOPPED
        to_start = [each for each in group if each.spec.restart is not Restart.TEMPORARY]
        self._operation = Operation(group, to_start[::-1], self._restarted)

    def _restarted(self, now: float, failed: Child | None, why: str) -> None:
        if failed is not None:
            # Tried again when what has happened meanwhile has had its turn; and it is counted.
            failed.state = State.WAITING
            self._events.append(Ended(failed, failed.number, None))

    def _begun(self, now: float, failed: Child | None, why: str) -> None:
        if failed is None:
            self._actions.append(Started())
        else:
            self._give_up(f"the child {failed.id!r} did not start: {why}")

    def _give_up(self, why: str) -> None:
        self._end(DownReason("crashed", cut(why)))

    def _end(self, reason: DownReason) -> None:
        if self.reason is not None:
            return
        self.reason = reason
        operation, self._operation = self._operation, None
        if operation is not None and operation.is_requested:
            self._actions.append(Answer(operation.ticket, self._ending()))
        for event in self._events:
            if isinstance(event, Request):
                self._actions.append(Answer(event.ticket, self._ending()))
        self._events.clear()
        self._requests = 0
        self._operation = Operation(
            list(self.children.values()),
            [],
            lambda now, failed, why: self._actions.append(Finish(reason)),
        )

    def _ending(self) -> ChildError:
        return ChildError(None, "ending", "the supervisor ends")

    # Requests.

    def _follow(self, msg: Any, ticket: Any) -> None:
        if isinstance(msg, WhichChildren):
            self._actions.append(Answer(ticket, tuple(map(self.info, self.children.values()))))
        elif isinstance(msg, CountChildren):
            self._actions.append(Answer(ticket, self._counts()))
        elif isinstance(msg, StartChild):
            self._start_child(msg, ticket)
        else:
            child = self.children.get(msg.id)
            if child is None:
                self._actions.append(Answer(ticket, ChildError(msg.id, "not_found")))
            elif isinstance(msg, TerminateChild):
                self._terminate_child(child, ticket)
            else:
                self._change_stopped(msg, child, ticket)

    def _start_child(self, msg: StartChild, ticket: Any) -> None:
        child = self._made_for(msg)
        if isinstance(child, ChildError):
            self._actions.append(Answer(ticket, child))
            return
        self._add(child)

        def finish(now: float, failed: Child | None, why: str) -> None:
            if failed is not None:
                self._forget(child)
            self._actions.append(Answer(ticket, self._outcome(child, failed, why)))

        self._operation = Operation([], [child], finish, ticket=ticket, is_requested=True)

    def _made_for(self, msg: StartChild) -> Child | ChildError:
        """A new child, or why there can be none."""
        template, spec = self._template, msg.spec
        id = None if spec is None else spec.id
        if (spec is None) is (template is None) or (msg.args and template is None):
            text = "a simple supervisor takes args alone, and any other a spec alone"
            return ChildError(id, "not_understood", text)
        if id in self.children:
            state = self.info(self.children[id]).state
            return ChildError(id, "already_present" if state == "stopped" else state)
        if len(self.children) >= self._children_max:
            text = f"there are {len(self.children)} children; children_max is {self._children_max}"
            return ChildError(id, "full", text)
        try:
            if template is not None:
                self._made += 1
                id = f"{template.id}.{self._made}"
                child = self._child(id, template, template.args + msg.args, f".{self._made}")
            else:
                assert spec is not None
                child = self._child(spec.id, spec, spec.args)
        except ValueError as error:
            # With the number, or with the group of this supervisor, the name is too long.
            return ChildError(id, "failed", cut(str(error)))
        other = self.pids.get(child.pid)
        if other is not None:
            return ChildError(id, "failed", cut(f"{child.pid} is the child {other.id!r}"))
        return child

    def _terminate_child(self, child: Child, ticket: Any) -> None:
        def finish(now: float, failed: Child | None, why: str) -> None:
            if self._template is not None:
                self._forget(child)
            self._actions.append(Answer(ticket, self.info(child)))

        self._operation = Operation([child], [], finish, ticket=ticket, is_requested=True)

    def _change_stopped(self, msg: RestartChild | DeleteChild, child: Child, ticket: Any) -> None:
        state = self.info(child).state
        if self._template is not None:
            text = "children of a simple supervisor are started and terminated only"
            self._actions.append(Answer(ticket, ChildError(child.id, "not_understood", text)))
        elif state != "stopped":
            self._actions.append(Answer(ticket, ChildError(child.id, state)))
        elif isinstance(msg, DeleteChild):
            self._forget(child)
            self._actions.append(Answer(ticket, self.info(child)))
        else:
            self._operation = Operation(
                [],
                [child],
                lambda now, failed, why: self._actions.append(
                    Answer(ticket, self._outcome(child, failed, why))
                ),
                ticket=ticket,
                is_requested=True,
            )

    def _outcome(self, child: Child, failed: Child | None, why: str) -> ChildInfo | ChildError:
        return self.info(child) if failed is None else ChildError(child.id, "failed", cut(why))

    def info(self, child: Child) -> ChildInfo:
        """What is told of a child."""
        state = "running"
        if child.state is State.STOPPED:
            state = "stopped"
        elif child.state is State.WAITING or child.is_away:
            state = "restarting"
        return ChildInfo(child.id, child.shown, state, child.is_supervisor)

    def _counts(self) -> ChildCounts:
        children = self.children.values()
        supervisors = sum(child.is_supervisor for child in children)
        active = sum(self.info(child).state == "running" for child in children)
        specs = len(children) if self._template is None else 1
        return ChildCounts(specs, active, supervisors, len(children) - supervisors)
