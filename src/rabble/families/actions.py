"""What a supervisor decides: children, where they stand, and what is to be done with them."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Any

from rabble._core.ids import Pid
from rabble._core.messages import DownReason
from rabble.families.children import ChildCounts, ChildError, ChildInfo, ChildSpec

if TYPE_CHECKING:
    from typing import TypeAlias

__all__ = [
    "ALIVE",
    "Action",
    "Answer",
    "Cancel",
    "Child",
    "End",
    "Finish",
    "Kill",
    "Start",
    "Started",
    "State",
    "Wait",
]


class State(enum.Enum):
    """Where a child stands."""

    #: It does not run, and nothing is about to change that.
    STOPPED = "stopped"
    #: It was started, and is not known to be up yet.
    STARTING = "starting"
    RUNNING = "running"
    #: It was told to end and has not yet.
    ENDING = "ending"
    #: It has ended by itself, which has not had its turn yet.
    ENDED = "ended"
    #: Its restart is waited for, as it ended by itself or did not start when it was to.
    WAITING = "waiting"


#: In which of them there is a process.
ALIVE = frozenset({State.STARTING, State.RUNNING, State.ENDING})


class Child:
    """A child: its spec, and where it stands."""

    __slots__ = (
        "args", "id", "is_away", "is_supervisor", "number", "pid", "restarts", "shown", "since",
        "spec", "state",
    )  # fmt: skip

    def __init__(
        self, id: str, spec: ChildSpec, args: tuple[Any, ...], pid: Pid, shown: Pid
    ) -> None:
        self.id = id
        self.spec = spec
        #: What its `start` is called with.
        self.args = args
        #: Of its process on this node: itself, or its stand-in.
        self.pid = pid
        #: Its own.
        self.shown = shown
        #: Whether it runs as its stand-in alone, since its node is not there.
        self.is_away = False
        #: Whether it is a supervisor, as far as is known: whoever starts it says so.
        self.is_supervisor = False
        self.state = State.STOPPED
        #: Grows with each start, so that what is said of an earlier one is told apart.
        self.number = 0
        #: How often in turn it was restarted.
        self.restarts = 0
        #: When it was up, in seconds.
        self.since = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Start:
    """Start this child; then say `started` or `failed`, or `down` if it ends before."""

    child: Child


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """Have this child end in order; then say `down`, or `overdue` if it takes too long."""

    child: Child
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Kill:
    """End this child at once; then say `down`."""

    child: Child


@dataclasses.dataclass(frozen=True, slots=True)
class Wait:
    """Say `due` after so many seconds, with the child's `number` of now."""

    child: Child
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class Cancel:
    """If a `Wait` for this child is not over, it is not waited for any more."""

    child: Child


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A request has come to its end."""

    ticket: Any
    answer: ChildInfo | ChildError | ChildCounts | tuple[ChildInfo, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Started:
    """All children of the beginning are up."""


@dataclasses.dataclass(frozen=True, slots=True)
class Finish:
    """No child runs any more, and the supervisor ends: for this reason."""

    reason: DownReason


Action: TypeAlias = "Start | End | Kill | Wait | Cancel | Answer | Started | Finish"
