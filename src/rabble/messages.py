"""What the runtime and processes say to each other: control messages, and what is told of them.

These system messages never leave their node, so they are plain dataclasses that no registry knows.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble._core.texts import bounded_repr

if TYPE_CHECKING:
    from rabble.process import Process

__all__ = [
    "Bounced",
    "CancelTimer",
    "ClusterStatus",
    "DeadLetter",
    "DeadLetterReason",
    "Demonitor",
    "Down",
    "DownReason",
    "ExecutorStatus",
    "GetMetrics",
    "Lost",
    "Metrics",
    "Monitor",
    "NodeDown",
    "NodeStalled",
    "NodeUp",
    "PeerStatus",
    "Removed",
    "Shutdown",
    "Spawn",
    "SpawnFailed",
    "StartTimer",
    "Stop",
    "SubscribeNodes",
    "TimerCancelled",
    "Timeout",
]


# What a process asks of its executor. `Envelope(self.executor, StartTimer(...))`.


@dataclasses.dataclass(frozen=True, slots=True)
class StartTimer:
    """Asks for a `Timeout`. A running timer of the same correlation id is replaced."""

    #: Names the timer; it comes back in the `Timeout`, and as the correlation id of its envelope.
    correlation_id: CorrelationId
    #: Milliseconds, 0 to 366 days. The timer never fires early.
    delay_ms: int | float


@dataclasses.dataclass(frozen=True, slots=True)
class CancelTimer:
    """Asks that a timer of one's own does not fire."""

    #: Which timer.
    correlation_id: CorrelationId
    #: Whether to answer with `TimerCancelled`; after that no `Timeout` of it comes any more.
    acknowledge: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Spawn:
    """Asks for a process. The answer comes only if it fails: `SpawnFailed`."""

    #: A fresh instance; from now on it belongs to the node.
    process: Process
    #: Its name, unique within its group.
    name: str
    #: The tenant it belongs to.
    group: str | None = None
    #: How many envelopes may wait for it; `None` is without limit.
    mailbox_max: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Stop:
    """Asks that a process or service of this node ends. Nothing happens if there is none."""

    #: Who is to end. Of another node nobody is stopped: that ends who asked for it.
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

    #: Whom to watch.
    pid: Pid


@dataclasses.dataclass(frozen=True, slots=True)
class Demonitor:
    """Takes a `Monitor` back."""

    #: Whom to watch no longer.
    pid: Pid


@dataclasses.dataclass(frozen=True, slots=True)
class SubscribeNodes:
    """Asks to be told of nodes: `NodeUp`, `NodeDown`, `NodeStalled`, `Removed`.

    Of each node that is connected already a `NodeUp` comes at once.
    """

    #: False asks for no more.
    wanted: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class GetMetrics:
    """Asks for `Metrics`."""


# What a process is told.


@dataclasses.dataclass(frozen=True, slots=True)
class Timeout:
    """A timer has fired."""

    #: The one that `StartTimer` was given.
    correlation_id: CorrelationId


@dataclasses.dataclass(frozen=True, slots=True)
class TimerCancelled:
    """The answer to an acknowledged `CancelTimer`; no `Timeout` of that timer follows."""

    #: Which timer.
    correlation_id: CorrelationId
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
    )
    #: Those that a `Stop` may give.
    STOP_KINDS: ClassVar[tuple[str, ...]] = ("stopped", "crashed", "shutdown")

    #: `stopped`, `crashed`, `no_process` (it did not run when it was to be watched), `shutdown`,
    #: `disconnected` (its node cannot be reached; it may live), or `refused` (its node lets itself
    #: be watched no further; it lives).
    kind: str
    #: More about it, as text for people: of a crash the exception.
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


@dataclasses.dataclass(frozen=True, slots=True)
class NodeUp:
    """Another node can be reached."""

    #: Which node.
    node: NodeId
    #: Which start of it: a higher one is a later one.
    incarnation: int


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
class NodeStalled:
    """Another node can be reached, but its executor makes no progress; or it does again."""

    #: Which node.
    node: NodeId
    #: Whether it stands still.
    stalled: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Removed:
    """This node was removed from the mesh and dials nobody any more. `Node.join` begins anew."""

    #: Who said so; `None` if it was a state of the membership.
    by: NodeId | None


@dataclasses.dataclass(frozen=True, slots=True)
class Lost:
    """Another node dropped envelopes that were for this one, because too much waited already."""

    #: Which node.
    node: NodeId
    #: How many envelopes.
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class Bounced:
    """An envelope became a dead letter at the node that it was sent to."""

    #: Which node.
    node: NodeId
    #: Who had sent it.
    sender: Pid
    #: Why it was not delivered.
    reason: DeadLetterReason
    #: Which request it was.
    correlation_id: CorrelationId | None


@dataclasses.dataclass(frozen=True, slots=True)
class Metrics:
    """A snapshot of a node's measurements; nobody changes it any more."""

    #: What goes up and down, by name.
    gauges: Mapping[str, float]
    #: What only grows, by name.
    counters: Mapping[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class ExecutorStatus:
    """A snapshot of an executor; nobody changes it any more."""

    #: Whose executor it is.
    node: NodeId
    #: `running`, `stalled`, `stopping`, `stopped` or `failed`.
    status: str
    #: How many processes run.
    processes: int
    #: How many services run.
    services: int
    #: Envelopes in the run queue.
    queue_depth: int
    #: Envelopes of other threads that it has not taken in yet.
    inbox_depth: int
    #: Timers that run.
    timers: int
    #: Envelopes delivered since the start.
    delivered: int
    #: Dead letters since the start, by the value of their `DeadLetterReason`.
    dead_letters: Mapping[str, int]
    #: Processes that raised since the start.
    crashes: int
    #: Seconds since the start.
    uptime_s: float
    #: How often it went to sleep.
    sleeps: int
    #: How often it was woken.
    wakeups: int
    #: How often it spun before it slept.
    spins: int


@dataclasses.dataclass(frozen=True, slots=True)
class PeerStatus:
    """A snapshot of the connection to another node."""

    #: Which node.
    node: NodeId
    #: Which start of it.
    incarnation: int
    #: Whether its executor stands still.
    stalled: bool
    #: Bytes that came from it.
    bytes_received: int
    #: Bytes that went to it.
    bytes_sent: int
    #: Bytes that wait to be sent to it.
    queued_bytes: int
    #: Microseconds from a PING to its answer, the last time; 0 before the first.
    round_trip_us: float


@dataclasses.dataclass(frozen=True, slots=True)
class ClusterStatus:
    """A snapshot of the mesh as one node sees it."""

    #: The node that sees it so.
    node: NodeId
    #: Which start of it.
    incarnation: int
    #: All members, itself included, in the order of their names.
    members: tuple[NodeId, ...]
    #: Whether this node was removed from the mesh.
    removed: bool
    #: The connections that are established.
    connections: tuple[PeerStatus, ...]
    #: How many handshakes and connections were refused, by the name of the refusal code; `TORN` are
    #: connections that ended in the middle of a frame.
    refusals: Mapping[str, int]

    @property
    def links(self) -> tuple[PeerStatus, ...]:
        """`connections`, by its former name."""
        return self.connections


@dataclasses.dataclass(frozen=True, slots=True)
class Shutdown:
    """The node ends; what is sent in answer is still delivered, within the time there is."""

    #: Why, as text for people.
    reason: str


class DeadLetterReason(str, enum.Enum):
    """Why an envelope was not delivered."""

    #: No process or service of that pid runs.
    NO_PROCESS = "no_process"
    #: As many envelopes wait for it as may.
    MAILBOX_FULL = "mailbox_full"
    #: The message cannot be put into bytes.
    UNENCODABLE = "unencodable"
    #: The process raised while it handled it.
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


@dataclasses.dataclass(frozen=True, slots=True)
class DeadLetter:
    """An envelope that was not delivered, for those who subscribed to them."""

    #: The envelope as it was sent.
    envelope: Envelope
    #: Why.
    reason: DeadLetterReason


# How the wire has them: the numbers of DOWN and UNDELIVERED.
DOWN_KINDS: Mapping[int, str] = {
    1: "stopped",
    2: "crashed",
    3: "no_process",
    4: "shutdown",
    5: "refused",
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
}
UNDELIVERED_CODES: Mapping[DeadLetterReason, int] = {
    reason: code for code, reason in UNDELIVERED_REASONS.items()
}

#: The classes whose instances never leave their node, and which the strict mode lets pass.
LOCAL_CLASSES: frozenset[type] = frozenset(
    {
        Bounced,
        CancelTimer,
        ClusterStatus,
        DeadLetter,
        Demonitor,
        Down,
        DownReason,
        ExecutorStatus,
        GetMetrics,
        Lost,
        Metrics,
        Monitor,
        NodeDown,
        NodeStalled,
        NodeUp,
        PeerStatus,
        Removed,
        Shutdown,
        Spawn,
        SpawnFailed,
        StartTimer,
        Stop,
        SubscribeNodes,
        TimerCancelled,
        Timeout,
    }
)
