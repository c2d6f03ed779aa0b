"""What the runtime and processes say to each other: control messages, and what is told of them.

These system messages never leave their node, so they are plain dataclasses that no registry knows.
Those that the core builds or handles are its own and shown here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rabble._core.directory_messages import (
    GetGroupMembers,
    GroupChanged,
    GroupJoined,
    GroupLeft,
    GroupMembers,
    GroupRefused,
    JoinGroup,
    LeaveGroup,
    NameHolder,
    NameLost,
    NameRefused,
    Register,
    Registered,
    SubscribeGroup,
    Unregister,
    Unregistered,
    WhereIs,
)
from rabble._core.ids import NodeId
from rabble._core.messages import (
    Ask,
    Bounced,
    CancelTimer,
    DeadLetter,
    DeadLetterReason,
    Demonitor,
    Down,
    DownReason,
    Drain,
    Drained,
    EndService,
    Exit,
    Failed,
    GetMetrics,
    Link,
    Lost,
    Monitor,
    NodeDown,
    NodeUp,
    Reply,
    RunService,
    Shutdown,
    Spawn,
    SpawnFailed,
    StartTimer,
    Stop,
    SubscribeDeadLetters,
    SubscribeNodes,
    Tick,
    Timeout,
    TimerCancelled,
    Unlink,
    is_guest,
)
from rabble.families.children import StartChild

__all__ = [
    "Ask",
    "BanStatus",
    "Bounced",
    "CancelTimer",
    "ClusterStatus",
    "DeadLetter",
    "DeadLetterReason",
    "Demonitor",
    "Down",
    "DownReason",
    "Drain",
    "Drained",
    "ExecutorStatus",
    "Exit",
    "Failed",
    "GetGroupMembers",
    "GetMetrics",
    "GroupChanged",
    "GroupJoined",
    "GroupLeft",
    "GroupMembers",
    "GroupRefused",
    "JoinGroup",
    "LeaveGroup",
    "Link",
    "Lost",
    "Metrics",
    "Monitor",
    "NameHolder",
    "NameLost",
    "NameRefused",
    "NodeDown",
    "NodeStalled",
    "NodeUp",
    "PeerStatus",
    "Register",
    "Registered",
    "Removed",
    "Reply",
    "Shutdown",
    "Spawn",
    "SpawnFailed",
    "StartChild",
    "StartTimer",
    "Stop",
    "SubscribeDeadLetters",
    "SubscribeGroup",
    "SubscribeNodes",
    "Tick",
    "Timeout",
    "TimerCancelled",
    "Unlink",
    "Unregister",
    "Unregistered",
    "WhereIs",
]


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
class BanStatus:
    """A ban that holds: `node` or `key` says of whom."""

    #: The name that is banned; else `None`.
    node: str | None
    #: The fingerprint of the key that is, 64 hexadecimal digits; else `None`.
    key: str | None
    #: The name of the node on which it was said, as that or another member tells.
    by: str
    #: For how much longer, in seconds.
    seconds_left: float


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
    #: Whether what goes over it is verified with a key of its own (without TLS, which does so
    #: itself).
    authenticated: bool = False
    #: The fingerprints, 64 hexadecimal digits each, of the keys that this node alone has: of its
    #: certificate's public key, of its own key. None in a mesh with one key for all.
    keys: tuple[str, ...] = ()

    @property
    def guest(self) -> bool:
        """Whether it is a guest, and no member."""
        return is_guest(self.node)


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
    #: How many handshakes and connections were refused, by the name of the refusal code;
    #: `PARTIAL_FRAME` are connections that ended in the middle of a frame, `CLOSED` those whose
    #: dialler closed them before it said who it is, `INTERNAL_ERROR` what this node gave up for an
    #: exception of its own: a connection, a command, a look-up.
    refusals: Mapping[str, int]
    #: Days until this node's certificate ends, negative when it has; `None` without TLS.
    certificate_days_left: float | None = None
    #: A short name of each key that this node accepts, 8 hexadecimal digits that give nothing of it
    #: away: first that of the key which it proves itself with. Two while the key is changed, none
    #: without a key. Of a key of its own it is the beginning of the fingerprint, by which it is
    #: banned: see `PeerStatus.keys` of its peers.
    key_ids: tuple[str, ...] = ()
    #: The bans that this node knows of and that hold, those of names first.
    bans: tuple[BanStatus, ...] = ()

    @property
    def links(self) -> tuple[PeerStatus, ...]:
        """`connections`, by its former name."""
        return self.connections


#: The classes whose instances never leave their node, and which the strict mode lets pass.
LOCAL_CLASSES: frozenset[type] = frozenset(
    cls
    for cls in map(globals().__getitem__, __all__)
    if isinstance(cls, type) and dataclasses.is_dataclass(cls)
) | {EndService, RunService}
