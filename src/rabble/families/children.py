"""What a supervisor is told and tells of its children: values, without any behaviour."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable
from typing import Any, Protocol

from rabble._core.ids import RESERVED_GROUP, NodeId, Pid
from rabble._core.texts import bounded_repr
from rabble.process import Process
from rabble.registry import message

__all__ = [
    "Backoff",
    "ChildCounts",
    "ChildError",
    "ChildInfo",
    "ChildSpec",
    "CountChildren",
    "DeleteChild",
    "Restart",
    "RestartChild",
    "StartChild",
    "Strategy",
    "TerminateChild",
    "WhichChildren",
]

#: What a mailbox may be limited to, and a timer be set to.
MAILBOX_MAX = 2**31 - 1
TIMER_MS_MAX = 366 * 24 * 3_600_000
#: How long a child may take to end that is no process of its supervisor's node.
SHUTDOWN_MS = 5_000
#: Names are checked the same on every node.
ANY_NODE = NodeId("any", "localhost:1")


class Strategy(str, enum.Enum):
    """Whom a supervisor starts anew when a child ended that is to be restarted."""

    #: That child alone.
    ONE_FOR_ONE = "one_for_one"
    #: All children: the others are ended first, the last one first.
    ONE_FOR_ALL = "one_for_all"
    #: That child and those that were started after it, which are ended first.
    REST_FOR_ONE = "rest_for_one"
    #: That child alone; all are made from one `ChildSpec`, by `StartChild(args=...)`.
    SIMPLE_ONE_FOR_ONE = "simple_one_for_one"


class Restart(str, enum.Enum):
    """When a child is restarted."""

    #: However it ended.
    PERMANENT = "permanent"
    #: If it ended abnormally: not by `stopped` or `shutdown`.
    TRANSIENT = "transient"
    #: Never, also not with others of its supervisor; it is forgotten when it has ended.
    TEMPORARY = "temporary"


def class_of(value: object) -> type[object]:
    """The class itself: `isinstance` asks a value, which may be anybody's and say anything."""
    return type(value)


def milliseconds(value: object, what: str, least: float, most: float) -> float:
    """A number of that range. `TypeError` or `ValueError` that names `what` if it is none."""
    if type(value) is not int and type(value) is not float:
        raise TypeError(f"{what} must be a number of ms, not {bounded_repr(value, 200)}")
    if not least <= value <= most:
        raise ValueError(f"{what} must be {least:g} to {most:g}, not {bounded_repr(value, 200)}")
    return value


@dataclasses.dataclass(frozen=True, slots=True)
class Backoff:
    """How long a supervisor waits before it restarts a child: at random up to a ceiling.

    The ceiling doubles with each restart of that child in turn. A child that has then run for
    `most_ms` begins at `first_ms` again. "Full jitter": see M. Brooker, "Exponential Backoff And
    Jitter", 2015.
    """

    #: The ceiling of the first wait, milliseconds.
    first_ms: float = 100.0
    #: That of the longest.
    most_ms: float = 30_000.0

    def __post_init__(self) -> None:
        milliseconds(self.first_ms, "Backoff: first_ms", 0, TIMER_MS_MAX)
        milliseconds(self.most_ms, "Backoff: most_ms", self.first_ms, TIMER_MS_MAX)

    def ceiling_s(self, restarts: int) -> float:
        """The longest wait before the n-th restart in turn, from 1 on, in seconds."""
        return min(self.first_ms * 2.0 ** min(restarts - 1, 64), self.most_ms) / 1000


class Handler(Protocol):
    """A `ServiceHandler`, which stands above the families."""

    def handle_envelope(self, envelope: Any, service: Any, /) -> Any: ...


@dataclasses.dataclass(frozen=True, slots=True)
class ChildSpec:
    """What a supervisor has to know of a child: a process, a service, or a process elsewhere.

    :raises TypeError, ValueError: if a field is none of those allowed; it says which.
    """

    #: Names the child among those of its supervisor, and if it has no `name` the process, too.
    id: str
    #: Makes a fresh process: a class, say. Called at each start, in the executor's thread; a
    #: `Supervisor` that it makes is a supervisor below this one. With `service` it makes a
    #: `ServiceHandler`, in that service's thread. With `node` it is the name under which that node
    #: exports what makes it.
    start: Callable[..., Process] | Callable[..., Handler] | str
    #: What `start` is called with.
    args: tuple[Any, ...] = ()
    #: When it is restarted.
    restart: Restart = Restart.PERMANENT
    #: Of a child that is a supervisor, and has children to end: milliseconds that it has for that
    #: before it is stopped. 0: it is stopped at once. `math.inf`, and `None`: as long as it takes.
    #: Of a service and a process of another node the same, but `None` is 5,000; such a child is
    #: then taken to have ended. Any other child is stopped at once.
    shutdown_ms: float | None = None
    #: The name of its pid; `None`: the `id`. Of a simple supervisor a number follows.
    name: str | None = None
    #: The group of its pid; `None`: that of the supervisor.
    group: str | None = None
    #: How many envelopes may wait for it; `None` is without limit. Of a process of this node.
    mailbox_max: int | None = None
    #: Whether it is a service: a thread, which this node registers.
    service: bool = False
    #: The node that it is to run on, a `NodeId` or its text; `None`: that of the supervisor.
    node: NodeId | str | None = None

    def __post_init__(self) -> None:
        what = "ChildSpec"
        # As of a pid: what an id may be as well.
        for name in (self.id, self.id if self.name is None else self.name):
            Pid(name, ANY_NODE, self.group)
        if self.group == RESERVED_GROUP:
            raise ValueError(f"{what}: the group {self.group!r} is for the node's own services")
        if type(self.service) is not bool:
            raise TypeError(
                f"{what}: service must be a bool, not {bounded_repr(self.service, 200)}"
            )
        if self.node is not None:
            self._check_elsewhere(what)
        elif not callable(self.start):
            raise TypeError(
                f"{what}: start must be a Process class or a function that makes one, "
                f"not {bounded_repr(self.start, 200)}"
            )
        if self.mailbox_max is not None and self.has_stand_in:
            raise ValueError(f"{what}: mailbox_max is for processes of the supervisor's node")
        if type(self.args) is not tuple:
            raise TypeError(f"{what}: args must be a tuple, not {bounded_repr(self.args, 200)}")
        # Text as of a configuration will do.
        object.__setattr__(self, "restart", Restart(self.restart))
        if self.shutdown_ms is not None:
            milliseconds(self.shutdown_ms, f"{what}: shutdown_ms", 0, math.inf)
            if TIMER_MS_MAX < self.shutdown_ms < math.inf:
                raise ValueError(
                    f"{what}: shutdown_ms must be 0 to {TIMER_MS_MAX}, or inf, "
                    f"not {self.shutdown_ms!r}"
                )
        if self.mailbox_max is not None and (
            type(self.mailbox_max) is not int or not 1 <= self.mailbox_max <= MAILBOX_MAX
        ):
            raise ValueError(
                f"{what}: mailbox_max must be 1 to {MAILBOX_MAX}, or None, "
                f"not {bounded_repr(self.mailbox_max, 200)}"
            )

    def _check_elsewhere(self, what: str) -> None:
        if type(self.node) is str:
            object.__setattr__(self, "node", NodeId.parse(self.node))
        if type(self.node) is not NodeId:
            raise TypeError(
                f"{what}: node must be a NodeId or its text, not {bounded_repr(self.node, 200)}"
            )
        if self.service:
            raise ValueError(f"{what}: a service is one of the supervisor's node, so node is None")
        if type(self.start) is not str:
            raise TypeError(
                f"{what}: start must be the name under which {self.node} exports it, "
                f"not {bounded_repr(self.start, 200)}"
            )
        Pid(self.start, ANY_NODE)

    @property
    def has_stand_in(self) -> bool:
        """Whether it is no process of its supervisor's node."""
        return self.service or self.node is not None


# What a supervisor is asked. Each is answered, with what its docstring says or a `ChildError`.


@dataclasses.dataclass(frozen=True, slots=True)
class StartChild:
    """Asks a supervisor for one more child, as the last one: `ChildInfo`.

    It is answered when the child has started: when its `init` has returned, and of a supervisor
    when all of its children have.
    """

    #: Which child; of a simple supervisor `None`.
    spec: ChildSpec | None = None
    #: Of a simple supervisor: what `start` is called with behind `ChildSpec.args`.
    args: tuple[Any, ...] = ()


@message(name="rabble.TerminateChild")
class TerminateChild:
    """Asks that a child is ended and not restarted: `ChildInfo`, when it has ended.

    A temporary one is forgotten, as is one of a simple supervisor. Any other may be started again,
    by `RestartChild` or with the others of its supervisor.
    """

    #: Which child.
    id: str


@message(name="rabble.RestartChild")
class RestartChild:
    """Asks that a child which was terminated or has ended is started again: `ChildInfo`."""

    #: Which child.
    id: str


@message(name="rabble.DeleteChild")
class DeleteChild:
    """Asks that a child which was terminated or has ended is forgotten: `ChildInfo`."""

    #: Which child.
    id: str


@message(name="rabble.WhichChildren")
class WhichChildren:
    """Asks for the children: a tuple of `ChildInfo` in the order in which they are started."""


@message(name="rabble.CountChildren")
class CountChildren:
    """Asks how many children there are: `ChildCounts`."""


# What it answers.


@message(name="rabble.ChildInfo")
class ChildInfo:
    """A child as its supervisor knows it."""

    #: Which child.
    id: str
    #: Its pid, whether it runs or not.
    pid: Pid
    #: `running`; `restarting`: its restart is waited for, or its node; or `stopped`.
    state: str
    #: Whether it is a supervisor, as it was at its last start.
    is_supervisor: bool


@message(name="rabble.ChildCounts")
class ChildCounts:
    """How many children a supervisor has."""

    #: Children that it knows; of a simple supervisor 1.
    specs: int
    #: Of all of them those that run.
    active: int
    #: Of all of them the supervisors, running or not.
    supervisors: int
    #: And the others.
    workers: int


@message(name="rabble.ChildError")
class ChildError:
    """A supervisor did not do what it was asked, or did not succeed."""

    #: About which child; `None`: about none.
    id: str | None
    #: `not_found`, `already_present` (there is one of that id, which was stopped), `running`,
    #: `restarting`, `failed` (it did not start), `full`, `ending` (the supervisor), or
    #: `not_understood`.
    code: str
    #: More about it, as text for people.
    detail: str = ""
