"""rabble: processes that find each other by name and tell each other messages.

Subclass `Process`, give it a `receive`, `rouse()` a node and spawn it there.
"""

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, NodeId, Pid
from rabble.cluster.config import Mesh
from rabble.cluster.io.tls import TlsConfig
from rabble.cluster.remote_spawn import spawn_request
from rabble.errors import (
    CallTimeout,
    DecodeError,
    DecodeLimitError,
    EncodeError,
    ForkedNode,
    KeyFileError,
    NameTaken,
    NodeStopped,
    NoProcess,
    NotConnected,
    ProcessCrashed,
    QueueFull,
    RabbleError,
    ShutdownTimeout,
    SpawnRefused,
)
from rabble.limits import Limits
from rabble.messages import (
    Bounced,
    CancelTimer,
    ClusterStatus,
    DeadLetter,
    DeadLetterReason,
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
    Timeout,
    TimerCancelled,
)
from rabble.node import Node, rouse
from rabble.process import Output, Process, Runtime
from rabble.registry import MessageRegistry, message
from rabble.services import Mailbox, Service, ServiceHandler

__version__ = "0.1.0"

__all__ = [
    "Bounced",
    "CallTimeout",
    "CancelTimer",
    "ClusterStatus",
    "CorrelationId",
    "DeadLetter",
    "DeadLetterReason",
    "DecodeError",
    "DecodeLimitError",
    "Demonitor",
    "Down",
    "DownReason",
    "EncodeError",
    "Envelope",
    "ExecutorStatus",
    "ForkedNode",
    "GetMetrics",
    "KeyFileError",
    "Limits",
    "Lost",
    "Mailbox",
    "Mesh",
    "MessageRegistry",
    "Metrics",
    "Monitor",
    "NameTaken",
    "NoProcess",
    "Node",
    "NodeDown",
    "NodeId",
    "NodeStalled",
    "NodeStopped",
    "NodeUp",
    "NotConnected",
    "Output",
    "PeerStatus",
    "Pid",
    "Process",
    "ProcessCrashed",
    "QueueFull",
    "RabbleError",
    "Removed",
    "Runtime",
    "Service",
    "ServiceHandler",
    "Shutdown",
    "ShutdownTimeout",
    "Spawn",
    "SpawnFailed",
    "SpawnRefused",
    "StartTimer",
    "Stop",
    "SubscribeNodes",
    "Timeout",
    "TimerCancelled",
    "TlsConfig",
    "message",
    "rouse",
    "spawn_request",
]
