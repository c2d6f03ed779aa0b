"""rabble: processes that find each other by name and tell each other messages.

Subclass `Process`, give it a `receive`, `rouse()` a node and spawn it there.

A name is imported when it is first asked for: `rabble.client` needs neither the compiled core nor
the time that the mesh takes to load.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rabble._core.envelope import Envelope, reply
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
        JoinFailed,
        JoinTimeout,
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
        SupervisorFailed,
    )
    from rabble.families import (
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
        Supervisor,
        TerminateChild,
        WhichChildren,
    )
    from rabble.families.groups import Group, Groups
    from rabble.families.names import Names
    from rabble.limits import Limits
    from rabble.messages import (
        Ask,
        BanStatus,
        Bounced,
        CancelTimer,
        ClusterStatus,
        DeadLetter,
        DeadLetterReason,
        Demonitor,
        Down,
        DownReason,
        Drain,
        Drained,
        ExecutorStatus,
        Exit,
        Failed,
        GetGroupMembers,
        GetMetrics,
        GroupChanged,
        GroupJoined,
        GroupLeft,
        GroupMembers,
        GroupRefused,
        JoinGroup,
        LeaveGroup,
        Link,
        Lost,
        Metrics,
        Monitor,
        NameHolder,
        NameLost,
        NameRefused,
        NodeDown,
        NodeStalled,
        NodeUp,
        PeerStatus,
        Register,
        Registered,
        Removed,
        Reply,
        Shutdown,
        Spawn,
        SpawnFailed,
        StartTimer,
        Stop,
        SubscribeDeadLetters,
        SubscribeGroup,
        SubscribeNodes,
        Tick,
        Timeout,
        TimerCancelled,
        Unlink,
        Unregister,
        Unregistered,
        WhereIs,
    )
    from rabble.node import Node, rouse
    from rabble.process import Output, Process, Runtime
    from rabble.registry import MessageRegistry, message
    from rabble.request import Request
    from rabble.services import Mailbox, Service, ServiceHandler

__version__ = "0.1.0"

__all__ = [
    "Ask",
    "Backoff",
    "BanStatus",
    "Bounced",
    "CallTimeout",
    "CancelTimer",
    "ChildCounts",
    "ChildError",
    "ChildInfo",
    "ChildSpec",
    "ClusterStatus",
    "CorrelationId",
    "CountChildren",
    "DeadLetter",
    "DeadLetterReason",
    "DecodeError",
    "DecodeLimitError",
    "DeleteChild",
    "Demonitor",
    "Down",
    "DownReason",
    "Drain",
    "Drained",
    "EncodeError",
    "Envelope",
    "ExecutorStatus",
    "Exit",
    "Failed",
    "ForkedNode",
    "GetGroupMembers",
    "GetMetrics",
    "Group",
    "GroupChanged",
    "GroupJoined",
    "GroupLeft",
    "GroupMembers",
    "GroupRefused",
    "Groups",
    "JoinFailed",
    "JoinGroup",
    "JoinTimeout",
    "KeyFileError",
    "LeaveGroup",
    "Limits",
    "Link",
    "Lost",
    "Mailbox",
    "Mesh",
    "MessageRegistry",
    "Metrics",
    "Monitor",
    "NameHolder",
    "NameLost",
    "NameRefused",
    "NameTaken",
    "Names",
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
    "Register",
    "Registered",
    "Removed",
    "Reply",
    "Request",
    "Restart",
    "RestartChild",
    "Runtime",
    "Service",
    "ServiceHandler",
    "Shutdown",
    "ShutdownTimeout",
    "Spawn",
    "SpawnFailed",
    "SpawnRefused",
    "StartChild",
    "StartTimer",
    "Stop",
    "Strategy",
    "SubscribeDeadLetters",
    "SubscribeGroup",
    "SubscribeNodes",
    "Supervisor",
    "SupervisorFailed",
    "TerminateChild",
    "Tick",
    "Timeout",
    "TimerCancelled",
    "TlsConfig",
    "Unlink",
    "Unregister",
    "Unregistered",
    "WhereIs",
    "WhichChildren",
    "message",
    "reply",
    "rouse",
    "spawn_request",
]

#: Where each of these names is defined. A test holds this, the list above and the imports that type
#: checkers read to each other.
_HOMES: dict[str, str] = {
    "rabble._core.envelope": "Envelope reply",
    "rabble._core.ids": "CorrelationId NodeId Pid",
    "rabble.cluster.config": "Mesh",
    "rabble.cluster.io.tls": "TlsConfig",
    "rabble.cluster.remote_spawn": "spawn_request",
    "rabble.errors": (
        "CallTimeout DecodeError DecodeLimitError EncodeError ForkedNode JoinFailed "
        "JoinTimeout KeyFileError NameTaken NodeStopped NoProcess NotConnected ProcessCrashed "
        "QueueFull RabbleError ShutdownTimeout SpawnRefused SupervisorFailed"
    ),
    "rabble.families": (
        "Backoff ChildCounts ChildError ChildInfo ChildSpec CountChildren DeleteChild Restart "
        "RestartChild StartChild Strategy Supervisor TerminateChild WhichChildren"
    ),
    "rabble.families.groups": "Group Groups",
    "rabble.families.names": "Names",
    "rabble.limits": "Limits",
    "rabble.messages": (
        "Ask BanStatus Bounced CancelTimer ClusterStatus DeadLetter DeadLetterReason "
        "Demonitor Down DownReason Drain Drained ExecutorStatus Exit Failed GetGroupMembers "
        "GetMetrics GroupChanged GroupJoined GroupLeft GroupMembers GroupRefused JoinGroup "
        "LeaveGroup Link Lost Metrics Monitor NameHolder NameLost NameRefused NodeDown "
        "NodeStalled NodeUp PeerStatus Register Registered Removed Reply Shutdown Spawn "
        "SpawnFailed StartTimer Stop SubscribeDeadLetters SubscribeGroup SubscribeNodes Tick "
        "Timeout TimerCancelled Unlink Unregister Unregistered WhereIs"
    ),
    "rabble.node": "Node rouse",
    "rabble.process": "Output Process Runtime",
    "rabble.registry": "MessageRegistry message",
    "rabble.request": "Request",
    "rabble.services": "Mailbox Service ServiceHandler",
}
_home_of = {name: home for home, names in _HOMES.items() for name in names.split()}

# Hidden from type checkers: they would take any name of `rabble` for one that is there.
if not TYPE_CHECKING:

    def __getattr__(name: str):
        """What is asked for the first time (PEP 562): a public name, or a module of the package."""
        home = _home_of.get(name)
        if home is not None:
            found = getattr(_imported(home), name)
            # From now on it is found without this.
            globals()[name] = found
            return found
        # Not of dunder names, which tools ask any module for.
        if not name.startswith("__") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
            return _imported(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def _imported(module: str):
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith(f"{__name__}._core."):
                raise
            raise ImportError(
                f"{module} needs rabble's compiled core, of which {error.name} is not here. What "
                f"works without is rabble.client, with @rabble.message and rabble.Request; for a "
                f"node install a wheel, or run `make build` in a source tree",
                name=module,
            ) from error

    def __dir__():
        return sorted({*globals(), *__all__})
