"""rabble: processes that find each other by name and tell each other messages.

Subclass `Process`, give it a `receive`, `rouse()` a node and spawn it there.
"""

from rabble._core.envelope import Envelope
from rabble._core.ids import CorrelationId, NodeId, Pid
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
    ProcessCrashed,
    QueueFull,
    RabbleError,
    ShutdownTimeout,
)
from rabble.limits import Limits
from rabble.messages import (
    CancelTimer,
    ClusterStatus,
    DeadLetter,
    DeadLetterReason,
    Demonitor,
    Down,
    DownReason,
    ExecutorStatus,
    GetMetrics,
    MessageRegistry,
    Metrics,
    Monitor,
    NodeDown,
    NodeUp,
    Shutdown,
    Spawn,
    SpawnFailed,
    StartTimer,
    Stop,
    Timeout,
    TimerCancelled,
    message,
)
from rabble.node import Node, rouse
from rabble.process import Output, Process, Runtime
from rabble.services import Mailbox, Service, ServiceHandler

__version__ = "0.1.0"

__all__ = [
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
    "Mailbox",
    "MessageRegistry",
    "Metrics",
    "Monitor",
    "NameTaken",
    "NoProcess",
    "Node",
    "NodeDown",
    "NodeId",
    "NodeStopped",
    "NodeUp",
    "Output",
    "Pid",
    "Process",
    "ProcessCrashed",
    "QueueFull",
    "RabbleError",
    "Runtime",
    "Service",
    "ServiceHandler",
    "Shutdown",
    "ShutdownTimeout",
    "Spawn",
    "SpawnFailed",
    "StartTimer",
    "Stop",
    "Timeout",
    "TimerCancelled",
    "message",
    "rouse",
]
