"""Stand-ins: processes that have what is no process of this node among a supervisor's children.

A service of this node, or a process of another one, is started by whoever is asked for it there.
For its supervisor its stand-in is the child: it asks, is linked with what comes of it, ends as that
ends, and owns it, so that its own end is that of the other one, too.
"""

from __future__ import annotations

import functools
from typing import Any

from rabble._core.envelope import Envelope
from rabble._core.ids import RESERVED_GROUP, CorrelationId, Pid
from rabble._core.messages import (
    SERVICES_NAME,
    SPAWNER_NAME,
    Ask,
    DownReason,
    EndService,
    Exit,
    Failed,
    Link,
    NodeUp,
    Reply,
    RunService,
    Shutdown,
    Stop,
    SubscribeNodes,
)
from rabble.errors import NotConnected
from rabble.families.children import TIMER_MS_MAX, ChildSpec, class_of
from rabble.process import Output, Process
from rabble.registry import message
from rabble.texts import cut

__all__ = ["Note", "StandIn", "stand_in_of"]


@message(name="rabble.supervisor.Note")
class Note:
    """What a supervisor tells itself, and one that is a child the one above it."""

    #: `spawned`, `initialised`, `up`, `away`, `failed`, `look`, or `finish`.
    what: str
    #: Which child.
    id: str = ""
    #: Which start of it.
    number: int = 0
    #: Why, as text for people.
    text: str = ""


class StandIn(Process):
    """A process in the place of a child that is none of this node's.

    :param spec: what is wanted of the child.
    :param args: what it is started with.
    :param target: the pid that the child is to have.
    """

    traps_exits = True

    __slots__ = (
        "_above", "_args", "_child", "_ending", "_is_asked", "_spec", "_target"
    )  # fmt: skip

    def __init__(self, spec: ChildSpec, args: tuple[Any, ...], target: Pid) -> None:
        self._spec = spec
        self._args = args
        self._target = target
        #: Its supervisor, under which id, and which start it is.
        self._above: tuple[Pid, str, int] | None = None
        #: It was asked for, which has not been answered.
        self._is_asked = False
        #: Its pid, while it runs as far as is known.
        self._child: Pid | None = None
        #: Why it is to end.
        self._ending: str | None = None

    def receive(self, msg: Any, sender: Pid | None, correlation_id: CorrelationId | None) -> Output:
        cls = class_of(msg)
        if cls is Reply:
            return self._answered(msg.value)
        if cls is Failed:
            self._is_asked = False
            return self._failed(msg.reason)
        if cls is Exit:
            return self._exit(msg)
        if cls is Shutdown:
            self._ending = msg.reason
            if self._child is not None:
                return self._end(self._child, msg.reason)
            # Of what was asked for it is not known yet whether there is anything to end.
            return None if self._is_asked else self._stop(DownReason("shutdown", msg.reason))
        return self._told(msg, sender)

    # What differs.

    def _request(self) -> tuple[Pid, Any]:
        """Who is asked, and what."""
        raise NotImplementedError

    def _started(self) -> list[Envelope]:
        """It was started, and is linked with."""
        raise NotImplementedError

    def _end(self, child: Pid, reason: str) -> Output:
        """Have it end in order."""
        raise NotImplementedError

    def _told(self, msg: Any, sender: Pid | None) -> Output:
        return None

    def _failed(self, error: Exception) -> Output:
        """No answer comes."""
        return self._stop(DownReason("crashed", cut(str(error))))

    # What is the same.

    def _ask(self) -> list[Envelope]:
        self._is_asked = True
        to, request = self._request()
        return [Envelope(self.executor, Ask(to, request, TIMER_MS_MAX))]

    def _answered(self, answer: Any) -> Output:
        self._is_asked = False
        match answer:
            case ["spawned", Pid() as pid] if pid == self._target:
                pass
            case ["refused", str(text)]:
                return self._stop(DownReason("crashed", cut(text)))
            case _:
                return self._stop(DownReason("crashed", "what was asked for it answers nothing"))
        self._child = pid
        # It may be over already, or its link under way: this one tells in any case.
        out = [Envelope(self.executor, Link(pid)), *self._started()]
        if self._ending is not None:
            out += listed(self._end(pid, self._ending))
        return out

    def _exit(self, msg: Exit) -> Output:
        if msg.pid != self._child:
            # Of an earlier one of that name, which was not known to be over.
            return None
        if self._ending is not None:
            return self._stop(DownReason("shutdown", self._ending))
        kind, detail = msg.reason.kind, msg.reason.detail
        if msg.life and kind in DownReason.STOP_KINDS:
            return self._stop(DownReason(kind, detail))
        if kind == "shutdown":
            # No life has ended: its node has, and is left.
            kind = "disconnected"
        return self._stop(DownReason("crashed", cut(f"{kind}: {detail}" if detail else kind)))

    def _stop(self, reason: DownReason) -> Envelope:
        return Envelope(self.executor, Stop(self.pid, reason))

    def _tell(self, what: str) -> list[Envelope]:
        if self._above is None:
            return []
        above, id, number = self._above
        return [Envelope(above, Note(what, id, number))]


class ServiceStandIn(StandIn):
    """Of a service of this node."""

    __slots__ = ("_is_up",)

    def init(self) -> Output:
        self._is_up = False
        return self._ask()

    def terminate(self, reason: DownReason) -> Output:
        # Of its own accord, not by the end of its inbox: before what waits in that.
        return None if self._child is None else self._end(self._child, reason.detail)

    def _request(self) -> tuple[Pid, Any]:
        start = self._spec.start
        assert not isinstance(start, str)
        make = functools.partial(start, *self._args)
        request = RunService(make, self._target.name, self._target.group, self.pid)
        return Pid(SERVICES_NAME, self.node_id, RESERVED_GROUP), request

    def _started(self) -> list[Envelope]:
        return self._tell("up") if self._is_up else []

    def _end(self, child: Pid, reason: str) -> Output:
        services = Pid(SERVICES_NAME, self.node_id, RESERVED_GROUP)
        return Envelope(services, EndService(child, self.pid))

    def _told(self, msg: Any, sender: Pid | None) -> Output:
        if class_of(msg) is not Note or sender != self._target or msg.what != "up":
            return None
        # Which its thread may say before the answer comes.
        self._is_up = True
        return None if self._child is None else self._tell("up")


class RemoteStandIn(StandIn):
    """Of a process that another node exports: asked for whenever that is there."""

    __slots__ = ("_is_back", "_spawner")

    def init(self) -> Output:
        self._spawner = Pid(SPAWNER_NAME, self._target.node, RESERVED_GROUP)
        #: Whether its node was seen again while it was asked.
        self._is_back = False
        if self._target.node == self.node_id:
            return self._ask()
        # By the second time it has been told of all nodes that are there.
        subscribe = Envelope(self.executor, SubscribeNodes())
        return [subscribe, Envelope(self.pid, Note("look", number=1))]

    def _request(self) -> tuple[Pid, Any]:
        target = self._target
        request = ["spawn", self._spec.start, list(self._args), target.name, target.group, self.pid]
        return self._spawner, request

    def _started(self) -> list[Envelope]:
        return self._tell("up")

    def _end(self, child: Pid, reason: str) -> Output:
        return Envelope(self._spawner, ["end", child.name, child.group, self.pid, reason])

    def _failed(self, error: Exception) -> Output:
        if not isinstance(error, NotConnected):
            return super()._failed(error)
        if self._ending is not None:
            return self._stop(DownReason("shutdown", self._ending))
        if self._is_back:
            return self._look()
        return self._tell("away")

    def _told(self, msg: Any, sender: Pid | None) -> Output:
        cls = class_of(msg)
        if cls is NodeUp and msg.node == self._target.node:
            if self._is_asked:
                self._is_back = True
            elif self._child is None and self._ending is None:
                return self._look()
        elif cls is Note and msg.what == "look" and sender == self.pid:
            if msg.number:
                return Envelope(self.pid, Note("look", number=msg.number - 1))
            if not self._is_asked and self._child is None:
                return self._tell("away")
        return None

    def _look(self) -> Output:
        self._is_back = False
        return self._ask()


def listed(output: Output) -> list[Envelope]:
    if output is None:
        return []
    return [output] if isinstance(output, Envelope) else list(output)


def stand_in_of(spec: ChildSpec, args: tuple[Any, ...], target: Pid) -> StandIn:
    """A fresh one for that child."""
    made = ServiceStandIn if spec.service else RemoteStandIn
    return made(spec, args, target)
