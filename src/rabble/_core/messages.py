"""The messages that the core builds or handles: what processes ask of their executor, and are told.

They never leave their node, so they are plain dataclasses that no registry knows. `rabble.messages`
shows them to users, together with those that the layers above build.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Hashable, Mapping
from typing import Any, ClassVar, Protocol

from rabble._core.ask import Ask, Reply
from rabble._core.envelope import Envelope
from rabble._core.errors import RabbleError
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._core.texts import bounded_repr

__all__ = [
    "Ask",
    "Bounced",
    "CallFailed",
    "CancelTimer",
    "DeadLetter",
    "DeadLetterReason",
    "Demonitor",
    "Down",
    "DownReason",
    "Drain",
    "Drained",
    "Exit",
    "Failed",
    "GetMetrics",
    "Link",
    "Lost",
    "Monitor",
    "NodeDown",
    "NodeUp",
    "Reply",
    "Shutdown",
    "Spawn",
    "SpawnFailed",
    "StartTimer",
    "Stop",
    "SubscribeDeadLetters",
    "SubscribeNodes",
    "Tick",
    "Timeout",
    "TimerCancelled",
    "Unlink",
]


class Receiver(Protocol):
    """A `Process`, which is above the core, as far as a message tells of it."""

    def receive(self, msg: Any, sender: Any, correlation_id: Any, /) -> Any: ...


# What a process asks of its executor. `Envelope(self.executor, StartTimer(...))`.


@dataclasses.dataclass(frozen=True, slots=True)
class StartTimer:
    """Asks for a `Timeout` or, with `msg` or `repeat`, for a message to oneself.

    A running timer of the same key is replaced.
    """

    #: Names the timer. A `CorrelationId`, which comes back in the `Timeout`, and as the correlation
    #: id of its envelope; of a timer with `msg` or `repeat` any hashable key but `None`.
    correlation_id: Hashable
    #: Milliseconds, 0 to 366 days; to be repeated, 1 ms or more. The timer never fires early.
    delay_ms: int | float
    #: Delivered instead of the `Timeout`, or as `Tick.msg`; the object itself. `None`: there is
    #: none.
    msg: Any = None
    #: Whether to fire again and again, as a `Tick` each time. The n-th firing is due n times
    #: `delay_ms` after the start, however late those before it came.
    repeat: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class CancelTimer:
    """Asks that a timer of one's own does not fire."""

    #: Which timer: its key.
    correlation_id: Hashable
    #: Whether to answer with `TimerCancelled`; after that nothing of it comes any more.
    acknowledge: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Spawn:
    """Asks for a process. The answer comes only if it fails: `SpawnFailed`.

    With `link`, `monitor` or `owned` it is linked, monitored or owned from its first moment on, and
    one that could not be spawned is not. A process that has ended before its `Spawn` with `link` or
    `owned` was handled is not outlived: nothing is spawned then.
    """

    #: A fresh instance; from now on it belongs to the node.
    process: Receiver
    #: Its name, unique within its group.
    name: str
    #: The tenant it belongs to.
    group: str | None = None
    #: How many envelopes may wait for it; `None` is without limit.
    mailbox_max: int | None = None
    #: Whether to link who asks with it, as `Link` does.
    link: bool = False
    #: Whether who asks monitors it, as `Monitor` does.
    monitor: bool = False
    #: Whether it may not outlive who asks: a link that ends it, in order, whatever the reason,
    #: `stopped` too, and also if it traps exits. It crashes if it asks for an `Unlink` of its
    #: owner; one that its owner asks for lets it go.
    owned: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Stop:
    """Asks that a process or service of this node ends. Nothing happens if there is none."""

    #: The one to end. A pid of another node is refused: it ends the process that asked.
    pid: Pid
    #: What its monitors are told; by default `DownReason("stopped")`. Of kind `stopped`, `crashed`
    #: or `shutdown`: the others are for the runtime to say.
    reason: DownReason | None = None

    def __post_init__(self) -> None:
        if self.reason is not None and type(self.reason) is not DownReason:
            raise TypeError(
                f"Stop: reason must be a DownReason or None, not {bounded_repr(self.reason, 200)}"
            )
        if self.reason is not None and self.reason.kind not in DownReason.STOP_KINDS:
            raise ValueError(
                f"Stop: the kind of the reason must be one of {', '.join(DownReason.STOP_KINDS)}, "
                f"not {self.reason.kind!r}"
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Monitor:
    """Asks for a `Down` when that process ends; at once if there is none."""

    #: The process to monitor.
    pid: Pid


@dataclasses.dataclass(frozen=True, slots=True)
class Demonitor:
    """Takes a `Monitor` back."""

    #: The process to monitor no longer.
    pid: Pid


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """Links the process that asks with another one: of this node or another.

    A link ties two lives, whichever of them asked, and a second one of the same two is the same
    link. When one of them ends for any reason but `stopped`, so does the other one, in order and
    with that reason: its `terminate` is called, and its own links pass it on. One whose class has
    `traps_exits` is sent an `Exit` instead, whatever the reason, unless it is owned (`Spawn`).
    Where there is nobody to be linked with, who asked is ended so, or told: `no_process`,
    `disconnected` or `refused`.

    A service is not ended: it is sent an `Exit` if it was the one that asked. To be linked with
    oneself is nothing.
    """

    #: The one to be linked with. The runtime's own pids are refused: that ends who asked.
    pid: Pid


@dataclasses.dataclass(frozen=True, slots=True)
class Unlink:
    """Ends a link, whoever of the two asked for it.

    What is sent to oneself behind it comes when that is done: nothing of the link follows then, not
    even if the other process has ended before.
    """

    #: The one to be linked with no longer.
    pid: Pid


@dataclasses.dataclass(frozen=True, slots=True)
class SubscribeNodes:
    """Asks to be told of nodes: `NodeUp`, `NodeDown`, `NodeStalled`, `Removed`.

    Of each node that is connected already a `NodeUp` comes at once.
    """

    #: False asks for no more.
    wanted: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class SubscribeDeadLetters:
    """Asks to be told of every dead letter of this node: `DeadLetter`, `Bounced`, `Lost`.

    Of those from when the executor has come to it. What strict mode or a full mailbox refuses is
    refused when it is taken in, which may be sooner.
    """

    #: False asks for no more.
    wanted: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Drain:
    """Asks for a `Drained` once most of what waits for a peer has gone; at once if little waits.

    What the process sent before is counted. A `Drain` while one for that node waits is the same.
    """

    #: To which what waits is to go.
    node: NodeId


class Produce:
    """What a thread or a coroutine hands over, to be sent when there is room: see `producers`."""

    __slots__ = ("envelope", "tokens")

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        #: Who takes it out decides: the executor, that it is sent now; its producer, that it is
        #: not. `list.pop` is atomic.
        self.tokens: list[None] = [None]


@dataclasses.dataclass(frozen=True, slots=True)
class GetMetrics:
    """Asks for `Metrics`."""


# What a process is told.


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """No answer to an `Ask` comes."""

    #: The one of the `Ask`.
    tag: Any
    #: Why: the error that `Node.call` would raise. `CallTimeout`, `ProcessCrashed` (with the text
    #: and the number of the crash), `NoProcess`, `QueueFull`, `EncodeError`, `DecodeError`,
    #: `NotConnected` or `NodeStopped`.
    reason: RabbleError


@dataclasses.dataclass(frozen=True, slots=True)
class Drained:
    """Less than a quarter of what may wait for a peer does, or nothing goes there any more."""

    #: The one of the `Drain`.
    node: NodeId
    #: Whether a connection leads there. False if none did, if it ended, or as this node ends.
    connected: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Timeout:
    """A timer has fired."""

    #: The one that `StartTimer` was given.
    correlation_id: CorrelationId


@dataclasses.dataclass(frozen=True, slots=True)
class Tick:
    """A timer that repeats has fired."""

    #: Its key: `StartTimer.correlation_id`.
    key: Any
    #: The message that `StartTimer` was given, or `None`.
    msg: Any = None
    #: How many firings before this one, and after the last, came to nothing: this one stands for
    #: them, as their time was over before the process had its turn.
    missed: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class TimerCancelled:
    """The answer to an acknowledged `CancelTimer`; nothing of that timer follows."""

    #: Which timer: its key.
    correlation_id: Any
    #: Whether it was running; if not, it had fired already or was never started.
    was_active: bool


@dataclasses.dataclass(frozen=True, slots=True)
class SpawnFailed:
    """The answer to a `Spawn` that could not be done."""

    #: The pid that the process would have had.
    pid: Pid
    #: Why, as text for people.
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class DownReason:
    """Why a process ended."""

    #: The kinds there are.
    KINDS: ClassVar[tuple[str, ...]] = (
        "stopped",
        "crashed",
        "no_process",
        "shutdown",
        "disconnected",
        "refused",
        "linked",
    )
    #: Those that a `Stop` may give.
    STOP_KINDS: ClassVar[tuple[str, ...]] = ("stopped", "crashed", "shutdown")

    #: `stopped`, `crashed`, `no_process` (it did not run when it was to be monitored), `shutdown`,
    #: `disconnected` (its node cannot be reached; it may live), `refused` (its node lets itself be
    #: monitored or linked with no further; it lives), or `linked` (another process that it was
    #: linked with, by however many links, ended it by its own end, or could not be reached).
    kind: str
    #: More about it, as text for people: of a crash the exception, of `linked` whose end it was.
    detail: str = ""

    def __post_init__(self) -> None:
        if type(self.kind) is not str or self.kind not in DownReason.KINDS:
            raise ValueError(
                f"DownReason: kind must be one of {', '.join(DownReason.KINDS)}, "
                f"not {bounded_repr(self.kind, 200)}"
            )
        if type(self.detail) is not str:
            raise TypeError(
                f"DownReason: detail must be a str, not {bounded_repr(self.detail, 200)}"
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Down:
    """A monitored process ended.

    Comes once for each `Monitor`, after the last message of the life that ended and before the
    first one of the next life of that name.
    """

    #: Which process.
    pid: Pid
    #: Why.
    reason: DownReason
    #: Which life of that name: its number is unique among all starts of processes and services of
    #: one start of its node. 0 where none ended: `no_process`, `refused`, `disconnected`. Two
    #: that differ in nothing else are equal.
    life: int = dataclasses.field(default=0, compare=False)


def is_guest(node: NodeId) -> bool:
    """Whether a node of a mesh is a guest: the port of its address is 0, where nobody can dial it.

    The handshake sees to it that this is so of guests, and of nobody else. Of a node by itself the
    port says nothing.
    """
    # Of most others the last digit says so.
    addr = node.addr
    return addr.endswith(("0", ":")) and addr.rpartition(":")[2].strip("0") == ""


@dataclasses.dataclass(frozen=True, slots=True)
class Exit:
    """A linked process ended, or there was none: for processes that trap exits.

    Comes as a `Down` does: once for each link, after the last message of the life that ended and
    before the first one of the next life of that name. The link is gone then.
    """

    #: Which process.
    pid: Pid
    #: Why. `disconnected` and `refused`: it may live, or lives, and the link is gone.
    reason: DownReason
    #: Which life of that name; 0 where none ended. Two that differ in nothing else are equal.
    life: int = dataclasses.field(default=0, compare=False)


@dataclasses.dataclass(frozen=True, slots=True)
class NodeUp:
    """Another node can be reached."""

    #: Which node.
    node: NodeId
    #: Which start of it: a higher one is a later one.
    incarnation: int
    #: What it says that it is for: its `Mesh(labels=...)`.
    labels: frozenset[str] = frozenset()

    @property
    def guest(self) -> bool:
        """Whether it is a guest, and no member: see `Mesh(guest=True)`."""
        return is_guest(self.node)


@dataclasses.dataclass(frozen=True, slots=True)
class NodeDown:
    """Another node can be reached no longer."""

    #: Which node.
    node: NodeId
    #: Which start of it.
    incarnation: int
    #: Why: `shutdown` (it ended in order), `lost` (the connection ended without a word, as it does
    #: when the peer is killed), `replaced` (a later start of it is there), or the name of another
    #: code of the protocol in lower case: `timeout` (silence), `removed`, `decode` and so on.
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Shutdown:
    """The node ends; what is sent in answer is still delivered, within the time there is."""

    #: Why, as text for people.
    reason: str


class DeadLetterReason(str, enum.Enum):
    """Why an envelope was not delivered."""

    #: It was sent to `None`: the answer to a request without a sender, say.
    NO_RECEIVER = "no_receiver"
    #: No process or service of that pid runs.
    NO_PROCESS = "no_process"
    #: As many envelopes wait for it as may.
    MAILBOX_FULL = "mailbox_full"
    #: The message cannot be put into bytes.
    UNENCODABLE = "unencodable"
    #: The process raised while it handled it, or the service while it waited in the inbox.
    PROCESS_CRASHED = "process_crashed"
    #: The node ended before.
    NODE_SHUTDOWN = "node_shutdown"
    #: A control message that the executor could not follow, or mail of a peer to a reserved pid.
    REFUSED = "refused"
    #: No connection leads to its node.
    NOT_CONNECTED = "not_connected"
    #: As much waits for its node as may.
    PEER_BUSY = "peer_busy"
    #: A peer sent a message whose class this node does not know, or that refuses to be built.
    UNDECODABLE = "undecodable"
    #: A peer said that it dropped so many that were for this node.
    LOST = "lost"
    #: The message was changed after it was sent. Found out with `rouse(strict="changes")` alone.
    CHANGED = "changed"


@dataclasses.dataclass(frozen=True, slots=True)
class DeadLetter:
    """An envelope that was not delivered, for those that subscribed to them."""

    #: The envelope as it was sent.
    envelope: Envelope
    #: Why.
    reason: DeadLetterReason
    #: More about it, as text for people: of a crash the exception, of a message that cannot travel
    #: what is in the way. Two that differ in nothing else are equal; so with the next.
    detail: str = dataclasses.field(default="", compare=False)
    #: The number of the crash in this node's log; 0: it was none.
    crash: int = dataclasses.field(default=0, compare=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Bounced:
    """An envelope became a dead letter at the node that it was sent to."""

    #: Which node.
    node: NodeId
    #: The sender.
    sender: Pid
    #: Why it was not delivered.
    reason: DeadLetterReason
    #: Which request it was.
    correlation_id: CorrelationId | None
    #: More about it, as text for people. Two that differ in nothing else are equal; so with the
    #: next ones.
    detail: str = dataclasses.field(default="", compare=False)
    #: The number of the crash in the log of that node; 0: it was none.
    crash: int = dataclasses.field(default=0, compare=False)
    #: Whose doing it was, of that node, where it is known.
    about: Pid | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True, slots=True)
class CallFailed:
    """Whoever had the request of a call ended, or its node did: for the table of calls."""

    #: Who had it, if it is known.
    about: Pid | None
    #: How it ended: that of a `DownReason`.
    kind: str
    #: More about it, as text for people.
    detail: str
    #: The number of the crash in the log of its node; 0: it was none.
    crash: int


@dataclasses.dataclass(frozen=True, slots=True)
class Lost:
    """Another node dropped envelopes that were for this one, because too much waited already."""

    #: Which node.
    node: NodeId
    #: How many envelopes.
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class RunService:
    """Asks for a service of this node, which ends with its owner. It tells that when it is up."""

    make: Any
    name: str
    group: str | None
    owner: Pid


@dataclasses.dataclass(frozen=True, slots=True)
class EndService:
    """Asks that such a service ends, after what it is doing now."""

    pid: Pid
    owner: Pid


# The names in the reserved group of those that start what a supervisor cannot spawn: processes for
# other nodes, and services.
SPAWNER_NAME = "spawner"
SERVICES_NAME = "services"

# How the wire has them: the numbers of DOWN, EXIT and UNDELIVERED.
DOWN_KINDS: Mapping[int, str] = {
    1: "stopped",
    2: "crashed",
    3: "no_process",
    4: "shutdown",
    5: "refused",
    6: "linked",
}
DOWN_CODES: Mapping[str, int] = {kind: code for code, kind in DOWN_KINDS.items()}
UNDELIVERED_REASONS: Mapping[int, DeadLetterReason] = {
    1: DeadLetterReason.NO_PROCESS,
    2: DeadLetterReason.MAILBOX_FULL,
    3: DeadLetterReason.PROCESS_CRASHED,
    4: DeadLetterReason.NODE_SHUTDOWN,
    5: DeadLetterReason.REFUSED,
    6: DeadLetterReason.UNDECODABLE,
    # Of a request that was passed on and could not go further.
    7: DeadLetterReason.UNENCODABLE,
    8: DeadLetterReason.PEER_BUSY,
    9: DeadLetterReason.NOT_CONNECTED,
    # Of a request that was passed on, too.
    10: DeadLetterReason.NO_RECEIVER,
    11: DeadLetterReason.CHANGED,
}
UNDELIVERED_CODES: Mapping[DeadLetterReason, int] = {
    reason: code for code, reason in UNDELIVERED_REASONS.items()
}

#: An UNDELIVERED of a request that was delivered, and whose process ended without an answer.
UNANSWERED_KINDS: Mapping[int, str] = {
    16 + code: kind
    for code, kind in DOWN_KINDS.items()
    if kind in (*DownReason.STOP_KINDS, "linked")
}
UNANSWERED_CODES: Mapping[str, int] = {kind: code for code, kind in UNANSWERED_KINDS.items()}
#: An UNDELIVERED of a request that another node has from now on.
PASSED_ON = 15
